"""The settled store: what is chosen, moved out of the journal into LMDB, for good.

Guarantees. What `settle` has returned for is on the device, whole, and is served by `read` and
`entry` byte by byte or not at all: every entry is checked each time it is read, and one that fails
raises `Damaged`. A crash at any moment leaves the state before a transaction or the one after it.
For every group the settled instances are consecutive, from the lowest one kept up to
`settled()[group]`; settling an instance again changes nothing. The lowest one kept is the group's
*floor*: it only goes up (`raise_floors`), and nothing below it is served again.

One thread writes (`settle`, `merge`, `raise_floors`, `trim`), which is asserted; any thread may
read. All that costs time (building chunks, checksums, copying, LMDB's own work) runs with the GIL
released; a chunk costs two puts, because every put takes the GIL again.

Tables in LMDB (0.9 file format, `lib_version` 0, every commit fully synced):

    table    key             value
    -------  --------------  --------------------------------------------------------------------
    meta     identity        IDENTITY below: format version, cluster, node, store id
    meta     groups          what is settled, by group: chunk_index.pxd
    chunks   id, 8 bytes     a chunk: chunk.pxd
    indexes  id, 8 bytes     the tail of that chunk: its packed index

Ids are big-endian and grow, so that a new chunk is always appended.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lmdb

from phx._core.chunk import Gather, verify_chunk
from phx._core.chunk_index import ChunkIndex
from phx._core.settler import SettleError, Settler
from phx.errors import Closed, Damaged, ForkedError, StoreError
from phx.store_folder import (
    FORMAT_VERSION,
    StoreIdentity,
    damage_named,
    obtain_identity,
    open_env,
    take_lock,
)
from phx.store_trim import Floor, TrimStats, joined, next_step, stage_floors, trim_stats

if TYPE_CHECKING:
    from phx._core.plan import SettlePlan

__all__ = [
    "FORMAT_VERSION",
    "Floor",
    "SettleStats",
    "Store",
    "StoreIdentity",
    "StoreStats",
    "TrimStats",
]

T = TypeVar("T")

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

MAP_BYTES = 256 * MIB
MAP_STEP_BYTES_MAX = 16 * GIB
PASS_BYTES = 64 * MIB
COMMIT_BYTES = 32 * MIB
COMMIT_SLACK_BYTES = 4 * MIB
"""Room in the map for what a commit writes besides chunks: tables, groups, lists of free pages."""
MERGE_CHUNKS_MAX = 16
READ_ATTEMPTS = 16
INSTANCE_MAX = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SettleStats:
    """What one `settle` did.

    Attributes:
        entries, entry_bytes: settled now; bytes of their bodies.
        skipped: entries of the plan that were in the store already.
        chunks, value_bytes: written; bytes of the chunks.
        commits: synced transactions.
        read_bytes: of the journal, in ``reads`` pieces.
        seconds: the whole call.
    """

    entries: int
    entry_bytes: int
    skipped: int
    chunks: int
    value_bytes: int
    commits: int
    read_bytes: int
    reads: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The store at this moment.

    Attributes:
        groups, entries: settled; entries that are kept.
        chunks, value_bytes, used_bytes: of all chunks; used is what entries and indexes take.
        kept_bytes: of the used ones, about.
        small_chunks: of the two smaller size classes; `merge` works them off.
        dead_chunks: of which nothing is kept; `trim` removes them.
        index_rows: of the index in memory, 24 bytes each.
        file_bytes, map_bytes: of LMDB's file as used, and its map.
        commits, settled_entries, settled_bytes, merges, trims, reads: since the store was opened.
        failed: why it cannot be written any more; None: it can.
    """

    groups: int
    entries: int
    chunks: int
    value_bytes: int
    used_bytes: int
    kept_bytes: int
    small_chunks: int
    dead_chunks: int
    index_rows: int
    file_bytes: int
    map_bytes: int
    commits: int
    settled_entries: int
    settled_bytes: int
    merges: int
    trims: int
    reads: int
    failed: str | None


