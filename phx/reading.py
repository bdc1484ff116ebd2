"""Reads: which state may answer, when it is there, and who asks the machine.

A *read point* R of a read is an instance that is at least every one that any node knew to be chosen
at some moment after the read began; a state that has applied it may answer (docs/design/reads.md).
A leader with a lease has one at hand (phx._core.published). Elsewhere it is asked for: `Asking`.

Queries run on the thread that applies, where no instance is half applied. They never hold it for
longer than QUERIES_NS at a time unless a single one does: then whatever else is due has its turn.
Those of one group run together.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from heapq import heapify, heappop, heappush
from itertools import count
from threading import Lock
from time import perf_counter_ns
from typing import Any, Protocol

from phx._core.driver import DriverError
from phx._core.published import ReadPoints
from phx.applier import GroupState
from phx.errors import (
    Closed,
    GroupRestoring,
    NotLeader,
    Overloaded,
    PhxError,
    TimedOut,
    UnknownMachine,
)
from phx.machine import StateMachine
from phx.stops import parked, same_stop
from phx.types import CONSISTENCIES, Consistency, Read

__all__ = ["QUERIES_NS", "READS_MAX", "Asking", "Reading", "Waiter", "Wanted", "span_us"]

QUERIES_NS = 500_000
READS_MAX = 65_536
"""Reads that may wait at a node, for their turn or for their state."""
CHUNK_MAX = 256
Lined = tuple[int, int, Any, bool, Future[Read]]
"""Read point, machine, query, whether stale, who waits."""
FEW = 64  # queries of one call that are answered within it
NEVER_US = 100 * 365 * 86_400 * 1_000_000


def span_us(timeout: float | None) -> int:
    """Seconds of a caller as microseconds; None: never. TimedOut for nothing or less."""
    if timeout is None:
        return NEVER_US
    if not timeout > 0:
        raise TimedOut(f"a timeout of {timeout} s leaves no time")
    return min(int(timeout * 1_000_000), NEVER_US)


def raisable(error: BaseException) -> BaseException:
    """What a future takes in the place of an error: the error, but for one kind."""
    if isinstance(error, StopIteration):
        return RuntimeError(f"the query raised {error!r}")
    return error


def holds(state: GroupState, machine: int) -> int:
    """The instance that a machine's state is of: a durable one may be ahead of its group."""
    return max(state.applied, state.skip.get(machine, 0)) if state.skip else state.applied


class Asking(Protocol):
    """Where a read point is had that is not at hand here."""

    def ask(
        self, group: int, due_us: int, told: Callable[[int | PhxError], None], quorum: bool = False
    ) -> None:
        """Find a read point of `group` for a read that begins now; `told` is called once with it,
        or with why there is none, on the thread that applies and not before this returns.

        Args:
            due_us: by the driver's clock; nothing is to be found out after it.
            quorum: ask a majority instead of the leader.
        """
        ...

    def turn(self) -> None:
        """Ask, and tell what was found."""
        ...

    def end(self, refusal: Callable[[], PhxError]) -> None:
        """Whoever waits is told that."""
        ...


class Waiter(Protocol):
    """A future, or the cell of a blocking caller."""

    def set_result(self, value: Any, /) -> object: ...
    def set_exception(self, error: BaseException, /) -> object: ...
    def done(self) -> bool: ...


class Wanted:
    """A read under way: queries that share one read point."""

    __slots__ = (
        "answers", "consistency", "counted", "dropped", "due_us", "heaped", "machine", "point",
        "queries", "state", "version", "waiter",
    )  # fmt: skip

    def __init__(
        self,
        state: GroupState,
        machine: int,
        queries: Sequence[Any],
        consistency: Consistency,
        due_us: int,
        waiter: Waiter,
    ) -> None:
        self.state = state
        self.machine = machine
        self.queries = queries
        self.consistency = consistency
        self.due_us = due_us
        self.waiter = waiter
        self.answers: list[Read] = []
        self.dropped = False  # nobody waits for it any more
        self.counted = False  # among those that wait
        self.heaped = False  # in the heap of its group, and not forgotten
        self.point = 0  # its state has applied that much
        self.version = 0  # of the members whose majority was asked; 0: none was

    def fail(self, error: BaseException) -> None:
        if not self.over():
            self.waiter.set_exception(error)

    def over(self) -> bool:
        return self.dropped or self.waiter.done()


