"""Holes of the settled log: entries that are not what was written, and what takes their place.

Guarantees. An entry that fails its checksum is never served, and never joined with others: the
chunk it lies in is left alone until all that is kept of it can be written anew, in one transaction,
with bodies from elsewhere in the place of the damaged ones. A hole is noted in the store, so that
nobody asks the disk again; a note that is lost is made again by the next who reads there.

The table of holes, one value beside the table of groups (every word little-endian):

    0       4     crc         CRC-32C of everything after it
    4       4     version     1
    8       8     holes
    16      24 *  group u32, zero u32, first u64, last u64, ascending
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from phx._core.chunk import ChunkDamage, damaged_entries, verify_chunk
from phx._core.chunk_index import ChunkIndex
from phx._core.codec import crc32c
from phx._core.settler import Merger

__all__ = ["Ailing", "Hole", "Holes", "look_into", "own_tail", "patched"]

HEAD = struct.Struct("<IIQ")
ROW = struct.Struct("<IIQQ")
VERSION = 1
FOOTER_BYTES = 64
ROWS_AT = 12
VALUE_BYTES_AT = 40
ROW_BYTES = 32


class Hole(NamedTuple):
    """Instances of a group that the store cannot serve, though it should."""

    group: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Ailing:
    """A chunk that is damaged.

    Attributes:
        chunk: its id.
        holes: what of it is kept, and damaged; []: only what is there twice, or means nothing.
        why: in words.
        value: as it lies there.
    """

    chunk: int
    holes: list[Hole]
    why: str
    value: bytes


class Holes:
    """The holes of a store. It never changes: whoever has it may ask without a lock."""

    def __init__(self, holes: Iterable[Hole] = ()) -> None:
        self._holes = sorted(holes)

    @classmethod
    def unpack(cls, packed: bytes | None) -> Holes:
        """From the store. A table that is damaged says nothing: see above."""
        if packed is None or len(packed) < HEAD.size:
            return cls()
        crc, version, count = HEAD.unpack_from(packed)
        if crc != crc32c(packed[4:]) or version != VERSION:
            return cls()
        if len(packed) != HEAD.size + count * ROW.size:
            return cls()
        return cls(
            Hole(group, first, last)
            for group, _, first, last in ROW.iter_unpack(packed[HEAD.size :])
        )

    def packed(self) -> bytes:
        rows = b"".join(ROW.pack(group, 0, first, last) for group, first, last in self._holes)
        body = HEAD.pack(0, VERSION, len(self._holes))[4:] + rows
        return crc32c(body).to_bytes(4, "little") + body

    def all(self) -> list[Hole]:
        """By group and instance."""
        return list(self._holes)

    def __bool__(self) -> bool:
        return bool(self._holes)

    def next(self, group: int, instance: int) -> Hole | None:
        """The first hole of a group that ends at `instance` or later."""
        at = bisect_left(self._holes, Hole(group, instance, 0))
        if at and self._holes[at - 1].group == group and self._holes[at - 1].last >= instance:
            return self._holes[at - 1]
        if at < len(self._holes) and self._holes[at].group == group:
            return self._holes[at]
        return None

    def with_those(self, holes: Iterable[Hole]) -> Holes:
        return Holes({*self._holes, *holes})

    def without(self, holes: Collection[Hole]) -> Holes:
        return Holes(one for one in self._holes if one not in holes)

    def above(self, floors: Mapping[int, int]) -> Holes:
        """Without what lies below these floors of groups."""
        return Holes(
            Hole(group, max(first, floors.get(group, 1)), last)
            for group, first, last in self._holes
            if last >= floors.get(group, 1)
        )


def own_tail(value: bytes | memoryview) -> bytes:
    """The packed index at the end of a chunk, as long as it says that it is; not checked."""
    rows = int.from_bytes(value[-FOOTER_BYTES:][ROWS_AT : ROWS_AT + 4], "little")
    return bytes(value[max(0, len(value) - FOOTER_BYTES - ROW_BYTES * rows) :])


def sound_tail(
    store_id: bytes, chunk: int, value: bytes | memoryview, tail: bytes | memoryview | None
) -> bytes:
    """Of the two copies of a chunk's packed index the one that is what was written.

    Raises ChunkDamage: neither is.
    """
    for one in (tail, own_tail(value)):
        if one is not None:
            try:
                damaged_entries(chunk, b"", one, store_id)
            except ChunkDamage:
                continue
            return bytes(one)
    damaged_entries(chunk, b"", b"", store_id)  # raises
    raise AssertionError


def look_into(
    store_id: bytes,
    bounds: Callable[[int], tuple[int, int]],
    chunk: int,
    value: bytes | memoryview,
    tail: bytes | memoryview | None,
) -> Ailing | None:
    """What is damaged of a chunk; None: nothing. Raises ChunkDamage: not even where what is.

    Args:
        bounds: of a group: lowest instance kept, last one settled.
    """
    why = f"chunk {chunk} and its index do not match"
    try:
        verify_chunk(chunk, value, store_id)
        if tail is not None and own_tail(value) == tail:
            return None
    except ChunkDamage as damage:
        why = str(damage)
    good = sound_tail(store_id, chunk, value, tail)
    holes = []
    for group, first, last in damaged_entries(chunk, value, good, store_id):
        kept_from, through = bounds(group)
        if last >= kept_from and first <= through:
            holes.append(Hole(group, max(first, kept_from), last))
    return Ailing(chunk, holes, why, bytes(value))


def patched(
    index: ChunkIndex,
    chunk: int,
    value: bytes | memoryview,
    tail: bytes | memoryview | None,
    bodies: Mapping[tuple[int, int], bytes],
) -> tuple[Merger, tuple[int, memoryview, memoryview]]:
    """A chunk with all that is kept of this one, these bodies in the place of what it has there.

    Raises ChunkDamage: something else of it is damaged, too.
    """
    merger = Merger(index)
    good = sound_tail(index.store_id, chunk, value, tail)
    value_bytes = int.from_bytes(
        good[-FOOTER_BYTES:][VALUE_BYTES_AT : VALUE_BYTES_AT + 8], "little"
    )
    if value_bytes != len(value):  # nothing of it can be found: a stand-in has nothing good either
        value = bytes(value_bytes)
    merger.add(chunk, value, good)
    merger.patch(bodies)
    return merger, merger.merged()
