"""The acts of a plan by which groups come and go; rows of ACTS (`phx.sim.acts`).

None of them does anything where no groups are created (the limit `created`).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from phx.sim.act_kind import ActKind, Args, Shape, nothing, one
from phx.sim.directory import LIVE
from phx.sim.plan import Act

if TYPE_CHECKING:
    from phx.sim.stage import Stage

__all__ = ["GROUP_ACTS"]

SIZES = (1, 3, 3, 3, 4, 5)
STEPS_MAX = 8


def drawing(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    return {"order": chance.randrange(1 << 30)}, 0


def begin_create(stage: Stage, act: Act) -> None:
    """A group of some nodes that exist, whether they run or not."""
    chance, directory = Random(act.order), stage.world.directory
    if directory is not None:
        there = [node for node in stage.nodes if node not in stage.asleep | stage.gone]
        size = min(chance.choice(SIZES), len(there))
        directory.create(tuple(sorted(chance.sample(there, size))))


def begin_delete(stage: Stage, act: Act) -> None:
    directory = stage.world.directory
    if directory is not None and (live := directory.those(LIVE)):
        directory.delete(Random(act.order).choice(live))


def cutting(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    args = {"node": one(chance, shape), "step": 1 + chance.randrange(STEPS_MAX)}
    return {**args, "power": chance.randrange(2)}, 0


def begin_cut(stage: Stage, act: Act) -> None:
    """It dies behind the n-th step by which it hosts, ends or drops groups, from now on."""
    stage.world.crash_at_hosting(act.node, act.step, bool(act.power))


GROUP_ACTS: dict[str, ActKind] = {
    "create-group": ActKind(drawing, begin_create, nothing),
    "delete-group": ActKind(drawing, begin_delete, nothing),
    "cut-hosting": ActKind(cutting, begin_cut, nothing),
}
