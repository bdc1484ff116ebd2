"""Measures rows, one after another, each with a cluster of its own.

A value counts when it was chosen, durable on a majority, applied at the node that took it, and
acknowledged to its caller. Clients run inside the measured processes and their work is part of the
figures. After each row every acknowledged value is accounted for on every node (see load.py); a row
that fails this is a finding.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from phx._version import __version__
from phx.bench.case import Case
from phx.bench.check import check
from phx.bench.limit_of import Limits, shares
from phx.bench.row import Row, measured_row
from phx.bench.shares import LARGE_CALLERS, large_clients, split
from phx.testing.loops import uvloop_found
from phx.testing.processes import Cluster, WorkerFailed, now_us

__all__ = ["DiskFull", "Options", "WorkerFailed", "run"]

PROPOSE_TIMEOUT_S = 30.0
CONVERGE_TIMEOUT_S = 120.0
READ_TIMEOUT_S = 600.0
ASK_TIMEOUT_S = 120.0
FREE_BYTES_MIN = 1 << 30  # with less than that left on the disk a row ends
LONG_S = 30
LONG_BYTES_PER_S = 100_000_000  # what a node may write to journal and store in a long row
JOURNAL_BYTES = 1_200_000_000


class DiskFull(Exception):
    """There is too little room for what was asked."""


class Progress(Protocol):
    """Where a run says how it stands."""

    def note(self, text: str) -> None: ...
    def update(self, text: str) -> None: ...


@dataclass(frozen=True)
class Options:
    """What to measure, and where."""

    cases: Sequence[Case]
    folder: Path | None = None
    limit: bool = False


def run(options: Options, progress: Progress) -> dict[str, Any]:
    """Measure every row; the whole result as JSON can carry it.

    Rows that were measured are not lost with one that fails: it is the last, and named in `failed`.

    Raises:
        DiskFull, LimitMissing: what was asked cannot be done here; nothing was left behind.
        WorkerFailed: of the first row, a process died or did not answer.
    """
    folder = options.folder
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for case in options.cases:
        _check_room(case, folder)
    limits = Limits(folder, progress.note) if options.limit else None
    environment = {
        "phx": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "fdatasync_p50_us": round(sync_floor_us(folder), 1),
    }
    rows: list[dict[str, Any]] = []
    failed = ""
    for number, case in enumerate(options.cases):
        case = replace(case, loop=_loop(case.loop))
        limit = limits.of(case) if limits is not None else {}
        place = folder / f"row{number + 1}" if folder is not None else None
        try:
            row = asdict(asyncio.run(_Bench(case, place, progress).measure()))
        except WorkerFailed as error:
            if not rows:
                raise
            failed = f"{case.label}: {error}"
            break
        row["of_limit"] = shares(row, limit)
        rows.append(row)
    return {
        "environment": environment,
        "limits": limits.found if limits is not None else [],
        "rows": rows,
        "failed": failed,
    }


class _Bench:
    """One row."""

    def __init__(self, case: Case, folder: Path | None, progress: Progress):
        self._case = case
        self._folder = folder
        self._progress = progress

    async def _placed(self, cluster: Cluster) -> dict[int, list[int]]:
        """Groups by their leaders, once every group is led by the node that it prefers: a process
        that came up late gets its leaderships a second or two later."""
        until = time.monotonic() + ASK_TIMEOUT_S
        while time.monotonic() < until:
            led = await cluster.led(ASK_TIMEOUT_S)
            nodes = sorted(led)
            if all(nodes[group % len(nodes)] == node for node in nodes for group in led[node]):
                return led
        raise WorkerFailed(f"leaders were not where they belong after {ASK_TIMEOUT_S:g} s")

    async def measure(self) -> Row:
        case = self._case
        async with Cluster(
            case.nodes,
            case.ids,
            case.machine,
            "phx.bench.worker",
            folder=self._folder,
            loop=case.loop,
            options=_options(case),
        ) as cluster:
            self._progress.note(f"{case.label}: starting {case.nodes} processes")
            await cluster.start()
            led = await self._placed(cluster)
            memory = await cluster.call("memory")
            before = await cluster.call("positions", ASK_TIMEOUT_S)
            batch, end_us = await self._start(cluster, led)
            await self._watch(cluster, end_us)
            results = await cluster.call("stop_load", PROPOSE_TIMEOUT_S + READ_TIMEOUT_S)
            converged = await cluster.converged(CONVERGE_TIMEOUT_S)
            finding = "" if converged else "nodes did not converge"
            finding = finding or await self._differ(cluster)
            finding = finding or await self._check(cluster, results, before)
            await cluster.close()
            return measured_row(case, batch, led, memory, results, finding)

    async def _start(self, cluster: Cluster, led: dict[int, list[int]]) -> tuple[int, int]:
        """Start the clients; values per call, and when the measured time ends."""
        case = self._case
        clients, batch = split(case, led)
        large = large_clients(case, led)
        callers = sum(sum(one.values()) for one in clients.values())
        every_s = callers * (batch or 1) / case.rate if case.rate else 0
        begin_us = now_us() + int((case.warmup + 0.2) * 1e6)
        end_us = begin_us + int(case.seconds * 1e6)
        if case.gil_s:
            at_us = begin_us + int((case.seconds - case.gil_s) / 2 * 1e6)
            await cluster[case.nodes].call("hold_gil", at_us=at_us, seconds=round(case.gil_s))
        if case.checkpoint_s:
            times = {"begin_us": begin_us, "end_us": end_us, "every_s": case.window_s}
            await cluster.call("alternate", ASK_TIMEOUT_S, **times)
        for node in cluster.ids:
            loads = [_load(clients[node], case.value_bytes, batch, every_s, case.reads)]
            if case.large_groups:
                each_s = case.large_groups * LARGE_CALLERS / case.large_rate
                loads.append(_load(large[node], case.large_bytes, 0, each_s))
            await cluster[node].call(
                "load",
                ASK_TIMEOUT_S,
                loads=loads,
                timeout_s=PROPOSE_TIMEOUT_S,
                measure_us=(begin_us, end_us),
            )
        return batch, end_us

    async def _watch(self, cluster: Cluster, end_us: int) -> None:
        last, last_us = 0, now_us()
        while now_us() < end_us + 100_000:
            await asyncio.sleep(1.0 if end_us - now_us() > 1_000_000 else 0.1)
            total = sum(one.progress.get("acknowledged", 0) for one in cluster.workers.values())
            at = now_us()
            rate = (total - last) * 1e6 / (at - last_us)
            last, last_us = total, at
            left = max(0, end_us - at) / 1e6
            self._progress.update(f"{self._case.label}: {rate:,.0f} values/s, {left:.0f} s left")
            if shutil.disk_usage(cluster.folder).free < FREE_BYTES_MIN:
                raise DiskFull(f"less than {FREE_BYTES_MIN >> 20} MiB are left in {cluster.folder}")

    async def _differ(self, cluster: Cluster) -> str:
        """What the chained digests say; "" when all nodes agree."""
        first, *rest = (await cluster.call("digests", ASK_TIMEOUT_S)).values()
        differing = [group for group in first if any(one[group] != first[group] for one in rest)]
        return f"replicas differ in groups {differing}" if differing else ""

    async def _check(
        self, cluster: Cluster, results: dict[int, Any], before: dict[int, Any]
    ) -> str:
        """Read every log back: "" when what was acknowledged is there, and applied."""
        self._progress.note("reading back every acknowledged value on every node")
        first = {group: min(one[group][1] for one in before.values()) + 1 for group in before[1]}
        timeout_s = READ_TIMEOUT_S + 20 * self._case.seconds
        found = await cluster.call("tallies", timeout_s, first=first)
        logs = {node: {g: one[:2] for g, one in groups.items()} for node, groups in found.items()}
        for node, groups in found.items():
            for group, (count, _, applied) in groups.items():
                if applied < count:
                    return f"node {node}, group {group}: {applied} of {count} values applied"
        clients = [load for result in results.values() for load in result["loads"]]
        return check(dict(enumerate(clients)), logs)


def _options(case: Case) -> dict[str, Any]:
    """Of the nodes' configuration, what is not as ever: all of the log is read back in the end."""
    if not case.checkpoint_s:
        return {"checkpoints": {"trim": False}}
    every_us = round(case.checkpoint_s * 1e6)
    by_time = {"interval_us": every_us, "interval_instances": 0, "interval_bytes": 0}
    return {"checkpoints": {**by_time, "trim": False}}


