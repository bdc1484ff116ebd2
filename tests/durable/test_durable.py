"""Durable machines, driven by hand as a node would drive them."""

import io
import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing

import lmdb
import pytest
from durable_lab import (
    KINDS,
    LmdbSums,
    SqliteSums,
    digest_of,
    entry_of,
    expected,
    feed,
    restored,
    written,
)

from phx.durable import sqlite as sqlite_module
from phx.durable.files import SealedWriter
from phx.errors import Damaged
from phx.lmdb_files import LMDB_MAJOR
from phx.types import Entry
from phx.verify import content_findings

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def machine(kind, tmp_path):
    made = kind()
    made.open(tmp_path / "one" / "1")
    yield made
    made.close()


def test_a_new_folder_has_applied_nothing(kind, tmp_path):
    for _ in range(2):
        machine = kind()
        assert machine.open(tmp_path / "a" / "b") == 0
        assert machine.digest() == digest_of({})
        machine.close()


def test_what_was_committed_is_there_and_what_was_not_is_gone(kind, machine, tmp_path):
    feed(machine, 1, 7)
    machine.commit(7)
    feed(machine, 8, 9)
    assert machine.digest() == expected(9)
    machine.close()
    assert machine.open(tmp_path / "one" / "1") == 7
    assert machine.digest() == expected(7)
    feed(machine, 8, 12)
    machine.commit(12)
    machine.close()
    again = kind()
    assert again.open(tmp_path / "one" / "1") == 12
    assert again.digest() == expected(12)
    again.close()


def test_results_are_those_of_one_long_history(machine):
    sums = {}
    for instance in range(1, 300):
        key = instance * 31 % 97
        sums[key] = sums.get(key, 0) + instance
        assert machine.apply(entry_of(instance)) == sums[key]
        if instance % 7 == 0:
            machine.commit(instance)


def test_an_instance_without_anything_for_it_is_committed_too(kind, machine, tmp_path):
    machine.commit(4)
    machine.commit(4)
    with pytest.raises(ValueError):
        machine.commit(3)
    machine.close()
    assert machine.open(tmp_path / "one" / "1") == 4


def test_an_apply_that_raises_leaves_the_last_commit(machine, tmp_path):
    feed(machine, 1, 5)
    machine.commit(5)
    feed(machine, 6, 6)
    with pytest.raises(ValueError):
        machine.apply_batch([entry_of(7), Entry(0, 8, b"no number")])
    machine.close()
    assert machine.open(tmp_path / "one" / "1") == 5
    assert machine.digest() == expected(5)


def test_readers_see_the_last_commit_in_any_thread(machine):
    feed(machine, 1, 97)
    machine.commit(97)
    feed(machine, 98, 194)
    seen = []

    def look():
        with machine.reading() as view:
            if isinstance(machine, LmdbSums):
                sums = {int(key): int(total) for key, total in view.cursor()}
            else:
                sums = dict(view.execute("SELECT key, total FROM sums").fetchall())
            seen.append(digest_of(sums))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(20)
    assert seen == [expected(97)]


@pytest.mark.parametrize("use", ["commit", "freeze", "restore", "reading", "apply"])
def test_a_machine_that_is_not_open_says_so(kind, use):
    machine = kind()
    calls = {
        "commit": lambda: machine.commit(1),
        "freeze": machine.freeze,
        "restore": lambda: machine.restore(io.BytesIO()),
        "reading": lambda: machine.reading().__enter__(),
        "apply": lambda: machine.apply(entry_of(1)),
    }
    with pytest.raises(ValueError, match="not open"):
        calls[use]()
    machine.close()


def test_open_twice_is_refused(machine, tmp_path):
    with pytest.raises(ValueError, match="already"):
        machine.open(tmp_path / "two")


def test_opened_in_one_thread_and_used_in_another(kind, tmp_path):
    machine = kind()
    opening = threading.Thread(target=machine.open, args=(tmp_path / "m",))
    opening.start()
    opening.join(20)
    feed(machine, 1, 5)
    machine.commit(5)
    assert machine.digest() == expected(5)
    machine.close()


# --- snapshots


def test_a_snapshot_restores_into_a_new_folder(kind, machine, tmp_path):
    data = written(machine, 400)
    made = restored(kind, tmp_path / "two", data)
    assert made.applied == 400
    assert made.digest() == expected(400)
    feed(made, 401, 410)
    made.commit(410)
    made.close()
    assert made.open(tmp_path / "two") == 410
    assert made.digest() == expected(410)
    # and what was made of a snapshot makes one
    other = restored(kind, tmp_path / "three", written(made, 420))
    assert (other.applied, other.digest()) == (420, expected(420))
    for one in (made, other):
        one.close()
    assert machine.digest() == expected(400)


