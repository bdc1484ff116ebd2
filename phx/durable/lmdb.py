"""A machine whose state is a folder of LMDB.

    class Stock(LmdbMachine):
        tables = ("stock",)

        def apply(self, entry):
            self.txn.put(entry.value, b"%d" % entry.instance)   # into the first table

One write transaction stays open over many applies, until phx commits it together with the number
of the last instance. So ``txn`` sees everything applied, ``reading`` what was committed last.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import lmdb

from phx.durable.files import (
    PIECE_BYTES,
    SealedReader,
    SealedWriter,
    fill,
    make_folder,
    sync_folder,
)
from phx.errors import Damaged
from phx.lmdb_files import LMDB_MAJOR, refuse_cut
from phx.machine import DurableMachine, Reader, Writer

__all__ = ["LmdbMachine"]

OWN_TABLE = b"phx"
APPLIED = b"applied"

IMAGE = b"PHXLMDB1"  # the body is a compacted data.mdb
RECORDS = b"PHXLMDB2"  # the body is every record: _RECORD, table, key, value

_APPLIED = struct.Struct("<QI")
_RECORD = struct.Struct("<III")  # bytes of table, key and value


class LmdbMachine(DurableMachine):
    """Base class: a subclass says its ``tables`` and has ``apply``.

    Attributes:
        tables: names of its tables, 1 ..; the first one is meant where none is named. A table that
            is added later begins empty. "phx" is taken.
        map_bytes: the most that all its files may have, and address space, not memory. When they
            are full, ``apply`` or ``commit`` raises lmdb.MapFullError: the group stops on this
            node, nothing half-done is kept, and it goes on with a larger number. While a view is
            open, what is replaced takes room, too.
    """

    tables: ClassVar[tuple[str, ...]] = ("data",)
    map_bytes: ClassVar[int] = 16 << 30

    _shared: _Shared | None = None
    _txn: lmdb.Transaction[bytes] | None = None
    _txn_thread = 0
    _applied = 0

    # --- for the subclass

    @property
    def txn(self) -> lmdb.Transaction[bytes]:
        """The open write transaction, in ``apply`` and ``digest`` only. Leave it open."""
        txn = self._txn
        if txn is None:
            shared = self._opened()
            txn = self._txn = shared.env.begin(write=True, db=shared.tables[self.tables[0]])
            self._txn_thread = threading.get_ident()
        return txn

    def table(self, name: str) -> Any:
        """The handle of a table, for ``db=`` of a transaction's methods."""
        return self._opened().tables[name]

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        """A read transaction on what was committed last, in any thread. Keep it short."""
        shared = self._opened().share()
        try:
            with shared.env.begin(db=shared.tables[self.tables[0]]) as txn:
                yield txn
        finally:
            shared.release()

    @property
    def applied(self) -> int:
        """The instance of the last commit."""
        return self._applied

    # --- for phx

    def open(self, folder: Path) -> int:
        if self._shared is not None:
            raise ValueError("this machine is open already")
        if not self.tables or "phx" in self.tables:
            raise ValueError("tables: at least one, and none called phx")
        make_folder(folder)
        env = _open_env(folder, self.map_bytes, len(self.tables) + 1)
        try:
            tables, self._applied = _open_tables(env, folder, self.tables)
            sync_folder(folder)
        except BaseException:
            env.close()
            raise
        self._shared = _Shared(folder, env, tables)
        return self._applied

    def commit(self, applied: int) -> None:
        if applied < self._applied:
            raise ValueError(f"commit of {applied} after one of {self._applied}")
        shared = self._opened()
        if applied == self._applied and self._txn is None:
            return
        txn = self.txn
        if self._txn_thread != threading.get_ident():
            raise RuntimeError("commit in another thread than the one that applied")
        txn.put(APPLIED, _pack_applied(applied), db=shared.tables["phx"])
        self._txn = None
        txn.commit()
        self._applied = applied

    def close(self) -> None:
        txn, self._txn = self._txn, None
        shared, self._shared = self._shared, None
        if txn is not None:
            txn.abort()
        if shared is not None:
            shared.release()

    def freeze(self) -> LmdbView:
        """A read transaction: nothing is copied. Files grow while it is open."""
        shared = self._opened().share()
        try:
            return LmdbView(shared, shared.env.begin(), self._applied)
        except BaseException:
            shared.release()
            raise

    def restore(self, reader: Reader) -> None:
        """Raises Damaged for what no LmdbMachine with these tables has written."""
        shared = self._opened()
        if self._applied or self._txn is not None:
            raise ValueError("restore is for a machine that was opened in a new folder")
        sealed = SealedReader(reader, (IMAGE, RECORDS))
        folder = shared.folder
        if sealed.magic == IMAGE:
            self.close()
            for name in ("data.mdb", "lock.mdb"):
                (folder / name).unlink(missing_ok=True)
            fill(folder / "data.mdb", sealed)
            self.open(folder)
            if self._applied != sealed.applied:
                raise Damaged(f"a snapshot of {sealed.applied} holds {self._applied}")
        else:
            _load(self.txn, shared.tables, sealed)
            self.commit(sealed.applied)

    def _opened(self) -> _Shared:
        if self._shared is None:
            raise ValueError("this machine is not open")
        return self._shared


