"""Distinct random values, made again from their numbers when they are looked for."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

__all__ = ["BLOCK_BYTES", "SUM_MASK", "Values", "per_pass"]

SUM_MASK = (1 << 64) - 1
BLOCK_BYTES = 1 << 24
STREAM_CHUNK = 1024


def per_pass(size: int) -> int:
    """The most values of `size` bytes that one call may take."""
    return (BLOCK_BYTES - size) // (size + 1)


class Values:
    """Distinct random values of `size` bytes, by serial number: slices of random blocks.

    A pass goes through a block in steps of size + 1; the next pass begins one byte further; when
    all shifts are used up there is a new block. Serial numbers of a call never straddle a pass.
    """

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._stride = size + 1
        self._per_pass = per_pass(size)
        self._block_number = -1
        self._block = b""
        self._layouts: dict[int, struct.Struct] = {}
        self.next = 0

    def take(self, count: int) -> tuple[int, list[bytes]]:
        """The next `count` values, at most a pass of them, and the serial number of the first."""
        left = self._per_pass - self.next % self._per_pass
        if count > left:
            self.next += left
        serial = self.next
        self.next += count
        return serial, self.values(serial, count)

    def stream(self) -> Iterator[tuple[int, bytes]]:
        """One value after another, each with its serial number."""
        while True:
            serial, values = self.take(min(STREAM_CHUNK, self._per_pass))
            yield from enumerate(values, serial)

    def values(self, serial: int, count: int) -> list[bytes]:
        """Values serial … serial + count - 1, which must be of one pass."""
        number, step = divmod(serial, self._per_pass)
        block_number, shift = divmod(number, self._stride)
        if block_number != self._block_number:
            self._block = random.Random(self._seed + block_number).randbytes(BLOCK_BYTES)
            self._block_number = block_number
        layout = self._layouts.get(count)
        if layout is None:  # a client's calls are of one or two lengths
            layout = self._layouts[count] = struct.Struct(f"{self._size}sx" * count)
        return list(layout.unpack_from(self._block, step * self._stride + shift))
