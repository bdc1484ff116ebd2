"""The acts of a plan by which replicas diverge, or are made anew; rows of ACTS (`phx.sim.acts`)."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from phx.sim.act_kind import ActKind, Args, Shape, nothing, one
from phx.sim.plan import Act
from phx.sim.straying import rebuild, stray

if TYPE_CHECKING:
    from phx.sim.stage import Stage

__all__ = ["ODD_ACTS"]


def astray(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    """`log`: not the machine, but the chained checksum."""
    if shape.nodes < 3:
        return None
    args = {
        "node": one(chance, shape),
        "group": chance.randrange(shape.groups),
        "log": int(chance.random() < 0.3),
        "how": chance.randrange(1 << 20),
    }
    return args, 0


def begin_astray(stage: Stage, act: Act) -> None:
    """A minority of each group, the same in all of a run; nobody of the cluster is told."""
    stray(stage.world, act.node, act.group, bool(act.log), act.how)


def anew(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    """Somebody asks for it, whether or not it is needed."""
    made = astray(chance, shape)
    return None if made is None else ({**made[0], "dying": int(chance.random() < 0.4)}, 0)


def begin_anew(stage: Stage, act: Act) -> None:
    rebuild(stage.world, act.node, act.group, bool(act.dying))


ODD_ACTS: dict[str, ActKind] = {
    "odd-machine": ActKind(astray, begin_astray, nothing),
    "repair": ActKind(anew, begin_anew, nothing),
}
