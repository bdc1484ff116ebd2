"""A host's settled store in memory: the chunks and the index are the production code, LMDB is not.

A transaction is atomic and synced, as LMDB's is: it is there after any crash, or nothing of it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from phx._core.chunk import ChunkDamage, Gather
from phx._core.chunk_index import ChunkIndex
from phx._core.plan import SettlePlan
from phx._core.settler import SettleError, Settler
from phx.membership import Membership
from phx.store_facts import Facts
from phx.store_hosted import HostedRow
from phx.store_members import MembersRow, later, passing
from phx.store_mend import Ailing, Hole, Holes, look_into, patched
from phx.store_trim import Floor, joined, next_step, stage_floors

PASS_BYTES = 1 << 20
MERGE_CHUNKS_MAX = 8
ALL_CHUNKS = 1 << 30

Kept = tuple[dict[int, tuple[bytes, bytes]], bytes, Holes, dict[int, MembersRow]]


class StoreDamaged(Exception):
    """An entry is not what was written."""


class StoreFailed(Exception):
    """The transaction could not be made now; nothing of it was."""


class SettledStore:
    """The settled log of one simulated node."""

    def __init__(self, store_id: bytes) -> None:
        self.store_id = store_id
        self.chunks: dict[int, tuple[bytes, bytes]] = {}
        self.groups = ChunkIndex(store_id).groups_packed()
        self.facts: Facts | None = None
        """Of the node's lives; None: it was made by an older phx."""
        self.failing = 0
        """So many of the next transactions fail."""
        self.refused: dict[tuple[int, int, int, int], str] = {}
        """Reads that met damage, and what was said: until the chunks change, so will they again."""
        self.holes = Holes()
        self.members: dict[int, MembersRow] = {}
        """Of each group whose members ever changed: rows."""
        self.hosted: dict[int, HostedRow] = {}
        """Created groups."""
        self.flipped: set[int] = set()
        """Chunks of which a bit flipped, and that were not written anew since."""
        self.on_damage: Callable[[int], None] = lambda chunk: None
        """Told of a chunk that was found damaged."""
        self.reopen()

    def reopen(self) -> None:
        """Rebuild the index from what the transactions left, as at a start."""
        self.refused.clear()
        self.noted: dict[int, MembersRow] = {}
        self.index = ChunkIndex(self.store_id)
        for chunk in sorted(self.chunks):
            self.index.load(chunk, self.chunks[chunk][1])
        self.index.seal(self.groups)
        for hole in self.holes.all():
            if (place := self.index.find(hole.group, hole.first)) is not None:
                self.index.mark(place[0])

    def copy(self) -> Kept:
        """All that is in it, for `put_back`."""
        return dict(self.chunks), self.groups, self.holes, dict(self.members)

    def put_back(self, copy: Kept | None) -> None:
        """It has what it had then; None: it is a new one, of the same id."""
        new: Kept = {}, ChunkIndex(self.store_id).groups_packed(), Holes(), {}
        chunks, self.groups, self.holes, members = copy or new
        self.chunks = dict(chunks)
        self.members = dict(members)
        self.reopen()

    def power_loss(self) -> None:
        """What was committed is there, whatever happens."""

    def settled(self) -> dict[int, int]:
        self.reopen()
        return self.index.settled()

    def settle(self, plan: SettlePlan) -> int:
        """Copy the entries of a plan out of the journal, in one transaction; how many."""
        self._begin()
        made = []
        barriers = []
        try:
            settler = Settler(self.index, plan, PASS_BYTES)
            while (chunk := settler.next_chunk()) is not None:
                number, value, tail = chunk
                made.append((number, bytes(value), bytes(tail)))
                barriers += settler.barriers()
                settler.stage()
            rows = passing(self.members, self.noted, barriers)
        except SettleError as error:
            self.index.rollback()
            raise StoreFailed(str(error)) from error
        self.groups = self.index.groups_packed()
        for number, kept, packed in made:
            self.chunks[number] = kept, packed
        self.index.commit()
        self.members.update(rows)
        if len(self.chunks) > MERGE_CHUNKS_MAX:
            self.merge()
        return settler.entries

    def _begin(self) -> None:
        self.refused.clear()
        if self.failing:
            self.failing -= 1
            raise StoreFailed

    def remember(self, facts: Facts) -> None:
        """In one transaction. Raises StoreFailed."""
        self._begin()
        self.facts = facts

    def note_members(self, group: int, told: Membership, removed: bool = False) -> None:
        """As `phx.store.Store.note_members`. (With a floor more is written than that asks for.)"""
        kept = self.members.get(group)
        row = later(kept, MembersRow(told, removed))
        if row != kept:
            self.noted[group] = later(self.noted.get(group), row)

    def write_members(self) -> None:
        """As `phx.store.Store.write_members`, in one transaction. Raises StoreFailed."""
        self._begin()
        settled = self.index.settled()
        for group, row in list(self.noted.items()):
            if row.removed or row.membership.instance <= settled.get(group, 0):
                self.members[group] = self.noted.pop(group)

    def host(self, group: int, row: HostedRow) -> None:
        """As `phx.store_hosted.write`, in one transaction. Raises StoreFailed."""
        self._begin()
        self.hosted[group] = row

    def as_store(self) -> HostedStore:
        """For `phx.store_hosted`."""
        return HostedStore(self)

    def merge(self) -> None:
        """Join small chunks into a larger one."""
        if ids := self.index.mergeable(MERGE_CHUNKS_MAX):
            self._join(ids)

    def _join(self, ids: list[int]) -> bool:
        """False: an entry on the way is damaged, and nothing was changed."""
        try:
            merger, (number, value, tail) = joined(
                self.index, ids, lambda chunk: self.chunks[chunk][0]
            )
        except ChunkDamage as damage:
            self.on_damage(damage.chunk)
            return False
        kept, packed = bytes(value), bytes(tail)
        merger.stage()
        self.index.commit()
        for chunk in ids:
            del self.chunks[chunk]
        self.chunks[number] = kept, packed
        return True

    def floors(self) -> dict[int, Floor]:
        """As `phx.store.Store.floors`."""
        return {group: Floor(*bounds) for group, bounds in self.index.floors().items()}

    def floor(self, group: int) -> Floor | None:
        """That of one group, as in `floors`; None: nothing of it is settled."""
        kept_from, through = self.index.bounds(group)
        return Floor(kept_from, through) if through else None

    def raise_floors(self, floors: Mapping[int, Floor]) -> int:
        """As `phx.store.Store.raise_floors`, in one transaction; how many groups it changed.

        Raises StoreFailed; ValueError as that does. Nothing was changed.
        """
        self._begin()
        try:
            groups = stage_floors(self.index, floors)
        except ValueError:
            self.index.rollback()
            raise
        self.groups = self.index.groups_packed()
        self.index.commit()
        self.members.update({one: self.noted[one] for one in floors if one in self.noted})
        self.holes = self.holes.above({one: floor.kept_from for one, floor in floors.items()})
        return groups

    def trim(self) -> bool:
        """As `phx.store.Store.trim`, one transaction. Raises StoreFailed."""
        step = next_step(self.index)
        if step is None:
            return False
        self._begin()
        if step.thin:
            return self._join(step.thin)
        for chunk in step.dead:
            del self.chunks[chunk]
        self.index.stage_drops(step.dead)
        self.index.commit()
        return True

    def read(self, group: int, first: int, bytes_max: int, last: int) -> bytes:
        """As `phx.store.Store.read`. Raises StoreDamaged."""
        if hole := self.holes.next(group, first):
            if hole.first <= first:
                raise StoreDamaged(f"group {group} instance {first} is damaged")
            last = min(last, hole.first - 1)
        asked = group, first, bytes_max, last
        if asked in self.refused:  # machines ask again and again
            raise StoreDamaged(self.refused[asked])
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
            self.refused[asked] = str(damage)
            self.on_damage(damage.chunk)
            raise StoreDamaged(str(damage)) from damage

    def flip(self, which: int, bit: int) -> bool:
        """Flip one bit of an entry in a chunk; False: there is no chunk."""
        if not self.chunks:
            return False
        self.refused.clear()
        number = sorted(self.chunks)[which % len(self.chunks)]
        value, tail = self.chunks[number]
        used = next(chunk[2] for chunk in self.index.chunk_list() if chunk[0] == number)
        spoilt = bytearray(value)
        spoilt[64 + bit // 8 % max(used - 64, 1)] ^= 1 << (bit % 8)
        self.chunks[number] = bytes(spoilt), tail
        self.flipped.add(number)
        return True

    # --- mending, as `phx.store.Store` does it

    def damaged(self) -> list[int]:
        """Chunks that are known to be damaged."""
        return self.index.damaged()

    def ailing(self) -> bool:
        """Whether there is a chunk of which a bit flipped, or a hole."""
        return bool(self.flipped & self.chunks.keys() or self.holes)

    def is_hole(self, group: int, instance: int) -> bool:
        """As `phx.store.Store.is_hole`."""
        hole = self.holes.next(group, instance)
        return hole is not None and hole.first <= instance

    def keeps(self, hole: Hole) -> bool:
        """Whether it has what another one misses, as far as it knows."""
        kept_from, through = self.index.bounds(hole.group)
        return (
            kept_from <= hole.first and hole.last <= through
            and not self.is_hole(hole.group, hole.first)
        )  # fmt: skip

    def check(self, chunk: int) -> Ailing | None:
        """What is damaged of a chunk; None: nothing, or there is none any more."""
        if chunk not in self.chunks:
            return None
        return look_into(self.store_id, self.index.bounds, chunk, *self.chunks[chunk])

    def note(self, ailing: Ailing) -> None:
        """Its holes are not served, and it is left alone, until it is mended. StoreFailed."""
        self._begin()
        self.holes = self.holes.with_those(ailing.holes)
        self.index.mark(ailing.chunk)

    def holes_of(self, chunk: int) -> list[Hole]:
        """What is damaged of it, and waits for bodies from elsewhere."""
        return [hole for hole in self.holes.all() if self._lies_in(hole, chunk)]

    def _lies_in(self, hole: Hole, chunk: int) -> bool:
        place = self.index.find(hole.group, hole.first)
        return place is not None and place[0] == chunk

    def mend(self, chunk: int, bodies: Mapping[tuple[int, int], bytes]) -> bool:
        """Write it anew, in one transaction; False: nothing of it is kept any more.

        Raises StoreFailed; StoreDamaged: it is damaged elsewhere, too.
        """
        self._begin()
        if chunk not in self.index.damaged() or chunk in self.index.dead_chunks(ALL_CHUNKS):
            return False
        gone = self.holes_of(chunk)
        try:
            merger, (number, value, tail) = patched(self.index, chunk, *self.chunks[chunk], bodies)
        except ChunkDamage as damage:
            raise StoreDamaged(str(damage)) from damage
        kept, packed = bytes(value), bytes(tail)
        merger.stage()
        self.index.commit()
        del self.chunks[chunk]
        self.flipped.discard(chunk)
        self.chunks[number] = kept, packed
        self.holes = self.holes.without(gone)
        return True


class HostedStore:
    """What `phx.store_hosted` needs of a Store."""

    def __init__(self, store: SettledStore) -> None:
        self._store = store
        self.bounds = store.index.bounds

    def members(self) -> Mapping[int, MembersRow]:
        return self._store.members

    def raise_floors(
        self, floors: Mapping[int, Floor], told: Mapping[int, Membership] | None = None
    ) -> None:
        for group, one in (told or {}).items():
            self._store.note_members(group, one)
        self._store.raise_floors(floors)

    def forget_members(self, group: int) -> None:
        self._store.members.pop(group, None)
        self._store.noted.pop(group, None)