def test_what_was_restored_is_durable_before_anything_is_committed(kind, machine, tmp_path):
    restored(kind, tmp_path / "two", written(machine, 9)).close()
    again = kind()
    assert again.open(tmp_path / "two") == 9
    assert again.digest() == expected(9)
    again.close()


class Slow:
    """A writer at which a snapshot stands still until it is let on."""

    def __init__(self):
        self.data = bytearray()
        self.reached = threading.Event()
        self.go = threading.Event()

    def write(self, piece):
        self.data += piece
        self.reached.set()
        assert self.go.wait(30)


def test_a_snapshot_is_written_while_applying_goes_on(kind, machine, tmp_path):
    feed(machine, 1, 300)
    machine.commit(300)
    view, slow = machine.freeze(), Slow()
    thread = threading.Thread(target=view.snapshot, args=(slow,))
    thread.start()
    assert slow.reached.wait(20)
    for instance in range(301, 500):
        feed(machine, instance, instance)
        if instance % 20 == 0:
            machine.commit(instance)
    assert thread.is_alive()
    slow.go.set()
    thread.join(20)
    view.close()
    assert machine.digest() == expected(499)
    made = restored(kind, tmp_path / "two", bytes(slow.data))
    assert (made.applied, made.digest()) == (300, expected(300))
    made.close()


def test_applies_and_snapshots_race(kind, machine, tmp_path):
    views, copies, failed = [], [], []

    def write(view):
        out = io.BytesIO()
        try:
            view.snapshot(out)
            copies.append(out.getvalue())
        except BaseException as error:
            failed.append(error)

    instance = 0
    while len(views) < 12:
        feed(machine, instance + 1, instance + 10)
        instance += 10
        machine.commit(instance)
        if instance % 50 == 0:
            view = machine.freeze()
            views.append((instance, view, threading.Thread(target=write, args=(view,))))
            views[-1][2].start()
    for _, view, thread in views:
        thread.join(30)
        view.close()
    assert failed == []
    found = set()
    for at, data in enumerate(copies):
        made = restored(kind, tmp_path / f"copy{at}", data)
        assert made.digest() == expected(made.applied)
        found.add(made.applied)
        made.close()
    assert found == {at for at, _, _ in views}


def test_a_view_that_is_written_late_holds_what_was_committed_when_it_was_made(
    kind, machine, tmp_path
):
    feed(machine, 1, 300)
    machine.commit(300)
    feed(machine, 301, 310)  # not committed: not in the view
    view = machine.freeze()
    machine.commit(310)
    feed(machine, 311, 600)
    machine.commit(600)
    for copy in ("two", "three"):
        out = io.BytesIO()
        view.snapshot(out)
        made = restored(kind, tmp_path / copy, out.getvalue())
        assert (made.applied, made.digest()) == (300, expected(300))
        made.close()
    view.close()


def test_a_view_outlives_its_machine(kind, machine, tmp_path):
    feed(machine, 1, 100)
    machine.commit(100)
    view, slow = machine.freeze(), Slow()
    later = machine.freeze()
    thread = threading.Thread(target=view.snapshot, args=(slow,))
    thread.start()
    assert slow.reached.wait(20)
    machine.retire()
    began = time.monotonic()
    machine.close()
    assert time.monotonic() - began < 5  # it does not wait for the copy
    slow.go.set()
    thread.join(20)
    view.close()
    out = io.BytesIO()
    later.snapshot(out)
    later.close()
    for at, data in enumerate((bytes(slow.data), out.getvalue())):
        made = restored(kind, tmp_path / f"copy{at}", data)
        assert (made.applied, made.digest()) == (100, expected(100))
        made.close()


class Full:
    """A writer whose disk is full after so many bytes."""

    def __init__(self, room):
        self.room = room

    def write(self, piece):
        self.room -= len(piece)
        if self.room < 0:
            raise OSError("no room")


@pytest.mark.parametrize("room", [0, 20, 5000])
def test_a_writer_that_fails_ends_the_snapshot_and_nothing_else(machine, tmp_path, room):
    feed(machine, 1, 300)
    machine.commit(300)
    view = machine.freeze()
    with pytest.raises(OSError, match="no room"):
        view.snapshot(Full(room))
    out = io.BytesIO()
    view.snapshot(out)  # the view is as good as before
    view.close()
    assert len(out.getvalue()) > 5000
    feed(machine, 301, 302)
    machine.commit(302)
    assert [path.name for path in (tmp_path / "one" / "1").glob("view-*")] == []


def test_a_view_that_was_never_written_and_one_that_is_closed(machine):
    machine.commit(1)
    machine.freeze().close()
    view = machine.freeze()
    view.close()
    with pytest.raises(ValueError, match="closed"):
        view.snapshot(io.BytesIO())


