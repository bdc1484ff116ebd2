"""A file system that loses what was not synced when its power is cut.

`Power` mounts one, in a process of its own: ``python powerfs.py MOUNTPOINT --fsync-us N``. It needs
/dev/fuse and the right to mount, speaks the kernel's FUSE protocol itself and keeps everything in
memory. Commands are JSON lines on standard input, each answered by one on standard output:

    {"do": "off"}                           from now on nothing becomes durable, and no fsync is
                                            answered. Then kill everybody who has files open
    {"do": "release"}                       answer the fsyncs: those who waited are dead
    {"do": "cut", "seed": 7, "keep": 0.5}   unmount, lose what is not durable, mount again.
                                            Of the unsynced sectors a random part survives: each
                                            with probability `keep`. Nobody may have files open
    {"do": "fsync", "us": 500000}           from now on an fsync takes so long
    {"do": "stats"}                         counters

What is durable:

    bytes of a file      written before an fsync or fdatasync of it began, once that has returned
    size of a file       the same
    names in a folder    as they were when an fsync of the folder began, once that has returned; a
                         new folder or file without one is gone after a cut

A sector is 512 bytes. Unsynced sectors of one file survive independently of each other, in any
order; an overwritten sector that does not survive has its durable bytes again. An fsync takes
`--fsync-us`, in which others go on, so that what overtakes it is caught.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

SECTOR = 512
ROOT_ID = 1
WRITE_MAX = 256 << 10
VALID_S = 3600  # only this kernel changes anything

IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
ATTR = struct.Struct("<6Q10I")
INIT_OUT = struct.Struct("<4I2H2I2H8I")
ENTRY_HEAD = struct.Struct("<4Q2I")
SETATTR = struct.Struct("<2I6Q8I")
READ_WRITE = struct.Struct("<2Q2IQ2I")
DIRENT = struct.Struct("<2Q2I")
STATFS = struct.Struct("<5Q4I6I")

FATTR_MODE, FATTR_SIZE = 1, 8
BIG_WRITES, MAX_PAGES = 1 << 5, 1 << 22
MS_NOSUID_NODEV = 2 | 4
MNT_DETACH = 2


class Failure(OSError):
    """What the caller of a file operation is told."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))
        self.number = number


class File:
    """Bytes as they are, bytes as they are on the device, and where the two may differ."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.data = bytearray()
        self.durable = bytearray()
        self.dirty: list[tuple[int, int]] = []  # ranges written since the last fsync
        self.syncing: dict[int, list[tuple[int, int]]] = {}  # by fsync: those under way
        self.newest_sync = 0

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self.data):
            self.resize(offset)
        self.data[offset : offset + len(data)] = data
        if self.dirty and self.dirty[-1][1] == offset:  # most writes follow each other
            self.dirty[-1] = (self.dirty[-1][0], offset + len(data))
        else:
            self.dirty.append((offset, offset + len(data)))

    def resize(self, size: int) -> None:
        if size < len(self.data):
            self.dirty.append((size, len(self.data)))
            del self.data[size:]
        elif size > len(self.data):
            self.dirty.append((len(self.data), size))
            self.data.extend(bytes(size - len(self.data)))

    def begin_sync(self, number: int) -> Callable[[], None]:
        self.syncing[number], self.dirty = self.dirty, []
        size = len(self.data)
        return lambda: self.synced(number, size)

    def synced(self, number: int, size: int) -> None:
        """What was dirty when fsync `number` began is on the device; a later one may have ended."""
        if number > self.newest_sync:
            self.newest_sync = number
            del self.durable[size:]
            self.durable.extend(bytes(size - len(self.durable)))
        for first, end in self.syncing.pop(number):
            end = min(end, len(self.durable), len(self.data))
            if first < end:
                self.durable[first:end] = self.data[first:end]

    def cut(self, chance: random.Random, keep: float) -> int:
        """Lose what is not durable; how many sectors were lost."""
        after, lost = bytearray(self.durable), 0
        if keep and len(self.data) > len(after) and chance.random() < keep:
            after.extend(bytes(len(self.data) - len(after)))
        unsynced = [*self.dirty, *(span for one in self.syncing.values() for span in one)]
        sectors = {
            at
            for first, end in unsynced
            for at in range(first // SECTOR, (end + SECTOR - 1) // SECTOR)
        }
        for at in sorted(sectors):
            first, end = at * SECTOR, min((at + 1) * SECTOR, len(after), len(self.data))
            if first < end and keep and chance.random() < keep:
                after[first:end] = self.data[first:end]
            else:
                lost += self.data[first : first + SECTOR] != after[first : first + SECTOR]
        self.data, self.durable, self.dirty, self.syncing = after, bytearray(after), [], {}
        return lost


class Folder:
    """Names as they are, and as they are on the device."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.names: dict[str, int] = {}
        self.durable: dict[str, int] = {}
        self.newest_sync = 0

    def begin_sync(self, number: int) -> Callable[[], None]:
        names = dict(self.names)
        return lambda: self.synced(number, names)

    def synced(self, number: int, names: dict[str, int]) -> None:
        if number > self.newest_sync:
            self.newest_sync, self.durable = number, names


