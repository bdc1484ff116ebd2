"""The act of a plan by which a node loses its journal; a row of ACTS (`phx.sim.acts`)."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from phx.sim.act_kind import ActKind, Args, Shape, between, one
from phx.sim.plan import Act

if TYPE_CHECKING:
    from phx.sim.stage import Stage

__all__ = ["LOST_ACTS"]

OPERATIONS_MAX = 8
"""A new journal, and the first records in it, have about so many on the disk."""


def losing(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    """`damaged`: there is a bad bit in it; else it is gone. `operation`: its next start is cut
    short in the middle of that one, by a crash or a loss of power."""
    if shape.nodes < 3:
        return None
    operation = 1 + chance.randrange(OPERATIONS_MAX) if chance.random() < 0.3 else 0
    args = {
        "node": one(chance, shape),
        "damaged": chance.randrange(2),
        "which": chance.randrange(1 << 20),
        "bit": chance.randrange(1 << 20),
        "operation": operation,
        "power": chance.randrange(2),
    }
    return args, between(chance, 0.05, 4.0)


def begin_losing(stage: Stage, act: Act) -> None:
    """Unless too many have lost theirs: lemma 7 holds for any number, but nobody would vote."""
    if stage.world.lose_journal(act.node, bool(act.damaged), act.which, act.bit):
        stage.down(act.node, act.until_us)
        if act.operation:
            stage.world.crash_at_operation(act.node, act.operation, bool(act.power))


def end_losing(stage: Stage, act: Act) -> None:
    stage.keep()


LOST_ACTS: dict[str, ActKind] = {"lose-journal": ActKind(losing, begin_losing, end_losing)}
