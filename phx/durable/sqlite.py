"""A machine whose state is a database of SQLite.

    class Stock(SqliteMachine):
        def create(self, db):
            db.execute("CREATE TABLE stock (name TEXT PRIMARY KEY, pieces INTEGER NOT NULL)")

        def apply(self, entry):
            ...
            self.db.execute("UPDATE stock SET pieces = pieces - 1 WHERE name = ?", (name,))

One transaction stays open over many applies, until phx commits it together with the number of the
last instance. So ``db`` sees everything applied, ``reading`` what was committed last.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from phx.durable.files import (
    PIECE_BYTES,
    SealedReader,
    SealedWriter,
    fill,
    make_folder,
    sync_folder,
)
from phx.errors import Damaged
from phx.machine import DurableMachine, Reader, Writer

__all__ = ["SqliteMachine"]

FILE = "state.db"
COPY = "view-"  # files of views that are being written begin so
MAGIC = b"PHXSQLT1"  # the body is a database file

PAGES_A_STEP = 4096  # of a copy; the connection can be interrupted between two steps

_APPLIED = "SELECT instance, crc FROM phx_applied"
_COLUMNS = "SELECT name FROM pragma_table_info('phx_applied')"
_ADD_CRC = "ALTER TABLE phx_applied ADD COLUMN crc INTEGER NOT NULL DEFAULT -1"
_MAKE_APPLIED = """
    CREATE TABLE phx_applied (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        instance INTEGER NOT NULL CHECK (instance >= 0),
        crc INTEGER NOT NULL
    )
"""


class SqliteMachine(DurableMachine):
    """Base class: a subclass has ``create`` and ``apply``.

    Be deterministic: no CURRENT_TIMESTAMP, no random(), an ORDER BY wherever the order of rows
    matters. COMMIT, ROLLBACK, BEGIN and ``executescript`` are refused, for a transaction is phx's
    to end; SAVEPOINT is allowed. The table phx_applied is phx's, too.
    """

    _db: _Connection | None = None
    _path = Path()
    _applied = 0
    _changes = -1  # of the connection, when it was last committed
    _ending = False

    # --- for the subclass

    def connected(self, db: sqlite3.Connection) -> None:
        """Called at every open, outside of a transaction: functions, collations, pragmas.

        The journal mode (WAL) and ``synchronous`` (FULL) are set already; leave them.
        """
        return

    def create(self, db: sqlite3.Connection) -> None:
        """Make the tables of a new database, in the transaction that makes it."""
        return

    @property
    def db(self) -> sqlite3.Connection:
        """The connection, inside of the open transaction, in ``apply`` and ``digest`` only.

        RuntimeError if SQLite rolled that back by itself (a full disk, ON CONFLICT ROLLBACK): what
        was applied since the last commit is lost, and must be applied again from the log.
        """
        return self._in_transaction()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Another connection, read-only, on what was committed last, in any thread."""
        self._opened()
        with closing(_open_reader(self._path)) as db:
            yield db

    @property
    def applied(self) -> int:
        """The instance of the last commit."""
        return self._applied

    # --- for phx

    def open(self, folder: Path) -> int:
        if self._db is not None:
            raise ValueError("this machine is open already")
        make_folder(folder)
        for left in folder.glob(COPY + "*"):
            left.unlink()
        self._path = folder.absolute() / FILE
        db = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, factory=_Connection
        )
        try:
            self._begin_with(db)
            sync_folder(folder)
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.Error) and _is_damage(error):
                raise Damaged(f"{self._path}: {error}") from error
            raise
        self._db = db
        return self._applied

    def commit(self, applied: int) -> None:
        if applied < self._applied:
            raise ValueError(f"commit of {applied} after one of {self._applied}")
        db = self._in_transaction()
        if applied == self._applied and db.total_changes == self._changes:
            return
        db.execute("UPDATE phx_applied SET instance = ?, crc = ?", (applied, _crc(applied)))
        self._end(db)
        self._applied = applied

    def close(self) -> None:
        db, self._db = self._db, None
        if db is None:
            return
        self._ending = True
        with suppress(sqlite3.Error):
            db.rollback()
        with suppress(sqlite3.Error):
            db.close()
        self._ending = False

    def freeze(self) -> SqliteView:
        """A second connection inside a read transaction. The write-ahead log grows meanwhile."""
        self._opened()
        db = _open_reader(self._path)
        try:
            db.execute("BEGIN")
            applied = applied_of(db, self._path)  # the first look: what the transaction will see
        except BaseException:
            db.close()
            raise
        return SqliteView(self._path.parent, db, applied)

    def restore(self, reader: Reader) -> None:
        """Raises Damaged for what no SqliteMachine has written."""
        self._opened()
        if self._applied:
            raise ValueError("restore is for a machine that was opened in a new folder")
        sealed = SealedReader(reader, (MAGIC,))
        self.close()
        folder = self._path.parent
        for end in ("", "-wal", "-shm"):
            (folder / (FILE + end)).unlink(missing_ok=True)
        fill(self._path, sealed)
        self.open(folder)
        if self._applied != sealed.applied:
            raise Damaged(f"a snapshot of {sealed.applied} holds {self._applied}")

    # --- transactions

    def _begin_with(self, db: _Connection) -> None:
        """Make ready a connection that was just opened; afterwards a transaction is open."""
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            new = _number(db, "SELECT count(*) FROM sqlite_master") == 0
        except UnicodeDecodeError as error:  # of what SQLite says of a schema that is damaged
            raise Damaged(f"{self._path}: its schema is no text: {error}") from error
        if mode != "wal":
            raise sqlite3.OperationalError(f"the journal mode is {mode}: a network disk?")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")  # macOS: through the disk's cache, too
        self.connected(db)
        self._changes = -1
        self._ending = True
        db.set_authorizer(self._authorize)
        db.execute("BEGIN")
        self._ending = False
        db.guarded = True
        if new:
            db.execute(_MAKE_APPLIED)
            db.execute("INSERT INTO phx_applied VALUES (1, 0, ?)", (_crc(0),))
            self.create(db)
            self._end(db)
        elif (checked := is_checked(db)) is None:
            raise Damaged(f"{self._path}: no database of a SqliteMachine")
        elif not checked:
            self._add_checksum(db)
        self._applied = applied_of(db, self._path)

    def _add_checksum(self, db: _Connection) -> None:
        """To a database of an older phx, durably: all of it, or nothing. Raises Damaged."""
        found = _number(db, "SELECT instance FROM phx_applied WHERE typeof(instance) = 'integer'")
        if found is None or found < 0:
            raise Damaged(f"{self._path}: the number of the applied instance is damaged")
        db.execute(_ADD_CRC)
        db.execute("UPDATE phx_applied SET crc = ?", (_crc(found),))
        self._end(db)

    def _end(self, db: _Connection) -> None:
        """Commit, and begin anew: so a statement outside of a transaction cannot happen.

        BEGIN takes no lock and no snapshot before the next statement.
        """
        self._ending, db.guarded = True, False
        try:
            db.commit()
            self._changes = db.total_changes
            db.execute("BEGIN")
        finally:
            self._ending, db.guarded = False, True

    def _authorize(self, action: int, *_: object) -> int:
        # Asked when a statement is prepared. COMMIT and ROLLBACK of ours are never cached.
        if action == sqlite3.SQLITE_TRANSACTION and not self._ending:
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    def _in_transaction(self) -> _Connection:
        db = self._opened()
        db.check()
        return db

    def _opened(self) -> _Connection:
        if self._db is None:
            raise ValueError("this machine is not open")
        return self._db


