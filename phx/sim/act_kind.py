"""What an act is, and what those who make them up have in common."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, NamedTuple, Protocol

from phx.sim.altering import can_change
from phx.sim.plan import SECOND, Act

if TYPE_CHECKING:
    from phx.sim.stage import Stage

__all__ = [
    "ActKind",
    "Args",
    "Bursting",
    "Shape",
    "between",
    "nothing",
    "one",
    "where_members_stay",
]

Args = dict[str, int]


class Shape(NamedTuple):
    """What a maker of acts knows of the cluster."""

    nodes: int
    groups: int
    victims: tuple[int, ...]
    """Nodes whose disks may be damaged: a minority, and in many runs nobody."""
    decaying: tuple[int, ...] = ()
    """Nodes whose checkpoints may be, where the log may be gone: a minority that is the same in
    all of a run, the victims if there are any."""


class Bursting(Protocol):
    """What an overload needs of the workload."""

    def burst(self, node: int, group: int, values: int, value_bytes: int) -> None: ...


class ActKind(NamedTuple):
    """A kind of act.

    make: arguments and duration in microseconds, or None: not in this cluster.
    begin, end: what is done to the stage.
    """

    make: Callable[[Random, Shape], tuple[Args, int] | None]
    begin: Callable[[Stage, Act], None]
    end: Callable[[Stage, Act], None]


def where_members_stay(kind: ActKind) -> ActKind:
    """Where members of groups may change it does nothing: it takes what a minority of the nodes
    can spare, and they may be all members later."""

    def begin(stage: Stage, act: Act) -> None:
        if not can_change(stage.world):
            kind.begin(stage, act)

    return kind._replace(begin=begin)


def between(chance: Random, low: float, high: float) -> int:
    """Seconds to microseconds, small ones more often."""
    share = chance.random()
    return int((low + (high - low) * share * share) * SECOND)


def nothing(stage: Stage, act: Act) -> None:
    """It ends by itself."""


def one(chance: Random, shape: Shape) -> int:
    return chance.randrange(1, shape.nodes + 1)
