"""One run: a plan played in a world with a workload, and judged at its end.

Guarantee: the same plan gives the same Outcome but for `cpu_s`, whatever ran before, in any
process.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

from phx.machine import StateMachine
from phx.sim import verdicts
from phx.sim.altering import can_change, counts, members, voters
from phx.sim.asking_load import AskingLoad
from phx.sim.directory import LIVE
from phx.sim.history import Operation
from phx.sim.losing import switches
from phx.sim.machine import SimMachine
from phx.sim.operating import standings
from phx.sim.plan import SECOND, STILL_US, Plan
from phx.sim.profiles import plan_of
from phx.sim.readers import Readers
from phx.sim.stage import Stage
from phx.sim.straying import astray, rebuild, unfound
from phx.sim.verdicts import Broken, Hosting, Probe, Replica
from phx.sim.violation import Violation
from phx.sim.workload import TOKEN_BYTES, is_list
from phx.sim.world import LIMITS, World

__all__ = ["Load", "Outcome", "play", "run_seed"]

REJOINS_US = 40 * SECOND
"""Within which, after the end, every replica is whole that was not: who takes no leadership is not
asked again for 15 seconds, whoever wants it then."""
MENDS_US = 20 * SECOND
"""Within which, after the end, what was found damaged in stores is mended."""
REPAIRS_US = 60 * SECOND
"""Within which, after the end, who is odd is found and made anew."""
FINDS_US = 15 * SECOND
"""After which somebody has it made anew where no majority says so: of three nodes one has no state,
and takes none that is in doubt."""
PROBE_TIMEOUT_US = 1_000_000
PROBE_AGAIN_US = 20_000
BALLOT_NODE_BITS = 20
GROUP_BITS = 24
"""Of a key of the workload, below its group."""


@dataclass(slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        plan: what was run.
        chosen_values: decided over all groups.
        faults: acts that began.
        counters: of everything, by name.
        digest: of everything that happened, 64 bits.
        cpu_s: of this process.
        steps: events simulated.
        violation: what did not hold, or None.
        trace: the last events before it, if the run was traced.
    """

    plan: Plan
    chosen_values: int = 0
    faults: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    digest: int = 0
    cpu_s: float = 0.0
    steps: int = 0
    violation: Violation | None = None
    trace: list[str] = field(default_factory=list)


class Load(Protocol):
    """What asks for values in a run, and judges at its end what came of it."""

    def open(self) -> None:
        """Put the first wake-ups on the agenda."""

    def burst(self, node: int, group: int, values: int, value_bytes: int) -> None:
        """An act: more at once than anybody waits for."""

    def spoil(self, machine: Any, how: int) -> None:
        """An act: that machine fails at its next entry."""

    def probe(self) -> bytes:
        """A value that any machine of the run takes."""

    def broken(self, machines: dict[int, Any]) -> Broken | None:
        """At the end; for each group a machine that has applied everything."""


class SimLoad(AskingLoad):
    """The simulator's own clients, and what their histories say.

    Attributes:
        reads: under a lease, of the same keys; they stand in the histories, too.
    """

    reads: Sequence[Operation] = ()

    def spoil(self, machine: Any, how: int) -> None:
        machine.spoil(how)

    def probe(self) -> bytes:
        return b"p\xff\xff\xff\xffprobe"

    def broken(self, machines: dict[int, Any]) -> Broken | None:
        operations = self.operations
        created = self.world.directory
        history = operations.history
        if created is not None:  # of those that are deleted nothing is left
            history = [one for one in history if cast(int, one.key) >> GROUP_BITS in machines]
        lists = {
            key: value
            for machine in machines.values()
            for key, value in machine.items.items()
            if is_list(key) and key != 0xFFFFFFFF
        }
        return (
            verdicts.settled(self.unheard())
            or verdicts.exactly_once(history, lists, TOKEN_BYTES)
            or verdicts.linearizable([*operations.history, *self.reads])
        )


