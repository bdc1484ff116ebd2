"""How long it takes to find the highest settled instance of a group in a large store.

`--entries` entries are settled, the store is closed and opened again, and then `bounds(group)` is
asked of groups by chance. What a lookup reads of the store's files is counted, too: transactions
that it begins.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from store_settle import lot
from store_trim import mib_of, some

from phx.store import Store


class Counted:
    """An environment of LMDB, and how many transactions were begun in it."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self.begun = 0

    def begin(self, *words: Any, **named: Any) -> Any:
        self.begun += 1
        return self._env.begin(*words, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


def fill(folder: Path, groups: range, entries: int, size: int) -> int:
    """Settle them; through which instance of each group."""
    through, body = 0, bytes(size)
    each = max(1, min(entries, 500_000) // len(groups))
    with closing(Store.open(folder, cluster=1, node=1, create=True)) as store:
        while through * len(groups) < entries:
            journal, plan = lot(groups, some(through, each, body))
            through += each
            store.settle(plan)
            del plan
            journal.close()
        print(mib_of(store))
    return through


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--lookups", type=int, default=100_000)
    options = parser.parse_args()
    groups, chance = range(options.groups), random.Random(1)
    with tempfile.TemporaryDirectory(prefix="phx-") as folder:
        place = Path(folder, "store")
        through = fill(place, groups, options.entries, options.size)
        began = time.perf_counter()
        store = Store.open(place, cluster=1, node=1)
        print(f"open   {(time.perf_counter() - began) * 1e3:.1f} ms")
        env = store._env = Counted(store._env)
        took = []
        try:
            for _ in range(options.lookups):
                group = chance.choice(groups)
                began = time.perf_counter()
                found = store.bounds(group)
                took.append(time.perf_counter() - began)
                assert found == (1, through)
        finally:
            store.close()
        took.sort()
        middle, last = took[len(took) // 2] * 1e6, took[-1] * 1e6
        print(f"bounds {len(took):,} lookups: median {middle:.2f} us, longest {last:.0f} us")
        print(f"       transactions begun meanwhile: {env.begun}")


if __name__ == "__main__":
    sys.exit(main())
