"""A node: its folder, its threads, its groups; for asyncio.

    room           everything that a node of either kind runs on, without an event loop
    Node           the asyncio door to it; phx.blocking has the other one
    status         what it says of itself, and which groups are not ready
    folder         who may open it, and whether what lies in it fits together
    lives          what outlives a journal: incarnation, ceiling of promises
    relaxing       how durable a value is when the node says that it has accepted it
    rejoining      a journal that is lost, before the node starts: may it go on without?
    addresses      where the other nodes are, now
    peers          the other nodes, as they come and go
    joining        a node that is no member yet: who is there?
    beginning      groups that are hosted for the first time: who are their members?
    goals          what members are to be, said for many groups at once
    changes        members of groups change: the calls, and who leads proposes
    groups         groups that are created and deleted: the calls, at any node
    hosting        what the directory says of them is done here
    arrivals       a node that comes to one later: who are its members?
    removal        groups that go on without this node: what is here of them goes
    opening        what the opening of a node needs beside the room
    control        the socket in the folder, for commands to a running node
    orders         what is asked for there that concerns members and groups
    moves          all leaderships are moved off the node
    keeper         the store thread: the only one that writes to LMDB
    floors         how much of the log is kept
    memberships    who the members of groups are, where they changed: to the engine, to checkpoints

    snapshots      the thread that writes checkpoints, and when they are due
    mirror         second machines, for those that give no view
    restorer       brings machines back from checkpoints at a start
    machine_files  the files of durable machines; opens them at a start
    commits        when durable machines commit

    transfers      what comes and goes between nodes besides the protocol: both directions
    line           one connection of a transfer
    fetcher        gets checkpoints of other nodes, for groups that no log brings on
    installer      puts one in the place of what a group has
    provider       gives other nodes what they fetch

    doctor         makes a store that is lost anew, before the start
    mender         fetches what is damaged of the settled log, while the node runs
    scrubber       reads again what lies on the disk, so that damage is found
    divergence     compares the state of groups with that of other nodes
    view_digests   works out what takes long of that, a little at a time

    threads        waits for threads that were told to end

A node has six threads, however many groups: two native ones (poll, journal), the keeper, the one
that writes checkpoints, the one that listens in the folder, and the one that applies (here: the
event loop's). With peers there is one more from where a group comes to its first agreed instance,
and another one if its machines have to be walked for that.
While groups are restored, or checkpoints are fetched or provided, there are some more, by what the
configuration allows, and one while something damaged of the settled log is fetched. Changes of
members have one each, and from the first on there is one that connects with who came by them. With
a directory there is one more, by which groups come and go; and one that asks who the members are
of groups that it comes to later, from the first of them on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from phx.config import Config
from phx.errors import Closed, NotInCluster, NotReady
from phx.group import CHANGE_S, TIMEOUT_S, Group
from phx.machine import Machines
from phx.node.goals import adding, exactly, removing, replacing
from phx.node.room import Room
from phx.node.status import forgetting
from phx.types import (
    Changed,
    CreatedGroup,
    Member,
    Members,
    Moved,
    NodeStatus,
    Role,
)

__all__ = ["CLOSE_S", "READY_S", "Node"]

log = logging.getLogger("phx")

CLOSE_S = 5.0
"""How long ``close`` lets the store settle what is chosen."""
AFTER_ERROR_S = 0.1
READY_S = 30.0
"""How long ``wait_ready`` waits."""


class Node:
    """A member of a cluster: hosts its groups, proposes, applies.

        async with phx.Node(config, machines) as node:
            result = await node.group(7).propose(b"...")

    Belongs to the event loop in which it is opened, and is not thread-safe. Several nodes may be
    open in one process. After a fork the child's copy is dead: every use raises ForkedError.

    Args:
        config: see ``phx.Config``.
        machines: factory(group) for the machine of each group, or for a mapping of machines by id;
            or a mapping of machine id to factory.
        bootstrap: start a new node if the folder is empty. Never give it to a node whose disk was
            lost: a voter that forgot its promises may break what was agreed. Without effect where
            the folder is not empty.
    """

    def __init__(self, config: Config, machines: Machines, *, bootstrap: bool = False) -> None:
        self.config = config
        self._room = Room(config, machines, bootstrap=bootstrap)
        self._groups: dict[int, Group] = {}  # those asked for so far
        self._loop: asyncio.AbstractEventLoop | None = None  # None: not opened yet
        self._pump: _Pump | None = None
        self._closed: asyncio.Future[None] | None = None
        self._finalizer: weakref.finalize[..., Node] | None = None

    async def open(self) -> None:
        """Open the folder, replay the journal, listen, and start to take part.

        Raises:
            NotBootstrapped, Damaged, Foreign, Locked, StoreError: the folder.
            SystemFailure: an address or thread could not be had.
            Closed: it was opened before.
        """
        loop = asyncio.get_running_loop()
        room = self._room
        opening = loop.run_in_executor(None, room.open)
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread goes on: whatever it opens is given back.
            room.give_up()
            opening.add_done_callback(lambda done: _take_back(done, room))
            raise
        self._loop = loop
        room.door.soon = room.door.reading.soon = loop.call_soon
        room.door.reading.new_future = loop.create_future
        self._pump = _Pump(room, loop)
        room.before_abandon = self._pump.abandon
        room.on_gone = forgetting(weakref.ref(self))
        self._finalizer = weakref.finalize(self, _abandon, room)

    async def close(self, *, timeout: float = CLOSE_S) -> None:
        """Hand leaderships over, settle, stop and join every thread. Idempotent.

        New proposals are refused at once (Closed); callers that still wait at the end get
        ClosedUnknown. A node that was closed is not opened again: make a new one.

        Args:
            timeout: seconds for the store to settle what is chosen; what is left is replayed from
                the journal at the next start.
        """
        if self._finalizer is None:
            return
        if self._closed is None:
            self._room.refuse(lambda: Closed("the node is closed"))
            self._closed = asyncio.ensure_future(self._close(timeout))
            self._closed.add_done_callback(self._closing_ended)
        if not self._closed.done():
            await asyncio.shield(self._closed)

    def _closing_ended(self, closing: asyncio.Future[None]) -> None:
        """What does the closing may be cancelled itself, by a loop that ends: at once, then. (Who
        waited for it may have been cancelled before that.)"""
        if self._finalizer is not None and self._finalizer.detach():
            self._room.abandon()

    async def _close(self, timeout: float) -> None:
        assert self._pump is not None
        room, loop = self._room, asyncio.get_running_loop()
        if room.forked:
            return
        await loop.run_in_executor(None, room.quiesce, timeout)
        self._pump.stop()
        try:
            room.end_applying()
        finally:
            await loop.run_in_executor(None, room.shut)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def group(self, group: int) -> Group:
        """One of the groups of this node. Raises NotInCluster for any other."""
        return self._groups.get(group) or self._handle(group)

    def _handle(self, group: int) -> Group:
        loop, state = self._loop, self._room.states.get(group)
        if loop is None or state is None:
            self._room.opened()
            raise NotInCluster(f"group {group} is not hosted by node {self.config.node}")
        return self._groups.setdefault(group, Group(self._room.door, state, self, loop))

    @property
    def groups(self) -> Sequence[Group]:
        """All groups of this node, by id."""
        if self._loop is None:
            return []
        return [self.group(group) for group in sorted(self._room.states)]

    @property
    def port(self) -> int:
        """The port that the node listens at."""
        return self._room.opened().port

    def status(self) -> NodeStatus:
        """The node at this moment."""
        return self._room.status()

    def set_address(self, node: int, address: str) -> None:
        """Reach another member at this "host:port" from now on, also after a restart.

        A connection to where it was is closed, and made anew to there by the one of the two nodes
        that has the lower id; so tell both. A name in place of a number is looked up at once, which
        may block for as long as the resolver does, and afresh at each attempt to connect. The
        store has it a moment later; it counts until the configuration says another address of that
        node than it does now.

        Raises:
            NotInCluster: there is no such member.
            ValueError, SystemFailure: that is no address, or the name has none.
            ConfigError: it is this node.
            Closed: the node is not open.
        """
        self._room.peers.move(node, address)

    @property
    def priority(self) -> int:
        """How much this node wants to lead: ``Config.priority``, or what was set since."""
        return self._room.moves.priority

    def set_priority(self, priority: int) -> None:
        """Want to lead so much from now on, until the node closes. See ``Config.priority``.

        Returns at once; the others hear of it with the next heartbeat. With a lower one this node
        gives away what others want more, as they are ready for it (``Config.balance``); but not
        what was moved to it by hand. With 0 and ``resign_all`` it is drained.

        Raises ValueError: not 0 .. 255.
        """
        self._room.moves.set_priority(priority)

    async def resign_all(self, to: int | None = None, *, timeout: float = TIMEOUT_S) -> Moved:
        """Give every leadership of this node away; what moved where, and what did not and why.

        As ``Group.resign`` of every group that it leads, some at a time; nothing that is proposed
        meanwhile fails by it. What could not be moved is tried again while there is time, and so is
        what this node comes to lead meanwhile. The groups stay where they went until those
        leaderships end; given away without `to` by a node of priority 0, they come back when its
        priority is what it was (``set_priority``, or a start), by ``Config.balance``. Who stops
        waiting (cancels) stops nothing.

        Args:
            to: the member that is to have them all. Default: for each group the one that should
                have it next.
            timeout: seconds; what has not moved by then is in ``failed``.

        Raises:
            NotInCluster, ValueError: `to` is no member, or this node.
            Closed: the node is not open, or closes.
        """
        return await asyncio.wrap_future(self._room.moves.resign_all(to, timeout))

    async def set_members(
        self, members: Mapping[int, Member], *, timeout: float = CHANGE_S
    ) -> Changed:
        """Have exactly these members in every group that this node is a member of.

        As ``Group.set_members``, some groups at a time, and without a version: those who are new
        are learners first, in all groups, and vote where they have caught up. So a cluster moves to
        other machines in one call: {1, 2, 3} -> {4, 5, 6}. What is so already is not changed: it
        may be called again after a failure, and goes on. Who stops waiting (cancels) stops nothing.

        Args:
            members: role and address by node id.
            timeout: seconds; new ones have to start and catch up in that time.

        Returns:
            The members of each group where they are active, and why the others failed.

        Raises ValueError: they cannot be the members of anything; Closed, ForkedError.
        """
        return await asyncio.wrap_future(self._room.changes.all_to(exactly(members), timeout))

    async def add_member(
        self, node: int, address: str, *, role: Role = Role.VOTER, timeout: float = CHANGE_S
    ) -> Changed:
        """Have one member more in every group of this node. As ``set_members``; what others change
        meanwhile stays changed. See ``Group.add_member``."""
        goal = adding(node, address, role)
        return await asyncio.wrap_future(self._room.changes.all_to(goal, timeout))

    async def remove_member(self, node: int, *, timeout: float = CHANGE_S) -> Changed:
        """Have one member less in every group of this node. See ``Group.remove_member``."""
        return await asyncio.wrap_future(self._room.changes.all_to(removing(node), timeout))

    async def replace_member(
        self, node: int, by: int, address: str, *, timeout: float = CHANGE_S
    ) -> Changed:
        """Have the node `by` in the place of `node` in every group of this node that has it. See
        ``Group.replace_member``."""
        goal = replacing(node, by, address)
        return await asyncio.wrap_future(self._room.changes.all_to(goal, timeout))

    async def create_group(
        self, group: int, members: Iterable[int] | None = None, *, timeout: float = CHANGE_S
    ) -> CreatedGroup:
        """Have a group more in the cluster, on these nodes; needs ``Config.directory``.

        Guarantee: all nodes agree whether there is such a group, and who its first members are: one
        value of the directory says both. When this returns it is there, and if this node is one of
        its members, ``group`` gives it; the other members begin as they hear, as one does that is
        down, when it is back. It can be used as soon as most of them have begun.

        Its machines are made by the factory of each node, as for any group. Its members change by
        its own calls (``Group.add_member`` and others), to any members of the directory.

        Args:
            group: its id, 0 to 1,048,574: never used, or that of a group that was deleted. All of
                the log, sessions and reads of one group of an id is unknown to the next.
            members: ids of members of the directory, which are to vote. Default: all that vote
                there.
            timeout: seconds.

        Raises:
            GroupExists: there is one of that id, with other members, or stopped, or being deleted.
                One that is there with the same members was created.
            NotInCluster: such a node is no member of the directory.
            ConfigError: there is no directory, or the id was used 65,535 times.
            NoQuorum, TimedOut, Overloaded: rejected. TimedOutUnknown: call it again, or look at
                ``created_groups``.
            Closed, ValueError.
        """
        return await asyncio.wrap_future(self._room.groups.create(group, members, timeout))

    async def move_group(
        self, group: int, nodes: Iterable[int], *, timeout: float = CHANGE_S
    ) -> Members:
        """Have a created group on exactly these nodes, all of which vote.

        Guarantee: when this returns the members there are are active: those that left may be
        switched off. They drop machines, checkpoints, log and votes as they hear, and none of them
        is a member of the group again; callers of it are told NotInCluster there. Those that are
        new are learners until they have caught up. Values are taken all the while.

        At a node that is a member of the group. Who stops waiting (cancels) stops nothing. To move
        it with other roles, or by a version, ``Group.set_members``.

        Args:
            nodes: ids of members of the directory.
            timeout: seconds; new ones have to catch up in that time.

        Raises NotInCluster: this node is no member of it, or such a node is none of the directory;
        ConfigError: there is no directory, or such a node left the group before; else as
        ``Group.set_members``.
        """
        goal = self._room.groups.destination(group, nodes)
        return await asyncio.wrap_future(self._room.changes.toward(group, goal, timeout))

    async def stop_group(self, group: int, *, timeout: float = CHANGE_S) -> CreatedGroup:
        """Have the members of a created group keep all of it, and take no values.

        Guarantee: when this returns the directory has it, and this node refuses values and reads of
        the group (GroupStopped), also after a restart, until ``resume_group``; the other members do
        as they hear. Whoever waits for a value gets StoppedUnknown: what is on its way may still be
        chosen, and then it is applied.

        Raises NotInCluster: there is no such group; GroupExists: it is being deleted; else as
        ``create_group``.
        """
        return await asyncio.wrap_future(self._room.groups.stop(group, timeout))

    async def resume_group(self, group: int, *, timeout: float = CHANGE_S) -> CreatedGroup:
        """Have a stopped group take values again, on all of its members. As ``stop_group``."""
        return await asyncio.wrap_future(self._room.groups.resume(group, timeout))

    async def delete_group(self, group: int, *, timeout: float = CHANGE_S) -> CreatedGroup:
        """Have a created group, live or stopped, end on all of its members.

        Guarantee: when this returns its log has its last value, so no value is chosen in it any
        more, on any node; nothing of it is left here but a few bytes that say so. Its members drop
        machines, checkpoints and log as they hear. Whoever waits for a value gets GroupDeleted
        (rejected) where the node saw all of the log go by, else DeletedUnknown. Only then the id
        may be used again, by a group that knows nothing of this one.

        It needs a leader of the group, and so most of its members. After a TimedOutUnknown it goes
        on to be deleted as soon as they are there.

        Raises NotInCluster: there is no such group; else as ``create_group``.
        """
        return await asyncio.wrap_future(self._room.groups.delete(group, timeout))

    def created_groups(self) -> Sequence[CreatedGroup]:
        """Every id that a group was ever created under, as this node has heard: the last of each.
        Raises ConfigError: there is no directory; Closed."""
        return self._room.groups.all()

    def pause_checkpoints(self) -> None:
        """Take no checkpoints but those that are asked for, until ``resume_checkpoints``.

        Returns at once; one that is being taken is finished: ``status().checkpoints["writing"]``.
        Nor is any log trimmed meanwhile, by checkpoints that are asked for or because what is held
        has become old: ``GroupStatus.floor`` stays (but for what is being trimmed as this is
        called, and where a checkpoint of another node is installed). Whoever pauses wants the log
        that there is: for a member that catches up from it, or to look into it. It grows, so does
        the disk that it takes. A node opens without a pause.
        """
        self._room.hold_checkpoints(True)

    def resume_checkpoints(self) -> None:
        """Take them by themselves again and trim logs, at once for groups that came due
        meanwhile."""
        self._room.hold_checkpoints(False)

    def ready(self, groups: Iterable[int] | None = None) -> bool:
        """Whether these groups (default: all) have a leader, and all that is chosen is applied."""
        return not self._room.unready(groups)

    async def wait_ready(
        self, groups: Iterable[int] | None = None, *, timeout: float = READY_S
    ) -> None:
        """Wait until ``ready``; groups that stopped are not waited for.

        An aid at the start, not a linearizable read: what is chosen a moment later may not be
        applied.

        Raises:
            NotReady: `timeout` seconds went by; ``groups`` says which were not ready.
        """
        until = time.monotonic() + timeout
        waiting, pause = self._room.unready(groups), 0.005
        while waiting:
            if time.monotonic() > until:
                raise NotReady(waiting)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.1)
            waiting = self._room.unready(waiting)


class _Pump:
    """Runs a room's applier on an event loop: a slice, then the loop's other work, and so on."""

    def __init__(self, room: Room, loop: asyncio.AbstractEventLoop) -> None:
        self._applier = room.applier
        self._loop = loop
        self._descriptor = room.driver.fileno()
        self._again: asyncio.Handle | None = None
        self._alarm: asyncio.Handle | None = None  # for what is due though nothing comes
        self._stopped = False
        self._applier.thread = threading.get_ident()
        loop.add_reader(self._descriptor, self._readable)

    def _readable(self) -> None:
        # With a turn already due there is nothing to add; that turn clears the descriptor.
        if self._again is None:
            self._turn()

    def _turn(self) -> None:
        self._again = None
        if self._stopped:
            return
        try:
            more = self._applier.turn()
        except BaseException:
            # What was taken is still there, and nothing else would come back to it.
            self._again = self._loop.call_later(AFTER_ERROR_S, self._turn)
            raise
        if more:
            self._again = self._loop.call_soon(self._turn)
        elif self._applier.commits is not None and self._alarm is None:
            wait_s = self._applier.wait_s()
            if wait_s is not None:
                self._alarm = self._loop.call_later(wait_s, self._rung)

    def _rung(self) -> None:
        self._alarm = None
        self._readable()

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._loop.remove_reader(self._descriptor)
            for handle in (self._again, self._alarm):
                if handle is not None:
                    handle.cancel()

    def abandon(self) -> None:
        """From any thread, with the loop in any state."""
        if self._stopped or self._loop.is_closed():
            return
        self._stopped = True
        try:
            if asyncio._get_running_loop() is self._loop or not self._loop.is_running():
                self._loop.remove_reader(self._descriptor)
            else:
                self._loop.call_soon_threadsafe(self._loop.remove_reader, self._descriptor)
        except RuntimeError as error:
            log.debug("the reader stays: %s", error)


def _abandon(room: Room) -> None:
    if room._pid == os.getpid():
        warnings.warn("a phx.Node was never closed", ResourceWarning, stacklevel=2)
    room.abandon()


def _take_back(opening: asyncio.Future[None], room: Room) -> None:
    if not opening.cancelled() and opening.exception() is None:
        room.abandon()
