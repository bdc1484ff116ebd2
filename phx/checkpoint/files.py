"""The disk as checkpoints see it: one tree of folders, in which nothing follows a link.

A path is names joined by "/", from the root of the tree on; "" is the root. What is written is
durable after `Output.sync`, a name after `Files.sync` of its folder; a rename is whole or nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

__all__ = [
    "FILE",
    "FOLDER",
    "OTHER",
    "Data",
    "Files",
    "Found",
    "Input",
    "OsFiles",
    "Output",
    "exists",
    "join",
    "make_folders",
    "need_room",
    "new_folder",
    "remove_tree",
    "split",
]

FILE, FOLDER, OTHER = "file", "folder", "other"

Data = bytes | bytearray | memoryview


class Found(NamedTuple):
    """A name in a folder. ``kind`` is OTHER for links, files with several names, and devices."""

    name: str
    kind: str
    size_bytes: int


class Input(Protocol):
    """A file that is read from its beginning."""

    @property
    def size_bytes(self) -> int: ...
    def read(self, bytes_max: int, /) -> bytes:
        """The next bytes, at least one and at most ``bytes_max``; b"" at the end."""
        ...

    def skip(self, size_bytes: int, /) -> None:
        """Go on behind the next so many bytes."""
        ...

    def close(self) -> None: ...


class Output(Protocol):
    """A file that is written from its beginning, or from where it was cut, to its end."""

    def write(self, data: Data, /) -> None:
        """Append all of it."""
        ...

    def fileno(self) -> int:
        """Its descriptor. Raises OSError where there is none."""
        ...

    def size_bytes(self) -> int:
        """How long it is now, whoever wrote to it."""
        ...

    def sync(self) -> None:
        """What was written is on the device."""
        ...

    def close(self) -> None: ...


class Files(Protocol):
    """A tree of folders. Every call raises OSError as the call of the system would.

    Attributes:
        durable: folders whose names were synced since this object, or the life of its process,
            began. `make_folders` keeps it.
    """

    durable: set[str]

    def listing(self, path: str) -> list[Found]:
        """What is in a folder, by name."""
        ...

    def make_folder(self, path: str) -> None:
        """FileExistsError if there is anything of that name."""
        ...

    def create(self, path: str) -> Output:
        """A new file. FileExistsError if there is anything of that name, a link too."""
        ...

    def read(self, path: str) -> Input:
        """Open a plain file with one name. OSError (ELOOP) for links and everything else."""
        ...

    def extend(self, path: str, size_bytes: int) -> Output:
        """Cut a plain file with one name to so many bytes, and go on behind them.

        OSError (ELOOP) for links and everything else, EINVAL if it is shorter.
        """
        ...

    def rename(self, old: str, new: str) -> None:
        """Whole or not at all. FileExistsError if there is anything of the new name."""
        ...

    def remove(self, path: str) -> None:
        """Remove anything but a folder; of a link itself, never what it points to."""
        ...

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        ...

    def sync(self, path: str) -> None:
        """The names in a folder are on the device as they are now."""
        ...

    def free_bytes(self) -> int:
        """How much may still be written."""
        ...


def split(path: str) -> list[str]:
    """The names of a path. ValueError for what could lead out of the tree."""
    names = path.split("/") if path else []
    for name in names:
        if name in ("", ".", "..") or "\0" in name:
            raise ValueError(f"not a path: {path!r}")
    return names


def join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def exists(files: Files, path: str) -> bool:
    """Whether there is anything of that name, a link too."""
    parent, _, name = path.rpartition("/")
    try:
        return any(found.name == name for found in files.listing(parent))
    except FileNotFoundError:
        return False


def make_folders(files: Files, path: str) -> None:
    """Make a folder and those above it; their names are durable on return."""
    names = split(path)
    for depth in range(len(names)):
        above, folder = "/".join(names[:depth]), "/".join(names[: depth + 1])
        made = False
        with suppress(FileExistsError):
            files.make_folder(folder)
            made = True
        if made or folder not in files.durable:
            files.sync(above)  # also if it was there: who made it may have died before this
            files.durable.add(folder)


def new_folder(files: Files, above: str, prefix: str) -> str:
    """Make ``above/prefix-N`` for the lowest N that nobody has; its path. It is not synced."""
    number = 0
    while True:
        path = join(above, f"{prefix}-{number}")
        try:
            files.make_folder(path)
            return path
        except FileExistsError:
            number += 1


def need_room(files: Files, nbytes: int, reserve_bytes: int) -> None:
    """OSError (ENOSPC) unless so much can be written and the reserve stays free."""
    free = files.free_bytes()
    if free < nbytes + reserve_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{free} bytes are free; a checkpoint takes about {nbytes}, and {reserve_bytes} must "
            "stay free",
        )


def remove_tree(files: Files, path: str) -> None:
    """Remove a folder and what is in it, or a file, or nothing if it is gone. It is not synced."""
    try:
        found = files.listing(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        files.remove(path)
        return
    for one in found:
        inside = join(path, one.name)
        if one.kind == FOLDER:
            remove_tree(files, inside)
        else:
            files.remove(inside)
    files.remove_folder(path)


# --- real folders

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not hang
_EXTEND_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _kind(found: os.stat_result) -> str:
    if stat.S_ISDIR(found.st_mode):
        return FOLDER
    return FILE if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else OTHER


class OsFiles:
    """The tree under a real folder.

    Guarantee: whatever lies in it, nothing outside it is read, written or removed. Every name is
    opened relative to the folder before it, and none of them may be a link; the root itself may.
    Any thread may call.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.durable: set[str] = set()

    def listing(self, path: str) -> list[Found]:
        with self._folder(split(path)) as folder, os.scandir(folder) as entries:
            found = []
            for entry in entries:
                with suppress(FileNotFoundError):  # it went meanwhile
                    facts = entry.stat(follow_symlinks=False)
                    found.append(Found(entry.name, _kind(facts), facts.st_size))
        return sorted(found)

    def make_folder(self, path: str) -> None:
        with self._parent(path) as (folder, name):
            os.mkdir(name, 0o755, dir_fd=folder)

    def create(self, path: str) -> Output:
        with self._parent(path) as (folder, name):
            return _OsOutput(os.open(name, _CREATE_FLAGS, 0o644, dir_fd=folder))

    def read(self, path: str) -> Input:
        with self._parent(path) as (folder, name):
            opened = os.open(name, _READ_FLAGS, dir_fd=folder)
        facts = os.fstat(opened)
        if _kind(facts) != FILE:
            os.close(opened)
            raise OSError(errno.ELOOP, "not a plain file with one name", path)
        return _OsInput(opened, facts.st_size)

    def extend(self, path: str, size_bytes: int) -> Output:
        with self._parent(path) as (folder, name):
            opened = os.open(name, _EXTEND_FLAGS, dir_fd=folder)
        try:
            facts = os.fstat(opened)
            if _kind(facts) != FILE:
                raise OSError(errno.ELOOP, "not a plain file with one name", path)
            if facts.st_size < size_bytes:
                raise OSError(errno.EINVAL, f"it has {facts.st_size} bytes", path)
            os.ftruncate(opened, size_bytes)
            os.lseek(opened, size_bytes, os.SEEK_SET)
        except BaseException:
            os.close(opened)
            raise
        return _OsOutput(opened)

    def rename(self, old: str, new: str) -> None:
        with self._parent(old) as (source, name), self._parent(new) as (target, as_name):
            # rename() would replace an empty folder without a word. Nobody else is at work here.
            with suppress(FileNotFoundError):
                os.stat(as_name, dir_fd=target, follow_symlinks=False)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
            os.rename(name, as_name, src_dir_fd=source, dst_dir_fd=target)

    def remove(self, path: str) -> None:
        with self._parent(path) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def remove_folder(self, path: str) -> None:
        with self._parent(path) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    def sync(self, path: str) -> None:
        with self._folder(split(path)) as folder:
            os.fsync(folder)

    def free_bytes(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    @contextmanager
    def _folder(self, names: list[str]) -> Iterator[int]:
        """A descriptor of a folder; OSError if a name on the way is a link."""
        opened = os.open(self.root, _FOLDER_FLAGS)
        try:
            for name in names:
                inside = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=opened)
                os.close(opened)
                opened = inside
            yield opened
        finally:
            os.close(opened)

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        *names, name = split(path)
        with self._folder(names) as folder:
            yield folder, name


class _OsInput:
    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._descriptor = descriptor

    def read(self, bytes_max: int, /) -> bytes:
        return os.read(self._descriptor, bytes_max)

    def skip(self, size_bytes: int, /) -> None:
        os.lseek(self._descriptor, size_bytes, os.SEEK_CUR)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _OsOutput:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: Data, /) -> None:
        left = memoryview(data).cast("B")
        while left:
            left = left[os.write(self._descriptor, left) :]

    def fileno(self) -> int:
        if self._descriptor < 0:
            raise OSError(errno.EBADF, "the file is closed")
        return self._descriptor

    def size_bytes(self) -> int:
        return os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
