"""Plays the acts of a plan in a world: begins and ends them, and starts again what is down.

Acts may overlap: what is in force on a link, a disk or a clock is the worst of what the acts under
way ask for, and the end of one leaves the others in force.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from phx.sim.act_kind import Bursting
from phx.sim.acts import ACTS, RIGHT_PPM
from phx.sim.operating import ASKED, REFRAINED
from phx.sim.plan import Act, Plan
from phx.sim.world import World

__all__ = ["Stage"]

KEEP_US = 250_000
K = TypeVar("K", bound=Hashable)


class Layers(Generic[K]):
    """Settings that several acts ask for at a time, of links, disks or clocks."""

    def __init__(self, base: dict[str, int], apply: Callable[[K, dict[str, int]], None]) -> None:
        self.base = base
        self.apply = apply
        self.layers: dict[K, dict[Act, dict[str, int]]] = {}

    def put(self, target: K, act: Act, settings: dict[str, int]) -> None:
        """An act begins."""
        self.layers.setdefault(target, {})[act] = settings
        self.apply(target, self.worst(target, settings))

    def take(self, act: Act) -> None:
        """And ends, for every target."""
        for target, layers in self.layers.items():
            settings = layers.pop(act, None)
            if settings is not None:
                self.apply(target, self.worst(target, settings))

    def worst(self, target: K, names: dict[str, int]) -> dict[str, int]:
        """What is in force of the named settings. Of a limit (0: none) the least is the worst."""
        found = {}
        for name in names:
            asked = [one[name] for one in self.layers[target].values() if name in one]
            if not asked:
                found[name] = self.base.get(name, 0)
            elif name == "bytes_per_ms":
                found[name] = min(asked)
            elif name == "rate_ppm":
                found[name] = asked[-1]
            else:
                found[name] = max(*asked, self.base.get(name, 0))
        return found


class Stage:
    """A world with what is being done to it.

    Args:
        load: the workload, for acts that are load.
        spoil: called with (machine, how): it must raise at its next entry (how 0), or in the
            middle of a batch (how 1).
    """

    def __init__(
        self, world: World, plan: Plan, load: Bursting, spoil: Callable[[Any, int], None]
    ) -> None:
        self.world: World = world
        self.plan = plan
        self.load = load
        self.spoil_machine = spoil
        self.nodes = range(1, plan.nodes + 1)
        self.down_until = dict.fromkeys(self.nodes, 0)
        self.sick_until = dict.fromkeys(self.nodes, 0)
        self.damaged: set[int] = set()
        self.resigned: set[int] = set()
        self.failed: set[int] = set()
        """Nodes of which a machine stays failed, to the end, unless they die of something else."""
        self.asleep: set[int] = set()
        """Nodes that are to join, and were never started."""
        self.gone: set[int] = set()
        """Nodes that were deleted: they never start again."""
        self.asked = dict.fromkeys((*ASKED, REFRAINED, "change killed"), 0)
        """Changes of members that were asked for, by what was answered."""
        self.parted: dict[tuple[int, int], list[Act]] = {}
        self.begun = 0
        self.over = False
        self.links: Layers[tuple[int, int]] = Layers(
            dict(plan.link), lambda pair, settings: world.link(pair[0], pair[1], **settings)
        )
        self.paces: Layers[int] = Layers(
            dict(plan.pace), lambda node, settings: world.pace(node, **settings)
        )
        self.clocks: Layers[int] = Layers(
            {"rate_ppm": RIGHT_PPM},
            lambda node, settings: self.clock(node, rate_ppm=settings["rate_ppm"]),
        )
        self.clock_now = {node: [RIGHT_PPM, 0] for node in self.nodes}

    def open(self) -> None:
        """Settings of the plan, all nodes started, all acts on the agenda."""
        world, plan = self.world, self.plan
        pace, link = dict(plan.pace), dict(plan.link)
        first_members = dict(plan.limits).get("members", 0)
        for node in self.nodes:
            world.pace(node, **pace)
            for other in self.nodes:
                if other != node:
                    world.link(node, other, **link)
            if 0 < first_members < node:
                self.asleep.add(node)
            else:
                world.start(node)
        for act in plan.acts:
            kind = ACTS[act.kind]
            world.call_at(act.at_us, self.beginning(kind.begin, act))
            if act.until_us > act.at_us:
                world.call_at(act.until_us, self.ending(kind.end, act))
        world.call_at(plan.faults_end_us, self.close)
        world.call_at(KEEP_US, self.tick)

    def beginning(self, begin: Callable[[Stage, Act], None], act: Act) -> Callable[[], None]:
        def call() -> None:
            self.begun += 1
            begin(self, act)

        return call

    def ending(self, end: Callable[[Stage, Act], None], act: Act) -> Callable[[], None]:
        return lambda: end(self, act)

    def close(self) -> None:
        """Faults are over: everything heals, and what is down or unwell starts again."""
        self.over = True
        world, pace, link = self.world, dict(self.plan.pace), dict(self.plan.link)
        for node in self.nodes:
            world.heal(node)
            world.pace(node, **pace)
            for other in self.nodes:
                if other != node:
                    world.link(node, other, **link)
        for node in self.nodes:
            self.down_until[node] = self.sick_until[node] = 0
            stopped = world.running(node) and world.stopped_groups(node)
            if node in self.resigned or (stopped and node not in self.failed):
                self.crash(node, False)
        self.keep()

    def tick(self) -> None:
        """Whoever died in the middle of something is started again, by and by."""
        self.keep()
        self.world.call_at(self.world.now_us + KEEP_US, self.tick)

    # --- what acts ask for

    def down(self, node: int, until_us: int) -> None:
        """If it goes down, it stays so until then."""
        self.down_until[node] = max(self.down_until[node], until_us)

    def sick(self, node: int, until_us: int) -> None:
        """If it is poisoned, its process is not replaced until then."""
        self.sick_until[node] = max(self.sick_until[node], until_us)

    def crash(self, node: int, power: bool) -> None:
        if self.world.running(node):
            self.world.crash(node, power)

    def resign(self, node: int) -> None:
        """It leads no more until it is started again, at the latest when the faults are over."""
        if self.world.running(node):
            self.resigned.add(node)
            self.world.resign(node)

    def keep(self) -> None:
        """Start what is down and may be up; replace the process of what is poisoned."""
        now, world = self.world.now_us, self.world
        for node in self.nodes:
            if node in self.asleep or node in self.gone:
                continue
            if world.running(node):
                if world.alive(node) or self.sick_until[node] > now:
                    continue
                world.crash(node, False)
            elif self.down_until[node] > now:
                continue
            if node not in self.damaged or not world.damaged(node):
                world.start(node)
            else:
                self.start_damaged(node)

    def start_damaged(self, node: int) -> None:
        """It may refuse, and is left alone then."""
        if not self.world.start(node):
            self.down_until[node] = 1 << 62

    def part(self, a: int, b: int, act: Act) -> None:
        """They are apart, and know it, until `join` of the same act."""
        acts = self.parted.setdefault((min(a, b), max(a, b)), [])
        acts.append(act)
        if len(acts) == 1:
            self.world.apart(a, b, True)

    def join(self, act: Act) -> None:
        for (a, b), acts in self.parted.items():
            if act in acts:
                acts.remove(act)
                if not acts:
                    self.world.apart(a, b, False)

    def clock(
        self,
        node: int,
        *,
        rate_ppm: int | None = None,
        jump_us: int = 0,
        wall_us: int | None = None,
    ) -> None:
        """Change of a clock what is named, and leave the rest."""
        now = self.clock_now[node]
        now[0] = now[0] if rate_ppm is None else rate_ppm
        now[1] = now[1] if wall_us is None else wall_us
        self.world.clock(node, rate_ppm=now[0], jump_us=jump_us, wall_us=now[1])

    def spoil(self, node: int, group: int, how: int) -> None:
        self.spoil_machine(self.world.machine(node, group), how)
