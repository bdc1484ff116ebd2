"""The acts of a plan by which a node loses its store, or has an older one put in its place; rows of
ACTS (`phx.sim.acts`)."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from phx.sim.act_kind import ActKind, Args, Shape, between, where_members_stay
from phx.sim.plan import Act

if TYPE_CHECKING:
    from phx.sim.stage import Stage

__all__ = ["STORE_ACTS"]


def losing(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    """Of the nodes whose checkpoints may decay: a minority, the same in all of a run."""
    if not shape.decaying:
        return None
    args = {"node": chance.choice(shape.decaying), "for_us": between(chance, 0.05, 3.0)}
    return args, args["for_us"]


def begin_losing(stage: Stage, act: Act) -> None:
    """A new one is made beside its journal when it starts again."""
    stage.down(act.node, act.until_us)
    stage.world.lose_store(act.node)


def ageing(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    made = losing(chance, shape)
    return None if made is None else (made[0], between(chance, 1.0, 12.0))


def begin_ageing(stage: Stage, act: Act) -> None:
    stage.world.copy_store(act.node)


def end_ageing(stage: Stage, act: Act) -> None:
    """The copy from the beginning of the act takes the place of what is there. (Its node starts
    again when the faults end, at the latest: the bound of `verdicts.decides` begins there.)"""
    stage.down(act.node, min(stage.world.now_us + act.for_us, stage.plan.faults_end_us))
    stage.world.put_store_back(act.node)


def end_losing(stage: Stage, act: Act) -> None:
    stage.keep()


STORE_ACTS: dict[str, ActKind] = {
    "lose-store": where_members_stay(ActKind(losing, begin_losing, end_losing)),
    "old-store": where_members_stay(ActKind(ageing, begin_ageing, end_ageing)),
}
