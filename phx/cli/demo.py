"""``phx demo``: three processes, many groups, one failure, and a search for what was lost.

What it claims to show: every value that a writer saw acknowledged is on every node after the
process that led most groups was killed (or cut off, or stopped) under load, and after every process
was restarted; replicas agree; and each group found another leader by itself.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phx.cli.ledger import ACKNOWLEDGED, REJECTED, UNKNOWN, LedgerReader
from phx.cli.report import Progress, number, print_table
from phx.testing.processes import Cluster, WorkerFailed, now_us

FAULTS = {
    "kill": "killed with SIGKILL",
    "drop": "cut off: its packets silently dropped",
    "stop": "stopped with SIGSTOP",
}
FAULT_AT, HEAL_AT = 0.35, 0.65  # of the writing time
PROPOSE_TIMEOUT_S = 30.0
CONVERGE_TIMEOUT_S = 60.0
# Of the file in which a process notes outcomes; only what is written takes space.
LEDGER_BYTES = 64 << 20
LEDGER_BYTES_PER_S = 16 * 500_000


@dataclass(frozen=True)
class Options:
    groups: int
    seconds: float
    folder: Path | None
    fault: str
    nodes: int = 3
    writers: int = 2  # per group and process
    loop: str = "auto"


@dataclass
class Result:
    """What the demo found; `findings` says in words what is wrong, if anything is."""

    acknowledged: int
    lost: int
    divergent_groups: int
    unknown_outcomes: int
    rejected: int
    in_flight_at_fault: int
    failover_ms: dict[str, float]
    values_per_s: float
    fsyncs: int
    groups: int
    nodes: int
    fault: str
    victim: int
    groups_led_by_victim: int
    groups_not_failed_over: int
    caught_up_ms: float | None  # None: it did not
    read_back: int
    seconds: float
    findings: list[str]

    @property
    def good(self) -> bool:
        return not self.findings


class Demo:
    """One run; `run` does it all."""

    def __init__(self, options: Options, progress: Progress):
        self._options = options
        self._progress = progress
        self._ledgers: dict[int, list[Path]] = {}
        self._findings: list[str] = []
        self._syncs_before = 0  # of processes that are gone
        self._done_before = 0

    async def run(self) -> Result:
        options = self._options
        async with Cluster(
            options.nodes,
            options.groups,
            "kv",
            "phx.cli.worker",
            folder=options.folder,
            loop=options.loop,
            proxies=options.fault == "drop",
        ) as cluster:
            self._cluster = cluster
            self._progress.note(f"starting {options.nodes} processes, {options.groups} groups each")
            await cluster.start()
            await cluster.led()
            times = await self._write_through_a_fault()
            divergent = await self._settle()
            fsyncs = self._syncs_before + self._total("syncs")
            self._progress.note("restarting every process")
            await cluster.close()
            await cluster.start()
            divergent |= await self._settle()
            read_back, lost = await self._read_back()
            return self._result(times, divergent, fsyncs, read_back, lost)

    # --- writing, and the fault

    async def _write_through_a_fault(self) -> Times:
        seconds, cluster = self._options.seconds, self._cluster
        for node in cluster.ids:
            await self._start_writers(node)
        began_us = now_us()
        await self._watch(began_us, FAULT_AT * seconds, "writing")
        led = await cluster.call("led")
        victim = max(cluster.ids, key=lambda node: len(led[node]))
        fault_us = now_us()
        await self._fault(victim)
        self._progress.note(
            f"node {victim}, leader of {len(led[victim])} groups, {FAULTS[self._options.fault]}"
        )
        await self._watch(began_us, HEAL_AT * seconds, f"writing without node {victim}")
        healed_us = now_us()
        await self._heal(victim)
        behind = asyncio.create_task(self._catch_up(victim, healed_us))
        await self._watch(began_us, seconds, f"writing, node {victim} is back")
        stopped_us = now_us()
        await cluster.call("stop_writing", PROPOSE_TIMEOUT_S + 10)
        caught_up_ms = await behind
        return Times(began_us, fault_us, stopped_us, victim, led[victim], caught_up_ms)

    async def _start_writers(self, node: int) -> None:
        paths = self._ledgers.setdefault(node, [])
        paths.append(self._cluster.scratch / f"ledger{node}.{len(paths)}")
        await self._cluster[node].call(
            "write",
            ledger=str(paths[-1]),
            bytes_max=LEDGER_BYTES + int(self._options.seconds * LEDGER_BYTES_PER_S),
            per_group=self._options.writers,
            timeout_s=PROPOSE_TIMEOUT_S,
        )

    async def _fault(self, victim: int) -> None:
        if self._options.fault == "kill":
            worker = self._cluster[victim]
            worker.kill()
            await worker.wait()
        elif self._options.fault == "stop":
            self._cluster[victim].pause()
        else:
            assert self._cluster.mesh is not None
            self._cluster.mesh.isolate(victim)

    async def _heal(self, victim: int) -> None:
        if self._options.fault == "kill":
            self._syncs_before += self._cluster[victim].progress.get("syncs", 0)
            self._done_before += self._cluster[victim].progress.get("acknowledged", 0)
            await self._cluster.start(victim)
            await self._start_writers(victim)
        elif self._options.fault == "stop":
            self._cluster[victim].resume()
        else:
            assert self._cluster.mesh is not None
            self._cluster.mesh.heal(victim)

    async def _catch_up(self, victim: int, healed_us: int) -> float | None:
        """Milliseconds until the victim has applied what the others had when it came back."""
        others = [node for node in self._cluster.ids if node != victim]
        wanted: dict[str, int] = {}
        for positions in [await self._cluster[node].call("positions") for node in others]:
            for group, (applied, _) in positions.items():
                wanted[group] = max(applied, wanted.get(group, 0))
        while (now_us() - healed_us) / 1e6 < CONVERGE_TIMEOUT_S:
            positions = await self._cluster[victim].call("positions")
            if all(positions[group][0] >= applied for group, applied in wanted.items()):
                return round((now_us() - healed_us) / 1000, 1)
            await asyncio.sleep(0.02)
        self._findings.append(f"node {victim} did not catch up")
        return None

    async def _watch(self, began_us: int, until_s: float, what: str) -> None:
        """Show progress until `until_s` seconds after the writing began."""
        while (left := until_s - (now_us() - began_us) / 1e6) > 0:
            await asyncio.sleep(min(0.2, left))
            done = self._done_before + self._total("acknowledged")
            elapsed = (now_us() - began_us) / 1e6
            self._progress.update(f"{elapsed:5.1f} s  {what}: {number(done)} values acknowledged")

    def _total(self, name: str) -> int:
        return sum(int(worker.progress.get(name, 0)) for worker in self._cluster.workers.values())

    # --- what became of it

    async def _settle(self) -> set[int]:
        """Wait until all nodes have applied the same; the groups in which they differ."""
        if not await self._cluster.converged(CONVERGE_TIMEOUT_S):
            self._findings.append(f"nodes did not converge in {CONVERGE_TIMEOUT_S:.0f} s")
        digests = await self._cluster.call("digests")
        first, *rest = digests.values()
        return {int(group) for group in first if any(one[group] != first[group] for one in rest)}

    async def _read_back(self) -> tuple[int, int]:
        """Look for every acknowledged value on every node: (looked for, not found)."""
        paths = [str(path) for paths in self._ledgers.values() for path in paths]
        self._progress.note("reading back every acknowledged value on every node")
        answers = await self._cluster.call("check", 600.0, ledgers=paths)
        for node, answer in answers.items():
            if answer["lost"]:
                self._findings.append(f"node {node} lost {answer['lost']}: {answer['examples']}")
        return (
            sum(answer["checked"] for answer in answers.values()),
            max(answer["lost"] for answer in answers.values()),
        )

    def _result(
        self, times: Times, divergent: set[int], fsyncs: int, read_back: int, lost: int
    ) -> Result:
        counted = count_outcomes(self._ledgers)
        gaps = longest_gaps_ms(self._survivors(times.victim), times)
        if divergent:
            self._findings.append(f"replicas differ in groups {sorted(divergent)}")
        if counted.acknowledged == 0:
            self._findings.append("nothing was acknowledged")
        if read_back != counted.acknowledged * self._options.nodes:
            self._findings.append("not every acknowledged value was looked for")
        silent = [group for group, (_, recovered) in gaps.items() if not recovered]
        if silent:
            self._findings.append(f"no other leader was found for groups {silent}")
        gap_list = [gap for gap, _ in gaps.values()] or [0.0]
        seconds = (times.stopped_us - times.began_us) / 1e6
        return Result(
            acknowledged=counted.acknowledged,
            lost=lost,
            divergent_groups=len(divergent),
            unknown_outcomes=counted.unknown,
            rejected=counted.rejected,
            in_flight_at_fault=self._options.writers * self._options.groups * self._options.nodes,
            failover_ms={
                "p50": round(statistics.median(gap_list), 1),
                "max": round(max(gap_list), 1),
            },
            values_per_s=round(counted.acknowledged / seconds, 1),
            fsyncs=fsyncs,
            groups=self._options.groups,
            nodes=self._options.nodes,
            fault=self._options.fault,
            victim=times.victim,
            groups_led_by_victim=len(times.led),
            groups_not_failed_over=len(silent),
            caught_up_ms=times.caught_up_ms,
            read_back=read_back,
            seconds=round(seconds, 2),
            findings=self._findings,
        )

    def _survivors(self, victim: int) -> list[Path]:
        return [path for node, paths in self._ledgers.items() if node != victim for path in paths]


@dataclass(frozen=True)
class Times:
    began_us: int
    fault_us: int
    stopped_us: int
    victim: int
    led: list[int]  # by the victim when the fault came
    caught_up_ms: float | None


@dataclass
class Counted:
    acknowledged: int = 0
    unknown: int = 0
    rejected: int = 0


def count_outcomes(ledgers: dict[int, list[Path]]) -> Counted:
    """Outcomes over all ledgers; a value in flight in a process that died is unknown."""
    counted = Counted()
    for path in (path for paths in ledgers.values() for path in paths):
        reader = LedgerReader(path)
        for one in reader.outcomes():
            counted.acknowledged += one.outcome == ACKNOWLEDGED
            counted.unknown += one.outcome == UNKNOWN
            counted.rejected += one.outcome == REJECTED
        counted.unknown += len(reader.in_flight())
    return counted


def longest_gaps_ms(ledgers: list[Path], times: Times) -> dict[int, tuple[float, bool]]:
    """Per group that the victim led: the longest time without an acknowledgement, and whether
    there was one after it.

    Over all writers of the surviving processes, from the last acknowledgement before the fault
    until the writers stopped.
    """
    acknowledged: dict[int, list[int]] = {group: [] for group in times.led}
    for path in ledgers:
        reader = LedgerReader(path)
        for one in reader.outcomes():
            group = reader.group_index(one.slot)
            if one.outcome == ACKNOWLEDGED and group in acknowledged:
                acknowledged[group].append(one.time_us)
    return {group: longest_gap_ms(at, times) for group, at in acknowledged.items()}


def longest_gap_ms(at_us: list[int], times: Times) -> tuple[float, bool]:
    at_us.sort()
    before = [at for at in at_us if at <= times.fault_us]
    after = [at for at in at_us if times.fault_us < at <= times.stopped_us]
    points = [before[-1] if before else times.began_us, *after, times.stopped_us]
    longest = max(later - earlier for earlier, later in itertools.pairwise(points))
    return longest / 1000, bool(after)


def run(options: Options) -> Result:
    """Run the demo in this process's own event loop."""
    with Progress() as progress:
        return asyncio.run(Demo(options, progress).run())


def print_result(result: Result) -> None:
    """The readable table."""
    rows = [
        ("values acknowledged", number(result.acknowledged)),
        ("lost", number(result.lost)),
        ("divergent groups", number(result.divergent_groups)),
        ("unknown outcomes", number(result.unknown_outcomes)),
        ("rejected", number(result.rejected)),
        ("read back, one by one", number(result.read_back)),
        (f"groups led by node {result.victim} at the fault", number(result.groups_led_by_victim)),
        ("failover p50, ms", number(result.failover_ms["p50"])),
        ("failover max, ms", number(result.failover_ms["max"])),
        ("caught up after, ms", number(result.caught_up_ms or 0)),
        ("values/s", number(result.values_per_s)),
        ("fsyncs, all nodes", number(result.fsyncs)),
    ]
    what = f"node {result.victim} {FAULTS[result.fault]}"
    title = f"{result.nodes} nodes, {result.groups} groups, {what}"
    print_table(title, ["", "found"], rows)


def as_json(result: Result) -> dict[str, Any]:
    return asdict(result)


__all__ = ["FAULTS", "Demo", "Options", "Result", "WorkerFailed", "as_json", "print_result", "run"]
