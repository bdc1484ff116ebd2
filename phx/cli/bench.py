"""``phx bench``: how many values a second, and what one costs.

A value counts when it was chosen, durable on a majority, applied at the node that took it, and
acknowledged to its caller. Clients run inside the measured processes and their work is part of the
figures. After each row every acknowledged value is accounted for on every node (see load.py); a row
that fails this is a finding.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import phx
from phx.cli.load import SUM_MASK, quantile_us
from phx.cli.loops import uvloop_found
from phx.cli.report import Progress, number, print_table
from phx.testing.processes import Cluster, WorkerFailed, now_us

PROPOSE_TIMEOUT_S = 30.0
CONVERGE_TIMEOUT_S = 120.0
READ_TIMEOUT_S = 600.0
SUBSET_MAX = 12  # unknown outcomes whose every combination is tried
BATCH_MAX = 1000


@dataclass(frozen=True)
class Options:
    groups: list[int]
    value_bytes: int
    mode: str  # "propose", "propose_many"
    inflight: int  # values, over all groups and processes
    seconds: float
    nodes: int
    warmup: float
    batch: int  # values per propose_many; 0: half of a group's share
    at: str  # "leader", "any"
    folder: Path | None
    loop: str


@dataclass
class Row:
    """One measured cluster. Per-value figures are over all nodes."""

    groups: int
    mode: str
    inflight: int
    batch: int
    values_per_s: float
    p50_us: float
    p99_us: float
    values_per_sync: float
    cpu_ns_per_value: float
    group_values_per_s: dict[str, float]
    acknowledged: int
    measured: int
    rejected: int
    unknown: int
    verified: bool
    finding: str
    layers_ns_per_value: dict[str, float]  # threads: CPU; parts of the poll thread: time
    journal_bytes_per_value: float
    wire_bytes_per_value: float
    counters: dict[str, int]


def split(options: Options, led: dict[int, list[int]]) -> tuple[dict[int, dict[int, int]], int]:
    """Clients per node and group, and values per call, so that `inflight` values are open in all.

    A group's share is inflight / groups, the first groups taking what does not divide; with fewer
    values in flight than groups only so many groups are used.
    """
    total = sum(len(groups) for groups in led.values())
    batch = 0
    callers_total = options.inflight
    if options.mode == "propose_many":
        share = max(1, options.inflight // total)
        batch = options.batch or min(BATCH_MAX, max(1, share // 2))
        callers_total = max(1, options.inflight // batch)
    leader = {group: node for node, groups in led.items() for group in groups}
    order = sorted(leader, key=lambda group: (group % len(led), group))
    nodes = sorted(led)
    clients: dict[int, dict[int, int]] = {node: {} for node in nodes}
    for client in range(callers_total):
        group = order[client % total]
        # "any": the clients of one group go round the nodes
        turn = client // total + order.index(group) if options.at == "any" else 0
        node = nodes[turn % len(nodes)] if options.at == "any" else leader[group]
        clients[node][group] = clients[node].get(group, 0) + 1
    return clients, batch


class Bench:
    """Measures one row after another, each with a cluster of its own."""

    def __init__(self, options: Options, progress: Progress):
        self._options = options
        self._progress = progress

    async def run(self) -> list[Row]:
        return [await self._row(groups) for groups in self._options.groups]

    async def _row(self, groups: int) -> Row:
        options = self._options
        folder = options.folder / f"groups{groups}" if options.folder else None
        async with Cluster(
            options.nodes, groups, "tally", "phx.cli.worker", folder=folder, loop=options.loop
        ) as cluster:
            self._progress.note(f"{groups} groups: starting {options.nodes} processes")
            await cluster.start()
            clients, batch = split(options, await cluster.led())
            before = await cluster.call("positions")
            begin_us = now_us() + int((options.warmup + 0.2) * 1e6)
            end_us = begin_us + int(options.seconds * 1e6)
            for node, callers in clients.items():
                await cluster[node].call(
                    "load",
                    callers=callers,
                    value_bytes=options.value_bytes,
                    batch=batch,
                    timeout_s=PROPOSE_TIMEOUT_S,
                    measure_us=(begin_us, end_us),
                )
            await self._watch(cluster, groups, end_us)
            results = await cluster.call("stop_load", PROPOSE_TIMEOUT_S + READ_TIMEOUT_S)
            converged = await cluster.converged(CONVERGE_TIMEOUT_S)
            finding = "" if converged else "nodes did not converge"
            finding = finding or await self._differ(cluster)
            finding = finding or await self._check(cluster, results, before)
            await cluster.close()
            return self._measured(groups, batch, results, finding)

    async def _watch(self, cluster: Cluster, groups: int, end_us: int) -> None:
        last, last_us = 0, now_us()
        while now_us() < end_us + 100_000:
            await asyncio.sleep(1.0 if end_us - now_us() > 1_000_000 else 0.1)
            total = sum(one.progress.get("acknowledged", 0) for one in cluster.workers.values())
            at = now_us()
            rate = (total - last) * 1e6 / (at - last_us)
            last, last_us = total, at
            self._progress.update(f"{groups} groups: {number(rate)} values/s")

    async def _differ(self, cluster: Cluster) -> str:
        """What the chained digests say; "" when all nodes agree."""
        first, *rest = (await cluster.call("digests")).values()
        differing = [group for group in first if any(one[group] != first[group] for one in rest)]
        return f"replicas differ in groups {differing}" if differing else ""

    async def _check(
        self, cluster: Cluster, results: dict[int, Any], before: dict[int, Any]
    ) -> str:
        """Read every log back: "" when what was acknowledged is there, and applied."""
        self._progress.note("reading back every acknowledged value on every node")
        first = {group: min(one[group][1] for one in before.values()) + 1 for group in before[1]}
        found = await cluster.call("tallies", READ_TIMEOUT_S, first=first)
        logs = {node: {g: one[:2] for g, one in groups.items()} for node, groups in found.items()}
        for node, groups in found.items():
            for group, (count, _, applied) in groups.items():
                if applied < count:
                    return f"node {node}, group {group}: {applied} of {count} values applied"
        return check(results, logs)

    def _measured(
        self,
        groups: int,
        batch: int,
        results: dict[int, Any],
        finding: str,
    ) -> Row:
        options, seconds = self._options, self._options.seconds
        per_group = [0] * groups
        latency: dict[int, int] = {}
        grown: dict[str, int] = {}
        for result in results.values():
            for group, count in result["measured"].items():
                per_group[int(group)] += count
            for bucket, count in result["latency_ns"].items():
                latency[int(bucket)] = latency.get(int(bucket), 0) + count
            for name, count in result["counters"].items():
                grown[name] = grown.get(name, 0) + count
        measured = sum(per_group)
        each = max(measured, 1)
        total = sum(sum(result["count"].values()) for result in results.values())
        rates = [count / seconds for count in per_group]
        syncs = grown.get("journal.syncs", 0)
        cpu = sum(one["cpu_ns"] for one in results.values())
        layers = {name[7:]: ns for name, ns in grown.items() if name.startswith("cpu_ns.")}
        layers["python"] = max(0, cpu - layers.get("poll", 0) - layers.get("journal", 0))
        return Row(
            groups=groups,
            mode=options.mode,
            inflight=options.inflight,
            batch=batch,
            values_per_s=round(measured / seconds, 1),
            p50_us=round(quantile_us(latency, 0.5), 1),
            p99_us=round(quantile_us(latency, 0.99), 1),
            values_per_sync=round(measured * options.nodes / max(syncs, 1), 2),
            cpu_ns_per_value=round(cpu / each, 1),
            group_values_per_s={
                "min": round(min(rates), 1),
                "median": round(statistics.median(rates), 1),
                "max": round(max(rates), 1),
            },
            acknowledged=total,
            measured=measured,
            rejected=sum(result["rejected"] for result in results.values()),
            unknown=sum(len(u) for result in results.values() for u in result["unknown"].values()),
            verified=not finding,
            finding=finding,
            layers_ns_per_value={name: round(ns / each, 1) for name, ns in layers.items()},
            journal_bytes_per_value=round(grown.get("journal.bytes_written", 0) / each, 1),
            wire_bytes_per_value=round(grown.get("wire.bytes_sent", 0) / each, 1),
            counters=dict(sorted(grown.items())),
        )


def check(results: dict[int, Any], logs: dict[int, Any]) -> str:
    """Is each acknowledged value in every node's log, once, unchanged? "", or what is wrong.

    Values whose outcome is unknown may be there or not: the sums must fit for some choice of them.
    """
    wanted: dict[str, tuple[int, int]] = {}
    unknown: dict[str, list[int]] = {}
    for result in results.values():
        for group, count in result["count"].items():
            had_count, had_sum = wanted.get(group, (0, 0))
            wanted[group] = (had_count + count, had_sum + result["sum"][group])
            unknown.setdefault(group, []).extend(result["unknown"][group])
    for node, groups in logs.items():
        for group, (count, total) in groups.items():
            want_count, want_sum = wanted.get(group, (0, 0))
            extra = (count - want_count, (total - want_sum) & SUM_MASK)
            if not _explained(extra, unknown.get(group, [])):
                return f"node {node}, group {group}: the log does not hold what was acknowledged"
    return ""


def _explained(extra: tuple[int, int], unknown: list[int]) -> bool:
    """Is `extra` (count, sum of hashes) made of some of the unknown ones?"""
    if extra == (0, 0):
        return True
    if not 0 < extra[0] <= len(unknown):
        return False
    if extra == (len(unknown), sum(unknown) & SUM_MASK):
        return True
    reached = {(0, 0)}
    for one in unknown[:SUBSET_MAX]:
        reached |= {(count + 1, (total + one) & SUM_MASK) for count, total in reached}
    return extra in reached


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


def run(options: Options) -> dict[str, Any]:
    """Measure every row; the whole result as JSON can carry it."""
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        environment = {
            "phx": phx.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "loop": options.loop if options.loop != "auto" else _auto_loop(),
            "fdatasync_p50_us": round(sync_floor_us(options.folder), 1),
        }
        rows = asyncio.run(Bench(options, progress).run())
    settings = {
        "value_bytes": options.value_bytes,
        "seconds": options.seconds,
        "warmup": options.warmup,
        "nodes": options.nodes,
        "at": options.at,
    }
    return {"environment": environment, "settings": settings, "rows": [asdict(row) for row in rows]}


def _auto_loop() -> str:
    return "uvloop" if uvloop_found() else "asyncio"


def print_result(result: dict[str, Any]) -> None:
    """The readable table."""
    columns = [
        "groups",
        "values/s",
        "p50 us",
        "p99 us",
        "values/sync",
        "CPU ns/value",
        "per group min",
        "median",
        "max",
        "verified",
    ]
    rows = [
        [
            str(row["groups"]),
            number(row["values_per_s"]),
            number(row["p50_us"]),
            number(row["p99_us"]),
            number(row["values_per_sync"], 1),
            number(row["cpu_ns_per_value"]),
            number(row["group_values_per_s"]["min"]),
            number(row["group_values_per_s"]["median"]),
            number(row["group_values_per_s"]["max"]),
            "yes" if row["verified"] else row["finding"],
        ]
        for row in result["rows"]
    ]
    cost_columns = ["groups", "Python", "poll thread", "journal thread", "journal B", "wire B"]
    costs = [
        [
            str(row["groups"]),
            *(
                number(row["layers_ns_per_value"].get(one, 0))
                for one in ("python", "poll", "journal")
            ),
            number(row["journal_bytes_per_value"]),
            number(row["wire_bytes_per_value"]),
        ]
        for row in result["rows"]
    ]
    settings, first = result["settings"], result["rows"][0]
    title = (
        f"{settings['nodes']} nodes, {first['mode']}, {first['inflight']:,} in flight, "
        f"{settings['value_bytes']} B, {settings['seconds']:g} s, "
        f"bare fdatasync {result['environment']['fdatasync_p50_us']:g} us"
    )
    print_table(title, columns, rows)
    print_table("what a value costs, over all nodes: CPU ns and bytes", cost_columns, costs)


__all__ = ["Options", "Row", "WorkerFailed", "check", "print_result", "run", "split"]
