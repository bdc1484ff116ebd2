"""What only one kind of durable machine has."""

import contextlib
import io
import sqlite3
import threading

import lmdb
import pytest
from durable_lab import (
    LmdbSums,
    SqliteSums,
    digest_of,
    entry_of,
    expected,
    feed,
    restored,
    written,
)

import phx.durable
from phx.durable.lmdb import LmdbMachine
from phx.durable.sqlite import SqliteMachine
from phx.errors import Damaged
from phx.machine import StateMachine, has_snapshots
from phx.types import Entry
from phx.verify import content_findings

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_the_package_names_what_it_has():
    assert phx.durable.LmdbMachine is LmdbMachine
    assert phx.durable.SqliteMachine is SqliteMachine
    with pytest.raises(AttributeError):
        phx.durable.nothing  # noqa: B018


def test_who_has_snapshots():
    class Bare(StateMachine):
        def apply(self, entry):
            return None

    class Half(Bare):
        def snapshot(self, writer):
            pass

    assert not has_snapshots(Bare())
    assert not has_snapshots(Half())
    assert has_snapshots(LmdbSums())
    assert has_snapshots(SqliteSums())


class NoPatch:
    """An environment of a build whose copyfd takes no transaction."""

    def __init__(self, env):
        self._env = env

    def copyfd(self, fd, compact=False, txn=None):
        raise TypeError("no transaction")

    def __getattr__(self, name):
        return getattr(self._env, name)


def test_lmdb_without_its_patch_writes_every_record(tmp_path):
    machine = LmdbSums()
    machine.open(tmp_path / "one")
    machine._shared.env = NoPatch(machine._shared.env)
    data = written(machine, 300)
    assert data[:8] == b"PHXLMDB2"
    made = restored(LmdbSums, tmp_path / "two", data)
    assert (made.applied, made.digest()) == (300, expected(300))
    with made.reading() as txn:
        counts = dict(txn.cursor(db=made.table("counts")))
        assert sum(map(int, counts.values())) == 300
    made.close()
    assert made.open(tmp_path / "two") == 300
    made.close()
    machine.close()
    for at, bad in enumerate((data[:-1], data[:100], data[:60] + b"\xff" + data[61:])):
        with pytest.raises(Damaged):
            restored(LmdbSums, tmp_path / f"bad{at}", bad)
        assert LmdbSums().open(tmp_path / f"bad{at}") == 0


def test_this_lmdb_has_its_patch(tmp_path):
    machine = LmdbSums()
    machine.open(tmp_path / "one")
    assert written(machine, 3)[:8] == b"PHXLMDB1"
    machine.close()


def test_a_sound_machine_of_many_tables_has_no_findings(tmp_path):
    class Many(LmdbSums):
        tables = (*LmdbSums.tables, *(f"table {n}" for n in range(20)))

    machine = Many()
    machine.open(tmp_path / "many")
    feed(machine, 1, 10)
    machine.commit(10)
    machine.close()
    assert list(content_findings(tmp_path / "many" / "data.mdb")) == []


def test_lmdb_refuses_a_commit_from_elsewhere(tmp_path):
    machine = LmdbSums()
    machine.open(tmp_path / "one")
    feed(machine, 1, 1)
    raised = []

    def commit():
        try:
            machine.commit(1)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=commit)
    thread.start()
    thread.join(20)
    assert len(raised) == 1
    machine.commit(1)
    machine.close()


def test_lmdb_that_is_full_stops_and_goes_on_with_more_room(tmp_path):
    class Small(LmdbMachine):
        map_bytes = 1 << 20

        def apply(self, entry):
            self.txn.put(entry.value[:8], entry.value)

    class Large(Small):
        map_bytes = 16 << 20

    machine = Small()
    machine.open(tmp_path / "one")
    committed = 0

    def fill_it():
        nonlocal committed
        for instance in range(1, 1000):
            machine.apply(Entry(0, instance, b"%08d" % instance + b"x" * 4000))
            if instance % 50 == 0:
                machine.commit(instance)
                committed = instance

    with pytest.raises(lmdb.MapFullError):
        fill_it()
    machine.close()
    again = Large()
    assert again.open(tmp_path / "one") == committed > 0
    with again.reading() as txn:
        assert txn.stat(again.table("data"))["entries"] == committed
    again.close()


@pytest.mark.parametrize("tables", [(), ("phx",)])
def test_lmdb_tables_have_rules(tmp_path, tables):
    class Odd(LmdbSums):
        pass

    Odd.tables = tables
    with pytest.raises(ValueError, match="tables"):
        Odd().open(tmp_path)


def test_a_table_that_is_added_later_begins_empty(tmp_path):
    machine = LmdbSums()
    machine.open(tmp_path / "one")
    data = written(machine, 9)
    machine.close()

    class More(LmdbSums):
        tables = ("sums", "counts", "more")

    for folder in ("one", "two"):
        made = More()
        if made.open(tmp_path / folder) == 0:
            made.restore(io.BytesIO(data))
        assert (made.applied, made.digest()) == (9, expected(9))
        assert made.txn.get(b"1", db=made.table("more")) is None
        made.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda db: db.execute("COMMIT"),
        lambda db: db.execute("END"),
        lambda db: db.execute("ROLLBACK"),
        lambda db: db.commit(),
        lambda db: db.rollback(),
        lambda db: db.executescript("SELECT 1"),
        lambda db: db.__enter__() and db.__exit__(None, None, None),
    ],
)
def test_sqlite_transactions_are_not_the_machines_to_end(tmp_path, call):
    machine = SqliteSums()
    machine.open(tmp_path)
    feed(machine, 1, 3)
    machine.commit(3)  # ours is prepared, and must not have left the way open
    feed(machine, 4, 5)
    with pytest.raises(sqlite3.Error):
        call(machine.db)
    machine.close()
    assert machine.open(tmp_path) == 3
    assert machine.digest() == expected(3)
    machine.close()


