"""Everything that a node of either kind runs on, without an event loop."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from phx._core.driver import ERROR_START, ERROR_TIMED_OUT, Driver, DriverError
from phx._core.peer_table import PeerTable
from phx._core.waiters import Waiters
from phx.applier import Applier, GroupState
from phx.checkpoint.catalog import ROOT, Catalog
from phx.checkpoint.files import OsFiles
from phx.checkpoint.loading import need_codecs
from phx.checkpoint.manifest import MANIFEST
from phx.checkpoint.rebuild import is_marked
from phx.config import Config
from phx.door import Door
from phx.errors import (
    CheckpointFailed,
    Closed,
    ClosedUnknown,
    ConfigError,
    Damaged,
    ForkedError,
    GroupStopped,
    PhxError,
)
from phx.machine import Machines, StateMachine, machines_of
from phx.machines.directory import Directory
from phx.node import machine_files
from phx.node.addresses import Addresses, learned
from phx.node.beginning import Beginning
from phx.node.changes import Changes
from phx.node.commits import Commits
from phx.node.control import Control
from phx.node.doctor import Doctor
from phx.node.floors import Floors
from phx.node.folder import Folder
from phx.node.groups import Groups, open_created
from phx.node.hosting import Hosting, Parts, new_state, sweep_gone
from phx.node.keeper import Keeper
from phx.node.lives import Lives, former_lives
from phx.node.machine_files import durable_in
from phx.node.memberships import Memberships, members_of_node
from phx.node.mirror import Mirrors
from phx.node.moves import Moves
from phx.node.opening import (
    begin_reads,
    opening_error,
    partly_done,
    promise_epochs,
    serve_lives,
    starts_of,
    traced,
)
from phx.node.orders import Orders
from phx.node.peers import Introducer, PeerList
from phx.node.removal import Removal, mark_removed
from phx.node.restorer import Restorer
from phx.node.snapshots import Snapshots
from phx.node.status import status_of, unready
from phx.node.transfers import Transfers
from phx.store import Store
from phx.store_facts import Facts
from phx.store_hosted import HostedRow
from phx.transfer.staging import kept
from phx.types import DIRECTORY_GROUP, NodeStatus

log = logging.getLogger("phx")

STOP_US = 10_000_000
ABANDON_S = 1.0


class Room:
    """Folder, store, driver, machines, applier and door of one node; both kinds of Node run on it.

    Life: ``open`` - (``refuse`` - ``quiesce`` - ``end_applying`` - ``shut``) or ``abandon``.
    It never refers to its Node, so that a Node that nobody closed can be collected, and closed.
    """

    def __init__(
        self,
        config: Config,
        machines: Machines,
        *,
        bootstrap: bool,
        join: Sequence[str] = (),
    ) -> None:
        self.config = config
        self._machines = machines
        self._hosting: Hosting | None = None  # None: there is no directory
        self._groups: Groups | None = None
        self._created: dict[int, HostedRow] = {}  # as the store had them at the start
        self._unmade: dict[int, BaseException] = {}  # those whose machines could not be made
        self.on_gone: Callable[[int], None] = lambda group: None
        self._bootstrap = bootstrap
        self._join = join  # it is a member of nothing, and these know who is there
        self._folder = Folder(Path(config.dir))
        self._doctor = Doctor(self._folder, config)
        self._keeper: Keeper | None = None
        self._addresses = Addresses(config)
        self._pid = os.getpid()
        self.forked = False
        self._ended = False
        self.before_abandon: Callable[[], None] = lambda: None
        # (Asked for once: all tables share these numbers.)
        ids = self._ids = () if join else config.hosted_ids
        self._beginning = Beginning(config, ids)
        self.states = {group: GroupState(group, self._made(group)) for group in ids}
        self._restorer: Restorer | None = None
        self._lives: Lives | None = None
        self._peers: PeerList | None = None
        self._introducer: Introducer | None = None
        self._changes: Changes | None = None
        self._removal: Removal | None = None
        self._snapshots: Snapshots | None = None
        self._control: Control | None = None
        self._transfers: Transfers | None = None
        self.moves = Moves(config, self.states)
        self._marked: set[int] = set()  # groups that are made anew
        self._store: Store
        self._memberships: Memberships
        self.driver: Driver
        self.waiters: Waiters
        self.applier: Applier
        self.door: Door
        self.floors: Floors
        self._state = "new"

    def _made(self, group: int) -> dict[int, StateMachine]:
        """New machines for a group."""
        if group == DIRECTORY_GROUP and self.config.directory:
            return {0: Directory(self._stir)}
        return machines_of(self._machines, group)

    def _stir(self) -> None:
        """The directory has changed."""
        if self._hosting is not None:
            self._hosting.wake()

    # --- opening

    def open(self) -> None:
        """Blocks: replays the journal, starts the threads."""
        if self._state != "new":
            raise Closed(f"the node is {self._state}; it is opened once")
        self._state = "opening"
        self._folder.lock(create=self._bootstrap)
        try:
            self._build()
        except BaseException as error:
            self._undo()
            self._state = "closed"
            if isinstance(error, DriverError):
                raise opening_error(error) from error
            raise
        self._state = "open"
        _rooms.add(self)
        if self._introducer is not None:
            self._introducer.begin()
        if self._join:
            self.peers.join(self._join, self._store.identity.store_id)

    def _build(self) -> None:
        config, limits = self.config, self.config.limits
        create = self._folder.examine(bootstrap=self._bootstrap)
        self._folder.journal.mkdir(exist_ok=True)
        doctor = self._doctor
        self._keeper = Keeper(lambda: doctor.open_store(create=create), idle=self._idle)
        store = self._store = self._keeper.open()
        self._find_created(store)
        held = store.settled().keys() | store.members().keys()
        if left_out := sorted(held - self.states.keys() - self._created.keys()):
            raise ConfigError(
                [f"groups: the store holds group {left_out[0]}, which cannot be left out"]
            )
        self._addresses.begin(learned(store, doctor.note))
        catalog = self._look()
        sweep_gone(catalog, Path(config.dir), self._created.items())
        if create and catalog.groups():
            # Of another life: its log would stand where the new one begins.
            raise Damaged(f"{config.dir}: there are checkpoints, and neither journal nor store")
        if create and (Path(config.dir) / machine_files.FOLDER).exists():
            raise Damaged(f"{config.dir}: there are machines, and neither journal nor store")
        for finding in catalog.findings:
            if finding.path.removesuffix(f"/{MANIFEST}") in catalog.damaged:
                self._doctor.note(f"{finding.path}: {finding.what}; it was put aside")
            else:
                log.warning("%s: %s", finding.path, finding.what)
        need_codecs(config.checkpoints.compress, catalog.groups())
        self._beginning.find_others(store, doctor.journal, catalog)
        starts = starts_of(self.states, catalog, self._find_marked(catalog), store)
        created = {group: not row.gone for group, row in self._created.items()}
        lives = self._lives = Lives(config, self._keeper.ask, created)
        beginning = self._beginning
        beginning.look(store, doctor.journal, catalog, self._keeper.ask, create=create)
        lived = former_lives(catalog, config.node)
        lives.begin(lived, doctor.journal, create=create, later=beginning.new)
        beginning.admit(self._keeper.ask, lives, self._addresses, store.identity.store_id)
        lives.start(
            self._folder, create, self._bootstrap, partial(self._start, store, catalog, starts)
        )
        self._folder.whole()
        promise_epochs(self.driver, self.states, catalog, store)
        self.waiters = Waiters(
            self._ids,
            group_values_max=limits.group_values_max,
            group_bytes_max=limits.group_bytes_max,
            node_values_max=limits.node_values_max,
            node_bytes_max=limits.node_bytes_max,
            wait_us_max=limits.wait_us_max,
            partly=partly_done,
        )
        self.applier = Applier(self.driver, self.waiters, self.states)
        self.door = Door(self.driver, self.waiters, self.states, limits)
        self.moves.begin(self.door)
        self.door.archive, self.door.frontier = store, catalog.frontier
        begin_reads(self.driver, config.node, self.applier, self.door)
        self.door.node, self.door.known = config.node, self._addresses.is_peer
        self.floors = Floors(
            config.checkpoints, catalog, self.states, store, self._keeper, self.driver
        )
        for state in self.states.values():
            self._commit_too(state)
        self._meet(lives)
        self._keeper.serve(self.driver)
        self.applier.on_ceiling, self.applier.on_taken = lives.wanted, self._hear
        gone = mark_removed(self.states, self._memberships, config.node)
        self._keep_checkpoints(catalog, [group for group in starts if group not in gone], gone)
        self._host(catalog)

    def _find_created(self, store: Store) -> None:
        """The groups that were created; what a crash left half done in the store is done."""
        assert self._keeper is not None
        rows = self._created = open_created(store, self.config, self._keeper)
        if self.config.directory:
            self._hosting = Hosting(rows)
        for group in (group for group, row in rows.items() if not row.gone):
            state = self.states[group] = new_state(group, self._made, self._unmade)
            if rows[group].stopped:
                state.parked, state.taking = True, {}
            self._ids = (*self._ids, group)

    def _host(self, catalog: Catalog) -> None:
        """From now on groups come and go as the directory says."""
        hosting, keeper, lives, removal = self._hosting, self._keeper, self._lives, self._removal
        snapshots, restorer, transfers = self._snapshots, self._restorer, self._transfers
        if hosting is None:
            return
        changes = self._changes
        # (All of these are there by now.)
        if not (keeper and lives and removal and snapshots and restorer and transfers and changes):
            raise AssertionError
        parts = Parts(
            self.config.node, Path(self.config.dir), self.driver, self.applier, self.waiters,
            self.door, self.states, keeper, lives, self._memberships, removal,
            catalog, snapshots, restorer, transfers, self._made,
            self._commit_too, lambda group: self.on_gone(group), changes.busy,
        )  # fmt: skip
        transfers.on_replaced = hosting.replaced
        self._groups = Groups(self.config, hosting, parts)
        changes.is_created = lambda group: hosting.hosted(group) != 0
        hosting.begin(parts)

    def _commit_too(self, state: GroupState) -> None:
        """From now on durable machines are committed, if it has the first of this node."""
        if durable_in(state.machines) and self.applier.commits is None:
            every_us = self.config.checkpoints.machine_commit_us
            self.applier.commits = Commits(every_us, self.applier.halt)

    def give_up(self) -> None:
        """Do not wait to be a member: the opening fails. Any thread."""
        self._beginning.end()

    def _meet(self, lives: Lives) -> None:
        """The other nodes: those that are known, and those that come."""
        assert self._keeper is not None
        addresses, error_of = self._addresses, self.door.error_of
        self._keeper.hear, self.door.members_of = self._memberships.hear, self._memberships.now
        serve_lives(self.config, lives, self._keeper, self.applier, self.door, self.states)
        addresses.serve(PeerTable(self.driver), self.driver.port, self._keeper.ask)
        self._peers = PeerList(self.config, addresses, lives, self.opened, error_of)
        self._peers.page = self._memberships.page
        self._introducer = Introducer(self.config, self._peers, self._memberships)

    def _look(self) -> Catalog:
        """The checkpoints, and what was received in part of others and may be gone on with."""
        files, cluster = OsFiles(Path(self.config.dir)), self.config.cluster_id
        keep = kept(files, ROOT, cluster, self.config.checkpoints.fetches_max)
        return Catalog.open(files, ROOT, cluster=cluster, keep=keep)

    def _alone(self) -> bool:
        """Nobody else can have what is not here."""
        return self._addresses.alone() and not self._beginning.others

    def _find_marked(self, catalog: Catalog) -> set[int]:
        """The groups that are to be made anew."""
        found = {group for group in self.states if is_marked(catalog.files, catalog.root, group)}
        if found and self._alone():
            log.error("groups %s are to be made anew, and no other node has them", sorted(found))
            found = set()
        self._marked = found
        return found

    def _keep_checkpoints(self, catalog: Catalog, paused: list[int], gone: frozenset[int]) -> None:
        """Take them from now on, and bring the paused groups back from theirs."""
        applier = self.applier
        snapshots = self._snapshots = Snapshots(
            catalog,
            self.config,
            self.states,
            self.driver.sessions,
            self.driver.poke,
            applier.commit,
            self.floors,
            self._memberships,
            self._doctor.step,
        )
        assert self._keeper is not None
        self._doctor.attend(self._store, self._keeper, self.driver, catalog, snapshots.ask)
        if self.config.checkpoints.mirror:
            snapshots.mirrors = Mirrors(
                self.config,
                catalog,
                self.states,
                self.driver,
                self._store,
                self.floors,
                self._made,
                snapshots.rest,
            )
        applier.on_due, applier.on_table = snapshots.due, snapshots.table
        applier.on_turn, self.door.checkpoint = snapshots.turned, snapshots.ask
        self.door.checkpoint_error = snapshots.error_of
        for group in self.states.keys() - set(paused) - gone:
            snapshots.schedule(self.states[group], 0)
        self._restorer = Restorer(
            catalog,
            Path(self.config.dir),
            self.states,
            self.driver,
            self._made,
            snapshots.schedule,
            self._stuck,
        )
        self._restorer.unmade.update(self._unmade)
        if self._hosting is not None:
            self._restorer.begins = self._hosting.begins
        snapshots.paused = self._restorer.paused
        transfers = self._exchange(catalog, snapshots, self._restorer.paused)
        self.door.restoring, self.door.rebuild = transfers.restoring, self.rebuild
        reading, memberships = self.door.reading, self._memberships
        reading.restoring, reading.version_of = transfers.restoring, memberships.version
        fetcher, others = transfers.fetcher, self._addresses.known_nodes
        if not self._alone():
            self._doctor.fetch_by(fetcher.entries, fetcher.lost, others)
        self._marked -= gone
        self._restorer.paused |= self._marked
        mine = [group for group in paused if group not in self._marked]
        self._removal = Removal(
            self.config, self.states, self._memberships, applier, self.driver, self._keeper,
            catalog, snapshots, transfers,
        )  # fmt: skip
        self._restorer.on_removed = self._removal.free
        self._restorer.start(mine, self.config.checkpoints.restore_threads)
        transfers.rebuild_marked(self._marked)
        self._removal.begin(gone)
        snapshots.start()  # they are known to be paused before anybody can ask for one
        folder, take, moves = Path(self.config.dir), snapshots.ask, self.moves
        orders = Orders(lambda: self.changes, moves, self.door, lambda: self.groups)
        self._control = Control(folder, self.states, take, moves, lambda: self.peers, orders)
        self._control.listen()

    def _exchange(self, catalog: Catalog, snapshots: Snapshots, paused: set[int]) -> Transfers:
        """What comes and goes between the nodes besides the protocol; changes of members, too."""
        assert self._keeper is not None
        transfers = self._transfers = Transfers(
            self.config,
            catalog,
            self.states,
            self.driver,
            self._keeper,
            self._store,
            self.applier,
            snapshots,
            self._memberships,
            factory=self._made,
            paused=paused,
            addresses=self._addresses,
            welcome=lambda said, ends: self.peers.welcome(said, ends),
            closing=lambda: self.door.refusal is not None,
            halt=self._halt_unrestored,
        )
        peers, introducer = self._peers, self._introducer
        assert peers is not None
        assert introducer is not None
        self._changes = self.door.changing = Changes(
            self.door, self.states, self._memberships, peers, introducer, transfers.peers
        )
        provider, changes = transfers.provider, self._changes
        provider.members, provider.change = changes.tell, changes.answer
        return transfers

    def rebuild(self, group: int) -> Future[None]:
        """Make the state of a group anew from a checkpoint of another node, also if it stopped."""
        self.opened()
        if self._alone():
            raise CheckpointFailed(f"group {group}: no other node has its state")
        assert self._transfers is not None
        assert self._restorer is not None
        if group in self._restorer.at:
            raise CheckpointFailed(f"group {group} is being restored")
        return self._transfers.rebuild(group)

    def _stuck(self, state: GroupState, error: BaseException) -> None:
        """A group that could not be restored. Without a checkpoint that its log goes on from it
        needs one of another node; else it stops, like one whose apply failed."""
        below = isinstance(error, DriverError) and error.code == ERROR_START
        if below and not self._alone() and self._transfers is not None:
            log.warning("group %d: no checkpoint goes with its log: one is fetched", state.group)
            self._transfers.fetcher.anew(state.group)
        else:
            self._halt_unrestored(state, error)

    def _hear(self) -> None:
        """The news of members, before anything above is applied."""
        self._memberships.hear()
        for group, error in self._memberships.contradictions():
            state = self.states.get(group)
            if state is not None and state.stopped is None:
                why = GroupStopped(group, state.applied + 1, None, f"its members: {error}")
                self.applier.halt(state, why, error)
        if self._removal is not None:
            self._removal.look()

    def _halt_unrestored(self, state: GroupState, error: BaseException) -> None:
        why = f"it could not be restored: {type(error).__name__}: {error}"
        stopped = GroupStopped(state.group, state.applied + 1, None, why)
        self.applier.soon(lambda: self.applier.halt(state, stopped, error))
        self.driver.poke()

    def _end_checkpoints(self, wait_s: float | None = None) -> None:
        """Those that are at it are waited for, at most `wait_s` seconds altogether."""
        parts = (
            self._hosting, self._groups, self._transfers, self._restorer, self._snapshots,
            self._control, self._doctor,
            self.moves, self._changes, self._introducer, self._peers,
        )  # fmt: skip
        there = [one for one in parts if one is not None]
        if wait_s is not None:
            for one in there:
                one.end(0.0)  # all of them know before one is waited for
        until = None if wait_s is None else time.monotonic() + wait_s
        for one in there:
            one.end(None if until is None else max(0.0, until - time.monotonic()))

    def _idle(self) -> bool:
        """In the store thread's idle time; whether it may be long until the next one."""
        kept = self._addresses.look(self._store)
        return (self._lives is None or self._lives.look()) and kept

    def _start(
        self,
        store: Store,
        catalog: Catalog,
        starts: dict[int, int],
        create: bool,
        facts: Facts,
        suspect: tuple[int, ...],
    ) -> None:
        config = self.config
        self.driver = Driver(
            cluster=config.cluster_id,
            node=config.node,
            store_id=store.identity.store_id,
            members=self._addresses.members(),
            peers=self._addresses.others(),
            named=self._addresses.named(),
            bind=self._addresses.bind(),
            groups=self._ids,
            settled=store.settled(),
            floors={group: floor.kept_from for group, floor in store.floors().items()},
            starts=starts,
            facts=facts,
            suspect=suspect,
            generations={group: row.generation for group, row in self._created.items()},
            gone={group: row.generation for group, row in self._created.items() if row.gone},
            journal_dir=str(self._folder.journal),
            create=create,
            options=config.options(),
            **traced(config.node),
        )
        members = self._memberships = members_of_node(self.driver, store, config, self._created)
        found = chain.from_iterable(catalog.groups().values())
        members.begin(store.members(), [one for one in found if one.group in self.states])
        self.driver.start()  # not before: it votes

    def _undo(self) -> None:
        """Take back a half-done opening."""
        try:
            self._end_checkpoints()
            self.let_go()
        finally:
            driver = getattr(self, "driver", None)
            try:
                if driver is not None:
                    driver.stop(STOP_US)
            finally:
                self._addresses.end()
                if self._keeper is not None:
                    self._keeper.end()
                self._folder.unlock()

    # --- while it is open

    def opened(self) -> Driver:
        """The driver. Raises Closed or ForkedError unless the node is open."""
        if self._state in ("new", "opening") or not hasattr(self, "door"):
            raise Closed(f"the node is {self._state}, not open")
        return self.door.open_driver()

    @property
    def peers(self) -> PeerList:
        """The other nodes. Raises Closed or ForkedError unless the node is open."""
        self.opened()
        assert self._peers is not None
        return self._peers

    @property
    def changes(self) -> Changes:
        """Of members. Raises Closed or ForkedError unless the node is open."""
        self.opened()
        assert self._changes is not None
        return self._changes

    @property
    def groups(self) -> Groups:
        """Those that come and go. Raises Closed, ForkedError; ConfigError: no directory."""
        self.opened()
        if self._groups is None:
            raise ConfigError(["directory: is false, so groups are those of the configuration"])
        return self._groups

    def unready(self, groups: Iterable[int] | None) -> list[int]:
        """See `status.unready`."""
        return unready(self, groups)

    def hold_checkpoints(self, held: bool) -> None:
        self.opened()
        assert self._snapshots is not None
        self._snapshots.hold(held)

    def status(self) -> NodeStatus:
        return status_of(self)

    # --- closing

    def refuse(self, refusal: Callable[[], PhxError]) -> None:
        """From now on every call gets this error."""
        if hasattr(self, "door") and self.door.refusal is None:
            self.door.refusal = refusal
        for state in list(self.states.values()):
            state.taking = {}
        self._state = "closed"

    def quiesce(self, timeout: float) -> None:
        """Hand leaderships over and settle what is chosen, in at most `timeout` seconds. Blocks.

        No machine is being restored, or opened, when it returns.
        """
        until = time.monotonic() + timeout
        try:
            self._settle(until)
        finally:
            for one in (self._hosting, self._transfers, self._restorer):
                if one is not None:
                    one.end()

    def _settle(self, until: float) -> None:
        try:
            self.driver.resign()
            self.driver.settle_now()
            while time.monotonic() < until:
                settle: Any = self.driver.status()["settle"]
                if not settle["pending"] or self.applier.poisoned:
                    return
                time.sleep(0.002)
        except DriverError as error:
            if not self._ended:  # else abandoned meanwhile
                log.warning("closing: %s", error)

    def end_applying(self) -> None:
        """The last slice; then durable machines are committed and closed, and every caller that
        waits is told. On the thread that applies."""
        try:
            self.applier.turn()
            for state in self.states.values():
                self.applier.led(state, None)
            self.applier.commit_all()
        finally:
            self.let_go()
            self.waiters.fail_all(
                lambda: ClosedUnknown("the node closed; the value may still be chosen")
            )
            self.door.reading.end(self.states, lambda: Closed("the node is closed"))

    def let_go(self) -> None:
        """Close durable machines as of their last commits; again, if need be."""
        for state in list(self.states.values()):
            state.let_go()

    def shut(self) -> None:
        """Stop and join every thread, close every file. Blocks."""
        self._ended = True
        _rooms.discard(self)
        try:
            self._end_checkpoints()
            self.let_go()
        finally:  # also if Ctrl-C comes while it waits for them
            try:
                self._stop_driver()
                self._addresses.end()
            finally:
                if self._keeper is not None:
                    self._keeper.end()
                self._folder.unlock()

    def _stop_driver(self) -> None:
        while True:
            try:
                self.driver.stop(STOP_US)
                return
            except DriverError as error:
                if error.code != ERROR_TIMED_OUT:
                    raise
                log.error("a native thread is stuck in a system call; still waiting")

    def abandon(self) -> None:
        """Close a node that its user never closed: at interpreter exit, or collected as garbage."""
        if self.forked or self._pid != os.getpid() or self._ended:
            return
        self._ended = True
        self.refuse(lambda: Closed("the node is closed"))
        self.before_abandon()
        self.waiters.fail_all(lambda: ClosedUnknown("the node was never closed properly"))
        self.door.reading.end(self.states, lambda: Closed("the node is closed"))
        _rooms.discard(self)
        self._end_checkpoints(ABANDON_S)
        applying = self.applier.thread
        if applying == threading.get_ident() or not is_alive(applying):
            self.let_go()  # else it may be inside of one of them
        try:
            self.driver.stop(STOP_US)
        except DriverError as error:
            log.error("closing: %s", error)
            return
        self._addresses.end()
        assert self._keeper is not None
        self._keeper.end()
        self._folder.unlock()

    def forget(self) -> None:
        """In a forked child: the threads are gone, the files belong to the parent."""
        self.forked = True
        self.refuse(lambda: ForkedError("this process is a fork of the one that opened the node"))
        self._folder.unlock()  # closes our copy only: the parent's lock stays
        for one in (self._control, self._transfers, self._changes, self._peers, self._hosting):
            if one is not None:
                one.forget()
        self.driver.after_fork_in_child()
        self._store.abandon()


# Nodes that are open, so that a fork finds them; and in a child, what must never be collected.
_rooms: weakref.WeakSet[Room] = weakref.WeakSet()
_inherited: list[Room] = []


def _forget_rooms() -> None:
    for room in list(_rooms):
        _inherited.append(room)
        room.forget()


os.register_at_fork(after_in_child=_forget_rooms)


def is_alive(ident: int) -> bool:
    return any(thread.ident == ident for thread in threading.enumerate())