class Gate:
    """Readers go through together; who needs the map to himself waits until all are out."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._closed = True
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()


def key_of(chunk: int) -> bytes:
    return chunk.to_bytes(8, "big")


class Store:
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
        self.path = path
        self.identity = identity
        self._lock_file = lock
        self._data_file = -1  # until it is loaded
        self._env = env
        self._meta = env.open_db(b"meta")
        self._chunks = env.open_db(b"chunks")
        self._indexes = env.open_db(b"indexes")
        self._pass_bytes = pass_bytes
        self._commit_bytes = commit_bytes
        self._index = ChunkIndex(identity.store_id)
        self._index_lock = threading.Lock()
        self._gate = Gate()
        self._writer: int | None = None
        self._refusal: type[Closed] | type[ForkedError] | None = None
        self._failed: str | None = None
        self._map_bytes = env.info()["map_size"]
        self._page_bytes = env.stat()["psize"]
        self._commits = self._settled_entries = self._settled_bytes = 0
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
                    self._index.load(indexes[-1], tail)
            if chunks != indexes:
                odd = min(set(chunks) ^ set(indexes))
                raise Damaged(f"{self.path}: of chunk {odd} and its index one is missing")
            groups = txn.get(b"groups", db=self._meta)
            self._index.seal(groups if groups is not None else b"")

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
            StoreError: the plan leaves a gap, or the store cannot be written. What earlier
                transactions of this call have settled stays settled; `settled()` says how far.
        """
        self._check_writer()
        began = time.monotonic()
        while True:
            try:
                settler = Settler(self._index, plan, self._pass_bytes)
                chunks, value_bytes, commits = self._settle_all(settler)
                break
            except lmdb.MapFullError:  # _make_room's estimate was too low; what is done stays done
                self._make_room(self._map_bytes)
            except SettleError as error:
                kind = Damaged if error.damage else StoreError
                raise kind(f"{self.path}: settling: {error}") from error
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
            with self._transaction() as txn:
                while made is not None and spent + len(made[1]) <= room:
                    spent += len(made[1])
                    chunks += 1
                    self._put_chunk(txn, *made)
                    with self._index_lock:
                        settler.stage()
                    made = settler.next_chunk()
                with self._index_lock:
                    groups = self._index.groups_packed()
                txn.put(b"groups", groups, db=self._meta)
            total += spent
            commits += 1
            self._leave_page_cache()
        return chunks, total, commits

    def _leave_page_cache(self) -> None:
        """What was just written is seldom read again: it must not push anybody's pages out of
        memory, nor count as this process' memory in a container. (What LMDB has mapped stays.)"""
        if sys.platform == "linux":
            with suppress(OSError):
                os.posix_fadvise(self._data_file, 0, 0, os.POSIX_FADV_DONTNEED)

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

    def raise_floors(self, floors: Mapping[int, Floor]) -> TrimStats:
        """Keep less of these groups: one small transaction, durable on return.

        Both words of a floor become the greater of what they are and what is given. From here on
        nothing below is served, and `settle` leaves out what lies up to settled_through; `trim`
        gives the room back. The caller answers for it that the state of everything below is safe
        elsewhere, and that all of it is chosen.

        Raises:
            ValueError: an instance would be neither settled nor kept: settled_through may only go
                beyond `settled()` when it ends just below kept_from. Nothing was changed.
            StoreError: the store cannot be written. Nothing was changed, or it will never be again.
        """
        self._check_writer()
        began = time.monotonic()
        with self._index_lock:
            before = self._index.floors()
        groups = self._with_room(0, lambda: self._put_floors(floors))
        with self._index_lock:
            return trim_stats(groups, before, self._index, time.monotonic() - began)

    def _put_floors(self, floors: Mapping[int, Floor]) -> int:
        with self._transaction() as txn:
            with self._index_lock:
                groups = stage_floors(self._index, floors)
                packed = self._index.groups_packed()
            if groups:
                txn.put(b"groups", packed, db=self._meta)
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
        with damage_named(self.path), self._transaction(alone=True) as txn:

            def value_of(chunk: int) -> memoryview:
                value: memoryview | None = txn.get(key_of(chunk), db=self._chunks)
                if value is None:
                    raise Damaged(f"{self.path}: chunk {chunk} is missing")
                return value

            merger, made = joined(self._index, ids, value_of)
            self._put_chunk(txn, *made)
            self._delete_chunks(txn, ids)
            with self._index_lock:
                merger.stage()

    def _delete_chunks(self, txn: lmdb.Transaction[Any], ids: list[int]) -> None:
        for chunk in ids:
            txn.delete(key_of(chunk), db=self._chunks)
            txn.delete(key_of(chunk), db=self._indexes)

    def _with_room(self, value_bytes: int, action: Callable[[], T]) -> T:
        """Do something in one transaction that writes so many bytes of chunks, about."""
        self._make_room(value_bytes)
        while True:
            try:
                return action()
            except lmdb.MapFullError:  # that was too low an estimate; nothing was done
                self._make_room(self._map_bytes)

    def _put_chunk(
        self, txn: lmdb.Transaction[Any], chunk: int, value: memoryview, tail: memoryview
    ) -> None:
        key = key_of(chunk)
        for table, data in ((self._chunks, value), (self._indexes, tail)):
            if not txn.put(key, data, db=table, append=True, overwrite=False):
                raise Damaged(f"{self.path}: there is a chunk {chunk} already")

    @contextmanager
    def _transaction(self, *, alone: bool = False) -> Iterator[lmdb.Transaction[Any]]:
        """A write transaction, and with it what is staged in the index: both or neither.

        `alone`: lookups wait for the commit, because it removes chunks that the index still names.
        """
        try:
            txn = self._env.begin(write=True, buffers=True)
            try:
                yield txn
                if alone:
                    with self._index_lock:
                        txn.commit()
                        self._index.commit()
                else:
                    txn.commit()
                    with self._index_lock:
                        self._index.commit()
            except BaseException:
                with suppress(lmdb.Error):  # a commit that failed has ended it already
                    txn.abort()
                with self._index_lock:
                    self._index.rollback()
                raise
        except lmdb.MapFullError:
            raise
        except (lmdb.Error, OSError) as error:
            raise self._write_failed(error) from error
        self._commits += 1

    def _write_failed(self, error: Exception) -> StoreError:
        """A full disk can be tried again, as the transaction left nothing. Any other failure is
        final: after a failed sync nobody knows what the device holds."""
        code = getattr(error, "code", None) or getattr(error, "errno", None)
        text = f"{self.path}: {error}"
        if code == errno.EIO and self._cramped():
            text += " (the disk is full)"
        elif code not in (errno.ENOSPC, errno.EDQUOT):
            self._failed = text
        return StoreError(text)

    def _cramped(self) -> bool:
        """Is there less room on the disk than a transaction may need?

        A write that finds room for a part of it is EIO in LMDB's words, as a failed sync is. To try
        again would be safe after that, too: whatever the next transaction refers to, it writes
        anew, or an earlier one has synced. (A root that failed to be written LMDB calls MDB_PANIC.)
        """
        try:
            found = os.statvfs(self.path)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize < self._commit_bytes + COMMIT_SLACK_BYTES

    def _make_room(self, value_bytes: int) -> None:
        """Let the map hold value_bytes more, even if none of the free pages can be used."""
        used = (self._env.info()["last_pgno"] + 1) * self._page_bytes
        wanted = used + value_bytes + value_bytes // 16 + COMMIT_SLACK_BYTES
        if wanted <= self._map_bytes:
            return
        bigger = self._map_bytes + min(self._map_bytes, MAP_STEP_BYTES_MAX)
        bigger = max(bigger, wanted)
        bigger += -bigger % MIB
        with self._gate.alone():  # no transaction that is open meanwhile would survive
            try:
                self._env.set_mapsize(bigger)
            except lmdb.Error as error:
                raise self._write_failed(error) from error
            self._map_bytes = bigger

    # ------------------------------------------------------------------------------------- reading

    def read(self, group: int, first: int, bytes_max: int, last: int = INSTANCE_MAX) -> bytes:
        """Entries of a group from `first` on: {instance u64, bytes u32, 0 u32, body, zeros to 8}.

        As many as are settled, end at `last` and fit in bytes_max; at least one, however long.
        b"" when `first` is not in the store: it lies below the floor, or is not settled yet. Any
        thread; may read from the device.

        Raises:
            Damaged: an entry is not what was written. Nothing of this call is served.
        """
        self._check_open()
        with damage_named(self.path):
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
        if not found:
            return None
        return found[16 : 16 + int.from_bytes(found[8:12], "little")]

    def verify(self) -> int:
        """Check every entry of every chunk of which any is kept, and the index against them; the
        number of entries.

        Raises:
            Damaged: names the first fault.
        """
        self._check_open()
        entries = 0
        with self._index_lock:
            chunks = [chunk[0] for chunk in self._index.chunk_list() if chunk[4]]
        for chunk in chunks:
            with self._gate.shared(), damage_named(self.path):
                self._check_open()
                with self._env.begin(buffers=True) as txn:
                    value = txn.get(key_of(chunk), db=self._chunks)
                    tail = txn.get(key_of(chunk), db=self._indexes)
                    if value is None:
                        continue  # merged meanwhile
                    entries += verify_chunk(chunk, value, self.identity.store_id)
                    if tail is None or value[len(value) - len(tail) :] != tail:
                        raise Damaged(f"{self.path}: chunk {chunk} and its index do not match")
        return entries

    def stats(self) -> StoreStats:
        """Figures for reports; consistent enough."""
        self._check_open()
        with self._index_lock:
            chunks = self._index.chunk_list()
            groups = len(self._index.settled())
            rows = self._index.row_count()
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

    # ------------------------------------------------------------------------------------- the end

    def close(self) -> None:
        """Wait for readers, then close. Idempotent. The writing thread must be out of its call."""
        if self._refusal is not None:
            return
        with self._gate.alone():
            self._refusal = Closed
            self._env.close()
            os.close(self._data_file)
            os.close(self._lock_file)

    def abandon(self) -> None:
        """In a forked child: give up what can be, and touch nothing that the parent still has."""
        if self._refusal is None:
            self._refusal = ForkedError
            with suppress(OSError):
                os.close(self._data_file)
                os.close(self._lock_file)  # the parent's copy keeps the lock

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise self._refusal(
                f"{self.path}: the store is closed"
                if self._refusal is Closed
                else f"{self.path}: opened by the parent of this process"
            )

    def _check_writer(self) -> None:
        """The first thread that writes is the only one that may: LMDB ties a write to its thread,
        and py-lmdb lets another one use the transaction without a word."""
        self._check_open()
        if self._failed is not None:
            raise StoreError(self._failed)
        me = threading.get_ident()
        if self._writer is None:
            self._writer = me
        if self._writer != me:
            raise StoreError(f"{self.path}: only one thread may write, and this is another one")
