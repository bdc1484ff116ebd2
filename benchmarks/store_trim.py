"""What it costs to trim the store, and what settling notices of it.

`--entries` entries are settled into a file that grows, then all floors are raised so that `--hold`
instances of each group are left, and the store is trimmed to the end. Then rounds: a lot of entries
is settled, into what was freed; and in every other one floors go up behind it and all is trimmed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store_settle import MIB, lot

from phx.store import Floor, Store


class Spent:
    """Wall clock and CPU of one call after another on this thread."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.cpu_s = 0.0

    @contextmanager
    def one(self) -> Iterator[None]:
        began, cpu = time.perf_counter(), time.thread_time()
        yield
        self.calls.append(time.perf_counter() - began)
        self.cpu_s += time.thread_time() - cpu

    def __str__(self) -> str:
        return (
            f"{len(self.calls):5} calls {sum(self.calls):7.2f} s, cpu {self.cpu_s:6.2f} s, "
            f"median {sorted(self.calls)[len(self.calls) // 2] * 1e3:.1f} ms, "
            f"longest {max(self.calls) * 1e3:.1f} ms"
        )


def some(through: int, count: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """The next instances behind `through`, all with this body."""
    return ((instance, body) for instance in range(through + 1, through + count + 1))


def mib_of(store: Store) -> str:
    stats = store.stats()
    return (
        f"{stats.file_bytes / MIB:.0f} MiB of file, {stats.value_bytes / MIB:.0f} of chunks, "
        f"{stats.kept_bytes / MIB:.0f} kept, {stats.entries:,} entries"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--body-bytes", type=int, default=100)
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--resting", type=int, default=0, help="groups whose floor stays at 1")
    parser.add_argument("--hold", type=int, default=1000)
    parser.add_argument("--lot", type=int, default=200_000, help="entries settled in one call")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--dir", type=Path, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    groups = range(options.groups)
    busy = groups[options.resting :]
    body = bytes(range(256)) * (options.body_bytes // 256 + 1)
    body = body[: options.body_bytes]
    per_lot = options.lot // options.groups
    through = 0
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        store = Store.open(Path(folder) / "store", cluster=1, node=1, create=True)
        settling, raising, trimming = Spent(), Spent(), Spent()
        try:
            while through * options.groups < options.entries:
                journal, plan = lot(groups, some(through, per_lot, body))
                through += per_lot
                with settling.one():
                    store.settle(plan)
                del plan
                journal.close()
            print("settle", settling, "|", mib_of(store))
            kept_from = through + 1 - options.hold
            with raising.one():
                store.raise_floors(dict.fromkeys(busy, Floor(kept_from, kept_from - 1)))
            print("raise ", raising)
            more = True
            while more:
                with trimming.one():
                    more = store.trim()
            print("trim  ", trimming, "|", mib_of(store))
            found = {trims: (Spent(), Spent()) for trims in (False, True)}
            for number in range(2 * options.rounds):
                trims = number % 2 == 1
                journal, plan = lot(groups, some(through, per_lot, body))
                through += per_lot
                with found[trims][0].one():
                    store.settle(plan)
                del plan
                journal.close()
                if trims:
                    kept_from = through + 1 - options.hold
                    with found[trims][1].one():
                        store.raise_floors(dict.fromkeys(busy, Floor(kept_from, kept_from - 1)))
                more = trims
                while more:
                    with found[trims][1].one():
                        more = store.trim()
                if number % 10 == 9:
                    print("round ", number + 1, "|", mib_of(store))
            for trims, (settles, steps) in found.items():
                print("settle", "and trim" if trims else "alone   ", settles)
                if trims:
                    print("trim           ", steps)
        finally:
            store.close()


if __name__ == "__main__":
    sys.exit(main())
