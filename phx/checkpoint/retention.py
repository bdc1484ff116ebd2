"""How much of a group's log stays below its cover. Knows no clock: it is told the time.

The *cover* is the oldest checkpoint that a group keeps. This node does not need the log below it;
some of it is *held* all the same, so that a member that lags a little gets what it misses, and no
checkpoint. It is held as long as it is within all of three limits: so many instances, so many
bytes, so old. The tightest one decides.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Mark", "Retention", "Wanted"]


class Mark(NamedTuple):
    """Every instance up to this one was applied by that time."""

    instance: int
    at_s: float


class Wanted(NamedTuple):
    """The lowest instance that should stay, and when to ask again if nothing else happens."""

    floor: int
    again_s: float  # infinity: no time will change it


class Retention:
    """Says how much. One thread at a time; times in seconds of one monotonic clock.

    Args:
        hold_instances, hold_bytes, hold_us: what is held at most below a cover; 0: nothing is.
    """

    def __init__(self, *, hold_instances: int, hold_bytes: int, hold_us: int) -> None:
        self._instances = hold_instances
        self._bytes = hold_bytes
        self._age_s = hold_us / 1e6
        self._marks: dict[int, deque[Mark]] = {}
        self._old: dict[int, int] = {}  # up to there it is older than that

    def mark(self, group: int, instance: int, at_s: float) -> None:
        """All up to `instance` was applied by then. What stands between two marks counts as old as
        the later one: it may be held for longer than was said, but not for shorter."""
        marks = self._marks.setdefault(group, deque())
        if not marks or instance > marks[-1].instance:
            marks.append(Mark(instance, at_s))

    def forget(self, group: int) -> None:
        """It is gone."""
        self._marks.pop(group, None)
        self._old.pop(group, None)

    def wanted(
        self,
        group: int,
        through: int,
        now_s: float,
        within: Callable[[int], int],
    ) -> Wanted:
        """What is to stay of the log of a group whose state up to `through` is covered.

        Args:
            through: MIN over the machines of what the cover holds of each.
            within: the lowest instance from which on the log up to `through` takes at most so many
                bytes, about.
        """
        marks = self._marks.setdefault(group, deque())
        while marks and marks[0].at_s + self._age_s <= now_s:
            self._old[group] = marks.popleft().instance
        floor = max(1, through + 1 - self._instances, self._old.get(group, 0) + 1)
        if floor <= through:
            floor = max(floor, within(self._bytes))
        floor = min(floor, through + 1)
        while marks and marks[0].instance < floor:
            marks.popleft()
        if floor > through or not marks:
            return Wanted(floor, math.inf)
        return Wanted(floor, marks[0].at_s + self._age_s)  # then all up to there is old
