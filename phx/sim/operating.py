"""Whoever operates a simulated cluster: has members of groups replaced, step by step, by the rules
that a program has to keep (docs/design/membership.md, section 3), and looks every millisecond.

A node joins as a learner, by a change of its own, and becomes a voter when it has caught up; an id
that left a group is never used there again; a node that is a member of nothing any more is
switched off and deleted, in the moment when the last change is active, or left to run. Where a step
is refused it is tried again, until the act is over. What is asked is decided by what is decided in
the group, as if an operator knew it; a node says so only when it knows, and else there is a
conflict.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from phx.sim.altering import (
    LEARNER,
    VERDICTS,
    VOTER,
    change,
    ended,
    known,
    members,
    tell,
    voters,
    wipe,
)
from phx.sim.losing import lasting
from phx.sim.plan import Plan
from phx.sim.verdicts import Standing
from phx.sim.world import World

if TYPE_CHECKING:
    from phx.sim.stage import Stage

__all__ = [
    "ASKED",
    "REFRAINED",
    "Killing",
    "Operation",
    "fresh",
    "leader_of",
    "retire",
    "standings",
]

LOOK_US = 1_000
ASK_US = 30_000
MEMBERS_MAX = 7
ASKED = tuple("change " + verdict for verdict in VERDICTS)
"""Names in `Stage.asked`, which counts what was answered."""
REFRAINED = "change refrained from"
STAGES = ("asked", "proposed", "decided", "passed", "led", "active")
"""Of a change, in this order."""
KILL_LOOK_US = 150
KILL_LOOKS = 6_000
TOLD = 0.6
"""How likely somebody tells a node that joins who the members are."""

Roles = dict[int, int]


def leader_of(stage: Stage, group: int) -> int:
    """Who leads at this moment, and knows the newest members best; 0: nobody."""
    world = stage.world
    found = [node for node in world.leaders(group) if world.alive(node)]
    return max(found, key=lambda node: (known(world, node, group)["version"], -node), default=0)


def fresh(stage: Stage, group: int) -> list[int]:
    """Nodes that were never a member of the group, those first that do not run yet."""
    ever = members(stage.world, group)["ever"]
    found = [node for node in stage.nodes if node not in ever and node not in stage.gone]
    return sorted(found, key=lambda node: (node not in stage.asleep, node))


def retire(stage: Stage, node: int) -> bool:
    """Switch it off and delete it, if it is a member of nothing, and nobody needs it any more."""
    if node in stage.gone or node in stage.asleep:
        return False
    was = False
    for group in range(stage.plan.groups):
        now = members(stage.world, group)
        if node in now["roles"] or not now["active"]:
            return False
        was = was or node in now["ever"]
    created = stage.world.directory
    if created is not None and created.needs(node):
        return False
    if was:
        stage.gone.add(node)
        wipe(stage.world, node)
    return was


def begin_node(stage: Stage, node: int, groups: range, chance: Random) -> None:
    """It starts for the first time; of some groups it is told who the members are."""
    if node not in stage.asleep:
        return
    stage.asleep.discard(node)
    for group in groups:
        if chance.random() < TOLD and (source := leader_of(stage, group)):
            tell(stage.world, node, group, source)
    stage.world.start(node)


def ask(stage: Stage, group: int, node: int, roles: Roles, version: int) -> str:
    """What a node answers to a change; counted. Nobody asks for members whose majority is about
    to lose votes: no group could go on then. (Who has lost some, the leader has to know.)"""
    if not lasting(stage.world, group, voters(roles)):
        stage.asked[REFRAINED] += 1
        return REFRAINED
    said = "change " + VERDICTS[change(stage.world, node, group, version, roles)]
    stage.asked[said] += 1
    return said


def standings(world: World, plan: Plan, away: set[int]) -> list[Standing]:
    """Of all nodes that run; `away`: nodes that do not exist."""
    found = []
    first = range(1, dict(plan.limits)["members"] + 1)
    for node in range(1, plan.nodes + 1):
        for group in range(plan.groups) if world.running(node) else ():
            now, seen = members(world, group), known(world, node, group)
            roles = seen["roles"] or dict.fromkeys(first, VOTER)
            end = ended(world, node, group)
            found.append(
                Standing(
                    node, group, seen["version"], now["version"],
                    bool(seen["active"] or now["version"] == 1), node in now["roles"],
                    not end and (node in roles or seen["left"]), end,
                    bool(set(roles) - away - {node}),
                )
            )  # fmt: skip
    return found


class Operation:
    """A group is to have other members.

    Args:
        goal: from the roles that there are, those that there are to be; None: not (any more).
        wipes: nodes that left are deleted as soon as they may be.
        until_us: then it is given up.
        under_way: called with (node, group, version) when a node has taken a change.
    """

    def __init__(
        self,
        stage: Stage,
        group: int,
        goal: Callable[[Roles], Roles | None],
        chance: Random,
        until_us: int,
        *,
        wipes: bool,
        under_way: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.stage = stage
        self.group = group
        self.chance = chance
        self.until_us = until_us
        self.wipes = wipes
        self.under_way = under_way
        self._goal: Callable[[Roles], Roles | None] | None = goal
        self._wanted: Roles | None = None
        self._asked_us = 0
        self._left: set[int] = set()
        self.look()

    def look(self) -> None:
        """One look at the group, and what is to be done now."""
        world = self.stage.world
        if world.now_us >= self.until_us or self.stage.over:
            return
        now = members(world, self.group)
        if now["active"]:
            for node in sorted(self._left):
                if self.wipes and retire(self.stage, node):
                    self._left.discard(node)
            if not self._decide(now["roles"]):
                if not self._left or not self.wipes:
                    return
            elif world.now_us >= self._asked_us + ASK_US:
                self._step(now)
        world.call_at(world.now_us + LOOK_US, self.look)

    def _decide(self, roles: Roles) -> bool:
        """Whether there is anything left to do."""
        if self._goal is not None:
            self._wanted, self._goal = self._goal(roles), None
        return self._wanted is not None and self._wanted != roles

    def _step(self, now: dict[str, Any]) -> None:
        """Learners first, voters when they have caught up."""
        roles, wanted = now["roles"], self._wanted
        assert wanted is not None
        if gone := now["ever"] - set(roles):
            wanted = self._wanted = {n: role for n, role in wanted.items() if n not in gone}
        if VOTER not in wanted.values():
            self._wanted = None
            return
        self._asked_us = self.stage.world.now_us
        leader = leader_of(self.stage, self.group)
        if not leader:
            return
        missing = set(wanted) - set(roles)
        next_roles = {**roles, **dict.fromkeys(missing, LEARNER)} if missing else wanted
        self._left |= set(roles) - set(next_roles)
        said = ask(self.stage, self.group, leader, next_roles, now["version"] + 1)
        for node in sorted(missing):
            begin_node(self.stage, node, range(self.stage.plan.groups), self.chance)
        if said == ASKED[0] and self.under_way is not None and not missing:
            self.under_way(leader, self.group, now["version"] + 1)


class Killing:
    """Whoever is concerned dies when a change has come to a stage of the barrier.

    Args:
        at: of STAGES.
        after_us: so much later.
        power: not only the process.
    """

    def __init__(self, stage: Stage, at: int, after_us: int, down_us: int, power: bool) -> None:
        self.stage = stage
        self.at = at % len(STAGES)
        self.after_us = after_us
        self.down_us = down_us
        self.power = power
        self._looks = 0

    def watch(self, node: int, group: int, version: int) -> None:
        """The change to that version is under way at a node."""
        world = self.stage.world
        self._looks += 1
        victim = self._victim(node, group, version)
        if victim:
            world.call_at(world.now_us + self.after_us, lambda: self._kill(victim))
        elif self._looks < KILL_LOOKS and not self.stage.over:
            world.call_at(world.now_us + KILL_LOOK_US, lambda: self.watch(node, group, version))

    def _victim(self, node: int, group: int, version: int) -> int:
        """Who leads, or led, if the change has come so far."""
        world, stage = self.stage.world, STAGES[self.at]
        now = members(world, group)
        if stage == "asked" or (stage == "decided" and now["version"] >= version):
            return node
        if stage == "active" and now["version"] >= version and now["active"]:
            return leader_of(self.stage, group) or node
        if stage == "led":
            leader = leader_of(self.stage, group)
            return leader if leader and known(world, leader, group)["version"] >= version else 0
        if not world.running(node):
            return 0
        seen = known(world, node, group)
        passed = seen["version"] >= version
        if passed if stage == "passed" else passed or seen["proposed"]:
            return node if stage in ("proposed", "passed") else 0
        return 0

    def _kill(self, node: int) -> None:
        stage = self.stage
        if stage.over or not stage.world.running(node):
            return
        stage.down(node, min(stage.world.now_us + self.down_us, stage.plan.faults_end_us))
        stage.crash(node, self.power)
        stage.asked["change killed"] += 1