class Probing:
    """A value for a group, again and again until it is applied, and of the next node where one says
    nothing: whoever lacks what no log has any more hears of it only with a checkpoint."""

    __slots__ = ("asked_us", "done_us", "group", "run")

    def __init__(self, run: Run, group: int) -> None:
        self.run = run
        self.group = group
        self.asked_us = run.world.now_us
        self.done_us: int | None = None
        self.ask(group)

    def ask(self, first: int) -> None:
        if self.done_us is not None:
            return
        world = self.run.world
        nodes = self.run.members(self.group)
        for number in range(1, len(nodes) + 1):
            node = nodes[(number + first) % len(nodes)]
            if world.alive(node) and not world.damaged(node):
                value = self.run.load.probe()
                attempt = Attempt(self, first)
                if not world.submit(node, self.group, [value], PROBE_TIMEOUT_US, [attempt]):
                    world.call_at(world.now_us + PROBE_TIMEOUT_US, attempt.unheard)
                    return
        self.again(world.now_us, first)

    def again(self, now_us: int, first: int) -> None:
        self.run.world.call_at(now_us + PROBE_AGAIN_US, partial(self.ask, first))


class Attempt:
    """One value of a Probing, at the first node from `first` on that takes it."""

    __slots__ = ("first", "heard", "op", "probing")

    def __init__(self, probing: Probing, first: int) -> None:
        self.op = 0
        self.probing = probing
        self.first = first
        self.heard = False

    def unheard(self) -> None:
        if not self.heard:
            self.heard = True
            self.probing.ask(self.first + 1)

    def done(self, now_us: int, result: Any) -> None:
        self.heard = True
        if self.probing.done_us is None:
            self.probing.done_us = now_us

    def lost(self, now_us: int) -> None:
        self.done(now_us, None)

    def failed(self, now_us: int, verdict: int) -> None:
        if not self.heard:
            self.heard = True
            self.probing.again(now_us, self.first)

    def died(self, now_us: int) -> None:
        self.failed(now_us, 0)


Machines = Callable[[int, int], StateMachine]
LoadFactory = Callable[[World, Plan], Load]


