"""phx without an event loop: the same names, without ``await``.

    with phx.blocking.Node(config, machines) as node:
        result = node.group(7).propose(b"...")

Machines are called on one thread of the node. Any number of threads may propose; each waits on a
Python lock, so that Ctrl-C works.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from phx.config import Config
from phx.errors import Closed, NotInCluster, NotReady, TimedOut
from phx.group import CHANGE_S, TIMEOUT_S, GroupView
from phx.leaders import CallbackThread
from phx.machine import Machines
from phx.node import AFTER_ERROR_S, CLOSE_S, READY_S
from phx.node.goals import adding, exactly, removing, replacing
from phx.node.room import Room
from phx.node.status import forgetting
from phx.types import (
    Changed,
    CheckpointInfo,
    Consistency,
    CreatedGroup,
    DurabilityMode,
    Entry,
    Leader,
    Member,
    Members,
    Moved,
    NodeStatus,
    Read,
    Result,
    Role,
)

if TYPE_CHECKING:
    from phx.machines.lease import BlockingLease

__all__ = ["Group", "Node"]

log = logging.getLogger("phx")


class Cell:
    """What one thread waits for: a result or an error. Whoever sets it first has set it."""

    __slots__ = ("_error", "_lock", "_taken", "_value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._taken = threading.Lock()  # held by whoever sets it, for ever
        self._value: Any = None
        self._error: BaseException | None = None

    def set_result(self, value: object) -> None:
        if self._taken.acquire(False):
            self._value = value
            self._lock.release()

    def set_exception(self, error: BaseException) -> None:
        if self._taken.acquire(False):
            self._error = error
            self._lock.release()

    def done(self) -> bool:
        return self._taken.locked()

    def within(self, timeout: float | None) -> bool:
        """Whether it is set, within so many seconds; then ``wait`` returns at once."""
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            return False
        self._lock.release()
        return True

    def wait(self) -> Any:
        # A Python lock: in the main thread a signal handler runs while it waits.
        with self._lock:
            if self._error is not None:
                raise self._error
            return self._value


class Group(GroupView):
    """One Paxos log and its machines. Thread-safe."""

    __slots__ = ()

    def propose(
        self, value: bytes, *, timeout: float | None = TIMEOUT_S, machine: int = 0
    ) -> Result:
        """Have `value` chosen and applied; blocks until it is. See ``phx.Group.propose``.

        Ctrl-C while it waits only stops the waiting: the value may still be chosen.
        """
        cell = Cell()
        with self._door.lock:
            self._door.submit(self._state, cell, value, timeout, machine)
        result: Result = cell.wait()
        return result

    def propose_many(
        self, values: Iterable[bytes], *, timeout: float | None = TIMEOUT_S, machine: int = 0
    ) -> list[Result]:
        """Have several values chosen and applied, in order. See ``phx.Group.propose_many``."""
        values = list(values)
        if not values:
            return []
        cell = Cell()
        with self._door.lock:
            self._door.submit_many(self._state, cell, values, timeout, machine)
        results: list[Result] = cell.wait()
        return results

    def read(
        self,
        query: Any,
        *,
        consistency: Consistency = "linearizable",
        timeout: float | None = TIMEOUT_S,
        machine: int = 0,
    ) -> Read:
        """What this node's machine answers to `query`. See ``phx.Group.read``."""
        return self._read([query], consistency, timeout, machine)[0]

    def read_many(
        self,
        queries: Iterable[Any],
        *,
        consistency: Consistency = "linearizable",
        timeout: float | None = TIMEOUT_S,
        machine: int = 0,
    ) -> list[Read]:
        """The answers to several queries. See ``phx.Group.read_many``."""
        queries = list(queries)
        return self._read(queries, consistency, timeout, machine) if queries else []

    def barrier(
        self, *, consistency: Consistency = "linearizable", timeout: float | None = TIMEOUT_S
    ) -> None:
        """Wait until everything complete so far is applied here. See ``phx.Group.barrier``."""
        self._read([], consistency, timeout, next(iter(self._state.machines), 0))

    def _read(
        self, queries: list[Any], consistency: Consistency, timeout: float | None, machine: int
    ) -> list[Read]:
        cell, door = Cell(), self._door
        wanted = door.wanted(self._state, cell, queries, consistency, timeout, machine)
        try:
            if not cell.within(timeout):
                raise door.reading.late(self.id)
        finally:
            if not cell.done():
                cell.set_exception(TimedOut("given up"))  # nobody waits for it
                door.reading.give_up(wanted)
        answers: list[Read] = cell.wait()
        return answers

    def transfer_leadership(self, to: int, *, timeout: float = TIMEOUT_S) -> Leader:
        """Have member `to` lead this group; blocks until it does. See ``phx.Group``."""
        return self._move(to, timeout)

    def resign(self, *, timeout: float = TIMEOUT_S) -> Leader:
        """Give the leadership of this group away. See ``phx.Group``."""
        return self._move(0, timeout)

    def _move(self, to: int, timeout: float) -> Leader:
        door, state = self._door, self._state
        found: list[Leader] = []
        heard = threading.Event()

        def hear(leader: Leader | None) -> None:
            if leader is not None and leader.epoch > given:
                found.append(leader)
                heard.set()
            elif door.refusal is not None:
                heard.set()

        given = door.give(state, to)
        if to == door.node:
            return Leader(to, given)
        stop = self.on_leader_change(hear)
        try:
            heard.wait(timeout)
        finally:
            stop()
        if not found:
            door.open_driver()
        return door.given(state, to, found[0] if found else None)

    def set_members(
        self,
        members: Mapping[int, Member],
        version: int | None = None,
        *,
        timeout: float = TIMEOUT_S,
    ) -> Members:
        """Have exactly these members; blocks until they are active. See ``phx.Group``."""
        return self._door.changing.set_members(self._state, members, version, timeout).result()

    def add_member(
        self, node: int, address: str, *, role: Role = Role.VOTER, timeout: float = CHANGE_S
    ) -> Members:
        """Have one member more. See ``phx.Group.add_member``."""
        return self._door.changing.add(self._state, node, address, role, timeout).result()

    def remove_member(self, node: int, *, timeout: float = CHANGE_S) -> Members:
        """Have one member less. See ``phx.Group.remove_member``."""
        return self._door.changing.remove(self._state, node, timeout).result()

    def replace_member(
        self, node: int, by: int, address: str, *, timeout: float = CHANGE_S
    ) -> Members:
        """Have one node in the place of another. See ``phx.Group.replace_member``."""
        return self._door.changing.replace(self._state, node, by, address, timeout).result()

    def lease(
        self,
        name: str,
        ttl: float,
        *,
        holder: str | None = None,
        under: BlockingLease | int = 0,
        machine: int | None = None,
        timeout: float = TIMEOUT_S,
    ) -> BlockingLease:
        """Hold a named lease; blocks until it is to be had. See ``phx.Group.lease``."""
        from phx.machines.lease import BlockingLease, Wanted, acquire_blocking, new_holder

        machine, leases = self._leases(machine)
        lease = BlockingLease(self, machine, leases().clock, name, holder or new_holder())
        return acquire_blocking(lease, Wanted(lease, leases, ttl, under, timeout))

    def set_durability(self, mode: DurabilityMode, *, interval_us: int | None = None) -> None:
        """See ``phx.Group.set_durability``. Blocks until it is so."""
        self._door.set_durability(self._state, mode, interval_us).result()

    def checkpoint(self) -> CheckpointInfo:
        """See ``phx.Group.checkpoint``. Blocks until it is durable."""
        return self._door.take_checkpoint(self._state).result()

    def repair(self) -> None:
        """See ``phx.Group.repair``. Blocks until the group goes on."""
        self._door.make_anew(self._state).result()

    def entry(self, instance: int) -> list[Entry]:
        """The values of an old instance. See ``phx.Group.entry``."""
        return self._door.entry(self.id, instance)


