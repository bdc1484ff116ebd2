"""One group as its user sees it, and the door through which all groups of a node propose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from phx._core.driver import (
    ERROR_CLOSED,
    ERROR_FORKED,
    ERROR_JOURNAL,
    ERROR_OPTION,
    ERROR_OVERLOADED,
    ERROR_TOO_LARGE,
    ERROR_UNKNOWN_GROUP,
    TRANSFER_NOT_LEADING,
    TRANSFER_NOT_READY,
    Driver,
    DriverError,
)
from phx._core.entries import entries_of
from phx._core.waiters import IN_FLIGHT_MAX, Result, Waiters
from phx.applier import GroupState, same_stop
from phx.config import Limits
from phx.errors import (
    CheckpointFailed,
    Closed,
    ConfigError,
    ForkedError,
    NoLongerKept,
    NotChosenYet,
    NotInCluster,
    NotLeader,
    Overloaded,
    PhxError,
    PrepareFailed,
    Rejected,
    StoreError,
    SystemFailure,
    TransferFailed,
    UnknownMachine,
    ValueTooLarge,
)
from phx.leaders import LeaderCallback, Soon, Watcher
from phx.machine import StateMachine, has_prepare
from phx.reading import Reading, Waiter, Wanted, span_us
from phx.types import CheckpointInfo, Consistency, Entry, GroupStatus, Leader, Read

if TYPE_CHECKING:
    from phx.machines.lease import Lease, Leases

__all__ = ["TIMEOUT_S", "Group"]

TIMEOUT_S = 10.0
"""How long ``propose`` tries unless it is told otherwise."""

READ_NOT_CHOSEN = 0
READ_SETTLED = 1


class Archive(Protocol):
    """What reading needs of the store."""

    def entry(self, group: int, instance: int) -> bytes | None: ...


class Door:
    """Everything between a caller and the driver: checks, limits, waiters, errors.

    Attributes:
        refusal: makes the error that every call gets; None while the node is open.
    """

    def __init__(
        self, driver: Driver, waiters: Waiters, states: Mapping[int, GroupState], limits: Limits
    ) -> None:
        self.driver = driver
        self.waiters = waiters
        self.states = states
        self.limits = limits
        self.lock = Lock()  # held by callers that may propose from several threads
        self.refusal: Callable[[], PhxError] | None = None
        self.archive: Archive | None = None
        self.frontier: Callable[[int], int] = lambda group: 0
        self.checkpoint_error: Callable[[int], str | None] = lambda group: None
        self.checkpoint: Callable[[int], Future[CheckpointInfo]] | None = None
        self.node = 0
        self.members: Collection[int] = ()
        self.soon: Soon = _nowhere  # has callbacks called, off the applying path
        self.rebuild: Callable[[int], Future[None]] | None = None
        self.restoring: Callable[[int], bool] = lambda _: False
        self.reading: Reading
        self._value_bytes_max = limits.value_bytes_max
        self._add = waiters.add
        self._submit = driver.submit
        self._now_us = driver.now_us
        waiters.connect(driver.submit, driver.now_us, limits.value_bytes_max)

    def submit(
        self, state: GroupState, waiter: object, value: bytes, timeout: float | None, machine: int
    ) -> None:
        """Propose one value for `waiter`; raises what is known at once, and then takes nothing."""
        if self.refusal is not None:
            raise self.refusal()
        if type(value) is not bytes:
            value = _as_bytes(value)
        if machine not in state.taking:
            self._check(state, machine)
            value = prepared(state.machines[machine], [value])[0]
        size = len(value)
        if size > self._value_bytes_max:
            raise self._too_large(size)
        due_us = self._now_us() + span_us(timeout)
        group = state.group
        first = self._add(group, waiter, size)
        if not first:
            raise self._overloaded(group, 1, size)
        try:
            given = self._submit(group, machine, [value], due_us)
        except BaseException as error:
            self._taken_back(error, group, first)
            raise
        if given != first:
            raise AssertionError(f"sequence {given} was given for {first}")

    def submit_many(
        self,
        state: GroupState,
        future: object,
        values: list[bytes],
        timeout: float | None,
        machine: int,
    ) -> None:
        """The same for a run of values with one future, whose result is a list of Result."""
        if self.refusal is not None:
            raise self.refusal()
        self._check(state, machine)
        for at, value in enumerate(values):
            if type(value) is not bytes:
                values[at] = _as_bytes(value)
        values = prepared(state.machines[machine], values)
        if (size := max(map(len, values))) > self._value_bytes_max:
            raise self._too_large(size)
        due_us = self._now_us() + span_us(timeout)
        group = state.group
        first = self.waiters.add_many(group, future, values)
        if not first:
            raise self._overloaded(group, len(values), sum(map(len, values)))
        try:
            given = self._submit(group, machine, values, due_us)
        except BaseException as error:
            self._taken_back(error, group, first)
            raise
        if given != first:
            raise AssertionError(f"sequence {given} was given for {first}")

    def _taken_back(self, error: BaseException, group: int, first: int) -> None:
        """Nothing of this call was submitted: nobody waits for it."""
        self.waiters.revoke(group, first)
        if isinstance(error, DriverError):
            raise self.error_of(error) from None

    def _check(self, state: GroupState, machine: int) -> None:
        if state.stopped is not None:
            raise same_stop(state.stopped)
        if machine not in state.machines:
            raise UnknownMachine(f"group {state.group} has no machine {machine}")

    def _too_large(self, size: int) -> ValueTooLarge:
        return ValueTooLarge(
            f"{size} bytes are more than limits.value_bytes_max, {self._value_bytes_max}"
        )

    def _overloaded(self, group: int, count: int, nbytes: int) -> Overloaded:
        limits, waiters = self.limits, self.waiters
        waiting, waiting_bytes = waiters.waiting(group)
        for name, used, more, limit in (
            ("group_values_max", waiting, count, limits.group_values_max),
            ("group_bytes_max", waiting_bytes, nbytes, limits.group_bytes_max),
            ("node_values_max", waiters.count, count, limits.node_values_max),
            ("node_bytes_max", waiters.held_bytes, nbytes, limits.node_bytes_max),
        ):
            if used + more > limit:
                return Overloaded(f"limits.{name} is {limit}: {used} in flight and {more} more")
        return Overloaded(
            f"group {group} has a value in flight that is {IN_FLIGHT_MAX} sequences behind"
        )

    def error_of(self, error: DriverError) -> PhxError:
        """The typed error for one of the driver's."""
        match error.code:
            case code if code == ERROR_CLOSED:
                return Closed("the node is closed")
            case code if code == ERROR_OVERLOADED:
                return Overloaded(error.message)
            case code if code == ERROR_UNKNOWN_GROUP:
                return NotInCluster(error.message)
            case code if code == ERROR_TOO_LARGE:
                return ValueTooLarge(error.message)
            case code if code == ERROR_FORKED:
                return ForkedError(error.message)
            case code if code == ERROR_OPTION:
                return ConfigError([error.message])
            case code if code > ERROR_JOURNAL:
                return StoreError(error.message)
        return SystemFailure(f"{error.message} (driver error {error.code})")

    # --- looking

    def open_driver(self) -> Driver:
        """The driver, if the node is open."""
        if self.refusal is not None:
            raise self.refusal()
        return self.driver

    def status(self, state: GroupState) -> GroupStatus:
        found = self.open_driver().group_status(state.group)
        waiting, waiting_bytes = self.waiters.waiting(state.group)
        return GroupStatus(
            group=state.group,
            leader=int(found["leader"]) or None,
            leading=bool(found["leading"]),
            stopped=state.stopped is not None or bool(found["stopped"]),
            halted=bool(found["halted"]),
            suspect=bool(found["suspect"]),
            restoring=self.restoring(state.group),
            promised=int(found["promised"]),
            ballot=int(found["ballot"]),
            chosen_through=int(found["chosen_through"]),
            applied_through=state.applied,
            settled_through=int(found["settled_through"]),
            floor=int(found["floor"]),
            frontier=self.frontier(state.group),
            checkpoint_error=self.checkpoint_error(state.group),
            accepted_last=int(found["accepted_last"]),
            waiting_values=waiting,
            waiting_bytes=waiting_bytes,
            digest=state.digest,
            digest_at=state.digest_at,
        )

    def watch(self, state: GroupState, call: LeaderCallback) -> Watcher:
        self.open_driver()
        watcher = Watcher(state, call, self.soon)
        with self.lock:
            state.watchers += (watcher,)
        watcher.changed()
        return watcher

    def unwatch(self, state: GroupState, watcher: Watcher) -> None:
        watcher.stop()
        with self.lock:
            state.watchers = tuple(one for one in state.watchers if one is not watcher)

    def give(self, state: GroupState, to: int) -> int:
        """Begin a transfer; the epoch that this node led in. Raises as transfer_leadership."""
        driver = self.open_driver()
        if to and to not in self.members:
            raise NotInCluster(f"node {to} is no member")
        verdict, epoch = driver.transfer(state.group, to)
        if verdict == TRANSFER_NOT_LEADING:
            led = state.led
            known = None if led is None or led.node == self.node else led.node
            raise NotLeader(state.group, known)
        if verdict == TRANSFER_NOT_READY:
            who = f"node {to}" if to else "every other member"
            raise TransferFailed(f"group {state.group}: {who} is not connected, or far behind")
        return epoch

    def given(self, state: GroupState, to: int, leader: Leader | None) -> Leader:
        """What came of it: `leader` is who leads after the transfer, None: nobody in time."""
        if leader is None:
            raise TransferFailed(f"group {state.group}: nobody was heard to lead in time")
        if (leader.node != to) if to else (leader.node == self.node):
            raise TransferFailed(f"group {state.group}: node {leader.node} leads it now")
        return leader

    def wanted(
        self,
        state: GroupState,
        waiter: Waiter,
        queries: list[Any],
        consistency: Consistency,
        timeout: float | None,
        machine: int,
    ) -> Wanted:
        """A read that has begun; raises what is known at once."""
        self.open_driver()
        due_us = self._now_us() + span_us(timeout)
        return self.reading.begin(Wanted(state, machine, queries, consistency, due_us, waiter))

    def take_checkpoint(self, group: int) -> Future[CheckpointInfo]:
        self.open_driver()
        assert self.checkpoint is not None
        return self.checkpoint(group)

    def make_anew(self, group: int) -> Future[None]:
        self.open_driver()
        assert self.rebuild is not None
        try:
            return self.rebuild(group)
        except DriverError as error:
            raise self.error_of(error) from error
        except OSError as error:
            raise CheckpointFailed(f"group {group}: it cannot be noted: {error}") from error

    def entry(self, group: int, instance: int) -> list[Entry]:
        """The values of an instance, from memory, the journal or the store; may read from disk."""
        if instance < 1:
            raise ValueError("instances are counted from 1")
        driver = self.open_driver()
        try:
            found = driver.read(group, instance)
        except DriverError as error:
            raise self.error_of(error) from error
        if isinstance(found, bytes):
            return entries_of(group, instance, found)
        if found == READ_NOT_CHOSEN:
            raise NotChosenYet(f"group {group}: instance {instance} is not known to be chosen")
        if found == READ_SETTLED and self.archive is not None:
            body = self.archive.entry(group, instance)
            if body is not None:
                return entries_of(group, instance, body)
            raise NoLongerKept(f"group {group}: instance {instance} is not kept any more")
        raise NotInCluster(f"group {group} is not hosted here")