class Run:
    """A plan under way. `go` raises the Violation that it ends with."""

    def __init__(self, plan: Plan, machines: Machines, load: LoadFactory, tracing: bool) -> None:
        self.plan = plan
        self.nodes = range(1, plan.nodes + 1)
        self.world = World(
            plan.seed, plan.nodes, plan.groups, machines=machines, limits=dict(plan.limits)
        )
        self.world.tracing = tracing
        self.load = load(self.world, plan)
        self.readers = Readers(self.world, plan)
        self.stage = Stage(self.world, plan, self.load, self.load.spoil)
        self.probes: list[Probing] = []
        self.changing = can_change(self.world)
        self.repairs_before = 0

    def go(self) -> None:
        world, plan = self.world, self.plan
        self.stage.open()
        self.load.open()
        if isinstance(self.load, SimLoad):
            self.load.reads = self.readers.answered
            self.readers.open()
        world.call_at(plan.faults_end_us, self.probe)
        # (A handover just before the quiet time may still be told twice in it.)
        world.run(plan.duration_us - STILL_US - self.limit("resend_us"))
        before = self.rounds()
        unquiet = bool(astray(world))
        rejoining = {group for _, group in self.suspects()}
        world.run(plan.duration_us - STILL_US)
        resends = world.counters()["resends"]
        world.run(plan.duration_us)
        world.check()
        resends = world.counters()["resends"] - resends
        odd = set(astray(world))
        # Where nobody can know who is odd, somebody may wait for a state that is in no doubt.
        waiting = {group for _, group in odd}
        probes = [self.seen(one) for one in self.probes if one.group not in waiting]
        # (Who stops may have led; who is made anew may die for it.)
        late = self.repairs() > self.repairs_before
        # (A change may have been under way: its leader is elected anew.)
        times = 3 if late else 2 if self.changing else 1
        self.judge(verdicts.decides(probes, self.bound_us() * times))
        self.judge(verdicts.hosted(self.hostings()))
        replicas = [one for one in self.replicas() if (one.node, one.group) not in odd]
        decided = {group: world.decided_through(group) for group in self.groups()}
        whole = [
            one
            for one in replicas
            if not world.damaged(one.node) and one.group not in world.stopped_groups(one.node)
        ]
        sure = [one for one in whole if one.group not in waiting]
        self.judge(verdicts.caught_up(sure, decided))
        self.judge(verdicts.equal_digests(replicas))
        if self.changing:
            away = self.stage.gone | self.stage.asleep
            self.judge(verdicts.changed(standings(world, plan, away)))
        # (Its first ballot is above all that it can have promised: far above.)
        after = {group: top for group, top in self.rounds().items() if group not in rejoining}
        # (Who goes on from another state campaigns, and catches up.)
        self.judge(verdicts.quiet(before, after, 0 if unquiet or odd else resends, self.plan.nodes))
        self.judge(verdicts.bounded(world.memory(), self.bounds()))
        if odd:
            self.repair()
            whole = self.replicas()
        machines = {one.group: world.machine(one.node, one.group) for one in whole}
        self.judge(self.load.broken(machines))
        while self.suspects() and world.now_us < plan.duration_us + REJOINS_US:
            world.run(world.now_us + SECOND)
        self.judge(verdicts.rejoined(self.suspects()))
        while world.holes() and world.now_us < plan.duration_us + MENDS_US:
            world.run(world.now_us + SECOND)
        self.judge(verdicts.mended(world.holes()))

    def repair(self) -> None:
        """Who is odd is found when its group has come to the next agreed instance, and made anew;
        then all are equal."""
        world, plan = self.world, self.plan
        asked: set[tuple[int, int]] = set()
        while astray(world) and world.now_us < plan.duration_us + REPAIRS_US:
            if world.now_us >= plan.duration_us + FINDS_US:
                for one in unfound(world):
                    if one not in asked and rebuild(world, *one, False):
                        asked.add(one)
            for group in sorted({group for _, group in astray(world)}):
                for number in range(self.limit("agreed_every")):
                    world.call_at(world.now_us + number * PROBE_AGAIN_US, self.probing(group))
            world.run(world.now_us + SECOND)
        self.judge(verdicts.repaired(astray(world)))
        world.run(world.now_us + 2 * SECOND)
        replicas = self.replicas()
        decided = {group: world.decided_through(group) for group in self.groups()}
        self.judge(verdicts.caught_up(replicas, decided))
        self.judge(verdicts.equal_digests(replicas))
        self.judge(verdicts.decides(map(self.seen, self.probes), 2 * REPAIRS_US))

    def repairs(self) -> int:
        """How often somebody stopped as odd, or was to be made anew."""
        counters = self.world.counters()
        return counters["odd_found"] + counters["marks"]

    def probing(self, group: int) -> Callable[[], None]:
        def begin() -> None:
            Probing(self, group)

        return begin

    def judge(self, broken: Broken | None) -> None:
        if broken is not None:
            raise Violation(broken[0], broken[1], self.world.now_us)

    def probe(self) -> None:
        self.repairs_before = self.repairs()
        self.probes = [Probing(self, group) for group in self.groups()]

    def seen(self, probe: Probing) -> Probe:
        return Probe(probe.group, probe.asked_us, probe.done_us)

    def replicas(self) -> list[Replica]:
        world = self.world
        return [
            Replica(
                node,
                group,
                world.status(node, group)["applied_through"],
                world.machine(node, group).digest(),
            )
            for node in self.nodes
            if world.running(node)
            for group in self.groups()
            if node in self.members(group)
        ]

    def groups(self) -> list[int]:
        """Those that are there: always, or created and not deleted (by now)."""
        created = self.world.directory
        return [*range(self.plan.groups), *(created.those(LIVE) if created is not None else ())]

    def hostings(self) -> list[Hosting]:
        """Of all that were ever created, at the nodes that run."""
        world, directory = self.world, self.world.directory
        return [
            Hosting(
                node, fact.group, fact.phase, node in fact.nodes, world.runs(node, fact.group),
                world.host(node).hosting.left(fact.group),
            )
            for fact in (directory.newest() if directory is not None else ())
            for node in self.nodes
            if world.running(node)
        ]  # fmt: skip

    def members(self, group: int) -> list[int]:
        """By what is decided now."""
        return list(members(self.world, group)["roles"]) if self.changing else list(self.nodes)

    def voters(self, group: int) -> list[int]:
        if not self.changing:
            return list(self.nodes)
        return voters(members(self.world, group)["roles"])

    def suspects(self) -> list[tuple[int, int]]:
        world = self.world
        return [
            (node, group)
            for node in self.nodes
            if world.running(node)
            for group in self.groups()
            if world.runs(node, group)
            and world.status(node, group)["suspect"]
            and node in self.voters(group)
        ]

    def rounds(self) -> dict[int, int]:
        """The counter of the highest ballot that anybody promised, for each group."""
        world = self.world
        return {
            group: max(
                world.status(node, group)["promised"] >> BALLOT_NODE_BITS
                for node in self.nodes
                if world.runs(node, group)
            )
            for group in self.groups()
        }

    def limit(self, name: str) -> int:
        return dict(self.plan.limits).get(name, LIMITS[name])

    def bound_us(self) -> int:
        """Within which every group decides when the faults have stopped."""
        pace, link = dict(self.plan.pace), dict(self.plan.link)
        sync_us = max(pace["sync_us_max"], pace["slow_sync_us"]) + pace["write_us_max"]
        return verdicts.ELECTIONS_MAX * verdicts.election_time_us(
            self.limit("lease_us"), self.limit("election_us"), sync_us, link["delay_us_max"]
        )

    def bounds(self) -> dict[str, int]:
        """Of memory, when nothing is under way."""
        largest = self.limit("value_bytes_max") + self.limit("batch_bytes_max")
        return {"engine_bytes": self.limit("cache_bytes_max") + largest}


