"""The settled store: what is chosen, moved out of the journal into LMDB, for good.

Guarantees. What `settle` has returned for is on the device, whole, and is served by `read` and
`entry` byte by byte or not at all: every entry is checked each time it is read, and one that fails
raises `Damaged`. A crash at any moment leaves the state before a transaction or the one after it.
For every group the settled instances are consecutive, from the lowest one kept up to
`settled()[group]`; settling an instance again changes nothing. The lowest one kept is the group's
*floor*: it only goes up (`raise_floors`), and nothing below it is served again. Whoever is settled
past a change of members has a row of the members (`note_members`, store_members.py).

One thread writes (`settle`, `merge`, `raise_floors`, `trim`, `note`, `mend`, `remember`,
`write_members`), which is asserted; any thread may read. All that costs time (building chunks,
checksums, copying, LMDB's own work) runs with the GIL released; a chunk costs two puts, because
every put takes the GIL again.

Tables in LMDB (0.9 file format, `lib_version` 0, every commit fully synced):

    table    key             value
    -------  --------------  --------------------------------------------------------------------
    meta     identity        IDENTITY below: format version, cluster, node, store id
    meta     groups          what is settled, by group: chunk_index.pxd
    meta     holes           what of it is damaged: store_mend.py; missing: nothing is
    meta     members:GROUP   who its members are, if they ever changed: store_members.py
    meta     NAME            what whoever uses the store wants to remember (`remember`)
    chunks   id, 8 bytes     a chunk: chunk.pxd
    indexes  id, 8 bytes     the tail of that chunk: its packed index

Ids are big-endian and grow, so that a new chunk is always appended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb

from phx._core.chunk import ChunkDamage, Gather
from phx._core.settler import SettleError, Settler
from phx.errors import Damaged, StoreError
from phx.membership import Membership
from phx.store_file import StoreFile, key_of
from phx.store_folder import (
    FORMAT_MEMBERS,
    FORMAT_VERSION,
    StoreIdentity,
    damage_named,
    obtain_identity,
    open_env,
    take_lock,
)
from phx.store_members import KeptMembers, MembersRow, keys_of, later, load, passing, put
from phx.store_mend import Ailing, Hole, Holes, look_into, own_tail, patched
from phx.store_stats import SettleStats, StoreStats
from phx.store_trim import Floor, TrimStats, joined, next_step, stage_floors, trim_stats

if TYPE_CHECKING:
    from phx._core.plan import SettlePlan

__all__ = [
    "FORMAT_VERSION",
    "Ailing",
    "Floor",
    "Hole",
    "MembersRow",
    "SettleStats",
    "Store",
    "StoreIdentity",
    "StoreStats",
    "TrimStats",
]

MIB = 1 << 20

MAP_BYTES = 256 * MIB
PASS_BYTES = 64 * MIB
COMMIT_BYTES = 32 * MIB
MERGE_CHUNKS_MAX = 16
READ_ATTEMPTS = 16
INSTANCE_MAX = (1 << 64) - 1
ALL_CHUNKS = (1 << 32) - 1


class Store(StoreFile):
    """The settled log of one node. Made by `Store.open` only."""

    def __init__(
        self,
        path: Path,
        lock: int,
        env: lmdb.Environment,
        identity: StoreIdentity,
        pass_bytes: int,
        commit_bytes: int,
    ) -> None:
        super().__init__(path, lock, env, identity, commit_bytes)
        self._pass_bytes = pass_bytes
        self._holes = Holes()
        self.on_damage: Callable[[int], None] = lambda _: None
        """Told the id of a chunk that was found damaged, on any thread, before `Damaged` comes."""
        self.on_unreadable: Callable[[int, int], None] = lambda _group, _instance: None
        """Told what the journal cannot give `settle`, on the writing thread, before `Damaged`."""
        self._given: dict[tuple[int, int], bytes] = {}
        self._kept_members = KeptMembers()
        self._noted: dict[int, MembersRow] = {}  # under `_index_lock`, until it is written
        self._settled_entries = self._settled_bytes = 0
        self._merges = self._trims = self._reads = 0

    # ------------------------------------------------------------------------------------- opening

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        cluster: int,
        node: int,
        create: bool = False,
        map_bytes: int = MAP_BYTES,
        pass_bytes: int = PASS_BYTES,
        commit_bytes: int = COMMIT_BYTES,
    ) -> Store:
        """Open the store in the folder `path`, or make it there.

        Args:
            cluster, node: must be those it was made for.
            create: make a new one; it must not exist. One whose making was cut short is made anew.
            map_bytes: of LMDB's map to begin with; it grows by itself.
            pass_bytes: how much of the journal is held in memory while settling.
            commit_bytes: of chunks in one transaction, about; LMDB holds them in memory until then.

        Raises:
            NotBootstrapped: there is no store, and `create` is False.
            Foreign: it was made for another cluster or node, or in another format version.
            Damaged: something in it is missing or corrupt.
            Locked: it is open already, here or in another process.
            StoreError: it exists and `create` is True, or the folder cannot be used.
        """
        folder = Path(path)
        lock = take_lock(folder, create)
        env = None
        try:
            env = open_env(folder, map_bytes, create)
            with damage_named(folder):
                identity = obtain_identity(env, folder, cluster, node, create)
                store = cls(folder, lock, env, identity, pass_bytes, commit_bytes)
                store._load()
            store._data_file = os.open(folder / "data.mdb", os.O_RDONLY | os.O_CLOEXEC)
            return store
        except BaseException:
            if env is not None:
                env.close()
            os.close(lock)
            raise

    def _load(self) -> None:
        """Rebuild the index from the packed indexes."""
        with self._env.begin(buffers=True) as txn, damage_named(self.path):
            with txn.cursor(self._chunks) as cursor:
                chunks = [int.from_bytes(key, "big") for key in cursor.iternext(values=False)]
            with txn.cursor(self._indexes) as cursor:
                indexes = []
                for key, tail in cursor:
                    indexes.append(int.from_bytes(key, "big"))
                    self._load_index(txn, bytes(key), tail)
            if chunks != indexes:
                odd = min(set(chunks) ^ set(indexes))
                raise Damaged(f"{self.path}: of chunk {odd} and its index one is missing")
            groups = txn.get(b"groups", db=self._meta)
            self._index.seal(groups if groups is not None else b"")
            packed = txn.get(b"holes", db=self._meta)
            self._holes = Holes.unpack(bytes(packed) if packed is not None else None)
            self._kept_members = load(txn, self._meta, self.path)
        for hole in self._holes.all():
            if place := self._index.find(hole.group, hole.first):
                self._index.mark(place[0])

    def _load_index(self, txn: lmdb.Transaction[Any], key: bytes, tail: memoryview) -> None:
        """From the chunk itself if the copy beside it is damaged."""
        chunk = int.from_bytes(key, "big")
        try:
            self._index.load(chunk, tail)
        except ChunkDamage:
            value = txn.get(key, db=self._chunks)
            if value is None:
                raise
            self._index.load(chunk, own_tail(value))
            self._index.mark(chunk)

    # ------------------------------------------------------------------------------------ settling

    def settled(self) -> dict[int, int]:
        """For every group with settled instances, the last of them."""
        self._check_open()
        with self._index_lock:
            return self._index.settled()

    def bounds(self, group: int) -> tuple[int, int]:
        """Lowest instance kept and last instance settled; (1, 0) when there is nothing."""
        self._check_open()
        with self._index_lock:
            return self._index.bounds(group)

    def floors(self) -> dict[int, Floor]:
        """Floor and end of every group with settled instances. Any thread."""
        self._check_open()
        with self._index_lock:
            return {group: Floor(*bounds) for group, bounds in self._index.floors().items()}

    def first_within(self, group: int, through: int, bytes_max: int) -> int:
        """See `ChunkIndex.first_within`. Any thread; reads nothing from the device."""
        self._check_open()
        with self._index_lock:
            return self._index.first_within(group, through, bytes_max)

    def settle(self, plan: SettlePlan) -> SettleStats:
        """Copy the entries of a plan out of the journal; all of them are durable on return.

        Raises:
            Damaged: an entry cannot be read from the journal as it was written.
            StoreError: the plan leaves a gap, or goes past a change of members that nobody has
                noted yet (`note_members`), or the store cannot be written. What earlier
                transactions of this call have settled stays settled; `settled()` says how far.
        """
        self._check_writer()
        began = time.monotonic()
        while True:
            try:
                settler = Settler(self._index, plan, self._pass_bytes, dict(self._given))
                chunks, value_bytes, commits = self._settle_all(settler)
                break
            except lmdb.MapFullError:  # _make_room's estimate was too low; what is done stays done
                self._make_room(self._map_bytes)
            except SettleError as error:
                if error.unreadable:
                    self.on_unreadable(error.group, error.instance)
                kind = Damaged if error.damage else StoreError
                raise kind(f"{self.path}: settling: {error}") from error
        self._forget_given()
        self._settled_entries += settler.entries
        self._settled_bytes += settler.entry_bytes
        return SettleStats(
            entries=settler.entries,
            entry_bytes=settler.entry_bytes,
            skipped=settler.skipped,
            chunks=chunks,
            value_bytes=value_bytes,
            commits=commits,
            read_bytes=settler.read_bytes,
            reads=settler.reads,
            seconds=time.monotonic() - began,
        )

    def _settle_all(self, settler: Settler) -> tuple[int, int, int]:
        chunks = total = commits = 0
        made = settler.next_chunk()
        while made is not None:
            room = max(self._commit_bytes, len(made[1]))
            self._make_room(room)
            spent = 0
            barriers: list[tuple[int, int, bytes]] = []
            with self._members_transaction() as (txn, members):
                while made is not None and spent + len(made[1]) <= room:
                    spent += len(made[1])
                    chunks += 1
                    self._put_chunk(txn, *made)
                    barriers += settler.barriers()
                    with self._index_lock:
                        settler.stage()
                    made = settler.next_chunk()
                with self._index_lock:
                    groups = self._index.groups_packed()
                txn.put(b"groups", groups, db=self._meta)
                members.update(self._passing(barriers))
            total += spent
            commits += 1
            self._leave_page_cache()
        return chunks, total, commits

    def merge(self) -> bool:
        """Join some small chunks into a larger one: at most one chunk's worth of work.

        Returns:
            True when something was joined: there may be more to do.

        Raises:
            Damaged: an entry on the way fails its checksum. Nothing was changed.
            StoreError: the store cannot be written.
        """
        self._check_writer()
        with self._index_lock:
            ids = self._index.mergeable(MERGE_CHUNKS_MAX)
        if not ids:
            return False
        self._with_room(8 * MIB, lambda: self._join(ids))
        self._merges += 1
        return True

    def raise_floors(
        self, floors: Mapping[int, Floor], members: Mapping[int, Membership] | None = None
    ) -> TrimStats:
        """Keep less of these groups: one small transaction, durable on return.

        Both words of a floor become the greater of what they are and what is given. From here on
        nothing below is served, and `settle` leaves out what lies up to settled_through; `trim`
        gives the room back. The caller answers for it that the state of everything below is safe
        elsewhere, and that all of it is chosen; and for the members.

        Args:
            members: of each of these groups whose members have ever changed, as far as the caller
                knows, those that hold at settled_through or later ones: what is passed without a
                copy cannot be asked. They are written in the same transaction, as is what was
                noted of instances that are passed.

        Raises:
            ValueError: an instance would be neither settled nor kept: settled_through may only go
                beyond `settled()` when it ends just below kept_from; or the members contradict
                those that are known. Nothing was changed.
            StoreError: the store cannot be written. Nothing was changed, or it will never be again.
        """
        self._check_writer()
        began = time.monotonic()
        with self._index_lock:
            before = {group: self._index.bounds(group) for group in floors}
        for group, one in (members or {}).items():
            self.note_members(group, one)
        told = frozenset(members or ())
        groups = self._with_room(0, lambda: self._put_floors(floors, told))
        self._holes = self._holes.above({one: floor.kept_from for one, floor in floors.items()})
        with self._index_lock:
            return trim_stats(groups, before, self._index, time.monotonic() - began)

    def _put_floors(self, floors: Mapping[int, Floor], told: Collection[int]) -> int:
        """`told`: groups whose members are to be written wherever they changed."""
        with self._members_transaction() as (txn, members):
            with self._index_lock:
                groups = stage_floors(self._index, floors)
                packed = self._index.groups_packed()
            members.update(self._due({one: floor.settled_through for one, floor in floors.items()}))
            members.update(self._due(dict.fromkeys(told, INSTANCE_MAX)))
            if groups:
                txn.put(b"groups", packed, db=self._meta)
            if groups and self._holes:
                kept = self._holes.above({one: floor.kept_from for one, floor in floors.items()})
                txn.put(b"holes", kept.packed(), db=self._meta)
        return groups

    def trim(self) -> bool:
        """Give back some room of what is below the floors: one transaction of bounded size.

        Returns:
            True when something was done: there may be more to do.

        Raises:
            Damaged: an entry on the way fails its checksum. Nothing was changed.
            StoreError: the store cannot be written.
        """
        self._check_writer()
        with self._index_lock:
            step = next_step(self._index)
        if step is None:
            return False
        if step.dead:
            self._with_room(0, lambda: self._drop(step.dead))
        else:
            self._with_room(8 * MIB, lambda: self._join(step.thin))
        self._trims += 1
        return True

    def _drop(self, ids: list[int]) -> None:
        """Lookups need not wait: nothing leads to these chunks."""
        with self._transaction() as txn:
            self._delete_chunks(txn, ids)
            with self._index_lock:
                self._index.stage_drops(ids)

    def _join(self, ids: list[int]) -> None:
        """Put one chunk with all that is kept of these in their place."""
        with self._damage_told(), self._transaction(alone=True) as txn:
            merger, made = joined(self._index, ids, lambda chunk: self._value(txn, chunk))
            self._put_chunk(txn, *made)
            self._delete_chunks(txn, ids)
            with self._index_lock:
                merger.stage()

    # ------------------------------------------------------------------------------------- members

    def members(self) -> dict[int, MembersRow]:
        """Of each group whose members have ever changed, who they are. Any thread."""
        with self._index_lock:
            return dict(self._kept_members.rows)

    def left(self, group: int) -> tuple[int, ...]:
        """Nodes that were members of it and are none, as far as the store has them. Any thread."""
        with self._index_lock:
            row = self._kept_members.rows.get(group)
        return row.left if row is not None else ()

    def note_members(
        self, group: int, told: Membership, removed: bool = False, left: Collection[int] = ()
    ) -> None:
        """Who the members of a group are above an instance i, to be kept when i is passed.
        Whoever hears from the engine that such a value is chosen calls this, before `settle` can
        pass i: floor, and whether they are active, are not in the log. It is remembered in memory
        until the transaction that passes i writes it. What concerns an instance that is passed, or
        a node that is removed, is written by `write_members`. Older news changes nothing.

        Args:
            removed: this node is none of them: a tombstone, which stays for ever.
            left: nodes that were members before, beside those that rows before say.

        Any thread. Raises ValueError if it contradicts what is known.
        """
        with self._index_lock:
            kept = self._kept_members.rows.get(group)
            gone = tuple(sorted(set(left) - set(told.nodes)))
            row = later(kept, MembersRow(told, removed, gone))
            if kept is None or (row, row.left) != (kept, kept.left):
                self._noted[group] = later(self._noted.get(group), row)

    def write_members(self) -> int:
        """Write what was noted of instances that are passed, tombstones, and rows of which a copy
        was not whole; of how many groups. Durable on return. Raises StoreError."""
        self._check_writer()
        rows = self._due(self.settled()) if self._noted else {}
        with self._index_lock:
            rows |= {group: row for group, row in self._noted.items() if row.removed}
        if (kept := self._kept_members).wrong:
            rows = kept.rows | rows
        if rows:
            self._with_room(0, lambda: self._put_members(rows, kept.odd))
            kept.wrong.clear()
            kept.odd.clear()
        return len(rows)

    def keep_members(self, told: Mapping[int, MembersRow]) -> None:
        """Write who the members are, whatever is passed, for a node that joins. Durable on return.
        Raises ValueError if it contradicts what is known, StoreError."""
        self._check_writer()
        with self._index_lock:
            kept = self._kept_members.rows
            rows = {group: later(kept.get(group), row) for group, row in told.items()}
        if rows:
            self._with_room(0, lambda: self._put_members(rows, ()))

    def _put_members(self, rows: Mapping[int, MembersRow], odd: Collection[bytes]) -> None:
        with self._members_transaction() as (txn, members):
            for key in odd:
                txn.delete(key, db=self._meta)
            members.update(rows)

    def forget_members(self, group: int) -> None:
        """The group is gone: another one of its id begins with others. Raises StoreError."""
        with self._index_lock:
            self._noted.pop(group, None)
            kept = self._kept_members.rows.pop(group, None)
        if kept is not None:
            self.remember(dict.fromkeys(keys_of(group)))

    def members_wrong(self) -> list[str]:
        """What was wrong with the rows of members, at the open; `write_members` mends it."""
        return list(self._kept_members.wrong)

    @contextmanager
    def _members_transaction(
        self,
    ) -> Iterator[tuple[lmdb.Transaction[Any], dict[int, MembersRow]]]:
        """A transaction, with the rows that are written in it; known as soon as it is committed."""
        rows, identity = dict[int, MembersRow](), self.identity
        with self._transaction() as txn:
            yield txn, rows
            put(txn, self._meta, rows)
            if rows and identity.format_version < FORMAT_MEMBERS:
                identity = identity.with_members()
                txn.put(b"identity", identity.pack(), db=self._meta)
        self.identity = identity
        with self._index_lock:
            self._kept_members.rows.update(rows)
            for group, row in rows.items():
                if (noted := self._noted.get(group)) == row and {*noted.left} <= {*row.left}:
                    del self._noted[group]

    def _passing(self, barriers: list[tuple[int, int, bytes]]) -> dict[int, MembersRow]:
        with self._index_lock:
            try:
                return passing(self._kept_members.rows, self._noted, barriers)
            except ValueError as error:
                raise StoreError(f"{self.path}: settling: {error}") from error

    def _due(self, through: Mapping[int, int]) -> dict[int, MembersRow]:
        """What is noted of instances up to these."""
        with self._index_lock:
            due, noted = through.get, self._noted.items()
            return {one: row for one, row in noted if row.membership.instance <= due(one, 0)}

    # ------------------------------------------------------------------------------------- damage

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            with damage_named(self.path):
                yield
        except Damaged as error:
            if isinstance(error.__cause__, ChunkDamage) and error.__cause__.chunk:
                self.on_damage(error.__cause__.chunk)
            raise

    def holes(self) -> list[Hole]:
        """What is settled and damaged, and waits to be mended. Any thread."""
        self._check_open()
        return self._holes.all()

    def is_hole(self, group: int, instance: int) -> bool:
        """Whether `read` from there says `Damaged`, without a look at the disk. Any thread."""
        hole = self._holes.next(group, instance)
        return hole is not None and hole.first <= instance

    def damaged(self) -> list[int]:
        """Ids of the chunks that are known to be damaged. Any thread."""
        with self._index_lock:
            return self._index.damaged()

    def chunks(self) -> list[int]:
        """Ids of the chunks of which anything is kept. Any thread."""
        with self._index_lock:
            return [chunk[0] for chunk in self._index.chunk_list() if chunk[4]]

    def check(self, chunk: int) -> tuple[Ailing | None, int]:
        """Read a whole chunk; what is damaged of it, and its size. (None, 0): it is not there, or
        not any more. Any thread. Raises Damaged: not even where it is damaged."""
        with self._gate.shared(), damage_named(self.path):
            self._check_open()
            with self._env.begin(buffers=True) as txn:
                value = txn.get(key_of(chunk), db=self._chunks)
                end = txn.get(key_of(chunk), db=self._indexes)
                if value is None:
                    return None, 0
                return look_into(self.identity.store_id, self.bounds, chunk, value, end), len(value)

    def give(self, group: int, instance: int, body: bytes) -> None:
        """What is chosen at an instance that is to be settled, and that the journal cannot give:
        the next `settle` takes it from here. Any thread."""
        self._given[group, instance] = body

    def _forget_given(self) -> None:
        settled = self.settled()
        for group, instance in list(self._given):
            if instance <= settled.get(group, 0):
                self._given.pop((group, instance), None)

    def note(self, ailing: Ailing) -> None:
        """Remember the holes of a chunk: nobody is served from there, and it is left alone, until
        it is mended. One small transaction, durable on return. Raises StoreError."""
        self._check_writer()
        holes = self._holes.with_those(ailing.holes)
        self._with_room(0, lambda: self._put_meta({b"holes": holes.packed()}))
        self._holes = holes
        with self._index_lock:
            self._index.mark(ailing.chunk)

    def mend(self, chunk: int, bodies: Mapping[tuple[int, int], bytes]) -> None:
        """Write a damaged chunk anew, in one transaction; nothing, if nothing of it is kept.

        Args:
            bodies: by group and instance, for all of its holes: what is chosen there.

        Raises:
            Damaged: it is damaged elsewhere, too. Nothing was changed.
            StoreError: the store cannot be written.
        """
        self._check_writer()
        with self._index_lock:
            if chunk not in self._index.damaged():
                return
            if chunk in self._index.dead_chunks(ALL_CHUNKS):
                return  # the floors have passed it: `trim` removes it
        room = 8 * MIB + sum(map(len, bodies.values()))
        self._with_room(room, lambda: self._put_mended(chunk, bodies))

    def _put_mended(self, chunk: int, bodies: Mapping[tuple[int, int], bytes]) -> None:
        holes = self._holes.without(self.holes_of(chunk))
        with damage_named(self.path), self._transaction(alone=True) as txn:
            value = self._value(txn, chunk)
            tail = txn.get(key_of(chunk), db=self._indexes)
            merger, made = patched(self._index, chunk, value, tail, bodies)
            self._put_chunk(txn, *made)
            self._delete_chunks(txn, [chunk])
            txn.put(b"holes", holes.packed(), db=self._meta)
            with self._index_lock:
                merger.stage()
        self._holes = holes

    def holes_of(self, chunk: int) -> list[Hole]:
        """Those of `holes` that lie in this chunk."""
        with self._index_lock:
            places = [(one, self._index.find(one.group, one.first)) for one in self._holes.all()]
        return [one for one, place in places if place is not None and place[0] == chunk]

    # ------------------------------------------------------------------------------------- reading

    def read(self, group: int, first: int, bytes_max: int, last: int = INSTANCE_MAX) -> bytes:
        """Entries of a group from `first` on: {instance u64, bytes u32, 0 u32, body, zeros to 8}.

        As many as are settled, end at `last` and fit in bytes_max; at least one, however long.
        b"" when `first` is not in the store: it lies below the floor, or is not settled yet. Any
        thread; may read from the device.

        Raises:
            Damaged: an entry is not what was written. Nothing of this call is served. (Entries
                before a hole that is known of already are.)
        """
        self._check_open()
        if hole := self._holes.next(group, first):
            if hole.first <= first:
                raise Damaged(f"{self.path}: group {group} instance {first} is damaged")
            last = min(last, hole.first - 1)
        with self._damage_told():
            for _ in range(READ_ATTEMPTS):
                found = self._read_once(group, first, bytes_max, last)
                if found is not None:
                    self._reads += 1
                    return found
        raise Damaged(f"{self.path}: the chunk of group {group} instance {first} is missing")

    def _read_once(self, group: int, first: int, bytes_max: int, last: int) -> bytes | None:
        """None: the index named a chunk that is not in this snapshot; it has moved on meanwhile."""
        gather = Gather(self.identity.store_id, group, first, last, bytes_max)
        more = first <= last
        with self._gate.shared():
            self._check_open()
            with self._env.begin(buffers=True) as txn:
                while more:
                    with self._index_lock:
                        place = self._index.find(group, gather.wanted)
                    if place is None:
                        break
                    value = txn.get(key_of(place[0]), db=self._chunks)
                    if value is None:
                        return None
                    more = gather.add(place[0], value, place[1])
                return gather.take()

    def entry(self, group: int, instance: int) -> bytes | None:
        """The body of an instance, or None if it is not in the store. Raises like `read`."""
        found = self.read(group, instance, 0, instance)
        return found[16 : 16 + int.from_bytes(found[8:12], "little")] if found else None

    def verify(self) -> int:
        """Check every entry of every chunk of which any is kept, and the index against them; the
        number of entries.

        Raises:
            Damaged: names the first fault.
        """
        self._check_open()
        entries = 0
        with self._index_lock:
            chunks = [(chunk[0], chunk[3]) for chunk in self._index.chunk_list() if chunk[4]]
        for chunk, count in chunks:
            ailing, value_bytes = self.check(chunk)
            if ailing is not None:
                self.on_damage(chunk)
                raise Damaged(f"{self.path}: {ailing.why}")
            entries += count if value_bytes else 0  # 0: merged meanwhile
        return entries

    def stats(self) -> StoreStats:
        """Figures for reports; consistent enough."""
        self._check_open()
        with self._index_lock:
            chunks = self._index.chunk_list()
            groups, rows = len(self._index.settled()), self._index.row_count()
        with self._gate.shared():
            self._check_open()
            pages = self._env.info()["last_pgno"] + 1
        return StoreStats(
            groups=groups,
            entries=sum(chunk[4] for chunk in chunks),
            chunks=len(chunks),
            value_bytes=sum(chunk[1] for chunk in chunks),
            used_bytes=sum(chunk[2] for chunk in chunks),
            kept_bytes=sum(chunk[5] for chunk in chunks),
            small_chunks=sum(chunk[1] < MIB for chunk in chunks),
            dead_chunks=sum(not chunk[4] for chunk in chunks),
            index_rows=rows,
            file_bytes=pages * self._page_bytes,
            map_bytes=self._map_bytes,
            commits=self._commits,
            settled_entries=self._settled_entries,
            settled_bytes=self._settled_bytes,
            merges=self._merges,
            trims=self._trims,
            reads=self._reads,
            failed=self._failed,
        )
