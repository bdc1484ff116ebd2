"""All leaderships of a node are moved off it, some at a time.

What a transfer is, and why nothing that is proposed fails by it: docs/design/leadership.md. Here is
only which group's turn it is, and what came of it. A group that comes back (the member could not
lead), or that this node comes to lead meanwhile, is moved again, until the time is up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future

from phx._core.driver import DriverError
from phx.applier import GroupState
from phx.config import Config
from phx.door import Door
from phx.errors import Closed, NotInCluster, NotLeader, PhxError, TransferFailed
from phx.types import PRIORITY_MAX, Moved

__all__ = ["AT_ONCE", "Mover", "Moves"]

AT_ONCE = 128
"""So many leaderships are on their way at a time."""
LOOK_S = 0.005
AGAIN_S = 0.05  # until a group that could not be moved is tried again, or all are gone through


class Moves:
    """How much a node wants to lead, and giving away what it leads.

    Attributes:
        priority: what it is now.
    """

    def __init__(self, config: Config, states: Mapping[int, GroupState]) -> None:
        self.priority = config.priority
        self._config = config
        self._states = states
        self._door: Door | None = None
        self._movers: list[Mover] = []  # those that may be at it

    def begin(self, door: Door) -> None:
        """The driver runs, with the priority that the configuration says."""
        self._door = door

    def end(self, wait_s: float | None = None) -> None:
        """Nothing is moved any more. Idempotent."""
        for one in self._movers:
            one.end(wait_s)

    def _open(self) -> Door:
        if self._door is None:
            raise Closed("the node is not open")
        self._door.open_driver()
        return self._door

    def set_priority(self, priority: int) -> None:
        """See Node.set_priority."""
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise TypeError(f"a priority is a number, not {priority!r}")
        if not 0 <= priority <= PRIORITY_MAX:
            raise ValueError(f"a priority is 0 .. {PRIORITY_MAX}, not {priority}")
        door = self._open()
        try:
            door.driver.priority(priority)
        except DriverError as error:
            raise door.error_of(error) from error
        self.priority = priority

    def resign_all(self, to: int | None, timeout: float) -> Future[Moved]:
        """See Node.resign_all."""
        door = self._open()
        if to is not None and to != door.node and not door.known(to):
            raise NotInCluster(f"node {to} is no member")
        if to == door.node:
            raise ValueError("a node cannot give its leaderships to itself")
        mover = Mover(door, self._states, to or 0, timeout)
        self._movers = [one for one in self._movers if one.is_alive()] + [mover]
        mover.start()
        return mover.future

    def drain(self, to: int | None, timeout: float) -> Future[Moved]:
        """Lead nothing from now on that somebody else can."""
        self.set_priority(0)
        return self.resign_all(to, timeout)

    def undrain(self) -> int:
        """Back to the priority of the configuration, which is returned."""
        self.set_priority(self._config.priority)
        return self.priority


class Mover(threading.Thread):
    """The thread of one call. Its `future` has a Moved, or what ended it early.

    Args:
        to: a member that is to lead them; 0: for each the one that should have it next.
        timeout: seconds. What has not moved by then is not moved any more, but for what is on its
            way.
    """

    def __init__(
        self, door: Door, states: Mapping[int, GroupState], to: int, timeout: float
    ) -> None:
        super().__init__(name="phx-moves", daemon=True)
        self.future: Future[Moved] = Future()
        self.future.set_running_or_notify_cancel()  # who stops waiting stops nothing
        self._door = door
        self._states = states
        self._to = to
        self._until_s = time.monotonic() + timeout
        self._ending = threading.Event()
        self._found = Moved({}, {})
        self._line: deque[int] = deque()
        self._later: dict[int, float] = {}  # groups that could not be moved: not before
        self._going: dict[int, int] = {}  # on their way: the epoch that was given up
        self._led_s = 0.0  # when to look next at what is led here

    def run(self) -> None:
        try:
            while self._turn():
                if self._ending.wait(LOOK_S):
                    raise Closed("the node is closed")
            for group in (*self._line, *self._later):
                self._found.failed.setdefault(group, "there was no time for it")
            for group in self._going:
                self._found.failed[group] = "nobody was heard to lead it in time"
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(self._found)

    def end(self, wait_s: float | None = None) -> None:
        """Begin nothing more, and wait for the thread. The future fails: the node closes."""
        self._ending.set()
        if self.ident is not None and self is not threading.current_thread():
            self.join(wait_s)

    def _turn(self) -> bool:
        """Whether anything is left to do, and time for it."""
        self._door.open_driver()  # raises what a call would
        now = time.monotonic()
        for group, given in list(self._going.items()):
            self._look(group, given, now)
        self._line += [group for group, at in self._later.items() if at <= now]
        for group in self._line:
            self._later.pop(group, None)
        idle = not self._going and not self._later
        if not self._line and (idle or now >= self._led_s):
            self._line += self._led()
            self._led_s = now + AGAIN_S
        while self._line and len(self._going) < AT_ONCE and now < self._until_s:
            self._begin(self._line.popleft(), now)
        return bool(self._line or self._later or self._going) and now < self._until_s

    def _led(self) -> list[int]:
        """What this node leads, and is not at it already."""
        node = self._door.node
        return [
            group
            for group, state in list(self._states.items())
            if state.led is not None
            and state.led.node == node
            and group not in self._going
            and group not in self._later
        ]

    def _begin(self, group: int, now: float) -> None:
        try:
            if group in self._states:
                self._going[group] = self._door.give(self._states[group], self._to)
        except NotLeader as error:
            if error.leader is None:
                # It is on its way already (balance gives groups away, too), and may come back.
                self._put_off(group, "nobody was heard to lead it in time", now)
            else:
                self._found.failed.pop(group, None)
        except TransferFailed as error:
            self._put_off(group, str(error), now)
        except PhxError:
            self._line.appendleft(group)
            raise

    def _put_off(self, group: int, why: str, now: float) -> None:
        self._found.moved.pop(group, None)  # where it was for a while
        self._found.failed[group] = why
        self._later[group] = now + AGAIN_S

    def _look(self, group: int, given: int, now: float) -> None:
        state = self._states.get(group)
        if state is None:
            del self._going[group]
            return
        led = state.led
        if led is None or led.epoch <= given:
            return
        del self._going[group]
        if led.node == self._door.node:
            self._put_off(group, "it came back: the member that it was given to cannot lead", now)
            return
        self._found.failed.pop(group, None)
        self._found.moved[group] = led