def play(
    plan: Plan,
    *,
    machines: Machines = lambda node, group: SimMachine(),
    load: LoadFactory = SimLoad,
    tracing: bool = False,
) -> Outcome:
    """Run a plan. A Violation is in the Outcome; any other exception is a mistake and is raised.

    Args:
        machines: called with (node, group) at each start of a node.
        load: makes what asks for values.
        tracing: keep the last events, for a reader. It changes nothing else.
    """
    start = time.process_time()
    gc.collect()  # what ran before may have left native memory to it, which is counted below
    outcome = Outcome(plan)
    run = Run(plan, machines, load, tracing)
    world = run.world
    blocks = world.memory()["blocks"]
    try:
        run.go()
    except Violation as violation:
        violation.at_us = violation.at_us or world.now_us
        outcome.violation = violation
        if tracing:
            outcome.trace = world.trace()
    outcome.counters = {
        **world.counters(),
        **counts(world),
        **switches(world),
        **{name.replace(" ", "_"): value for name, value in run.stage.asked.items()},
        "lease_reads": len(run.readers.answered),
        "lease_reads_asked": run.readers.asked,
    }
    outcome.chosen_values = world.decided_values()
    outcome.faults = run.stage.begun
    outcome.digest = world.digest()
    outcome.steps = world.steps
    world.close()
    broken = verdicts.given_back(blocks, world.memory()["blocks"])
    if broken is not None and outcome.violation is None:
        outcome.violation = Violation(broken[0], broken[1], world.now_us)
    outcome.cpu_s = time.process_time() - start
    return outcome


def run_seed(
    seed: int, profile: str = "default", *, plan: Plan | None = None, tracing: bool = False
) -> Outcome:
    """Run the plan of a seed, or another one.

    Args:
        seed, profile: make the plan, if none is given.
        plan: run this one: one that was shrunk, or kept.
        tracing: see `play`.
    """
    return play(plan_of(seed, profile) if plan is None else plan, tracing=tracing)
