"""Works out digests of views, a little at a time, while the machines they are of go on.

The digest of a large machine takes long, and to keep one up to date at every change costs more than
the changes. So at an agreed instance the machine is frozen, as for a checkpoint, and its view is
walked on the thread ``phx-states``. What it costs is bounded, whatever the load and the state:

the applying thread   a group is frozen for 1/1000 of the time at most, all of them for 1/100
the processor         the thread works for 1/32 of the time, 0.2 ms at a time: it shares the GIL
memory                WAITING_MAX views at most, the one that is walked among them

So not every agreed instance has a walk; but those of different nodes have to meet at one and the
same. A group has a *level*, 0 at first: it is walked at each 2^level-th agreed instance, counted
from the beginning of its log. Where a walk comes too early the level rises; where there is time for
four it falls. Whatever the levels of two nodes are, both walk where the higher one says.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from phx.checkpoint.digests import hash_of
from phx.machine import StateMachine, View, is_compared
from phx.node.line import Ending
from phx.types import AGREED_EVERY

__all__ = ["ViewDigests", "Walk"]

log = logging.getLogger("phx")

BUSY_PART = 1 / 32
FROZEN_PART = 1 / 1000
FROZEN_PART_ALL = 1 / 100
WAITING_MAX = 8
LEVEL_MAX = 16
LITTLE_S = 0.0001  # so much work may go by without a rest


class Digested(View, Protocol):
    """What a machine with ``digest_of_views`` gives."""

    def digest(self, rest: Callable[[], None]) -> bytes: ...


@dataclass(eq=False)
class Walk:
    """The machines of a group at one instance.

    Attributes:
        digests: of those whose digest is cheap.
        views: of the others that are compared.
        told: what the state is, or b"" if that failed; on the thread, once at most.
    """

    group: int
    digests: dict[int, bytes]
    views: dict[int, View]
    told: Callable[[bytes], None]
    dropped: bool = False

    def close(self) -> None:
        """Close the views."""
        while self.views:
            _, view = self.views.popitem()
            try:
                view.close()
            except Exception:
                log.exception("closing a view")


@dataclass
class Pace:
    """When a group may be walked."""

    level: int = 0
    begun_s: float = 0.0  # the last one
    free_s: float = 0.0  # not before

    def says(self, instance: int) -> bool:
        """Whether it is walked at this agreed instance, if there is time."""
        return instance // AGREED_EVERY % (1 << self.level) == 0

    def rarer(self) -> None:
        self.level = min(self.level + 1, LEVEL_MAX)


class ViewDigests(threading.Thread):
    """The thread ``phx-states``; it is there once anything is to be walked.

    Guarantee: a walk that was begun is told of once, unless the node closes or its group is
    forgotten before; its views are closed in any case. Of one group there is one at a time.

    Attributes:
        counters: since the start: groups walked, the longest freeze.
    """

    def __init__(self) -> None:
        super().__init__(name="phx-states", daemon=True)
        self._change = threading.Condition()  # of all that follows
        self._line: deque[Walk] = deque()
        self._now: Walk | None = None
        self._paces: dict[int, Pace] = {}
        self._free_s = 0.0  # no group is frozen before
        self._ending = False
        self._worked_s = 0.0  # this thread's time at the end of the last rest
        self.counters = {"states_walked": 0, "states_freeze_us_max": 0}

    # --- on the applying thread

    def begin(
        self,
        group: int,
        instance: int,
        machines: Mapping[int, StateMachine],
        told: Callable[[bytes], None],
    ) -> bool:
        """Freeze a group at an agreed instance, if it is time for that; whether it was.

        Raises whatever `freeze` and `digest` of its machines raise; then nothing has begun.
        """
        if not self._is_time(group, instance):
            return False
        began_s, walk = time.monotonic(), Walk(group, {}, {}, told)
        try:
            for machine, one in machines.items():
                if one.digest_cheap:
                    walk.digests[machine] = one.digest()
                elif is_compared(one):
                    view = one.freeze()
                    if view is None:
                        raise TypeError(f"machine {machine} has digest_of_views and gave no view")
                    walk.views[machine] = view
        except BaseException:
            walk.close()
            raise
        finally:
            self._frozen(group, began_s)
        with self._change:
            self._line.append(walk)
            self._change.notify_all()
            if self.ident is None and not self._ending:
                self.start()
        return True

    def _is_time(self, group: int, instance: int) -> bool:
        now_s = time.monotonic()
        with self._change:
            pace = self._paces.setdefault(group, Pace())
            if not pace.says(instance) or self._ending:
                return False
            if now_s < pace.free_s:
                pace.rarer()
                return False
            if now_s - pace.begun_s > 4 * (pace.free_s - pace.begun_s):
                pace.level = max(pace.level - 1, 0)
            # Others are in the way: that says nothing about this one.
            return now_s >= self._free_s and len(self._line) + (self._now is not None) < WAITING_MAX

    def _frozen(self, group: int, began_s: float) -> None:
        now_s = time.monotonic()
        took_s = now_s - began_s
        with self._change:
            pace = self._paces.setdefault(group, Pace())
            pace.begun_s, pace.free_s = began_s, now_s + took_s / FROZEN_PART
            self._free_s = now_s + took_s / FROZEN_PART_ALL
            most = max(self.counters["states_freeze_us_max"], int(took_s * 1e6))
            self.counters["states_freeze_us_max"] = most

    def missed(self, group: int, instance: int) -> None:
        """A group that is being walked has come to another agreed instance."""
        with self._change:
            pace = self._paces.get(group)
            if pace is not None and pace.says(instance):
                pace.rarer()

    def forget(self, group: int) -> None:
        """The group goes on from another state, or is gone: nobody is told of what is under way."""
        with self._change:
            self._paces.pop(group, None)
            for walk in (*self._line, self._now):
                if walk is not None and walk.group == group:
                    walk.dropped = True
            self._change.notify_all()

    # --- the thread

    def run(self) -> None:
        while (walk := self._next()) is not None:
            try:
                self._walk(walk)
            except Ending:
                pass
            finally:
                walk.close()
                with self._change:
                    self._now = None

    def _next(self) -> Walk | None:
        """The next in line; None at the end."""
        with self._change:
            self._change.wait_for(lambda: self._line or self._ending)
            if self._ending:
                for walk in self._line:
                    walk.close()
                self._line.clear()
                return None
            self._now = self._line.popleft()
            return self._now

    def _walk(self, walk: Walk) -> None:
        """Work it out, tell, and rest for what it took. Raises Ending."""
        try:
            digests = dict(walk.digests)
            for machine, view in walk.views.items():
                digests[machine] = _digested(view).digest(lambda: self._rest(walk))
            found = hash_of(digests)
        except Ending:
            raise
        except BaseException:  # of a user's view: also SystemExit
            log.exception("group %d: no digest of a view", walk.group)
            found = b""
        with self._change:
            pace = self._paces.get(walk.group)
            if pace is not None and not walk.dropped:
                pace.free_s = max(pace.free_s, time.monotonic())
            self.counters["states_walked"] += 1
        if not walk.dropped:
            walk.told(found)
        walk.close()
        self._rest(walk, 0.0)

    def _rest(self, walk: Walk, little_s: float = LITTLE_S) -> None:
        """Sleep for so long that this thread has worked for its part of the time only."""
        worked_s = time.thread_time() - self._worked_s
        if worked_s < little_s:
            return
        with self._change:
            self._change.wait_for(
                lambda: self._ending or walk.dropped, worked_s * (1 / BUSY_PART - 1)
            )
            ends = self._ending or walk.dropped
        self._worked_s = time.thread_time()
        if ends:
            raise Ending

    def end(self, wait_s: float | None = None) -> None:
        """Give up what is under way; wait for the thread, at most so long."""
        with self._change:
            self._ending = True
            self._change.notify_all()
        if self.ident is not None and self is not threading.current_thread():
            self.join(wait_s)


def _digested(view: View) -> Digested:
    """TypeError for a view without a digest."""
    if not hasattr(view, "digest"):
        raise TypeError(f"{type(view).__name__} has no digest, and its machine digest_of_views")
    found: Digested = view  # type: ignore[assignment]
    return found
