"""How fast settled entries reach LMDB, fully synced: alone, and beside a loop that never rests.

Entries are written to a real journal, then settled from it as a node does: read in large stretches,
sorted by group, built into chunks, put and committed. The loop is saturated: a hundred tasks that
compute in Python and yield. The floor is a file that grows by the same bytes, synced as often.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phx._core.codec import encode_record
from phx._core.journal_door import Journal
from phx._core.memdisk import MemoryDisk
from phx._core.plan import SettlePlan
from phx._core.settler import plan_over
from phx.store import COMMIT_BYTES, Store

MIB = 1 << 20
SEGMENT_BYTES = 32 * MIB
TASKS = 100
RECORD_ACCEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement. ``loop_slowdown``: steps of the loop per second before to those during."""

    beside: str
    body_bytes: int
    groups: int
    entries: int
    mb_per_s: float
    entries_per_s: float
    cpu_us_per_entry: float
    chunks: int
    commits: int
    to_floor: float
    loop_slowdown: float | None


def write(journal: Journal, groups: range, bodies: Iterable[tuple[int, bytes]]) -> SettlePlan:
    """Write these (instance, body) of all groups, instance by instance; a plan for all of them."""
    items, batch, size = [], [], 0
    start = journal.next_lsn

    def append() -> None:
        while journal.prepare_spare():
            pass
        if batch:
            journal.append(b"".join(batch))
            journal.sync()

    for instance, body in bodies:
        for group in groups:
            record = encode_record(RECORD_ACCEPT, group, instance, 1, body)
            items.append((group, instance, start + size))
            batch.append(record)
            size += len(record)
        if size > MIB:
            append()
            start, size, batch = journal.next_lsn, 0, []
    append()
    items.sort()
    return plan_over(journal, items)


def lot(groups: range, bodies: Iterable[tuple[int, bytes]]) -> tuple[Journal, SettlePlan]:
    """The same in a journal in memory, which must outlive the plan over it."""
    journal = Journal(
        MemoryDisk(), create=True, segment_bytes=SEGMENT_BYTES, body_bytes_max=SEGMENT_BYTES // 4
    )
    return journal, write(journal, groups, bodies)


class Source:
    """A journal on disk with entries of all groups, instance by instance."""

    def __init__(self, folder: Path, groups: int) -> None:
        self._journal = Journal(
            folder, create=True, segment_bytes=SEGMENT_BYTES, body_bytes_max=SEGMENT_BYTES // 4
        )
        self._groups = groups
        self._through = 0

    def write(self, total_bytes: int, body_bytes: int) -> SettlePlan:
        """Write entries of about total_bytes of body; a plan for all of them."""
        body = os.urandom(body_bytes)
        first = self._through + 1
        self._through += max(1, total_bytes // body_bytes // self._groups)
        bodies = ((instance, body) for instance in range(first, self._through + 1))
        return write(self._journal, range(self._groups), bodies)

    def close(self) -> None:
        self._journal.close()


async def never_rest(steps: list[int], stop: threading.Event) -> None:
    while not stop.is_set():
        steps[0] += sum(range(200)) > 0
        await asyncio.sleep(0)


@contextmanager
def saturated(kind: str) -> Iterator[Callable[[], int]]:
    """A loop of that kind in a thread of its own, busy; gives a function that counts its steps."""
    steps = [0]
    stop = threading.Event()

    async def work() -> None:
        await asyncio.gather(*(never_rest(steps, stop) for _ in range(TASKS)))

    def run() -> None:
        if kind == "uvloop":
            import uvloop

            uvloop.run(work())
        else:
            asyncio.run(work())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: steps[0]
    finally:
        stop.set()
        thread.join()


def floor_mb_per_s(folder: Path, total_bytes: int) -> float:
    """A growing file, synced every COMMIT_BYTES."""
    piece = bytes(COMMIT_BYTES)
    path = folder / "floor"
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(max(1, total_bytes // COMMIT_BYTES)):
            file.write(piece)
            os.fdatasync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return max(1, total_bytes // COMMIT_BYTES) * COMMIT_BYTES / seconds / 1e6


def settle(store: Store, plan: SettlePlan, steps: Callable[[], int] | None) -> dict[str, Any]:
    before = steps() if steps is not None else 0
    began, cpu = time.perf_counter(), time.thread_time()
    stats = store.settle(plan)
    seconds = time.perf_counter() - began
    return {
        "entries": stats.entries,
        "mb_per_s": stats.entry_bytes / seconds / 1e6,
        "entries_per_s": stats.entries / seconds,
        "cpu_us_per_entry": (time.thread_time() - cpu) / stats.entries * 1e6,
        "chunks": stats.chunks,
        "commits": stats.commits,
        "steps_per_s": (steps() - before) / seconds if steps is not None else 0.0,
    }


def measure(folder: Path, beside: str, body_bytes: int, groups: int, total_bytes: int) -> Row:
    floor = floor_mb_per_s(folder, total_bytes)
    source = Source(folder / "journal", groups)
    store = Store.open(folder / "store", cluster=1, node=1, create=True)
    try:
        plan = source.write(total_bytes, body_bytes)
        slowdown = None
        if beside == "alone":
            found = settle(store, plan, None)
        else:
            with saturated(beside) as steps:
                time.sleep(0.3)
                before = steps()
                time.sleep(0.5)
                free = (steps() - before) / 0.5
                found = settle(store, plan, steps)
            slowdown = free / max(found["steps_per_s"], 1.0)
        del plan
    finally:
        store.close()
        source.close()
    found.pop("steps_per_s")
    return Row(
        beside=beside,
        body_bytes=body_bytes,
        groups=groups,
        loop_slowdown=slowdown,
        to_floor=found["mb_per_s"] / floor,
        **found,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=128, help="of bodies in each measurement")
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--body-bytes", default="130,1000,4000,10000")
    parser.add_argument("--beside", default="alone,asyncio,uvloop")
    parser.add_argument("--dir", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="write everything there")
    options = parser.parse_args()
    print(
        f"{'beside':8} {'body B':>7} {'MB/s':>7} {'entries/s':>11} {'CPU us':>7} {'chunks':>6} "
        f"{'commits':>7} {'floor':>6} {'loop':>6}"
    )
    rows = []
    for body_bytes in map(int, options.body_bytes.split(",")):
        for beside in options.beside.split(","):
            with tempfile.TemporaryDirectory(dir=options.dir) as folder:
                row = measure(Path(folder), beside, body_bytes, options.groups, options.mib * MIB)
            rows.append(row)
            loop = f"{row.loop_slowdown:5.2f}x" if row.loop_slowdown is not None else "     -"
            print(
                f"{row.beside:8} {row.body_bytes:7} {row.mb_per_s:7.0f} "
                f"{row.entries_per_s:11,.0f} {row.cpu_us_per_entry:7.3f} {row.chunks:6} "
                f"{row.commits:7} {row.to_floor:5.2f}x {loop}",
                flush=True,
            )
    if options.json is not None:
        data = [{name: getattr(row, name) for name in Row.__slots__} for row in rows]
        options.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
