"""The file of a store: who may use it when, transactions, and a map that grows.

Guarantees. A write transaction and what is staged in the index are one: both are there afterwards,
or neither is. Whoever reads has a map that stays where it is. What cannot be written is told apart:
for want of room, which may pass, or for good.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from phx._core.chunk_index import ChunkIndex
from phx.errors import Closed, Damaged, ForkedError, StoreError
from phx.lmdb_files import Gate
from phx.store_folder import StoreIdentity, damage_named

__all__ = ["StoreFile", "key_of"]

T = TypeVar("T")

MIB = 1 << 20
GIB = 1 << 30

MAP_STEP_BYTES_MAX = 16 * GIB
COMMIT_SLACK_BYTES = 4 * MIB
"""Room in the map for what a commit writes besides chunks: tables, groups, lists of free pages."""


def key_of(chunk: int) -> bytes:
    return chunk.to_bytes(8, "big")


class StoreFile:
    """What a `Store` is made of, without what it means."""

    def __init__(
        self,
        path: Path,
        lock: int,
        env: lmdb.Environment,
        identity: StoreIdentity,
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
        self._commit_bytes = commit_bytes
        self._index = ChunkIndex(identity.store_id)
        self._index_lock = threading.Lock()
        self._gate = Gate()
        self._writer: int | None = None
        self._refusal: type[Closed] | type[ForkedError] | None = None
        self._failed: str | None = None
        self._map_bytes = env.info()["map_size"]
        self._page_bytes = env.stat()["psize"]
        self._commits = 0

    # ------------------------------------------------------------------------------------- writing

    def _with_room(self, value_bytes: int, action: Callable[[], T]) -> T:
        """Do something in one transaction that writes so many bytes of chunks, about."""
        self._make_room(value_bytes)
        while True:
            try:
                return action()
            except lmdb.MapFullError:  # that was too low an estimate; nothing was done
                self._make_room(self._map_bytes)

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

    def _leave_page_cache(self) -> None:
        """What was just written is seldom read again: it must not push anybody's pages out of
        memory, nor count as this process' memory in a container. (What LMDB has mapped stays.)"""
        if sys.platform == "linux":
            with suppress(OSError):
                os.posix_fadvise(self._data_file, 0, 0, os.POSIX_FADV_DONTNEED)

    def _value(self, txn: lmdb.Transaction[Any], chunk: int) -> memoryview:
        value: memoryview | None = txn.get(key_of(chunk), db=self._chunks)
        if value is None:
            raise Damaged(f"{self.path}: chunk {chunk} is missing")
        return value

    def _delete_chunks(self, txn: lmdb.Transaction[Any], ids: list[int]) -> None:
        for chunk in ids:
            txn.delete(key_of(chunk), db=self._chunks)
            txn.delete(key_of(chunk), db=self._indexes)

    def _put_chunk(
        self, txn: lmdb.Transaction[Any], chunk: int, value: memoryview, tail: memoryview
    ) -> None:
        key = key_of(chunk)
        for table, data in ((self._chunks, value), (self._indexes, tail)):
            if not txn.put(key, data, db=table, append=True, overwrite=False):
                raise Damaged(f"{self.path}: there is a chunk {chunk} already")

    def remember(self, values: Mapping[bytes, bytes | None]) -> None:
        """Keep small values for whoever uses the store, by their names; None: keep it no more. One
        transaction, durable on return."""
        self._check_writer()
        self._with_room(0, lambda: self._put_meta(values))

    def remembered(self, name: bytes) -> bytes | None:
        """What `remember` was given last. Not checked: the value has to say that it is whole."""
        with self._gate.shared(), damage_named(self.path):
            self._check_open()
            with self._env.begin() as txn:
                found: bytes | None = txn.get(name, db=self._meta)
                return found

    def remembered_under(self, prefix: bytes) -> dict[bytes, bytes]:
        """What `remember` was given under names that begin so. Not checked either."""
        found = {}
        with self._gate.shared(), damage_named(self.path):
            self._check_open()
            with self._env.begin() as txn, txn.cursor(self._meta) as cursor:
                more = cursor.set_range(prefix)
                while more and bytes(cursor.key()).startswith(prefix):
                    found[bytes(cursor.key())] = bytes(cursor.value())
                    more = cursor.next()
        return found

    def _put_meta(self, values: Mapping[bytes, bytes | None]) -> None:
        with self._transaction() as txn:
            for name, value in values.items():
                if value is None:
                    txn.delete(name, db=self._meta)
                else:
                    txn.put(name, value, db=self._meta)

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
