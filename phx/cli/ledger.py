"""What a writer knows about its values, in a file that survives the writer.

Guarantee: whatever outcome a process recorded before it died, by SIGKILL too, is read back; a value
that was submitted and has no outcome was in flight. (The file is memory-mapped and shared, so the
kernel keeps what a killed process wrote. It is not meant to survive the machine.)

A *slot* is one writer: it has at most one value in flight and numbers its values 1, 2, 3, …

    offset  size  field
    0       8     magic
    8       4     node
    12      4     slots
    16      8     salt       random, new for every ledger; makes keys and values distinct
    24      8     writers    slots per group
    32      8*n   submitted  per slot: number of the newest value that was submitted
    …       16*m  records    word: slot << 40 | outcome << 36 | number; then the time in us

A record is valid when its time is not zero; the time is written last.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = 0x3152454744454C50
HEADER = struct.Struct("<QIIQQ")
RECORD = struct.Struct("<QQ")
WORD = struct.Struct("<Q")

ACKNOWLEDGED = 1
UNKNOWN = 2
REJECTED = 3

NUMBER_BITS = 36
OUTCOME_BITS = 4
NUMBER_MASK = (1 << NUMBER_BITS) - 1
OUTCOME_MASK = (1 << OUTCOME_BITS) - 1


class LedgerFull(Exception):
    """The ledger has no room for another outcome: the run is longer than it was made for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of value `number` of `slot`, at `time_us` (CLOCK_MONOTONIC)."""

    slot: int
    number: int
    outcome: int
    time_us: int


class Ledger:
    """The writing side; one process, one thread."""

    def __init__(self, path: Path, node: int, slots: int, writers: int, bytes_max: int):
        salt = int.from_bytes(os.urandom(8), "little")
        with open(path, "w+b") as file:
            file.truncate(bytes_max)  # sparse: only what is written takes space
            self._map = mmap.mmap(file.fileno(), bytes_max)
        self._submitted_at = HEADER.size
        self._at = _records_at(slots)
        self._end = bytes_max - RECORD.size
        self.salt = salt
        self.slots = slots
        HEADER.pack_into(self._map, 0, MAGIC, node, slots, salt, writers)

    def submitted(self, slot: int, number: int) -> None:
        """Record that `number` is about to be proposed; call before the proposal."""
        WORD.pack_into(self._map, self._submitted_at + 8 * slot, number)

    def outcome(self, slot: int, number: int, outcome: int, time_us: int) -> None:
        """Record what became of `number`. Raises LedgerFull."""
        if self._at >= self._end:
            raise LedgerFull
        word = slot << (NUMBER_BITS + OUTCOME_BITS) | outcome << NUMBER_BITS | number
        RECORD.pack_into(self._map, self._at, word, time_us)
        self._at += RECORD.size

    def close(self) -> None:
        self._map.close()


class LedgerReader:
    """The reading side: of a finished, running or killed writer."""

    def __init__(self, path: Path):
        self._data = path.read_bytes() if path.stat().st_size < 1 << 16 else _mapped(path)
        magic, self.node, self.slots, self.salt, self.writers = HEADER.unpack_from(self._data, 0)
        if magic != MAGIC:
            raise ValueError(f"{path} is not a ledger")

    def group_index(self, slot: int) -> int:
        """Index (from 0) of the group that `slot` writes to."""
        return slot // int(self.writers)

    def outcomes(self) -> Iterator[Outcome]:
        """Every outcome, in the order in which it was recorded."""
        shift = NUMBER_BITS + OUTCOME_BITS
        at, end = _records_at(self.slots), len(self._data) - RECORD.size
        while at <= end:
            word, time_us = RECORD.unpack_from(self._data, at)
            if time_us == 0:
                return
            yield Outcome(
                word >> shift, word & NUMBER_MASK, word >> NUMBER_BITS & OUTCOME_MASK, time_us
            )
            at += RECORD.size

    def in_flight(self) -> list[tuple[int, int]]:
        """(slot, number) of every value that was submitted and has no outcome."""
        newest = [0] * self.slots
        for one in self.outcomes():
            newest[one.slot] = one.number
        open_values = []
        for slot in range(self.slots):
            (number,) = WORD.unpack_from(self._data, HEADER.size + 8 * slot)
            if number > newest[slot]:
                open_values.append((slot, number))
        return open_values


def key_of(salt: int, slot: int, number: int) -> str:
    """The key that value `number` of `slot` sets: distinct over all ledgers, slots and numbers."""
    return f"{salt:016x}/{slot}/{number}"


def value_of(salt: int, slot: int, number: int) -> bytes:
    """Its value: 16 bytes, distinct as well, and not a mere copy of the key."""
    mixed = (salt ^ slot * 0x9E3779B97F4A7C15 ^ number * 0xC2B2AE3D27D4EB4F) & 0xFFFFFFFFFFFFFFFF
    return RECORD.pack(mixed, number << 16 | slot & 0xFFFF)


def _records_at(slots: int) -> int:
    return (HEADER.size + 8 * slots + 15) // 16 * 16


def _mapped(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
