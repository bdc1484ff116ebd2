"""One group as its user sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from phx._core.waiters import Result
from phx.applier import GroupState
from phx.door import Door, need_member
from phx.errors import TimedOut, UnknownMachine
from phx.leaders import LeaderCallback
from phx.machine import StateMachine
from phx.reading import span_us
from phx.types import (
    CheckpointInfo,
    Consistency,
    DurabilityMode,
    Entry,
    GroupStatus,
    Leader,
    Member,
    Members,
    Read,
    Role,
)

if TYPE_CHECKING:
    from phx.machines.lease import Lease, Leases

__all__ = ["CHANGE_S", "TIMEOUT_S", "Group"]

TIMEOUT_S = 10.0
"""How long ``propose`` tries unless it is told otherwise."""
CHANGE_S = 60.0
"""How long a new member has to catch up, unless it is told otherwise."""


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
        need_member(self._state)
        try:
            return self._state.machines[machine]
        except KeyError:
            raise UnknownMachine(f"group {self.id} has no machine {machine}") from None

    def status(self) -> GroupStatus:
        """The group as this node sees it."""
        return self._door.status(self._state)

    def members(self) -> Members:
        """Who the members of the group are, as this node knows: version, roles, addresses.

        Guarantee: the newest configuration that this node counts quorums of, or, where it is no
        member any more, that it was told; the version never goes back. It may lag behind what other
        nodes know, and never be ahead of what is chosen. Version 1 is that of the configuration
        file; it is active.

        The addresses are those that were chosen with the version. Where nodes are dialled now may
        differ: ``node.status().peers``.

        Raises:
            Closed, ForkedError, Overloaded.
        """
        return self._door.members_now(self._state)

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
            TransferFailed: that node is not there, far behind or cannot lead now (nothing was
                done), or somebody else leads in the end, or nobody was heard to lead in time.
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

    async def set_members(
        self,
        members: Mapping[int, Member],
        version: int | None = None,
        *,
        timeout: float = TIMEOUT_S,
    ) -> Members:
        """Have exactly these members from now on, whoever there were; those there are, when they
        are active. One change, from any set to any other; may be called at any member.

        Guarantee: once it returns, the members that are none any more may be switched off, and
        their folders deleted: a quorum of the new ones holds everything durably. New values wait
        for about one round trip; none of them fails. Of two calls for the same version one at most
        succeeds. Who stops waiting (cancels) stops nothing.

        Whoever is to vote has to have caught up, most of them at least, so that the group does not
        stand still: make new ones learners first (``add_member``, ``replace_member`` do). It is
        waited for those that are members already. A node whose id was a member before, and left, is
        never one again: give a new machine a new id.

        Args:
            members: role and address by node id: ``phx.types.voter("10.0.0.4:7000")``.
            version: of the members that are to be changed; default: those known here now.
            timeout: seconds.

        Raises:
            VersionConflict: there are others by now (``members``); nothing was done.
            NotCaughtUp: no quorum of the new voters has; nothing was done.
            ChangeUnderWay: another change was not active in time; nothing was done.
            ConfigError: an id that was used before, or more nodes than a node can have to do with.
            ValueError: these cannot be the members of anything.
            NoQuorum: nobody led in time, or could be asked; nothing was done.
            Overloaded: 64 such calls wait at this node, or its queue stayed full; nothing was done.
            TimedOutUnknown, ClosedUnknown: it may still become so; ``members()`` tells.
            NotInCluster: this node is no member any more; or the group was created while the
                cluster ran, and somebody who is new is no member of the directory.
            GroupStopped: it was stopped (``stop_group``); nothing was done.
            Closed, ForkedError, SystemFailure.
        """
        found = self._door.changing.set_members(self._state, members, version, timeout)
        return await asyncio.wrap_future(found)

    async def add_member(
        self, node: int, address: str, *, role: Role = Role.VOTER, timeout: float = CHANGE_S
    ) -> Members:
        """Have one member more: a learner at first, and what it is to be once it has caught up.

        As ``set_members``, without a version: what others change meanwhile stays changed. What is
        so already is not changed: it may be called again after a failure, and goes on.

        Args:
            node: an id that was never used before.
            address: "host:port", where it is reached.
            role: ``Role.LEARNER``: it stays one.
            timeout: seconds; it has to start and catch up in that time.

        Raises: as ``set_members``; once it is a learner, TimedOutUnknown or ClosedUnknown for what
        would be rejected before. With NotCaughtUp it is a learner, and stays one.
        """
        return await asyncio.wrap_future(
            self._door.changing.add(self._state, node, address, role, timeout)
        )

    async def remove_member(self, node: int, *, timeout: float = CHANGE_S) -> Members:
        """Have one member less. As ``add_member``."""
        return await asyncio.wrap_future(self._door.changing.remove(self._state, node, timeout))

    async def replace_member(
        self, node: int, by: int, address: str, *, timeout: float = CHANGE_S
    ) -> Members:
        """Have the node `by`, at this address, in the place of `node`, which may be dead.

        As ``add_member``: the new one is a learner until it has caught up; then one change takes it
        in and the other out.
        """
        return await asyncio.wrap_future(
            self._door.changing.replace(self._state, node, by, address, timeout)
        )

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
                and what linearizable reads had seen by then. Without a lease the leader is asked.
            quorum: the same; a majority is asked, and what it has accepted has to be chosen.
            lease: the same, here and now: where this node leads under a lease. Needs clocks of
                which none runs an eighth faster than another.
            stale: a state that was; ``lag_us`` says how old it may be.

        Args:
            query: what the machine's ``query`` takes. It stays in this process.
            timeout: seconds; None: never.
            machine: id of the machine in the group.

        Raises (all of them safe to repeat):
            NotLeader: "lease", and this node does not lead, or has no lease; ``leader``: who may.
            TimedOut, NoQuorum, NodeFailed: nobody said in time what to wait for; or it never came.
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
            return await self._in_turn(found, timeout)
        return (await self._read([query], consistency, timeout, machine))[0]

    async def _in_turn(self, future: asyncio.Future[Read], timeout: float | None) -> Read:
        """A read that stands in line. TimedOut after so many seconds."""

        def late() -> None:
            if not future.done():
                future.set_exception(TimedOut(f"group {self.id}: its turn did not come in time"))

        try:
            end = self._loop.call_later(span_us(timeout) / 1_000_000, late)
        except TimedOut:
            future.cancel()
            raise
        try:
            return await future
        finally:
            end.cancel()

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
        queries, door = list(queries), self._door
        door.open_driver()
        found = door.reading.few_at_once(self._state, queries, consistency, machine)
        if found is not None:
            return found
        return await self._read(queries, consistency, timeout, machine)

    async def barrier(
        self, *, consistency: Consistency = "linearizable", timeout: float | None = TIMEOUT_S
    ) -> None:
        """Wait until all that was complete, anywhere, is applied here; a ``read`` of nothing."""
        await self._read([], consistency, timeout, next(iter(self._state.machines), 0))

    async def _read(
        self, queries: list[Any], consistency: Consistency, timeout: float | None, machine: int
    ) -> list[Read]:
        future, door = self._future(), self._door
        wanted = door.wanted(self._state, future, queries, consistency, timeout, machine)
        return await door.reading.answered(wanted, future, timeout)

    async def entry(self, instance: int) -> list[Entry]:
        """The values of an old instance, as they stand in the log, duplicates included.

        Raises:
            NotChosenYet: this node does not know it to be chosen.
            NoLongerKept: it lies below what this node keeps.
        """
        return await self._loop.run_in_executor(None, self._door.entry, self.id, instance)

    async def set_durability(self, mode: DurabilityMode, *, interval_us: int | None = None) -> None:
        """What this node says of a value that it has accepted, and when, until it closes.

        Guarantee: with "sync", what it accepts from then on, and all that it has accepted, is
        durable before anybody counts it; once the call returns, what came before is. With
        "interval" and "none" it is written to the journal: it outlives the process, and not the
        machine. Values that were acknowledged are lost, and the group stands still, if machines
        with a majority of its voters fail at about the same time; after a failure of fewer nothing
        is lost, and those rejoin. Each node has its own mode: docs/howto/durability.md.

        Args:
            mode: "sync"; "interval": the journal is synced so long after a value was written at
                latest; "none": with whatever else is synced.
            interval_us: 1,000 to 60,000,000; default: that of the configuration.

        Raises:
            ValueError: no such mode or interval, or the group is the directory.
            StoreError: the disk refused. The mode is as it was, or it is "sync", and the node takes
                the group for relaxed if its machine fails.
            Closed, ForkedError, NotInCluster, Overloaded.
        """
        await asyncio.wrap_future(self._door.set_durability(self._state, mode, interval_us))

    async def checkpoint(self) -> CheckpointInfo:
        """Write down the state as of now, or a little later; when it is durable.

        The group goes on meanwhile. A start of this node begins with the newest checkpoint.

        Raises:
            CheckpointFailed: it says why; nothing has changed.
            Closed: the node is not open.
        """
        return await asyncio.wrap_future(self._door.take_checkpoint(self._state))

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
        await asyncio.wrap_future(
            await loop.run_in_executor(None, self._door.make_anew, self._state)
        )
