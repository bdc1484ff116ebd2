"""The acts of a plan that are about checkpoints; rows of ACTS (`phx.sim.acts`)."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from phx.sim.act_kind import ActKind, Args, Shape, between, nothing, one
from phx.sim.plan import Act

if TYPE_CHECKING:
    from phx.sim.stage import Stage

__all__ = ["KEEP_ACTS"]

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
    args = {
        "node": one(chance, shape),
        "which": chance.randrange(1 << 20),
        "bit": chance.randrange(1 << 20),
    }
    return args, between(chance, 0.05, 3.0)


def begin_flipped(stage: Stage, act: Act) -> None:
    """The log is there: any node may be hit. It is seen at its next start."""
    if stage.world.flip_checkpoint(act.node, act.which, act.bit):
        stage.down(act.node, act.until_us)
        stage.crash(act.node, False)


KEEP_ACTS: dict[str, ActKind] = {
    "checkpoint": ActKind(taken, begin_taken, nothing),
    "crash-keep": crash_keep(0),
    "power-keep": crash_keep(1),
    "full-keep": ActKind(full_keep, begin_full_keep, end_full_keep),
    "flip-checkpoint": ActKind(flipped, begin_flipped, end_keep),
}
