"""One run: eras of faults under load, each ending in a search for what was lost.

An *era* is a new cluster on one kind of disk. Under the load of the clients it goes through
episodes of faults (schedule.py). After each episode everything is mended, and every group must take
a write within WRITABLE_WITHIN_S. At the end of the era every process is killed at once (where the
disks can, their power goes), all are started again, every key is read through the log, the nodes
must converge, and the verdict (verdict.py) is on all that the clients saw.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from phx.testing.processes import Cluster, WorkerFailed
from phx.testing.torture.book import Kept, Log, leftovers
from phx.testing.torture.clients import ACKNOWLEDGED, REJECTED, UNKNOWN, Clients, Record
from phx.testing.torture.disks import FSYNC_US, LAYOUTS, Machines, PowerDisk
from phx.testing.torture.nemesis import Nemesis
from phx.testing.torture.schedule import GROUPS, LONGEST_S, episodes
from phx.testing.torture.verdict import OWN, judge, pauses_us
from phx.verify import Report, examine

WORKER = "phx.testing.torture.worker"
WRITABLE_WITHIN_S = 30.0
"""After the faults every group takes a write within this time, the machine's slowness included."""
CONVERGED_WITHIN_S = 60.0
READ_WITHIN_S = 60.0
PROBE_TIMEOUT_S = 1.0
ERA_S = 180.0
TIMES = ("writable_ms", "change_ms", "pause_ms", "group_call_ms")
"""Of a result: each has a median and a maximum."""
SHORT_LONGEST_S = 2.5
RELAXED = (("none", 100_000), ("interval", 50_000), ("interval", 2_000_000))
MIB = 1 << 20
# Small, so that segments roll and chunks settle all the time, and who was away is beyond what the
# others have in memory. A journal holds twice what may be pending and four segments, so that a node
# that catches up does not run into its limit. Little log is held below checkpoints, so that who
# lags needs one. The second is so narrow that limits are reached, too.
OPTIONS: tuple[dict[str, Any], ...] = (
    {
        "checkpoints": {
            "interval_instances": 500,
            "interval_us": 0,
            "hold_instances": 100,
            "reserve_bytes": 0,
        },
        "journal": {
            "segment_bytes": 1 * MIB,
            "journal_bytes_max": 24 * MIB,
            "settle_bytes": 2 * MIB,
        },
        "limits": {
            "value_bytes_max": 64 << 10,
            "window": 256,
            "window_bytes": 4 * MIB,
            "batch_bytes_max": 128 << 10,
            "pending_bytes_max": 4 * MIB,
            "cache_bytes_max": 1 * MIB,
            "delivery_bytes_max": 1 * MIB,
            "peer_queue_bytes_max": 2 * MIB,
        },
    },
    {
        "checkpoints": {
            "interval_instances": 50,
            "interval_us": 1_000_000,
            "hold_instances": 20,
            "reserve_bytes": 0,
        },
        "journal": {
            "segment_bytes": 1 * MIB,
            "journal_bytes_max": 8 * MIB,
            "settle_bytes": 1 * MIB,
        },
        "limits": {
            "value_bytes_max": 64 << 10,
            "window": 8,
            "window_bytes": 256 << 10,
            "batch_bytes_max": 4 << 10,
            "frame_bytes_max": 16 << 10,
            "pending_bytes_max": 1 * MIB,
            "cache_bytes_max": 128 << 10,
            "delivery_bytes_max": 128 << 10,
            "peer_queue_bytes_max": 256 << 10,
        },
    },
)


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        minutes: under faults; the checks come on top.
        seed: of the schedule and the clients.
        faults: kinds, all of which can be had here.
        folder: where everything is kept; None: a temporary folder, which stays if there is a
            finding.
        changing: members change in each episode.
        creating: groups come and go.
        relaxing: most groups say what is only written; what that does not outlive hits one node at
            a time.
    """

    minutes: float
    seed: int
    nodes: int
    groups: int
    clients: int
    faults: tuple[str, ...]
    folder: Path | None = None
    changing: bool = False
    creating: bool = False
    relaxing: bool = False


@dataclass
class Result:
    """What a run found; `findings` says in words what is wrong, if anything is."""

    seed: int
    minutes: float
    nodes: int
    groups: int
    clients: int
    faults: dict[str, int]
    left_out: dict[str, str]
    eras: int = 0
    episodes: int = 0
    operations: int = 0
    acknowledged: int = 0
    unknown: int = 0
    rejected: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    keys: int = 0
    restarts: int = 0
    noticed: dict[str, int] = field(default_factory=dict)
    power_cuts: int = 0
    lost_sectors: int = 0
    writable_ms: dict[str, float] = field(default_factory=dict)
    changing: bool = False
    changes: int = 0
    replaced: int = 0
    change_ms: dict[str, float] = field(default_factory=dict)
    creating: bool = False
    relaxing: bool = False
    created: int = 0
    generations: int = 0
    group_calls: dict[str, int] = field(default_factory=dict)
    group_call_ms: dict[str, float] = field(default_factory=dict)
    pause_ms: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    folder: str | None = None
    findings: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.findings

    @property
    def again(self) -> str:
        """The command that runs the same schedule again."""
        return (
            f"phx torture --seed {self.seed} --minutes {self.minutes:g} --nodes {self.nodes} "
            f"--groups {self.groups} --clients {self.clients} "
            f"--faults {','.join(kind for kind in self.faults if kind not in GROUPS)}"
            + (" --members" if self.changing else "")
            + (" --created" if self.creating else "")
            + (" --relaxed" if self.relaxing else "")
        )


class Torture:
    """One run; `run` does it all. `note` is told what happens, `update` how far it is."""

    def __init__(
        self,
        options: Options,
        left_out: dict[str, str],
        note: Callable[[str], None],
        update: Callable[[str], None],
    ) -> None:
        self._options, self._note, self._update = options, note, update
        self._result = Result(
            options.seed, options.minutes, options.nodes, options.groups, options.clients,
            dict.fromkeys(sorted(options.faults), 0), left_out, changing=options.changing,
            creating=options.creating, relaxing=options.relaxing,
        )  # fmt: skip
        self._times: dict[str, list[float]] = {name: [] for name in TIMES}
        self._noticed: Counter[str] = Counter()
        self._began = time.monotonic()
        self._folder = options.folder or Path(tempfile.mkdtemp(prefix="phx-torture-"))

    async def run(self) -> Result:
        """All eras, or as many as it takes to find something."""
        result = self._result
        layouts = eras(self._options)
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            for number, layout in enumerate(layouts, 1):
                seconds = self._options.minutes * 60 / len(layouts)
                era = Era(self._options, number, layout, seconds, self._folder, result)
                await era.run(self._note, self._update, self._times, self._noticed)
                result.eras = number
                if result.findings:
                    break
            if not result.acknowledged and not result.findings:
                result.findings.append("nothing was acknowledged")
        finally:
            if result.findings:
                result.folder = str(self._folder)
                (self._folder / "findings.txt").write_text("\n".join(result.findings) + "\n")
            elif self._options.folder is None:
                shutil.rmtree(self._folder, ignore_errors=True)
        for name, times in self._times.items():
            median, most = statistics.median(times or [0.0]), max(times, default=0.0)
            setattr(result, name, {"p50": round(median, 1), "max": round(most, 1)})
        result.noticed = dict(sorted(self._noticed.items()))
        result.seconds = round(time.monotonic() - self._began, 1)
        return result


def eras(options: Options) -> list[str]:
    """The disks of each era: every kind that the faults need in turn, and plain ones."""
    needed = [LAYOUTS[kind] for kind in sorted(LAYOUTS, reverse=True) if kind in options.faults]
    wanted = list(dict.fromkeys(needed))
    count = max(len(wanted), round(options.minutes * 60 / ERA_S), 1)
    if count > len(wanted) or not wanted:
        wanted.append("plain")
    return [wanted[at % len(wanted)] for at in range(count)]


class Era:
    """A cluster from its birth to the verdict on it."""

    def __init__(
        self,
        options: Options,
        number: int,
        layout: str,
        seconds: float,
        folder: Path,
        result: Result,
    ) -> None:
        self._options, self._layout, self._seconds = options, layout, seconds
        self._number = number
        self._folder = folder / f"era{number}"
        self._result = result
        self._seed = f"{options.seed}/{number}"
        self._chance = random.Random(self._seed)
        self._kinds = [
            kind for kind in options.faults if LAYOUTS.get(kind, layout) == layout
        ]  # the faults that these disks can have
        self._began = time.monotonic()
        self._log: list[str] = []
        self._records: list[Record] = []

    async def run(
        self,
        note: Callable[[str], None],
        update: Callable[[str], None],
        times: dict[str, list[float]],
        noticed: Counter[str],
    ) -> None:
        """Adds to the result, the findings above all; to `times` and `noticed`, too."""
        self._update, self._times = update, times
        options, result = self._options, self._result
        note(f"era {self._number}: {self._layout} disks, {self._seconds:.0f} s, seed {self._seed}")
        self._folder.mkdir(parents=True)
        async with AsyncExitStack() as stack:
            fsync_us = self._chance.choice(FSYNC_US)
            self._machines = Machines(self._folder, self._layout, fsync_us)
            stack.callback(self._machines.end_all)
            for node in range(1, options.nodes + 1):
                self._machines.begin(node)
            stack.callback(self._keep)
            self._cluster = await stack.enter_async_context(
                Cluster(
                    options.nodes,
                    options.groups,
                    "",
                    WORKER,
                    folder=self._folder,
                    proxies=True,
                    options={
                        **OPTIONS[self._chance.randrange(len(OPTIONS))],
                        "directory": options.creating,
                        "durability": self._durability(),
                    },
                )
            )
            stack.callback(self._keep_logs)
            self._nemesis = Nemesis(
                self._cluster, self._machines, self._say, relaxing=options.relaxing
            )
            stack.push_async_callback(self._nemesis.end)
            self._book = self._nemesis.groups.book
            self._clients = Clients(self._cluster, options.clients, self._seed, self._book)
            self._records = self._clients.records
            stack.push_async_callback(self._clients.close)
            try:
                states = await self._live()
            except (WorkerFailed, OSError) as error:
                result.findings.append(f"failed: {error}")
                states = {}
            result.findings += self._nemesis.findings
            self._count(noticed)
            if states and not result.findings:
                update(f"looking at {len(self._records)} operations")
                result.findings += judge(self._records, states, list(self._book.lives.values()))

    async def _live(self) -> dict[int, dict[Log, Any]]:
        """Birth, faults, the end of all processes, and what the nodes hold after it."""
        nemesis, cluster, clients = self._nemesis, self._cluster, self._clients
        await nemesis.start(*cluster.ids)
        await self._writable("at the start")
        clients.start()
        await self._episodes()
        await clients.stop()
        if self._result.findings or nemesis.findings:
            return {}
        if self._layout == "power" and not self._options.relaxing:
            self._say("every node loses its power, and what was not synced")
            await nemesis.power_goes(cluster.ids, 0, 0.0)
        else:
            self._say("every process is killed")
            await nemesis.kill(*cluster.ids)
        await nemesis.start(*cluster.ids)
        await self._writable("after the restart of all")
        await self._agreed("after the restart of all")
        await nemesis.groups.resume_all()
        if failed := await clients.read_everything(READ_WITHIN_S):
            self._found(f"{len(failed)} keys could not be read in {READ_WITHIN_S} s: {failed[:5]}")
        if not await cluster.converged(CONVERGED_WITHIN_S):
            places = await cluster.call("positions")
            self._found(f"nodes did not converge in {CONVERGED_WITHIN_S} s: {places}")
        await self._created_converged()
        answers = await cluster.call("state", 120.0)
        if self._options.creating:
            await nemesis.groups.cycles()
        await nemesis.close(*cluster.ids)
        if self._options.creating:
            await self._examine()
        return {
            node: {(int(group), state.pop("generation")): state for group, state in groups.items()}
            for node, groups in answers.items()
        }

    def _durability(self) -> dict[str, Any]:
        """Of the configurations. (A group that syncs makes durable what others wrote before.)"""
        if not self._options.relaxing:
            return {}
        mode, interval_us = self._chance.choice(RELAXED)
        synced = range(0, self._options.groups, self._chance.choice((3, self._options.groups)))
        groups = {str(group): "sync" for group in synced if group}
        return {"mode": mode, "interval_us": interval_us, "groups": groups}

    async def _agreed(self, when: str) -> None:
        if self._options.creating:
            await self._nemesis.groups.agree(when)

    async def _created_converged(self) -> None:
        """Every member of a created group has applied all that any of them has."""
        until = time.monotonic() + CONVERGED_WITHIN_S
        while time.monotonic() < until:
            told = await self._cluster.call("places")
            apart = [
                life.log
                for life in self._book.there()
                if len(at := {tuple(told[n].get(str(life.group), ())) for n in life.members}) != 1
                or len(set((*at.pop(), 0, 0)[1:3])) != 1
            ]
            if not apart:
                return
            await asyncio.sleep(0.1)
        self._found(f"members did not converge in {CONVERGED_WITHIN_S} s: {apart}, {told}")

    async def _examine(self) -> None:
        """What the folders hold, now that all nodes are closed."""
        kept = {}
        for node in self._cluster.ids:
            folder = self._cluster.folder / f"node{node}"
            report = await asyncio.to_thread(examine, folder, whole=True)
            # (A bit that was flipped where nobody reads stays so.)
            for damage in report.findings if not self._nemesis.done["flip"] else ():
                self._found(f"verify: node {node}: {damage}")
            kept[node] = kept_of(report)
        for one in leftovers(self._book, kept):
            self._found(one)

    async def _episodes(self) -> None:
        options, result = self._options, self._result
        missed = [kind for kind in self._kinds if not result.faults[kind]]
        longest_s = SHORT_LONGEST_S if options.minutes <= 2 else LONGEST_S
        until = time.monotonic() + self._seconds
        for episode in episodes(
            self._seed,
            self._kinds,
            range(1, options.nodes + 1),
            first=missed,
            longest_s=longest_s,
            changing=options.changing,
            creating=options.creating,
            relaxing=options.relaxing,
        ):
            if time.monotonic() >= until or result.findings or self._nemesis.findings:
                break
            await self._quiet(self._nemesis.run(episode), str(episode))
            await self._agreed(f"after {episode}")
            await self._writable(f"after {episode}")
            await self._healthy()
            await self._quiet(asyncio.sleep(episode.quiet_s), "quiet")
            result.episodes += 1

    async def _quiet(self, doing: Any, what: str) -> None:
        """Show where things stand while something is done."""
        task = asyncio.ensure_future(doing)
        try:
            while not task.done():
                seconds = time.monotonic() - self._began
                count = len(self._records)
                self._update(f"era {self._number}, {seconds:5.1f} s, {count} operations: {what}")
                await asyncio.wait({task}, timeout=0.5)
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # --- what must hold as soon as the faults have ended

    async def _writable(self, when: str) -> None:
        """Every group takes a write, whoever is asked, within the time stated above."""
        began = time.monotonic()
        until = began + WRITABLE_WITHIN_S
        groups: dict[int, Collection[int]] = dict.fromkeys(self._cluster.groups, ())
        groups |= {one.group: one.members for one in self._book.there() if one.phase == "live"}
        stuck = await asyncio.gather(
            *(self._write(group, members, until) for group, members in groups.items())
        )
        took_s = time.monotonic() - began
        self._times["writable_ms"].append(took_s * 1000)
        self._say(f"writable in {took_s:.2f} s")
        errors = {
            group: error for group, error in zip(groups, stuck, strict=True) if error is not None
        }
        if errors:
            self._found(
                f"not writable: groups {[*errors]} took no write in {WRITABLE_WITHIN_S} s {when}: "
                f"{next(iter(errors.values()))}"
            )

    async def _write(self, group: int, members: Collection[int], until: float) -> str | None:
        """None, or why not; at its members, or at all nodes where none are named."""
        error = "no node runs"
        at = group
        while time.monotonic() < until:
            nodes = sorted(node for node in self._cluster.workers if not members or node in members)
            if not nodes:
                break
            at += 1
            worker = self._cluster[nodes[at % len(nodes)]]
            try:
                answer = await worker.call(
                    "operate", PROBE_TIMEOUT_S + 1, group=group, kind="put", key=f"{OWN}probe",
                    argument=["probe", 0], timeout_s=PROBE_TIMEOUT_S,
                )  # fmt: skip
            except WorkerFailed as failure:
                error = str(failure)
                await asyncio.sleep(0.05)
                continue
            if answer["outcome"] == ACKNOWLEDGED:
                return None
            error = f"node {worker.spec.node}: {answer['error']}"
            await asyncio.sleep(0.02)
        return error

    async def _healthy(self) -> None:
        for node, health in (await self._cluster.call("health")).items():
            if health["broken"]:
                self._found(f"broken: node {node} stopped groups {health['broken']}")
            if health["poisoned"]:
                self._found(f"node {node} is poisoned, and its disk did not fail")

    # --- keeping books

    def _say(self, text: str) -> None:
        self._log.append(f"{time.monotonic() - self._began:8.2f} {text}")

    def _found(self, text: str) -> None:
        self._say(text)
        self._result.findings.append(text)

    def _count(self, noticed: Counter[str]) -> None:
        result, nemesis = self._result, self._nemesis
        for kind, count in nemesis.done.items():
            result.faults[kind] += count
        noticed.update(nemesis.noticed)
        result.restarts += nemesis.restarts
        result.operations += len(self._records)
        outcomes = Counter(one.outcome for one in self._records)
        result.acknowledged += outcomes[ACKNOWLEDGED]
        result.unknown += outcomes[UNKNOWN]
        result.rejected += outcomes[REJECTED]
        answered = (one for one in self._records if one.outcome == ACKNOWLEDGED)
        reads = Counter(one.consistency for one in answered if one.consistency)
        result.reads = dict(sorted((reads + Counter(result.reads)).items()))
        result.keys += len({(one.log, one.key) for one in self._records})
        self._time_changes()
        groups = nemesis.groups
        result.created += len(self._book.lives)
        most = max((generation for _, generation in self._book.lives), default=0)
        result.generations = max(result.generations, most)
        result.group_calls = dict(sorted((groups.calls + Counter(result.group_calls)).items()))
        self._times["group_call_ms"] += [us / 1000 for us in groups.took_us]
        for disk in self._machines.disks.values():
            if isinstance(disk, PowerDisk):
                result.power_cuts += disk.cuts
                result.lost_sectors += disk.lost_sectors

    def _time_changes(self) -> None:
        """How long the changes took; and, where nothing else went wrong, how long a group took
        nothing meanwhile."""
        changes = self._nemesis.changes
        self._result.changes += len(changes.done)
        self._result.replaced += changes.replaced
        for one in changes.done:
            self._times["change_ms"].append((one.ended_us - one.began_us) / 1000)
        calm = [(one.began_us, one.ended_us) for one in changes.done if one.calm]
        self._times["pause_ms"] += [us / 1000 for us in pauses_us(self._records, calm)]

    def _keep_logs(self) -> None:
        """What a reader of a finding wants; before the cluster takes it away."""
        (self._folder / "torture.log").write_text("\n".join(self._log) + "\n")
        for path in self._cluster.scratch.glob("*.log"):
            shutil.copy(path, self._folder)

    def _keep(self) -> None:
        """The nodes' folders, if they go with their mounts; no process is left."""
        if self._result.findings or self._options.folder:
            self._keep_records()
            if self._layout != "plain" and self._result.findings:
                for disk in self._machines.disks.values():
                    if not disk.point.exists():
                        continue
                    kept = self._folder / f"kept-{disk.point.name}"
                    shutil.copytree(
                        disk.point, kept, ignore=shutil.ignore_patterns("filler", "control")
                    )

    def _keep_records(self) -> None:
        with open(self._folder / "history.jsonl", "w") as file:
            for one in self._records:
                file.write(json.dumps(asdict(one)) + "\n")


def kept_of(report: Report) -> dict[int, Kept]:
    """What a folder has of created groups, by id."""
    found = {}
    for group, row in report.created.items():
        one = report.groups.get(group)
        remains = [] if one is None else [f"checkpoint {at}" for at in one.checkpoints]
        if group in report.rows:
            remains.append(f"members {report.rows[group].membership}")
        if one is not None and (one.kept_from or 1) <= (one.settled_through or 0):
            remains.append(f"the log from {one.kept_from} through {one.settled_through}")
        found[group] = Kept(row.generation, row.gone, remains if row.gone else [])
    return found