class PowerFS:
    """The file system: inodes, and a method for every operation of the protocol.

    Attributes:
        syncs, lost_sectors, lost_names, cuts: counters.
    """

    def __init__(self, fsync_us: int = 0) -> None:
        self.fsync_s = fsync_us / 1e6
        self.inodes: dict[int, File | Folder] = {ROOT_ID: Folder(stat.S_IFDIR | 0o755)}
        self.next_id = ROOT_ID + 1
        self.lock = threading.Lock()
        self.syncs = self.lost_sectors = self.lost_names = self.cuts = self.writes = 0

    # --- durability

    def begin_sync(self, inode: int) -> Callable[[], None]:
        """What is written by now; to be called when it is on the device."""
        self.syncs += 1
        return self.inodes[inode].begin_sync(self.syncs)

    def cut(self, seed: int, keep: float) -> None:
        """The power goes, and comes back."""
        chance = random.Random(seed)
        with self.lock:
            self.cuts += 1
            for _, one in sorted(self.inodes.items()):
                if isinstance(one, Folder):
                    self.lost_names += one.names != one.durable
                    one.names = dict(one.durable)
                else:
                    self.lost_sectors += one.cut(chance, keep)
            reached, todo = set(), [ROOT_ID]
            while todo:
                inode = todo.pop()
                reached.add(inode)
                one = self.inodes[inode]
                todo += one.names.values() if isinstance(one, Folder) else ()
            self.inodes = {inode: self.inodes[inode] for inode in sorted(reached)}

    # --- helpers

    def folder(self, inode: int) -> Folder:
        one = self.inodes[inode]
        if not isinstance(one, Folder):
            raise Failure(errno.ENOTDIR)
        return one

    def file(self, inode: int) -> File:
        one = self.inodes[inode]
        if not isinstance(one, File):
            raise Failure(errno.EISDIR)
        return one

    def attr(self, inode: int) -> bytes:
        one = self.inodes[inode]
        size = len(one.data) if isinstance(one, File) else 4096
        links = 1 if isinstance(one, File) else 2
        return ATTR.pack(
            inode,
            size,
            (size + 511) // 512,
            0,
            0,
            0,
            0,
            0,
            0,
            one.mode,
            links,
            os.getuid(),
            os.getgid(),
            0,
            4096,
            0,
        )

    def entry(self, inode: int) -> bytes:
        return ENTRY_HEAD.pack(inode, 0, VALID_S, VALID_S, 0, 0) + self.attr(inode)

    def make(self, parent: int, name: str, one: File | Folder) -> int:
        folder = self.folder(parent)
        if name in folder.names:
            raise Failure(errno.EEXIST)
        inode, self.next_id = self.next_id, self.next_id + 1
        self.inodes[inode] = one
        folder.names[name] = inode
        return inode

    # --- operations, named as in the protocol; each gets the inode and its arguments

    def lookup(self, inode: int, body: bytes) -> bytes:
        name = text(body)
        found = self.folder(inode).names.get(name)
        if found is None:
            raise Failure(errno.ENOENT)
        return self.entry(found)

    def getattr(self, inode: int, body: bytes) -> bytes:
        return struct.pack("<QII", VALID_S, 0, 0) + self.attr(inode)

    def setattr(self, inode: int, body: bytes) -> bytes:
        valid, _, _, size, *_, mode, _, _, _, _ = SETATTR.unpack_from(body)
        one = self.inodes[inode]
        if valid & FATTR_SIZE:
            self.file(inode).resize(size)
        if valid & FATTR_MODE:
            one.mode = stat.S_IFMT(one.mode) | stat.S_IMODE(mode)
        return self.getattr(inode, b"")

    def mkdir(self, inode: int, body: bytes) -> bytes:
        (mode,) = struct.unpack_from("<I", body)
        return self.entry(self.make(inode, text(body[8:]), Folder(stat.S_IFDIR | mode & 0o7777)))

    def mknod(self, inode: int, body: bytes) -> bytes:
        (mode,) = struct.unpack_from("<I", body)
        return self.entry(self.make(inode, text(body[16:]), File(stat.S_IFREG | mode & 0o7777)))

    def create(self, inode: int, body: bytes) -> bytes:
        (mode,) = struct.unpack_from("<I", body, 4)
        made = self.make(inode, text(body[16:]), File(stat.S_IFREG | mode & 0o7777))
        return self.entry(made) + bytes(16)

    def unlink(self, inode: int, body: bytes) -> bytes:
        if self.folder(inode).names.pop(text(body), None) is None:
            raise Failure(errno.ENOENT)
        return b""

    def rmdir(self, inode: int, body: bytes) -> bytes:
        found = self.folder(inode).names.get(text(body))
        if found is None:
            raise Failure(errno.ENOENT)
        if self.folder(found).names:
            raise Failure(errno.ENOTEMPTY)
        return self.unlink(inode, body)

    def rename(self, inode: int, body: bytes, names_at: int = 8) -> bytes:
        (target,) = struct.unpack_from("<Q", body)
        old, new = (part.decode() for part in body[names_at:].split(b"\0")[:2])
        source = self.folder(inode)
        if old not in source.names:
            raise Failure(errno.ENOENT)
        self.folder(target).names[new] = source.names.pop(old)
        return b""

    def rename2(self, inode: int, body: bytes) -> bytes:
        if struct.unpack_from("<I", body, 8)[0]:
            raise Failure(errno.EINVAL)
        return self.rename(inode, body, 16)

    def open(self, inode: int, body: bytes) -> bytes:
        return bytes(16)

    def read(self, inode: int, body: bytes) -> bytes:
        _, offset, size, *_ = READ_WRITE.unpack_from(body)
        return bytes(self.file(inode).data[offset : offset + size])

    def write(self, inode: int, body: bytes) -> bytes:
        _, offset, size, *_ = READ_WRITE.unpack_from(body)
        self.writes += 1
        self.file(inode).write(offset, body[READ_WRITE.size : READ_WRITE.size + size])
        return struct.pack("<II", size, 0)

    def readdir(self, inode: int, body: bytes) -> bytes:
        _, offset, size, *_ = READ_WRITE.unpack_from(body)
        found = b""
        names = [(".", inode), ("..", inode), *self.folder(inode).names.items()]
        for at, (name, child) in enumerate(names[offset:], offset + 1):
            raw = name.encode()
            kind = stat.S_IFMT(self.inodes[child].mode) >> 12
            one = DIRENT.pack(child, at, len(raw), kind) + raw + bytes(-len(raw) % 8)
            if len(found) + len(one) > size:
                break
            found += one
        return found

    def statfs(self, inode: int, body: bytes) -> bytes:
        return STATFS.pack(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096, *[0] * 7)

    def nothing(self, inode: int, body: bytes) -> bytes:
        return b""

    def init(self, inode: int, body: bytes) -> bytes:
        major, minor, readahead, flags = struct.unpack_from("<4I", body)
        if major != 7 or minor < 28:
            raise Failure(errno.EPROTO)
        return INIT_OUT.pack(
            7,
            31,
            readahead,
            flags & (BIG_WRITES | MAX_PAGES),
            64,
            48,
            WRITE_MAX,
            1,
            WRITE_MAX // 4096,
            *[0] * 9,
        )


