"""A disk for checkpoints, in memory, that keeps no more than it has to.

Crashes come before any chosen effect, the one in the middle of a write included. A crash of the
process keeps all effects; a loss of power keeps what was synced, and of the rest what chance says:

    bytes of a file     up to the last sync of it; of those behind it, single sectors may be there,
                        with zeros between them, and the file may end anywhere
    a cut of a file     it may be as it was before, all of it, until it is synced
    names in a folder   as of the last sync of it; of what changed since, each change may be there
                        or not, in any order, but none without an earlier one of the same name
    old changes         of names reach the disk by themselves: all but the last `changes_max`
    a rename            one change, to be found in both folders or in neither; but after a sync of
                        none but the folder that it left, it may be nowhere
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from phx.checkpoint.files import FILE, FOLDER, Data, Found, split

__all__ = ["UNLIMITED_BYTES", "Crashed", "MemoryFiles"]

SECTOR_BYTES = 512
UNLIMITED_BYTES = 1 << 40
CHANGES_MAX = 1 << 20

names_of = lru_cache(1024)(split)
"""`split`, of which the caller changes nothing: the same paths come again and again."""


class Crashed(BaseException):
    """The process is dead: nobody catches this but who planned it."""


class _File:
    def __init__(self) -> None:
        self.data = bytearray()
        self.synced_bytes = 0
        self.uncut = b""
        """What was synced before it was cut, until that is."""

    def cut(self, chance: Random, keep: float, sector_bytes: int) -> None:
        """Lose what was not synced, but for what chance keeps."""
        if self.uncut and chance.random() >= keep:
            self.data, self.synced_bytes, self.uncut = (
                bytearray(self.uncut),
                len(self.uncut),
                b"",
            )
            return
        tail = len(self.data) - self.synced_bytes
        size = self.synced_bytes + (tail if chance.random() < keep else chance.randint(0, tail))
        after = self.data[: self.synced_bytes] + bytes(size - self.synced_bytes)
        for first in range(self.synced_bytes, size, sector_bytes):
            if chance.random() < keep:
                end = min(first + sector_bytes, size)
                after[first:end] = self.data[first:end]
        self.data, self.synced_bytes, self.uncut = after, size, b""


@dataclass(eq=False, slots=True)
class _Folder:
    names: dict[str, _File | _Folder] = field(default_factory=dict)
    durable: dict[str, _File | _Folder] = field(default_factory=dict)


Node = _File | _Folder


class _Change:
    """A name that went, a name that came, or both at once."""

    __slots__ = ("come", "folders", "gone", "keys")

    def __init__(
        self, gone: tuple[_Folder, str] | None, come: tuple[_Folder, str, Node] | None
    ) -> None:
        self.gone = gone
        self.come = come
        self.folders: list[_Folder] = []
        self.keys: set[tuple[int, str]] = set()
        for at in (gone, come):
            if at is not None:
                self.folders.append(at[0])
                self.keys.add((id(at[0]), at[1]))

    def settle(self) -> None:
        if self.gone is not None:
            self.gone[0].durable.pop(self.gone[1], None)
        if self.come is not None:
            self.come[0].durable[self.come[1]] = self.come[2]


class MemoryFiles:
    """`phx.checkpoint.files.Files` in memory. One thread.

    Attributes:
        effects: how many there were: whatever changes bytes or names, and syncs.
        crash_at: the effect with this number does not happen (a write: by half), but Crashed.
        errors: effects by number that fail with that errno, and do not happen.
        capacity_bytes: of all files; beyond it a write fails with ENOSPC.
    """

    def __init__(
        self,
        capacity_bytes: int = UNLIMITED_BYTES,
        sector_bytes: int = SECTOR_BYTES,
        changes_max: int = CHANGES_MAX,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.effects = 0
        self.crash_at = 0
        self.errors: dict[int, int] = {}
        self.life = 1
        self.durable: set[str] = set()
        self._sector_bytes = sector_bytes
        self._changes_max = changes_max
        self._root = _Folder()
        self._changes: list[_Change] = []
        self._dead = False

    # --- what can happen to it

    def stop(self) -> None:
        """The process is dead: whoever still runs in it gets Crashed."""
        self._dead = True

    def restart(self) -> None:
        """A new process: what the old one had open is of no use any more."""
        self.life += 1
        self.durable = set()  # a new process knows nothing of it
        self.crash_at = 0
        self._dead = False

    def power_loss(self, chance: Random, keep: float) -> None:
        """And a new process.

        Args:
            keep: how likely it is for each thing that was not synced to be there nevertheless.
        """
        lost: set[tuple[int, str]] = set()
        for change in self._changes:
            if chance.random() < keep and not change.keys & lost:
                change.settle()
            else:
                lost |= change.keys
        self._changes = []
        self._cut(self._root, chance, keep)
        self.restart()

    def _cut(self, folder: _Folder, chance: Random, keep: float) -> None:
        folder.names = dict(folder.durable)
        for name in sorted(folder.names):
            node = folder.names[name]
            if isinstance(node, _Folder):
                self._cut(node, chance, keep)
            else:
                node.cut(chance, keep, self._sector_bytes)

    def flip(self, path: str, bit: int) -> None:
        """Flip one bit of a file, on the device as well."""
        self._file(path).data[bit // 8] ^= 1 << (bit % 8)

    def content(self, path: str) -> bytes:
        """All of a file, dead or alive."""
        return bytes(self._file(path).data)

    def tree(self) -> list[str]:
        """The path of every file and folder, folders with a "/" at the end."""
        found: list[str] = []
        todo: list[tuple[str, _Folder]] = [("", self._root)]
        while todo:
            above, folder = todo.pop()
            for name, node in folder.names.items():
                if isinstance(node, _Folder):
                    todo.append((f"{above}{name}/", node))
                    found.append(f"{above}{name}/")
                else:
                    found.append(above + name)
        return sorted(found)

    # --- Files

    def listing(self, path: str) -> list[Found]:
        self.alive(self.life)
        return [
            Found(name, FOLDER, 0)
            if isinstance(node, _Folder)
            else Found(name, FILE, len(node.data))
            for name, node in sorted(self._folder(names_of(path)).names.items())
        ]

    def make_folder(self, path: str) -> None:
        self._make(path, _Folder())

    def create(self, path: str) -> _Output:
        made = _File()
        self._make(path, made)
        return _Output(self, made)

    def read(self, path: str) -> _Input:
        self.alive(self.life)
        return _Input(self, self._file(path))

    def extend(self, path: str, size_bytes: int) -> _Output:
        self.alive(self.life)
        file = self._file(path)
        if len(file.data) < size_bytes:
            raise _error(errno.EINVAL, path)
        if len(file.data) > size_bytes:
            self.effect()
            if size_bytes < file.synced_bytes:
                file.uncut = file.uncut or bytes(file.data[: file.synced_bytes])
                file.synced_bytes = size_bytes
            del file.data[size_bytes:]
        return _Output(self, file)

    def rename(self, old: str, new: str) -> None:
        source, name, node = self._find(old)
        target, as_name = self._vacant(new)
        self.effect()
        del source.names[name]
        target.names[as_name] = node
        self._change((source, name), (target, as_name, node))

    def remove(self, path: str) -> None:
        folder, name, node = self._find(path)
        if isinstance(node, _Folder):
            raise _error(errno.EISDIR, path)
        self._unname(folder, name)

    def remove_folder(self, path: str) -> None:
        folder, name, node = self._find(path)
        if not isinstance(node, _Folder) or node.names:
            raise _error(errno.ENOTEMPTY if isinstance(node, _Folder) else errno.ENOTDIR, path)
        self._unname(folder, name)

    def sync(self, path: str) -> None:
        folder = self._folder(names_of(path))
        self.effect()
        # What is synced needs what came before it under the same names.
        keys: set[tuple[int, str]] = set()
        needed: list[_Change] = []
        left: list[_Change] = []
        for change in reversed(self._changes):
            if folder not in change.folders and (not keys or keys.isdisjoint(change.keys)):
                left.append(change)
                continue
            gone, come = change.gone, change.come
            if (
                gone and come and gone[0] is folder and come[0] is not folder
                and (id(come[0]), come[1]) not in keys
            ):  # fmt: skip
                left.append(_Change(None, come))
                change = _Change(gone, None)
            keys |= change.keys
            needed.append(change)
        for change in reversed(needed):
            change.settle()
        self._changes = left[::-1]

    def free_bytes(self) -> int:
        self.alive(self.life)
        if self.capacity_bytes == UNLIMITED_BYTES:
            return UNLIMITED_BYTES
        return max(self.capacity_bytes - self.used_bytes(), 0)

    # --- within

    def _change(
        self, gone: tuple[_Folder, str] | None, come: tuple[_Folder, str, Node] | None
    ) -> None:
        self._changes.append(_Change(gone, come))
        if len(self._changes) > self._changes_max:
            self._changes.pop(0).settle()

    def used_bytes(self) -> int:
        return self._used(self._root)

    def alive(self, life: int) -> None:
        if self._dead or life != self.life:
            raise Crashed

    def effect(self) -> None:
        """Before each effect."""
        if self._dead:
            raise Crashed
        self.effects += 1
        if self.effects == self.crash_at:
            self._dead = True
            raise Crashed
        if self.errors and (number := self.errors.pop(self.effects, 0)):
            raise _error(number, "planned")

    def _used(self, folder: _Folder) -> int:
        return sum(
            self._used(node) if isinstance(node, _Folder) else len(node.data)
            for node in folder.names.values()
        )

    def _folder(self, names: list[str]) -> _Folder:
        node: Node = self._root
        for name in names:
            if not isinstance(node, _Folder) or name not in node.names:
                number = errno.ENOENT if isinstance(node, _Folder) else errno.ENOTDIR
                raise _error(number, "/".join(names))
            node = node.names[name]
        if not isinstance(node, _Folder):
            raise _error(errno.ENOTDIR, "/".join(names))
        return node

    def _find(self, path: str) -> tuple[_Folder, str, Node]:
        *names, name = names_of(path)
        folder = self._folder(names)
        if name not in folder.names:
            raise _error(errno.ENOENT, path)
        return folder, name, folder.names[name]

    def _file(self, path: str) -> _File:
        node = self._find(path)[2]
        if isinstance(node, _Folder):
            raise _error(errno.ELOOP, path)
        return node

    def _vacant(self, path: str) -> tuple[_Folder, str]:
        *names, name = names_of(path)
        folder = self._folder(names)
        if name in folder.names:
            raise _error(errno.EEXIST, path)
        return folder, name

    def _make(self, path: str, node: Node) -> None:
        folder, name = self._vacant(path)
        self.effect()
        folder.names[name] = node
        self._change(None, (folder, name, node))

    def _unname(self, folder: _Folder, name: str) -> None:
        self.effect()
        del folder.names[name]
        self._change((folder, name), None)


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


class _Input:
    def __init__(self, files: MemoryFiles, file: _File) -> None:
        self.size_bytes = len(file.data)
        self._files, self._life = files, files.life
        self._file = file
        self._at = 0

    def read(self, bytes_max: int, /) -> bytes:
        self._files.alive(self._life)
        data = bytes(self._file.data[self._at : self._at + bytes_max])
        self._at += len(data)
        return data

    def skip(self, size_bytes: int, /) -> None:
        self._at += size_bytes

    def close(self) -> None:
        pass


class _Output:
    def __init__(self, files: MemoryFiles, file: _File) -> None:
        self._files, self._life = files, files.life
        self._file = file

    def write(self, data: Data, /) -> None:
        self._files.alive(self._life)
        written = bytes(data)
        try:
            self._files.effect()
        except Crashed:
            self._file.data += written[: len(written) // 2]
            raise
        room = self._files.free_bytes()
        self._file.data += written[:room]
        if len(written) > room:
            raise _error(errno.ENOSPC, "")

    def fileno(self) -> int:
        raise _error(errno.EBADF, "in memory")

    def size_bytes(self) -> int:
        return len(self._file.data)

    def sync(self) -> None:
        self._files.alive(self._life)
        self._files.effect()
        self._file.synced_bytes, self._file.uncut = len(self._file.data), b""

    def close(self) -> None:
        pass
