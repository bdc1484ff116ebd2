"""A plan that fails is cut down to one that fails in the same way with less in it.

Delta debugging (Zeller and Hildebrandt 2002) over the acts, then fewer clients, then less time. The
same invariant must break; where and when may change. What does not finish in time is given up, so
the result always fails, and is hardly ever the least.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from phx.sim.plan import QUIET_US, SECOND, Act, Plan

__all__ = ["shrink"]


class _TimeIsUp(Exception):
    pass


def shrink(
    plan: Plan,
    fails: Callable[[Plan], bool],
    *,
    seconds: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """The least plan found, which fails; `plan` itself if nothing can be left out.

    Args:
        plan: fails.
        fails: does a plan break the same invariant?
        seconds: of wall time, after which the best so far is returned.
    """
    search = _Search(plan, fails, clock, clock() + seconds)
    with contextlib.suppress(_TimeIsUp):
        search.go()
    return search.best


class _Search:
    def __init__(
        self,
        plan: Plan,
        fails: Callable[[Plan], bool],
        clock: Callable[[], float],
        until: float,
    ) -> None:
        self.best = plan
        self.fails = fails
        self.clock = clock
        self.until = until

    def try_one(self, plan: Plan) -> bool:
        """Keep a lesser plan if it fails."""
        if self.clock() >= self.until:
            raise _TimeIsUp
        if not self.fails(plan):
            return False
        self.best = plan
        return True

    def go(self) -> None:
        self.shorten()
        self.fewer_acts()
        self.fewer_clients()
        self.shorten()
        self.fewer_acts()

    def fewer_acts(self) -> None:
        """Leave out parts of the list, first halves, then less, at last single acts."""
        parts = 2
        while self.best.acts:
            acts = self.best.acts
            size = max(1, (len(acts) + parts - 1) // parts)
            for start in range(0, len(acts), size):
                if self.try_one(self.best.with_acts(acts[:start] + acts[start + size :])):
                    parts = max(parts - 1, 2)
                    break
            else:
                if size == 1:
                    return
                parts = min(2 * parts, len(acts))

    def fewer_clients(self) -> None:
        while self.best.clients > 1:
            if not self.try_one(replace(self.best, clients=self.best.clients - 1)):
                return

    def shorten(self) -> None:
        """End earlier; acts that would begin after the last fault's end are left out."""
        for share in (0.25, 0.5, 0.75, 0.9):
            faults_us = int(self.best.faults_end_us * share) // SECOND * SECOND
            if faults_us < SECOND or faults_us >= self.best.faults_end_us:
                continue
            acts = clipped(self.best.acts, faults_us)
            if self.try_one(replace(self.best, duration_us=faults_us + QUIET_US, acts=acts)):
                return


def clipped(acts: Iterable[Act], end_us: int) -> tuple[Act, ...]:
    """Acts that begin before a time, none of them lasting longer."""
    return tuple(
        act._replace(until_us=min(act.until_us, end_us)) for act in acts if act.at_us < end_us
    )