def test_a_view_is_had_at_once(machine):
    feed(machine, 1, 5000)
    machine.commit(5000)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        view = machine.freeze()
        took.append(time.perf_counter() - began)
        view.close()
    assert min(took) < 0.010


def test_restore_is_for_a_new_folder_only(kind, machine, tmp_path):
    data = written(machine, 9)
    with pytest.raises(ValueError, match="new folder"):
        machine.restore(io.BytesIO(data))
    assert machine.digest() == expected(9)


def forget_the_checksum(folder):
    """As an older phx made it."""
    with closing(sqlite3.connect(folder / "state.db")) as db:
        db.execute("ALTER TABLE phx_applied DROP COLUMN crc")
        db.commit()


def test_a_database_of_an_older_phx_gets_its_checksum_or_stays_as_it_is(tmp_path, monkeypatch):
    folder = tmp_path / "one"
    machine = SqliteSums()
    machine.open(folder)
    feed(machine, 1, 40)
    machine.commit(40)
    machine.close()
    forget_the_checksum(folder)
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_module, "_crc", lambda applied: 1 // 0)  # between the two statements
        with pytest.raises(ZeroDivisionError):
            machine.open(folder)
    (found,) = content_findings(folder / "state.db")
    assert "cannot be checked" in found
    for _ in range(2):
        assert machine.open(folder) == 40
        assert machine.digest() == expected(40)
        machine.close()
        assert list(content_findings(folder / "state.db")) == []


@pytest.mark.parametrize(
    "changed", ["DELETE FROM phx_applied", "UPDATE phx_applied SET instance = 'x'"]
)
def test_a_database_of_an_older_phx_without_its_number_is_damage(tmp_path, changed):
    machine = SqliteSums()
    machine.open(tmp_path / "one")
    machine.close()
    forget_the_checksum(tmp_path / "one")
    with closing(sqlite3.connect(tmp_path / "one" / "state.db")) as db:
        db.execute(changed)
        db.commit()
    with pytest.raises(Damaged, match="applied instance"):
        machine.open(tmp_path / "one")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_another_applied_instance_than_was_committed_is_damage(kind, tmp_path):
    """As a flipped bit makes it: all else of the files is sound, and says so."""
    folder = tmp_path / "one"
    machine = kind()
    assert machine.open(folder) == 0
    feed(machine, 1, 40)
    machine.commit(40)
    machine.close()
    if kind is SqliteSums:
        with closing(sqlite3.connect(folder / "state.db")) as db:
            db.execute("UPDATE phx_applied SET instance = instance | 64")
            db.commit()
    else:
        with (
            lmdb.open(str(folder), max_dbs=3, lib_version=LMDB_MAJOR) as env,
            env.begin(write=True, db=env.open_db(b"phx")) as txn,
        ):
            packed = bytearray(txn.get(b"applied"))
            packed[0] ^= 64
            txn.put(b"applied", bytes(packed))
    (file,) = (one for one in folder.iterdir() if one.name in ("state.db", "data.mdb"))
    assert [one for one in content_findings(file) if "applied instance" in one]
    with pytest.raises(Damaged, match="applied instance"):
        machine.open(folder)
    machine.close()


def test_damaged_snapshots_are_refused(kind, tmp_path):
    source = kind()
    source.open(tmp_path / "source")
    data = written(source, 200)
    source.close()
    places = [0, 3, 7, 8, 15, 16, 17, 100, 4096, len(data) // 2, len(data) - 41, len(data) - 1]
    spoilt = [data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :] for at in places]
    spoilt += [data[:at] for at in (0, 5, 16, 40, 56, 4096, len(data) - 40, len(data) - 1)]
    spoilt += [data + b"\0", data[:16] + data[4112:], data + data]
    for at, bad in enumerate(spoilt):
        with pytest.raises(Damaged):
            restored(kind, tmp_path / f"copy{at}", bad)


def test_a_snapshot_of_the_other_kind_is_refused(tmp_path):
    for kind, other in ((LmdbSums, SqliteSums), (SqliteSums, LmdbSums)):
        source = kind()
        source.open(tmp_path / kind.__name__)
        data = written(source, 5)
        source.close()
        with pytest.raises(Damaged, match="kind"):
            restored(other, tmp_path / f"no {kind.__name__}", data)


def test_a_whole_snapshot_that_is_no_database_is_refused(kind, tmp_path):
    out = io.BytesIO()
    sealed = SealedWriter(out, b"PHXLMDB1" if kind is LmdbSums else b"PHXSQLT1", 5)
    sealed.write(os.urandom(20_000))
    sealed.finish()
    with pytest.raises(Damaged):
        restored(kind, tmp_path / "copy", out.getvalue())


