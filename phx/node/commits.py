"""When durable machines commit. On the applying thread, all of it.

A commit comes only where an instance ends: the state in the files is the one behind an instance, or
it is not there. So no machine commits while its group is inside of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from phx.applier import GroupState
from phx.errors import GroupStopped

__all__ = ["Commits"]

Halt = Callable[[GroupState, GroupStopped, BaseException], None]


class Commits:
    """Commits the durable machines of a node: each at latest so long after it applied something.

    Guarantee: at most one machine a turn is committed because of its time, the longest due first;
    what is committed is exactly the group's applied instance. A commit that raises stops its group,
    with all of its durable machines closed as they were committed last.

    Args:
        every_us: from what was applied to its commit, where turns leave the time.
        halt: stops a group.
    """

    def __init__(self, every_us: int, halt: Halt) -> None:
        self._every_s = every_us / 1e6
        self._halt = halt
        self._due_s: dict[tuple[int, int], tuple[float, GroupState]] = {}  # the earliest is first
        self._came = False  # one was committed in this turn
        self.counters = {"commits": 0, "commit_us": 0, "commit_us_max": 0}

    def applied(self, state: GroupState) -> None:
        """A batch of the group was applied to its end, as was every other that was begun."""
        due_s = 0.0
        for machine in state.durable:
            key = (state.group, machine)
            if key not in self._due_s and state.applied > state.committed[machine]:
                due_s = due_s or time.monotonic() + self._every_s
                self._due_s[key] = (due_s, state)
        if not self._came:
            self._one(-1)

    def turned(self, within: int) -> bool:
        """A turn ends, inside of a batch of the group `within`, -1: of none. Whether another one
        should come at once."""
        if not self._came:
            self._one(within)
        self._came = False
        return bool(self._due_s) and self.next_s() <= time.monotonic()

    def next_s(self) -> float:
        """When the next one is due, by time.monotonic; infinity: none is."""
        for due_s, _ in self._due_s.values():
            return due_s
        return float("inf")

    def all_of(self, state: GroupState) -> None:
        """Commit what is applied of a group, at the end of a batch. It may be stopped after it."""
        for machine in list(state.durable):
            self._due_s.pop((state.group, machine), None)
            if machine in state.durable and state.applied > state.committed[machine]:
                self._commit(state, machine)

    def forget(self, group: int) -> None:
        """It is gone: another one of its id has due times of its own."""
        for key in [one for one in self._due_s if one[0] == group]:
            del self._due_s[key]

    def _one(self, within: int) -> None:
        """Commit the machine that is due the longest, if any is, but none of the group `within`."""
        now_s = time.monotonic()
        for key, (due_s, _) in self._due_s.items():
            if due_s > now_s:
                return
            if key[0] != within:
                break
        else:
            return
        _, state = self._due_s.pop(key)
        machine = key[1]
        if machine in state.durable and state.applied > state.committed[machine]:
            self._came = True
            self._commit(state, machine)

    def _commit(self, state: GroupState, machine: int) -> None:
        began = time.perf_counter_ns()
        applied = state.applied
        try:
            state.durable[machine].commit(applied)
        except BaseException as error:
            why = f"commit raised {type(error).__name__}: {error}"
            self._halt(state, GroupStopped(state.group, applied, machine, why), error)
            if not isinstance(error, Exception):
                raise
        else:
            state.committed[machine] = applied
        took_us = (time.perf_counter_ns() - began) // 1000
        counters = self.counters
        counters["commits"] += 1
        counters["commit_us"] += took_us
        counters["commit_us_max"] = max(counters["commit_us_max"], took_us)