class ApplierThread(threading.Thread):
    """Runs a room's applier whenever the driver has something, until it is told to stop."""

    def __init__(self, room: Room) -> None:
        super().__init__(name="phx-applier", daemon=True)
        self._room = room
        self._stop_out, self._stop_in = os.pipe()
        self._finish: Callable[[], None] = room.let_go
        self._failed: BaseException | None = None

    def run(self) -> None:
        self._room.applier.thread = threading.get_ident()
        try:
            self._serve()
        except BaseException as error:
            log.critical("nothing is applied any more", exc_info=error)
            self._failed = error
        try:
            self._finish()
        except BaseException as error:
            self._failed = self._failed or error

    def _serve(self) -> None:
        applier, driver = self._room.applier, self._room.driver
        poll = select.poll()
        poll.register(driver.fileno(), select.POLLIN)
        poll.register(self._stop_out, select.POLLIN)
        stop = select.poll()  # select.select takes no descriptor above 1023
        stop.register(self._stop_out, select.POLLIN)
        more = False
        while not stop.poll(0):
            try:
                if not more:
                    wait_s = applier.wait_s()
                    poll.poll(None if wait_s is None else int(wait_s * 1000) + 1)
                    if stop.poll(0):
                        return
                if more := applier.turn():
                    time.sleep(0)  # callers that were woken get the GIL
            except BaseException:
                # SystemExit of a machine has stopped its group; the thread serves all the others.
                log.exception("an error on the applying thread")
                more = True
                time.sleep(AFTER_ERROR_S)

    def stop(self, finish: Callable[[], None] | None = None) -> None:
        """End the thread after its present slice, and wait until it has ended.

        Args:
            finish: its last call; what that raises is raised here. Default: durable machines are
                closed as they were committed last.
        """
        if self._stop_in < 0:
            return
        self._finish = finish or self._finish
        os.write(self._stop_in, b".")
        if self is not threading.current_thread():
            self.join()
        os.close(self._stop_in)
        os.close(self._stop_out)
        self._stop_in = -1
        if self._failed is not None:
            raise self._failed