def test_sqlite_savepoints_are(tmp_path):
    machine = SqliteSums()
    machine.open(tmp_path)
    feed(machine, 1, 3)
    machine.db.execute("SAVEPOINT try")
    feed(machine, 50, 60)
    machine.db.execute("ROLLBACK TO try")
    machine.db.execute("RELEASE try")
    machine.commit(3)
    machine.close()
    assert machine.open(tmp_path) == 3
    assert machine.digest() == expected(3)
    machine.close()


def test_what_sqlite_rolled_back_is_never_called_applied(tmp_path):
    class Unique(SqliteSums):
        def create(self, db):
            super().create(db)
            db.execute("CREATE TABLE once (key INTEGER PRIMARY KEY ON CONFLICT ROLLBACK)")

    machine = Unique()
    machine.open(tmp_path)
    feed(machine, 1, 3)
    machine.commit(3)
    feed(machine, 4, 5)
    machine.db.execute("INSERT INTO once VALUES (1)")
    with pytest.raises(sqlite3.IntegrityError):
        machine.db.execute("INSERT INTO once VALUES (1)")
    # A machine that takes that for an expected failure is stopped all the same.
    with pytest.raises(RuntimeError):
        feed(machine, 6, 6)
    with pytest.raises(RuntimeError):
        machine.commit(6)
    machine.close()
    assert machine.open(tmp_path) == 3
    assert machine.digest() == expected(3)
    machine.close()


class Stubborn(SqliteMachine):
    """Goes on though SQLite rolled its transaction back."""

    def create(self, db):
        db.execute("CREATE TABLE line (key INTEGER PRIMARY KEY, count INTEGER)")
        db.execute("CREATE TABLE piece (bytes BLOB)")
        db.execute("INSERT INTO piece VALUES (zeroblob(4))")

    def apply(self, entry):
        db = self.db
        with contextlib.suppress(sqlite3.IntegrityError):
            db.execute("INSERT OR ROLLBACK INTO line VALUES (1, 1)")
        add = "INSERT INTO line VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET count = count + 1"
        if entry.value == b"many":
            db.executemany(add, [(2,)])
        elif entry.value == b"script":
            db.executescript(add.replace("?", "2"))
        elif entry.value == b"cursor":
            db.cursor().execute(add, (2,))
        elif entry.value == b"blob":
            with db.blobopen("piece", "bytes", 1) as blob:
                blob.write(b"oops")
        else:
            db.execute(add, (2,))


@pytest.mark.parametrize("way", [b"one", b"many", b"script", b"cursor", b"blob"])
def test_nothing_after_a_roll_back_is_durable_before_its_instance(tmp_path, way):
    machine = Stubborn()
    assert machine.open(tmp_path) == 0
    machine.apply(Entry(0, 1, b"one"))
    machine.commit(1)
    with pytest.raises(RuntimeError, match="rolled back"):
        machine.apply(Entry(0, 2, way))
    with pytest.raises(RuntimeError, match="rolled back"):
        machine.commit(2)
    machine.close()
    machine = Stubborn()
    assert machine.open(tmp_path) == 1
    assert machine.db.execute("SELECT * FROM line").fetchall() == [(1, 1), (2, 1)]
    assert machine.db.execute("SELECT bytes FROM piece").fetchone() == (bytes(4),)
    machine.close()


def test_a_statement_of_a_kept_connection_is_in_a_transaction_too(tmp_path):
    machine = SqliteSums()
    machine.open(tmp_path)
    kept = machine.db
    machine.commit(1)
    kept.execute("INSERT INTO sums VALUES (1, 1, NULL)")
    machine.close()
    machine.open(tmp_path)
    assert machine.digest() == digest_of({})
    machine.close()


def test_connected_is_called_with_every_connection_that_applies(tmp_path):
    class Rows(SqliteSums):
        def connected(self, db):
            db.row_factory = lambda cursor, row: {"total": 7}
            db.create_function("seven", 0, lambda: 7, deterministic=True)

        def apply(self, entry):
            return self.db.execute("SELECT seven() AS total").fetchone()["total"]

    for _ in range(2):
        machine = Rows()
        machine.open(tmp_path)
        assert machine.apply(entry_of(1)) == 7
        machine.commit(machine.applied + 1)
        machine.close()
    assert Rows().open(tmp_path) == 2


def test_a_mistake_in_create_is_no_damage_and_leaves_a_new_folder(tmp_path):
    class Wrong(SqliteSums):
        def create(self, db):
            super().create(db)
            db.execute("CREATE TABLE (")

    class Commits(SqliteSums):
        def create(self, db):
            super().create(db)
            db.commit()

    for wrong in (Wrong, Commits):
        with pytest.raises(sqlite3.Error):
            wrong().open(tmp_path)
        machine = SqliteSums()
        assert machine.open(tmp_path / wrong.__name__) == 0
        machine.close()
    machine = SqliteSums()
    assert machine.open(tmp_path) == 0
    machine.close()


def test_sqlite_is_as_durable_as_it_can_be(tmp_path):
    machine = SqliteSums()
    machine.open(tmp_path)
    assert machine.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert machine.db.execute("PRAGMA synchronous").fetchone() == (2,)
    machine.close()


def test_what_a_killed_view_left_is_removed(tmp_path):
    (tmp_path / "view-abc").write_bytes(b"half a copy")
    machine = SqliteSums()
    machine.open(tmp_path)
    machine.close()
    assert not (tmp_path / "view-abc").exists()
