"""The act of a plan by which a node says otherwise how durable its groups are; a row of ACTS
(`phx.sim.acts`)."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from phx.sim.act_kind import ActKind, Args, Shape, between, nothing, one
from phx.sim.losing import switch
from phx.sim.plan import Act
from phx.sim.relaxing import SYNC, any_mode

if TYPE_CHECKING:
    from phx.sim.stage import Stage

__all__ = ["RELAXED_ACTS"]


def switching(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    """`node` 0: any, each time."""
    args = {
        "node": chance.choice([0, one(chance, shape)]),
        "times": chance.choice([1, 2, 6, 30]),
        "order": chance.randrange(1 << 30),
    }
    return args, between(chance, 0.01, 4.0)


def begin_switching(stage: Stage, act: Act) -> None:
    """Half of the time back to sync, and then mostly not for long."""
    choices = Random(act.order)

    def call() -> None:
        node = act.node or choices.choice(stage.nodes)
        within_us = choices.choice([SYNC, any_mode(choices)])
        switch(stage.world, node, choices.randrange(stage.plan.groups), within_us)

    for n in range(act.times):
        stage.world.call_at(act.at_us + n * (act.until_us - act.at_us) // act.times, call)


RELAXED_ACTS: dict[str, ActKind] = {
    "switch-durability": ActKind(switching, begin_switching, nothing),
}
