"""Asking other nodes for read points: of all reads of a turn there is one ticket for each group.

A ticket is handed to the poll thread (phx._core.read_tickets), which asks whoever leads, or for a
quorum read a majority, in one message for all groups. Its answer is good for every read that had
begun when the ticket was handed over.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Protocol

from phx._core.options import DriverError
from phx.errors import (
    GroupDeleted,
    GroupStopped,
    NodeFailed,
    NoQuorum,
    Overloaded,
    PhxError,
    TimedOut,
)

__all__ = ["Asked", "Tickets"]

Told = Callable[[int | PhxError], None]


class Tickets(Protocol):
    """What is needed of phx._core.read_tickets.ReadTickets."""

    def ask(self, group: int, ticket: int, deadline_us: int, quorum: bool = False) -> None: ...
    def take(self) -> list[tuple[int, int, int, int]]: ...


class Asked:
    """The reads of a node that wait for a point. On the thread that applies.

    Guarantee: `told` of each is called once: with its read point, or with why there is none.
    """

    def __init__(self, tickets: Tickets, error_of: Callable[[DriverError], PhxError]) -> None:
        self._tickets = tickets
        self._error_of = error_of
        self._next = count(1)
        self._fresh: dict[tuple[int, bool], list[tuple[int, Told]]] = {}
        self._open: dict[int, list[tuple[int, Told]]] = {}  # by ticket

    def ask(self, group: int, due_us: int, told: Told, quorum: bool = False) -> None:
        """Find a read point of `group` for a read that has begun; `told` is called in a later turn.

        Args:
            due_us: by the driver's clock; what is found after it is of no use.
            quorum: ask a majority instead of the leader.
        """
        self._fresh.setdefault((group, quorum), []).append((due_us, told))

    def turn(self) -> None:
        """Hand over what was asked, and tell what was found."""
        fresh, self._fresh = self._fresh, {}
        for (group, quorum), waiting in fresh.items():
            self._hand_over(group, quorum, waiting)
        for group, ticket, instance, verdict in self._tickets.take():
            for _, told in self._open.pop(ticket, ()):
                told(instance if verdict == 0 else _error(group, verdict))

    def _hand_over(self, group: int, quorum: bool, waiting: list[tuple[int, Told]]) -> None:
        ticket = next(self._next)
        try:
            self._tickets.ask(group, ticket, max(due for due, _ in waiting), quorum)
        except DriverError as error:
            for _, told in waiting:
                told(self._error_of(error))
        else:
            self._open[ticket] = waiting

    def end(self, refusal: Callable[[], PhxError]) -> None:
        """Nothing is found any more."""
        left = [*self._open.values(), *self._fresh.values()]
        self._open, self._fresh = {}, {}
        for waiting in left:
            for _, told in waiting:
                told(refusal())


def _error(group: int, verdict: int) -> PhxError:
    """For a verdict of the engine (state.pxd)."""
    match verdict:
        case 3:
            return Overloaded(f"group {group}: too many reads wait at this node")
        case 5:
            return GroupStopped(group, 0, None, "it was halted on this node: an invariant broke")
        case 7:
            return NoQuorum(f"group {group}: no leader and no majority was heard in time")
        case 8:
            return NodeFailed("the journal failed; this node takes part in nothing any more")
        case 10:
            return GroupDeleted(f"group {group} was deleted")
    return TimedOut(f"group {group}: the leader did not vouch for what is chosen in time")
