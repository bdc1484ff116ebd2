"""The door through which all groups of a node propose, read and ask: checks, limits, errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from threading import Lock
from typing import Any, Protocol

from phx._core.driver import (
    ERROR_CLOSED,
    ERROR_FORKED,
    ERROR_JOURNAL,
    ERROR_OPTION,
    ERROR_OVERLOADED,
    ERROR_TOO_LARGE,
    ERROR_UNKNOWN_GROUP,
    NO_SYNC,
    TRANSFER_NOT_LEADING,
    TRANSFER_NOT_READY,
    Driver,
    DriverError,
)
from phx._core.entries import entries_of
from phx._core.waiters import IN_FLIGHT_MAX, Waiters
from phx.applier import GroupState
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
from phx.machine import StateMachine, has_prepare, is_compared
from phx.pressure import Pressure
from phx.reading import Reading, Waiter, Wanted, span_us
from phx.stops import parked, same_stop
from phx.types import (
    CheckpointInfo,
    Consistency,
    DurabilityMode,
    Entry,
    GroupStatus,
    Leader,
    Member,
    Members,
    Role,
)

__all__ = ["Archive", "Changing", "Door", "prepared"]

READ_NOT_CHOSEN = 0
READ_SETTLED = 1


class Archive(Protocol):
    """What reading needs of the store."""

    def entry(self, group: int, instance: int) -> bytes | None: ...


class Changing(Protocol):
    """What changes members (phx.node.changes). All raise what is known at once."""

    def set_members(
        self, of: GroupState, members: Mapping[int, Member], version: int | None, timeout: float, /
    ) -> Future[Members]: ...
    def add(
        self, of: GroupState, node: int, address: str, role: Role, timeout: float, /
    ) -> Future[Members]: ...
    def remove(self, of: GroupState, node: int, timeout: float, /) -> Future[Members]: ...
    def replace(
        self, of: GroupState, node: int, by: int, address: str, timeout: float, /
    ) -> Future[Members]: ...


class Settable(Protocol):
    """What changes how durable groups are (`phx.node.relaxing`)."""

    def set(self, group: int, mode: DurabilityMode, interval_us: int | None) -> Future[None]: ...

    def added(self, group: int) -> None: ...

    def dropped(self, group: int) -> None: ...


class Door:
    """Everything between a caller and the driver: checks, limits, waiters, errors.

    Attributes:
        refusal: makes the error that every call gets; None while the node is open.
        turned_away: makes the error that every new value gets; None: they are taken.
        pressure: says why the journal takes none.
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
        self.known: Callable[[int], bool] = lambda node: False  # a node of the cluster
        self.members_of: Callable[[int], Members] | None = None  # raises DriverError
        self.changing: Changing
        self.relaxing: Settable | None = None
        self.soon: Soon = _nowhere  # has callbacks called, off the applying path
        self.rebuild: Callable[[int], Future[None]] | None = None
        self.restoring: Callable[[int], bool] = lambda _: False
        self.reading: Reading
        self.turned_away: Callable[[], PhxError] | None = None
        self.pressure: Pressure
        self._value_bytes_max = limits.value_bytes_max
        self._add = waiters.add
        self._submit = driver.submit
        self._now_us = driver.now_us
        self._connect(driver.submit)

    def _connect(self, submit: Callable[..., int]) -> None:
        driver = self.driver
        self.waiters.connect(
            submit, driver.now_us, self._value_bytes_max, driver.behind_us, driver.turning_away
        )

    def turn_away(self, make: Callable[[], PhxError] | None) -> None:
        """From now on every new value gets this error, at once; None: they are taken again. What
        was taken before is not touched. On the thread that applies."""
        with self.lock:
            self.turned_away = make
            self._connect(self.driver.submit if make is None else _refused)

    def refuse_values(self) -> None:
        """Raises what every call, or every new value, gets now."""
        if self.refusal is not None:
            raise self.refusal()
        if (make := self.turned_away) is not None:
            raise make()

    def submit(
        self, state: GroupState, waiter: object, value: bytes, timeout: float | None, machine: int
    ) -> None:
        """Propose one value for `waiter`; raises what is known at once, and then takes nothing."""
        self.refuse_values()
        if type(value) is not bytes:
            value = _as_bytes(value)
        if machine not in state.taking:
            self._check(state, machine)
            value = prepared(state.machines[machine], [value])[0]
        size = len(value)
        if size > self._value_bytes_max:
            raise self._too_large(size)
        now_us = self._now_us()
        due_us = now_us + span_us(timeout)
        group = state.group
        first = self._add(group, waiter, size, now_us)
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
        self.refuse_values()
        self._check(state, machine)
        for at, value in enumerate(values):
            if type(value) is not bytes:
                values[at] = _as_bytes(value)
        values = prepared(state.machines[machine], values)
        if (size := max(map(len, values))) > self._value_bytes_max:
            raise self._too_large(size)
        now_us = self._now_us()
        due_us = now_us + span_us(timeout)
        group = state.group
        first = self.waiters.add_many(group, future, values, now_us)
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
        if state.parked:
            raise parked(state)
        if machine not in state.machines:
            raise UnknownMachine(f"group {state.group} has no machine {machine}")

    def _too_large(self, size: int) -> ValueTooLarge:
        return ValueTooLarge(
            f"{size} bytes are more than limits.value_bytes_max, {self._value_bytes_max}"
        )

    def _overloaded(self, group: int, count: int, nbytes: int) -> Overloaded:
        limits, waiters = self.limits, self.waiters
        if (held_up := waiters.turn_away(group, count)) is not None:
            own, waiting, waiting_bytes, window, window_bytes = held_up
            where = f"group {group}" if own else "the node"
            return Overloaded(
                f"limits.wait_us_max is {limits.wait_us_max}: {waiting} values, {waiting_bytes} "
                f"bytes, wait in {where}, and {window} or {window_bytes} bytes leave in that time"
            )
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

    def set_durability(
        self, state: GroupState, mode: DurabilityMode, interval_us: int | None
    ) -> Future[None]:
        """See Group.set_durability."""
        self.open_driver()
        assert self.relaxing is not None
        return self.relaxing.set(state.group, mode, interval_us)

    def open_driver(self) -> Driver:
        """The driver, if the node is open."""
        if self.refusal is not None:
            raise self.refusal()
        return self.driver

    def status(self, state: GroupState) -> GroupStatus:
        found = self.open_driver().group_status(state.group)
        waiting, waiting_bytes = self.waiters.waiting(state.group)
        turned_away, window = self.waiters.gate_of_group(state.group)
        return GroupStatus(
            group=state.group,
            leader=int(found["leader"]) or None,
            leading=bool(found["leading"]),
            stopped=state.stopped is not None or state.parked or bool(found["stopped"]),
            removed=state.removed,
            halted=bool(found["halted"]),
            suspect=bool(found["suspect"]),
            durability=mode_of(int(found["sync_within_us"])),
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
            turned_away=turned_away,
            wait_window=window,
            digest=state.digest,
            digest_at=state.digest_at,
            state_compared=all(is_compared(one) for one in state.machines.values()),
        )

    def members_now(self, state: GroupState) -> Members:
        self.open_driver()
        assert self.members_of is not None
        try:
            return self.members_of(state.group)
        except DriverError as error:
            raise self.error_of(error) from error

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
        need_member(state)
        if to and to not in self.members_now(state).by_id:
            raise NotInCluster(f"node {to} is no member")
        verdict, epoch = driver.transfer(state.group, to)
        if verdict == TRANSFER_NOT_LEADING:
            led = state.led
            known = None if led is None or led.node == self.node else led.node
            raise NotLeader(state.group, known)
        if verdict == TRANSFER_NOT_READY:
            who = f"node {to}" if to else "every other member"
            raise TransferFailed(
                f"group {state.group}: {who} is not connected, far behind, or cannot lead it now"
            )
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

    def _hosted(self, state: GroupState) -> None:
        """Raises NotInCluster, GroupDeleted: it is not, any more."""
        need_member(state)
        if state.group not in self.states:
            raise NotInCluster(f"group {state.group} is not hosted here any more")

    def take_checkpoint(self, state: GroupState) -> Future[CheckpointInfo]:
        self.open_driver()
        self._hosted(state)
        assert self.checkpoint is not None
        return self.checkpoint(state.group)

    def make_anew(self, state: GroupState) -> Future[None]:
        self.open_driver()
        self._hosted(state)
        assert self.rebuild is not None
        group = state.group
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


def mode_of(within_us: int) -> DurabilityMode:
    """What the driver was told (`Driver.durability`), by its name."""
    if within_us == 0:
        return "sync"
    return "none" if within_us == NO_SYNC else "interval"


def need_member(state: GroupState) -> None:
    """Raises NotInCluster: this node is no member of the group any more."""
    if state.removed and state.stopped is not None:
        raise same_stop(state.stopped)


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


def _refused(*_: object) -> int:
    """In the place of the driver's, for the short way in: the long one says why."""
    raise Overloaded("new values are turned away")


def _nowhere(call: Callable[[], None]) -> object:
    raise AssertionError("the node is not open")
