"""Snapshots made of msgpack objects: one after the other, then the CRC-32 of all before it. And the
digest of what is made of many entries.

What a machine writes in an order that depends on its state alone is equal where the state is. The
checksum is for those who use a machine without a node: phx checks its checkpoints itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import Any
from zlib import crc32

import msgpack

from phx.errors import Damaged
from phx.machine import Reader, Writer

PIECE_BYTES = 256 << 10
ENTRIES_A_REST = 128  # 0.2 ms of hashing
_WORD = (1 << 64) - 1


def write_objects(writer: Writer, packed: Iterable[bytes]) -> None:
    """Write objects, each packed already."""
    crc, piece = 0, bytearray()
    for one in packed:
        piece += one
        if len(piece) >= PIECE_BYTES:
            crc = crc32(piece, crc)
            writer.write(piece)
            piece = bytearray()
    crc = crc32(piece, crc)
    writer.write(piece + crc.to_bytes(4, "little"))


def read_objects(reader: Reader, what: str) -> Iterator[Any]:
    """The objects of a snapshot; Damaged if they are not all there and whole.

    Args:
        what: "a snapshot of ...", for the text of that error.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=0)  # 0: no limit but 2 GiB
    crc, kept = 0, b""
    try:
        while piece := reader.read(PIECE_BYTES):
            kept += piece
            body, kept = kept[:-4], kept[-4:]
            crc = crc32(body, crc)
            unpacker.feed(body)
            yield from unpacker
    except ValueError as error:  # every error of msgpack is one
        raise Damaged(f"{what} is no msgpack: {error}") from None
    if kept != crc.to_bytes(4, "little"):
        raise Damaged(f"{what} is damaged, or not whole")


def digest_of(version: int, entries: Iterable[bytes], rest: Callable[[], None]) -> bytes:
    """A version and the sum of 64-bit hashes of entries: whatever their order is.

    Args:
        rest: as StateMachine.digest_slowly has it.
    """
    total, left = 0, iter(entries)
    while some := [blake2b(one, digest_size=8).digest() for one in islice(left, ENTRIES_A_REST)]:
        total += sum([int.from_bytes(one, "little") for one in some])
        rest()
    return b"%016x%016x" % (version & _WORD, total & _WORD)