def test_the_number_inside_must_be_the_one_outside(kind, machine, tmp_path):
    data = written(machine, 5)
    out = io.BytesIO()
    sealed = SealedWriter(out, data[:8], 6)
    sealed.write(data[16:-40])
    sealed.finish()
    with pytest.raises(Damaged, match="of 6 holds 5"):
        restored(kind, tmp_path / "copy", out.getvalue())


# --- files that are damaged


def data_file(kind, folder):
    return folder / ("data.mdb" if kind is LmdbSums else "state.db")


def filled(kind, folder):
    machine = kind()
    machine.open(folder)
    feed(machine, 1, 3000)
    machine.commit(3000)
    machine.close()
    return data_file(kind, folder)


def test_files_cut_short_or_overwritten_are_damage(kind, tmp_path):
    def cut(path):
        os.truncate(path, path.stat().st_size // 4096 // 2 * 4096)

    def overwrite(path):
        with open(path, "r+b") as file:
            file.write(b"\xa5" * 8192)

    for at, spoil in enumerate((cut, overwrite)):
        folder = tmp_path / str(at)
        spoil(filled(kind, folder))
        machine = kind()
        with pytest.raises(Damaged):
            machine.open(folder)
        machine.close()


def test_somebody_elses_database_is_damage(kind, tmp_path):
    if kind is LmdbSums:
        env = lmdb.Environment(str(tmp_path), max_dbs=2, lib_version=0)
        with env.begin(write=True) as txn:
            txn.put(b"key", b"value")
        env.close()
    else:
        db = sqlite3.connect(tmp_path / "state.db")
        db.execute("CREATE TABLE theirs (a)")
        db.close()
    machine = kind()
    with pytest.raises(Damaged):
        machine.open(tmp_path)
    machine.close()


def test_between_any_two_statements_the_files_are_those_of_one_commit(tmp_path):
    """What a kill there would leave: a copy of the files, opened."""
    live = SqliteSums()
    live.open(tmp_path / "live")
    seen = []

    def look(statement):
        copy = tmp_path / f"copy{len(seen)}"
        shutil.copytree(tmp_path / "live", copy)
        found = SqliteSums()
        applied = found.open(copy)
        seen.append((statement, applied, found.digest() == expected(applied)))
        found.close()

    feed(live, 1, 5)
    live.db.set_trace_callback(look)
    live.commit(5)
    feed(live, 6, 8)
    live.commit(8)
    live.db.set_trace_callback(None)
    live.close()
    assert sum(statement == "COMMIT" for statement, *_ in seen) == 2
    assert [one for one in seen if not one[2]] == []
    assert {applied for _, applied, _ in seen} == {0, 5, 8}


def damaged_or_whole(kind, folder, content):
    """A machine on these bytes opens as it was, or says that they are damaged; whether it opens."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ("data.mdb" if kind == "lmdb" else "state.db")).write_bytes(content)
    named = list(content_findings(folder / next(folder.iterdir()).name))
    again = KINDS[kind]()
    try:
        assert again.open(folder) == 40
    except Damaged:
        assert named
        return False
    finally:
        again.close()
    return True


def closed_at_forty(kind, folder):
    made = KINDS[kind]()
    made.open(folder)
    feed(made, 1, 40)
    made.commit(40)
    made.close()
    (file,) = (one for one in folder.iterdir() if one.suffix in (".mdb", ".db")
               and one.name != "lock.mdb")  # fmt: skip
    return file.read_bytes()


def test_whatever_bit_of_a_table_s_record_is_flipped_lmdb_s_words_for_it_are_damage(tmp_path):
    """Seen by the sweep over all bytes: MDB_INVALID of one table kept the whole node from starting,
    and `phx verify` did not look at the machine's own tables."""
    folder = tmp_path / "machine"
    sound = closed_at_forty("lmdb", folder)
    places = [at for at in range(len(sound)) if sound.startswith(b"sums", at)]
    assert places
    opened = []
    for place in places:
        for at in range(place - 8, place + 4 + 48):  # the head of the node, its name, the record
            for bit in range(8):
                content = bytearray(sound)
                content[at] ^= 1 << bit
                opened.append(damaged_or_whole("lmdb", folder, content))
    assert opened.count(False) > 8


def test_a_schema_that_is_no_text_any_more_is_damage(tmp_path):
    """So was seen that SQLite's words for it could not be decoded: `phx verify` ended there."""
    folder = tmp_path / "machine"
    sound = closed_at_forty("sqlite", folder)
    content = bytearray(sound)
    content[sound.index(b"CREATE TABLE sums") + len("CREATE ")] = 0xC1  # near "\xc1ABLE"
    assert not damaged_or_whole("sqlite", folder, content)