class _Connection(sqlite3.Connection):
    """While it is guarded, it does nothing outside of a transaction.

    SQLite may roll back the open one by itself (a full disk, ON CONFLICT ROLLBACK). If whoever
    applies then caught the error and went on with the connection that he has in his hand, each
    statement would be durable by itself, before its instance is: and applied again from the log.
    """

    guarded = False

    def check(self) -> None:
        if self.guarded and not self.in_transaction:
            raise RuntimeError("the open transaction was rolled back: close, and open again")

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or _Cursor)

    def blobopen(self, *where: Any, **how: Any) -> Any:
        self.check()
        return super().blobopen(*where, **how)

    def execute(self, sql: str, /, *parameters: Any) -> Any:
        return self.cursor().execute(sql, *parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        return self.cursor().executemany(sql, parameters)

    def executescript(self, sql: str, /) -> Any:
        return self.cursor().executescript(sql)


class _Cursor(sqlite3.Cursor):
    connection: _Connection

    def execute(self, sql: str, /, *parameters: Any) -> Any:
        self.connection.check()
        return super().execute(sql, *parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        self.connection.check()
        return super().executemany(sql, parameters)

    def executescript(self, sql: str, /) -> Any:
        self.connection.check()
        return super().executescript(sql)


class SqliteView:
    """What a SqliteMachine had committed at one instance."""

    def __init__(self, folder: Path, db: sqlite3.Connection, applied: int) -> None:
        self._folder = folder
        self._db: sqlite3.Connection | None = db
        self._applied = applied

    def snapshot(self, writer: Writer, /) -> None:
        """Copy the database into a file beside it, without the GIL, and write that.

        It needs the room for the state once more until it returns.
        """
        if self._db is None:
            raise ValueError("the view is closed")
        descriptor, name = tempfile.mkstemp(prefix=COPY, dir=self._folder)
        try:
            with open(descriptor, "rb", buffering=0) as file:
                with closing(sqlite3.connect(name, isolation_level=None)) as copy:
                    copy.execute("PRAGMA synchronous = OFF")
                    copy.execute("PRAGMA journal_mode = OFF")
                    self._db.backup(copy, pages=PAGES_A_STEP)
                os.unlink(name)
                name = ""
                sealed = SealedWriter(writer, MAGIC, self._applied)
                while piece := file.read(PIECE_BYTES):
                    sealed.write(piece)
                sealed.finish()
        finally:
            if name:
                os.unlink(name)

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()


def _open_reader(path: Path) -> sqlite3.Connection:
    uri = f"{path.as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def is_checked(db: sqlite3.Connection) -> bool | None:
    """The number of the applied instance has a checksum; False: it is a database of an older phx,
    without one; None: it is no SqliteMachine's. Raises sqlite3.Error."""
    cursor = db.cursor()
    cursor.row_factory = None
    columns = {row[0] for row in cursor.execute(_COLUMNS)}
    return "crc" in columns if "instance" in columns else None


def applied_of(db: sqlite3.Connection, path: Path) -> int:
    """The instance of the last commit of a SqliteMachine's database.

    SQLite has no checksums, and another number here would have values applied twice, or never: so
    this one has its own. Raises Damaged, naming `path`, and sqlite3.Error.
    """
    cursor = db.cursor()
    cursor.row_factory = None
    found, crc = cursor.execute(_APPLIED).fetchone() or (None, None)
    if not isinstance(found, int) or found < 0 or crc != _crc(found):
        raise Damaged(f"{path}: the number of the applied instance is damaged")
    return found


def _crc(applied: int) -> int:
    return crc32(applied.to_bytes(8, "little"))


def _number(db: sqlite3.Connection, query: str) -> int | None:
    """The first column of the first row, whatever `connected` made of rows; None: no row."""
    cursor = db.cursor()
    cursor.row_factory = None
    row = cursor.execute(query).fetchone()
    return None if row is None else int(row[0])


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
