"""A checkpoint that is being received: its folder in staging, and what of it is there.

    checkpoints/staging/fetch-<group>-<number>/
        manifest        what it is to become; durable before the first byte of a file
        new/            its files, as far as they came; it gets a manifest, and its final name, last

How far the files came stands nowhere: it is found by hashing them against the manifest's blocks.
A note could say more than the disk kept.
"""

from __future__ import annotations

import re
from contextlib import suppress
from hashlib import blake2b

from phx.checkpoint.catalog import READ_BYTES, STAGING, verify_file
from phx.checkpoint.files import (
    FILE,
    FOLDER,
    Data,
    Files,
    Output,
    exists,
    join,
    need_room,
    remove_tree,
)
from phx.checkpoint.manifest import (
    BLOCK_DIGEST_BYTES,
    MANIFEST,
    FileEntry,
    Manifest,
    block_bytes_of,
    encode,
    read_manifest,
)
from phx.checkpoint.taking import NEW, SYNC_BYTES, Steps, publish, stage
from phx.errors import Damaged, Foreign
from phx.transfer.messages import Hostile

__all__ = ["Staged", "kept", "waiting"]

FETCHED = "fetch"
NAME = re.compile(r"fetch-(0|[1-9][0-9]{0,6})-(0|[1-9][0-9]{0,8})")


def waiting(files: Files, root: str) -> dict[int, tuple[str, Manifest]]:
    """For each group, (path, manifest) of what was received in part and can be gone on with: of
    several, the greatest frontier. Changes nothing. Raises OSError."""
    found: dict[int, tuple[str, Manifest]] = {}
    staging = join(root, STAGING)
    if not exists(files, staging):
        return found
    for one in files.listing(staging):
        path, named = join(staging, one.name), NAME.fullmatch(one.name)
        if named is None or one.kind != FOLDER or not exists(files, join(path, NEW)):
            continue
        with suppress(OSError, Damaged, Foreign):
            manifest = read_manifest(files, path)
            best = found.get(manifest.group)
            if manifest.group == int(named[1]) and (
                best is None or best[1].frontier < manifest.frontier
            ):
                found[manifest.group] = path, manifest
    return found


def kept(files: Files, root: str, cluster: int, most: int) -> list[str]:
    """Names in staging for `Catalog.open` to leave alone: at most so many, the largest first."""
    found = [
        (manifest.size_bytes, path.rpartition("/")[2])
        for path, manifest in waiting(files, root).values()
        if manifest.cluster == cluster
    ]
    return [name for _, name in sorted(found, reverse=True)[:most]]


