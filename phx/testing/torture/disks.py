"""Where the tortured nodes keep their data: a folder, a small file system, or one that loses power.

Guarantee: `own_mounts` gives this process mounts of its own, so that nothing is left mounted when
it and its children are gone, however they ended.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from phx.testing.powerfs import MNT_DETACH, Power

CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 0x40000
MS_NOSUID_NODEV = 2 | 4
SMALL_BYTES = 160 << 20
FSYNC_US = (1_000, 5_000, 20_000)
"""A sync of a disk that can lose power takes one of these: the longer, the more is under way."""
LAYOUTS = {"power": "power", "forget": "power", "full": "small"}
"""The disks that a kind of fault needs, where it needs special ones."""


class Disk:
    """A node's folder, on the file system that everything else is on."""

    def __init__(self, point: Path, fsync_us: int = FSYNC_US[0]) -> None:
        self.point = point
        self.fsync_us = fsync_us  # where it is ours to say

    def begin(self) -> None:
        self.point.mkdir(parents=True, exist_ok=True)

    def end(self) -> None:
        """Leave nothing mounted. Idempotent; the node has ended."""


class SmallDisk(Disk):
    """A file system in memory that can be filled."""

    @property
    def filler(self) -> Path:
        return self.point / "filler"

    def begin(self) -> None:
        super().begin()
        _mount("tmpfs", self.point, "tmpfs", MS_NOSUID_NODEV, f"size={SMALL_BYTES}")

    def fill(self) -> int:
        """Leave no byte free; how many that took."""
        taken = 0
        with open(self.filler, "wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                block = bytes(size)
                try:
                    while True:
                        taken += file.write(block)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        return taken

    def free(self) -> None:
        """What `fill` took is there again."""
        self.filler.unlink(missing_ok=True)

    def end(self) -> None:
        _unmount(self.point)


class PowerDisk(Disk):
    """A file system that loses what was not synced.

    Attributes:
        lost_sectors, lost_names, cuts: so far.
    """

    def __init__(self, point: Path, fsync_us: int = FSYNC_US[0]) -> None:
        super().__init__(point, fsync_us)
        self.power = Power(point, fsync_us)
        self.lost_sectors = self.lost_names = self.cuts = 0
        self._begun = False

    def begin(self) -> None:
        super().begin()
        self.power.__enter__()
        self._begun = True

    def off(self) -> None:
        self.power.off()

    def release(self) -> None:
        self.power.release()

    def cut(self, seed: int, keep: float) -> None:
        """The process that had files open has ended, after `off`."""
        found = self.power.cut(seed, keep)
        self.lost_sectors, self.lost_names = found["lost_sectors"], found["lost_names"]
        self.cuts = found["cuts"]

    def end(self) -> None:
        if self._begun:
            self._begun = False
            self.power.__exit__()


DISKS: dict[str, type[Disk]] = {"plain": Disk, "small": SmallDisk, "power": PowerDisk}


class Machines:
    """The disks of a cluster's nodes, which come and go; what is left of them ends with `end_all`.

    Attributes:
        disks: of every node there ever was, by node.
    """

    def __init__(self, folder: Path, layout: str, fsync_us: int) -> None:
        self.disks: dict[int, Disk] = {}
        self._folder, self._kind, self._fsync_us = folder, DISKS[layout], fsync_us

    def begin(self, node: int) -> None:
        disk = self.disks[node] = self._kind(self._folder / f"node{node}", self._fsync_us)
        disk.begin()

    def end(self, node: int) -> None:
        """The node has ended. Idempotent."""
        self.disks[node].end()

    def end_all(self) -> None:
        for disk in self.disks.values():
            disk.end()


def missing(kind: str) -> str:
    """Why a kind of fault cannot be had here; "": it can. Call `own_mounts` first."""
    if kind in ("slow", "eio"):
        return _no_strace()
    if kind not in LAYOUTS:
        return ""
    if sys.platform != "linux":
        return "it needs Linux"
    with tempfile.TemporaryDirectory(prefix="phx-") as folder:
        disk = DISKS[LAYOUTS[kind]](Path(folder) / "disk")
        try:
            disk.begin()
        except OSError as error:
            return f"cannot mount here: {error.strerror or error}"
        disk.end()
    return ""


def _no_strace() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed"
    words = [
        "strace",
        "-o",
        "/dev/null",
        "-e",
        "trace=fdatasync",
        "-e",
        "inject=fdatasync:error=EIO",
    ]
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"strace: {done.stderr.strip()}"


def own_mounts() -> None:
    """From now on, what this process mounts is seen by its children alone, and goes with the last.

    Without effect where that is not allowed: then mounting is not, either. Call it before the
    first thread is started.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) == 0:
        _mount("none", Path("/"), "", MS_REC_PRIVATE, "")


def _mount(what: str, point: Path, kind: str, flags: int, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    names = [os.fsencode(one) for one in (what, point, kind)]
    if libc.mount(*names, flags, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(point))


def _unmount(point: Path) -> None:
    if os.path.ismount(point):
        with suppress(OSError):
            ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(point), MNT_DETACH)