class Single:
    """The future of one read, as the waiter of a Wanted."""

    __slots__ = ("_future", "done", "set_exception")

    def __init__(self, future: Future[Read]) -> None:
        self._future = future
        self.done = future.done
        self.set_exception = future.set_exception

    def set_result(self, answers: list[Read], /) -> None:
        self._future.set_result(answers[0])


class Reading:
    """The reads of one node, over all groups.

    Guarantee: each read is answered from a state of exactly the instances up to its `instance`, or
    fails, once; a query that raises is its caller's error, and nobody else notices.

    ``begin``, ``give_up`` and ``end`` from any thread; all else on the thread that applies.
    """

    def __init__(
        self, points: ReadPoints, node: int, now_us: Callable[[], int], poke: Callable[[], None]
    ) -> None:
        self._points = points
        self._node = node
        self._now_us = now_us
        self._opened_us = now_us()
        self._poke = poke  # makes a turn of the applier come
        self._lock = Lock()
        self._begun: deque[Wanted] = deque()
        self._dropped: deque[Wanted] = deque()
        self._due: dict[int, deque[Wanted]] = {}  # by group: their state is there
        self._order = count()
        self._refusal: Callable[[], PhxError] | None = None
        self._free_ns = 0  # until then queries go on in this turn of the event loop; 0: a new one
        self._waiting = 0
        self._current_us: dict[int, int] = {}  # groups read stale: when one was known to be current
        self.within: Callable[[], int] = lambda: -1  # the group of which an instance is half done
        self.restoring: Callable[[int], bool] = lambda _: False
        self.note: Callable[[], str] = lambda: ""  # for whoever was not answered in time
        self.soon: Callable[[Callable[[], None]], object] | None = None  # of the event loop
        self.asking: Asking | None = None
        # Of the members of a group, as was heard here; it never lags behind what is applied.
        self.version_of: Callable[[int], int] = lambda _: 1
        self.new_future: Callable[[], Future[Read]]
        self._line: dict[GroupState, deque[Lined]] = {}  # by group: their state was there
        self._queued = 0  # of these
        self._serving: Wanted | None = None  # whose queries run
        self._due_first = False  # or the line; by turns
        self._forgotten: dict[int, int] = {}  # by group: how many of its heap
        self._reads = self._errors = self._waited = 0

    @property
    def counters(self) -> dict[str, int]:
        return {
            "reads": self._reads,
            "read_errors": self._errors,
            "reads_waited": self._waited,
        }

    # --- at once

    def at_once(
        self, state: GroupState, query: Any, consistency: Consistency, machine: int
    ) -> Read | Future[Read] | None:
        """The answer, if its state is there; on the event loop. A future: it waits for its turn,
        behind others. None: its state, or where it stands, is to be waited for: `begin` it.

        Raises what is known at once, and what the query raises.
        """
        one = self._machine(state, machine)
        stale, point = consistency == "stale", 0
        if not stale and not 0 <= (point := self._at_hand(state, consistency)) <= state.applied:
            return None
        now_ns = perf_counter_ns()
        # (Those that wait come first.)
        if (
            self._line
            or self._due
            or self._begun
            or now_ns >= self._until(now_ns)
            or self.within() == state.group
        ):
            return self._queue(state, point, machine, query, stale)
        self._reads += 1
        found = one.query(query)
        return Read(found, holds(state, machine), self._lag_us(state) if stale else 0)

    def few_at_once(
        self, state: GroupState, queries: Sequence[Any], consistency: Consistency, machine: int
    ) -> list[Read] | None:
        """The answers, if their state is there, nobody waits before them and they are few and
        quick. None: `begin` it; those that were asked in vain changed nothing."""
        if not queries:
            return []
        one = self._machine(state, machine)
        stale = consistency == "stale"
        if not stale and not 0 <= self._at_hand(state, consistency) <= state.applied:
            return None
        now_ns = perf_counter_ns()
        until_ns = self._until(now_ns)
        waits = self._line or self._due or self._begun or self.within() == state.group
        if waits or len(queries) > FEW:
            return None
        query, instance = one.query, holds(state, machine)
        lag_us = self._lag_us(state) if stale else 0
        answers = []
        for asked in queries:
            if perf_counter_ns() >= until_ns:
                return None
            answers.append(Read(query(asked), instance, lag_us))
        self._reads += len(answers)
        return answers

    def _queue(
        self, state: GroupState, point: int, machine: int, query: Any, stale: bool
    ) -> Future[Read]:
        if self._waiting + self._queued >= READS_MAX:
            raise Overloaded(f"{READS_MAX} reads wait at this node")
        if not self._line:
            self._poke()
        self._queued += 1
        future: Future[Read] = self.new_future()
        self._line.setdefault(state, deque()).append((point, machine, query, stale, future))
        return future

    def _until(self, now_ns: int) -> int:
        """Until when queries may go on, in this turn of the event loop or of the applying thread"""
        if self.soon is None:
            return now_ns + QUERIES_NS
        if not self._free_ns:
            self._free_ns = now_ns + QUERIES_NS
            self.soon(self._stretch_over)
        return self._free_ns

    def _stretch_over(self) -> None:
        self._free_ns = 0

    def _machine(self, state: GroupState, machine: int) -> StateMachine:
        if state.stopped is not None:
            raise same_stop(state.stopped)
        if state.parked:
            raise parked(state)
        if self.restoring(state.group):
            raise GroupRestoring(state.group)
        try:
            return state.machines[machine]
        except KeyError:
            raise UnknownMachine(f"group {state.group} has no machine {machine}") from None

    def _at_hand(self, state: GroupState, consistency: Consistency) -> int:
        """A read point that needs no question; negative: there is none, and one may be asked for.

        Raises NotLeader where none may be.
        """
        if consistency not in CONSISTENCIES:
            raise ValueError(f"consistency is one of {', '.join(CONSISTENCIES)}")
        point = self._points.leased(state.group)
        if point < 0 and (consistency == "lease" or self.asking is None):
            leader = 0 if state.led is None else state.led.node
            raise NotLeader(state.group, None if leader in (0, self._node) else leader)
        return point

    def _lag_us(self, state: GroupState) -> int:
        """For how long this node has not heard how far the others are."""
        group, now_us = state.group, self._now_us()
        current_us = self._current_us.get(group, self._opened_us)
        if state.applied >= self._points.known(group):
            if self._points.leased(group) >= 0:
                current_us = now_us
            elif state.led is not None and state.led.node != self._node:
                current_us = max(current_us, self._points.heard_us(state.led.node))
            self._current_us[group] = current_us
        return max(0, now_us - current_us)

    # --- by and by

    def begin(self, wanted: Wanted) -> Wanted:
        """Answer it, or fail it, in some turn of the applier. Any thread.

        Raises:
            Overloaded: READS_MAX wait already.
            Closed: or whatever else the node refuses with.
        """
        with self._lock:
            if self._refusal is not None:
                raise self._refusal()
            if self._waiting + self._queued >= READS_MAX:
                raise Overloaded(f"{READS_MAX} reads wait at this node")
            self._waiting += 1
            wanted.counted = True
            self._begun.append(wanted)
        try:
            self._poke()
        except DriverError as error:
            raise Closed(error.message) from None
        return wanted

    async def answered(
        self, wanted: Wanted, future: Future[list[Read]], timeout: float | None
    ) -> list[Read]:
        """Its answers, when they are there. TimedOut after so many seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError as error:
            if future.done() and not future.cancelled():
                return future.result()  # it ended just then, or the query raised one
            group = wanted.state.group
            raise self.late(group) from error
        finally:
            if not future.done() or future.cancelled():
                self.forget(wanted)

    def late(self, group: int) -> TimedOut:
        """For a read whose time is up."""
        return TimedOut(f"group {group}: the state was not there in time{self.note()}")

    def turn(self) -> bool:
        """Take what was begun, and answer for QUERIES_NS; whether there is more to do at once."""
        while self._dropped:
            self.forget(self._dropped.popleft())
        while self._begun:
            wanted = self._begun.popleft()
            try:
                self._take(wanted)
            except Exception as error:
                self._failed(wanted, error)
        if self.asking is not None:
            self.asking.turn()
        if not self._due and not self._line:
            return False
        until_ns, within = self._until(perf_counter_ns()), self.within()
        if perf_counter_ns() < until_ns:
            first, second = self._serve_line, self._serve_due
            if self._due_first:
                first, second = second, first
            self._due_first = not self._due_first
            first(until_ns, within)
            second(until_ns, within)
        return any(group != within for group in self._due) or any(
            state.group != within for state in self._line
        )

    def _serve_line(self, until_ns: int, within: int) -> None:
        for state in list(self._line):
            if state.group == within:
                continue
            if perf_counter_ns() >= until_ns:
                return
            # To the end: when time is up, the next turn begins with another group.
            self._line[state] = line = self._line.pop(state)
            if self._answer_line(state, line, until_ns):
                self._line.pop(state, None)

    def _serve_due(self, until_ns: int, within: int) -> None:
        for group in list(self._due):
            if group == within:
                continue
            self._due[group] = line = self._due.pop(group)  # to the end, as above
            while line:
                if perf_counter_ns() >= until_ns:
                    return
                wanted = self._serving = line.popleft()
                if not self._answer(wanted, until_ns):
                    line.append(wanted)
                self._serving = None
            self._due.pop(group, None)

    def _take(self, wanted: Wanted) -> None:
        state = wanted.state
        self._machine(state, wanted.machine)
        if wanted.consistency == "stale":
            self._ready(wanted)
            return
        point = self._at_hand(state, wanted.consistency)
        if point >= 0:
            self._found(wanted, point)
            return
        assert self.asking is not None
        if wanted.consistency == "quorum":
            wanted.version = self.version_of(state.group)
        self.asking.ask(
            state.group,
            wanted.due_us,
            lambda found: self._told(wanted, found),
            wanted.consistency == "quorum",
        )

    def _told(self, wanted: Wanted, found: int | PhxError) -> None:
        if isinstance(found, PhxError):
            self._failed(wanted, found)
        else:
            self._found(wanted, found)
            if self._due:
                self._poke()

    def _found(self, wanted: Wanted, point: int) -> None:
        """Its read point is known: it waits until that is applied."""
        state, wanted.point = wanted.state, point
        if wanted.over():
            self._ended(wanted)
        elif state.stopped is not None:
            self._failed(wanted, same_stop(state.stopped))
        elif point <= state.applied:
            self._ready(wanted)
        else:
            self._wait(wanted)

    def _wait(self, wanted: Wanted) -> None:
        """Until its point is applied."""
        state, wanted.heaped = wanted.state, True
        self._waited += 1
        if state.reads is None:
            state.reads = []
        heappush(state.reads, (wanted.point, next(self._order), wanted))

    def _wait_again(self, state: GroupState, lined: Lined) -> None:
        """A read of the line waits: its group was set back since."""
        point, machine, query, _, future = lined
        due_us = NEVER_US  # its caller's affair
        wanted = Wanted(state, machine, [query], "linearizable", due_us, Single(future))
        wanted.point, wanted.counted = point, True
        with self._lock:
            self._waiting += 1
        self._wait(wanted)
        future.add_done_callback(lambda _: self.forget(wanted))

    def _ready(self, wanted: Wanted) -> None:
        self._due.setdefault(wanted.state.group, deque()).append(wanted)

    def reached(self, state: GroupState) -> None:
        """More of a group is applied, or it stopped."""
        reads = state.reads
        while reads and (state.stopped is not None or reads[0][0] <= state.applied):
            wanted: Wanted = heappop(reads)[2]
            if wanted.heaped:
                wanted.heaped = False
                self._ready(wanted)
            else:
                self._forgotten[state.group] -= 1

    def _answer(self, wanted: Wanted, until_ns: int) -> bool:
        """Run (more of) its queries; False when time was up before the last."""
        state, queries, answers = wanted.state, wanted.queries, wanted.answers
        if wanted.over():
            self._ended(wanted)
            return True
        try:
            query = self._machine(state, wanted.machine).query
            if state.applied < wanted.point:  # it was set back since
                self._wait(wanted)
                return True
            if wanted.version and not answers and wanted.version != self.version_of(state.group):
                # Those who were asked are not who decides now: what others have chosen since, and
                # was complete before this read began, they need not have heard of
                # (docs/design/membership.md, "Quorum reads").
                wanted.version = 0
                self._take(wanted)
                return True
            instance = holds(state, wanted.machine)
            lag_us = self._lag_us(state) if wanted.consistency == "stale" else 0
            chunk, began_ns = 1, perf_counter_ns()
            while (at := len(answers)) < len(queries):
                answers += [Read(query(one), instance, lag_us) for one in queries[at : at + chunk]]
                now_ns = perf_counter_ns()
                if now_ns >= until_ns and len(answers) < len(queries):
                    return False
                chunk = min(2 * chunk, CHUNK_MAX) if now_ns - began_ns < QUERIES_NS // 16 else 1
                began_ns = now_ns
        except BaseException as error:
            self._failed(wanted, error)
            if not isinstance(error, Exception):
                raise
            return True
        self._reads += len(answers)
        self._ended(wanted)
        if not wanted.over():  # (while a query ran)
            wanted.waiter.set_result(answers)
        return True

    def _answer_line(self, state: GroupState, line: deque[Lined], until_ns: int) -> bool:
        """Answer those of a group that wait for nothing but their turn; False when time was up."""
        instance, lag_us, known, query = 0, -1, -1, None
        while line:
            if perf_counter_ns() >= until_ns:
                return False
            point, machine, asked, stale, future = lined = line.popleft()
            self._queued -= 1
            if future.done():
                continue
            try:
                if machine != known:
                    known, query = machine, self._machine(state, machine).query
                    instance = holds(state, machine)
                if state.applied < point:
                    self._wait_again(state, lined)
                    continue
                if stale and lag_us < 0:
                    lag_us = self._lag_us(state)
                assert query is not None
                found = Read(query(asked), instance, lag_us if stale else 0)
            except BaseException as error:
                self._errors += 1
                if not future.done():
                    future.set_exception(raisable(error))
                if not isinstance(error, Exception):
                    raise
            else:
                self._reads += 1
                if not future.done():  # (while the query ran)
                    future.set_result(found)
        return True

    def _failed(self, wanted: Wanted, error: BaseException) -> None:
        self._errors += 1
        self._ended(wanted)
        wanted.fail(raisable(error))

    def _ended(self, wanted: Wanted) -> None:
        """It does not count any more; once."""
        if wanted.counted:
            wanted.counted = False
            with self._lock:
                self._waiting -= 1

    # --- giving up

    def give_up(self, wanted: Wanted) -> None:
        """Nobody waits for it any more. Any thread."""
        wanted.dropped = True
        self._dropped.append(wanted)
        with suppress(Exception):  # a node that closes has no turns
            self._poke()

    def forget(self, wanted: Wanted) -> None:
        """The same, on the thread that applies."""
        wanted.dropped = True
        if not wanted.heaped:
            return
        wanted.heaped = False
        self._ended(wanted)
        reads, group = wanted.state.reads or [], wanted.state.group
        forgotten = self._forgotten[group] = self._forgotten.get(group, 0) + 1
        if 2 * forgotten > len(reads):
            reads[:] = [one for one in reads if one[2].heaped]
            heapify(reads)
            self._forgotten[group] = 0

    def end(self, states: Mapping[int, GroupState], refusal: Callable[[], PhxError]) -> None:
        """Every read that waits fails, and so does every one that begins."""
        with self._lock:
            self._refusal = refusal
        if self.asking is not None:
            self.asking.end(refusal)
        left = list(self._begun)
        self._begun.clear()
        if (serving := self._serving) is not None:
            left.append(serving)
        for line in self._due.values():
            left += line
        self._due = {}
        for state in states.values():
            left += [one[2] for one in state.reads or ()]
            state.reads = None
        self._forgotten = {}
        futures = [one[-1] for line in self._line.values() for one in line]
        self._line = {}
        for future in futures:
            with suppress(RuntimeError):
                if not future.done():
                    future.set_exception(refusal())
        for wanted in left:
            with suppress(RuntimeError):  # an event loop that was closed before its node
                wanted.fail(refusal())
