"""Files that are whole and durable, or found not to be: what the durable machines share.

A sealed stream is what their snapshots write, little-endian:

    offset      size  field
    ----------  ----  ------------------------------------------------------------------
    0           8     magic: what the body is
    8           8     applied: the instance that the state belongs to
    16          n     body
    16 + n      8     n
    24 + n      32    BLAKE2b of everything before it
"""

from __future__ import annotations

import os
import struct
from collections.abc import Container, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

from phx.errors import Damaged
from phx.machine import Reader, Writer

__all__ = ["PIECE_BYTES", "SealedReader", "SealedWriter", "fill", "make_folder", "sync_folder"]

PIECE_BYTES = 1 << 20
SYNC_BYTES = 8 << 20  # one large sync would stand in front of the journal's

_HEAD = struct.Struct("<8sQ")
_COUNT = struct.Struct("<Q")
_HASH_BYTES = 32
_TAIL_BYTES = _COUNT.size + _HASH_BYTES


class SealedWriter:
    """Writes one sealed stream; it is whole only after ``finish``."""

    def __init__(self, writer: Writer, magic: bytes, applied: int) -> None:
        self._writer = writer
        self._hash = blake2b(digest_size=_HASH_BYTES)
        self._bytes = 0
        self._put(_HEAD.pack(magic, applied))

    def write(self, piece: bytes | bytearray) -> None:
        self._put(piece)
        self._bytes += len(piece)

    def finish(self) -> None:
        self._put(_COUNT.pack(self._bytes))
        self._writer.write(self._hash.digest())

    def _put(self, piece: bytes | bytearray) -> None:
        self._hash.update(piece)
        self._writer.write(piece)


class SealedReader:
    """Reads one sealed stream: Damaged at once for an unknown magic, or at the end of the body.

    So what was made of the body counts for nothing before the iteration has ended by itself.

    Attributes:
        magic, applied: from the head.
    """

    def __init__(self, reader: Reader, magics: Container[bytes]) -> None:
        self._reader = reader
        self._head = reader.read(_HEAD.size)
        if len(self._head) != _HEAD.size:
            raise Damaged("a snapshot ends within its head")
        self.magic, self.applied = _HEAD.unpack(self._head)
        if self.magic not in magics:
            raise Damaged(f"a snapshot of another kind: {self.magic!r}")

    def __iter__(self) -> Iterator[bytes]:
        seen = blake2b(self._head, digest_size=_HASH_BYTES)
        body_bytes, kept = 0, b""
        while piece := self._reader.read(PIECE_BYTES):
            kept = kept + piece if kept else piece
            if len(kept) > _TAIL_BYTES:
                body, kept = kept[:-_TAIL_BYTES], kept[-_TAIL_BYTES:]
                seen.update(body)
                body_bytes += len(body)
                yield body
        seen.update(kept[: _COUNT.size])
        if kept != _COUNT.pack(body_bytes) + seen.digest():
            raise Damaged("a snapshot is damaged, or not whole")


def fill(path: Path, pieces: Iterable[bytes]) -> None:
    """Make a file of these bytes; durable when it returns, but for its name in the folder."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with open(descriptor, "wb", buffering=0) as file:
        behind = 0
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
            behind += len(piece)
            if behind >= SYNC_BYTES:
                os.fsync(file)
                behind = 0
        os.fsync(file)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, durably; one that is there is left as it is."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """The names in a folder are durable when it returns."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