def prepared(machine: StateMachine, values: list[bytes]) -> list[bytes]:
    """What is proposed in the place of these values; only a machine with ``prepare`` is asked.

    Raises a Rejected that the machine raised; PrepareFailed for anything else.
    """
    if not has_prepare(machine):
        return values
    try:
        made = list(machine.prepare_batch(values))
        if len(made) != len(values):
            raise ValueError(f"prepare_batch returned {len(made)} for {len(values)} values")
        return [value if type(value) is bytes else _as_bytes(value) for value in made]
    except Rejected:
        raise
    except Exception as error:
        raise PrepareFailed(f"prepare raised {type(error).__name__}: {error}") from error


def _as_bytes(value: object) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"a value is bytes, not {type(value).__name__}")


def _nowhere(call: Callable[[], None]) -> object:
    raise AssertionError("the node is not open")


class GroupView:
    """What both kinds of Group share: looking, without waiting."""

    __slots__ = ("__weakref__", "_door", "_node", "_state")

    def __init__(self, door: Door, state: GroupState, node: object) -> None:
        self._door = door
        self._state = state
        self._node = node  # a group in use keeps its node from being collected

    @property
    def id(self) -> int:
        """The group's id."""
        return self._state.group

    def machine(self, machine: int = 0) -> StateMachine:
        """This node's machine with that id: its state here and now, which may lag behind others."""
        try:
            return self._state.machines[machine]
        except KeyError:
            raise UnknownMachine(f"group {self.id} has no machine {machine}") from None

    def status(self) -> GroupStatus:
        """The group as this node sees it."""
        return self._door.status(self._state)

    def leader(self) -> Leader | None:
        """Who leads, as this node was told last; None: it knows of nobody. Costs nothing.

        A belief, which lags: the others may have gone on. Guarantee: its epoch never goes back, and
        nodes that are told of one epoch are told of one node. See docs/howto/know-the-leader.md.
        """
        self._door.open_driver()
        return self._state.led

    @property
    def is_leader(self) -> bool:
        """This node believes that it leads. It may be the last to learn that it does not."""
        led = self.leader()
        return led is not None and led.node == self._door.node

    def on_leader_change(self, callback: LeaderCallback) -> Callable[[], None]:
        """Have `callback(leader)` called with who leads now, and then whenever that changes.

        Guarantee: in order, never twice the same, and what holds comes last; epochs only grow. A
        change that was overtaken before it was told is left out; that the epoch is another is never
        left out. None: nobody is known to lead, at the latest when the node closes. For asyncio it
        is called from the event loop, in a turn of its own; for a blocking node in a thread that
        all its callbacks share, and must not wait there for a transfer. What it raises is logged. A
        slow one delays other callbacks only.

        Returns:
            A function that ends it.
        """
        watcher = self._door.watch(self._state, callback)
        return lambda: self._door.unwatch(self._state, watcher)

    def _leases(self, machine: int | None) -> tuple[int, Callable[[], Leases]]:
        """The id of a machine for leases, None: of the only one; and that machine as it is then."""
        from phx.machines.lease import Leases

        found = [n for n, one in self._state.machines.items() if isinstance(one, Leases)]
        at = found[0] if machine is None and len(found) == 1 else machine
        if at is None or at not in found:
            raise UnknownMachine(f"group {self.id} has {len(found)} machines for leases")

        def leases() -> Leases:
            one = self.machine(at)
            assert isinstance(one, Leases)
            return one

        return at, leases

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.Group {self.id}>"


