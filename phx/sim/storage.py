"""A host's settled store in memory: the chunks and the index are the production code, LMDB is not.

A transaction is atomic and synced, as LMDB's is: it is there after any crash, or nothing of it is.
"""

from __future__ import annotations

from phx._core.chunk import ChunkDamage, Gather
from phx._core.chunk_index import ChunkIndex
from phx._core.plan import SettlePlan
from phx._core.settler import Merger, SettleError, Settler

PASS_BYTES = 1 << 20
MERGE_CHUNKS_MAX = 8


class StoreDamaged(Exception):
    """An entry is not what was written."""


class StoreFailed(Exception):
    """The plan could not be settled now; nothing of it was."""


class SettledStore:
    """The settled log of one simulated node."""

    def __init__(self, store_id: bytes) -> None:
        self.store_id = store_id
        self.chunks: dict[int, tuple[bytes, bytes]] = {}
        self.groups = ChunkIndex(store_id).groups_packed()
        self.failing = 0
        """So many of the next transactions fail."""
        self.reopen()

    def reopen(self) -> None:
        """Rebuild the index from what the transactions left, as at a start."""
        self.index = ChunkIndex(self.store_id)
        for chunk in sorted(self.chunks):
            self.index.load(chunk, self.chunks[chunk][1])
        self.index.seal(self.groups)

    def power_loss(self) -> None:
        """What was committed is there, whatever happens."""

    def settled(self) -> dict[int, int]:
        self.reopen()
        return self.index.settled()

    def settle(self, plan: SettlePlan) -> int:
        """Copy the entries of a plan out of the journal, in one transaction; how many."""
        if self.failing:
            self.failing -= 1
            raise StoreFailed
        made = []
        try:
            settler = Settler(self.index, plan, PASS_BYTES)
            while (chunk := settler.next_chunk()) is not None:
                number, value, tail = chunk
                made.append((number, bytes(value), bytes(tail)))
                settler.stage()
        except SettleError as error:
            self.index.rollback()
            raise StoreFailed(str(error)) from error
        self.groups = self.index.groups_packed()
        for number, kept, packed in made:
            self.chunks[number] = kept, packed
        self.index.commit()
        if len(self.chunks) > MERGE_CHUNKS_MAX:
            self.merge()
        return settler.entries

    def merge(self) -> None:
        """Join small chunks into a larger one."""
        ids = self.index.mergeable(MERGE_CHUNKS_MAX)
        if not ids:
            return
        merger = Merger(self.index)
        try:
            for chunk in ids:
                merger.add(chunk, self.chunks[chunk][0])
            number, value, tail = merger.merged()
        except ChunkDamage:
            return
        kept, packed = bytes(value), bytes(tail)
        merger.stage()
        self.index.commit()
        for chunk in ids:
            del self.chunks[chunk]
        self.chunks[number] = kept, packed

    def read(self, group: int, first: int, bytes_max: int, last: int) -> bytes:
        """As `phx.store.Store.read`. Raises StoreDamaged."""
        gather = Gather(self.store_id, group, first, last, bytes_max)
        more = first <= last
        try:
            while more:
                place = self.index.find(group, gather.wanted)
                if place is None:
                    break
                more = gather.add(place[0], self.chunks[place[0]][0], place[1])
            return gather.take()
        except ChunkDamage as damage:
            raise StoreDamaged(str(damage)) from damage

    def flip(self, which: int, bit: int) -> bool:
        """Flip one bit of an entry in a chunk; False: there is no chunk."""
        if not self.chunks:
            return False
        number = sorted(self.chunks)[which % len(self.chunks)]
        value, tail = self.chunks[number]
        used = next(chunk[2] for chunk in self.index.chunk_list() if chunk[0] == number)
        spoilt = bytearray(value)
        spoilt[64 + bit // 8 % max(used - 64, 1)] ^= 1 << (bit % 8)
        self.chunks[number] = bytes(spoilt), tail
        return True
