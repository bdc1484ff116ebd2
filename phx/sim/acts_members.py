"""The acts of a plan by which members of groups change; rows of ACTS (`phx.sim.acts`).

What is to be is drawn when the act begins, from the members that there are then (`phx.sim.
operating`); none of them does anything where members cannot change.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from phx.sim.act_kind import ActKind, Args, Shape, between, nothing
from phx.sim.altering import LEARNER, VOTER, WITNESS, can_change, members, voters
from phx.sim.operating import MEMBERS_MAX, Killing, Operation, Roles, ask, fresh, leader_of
from phx.sim.plan import Act

if TYPE_CHECKING:
    from phx.sim.stage import Stage

__all__ = ["MEMBER_ACTS"]

Goal = Callable[[Roles], Roles | None]


# --- what is wanted


def joined(stage: Stage, group: int, chance: Random) -> Goal:
    """One or two more; voters, learners that stay so, or a witness."""

    def goal(roles: Roles) -> Roles | None:
        found = fresh(stage, group)[: chance.choice([1, 1, 2])]
        if not found or len(roles) + len(found) > MEMBERS_MAX:
            return None
        role = chance.choice([VOTER, VOTER, VOTER, LEARNER, WITNESS])
        return {**roles, **dict.fromkeys(found, role)}

    return goal


def left(stage: Stage, group: int, chance: Random) -> Goal:
    """One or two less, or all but one."""

    def goal(roles: Roles) -> Roles | None:
        nodes = list(roles)
        count = chance.choice([1, 1, 1, 2, len(nodes) - 1])
        away = set(chance.sample(nodes, min(count, len(nodes) - 1)))
        kept = {node: role for node, role in roles.items() if node not in away}
        return kept if VOTER in kept.values() else None

    return goal


def replaced(stage: Stage, group: int, chance: Random) -> Goal:
    """Some voters, or all of them at once, by as many others."""

    def goal(roles: Roles) -> Roles | None:
        old = voters(roles)
        count = chance.choice([1, 1, len(old), max(1, len(old) // 2)])
        new = fresh(stage, group)[:count]
        if not new or len(roles) + len(new) > MEMBERS_MAX + 3:
            return None
        away = set(chance.sample(old, len(new)))
        kept = {node: role for node, role in roles.items() if node not in away}
        return {**kept, **dict.fromkeys(new, VOTER)}

    return goal


def reshaped(stage: Stage, group: int, chance: Random) -> Goal:
    """The same nodes in other roles, some of them in none."""

    def goal(roles: Roles) -> Roles | None:
        made = {
            node: chance.choice([VOTER, VOTER, VOTER, LEARNER, LEARNER, WITNESS])
            for node in roles
            if chance.random() < 0.9
        }
        return made if VOTER in made.values() else None

    return goal


GOALS = (joined, left, replaced, reshaped)


# --- acts


def changing(which: int) -> ActKind:
    """`wipes`: who left is deleted as soon as that is allowed."""

    def make(chance: Random, shape: Shape) -> tuple[Args, int] | None:
        args = {
            "group": chance.randrange(shape.groups),
            "order": chance.randrange(1 << 30),
            "wipes": int(chance.random() < 0.6),
        }
        return args, between(chance, 2.0, 12.0)

    def begin(stage: Stage, act: Act) -> None:
        if can_change(stage.world):
            chance = Random(act.order)
            goal = GOALS[which](stage, act.group, chance)
            Operation(stage, act.group, goal, chance, act.until_us, wipes=bool(act.wipes))

    return ActKind(make, begin, nothing)


def retiring(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    args = {"node": 1 + chance.randrange(shape.nodes), "order": chance.randrange(1 << 30)}
    return args, between(chance, 4.0, 14.0)


def begin_retiring(stage: Stage, act: Act) -> None:
    """A node leaves all groups, each in favour of another one, and is deleted."""
    if not can_change(stage.world):
        return
    chance = Random(act.order)

    def without(group: int) -> Goal:
        def goal(roles: Roles) -> Roles | None:
            if act.node not in roles:
                return None
            kept = {node: role for node, role in roles.items() if node != act.node}
            if new := fresh(stage, group)[:1]:
                kept[new[0]] = roles[act.node]
            return kept if VOTER in kept.values() else None

        return goal

    for group in range(stage.plan.groups):
        Operation(stage, group, without(group), chance, act.until_us, wipes=True)


def rivalling(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    args = {
        "group": chance.randrange(shape.groups),
        "order": chance.randrange(1 << 30),
        "times": chance.choice([2, 3, 8]),
        "every_us": chance.choice([0, 500, 20_000, 300_000]),
    }
    return args, 0


def begin_rivalling(stage: Stage, act: Act) -> None:
    """Several changes at once, at whoever runs, some of them compared with another version."""
    if not can_change(stage.world):
        return
    chance = Random(act.order)

    def rival() -> None:
        now = members(stage.world, act.group)
        roles = chance.choice(GOALS[1:])(stage, act.group, chance)(now["roles"])
        nodes = [node for node in stage.nodes if stage.world.alive(node)]
        leader = leader_of(stage, act.group)
        if roles is None or not nodes or not set(roles) <= set(now["roles"]):
            return
        node = leader if leader and chance.random() < 0.8 else chance.choice(nodes)
        ask(stage, act.group, node, roles, now["version"] + chance.choice([1, 1, 1, 1, 0, 2]))

    for n in range(act.times):
        stage.world.call_at(stage.world.now_us + n * act.every_us, rival)


def killing(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    args = {
        "group": chance.randrange(shape.groups),
        "order": chance.randrange(1 << 30),
        "what": chance.randrange(len(GOALS)),
        "at": chance.randrange(6),
        "after_us": chance.choice([0, 0, 100, 300, 1_000, 5_000]),
        "down_us": between(chance, 0.05, 6.0),
        "power": chance.randrange(2),
        "wipes": int(chance.random() < 0.6),
    }
    return args, between(chance, 2.0, 10.0)


def begin_killing(stage: Stage, act: Act) -> None:
    """A change whose leader dies when it has come to some stage."""
    if can_change(stage.world):
        chance = Random(act.order)
        goal = GOALS[act.what](stage, act.group, chance)
        kill = Killing(stage, act.at, act.after_us, act.down_us, bool(act.power))
        Operation(
            stage, act.group, goal, chance, act.until_us, wipes=bool(act.wipes),
            under_way=kill.watch,
        )  # fmt: skip


def absent(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    args = {"group": chance.randrange(shape.groups), "order": chance.randrange(1 << 30)}
    return args, between(chance, 4.0, 15.0)


def begin_absent(stage: Stage, act: Act) -> None:
    """A member is away for long, and is none any more when it comes back."""
    if not can_change(stage.world):
        return
    chance = Random(act.order)
    there = voters(members(stage.world, act.group)["roles"])
    if len(there) < 3:
        return
    away = chance.choice(there)
    stage.down(away, act.until_us)
    stage.crash(away, False)

    def goal(roles: Roles) -> Roles | None:
        kept = {node: role for node, role in roles.items() if node != away}
        if new := fresh(stage, act.group)[:1]:
            kept[new[0]] = VOTER
        return kept if VOTER in kept.values() else None

    Operation(stage, act.group, goal, chance, act.until_us, wipes=False)


def end_absent(stage: Stage, act: Act) -> None:
    stage.keep()


MEMBER_ACTS: dict[str, ActKind] = {
    "join": changing(0),
    "leave": changing(1),
    "replace": changing(2),
    "reshape": changing(3),
    "retire": ActKind(retiring, begin_retiring, nothing),
    "rivals": ActKind(rivalling, begin_rivalling, nothing),
    "cut-change": ActKind(killing, begin_killing, nothing),
    "long-away": ActKind(absent, begin_absent, end_absent),
}