class Node:
    """``phx.Node`` for programs without an event loop. Thread-safe.

    Args: as for ``phx.Node``.
    """

    def __init__(self, config: Config, machines: Machines, *, bootstrap: bool = False) -> None:
        self.config = config
        self._room = Room(config, machines, bootstrap=bootstrap)
        self._groups: dict[int, Group] = {}  # those asked for so far
        self._applier: ApplierThread | None = None
        self._callbacks: CallbackThread
        self._closing = threading.Lock()
        self._finalizer: weakref.finalize[..., Node] | None = None

    def open(self) -> None:
        """Open the node. Raises as ``phx.Node.open``."""
        room = self._room
        room.open()
        callbacks = self._callbacks = CallbackThread()
        room.door.soon = callbacks.soon
        applier = self._applier = ApplierThread(room)

        def end() -> None:
            applier.stop()
            callbacks.end()

        room.before_abandon = end
        room.on_gone = forgetting(weakref.ref(self))
        applier.start()
        self._finalizer = weakref.finalize(self, _abandon, room)

    def close(self, *, timeout: float = CLOSE_S) -> None:
        """Close the node; see ``phx.Node.close``. A second caller waits for the first."""
        with self._closing:
            if self._finalizer is None or not self._finalizer.detach():
                return
            assert self._applier is not None
            room = self._room
            room.refuse(lambda: Closed("the node is closed"))
            if room.forked:
                return
            try:
                room.quiesce(timeout)
                self._applier.stop(room.end_applying)
                self._callbacks.end()
            except BaseException:
                room.abandon()  # Ctrl-C while it closes: at once, and still whole
                raise
            room.shut()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def group(self, group: int) -> Group:
        """One of the groups of this node. Raises NotInCluster for any other."""
        return self._groups.get(group) or self._handle(group)

    def _handle(self, group: int) -> Group:
        applier, state = self._applier, self._room.states.get(group)
        if applier is None or state is None:
            self._room.opened()
            raise NotInCluster(f"group {group} is not hosted by node {self.config.node}")
        found = self._groups.setdefault(group, Group(self._room.door, state, self))
        if self._room.states.get(group) is not state:  # it went just now
            self._groups.pop(group, None)
        return found

    @property
    def groups(self) -> Sequence[Group]:
        """All groups of this node, by id."""
        if self._applier is None:
            return []
        found = []
        for group in sorted(self._room.states):
            with suppress(NotInCluster):  # it went just now
                found.append(self.group(group))
        return found

    @property
    def port(self) -> int:
        """The port that the node listens at."""
        return self._room.opened().port

    def status(self) -> NodeStatus:
        """The node at this moment."""
        return self._room.status()

    def set_address(self, node: int, address: str) -> None:
        """See ``phx.Node.set_address``."""
        self._room.peers.move(node, address)

    @property
    def priority(self) -> int:
        """See ``phx.Node.priority``."""
        return self._room.moves.priority

    def set_priority(self, priority: int) -> None:
        """See ``phx.Node.set_priority``."""
        self._room.moves.set_priority(priority)

    def resign_all(self, to: int | None = None, *, timeout: float = TIMEOUT_S) -> Moved:
        """Give every leadership of this node away; see ``phx.Node.resign_all``. Blocks."""
        return self._room.moves.resign_all(to, timeout).result()

    def set_members(self, members: Mapping[int, Member], *, timeout: float = CHANGE_S) -> Changed:
        """Have these members in all groups of this node. See ``phx.Node.set_members``."""
        return self._room.changes.all_to(exactly(members), timeout).result()

    def add_member(
        self, node: int, address: str, *, role: Role = Role.VOTER, timeout: float = CHANGE_S
    ) -> Changed:
        """Have one member more in all of them. See ``phx.Node.add_member``."""
        return self._room.changes.all_to(adding(node, address, role), timeout).result()

    def remove_member(self, node: int, *, timeout: float = CHANGE_S) -> Changed:
        """Have one member less in all of them. See ``phx.Node.remove_member``."""
        return self._room.changes.all_to(removing(node), timeout).result()

    def replace_member(
        self, node: int, by: int, address: str, *, timeout: float = CHANGE_S
    ) -> Changed:
        """Have one node in the place of another. See ``phx.Node.replace_member``."""
        return self._room.changes.all_to(replacing(node, by, address), timeout).result()

    def create_group(
        self, group: int, members: Iterable[int] | None = None, *, timeout: float = CHANGE_S
    ) -> CreatedGroup:
        """Have a group more in the cluster. See ``phx.Node.create_group``."""
        return self._room.groups.create(group, members, timeout).result()

    def move_group(self, group: int, nodes: Iterable[int], *, timeout: float = CHANGE_S) -> Members:
        """Have a created group on these nodes. See ``phx.Node.move_group``."""
        goal = self._room.groups.destination(group, nodes)
        return self._room.changes.toward(group, goal, timeout).result()

    def stop_group(self, group: int, *, timeout: float = CHANGE_S) -> CreatedGroup:
        """Have a created group take no values. See ``phx.Node.stop_group``."""
        return self._room.groups.stop(group, timeout).result()

    def resume_group(self, group: int, *, timeout: float = CHANGE_S) -> CreatedGroup:
        """Have it take values again. See ``phx.Node.resume_group``."""
        return self._room.groups.resume(group, timeout).result()

    def delete_group(self, group: int, *, timeout: float = CHANGE_S) -> CreatedGroup:
        """Have a created group end. See ``phx.Node.delete_group``."""
        return self._room.groups.delete(group, timeout).result()

    def created_groups(self) -> Sequence[CreatedGroup]:
        """See ``phx.Node.created_groups``."""
        return self._room.groups.all()

    def pause_checkpoints(self) -> None:
        """See ``phx.Node.pause_checkpoints``."""
        self._room.hold_checkpoints(True)

    def resume_checkpoints(self) -> None:
        """See ``phx.Node.resume_checkpoints``."""
        self._room.hold_checkpoints(False)

    def ready(self, groups: Iterable[int] | None = None) -> bool:
        """See ``phx.Node.ready``."""
        return not self._room.unready(groups)

    def wait_ready(self, groups: Iterable[int] | None = None, *, timeout: float = READY_S) -> None:
        """See ``phx.Node.wait_ready``."""
        until = time.monotonic() + timeout
        waiting, pause = self._room.unready(groups), 0.005
        while waiting:
            if time.monotonic() > until:
                raise NotReady(waiting)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)
            waiting = self._room.unready(waiting)


def _abandon(room: Room) -> None:
    warnings.warn("a phx.blocking.Node was never closed", ResourceWarning, stacklevel=2)
    room.abandon()