def text(body: bytes) -> str:
    return body[: body.index(b"\0")].decode()


OPERATIONS = {
    1: "lookup",
    3: "getattr",
    4: "setattr",
    8: "mknod",
    9: "mkdir",
    10: "unlink",
    11: "rmdir",
    12: "rename",
    14: "open",
    15: "read",
    16: "write",
    17: "statfs",
    18: "nothing",
    25: "nothing",
    26: "init",
    27: "open",
    28: "readdir",
    29: "nothing",
    34: "nothing",
    35: "create",
    38: "nothing",
    45: "rename2",
}
FSYNCS = {20, 30}
NO_ANSWER = {2, 36, 42}  # forget, interrupt, batch forget


class Mount:
    """The kernel's side of it: /dev/fuse, the mount, the thread that answers."""

    def __init__(self, fs: PowerFS, point: str) -> None:
        self.fs = fs
        self.point = point
        self.libc = ctypes.CDLL(None, use_errno=True)

    def mount(self) -> None:
        self.pool = ThreadPoolExecutor(12)  # fsyncs that take their time
        self.power = "on"
        self.held: list[int] = []  # fsyncs that found the power off
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        if self.libc.mount(
            b"powerfs",
            self.point.encode(),
            b"fuse",
            MS_NOSUID_NODEV,
            f"{options},allow_other".encode(),
        ):
            number = ctypes.get_errno()
            os.close(self.device)
            raise OSError(number, f"mount: {os.strerror(number)}")
        self.thread = threading.Thread(target=self.serve, args=(self.device,), daemon=True)
        self.thread.start()

    def unmount(self, flags: int = 0) -> None:
        end = time.monotonic() + 10
        while self.libc.umount2(self.point.encode(), flags):
            number = ctypes.get_errno()
            if number != errno.EBUSY or time.monotonic() > end:
                raise OSError(number, f"umount: {os.strerror(number)}")
            time.sleep(0.01)
        self.pool.shutdown()
        self.thread.join(10)
        os.close(self.device)

    def serve(self, device: int) -> None:
        while True:
            try:
                request = os.read(device, WRITE_MAX + 8192)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return  # ENODEV: unmounted
            self.answer(device, request)

    def answer(self, device: int, request: bytes) -> None:
        _, opcode, unique, inode, *_ = IN_HEADER.unpack_from(request)
        if opcode in NO_ANSWER:
            return
        body = request[IN_HEADER.size :]
        try:
            with self.fs.lock:
                if opcode in FSYNCS:
                    done = self.fs.begin_sync(inode)
                    if not self.fs.fsync_s:
                        self.finish(device, unique, done)
                    else:
                        self.pool.submit(self.finish_later, device, unique, done)
                    return
                if opcode not in OPERATIONS:
                    raise Failure(errno.ENOSYS)
                data = getattr(self.fs, OPERATIONS[opcode])(inode, body)
            self.reply(device, unique, data)
        except Failure as failure:
            self.reply(device, unique, b"", -failure.number)
        except KeyError:
            self.reply(device, unique, b"", -errno.ESTALE)

    def finish_later(self, device: int, unique: int, done: Callable[[], None]) -> None:
        time.sleep(self.fs.fsync_s)
        with self.fs.lock:
            self.finish(device, unique, done)

    def finish(self, device: int, unique: int, done: Callable[[], None]) -> None:
        if self.power == "off":
            self.held.append(unique)
        elif self.power == "released":
            self.reply(device, unique, b"", -errno.EIO)
        else:
            done()
            self.reply(device, unique, b"")

    def off(self) -> None:
        with self.fs.lock:
            self.power = "off"

    def release(self) -> None:
        with self.fs.lock:
            self.power = "released"
            for unique in self.held:
                self.reply(self.device, unique, b"", -errno.EIO)
            self.held = []

    @staticmethod
    def reply(device: int, unique: int, data: bytes, error: int = 0) -> None:
        with suppress(OSError):  # who asked was killed
            os.write(device, OUT_HEADER.pack(OUT_HEADER.size + len(data), error, unique) + data)