class Group(GroupView):
    """One Paxos log and its machines, for the event loop in which the node was opened.

    Not thread-safe: use it from that loop only.
    """

    __slots__ = ("_future", "_loop", "_propose", "_propose_many")

    def __init__(
        self, door: Door, state: GroupState, node: object, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(door, state, node)
        self._loop = loop
        self._future = loop.create_future
        self._propose = door.waiters.propose
        self._propose_many = door.waiters.propose_many

    def propose(
        self, value: bytes, *, timeout: float | None = TIMEOUT_S, machine: int = 0
    ) -> asyncio.Future[Result]:
        """Have `value` chosen and applied; a future for Result(instance, what apply returned).

        A plain function: the value is on its way when it returns, awaited or not. Cancelling the
        future only stops the waiting: the value may still be chosen, and no other caller notices.

        Args:
            value: the command, at most ``limits.value_bytes_max`` bytes once the machine's
                ``prepare`` has seen it. It is applied exactly once however often it is sent; equal
                bytes proposed twice are two values.
            timeout: seconds until the future fails with TimedOut, NoQuorum or TimedOutUnknown;
                None: never. Kept by the engine's clock, which counts suspension.
            machine: id of the machine in the group.

        Raises:
            Overloaded, ValueTooLarge, UnknownMachine, GroupStopped, PrepareFailed, Closed,
                ForkedError: at once; the value was not taken.

        The future may fail with: TimedOut, NoQuorum, Overloaded, GroupStopped (rejected: safe to
        retry), TimedOutUnknown, StoppedUnknown, ClosedUnknown, NotApplied (unknown: may be
        applied).
        """
        future = self._future()
        state = self._state
        if machine not in state.taking or not self._propose(
            state.group, machine, value, timeout, future
        ):
            self._door.submit(state, future, value, timeout, machine)
        return future

    def propose_many(
        self, values: Iterable[bytes], *, timeout: float | None = TIMEOUT_S, machine: int = 0
    ) -> asyncio.Future[list[Result]]:
        """Have several values chosen and applied, in order; a future for the list of their Results.

        Much cheaper per value than ``propose``. They share instances where they can, but this is no
        transaction: when some fail, the future fails with PartlyDone, which has every outcome; when
        all were rejected alike, with that error.

        Args, Raises: as ``propose``; either all values are taken or none.
        """
        future = self._future()
        values = list(values)
        if not values:
            future.set_result([])
            return future
        state = self._state
        if machine not in state.taking or not self._propose_many(
            state.group, machine, values, timeout, future
        ):
            self._door.submit_many(state, future, values, timeout, machine)
        return future

    async def transfer_leadership(self, to: int, *, timeout: float = TIMEOUT_S) -> Leader:
        """Have member `to` lead this group, which this node leads; who leads, when it does.

        About two round trips and two syncs. Nothing that is proposed meanwhile fails by it: what is
        open is finished by the next leader, what waits goes to it. The group stays there until that
        leadership ends, also where another node would be preferred (``Config.balance``).

        Args:
            to: a member; this node itself: nothing is to be done.
            timeout: seconds to wait for the news.

        Raises:
            NotLeader: this node does not lead.
            TransferFailed: that node is not connected or far behind (nothing was done), or somebody
                else leads in the end, or nobody was heard to lead in time.
            NotInCluster: `to` is no member.
        """
        return await self._move(to, timeout)

    async def resign(self, *, timeout: float = TIMEOUT_S) -> Leader:
        """Give the leadership of this group to another member that can take it; who leads then.

        As ``transfer_leadership``, to the member that the group prefers among the others.
        """
        return await self._move(0, timeout)

    async def _move(self, to: int, timeout: float) -> Leader:
        door, state, future = self._door, self._state, self._future()
        given = door.give(state, to)
        if to == door.node:
            return Leader(to, given)

        def heard(leader: Leader | None) -> None:
            if door.refusal is not None and not future.done():
                future.set_exception(door.refusal())
            elif leader is not None and leader.epoch > given and not future.done():
                future.set_result(leader)

        stop = self.on_leader_change(heard)
        try:
            async with asyncio.timeout(timeout):
                leader = await future
        except TimeoutError:
            leader = None
        finally:
            stop()
        return door.given(state, to, leader)

    async def lease(
        self,
        name: str,
        ttl: float,
        *,
        holder: str | None = None,
        under: Lease | int = 0,
        machine: int | None = None,
        timeout: float = TIMEOUT_S,
    ) -> Lease:
        """Hold a named lease of this group's ``phx.machines.Leases``; waits until it is to be had.

            async with await group.lease("jobs/night", ttl=10) as lease:
                while lease.held: ...

        Guarantee: while ``lease.held`` nobody else holds the name, one above it or one below it,
        but for those that were let in; see phx.machines.lease for what clocks have to keep. While
        somebody is known to hold it, nothing is proposed.

        Args:
            name: a path of at most 16 parts and 512 bytes: "jobs", "jobs/night".
            ttl: seconds for which it is held (1 ms .. 30 days); ``lease.renew()`` begins anew.
            holder: who holds it, at most 256 bytes; a holder gets what it holds already, with a new
                token. Default: somebody new.
            under: the lease above, or its token, of whoever lets this one in.
            machine: id of the machine; default: the only Leases that the group has.
            timeout: seconds to wait for it.

        Raises:
            TimedOut: it was not to be had in that time.
            ValueError: not a name, a holder or a time.
            UnknownMachine: no such machine, or none by itself.
            Anything that ``propose`` raises. After an Unknown it may be held, by nobody who knows.
        """
        from phx.machines.lease import Lease, Wanted, acquire, new_holder

        machine, leases = self._leases(machine)
        lease = Lease(self, machine, leases().clock, name, holder or new_holder())
        return await acquire(lease, Wanted(lease, leases, ttl, under, timeout))

    async def read(
        self,
        query: Any,
        *,
        consistency: Consistency = "linearizable",
        timeout: float | None = TIMEOUT_S,
        machine: int = 0,
    ) -> Read:
        """What this node's machine answers to `query`; nothing is written, and nothing synced.

        Guarantee, by `consistency`:
            linearizable: it sees every write that was complete, at any node, when the read began,
                and what every linearizable read had seen that was complete.
            lease: the same, here and now: where this node leads under a lease. Needs clocks of
                which none runs an eighth faster than another.
            stale: a state that was; ``lag_us`` says how old it may be.

        "linearizable" is to be had only where "lease" is.

        Args:
            query: what the machine's ``query`` takes. It stays in this process.
            timeout: seconds; None: never.
            machine: id of the machine in the group.

        Raises (all of them safe to repeat):
            NotLeader: this node does not lead, or its lease does not run; ``leader`` may say who.
            TimedOut: the state was not there in time.
            NoQueries: the machine has no ``query``. What ``query`` raises comes as it is.
            GroupStopped, GroupRestoring, UnknownMachine, Overloaded, Closed, ForkedError.
        """
        door = self._door
        if door.refusal is not None:
            raise door.refusal()
        found = door.reading.at_once(self._state, query, consistency, machine)
        if isinstance(found, Read):
            return found
        if found is not None:
            return await found
        return (await self._read([query], consistency, timeout, machine))[0]

    async def read_many(
        self,
        queries: Iterable[Any],
        *,
        consistency: Consistency = "linearizable",
        timeout: float | None = TIMEOUT_S,
        machine: int = 0,
    ) -> list[Read]:
        """The answers to several queries, in order, for one read point; see ``read``.

        Much cheaper per query. It is no transaction: other values may be applied between two of
        many queries, and each Read says of which instance it is. The first query that raises ends
        it, with what that raised.
        """
        queries = list(queries)
        return await self._read(queries, consistency, timeout, machine) if queries else []

    async def _read(
        self, queries: list[Any], consistency: Consistency, timeout: float | None, machine: int
    ) -> list[Read]:
        future: asyncio.Future[list[Read]] = self._future()
        door = self._door
        wanted = door.wanted(self._state, future, queries, consistency, timeout, machine)
        return await door.reading.answered(wanted, future, timeout)

    async def entry(self, instance: int) -> list[Entry]:
        """The values of an old instance, as they stand in the log, duplicates included.

        Raises:
            NotChosenYet: this node does not know it to be chosen.
            NoLongerKept: it lies below what this node keeps.
        """
        return await self._loop.run_in_executor(None, self._door.entry, self.id, instance)

    async def checkpoint(self) -> CheckpointInfo:
        """Write down the state as of now, or a little later; when it is durable.

        The group goes on meanwhile. A start of this node begins with the newest checkpoint.

        Raises:
            CheckpointFailed: it says why; nothing has changed.
            Closed: the node is not open.
        """
        return await asyncio.wrap_future(self._door.take_checkpoint(self.id))

    async def repair(self) -> None:
        """Make the state here anew from a checkpoint of another node; when the group goes on.

        For a group that stopped, or whose state here is not to be believed. Nothing of what this
        node has is used for it: its checkpoints go to quarantine. Votes and log stay. It waits
        until another node is there that has the state, and is not in doubt itself; if the node
        closes before, the next one that opens the folder goes on with it. ``machine()`` gives
        another object afterwards.

        Raises:
            CheckpointFailed: no other node has the group, it is being restored, or that it is to be
                made anew cannot be noted on the disk.
            Closed: the node is not open, or closes.
        """
        loop = self._loop
        await asyncio.wrap_future(await loop.run_in_executor(None, self._door.make_anew, self.id))
