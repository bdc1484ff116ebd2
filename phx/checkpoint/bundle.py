"""A checkpoint as one file, to carry elsewhere. There are no paths in it, so none can escape.

Bytes, little-endian:

    offset  size  field
    0       8     magic      PHXBNDL1
    8       4     version    1
    12      4     manifest   its bytes
    16      ...   the manifest
    ...           then, for each file of the manifest, in its order:
    0       8     length     as in the manifest
    8       ...   the file

Whatever differs from what was exported is found: the manifest has a digest of every byte that
follows it, and one of itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from phx.checkpoint.catalog import READ_BYTES, Hasher
from phx.checkpoint.files import Files, join, need_room
from phx.checkpoint.manifest import (
    HEAD,
    MANIFEST_BYTES_MAX,
    FileEntry,
    Manifest,
    block_bytes_of,
    decode,
    encode,
    read_manifest,
)
from phx.checkpoint.taking import NEW, SYNC_BYTES, Steps, discard, publish, stage
from phx.errors import Damaged, Foreign, StoreError

__all__ = ["Source", "export", "import_", "read_head"]

MAGIC = b"PHXBNDL1"
VERSION = 1
BUNDLE_HEAD = struct.Struct("<8sII")
LENGTH = struct.Struct("<Q")


class Source(Protocol):
    """Where a bundle comes from: ``read`` gives at most so many bytes, b"" at the end."""

    def read(self, bytes_max: int, /) -> bytes: ...


def export(files: Files, path: str, write: Callable[[bytes], object]) -> Manifest:
    """Write the checkpoint in the folder `path` as a bundle, verifying every byte on the way.

    Raises Damaged if it is not what was written (the bundle is of no use then), Foreign for another
    format version, StoreError if the state is not in it (a light one), OSError.
    """
    manifest = read_manifest(files, path)
    if manifest.light:
        raise StoreError(f"{path}: the state is in the machines' own files, not in the checkpoint")
    packed = encode(manifest)
    write(BUNDLE_HEAD.pack(MAGIC, VERSION, len(packed)) + packed)
    for entry in manifest.files:
        inside = join(path, entry.name)
        hasher = Hasher(block_bytes_of(entry.size_bytes))
        opened = files.read(inside)
        try:
            write(LENGTH.pack(entry.size_bytes))
            while data := opened.read(READ_BYTES):
                hasher.update(data)
                if hasher.size_bytes > entry.size_bytes:
                    break
                write(data)
        finally:
            opened.close()
        if not hasher.fits(entry):
            raise Damaged(f"{inside} is damaged: its digest is not the manifest's")
    return manifest


def read_head(source: Source) -> Manifest:
    """The manifest of a bundle; the files follow. Raises Damaged, Foreign, OSError."""
    head = _exactly(source, BUNDLE_HEAD.size)
    magic, version, manifest_bytes = BUNDLE_HEAD.unpack(head)
    if magic != MAGIC:
        raise Damaged("this is no exported checkpoint")
    if version != VERSION:
        raise Foreign(f"it has format version {version}; this is phx for version {VERSION}")
    if not HEAD.size <= manifest_bytes <= MANIFEST_BYTES_MAX:
        raise Damaged("its manifest has an impossible length")
    return decode(_exactly(source, manifest_bytes))


def import_(
    files: Files,
    root: str,
    source: Source,
    *,
    accept: Callable[[Manifest], object],
    reserve_bytes: int = 0,
) -> Steps:
    """Make a checkpoint of a bundle, which may come from anybody. Steps as those of `take`.

    Guarantee: it is there as a whole, every byte verified, or not at all. If there is one of equal
    content already, that one stays, unless it is damaged.

    Args:
        accept: called with the manifest before anything is written; it raises what it thinks of
            another cluster or group.
        reserve_bytes: what must stay free.

    Raises Damaged, Foreign, OSError (ENOSPC before anything is written if there is no room).
    """
    manifest = read_head(source)
    accept(manifest)
    need_room(files, manifest.size_bytes, reserve_bytes)
    staging = stage(files, root, "import", manifest.group)
    try:
        yield "staged"
        for entry in manifest.files:
            _receive(files, join(staging, NEW), entry, source)
            yield "file"
        if source.read(1):
            raise Damaged("there is more in it than its manifest says")
        return (yield from publish(files, root, staging, manifest))
    except BaseException:
        discard(files, staging)
        raise


def _receive(files: Files, folder: str, entry: FileEntry, source: Source) -> None:
    (length,) = LENGTH.unpack(_exactly(source, LENGTH.size))
    if length != entry.size_bytes:
        raise Damaged(f"{entry.name} has {length} bytes, not {entry.size_bytes}")
    hasher = Hasher(block_bytes_of(entry.size_bytes))
    output = files.create(join(folder, entry.name))
    unsynced = 0
    try:
        while hasher.size_bytes < length:
            data = source.read(min(READ_BYTES, length - hasher.size_bytes))
            if not data:
                raise Damaged(f"it ends in the middle of {entry.name}")
            hasher.update(data)
            output.write(data)
            unsynced += len(data)
            if unsynced >= SYNC_BYTES:
                output.sync()
                unsynced = 0
        output.sync()
    finally:
        output.close()
    if not hasher.fits(entry):
        raise Damaged(f"{entry.name} is damaged: its digest is not the manifest's")


def _exactly(source: Source, size_bytes: int) -> bytes:
    found = bytearray()
    while len(found) < size_bytes:
        data = source.read(size_bytes - len(found))
        if not data:
            raise Damaged("it ends too early")
        found += data
    return bytes(found)