def main(point: str, fsync_us: int) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGTERM)  # with the parent
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fs = PowerFS(fsync_us)
    mount = Mount(fs, point)
    try:
        mount.mount()
    except OSError as error:
        say({"errno": error.errno, "error": error.strerror})
        return
    say({"mounted": True})
    try:
        serve(fs, mount)
    finally:
        mount.unmount(MNT_DETACH)


def serve(fs: PowerFS, mount: Mount) -> None:
    """Do what standard input says, until it ends."""
    for line in sys.stdin:
        message: dict[str, Any] = json.loads(line)
        if message["do"] == "off":
            mount.off()
        elif message["do"] == "release":
            mount.release()
        elif message["do"] == "fsync":
            fs.fsync_s = message["us"] / 1e6
        elif message["do"] == "cut":
            mount.release()
            mount.unmount()
            fs.cut(message["seed"], message["keep"])
            mount.mount()
        say(
            {
                "syncs": fs.syncs,
                "writes": fs.writes,
                "lost_sectors": fs.lost_sectors,
                "lost_names": fs.lost_names,
                "cuts": fs.cuts,
            }
        )


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


class Power:
    """The other end of ``main``: mounts on entry, unmounts on exit."""

    def __init__(self, point: Path, fsync_us: int = 0) -> None:
        self.point = point
        self.arguments = [str(point), "--fsync-us", str(fsync_us)]

    def __enter__(self) -> Power:
        self.point.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, __file__, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            raise OSError(self.process.stderr.read().strip().rpartition("\n")[2])
        found: dict[str, Any] = json.loads(line)
        if "errno" in found:  # PermissionError, if it is that
            raise OSError(found["errno"], found["error"])
        return found

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def off(self) -> None:
        """Nothing becomes durable any more, no fsync returns: time to kill everybody."""
        self.ask("off")

    def release(self) -> None:
        """Let those go who wait for an fsync; they must have been killed."""
        self.ask("release")

    def cut(self, seed: int = 0, keep: float = 0.0) -> dict[str, Any]:
        """Lose what is not durable. Nobody may have a file open."""
        return self.ask("cut", seed=seed, keep=keep)

    def slow(self, fsync_us: int) -> None:
        """From now on an fsync takes so long."""
        self.ask("fsync", us=fsync_us)

    def __exit__(self, *_: object) -> None:
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            if pipe is self.process.stdin:
                pipe.close()
                try:
                    self.process.wait(10)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()
            else:
                pipe.close()
        ctypes.CDLL(None).umount2(str(self.point).encode(), MNT_DETACH)  # if it was killed


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
