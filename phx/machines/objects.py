"""Snapshots made of msgpack objects: one after the other, then the CRC-32 of all before it.

What a machine writes in an order that depends on its state alone is equal where the state is. The
checksum is for those who use a machine without a node: phx checks its checkpoints itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from zlib import crc32

import msgpack

from phx.errors import Damaged
from phx.machine import Reader, Writer

PIECE_BYTES = 256 << 10


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
