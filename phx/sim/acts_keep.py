"""The acts of a plan that are about checkpoints; rows of ACTS (`phx.sim.acts`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import TYPE_CHECKING

from phx.sim.act_kind import (
    ActKind,
    Args,
    Shape,
    between,
    nothing,
    one,
    where_members_stay,
)
from phx.sim.plan import Act

if TYPE_CHECKING:
    from phx.sim.stage import Stage

__all__ = ["KEEP_ACTS"]

LOOK_US = 15_000
TAKE_US = 80_000
EFFECTS_MAX = 24
"""A checkpoint that is taken, and an older one dropped, has about so many on the disk."""


def some_group(chance: Random, shape: Shape) -> Args:
    return {"node": one(chance, shape), "group": chance.randrange(shape.groups)}


def taken(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    return some_group(chance, shape), 0


def begin_taken(stage: Stage, act: Act) -> None:
    if stage.world.running(act.node):
        stage.world.checkpoint(act.node, act.group)


def end_keep(stage: Stage, act: Act) -> None:
    stage.keep()


def crash_keep(power: int) -> ActKind:
    """It dies within a step of a checkpoint that is asked for now, or while it looks at them when
    it starts (`starting`): the one before it was cut short by the same crash."""

    def make(chance: Random, shape: Shape) -> tuple[Args, int] | None:
        args = {
            **some_group(chance, shape),
            "effect": 1 + chance.randrange(EFFECTS_MAX),
            "power": power,
            "starting": int(chance.random() < 0.2),
        }
        return args, between(chance, 0.1, 3.0)

    def begin(stage: Stage, act: Act) -> None:
        if not stage.world.running(act.node):
            return
        stage.world.checkpoint(act.node, act.group)
        stage.down(act.node, act.until_us)
        if not act.starting:
            stage.world.crash_at_keep(act.node, act.effect, bool(act.power))
            return
        # In the middle of a step or before the first: something is left in staging.
        stage.world.call_at(act.at_us + (act.until_us - act.at_us) // 4, lambda: again(stage, act))

    def again(stage: Stage, act: Act) -> None:
        stage.crash(act.node, bool(act.power))
        if not stage.world.running(act.node):
            stage.world.crash_at_keep(act.node, 1 + act.effect % 4, bool(act.power))

    return ActKind(make, begin, end_keep)


def full_keep(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    args = {**some_group(chance, shape), "bytes_free": chance.choice([1, 300, 1_500, 6_000])}
    return args, between(chance, 1.0, 8.0)


def begin_full_keep(stage: Stage, act: Act) -> None:
    stage.world.fill_keep(act.node, act.bytes_free)
    begin_taken(stage, act)


def end_full_keep(stage: Stage, act: Act) -> None:
    stage.world.fill_keep(act.node, 0)


def flipped(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    if not shape.decaying:
        return None
    args = {
        "node": chance.choice(shape.decaying),
        "which": chance.randrange(1 << 20),
        "bit": chance.randrange(1 << 20),
    }
    return args, between(chance, 0.05, 3.0)


def begin_flipped(stage: Stage, act: Act) -> None:
    """It is seen at its next start, or by whoever fetches it."""
    if stage.world.flip_checkpoint(act.node, act.which, act.bit):
        stage.down(act.node, act.until_us)
        stage.crash(act.node, False)


# --- fetches, and what comes before them


def watched(stage: Stage, act: Act, look: Callable[[], bool]) -> None:
    """Look again and again, until the act ends or `look` says that it is done."""

    def again() -> None:
        if stage.world.now_us < act.until_us and not look():
            stage.world.call_at(stage.world.now_us + LOOK_US, again)

    again()


def cutting(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    if shape.nodes == 1:
        return None
    return {"times": chance.choice([1, 1, 2, 4])}, between(chance, 1.0, 8.0)


def begin_cutting(stage: Stage, act: Act) -> None:
    left = act.times

    def look() -> bool:
        nonlocal left
        for node in stage.world.providing():
            left -= stage.world.cut_transfers(node)
        return left <= 0

    watched(stage, act, look)


CRASHES, LOSES_POWER, TRIMS = range(3)


def gone(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    if shape.nodes == 1:
        return None
    args = {"how": chance.choice([CRASHES, LOSES_POWER, TRIMS]), "for_us": between(chance, 0.1, 4)}
    return args, between(chance, 1.0, 8.0)


def begin_gone(stage: Stage, act: Act) -> None:
    """Whoever provides goes down, or takes checkpoints of its own and lets go of older ones."""

    def look() -> bool:
        for node in stage.world.providing():
            if act.how == TRIMS:
                checkpoints(stage, [node], act.until_us)
            else:
                stage.down(node, stage.world.now_us + act.for_us)
                stage.crash(node, act.how == LOSES_POWER)
            return True
        return False

    watched(stage, act, look)


def checkpoints(stage: Stage, nodes: Iterable[int], until_us: int) -> None:
    """These nodes take one of each group in turn, again and again."""
    world, number = stage.world, 0

    def again() -> None:
        nonlocal number
        for node in nodes:
            if world.running(node):
                world.checkpoint(node, number % stage.plan.groups)
        number += 1
        if world.now_us + TAKE_US < until_us:
            world.call_at(world.now_us + TAKE_US, again)

    again()


def behind(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    """Two of five or more, one of three or four."""
    if shape.nodes < 3:
        return None
    few = chance.sample(range(1, shape.nodes + 1), min(2, (shape.nodes - 1) // 2))
    args = {
        "mask": sum(1 << (node - 1) for node in few),
        "group": chance.randrange(shape.groups),
        "values": chance.choice([20, 60, 200]),
        "told": chance.randrange(2),
    }
    return args, between(chance, 1.5, 7.0)


def begin_behind(stage: Stage, act: Act) -> None:
    """The others go on, take checkpoints, and let go of the log."""
    rest = [node for node in stage.nodes if not act.mask >> (node - 1) & 1]
    for node in stage.nodes:
        for other in rest:
            if node in rest:
                continue
            if act.told:
                stage.part(node, other, act)
            else:
                stage.links.put((node, other), act, {"blocked": 1})
                stage.links.put((other, node), act, {"blocked": 1})
    stage.world.call_at(
        act.at_us + (act.until_us - act.at_us) // 3,
        lambda: stage.load.burst(rest[0], act.group, act.values, 16),
    )
    checkpoints(stage, rest, act.until_us)


def end_behind(stage: Stage, act: Act) -> None:
    stage.links.take(act)
    stage.join(act)


def begin_flip_staging(stage: Stage, act: Act) -> None:
    """Of what has come so far; where nothing has, of what comes next, unless faults are over."""
    stage.world.flip_staging(act.node, act.which, act.bit)


def flipping(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    if shape.nodes == 1:
        return None
    args = {
        "node": one(chance, shape),
        "which": chance.randrange(1 << 20),
        "bit": chance.randrange(1 << 20),
    }
    return args, 0


def stopping(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    if shape.nodes < 3:
        return None
    args = {
        "group": chance.randrange(shape.groups),
        "values": chance.choice([1, 3, 20]),
        "after_us": chance.choice([600, 2_000, 5_000, 15_000]),
        "order": chance.randrange(1 << 30),
        "lasting": int(chance.random() < 0.5),
    }
    return args, between(chance, 2.0, 6.0)


def begin_stopping(stage: Stage, act: Act) -> None:
    """One member alone has chosen values, has trimmed them, and its machine fails: it cannot lead.
    What the others need to lead is in its checkpoint, and it is needed for a majority."""
    world, group = stage.world, act.group
    leader = next(
        (one for one in stage.nodes if world.alive(one) and world.status(one, group)["leading"]), 0
    )
    if not leader:
        return
    others = [node for node in stage.nodes if node != leader]
    Random(act.order).shuffle(others)
    near = others[: len(stage.nodes) // 2]  # with the leader a majority, and none without it
    for node in others[len(near) :]:
        for other in (leader, *near):
            stage.part(node, other, act)
    stage.load.burst(leader, group, act.values, 16)

    def silence() -> None:
        """What it proposed is accepted by the others; that it is chosen they never hear."""
        for node in near:
            stage.links.put((leader, node), act, {"blocked": 1})
        for part in range(4):
            world.call_at(world.now_us + part * TAKE_US, take)
        world.call_at(world.now_us + 6 * TAKE_US, stop)

    def take() -> None:
        if world.running(leader):
            world.checkpoint(leader, group)

    def stop() -> None:
        stage.links.take(act)
        if world.running(leader):
            world.stop_machine(leader, group)
            if act.lasting:
                stage.failed.add(leader)

    world.call_at(world.now_us + act.after_us, silence)


def end_stopping(stage: Stage, act: Act) -> None:
    """Only a new process applies again; unless it stays as it is, to the end."""
    end_behind(stage, act)
    for node in stage.nodes:
        up = stage.world.running(node) and node not in stage.failed
        if up and stage.world.stopped_groups(node):
            stage.crash(node, False)
    stage.keep()


KEEP_ACTS: dict[str, ActKind] = {
    "checkpoint": ActKind(taken, begin_taken, nothing),
    "crash-keep": crash_keep(0),
    "power-keep": crash_keep(1),
    "full-keep": ActKind(full_keep, begin_full_keep, end_full_keep),
    "flip-checkpoint": where_members_stay(ActKind(flipped, begin_flipped, end_keep)),
    "two-behind": ActKind(behind, begin_behind, end_behind),
    "cut-transfer": ActKind(cutting, begin_cutting, nothing),
    "provider-gone": ActKind(gone, begin_gone, end_keep),
    "flip-staging": ActKind(flipping, begin_flip_staging, nothing),
    "trimmed-and-stopped": where_members_stay(ActKind(stopping, begin_stopping, end_stopping)),
}