def _load(
    callers: dict[int, int], value_bytes: int, batch: int, every_s: float, reads: str = ""
) -> dict[str, Any]:
    return {
        "callers": callers,
        "value_bytes": value_bytes,
        "batch": batch,
        "every_s": every_s,
        "reads": reads,
    }


def _loop(loop: str) -> str:
    if loop == "auto":
        return "uvloop" if uvloop_found() else "asyncio"
    return loop


def _check_room(case: Case, folder: Path | None) -> None:
    """A long row begins only if the disk has room for what it may write."""
    if case.seconds + case.warmup <= LONG_S:
        return
    span_s = case.seconds + case.warmup
    wanted = int(case.nodes * (JOURNAL_BYTES + span_s * LONG_BYTES_PER_S))
    place = folder if folder is not None else Path(tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise DiskFull(
            f"{case.label}, {case.seconds:g} s: may write {wanted / 1e9:.0f} GB, "
            f"{free / 1e9:.0f} GB are free in {place}"
        )


def sync_floor_us(folder: Path | None, rounds: int = 200) -> float:
    """Median time of a bare 4 KiB overwrite and fdatasync where the nodes will write."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        block = os.urandom(4096)
        os.pwrite(file.fileno(), block * 64, 0)
        os.fsync(file.fileno())
        times = []
        for turn in range(rounds):
            began = time.perf_counter_ns()
            os.pwrite(file.fileno(), block, turn % 64 * 4096)
            getattr(os, "fdatasync", os.fsync)(file.fileno())
            times.append(time.perf_counter_ns() - began)
    return statistics.median(times) / 1000