class Staged:
    """One checkpoint on its way. One thread.

    Guarantee: nothing outside its folder is written, and it gets its final name only after every
    byte was read back and found to be what the manifest says.

    After any exception it is of no more use: close it, and `resume`.

    Attributes:
        path: its folder.
        manifest: what it is to become.
        offsets: of each file, how much of it is there. At a block's end all of that is verified.
    """

    def __init__(self, files: Files, root: str, path: str, manifest: Manifest) -> None:
        self.files = files
        self.path = path
        self.manifest = manifest
        self.offsets = [0] * len(manifest.files)
        self._root = root
        self._output: Output | None = None
        self._block = blake2b(digest_size=BLOCK_DIGEST_BYTES)
        self._unsynced = 0

    @classmethod
    def begin(cls, files: Files, root: str, manifest: Manifest, reserve_bytes: int) -> Staged:
        """A new one. Raises OSError, ENOSPC before anything is written if there is no room."""
        need_room(files, manifest.size_bytes, reserve_bytes)
        path = stage(files, root, FETCHED, manifest.group)
        output = files.create(join(path, MANIFEST))
        try:
            output.write(encode(manifest))
            output.sync()
        finally:
            output.close()
        files.sync(path)
        files.sync(join(root, STAGING))
        return cls(files, root, path, manifest)

    @classmethod
    def resume(cls, files: Files, root: str, path: str, reserve_bytes: int) -> Staged:
        """One of `waiting`: what of it is good stays, all else in it goes.

        Reads what is there. Each file is cut at the first block that is not the manifest's, and
        synced: its bytes may be in the cache of a life that never synced them.

        Raises OSError (ENOSPC if there is no room for the rest), Damaged, Foreign.
        """
        manifest = read_manifest(files, path)
        self = cls(files, root, path, manifest)
        there = {one.name: one.kind for one in files.listing(join(path, NEW))}
        for index, entry in enumerate(manifest.files):
            if there.get(entry.name) != FILE:
                continue
            del there[entry.name]
            inside = join(path, NEW, entry.name)
            good = _good_bytes(files, inside, entry)
            output = files.extend(inside, good)
            try:
                output.sync()
            finally:
                output.close()
            self.offsets[index] = good
        for name in there:
            remove_tree(files, join(path, NEW, name))
        need_room(files, manifest.size_bytes - self.size_bytes, reserve_bytes)
        return self

    @property
    def size_bytes(self) -> int:
        """How much of it is there."""
        return sum(self.offsets)

    @property
    def file(self) -> int:
        """The file that comes next, or -1: all of them are there."""
        for index, entry in enumerate(self.manifest.files):
            if self.offsets[index] < entry.size_bytes:
                return index
        return -1

    def append(self, data: Data) -> None:
        """The next bytes of the next file; no more than are missing of it.

        Raises Hostile if they make a block that is not the manifest's, OSError.
        """
        index = self.file
        entry = self.manifest.files[index]
        block_bytes = block_bytes_of(entry.size_bytes)
        view = memoryview(data)
        if self._output is None:
            self._output = self._open(entry, self.offsets[index])
        while view:
            at = self.offsets[index]
            end = min(at - at % block_bytes + block_bytes, entry.size_bytes)
            piece = view[: end - at]
            self._output.write(piece)
            self._block.update(piece)
            self._unsynced += len(piece)
            self.offsets[index] = at + len(piece)
            if self.offsets[index] == end:
                self._end_block(entry, (end - 1) // block_bytes)
            view = view[len(piece) :]
        if self._unsynced >= SYNC_BYTES:
            self._sync()
        if self.offsets[index] == entry.size_bytes:
            self.close()

    def close(self) -> None:
        """What was appended stays. Raises OSError."""
        if self._output is not None:
            try:
                self._sync()
            finally:
                self._output.close()
                self._output = None

    def drop(self) -> None:
        """It is not wanted any more: remove it. Raises OSError."""
        self.close()
        remove_tree(self.files, self.path)

    def publish(self) -> Steps:
        """All bytes are there: make it a checkpoint. Returns its manifest.

        Yields the name of a step after each effect that a crash may come behind; whatever the step,
        the checkpoint is there as a whole, or it can be gone on with.

        Raises Damaged if the disk does not give back what was written (`resume` finds out where),
        Hostile if no bytes can be what the manifest says (it is removed then), OSError.
        """
        new = join(self.path, NEW)
        for entry in self.manifest.files:
            if entry.size_bytes == 0 and not exists(self.files, join(new, entry.name)):
                self._open(entry, 0).close()
            found = verify_file(self.files, join(new, entry.name), entry)
            if found and _good_bytes(self.files, join(new, entry.name), entry) == entry.size_bytes:
                self.drop()
                raise Hostile("a manifest whose digest of a file is not that of its blocks")
            if found:
                raise Damaged(f"{found[0].path}: {found[0].what}")
        yield "verified"
        manifest = yield from publish(self.files, self._root, self.path, self.manifest)
        with suppress(OSError):
            remove_tree(self.files, self.path)  # its own copy of the manifest
        yield "tidied"
        return manifest

    def _open(self, entry: FileEntry, offset: int) -> Output:
        inside = join(self.path, NEW, entry.name)
        if offset:
            return self.files.extend(inside, offset)
        if exists(self.files, inside):
            return self.files.extend(inside, 0)
        output = self.files.create(inside)
        self.files.sync(join(self.path, NEW))
        return output

    def _end_block(self, entry: FileEntry, number: int) -> None:
        found = self._block.digest()
        self._block = blake2b(digest_size=BLOCK_DIGEST_BYTES)
        if found != entry.block(number):
            raise Hostile(f"block {number} of {entry.name} is not what the manifest says")

    def _sync(self) -> None:
        if self._output is not None and self._unsynced:
            self._output.sync()
            self._unsynced = 0


def _good_bytes(files: Files, path: str, entry: FileEntry) -> int:
    """How much of a file, from its beginning, is what the manifest says: whole blocks."""
    block_bytes = block_bytes_of(entry.size_bytes)
    opened = files.read(path)
    good = 0
    try:
        while good < entry.size_bytes:
            end = min(good + block_bytes, entry.size_bytes)
            block, at = blake2b(digest_size=BLOCK_DIGEST_BYTES), good
            while at < end and (data := opened.read(min(READ_BYTES, end - at))):
                block.update(data)
                at += len(data)
            if at < end or block.digest() != entry.block(good // block_bytes):
                break
            good = end
    finally:
        opened.close()
    return good
