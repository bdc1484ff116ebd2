"""An apply that goes on though SQLite rolled its transaction back."""

import contextlib
import sqlite3

import pytest

from phx.durable.sqlite import SqliteMachine
from phx.types import Entry


class Stubborn(SqliteMachine):
    def create(self, db):
        db.execute("CREATE TABLE line (key INTEGER PRIMARY KEY, count INTEGER)")

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
        else:
            db.execute(add, (2,))


@pytest.mark.parametrize("way", [b"one", b"many", b"script", b"cursor"])
def test_nothing_is_durable_before_its_instance(tmp_path, way):
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
    machine.close()
