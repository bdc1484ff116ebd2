"""The same machine over LMDB and over SQLite, and what its state must be after any instance.

Its commands add to a sum under a key, so that a value that counts twice, or not at all, shows in
the state for ever.

    durable_lab.py KIND FOLDER [--instances N]

applies and commits from where FOLDER stands, one to five instances a commit, until it is told or
made to stop; says "opened APPLIED" and "committed APPLIED".
"""

import argparse
import io
import sqlite3
from hashlib import blake2b
from pathlib import Path

from phx.durable.lmdb import LmdbMachine
from phx.durable.sqlite import SqliteMachine
from phx.machine import StateMachine
from phx.types import Entry

KEYS = 97


def entry_of(instance: int) -> Entry:
    return Entry(0, instance, b"%d %d" % (instance * 31 % KEYS, instance))


def digest_of(sums: dict[int, int]) -> bytes:
    return blake2b(repr(sorted(sums.items())).encode(), digest_size=8).digest()


def expected(through: int) -> bytes:
    """The digest after the instances 1 .. through."""
    sums: dict[int, int] = {}
    for instance in range(1, through + 1):
        key = instance * 31 % KEYS
        sums[key] = sums.get(key, 0) + instance
    return digest_of(sums)


class LmdbSums(LmdbMachine):
    tables = ("sums", "counts")
    map_bytes = 64 << 20

    def apply(self, entry: Entry) -> int:
        key, amount = entry.value.split()
        total = int(self.txn.get(key) or 0) + int(amount)
        self.txn.put(key, b"%d" % total)
        counts = self.table("counts")
        self.txn.put(key, b"%d" % (int(self.txn.get(key, db=counts) or 0) + 1), db=counts)
        return total

    def digest(self) -> bytes:
        return digest_of({int(key): int(total) for key, total in self.txn.cursor()})


class SqliteSums(SqliteMachine):
    def create(self, db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE sums (key INTEGER PRIMARY KEY, total INTEGER, filler BLOB)")

    def apply(self, entry: Entry) -> int:
        key, amount = map(int, entry.value.split())
        self.db.execute(
            "INSERT INTO sums VALUES (?, ?, zeroblob(500)) "
            "ON CONFLICT (key) DO UPDATE SET total = total + excluded.total",
            (key, amount),
        )
        query = self.db.execute("SELECT total FROM sums WHERE key = ?", (key,))
        return int(query.fetchone()[0])

    def digest(self) -> bytes:
        return digest_of(dict(self.db.execute("SELECT key, total FROM sums").fetchall()))


KINDS: dict[str, type[LmdbSums] | type[SqliteSums]] = {"lmdb": LmdbSums, "sqlite": SqliteSums}


def feed(machine: StateMachine, first: int, last: int) -> None:
    machine.apply_batch([entry_of(instance) for instance in range(first, last + 1)])


def written(machine: LmdbSums | SqliteSums, through: int) -> bytes:
    """The bytes of a snapshot at this instance."""
    feed(machine, machine.applied + 1, through)
    machine.commit(through)
    out = io.BytesIO()
    machine.snapshot(out)
    return out.getvalue()


def restored(
    kind: type[LmdbSums] | type[SqliteSums], folder: Path, data: bytes
) -> LmdbSums | SqliteSums:
    """A machine in a new folder, restored; closed if that fails."""
    made = kind()
    try:
        assert made.open(folder) == 0
        made.restore(io.BytesIO(data))
    except BaseException:
        made.close()
        raise
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--instances", type=int, default=1 << 30)
    options = parser.parse_args()
    machine = KINDS[options.kind]()
    applied = machine.open(options.folder)
    print("opened", applied, flush=True)
    end = applied + options.instances
    while applied < end:
        last = applied + 1 + applied % 5
        feed(machine, applied + 1, last)
        machine.commit(last)
        applied = last
        print("committed", applied, flush=True)
    feed(machine, applied + 1, applied + 3)  # and not committed
    machine.close()


if __name__ == "__main__":
    main()