class LmdbView:
    """What an LmdbMachine had committed at one instance."""

    def __init__(self, shared: _Shared, txn: lmdb.Transaction[bytes], applied: int) -> None:
        self._shared = shared
        self._txn: lmdb.Transaction[bytes] | None = txn
        self._applied = applied

    def snapshot(self, writer: Writer, /) -> None:
        """Write a compacted copy, made without the GIL; where LMDB cannot, every record."""
        if self._txn is None:
            raise ValueError("the view is closed")
        with closing(_image(self._shared.env, self._txn)) as image:
            try:
                first = next(image)
            except TypeError:  # a build without the patch that lets copyfd take a transaction
                kind, pieces = RECORDS, _records(self._shared.tables, self._txn)
            else:
                kind, pieces = IMAGE, chain([first], image)
            sealed = SealedWriter(writer, kind, self._applied)
            for piece in pieces:
                sealed.write(piece)
            sealed.finish()

    def close(self) -> None:
        txn, self._txn = self._txn, None
        if txn is not None:
            txn.abort()
            self._shared.release()


class _Shared:
    """An environment that a machine, its views and its readers have in common.

    It is closed by the last of them: to close it under a copy would wait for the copy.
    """

    def __init__(self, folder: Path, env: lmdb.Environment, tables: dict[str, Any]) -> None:
        self.folder = folder
        self.env = env
        self.tables = tables
        self._users = 1
        self._lock = threading.Lock()

    def share(self) -> _Shared:
        with self._lock:
            if not self._users:
                raise ValueError("this machine is not open")
            self._users += 1
        return self

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self.env.close()


# --- opening


def _open_env(folder: Path, map_bytes: int, tables: int) -> lmdb.Environment:
    try:
        env = lmdb.Environment(
            str(folder), map_size=map_bytes, max_dbs=tables, lib_version=LMDB_MAJOR, mode=0o644
        )
    except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
        raise Damaged(f"{folder}: no data of LMDB {LMDB_MAJOR}.x: {error}") from error
    refuse_cut(env, folder)
    return env


# What LMDB says of pages, or of what a page says of a table, that it could not have written.
_DAMAGE = (
    lmdb.NotFoundError,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.IncompatibleError,
)


def _open_tables(
    env: lmdb.Environment, folder: Path, names: tuple[str, ...]
) -> tuple[dict[str, Any], int]:
    """Every table by name, made if it is not there, and the applied instance."""
    new = env.info()["last_txnid"] == 0
    try:
        with env.begin(write=True) as txn:
            own = env.open_db(OWN_TABLE, txn=txn, create=new)
            tables = {name: env.open_db(name.encode(), txn=txn) for name in names}
            if new:
                txn.put(APPLIED, _pack_applied(0), db=own)
            applied = _applied_in(txn, own, folder)
    except _DAMAGE as error:
        raise Damaged(f"{folder}: {error}") from error
    return {"phx": own, **tables}, applied


def _applied_in(txn: lmdb.Transaction[bytes], own: Any, folder: Path) -> int:
    packed = txn.get(APPLIED, db=own)
    if packed is None or len(packed) != _APPLIED.size or packed != _pack_applied(_number(packed)):
        raise Damaged(f"{folder}: the number of the applied instance is damaged")
    return _number(packed)


def applied_of(env: lmdb.Environment, folder: Path) -> int | None:
    """The instance of the last commit of an LmdbMachine's files, whose pages are sound; None: they
    are somebody else's. Raises Damaged."""
    with env.begin() as txn:
        try:
            own = env.open_db(OWN_TABLE, txn, create=False)
        except lmdb.NotFoundError:
            return None
        return _applied_in(txn, own, folder)


def _pack_applied(applied: int) -> bytes:
    return _APPLIED.pack(applied, crc32(applied.to_bytes(8, "little")))


def _number(packed: bytes) -> int:
    return int.from_bytes(packed[:8], "little")


# --- copies


def _image(env: lmdb.Environment, txn: lmdb.Transaction[bytes]) -> Generator[bytes, None, None]:
    """A compacted data.mdb of what the transaction sees.

    Through a pipe and a thread of its own, so that it goes no faster than somebody reads, and
    nothing has to be read back for a checksum. Neither takes the GIL for the copy.
    """
    reading, writing = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # slower, that is all
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIECE_BYTES)
    failed: list[BaseException] = []

    def copy() -> None:
        try:
            env.copyfd(writing, compact=True, txn=txn)
        except BaseException as error:
            failed.append(error)
        finally:
            os.close(writing)

    thread = threading.Thread(target=copy, name="phx-copy")
    thread.start()
    try:
        while piece := os.read(reading, PIECE_BYTES):
            yield piece
    finally:
        os.close(reading)  # a copy that goes on would fail at its next write
        thread.join()
    if failed:
        raise failed[0]


def _records(tables: dict[str, Any], txn: lmdb.Transaction[bytes]) -> Iterator[bytes]:
    piece = bytearray()
    for name in sorted(tables):
        if name == "phx":
            continue
        raw = name.encode()
        for key, value in txn.cursor(db=tables[name]):
            piece += _RECORD.pack(len(raw), len(key), len(value))
            piece += raw + key + value
            if len(piece) >= PIECE_BYTES:
                yield bytes(piece)
                piece = bytearray()
    if piece:
        yield bytes(piece)


def _load(txn: lmdb.Transaction[bytes], tables: dict[str, Any], sealed: SealedReader) -> None:
    """Put every record into its table; Damaged if they are not whole."""
    kept = b""
    for body in sealed:
        kept += body
        at = 0
        while (start := at + _RECORD.size) <= len(kept):
            name_bytes, key_bytes, value_bytes = _RECORD.unpack_from(kept, at)
            middle = start + name_bytes + key_bytes
            if middle + value_bytes > len(kept):
                break
            name = kept[start : start + name_bytes].decode("utf-8", "replace")
            if name not in tables or name == "phx" or not key_bytes:
                raise Damaged(f"a snapshot has a table {name!r}, which this machine has not")
            at = middle + value_bytes
            txn.put(kept[start + name_bytes : middle], kept[middle:at], db=tables[name])
        kept = kept[at:]
    if kept:
        raise Damaged("a snapshot ends within a record")
