"""Groups that come and go while a node runs: what the directory says is done here.

The directory (`phx.machines.directory`) is a group of its own that every node of the cluster hosts.
Whoever creates or deletes a group proposes that there; every node looks at the rows whenever one
has changed, and at its start, and does what they say, however late it hears:

host      a row names this node, and the group is not here. Who comes later asks who the members are
          by then (arrivals.py). The store has it first (store_hosted); then machines are made, and
          the group begins, as at a start
say       its members are others, or are active: whoever leads says so in the directory, so that
          those that are new host it, and those that left drop it
stop      callers are refused; nothing is delivered, and it is not led from here. All of it stays
end       it is being deleted. Whoever leads proposes the group's last value; whoever knows that to
          be chosen says so in the directory, when its own tombstone is durable
drop      it is gone, or the id is another group's by now, or it goes on without this node, by
          members that are active. The store has that first; then machines, callers, votes; then
          checkpoints and files; then what the store has of its log

One step at a time, on one thread, so a group is never dropped while it begins. A crash between any
two of them leaves what the next start, or the next look, does to its end.

Why all members agree. A group's first members, with their addresses, stand in the row, and so in
one place of one log: every node that hosts it begins with the same roster, to the byte, at the same
instance (`first_members`). No file of any node has a say, so no two nodes count quorums of
different members. And an id that is used again is another group, with a generation of its own in
every message and record (`_core/groups.pxd`).

A node that dropped a group never hosts one of that generation again, whatever a row says: its votes
in it are forgotten. The store knows which these are; and in case it is a new one, as the old was
lost, no row counts for the beginning of a group that may be older than this life of the node.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from phx import store_hosted
from phx._core.driver import ERROR_CLOSED, Driver, DriverError
from phx._core.group_table import GroupTable
from phx._core.waiters import Waiters
from phx.applier import Applier, GroupState, taking
from phx.checkpoint.catalog import Catalog, path_of
from phx.checkpoint.files import remove_tree
from phx.door import Door
from phx.errors import DeletedUnknown, GroupStopped, PhxError, StoppedUnknown
from phx.machine import StateMachine
from phx.machines.directory import Directory, GroupRow, encode_ended, encode_members
from phx.node.arrivals import Arrivals
from phx.node.keeper import Keeper
from phx.node.line import Ending
from phx.node.lives import Lives
from phx.node.machine_files import FOLDER
from phx.node.memberships import Memberships
from phx.node.removal import Removal
from phx.node.restorer import Restorer
from phx.node.snapshots import Snapshots
from phx.node.threads import handed, result_of
from phx.node.transfers import Transfers
from phx.stops import Deleted, Removed, unknown_stop
from phx.store import Store
from phx.store_hosted import HostedRow
from phx.types import DIRECTORY_GROUP, Read

__all__ = ["Hosting", "Parts"]

log = logging.getLogger("phx")

T = TypeVar("T")
SLICE_S = 0.2
LOOK_S = 0.02
"""Until a group is looked at again of which not all is done."""
END_S = 0.05
"""The same, until its last value is known to be chosen."""
SAID_S = 0.5
"""The same, until the directory has it that it is, or who its members are; or until it has led."""
HEARD_S = 0.1
"""The same, until the directory is known as it is now, or whoever leads has said who its members
are."""
OTHERS_S = 5.0
"""So long it is left to whoever leads; then every member says it."""
FAILED_S = 1.0
"""After something went wrong."""
PROPOSE_S = 5.0


@dataclass(frozen=True)
class Parts:
    """Of the node, all of them running.

    Attributes:
        states: by group; those that come and go are put in and taken out here.
        factory: makes the machines of a group.
        begun: told of a group's machines before it begins (on the applying thread).
        gone: told of a group that was dropped (on the applying thread).
        busy: whether somebody waits here for what becomes of a change of its members.
    """

    node: int
    folder: Path
    driver: Driver
    applier: Applier
    waiters: Waiters
    door: Door
    states: dict[int, GroupState]
    keeper: Keeper
    lives: Lives
    memberships: Memberships
    removal: Removal
    catalog: Catalog
    snapshots: Snapshots
    restorer: Restorer
    transfers: Transfers
    factory: Callable[[int], dict[int, StateMachine]]
    begun: Callable[[GroupState], None]
    gone: Callable[[int], None]
    busy: Callable[[int], bool]


class Hosting(threading.Thread):
    """The thread ``phx-groups`` of one node.

    Guarantee: what is hosted here is what the directory says, as far as this node has applied it;
    nothing of a group that was dropped is left but its row in the store, and nothing of one reaches
    another group of the same id.

    Args:
        rows: what the store says of created groups, at the start.
    """

    def __init__(self, rows: Mapping[int, HostedRow]) -> None:
        super().__init__(name="phx-groups", daemon=True)
        self._parts: Parts
        self._table: GroupTable
        self._arrivals: Arrivals | None = None
        self._rows = dict(rows)
        self._change = threading.Condition()
        self._news = True
        self._ending = False
        self._seen: dict[int, GroupRow] = {}
        self._undone: dict[int, float] = {}  # groups that are not as they should be: look then
        self._paused: set[int] = set()  # stopped, and the driver delivers nothing
        self._resumed: set[int] = set()  # of those, what somebody else had go on
        self._roused: set[int] = set()  # halted, and led all the same, for their last value
        self._swept = {group for group, row in rows.items() if row.gone}
        self._sight: Future[list[Read]] | None = None  # of the directory, as it was in this life
        self._unsaid: dict[int, float] = {}  # since when the directory lacks the newest members
        self.failed: dict[int, str] = {}
        """Why a group is not as the directory says."""

    # --- any thread

    def wake(self) -> None:
        """A row has changed."""
        with self._change:
            self._news = True
            self._change.notify_all()

    def heard(self, group: int) -> None:
        """Other members of a group are known, or that they are active."""
        if self.hosted(group):
            self.again(group)

    def again(self, group: int) -> None:
        """There is news of a group: of its members, or that its last value is chosen."""
        with self._change:
            self._news = True
            self._undone[group] = 0.0
            self._change.notify_all()

    def replaced(self, group: int) -> None:
        """It has the state of another node's checkpoint, and goes on."""
        if group == DIRECTORY_GROUP:
            self.wake()  # its rows are others
        if group in self._rows:
            with self._change:
                self._news = True
                self._resumed.add(group)
                self._undone[group] = 0.0
                self._change.notify_all()

    def rows(self) -> dict[int, GroupRow]:
        """As this node has applied them."""
        machine = self._directory()
        return {} if machine is None else dict(machine.rows)

    def row_of(self, group: int) -> GroupRow | None:
        """The same of one id."""
        machine = self._directory()
        return None if machine is None else machine.rows.get(group)

    def _directory(self) -> Directory | None:
        state = self._parts.states.get(DIRECTORY_GROUP)
        machine = None if state is None else state.machines.get(0)
        return machine if isinstance(machine, Directory) else None

    def hosted(self, group: int) -> int:
        """Generation of the created group that is hosted here under this id; 0: none is."""
        row = self._rows.get(group)
        there = row is not None and not row.gone and group in self._parts.states
        return row.generation if row is not None and there else 0

    def is_gone(self, group: int, generation: int) -> bool:
        """Whether nothing is left here of that group, or never was anything."""
        row = self._rows.get(group)
        if row is None or row.generation > generation:
            return True
        return row.gone and group in self._swept

    def begins(self, group: int) -> tuple[int, Sequence[int]]:
        """Behind which instance the log of a group begins, and who its members are there."""
        row = self._rows.get(group)
        return (0, ()) if row is None or row.gone else (row.base, row.first.nodes)

    def is_stopped(self, group: int) -> bool:
        state = self._parts.states.get(group)
        return state is not None and state.parked

    def wait(self, holds: Callable[[], bool], until_s: float) -> bool:
        """Until that is so, which is looked at whenever something was done here. Raises Ending."""
        with self._change:
            while not self._ending:
                if holds():
                    return True
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._change.wait(min(left_s, SLICE_S))
        raise Ending

    def end(self, wait_s: float | None = None) -> None:
        """Nothing more is begun. Idempotent."""
        with self._change:
            self._ending = True
            self._change.notify_all()
        if self.ident is not None and self is not threading.current_thread():
            self.join(wait_s)
        if self._arrivals is not None:
            self._arrivals.end(wait_s)

    def forget(self) -> None:
        """In a forked child."""
        if self._arrivals is not None:
            self._arrivals.forget_lines()

    # --- on this thread

    def begin(self, parts: Parts) -> None:
        """Everything runs: look from now on."""
        self._parts, self._table = parts, GroupTable(parts.driver)
        self._arrivals = Arrivals(parts.transfers.peers, self.again)
        parts.memberships.on_ended, parts.memberships.on_created_members = self.again, self.heard
        self.start()

    def run(self) -> None:
        try:
            while self._await():
                self._look()
        except Ending:
            return
        except DriverError as error:
            if error.code != ERROR_CLOSED:
                log.exception("groups come and go no more")
        except Exception:
            if not self._ending:
                log.exception("groups come and go no more")

    def _await(self) -> bool:
        """Until there is something to look at; False: no more."""
        with self._change:
            while not self._ending and not self._news:
                next_s = min(self._undone.values(), default=None)
                if next_s is None:
                    self._change.wait()
                elif (left_s := next_s - time.monotonic()) > 0:
                    self._change.wait(left_s)
                else:
                    break
            self._news = False
            return not self._ending

    def _look(self) -> None:
        rows, now_s = self.rows(), time.monotonic()
        changed = [group for group, row in rows.items() if self._seen.get(group) is not row]
        with self._change:
            due = [group for group, at_s in self._undone.items() if at_s <= now_s]
            for group in due:  # (Of what has no row nothing is known; when there is, that is news.)
                del self._undone[group]
            while self._resumed:
                self._paused.discard(self._resumed.pop())
        for group in dict.fromkeys([*changed, *(group for group in due if group in rows)]):
            row = self._seen[group] = rows[group]
            try:
                again_s = self._reconcile(group, row)
                self.failed.pop(group, None)
            except Ending:
                raise
            except Exception as error:
                if isinstance(error, DriverError) and error.code == ERROR_CLOSED:
                    raise
                again_s, why = FAILED_S, f"{type(error).__name__}: {error}"
                if self.failed.get(group) != why:
                    unexpected = None if isinstance(error, PhxError | OSError) else error
                    log.error("group %d: %s", group, why, exc_info=unexpected)
                self.failed[group] = why
            with self._change:
                heard = self._undone.pop(group, None) == 0.0
                if heard or again_s:
                    self._undone[group] = 0.0 if heard else time.monotonic() + again_s
                self._change.notify_all()

    def _reconcile(self, group: int, row: GroupRow) -> float:
        """One step; when to look again, if that was not the last one.

        After a start the directory is read again from a checkpoint or from the beginning, and says
        what it said long ago: so nothing is done about a row that is older than what the store
        says. (Of the same generation an older row is a step on the way that was gone; and one of
        before this node was a member does not say that it left.)
        """
        mine = self._rows.get(group)
        over = mine is not None and (row.generation > mine.generation or row.phase == "gone")
        without = 0 if over else row.version
        if mine is not None and mine.gone and group in self._parts.states:
            return self._drop(group, mine, without)  # it was begun, and something failed
        if mine is not None and mine.gone and group not in self._swept:
            self._clean(group)
        if mine is not None and row.generation < mine.generation + mine.gone:
            return 0.0
        if mine is None or mine.gone:
            if row.phase == "gone" or self._parts.node not in row.nodes:
                self._arriving.forget(group)
                return 0.0
            return self._host(group, row)
        if over or row.without(self._parts.node, mine.membership.version):
            return self._drop(group, mine, without)
        if group not in self._parts.states:
            self._prepare(group, mine)
            self._begin(group, mine)
            return LOOK_S
        if row.phase == "stopped":
            return min(filter(None, (self._park(group), self._say(group, row))), default=0.0)
        if self._parts.states[group].parked and not self._go_on(group):
            return LOOK_S
        again_s = self._say(group, row)
        return self._end(group, row) if row.phase == "ending" else again_s

    # --- hosting

    @property
    def _arriving(self) -> Arrivals:
        assert self._arrivals is not None
        return self._arrivals

    def _host(self, group: int, row: GroupRow) -> float:
        """As one of its first members, or as one that comes later."""
        joined = None
        if not (self._is_seen() and self.row_of(group) is row):
            return HEARD_S
        if row.moved is not None:
            joined = self._arriving.members(group, row.generation, row.version, row.nodes)
            if joined is None:
                return SAID_S
        first = store_hosted.first_members(row.generation, dict(row.first))
        if joined is not None and joined.membership.instance == first.instance:
            joined = None  # nobody knows of later ones: it is one of the first, and late
        mine = HostedRow(row.generation, first.roster, joined=joined)
        self._sweep(group)
        self._ask(lambda store: store_hosted.write(store, group, mine))
        self._rows[group] = mine
        self._prepare(group, mine)
        self._swept.discard(group)
        self._begin(group, mine)
        self._arriving.forget(group)
        return LOOK_S if row.phase != "live" else 0.0

    def _is_seen(self) -> bool:
        """Whether the rows that are here are not older than this life of the node.

        What the directory says while it is read again may name this node for a member of a group
        that it has left since, and be all that is known of that here, if the store was lost.
        """
        sight = self._sight
        if sight is not None and sight.done():
            if sight.exception() is None:
                return True
            sight = None
        if sight is None:
            parts, future = self._parts, Future[Any]()
            future.set_running_or_notify_cancel()
            state = parts.states[DIRECTORY_GROUP]
            with suppress(PhxError):  # as when nobody leads it now
                parts.door.wanted(state, future, [DIRECTORY_GROUP], "linearizable", PROPOSE_S, 0)
                self._sight = future
        return False

    def _prepare(self, group: int, mine: HostedRow) -> None:
        self._parts.lives.host([group])
        self._ask(lambda store: store_hosted.prepare(store, group, mine))

    def _begin(self, group: int, mine: HostedRow) -> None:
        """Its machines, which hold nothing; then it takes part."""
        parts, told = self._parts, mine.membership
        state = new_state(group, parts.factory, parts.restorer.unmade)

        def add() -> None:
            parts.memberships.begin_group(group, mine.first, told)
            parts.waiters.add_group(group)
            parts.states[group] = state
            parts.restorer.paused.add(group)
            try:
                self._table.add(
                    group, generation=mine.generation, settled=mine.base, floor=mine.base + 1,
                    start=mine.base,
                    members=(told.version, told.roster, told.instance, told.floor, told.active),
                )  # fmt: skip
            except BaseException:
                parts.restorer.paused.discard(group)
                parts.memberships.forget(group)
                del parts.states[group]
                parts.waiters.drop_group(group, lambda: DeletedUnknown("it was not there"))
                raise
            parts.begun(state)

        self._applying(add)
        if parts.door.relaxing is not None:
            parts.door.relaxing.added(group)
        parts.restorer.start([group], 1)
        parts.memberships.on_news(group, told)
        log.info("group %d, generation %d, is hosted here", group, mine.generation)

    # --- stopping

    def _park(self, group: int) -> float:
        parts, state = self._parts, self._parts.states[group]
        if group in self._paused:
            return 0.0
        if group in parts.restorer.at or (group in parts.restorer.paused and not state.stopped):
            return LOOK_S  # its machines are not there yet
        # It has to lead once, or it stays without a vote: whoever loses a journal next, while the
        # group is stopped, would leave it without a quorum. (What is led takes no values: callers
        # are refused all the same.)
        suspect = bool(parts.driver.group_status(group)["suspect"])

        def stop() -> None:
            state.parked, state.taking = True, {}
            if state.stopped is None and not suspect:  # if it stopped, nothing is delivered anyway
                parts.driver.pause(group)
                self._paused.add(group)
            parts.waiters.fail_group(group, lambda: StoppedUnknown(f"group {group} was stopped"))

        if not (state.parked and (suspect or state.stopped is not None)):
            self._keep(group, stopped=True)
            self._applying(stop)
        return SAID_S if suspect and state.stopped is None else 0.0

    def _go_on(self, group: int) -> bool:
        """Whether it takes values again."""
        parts, state = self._parts, self._parts.states[group]
        if group in parts.restorer.paused and state.stopped is None:
            return False

        def go_on() -> None:
            if group in self._paused:
                expected, _ = parts.driver.sessions.next_instance(group)
                parts.driver.resume(group, expected - 1)
            state.parked = False
            if state.stopped is None and parts.door.refusal is None:
                state.taking = taking(state.machines)

        self._keep(group, stopped=False)
        self._applying(go_on)
        self._paused.discard(group)
        return True

    def _keep(self, group: int, *, stopped: bool) -> None:
        mine = replace(self._rows[group], stopped=stopped)
        self._ask(lambda store: store_hosted.write(store, group, mine))
        self._rows[group] = mine

    # --- members that change

    def _say(self, group: int, row: GroupRow) -> float:
        """See that the directory has the newest members."""
        parts, told = self._parts, self._parts.memberships.newest(group)
        if told is None or not told.nodes or (told.version, told.active) <= (
            row.version, row.active,
        ):  # fmt: skip
            self._unsaid.pop(group, None)
            return 0.0
        now_s, led = time.monotonic(), parts.states[group].led
        since_s = self._unsaid.setdefault(group, now_s)
        if (led is None or led.node != parts.node) and now_s < since_s + OTHERS_S:
            return HEARD_S
        members = {node: one.address for node, one in told.members().by_id.items()}
        self._propose(
            encode_members(group, row.generation, told.version, members, active=told.active)
        )
        return SAID_S

    # --- ending

    def _end(self, group: int, row: GroupRow) -> float:
        """See that the last value is proposed; say that it is chosen."""
        parts = self._parts
        if group in parts.memberships.ended:
            self._ask(lambda store: store.write_members())
            self._propose(encode_ended(group, row.generation))
            return SAID_S
        if parts.driver.group_status(group)["leading"]:
            self._table.end(group)
        elif parts.states[group].stopped is not None and group not in self._roused:
            self._applying(lambda: self._rouse(group))
        return END_S

    def _rouse(self, group: int) -> None:
        """It stopped here, perhaps on all of its members, as one that raises: it may lead all the
        same for its last value. What is delivered is not applied. On the applying thread."""
        driver, restorer = self._parts.driver, self._parts.restorer
        if group in restorer.at or group in self._parts.memberships.removed:
            return
        expected, _ = driver.sessions.next_instance(group)
        if expected == 1:  # its machines were never made
            base, nodes = self.begins(group)
            expected = max(base + 1, int(driver.group_status(group)["floor"]))
            driver.sessions.begin(group, expected - 1, nodes)
        for _ in range(2):  # a stop ends with a pause that began after it
            driver.pause(group)
            driver.resume(group, expected - 1)
        self._roused.add(group)

    def _propose(self, value: bytes) -> None:
        """In the directory; nobody waits for it: what comes of it is a row."""
        parts = self._parts
        state, future = parts.states[DIRECTORY_GROUP], Future[Any]()

        def submit() -> None:
            with parts.door.lock:
                parts.door.submit(state, future, value, PROPOSE_S, 0)

        try:
            self._applying(submit)
        except PhxError as error:
            log.debug("the directory is not told yet: %s", error)

    # --- dropping

    def _drop(self, group: int, mine: HostedRow, without: int) -> float:
        """`without`: a version of members that this node is none of; 0: the group is gone."""
        parts = self._parts
        if without and parts.busy(group):
            return LOOK_S  # who waits here for that version is told that it is active
        if group in parts.restorer.at:
            return LOOK_S
        if not mine.gone:
            gone = replace(mine, gone=True)
            self._ask(lambda store: store_hosted.write(store, group, gone))
            self._rows[group] = gone
        state = parts.states.get(group)
        if state is not None:
            self._applying(lambda: self._retire(state, without))
            while parts.transfers.let_go(group):
                self._pause(LOOK_S)
            self._applying(lambda: self._let_go(state))
            if parts.door.relaxing is not None:
                parts.door.relaxing.dropped(group)
        self._clean(group)
        self._unsaid.pop(group, None)
        log.info("group %d, generation %d, is hosted here no more", group, mine.generation)
        return LOOK_S

    def _retire(self, state: GroupState, without: int) -> None:
        """On the applying thread: nothing of it is applied or proposed any more."""
        parts, instance = self._parts, state.applied + 1
        if without and not state.removed:
            parts.applier.remove(state, Removed(state.group, instance, parts.node, without))
        elif not without and not isinstance(state.stopped, Deleted):
            parts.applier.remove(state, Deleted(state.group, instance))

    def _let_go(self, state: GroupState) -> None:
        """On the applying thread, in a later turn."""
        parts, group = self._parts, state.group
        stopped = state.stopped
        assert stopped is not None
        self._table.drop(group)  # first: it may be refused, and is asked again then
        parts.applier.forget(state)
        parts.waiters.drop_group(group, lambda: unknown_stop(stopped))
        parts.removal.forget(group)
        parts.memberships.forget(group)
        parts.snapshots.forget(group)
        parts.restorer.paused.discard(group)
        parts.restorer.unmade.pop(group, None)
        self._paused.discard(group)
        self._roused.discard(group)
        del parts.states[group]
        parts.gone(group)

    def _clean(self, group: int) -> None:
        """What is left on the disk."""
        self._sweep(group)
        self._ask(lambda store: store_hosted.clean(store, group))
        self._swept.add(group)

    def _sweep(self, group: int) -> None:
        """Checkpoints, and files of machines, durably; on the thread that changes those, after all
        that it was to do to them before. The next group of this id begins only then."""
        parts, mirrors = self._parts, self._parts.snapshots.mirrors

        def sweep() -> None:
            if mirrors is not None:
                mirrors.drop(group)
            sweep_group(parts.catalog, parts.folder, group)
            sync_folders(parts.catalog, parts.folder)

        done, run = handed(sweep)
        parts.snapshots.between(run)
        self._result(done)

    # --- other threads

    def _ask(self, action: Callable[[Store], T]) -> T:
        """On the store thread."""
        return self._result(self._parts.keeper.ask(action))

    def _applying(self, call: Callable[[], T]) -> T:
        """On the applying thread, between two of its turns."""
        future, run = handed(call)
        self._parts.applier.soon(run)
        self._parts.driver.poke()
        return self._result(future)

    def _result(self, future: Future[T]) -> T:
        """Raises Ending: the node closes, and it was not begun."""
        return result_of(future, lambda: self._ending)

    def _pause(self, seconds: float) -> None:
        with self._change:
            self._change.wait_for(lambda: self._ending, seconds)
            if self._ending:
                raise Ending


def new_state(
    group: int,
    factory: Callable[[int], dict[int, StateMachine]],
    unmade: dict[int, BaseException],
) -> GroupState:
    """A created group with its machines. If those cannot be made it is in `unmade`, and is halted
    when it is restored: it votes, and can be deleted."""
    state = GroupState(group, {})
    try:
        state.machines = factory(group)
        state.taking = taking(state.machines)
    except Exception as error:  # a user's
        unmade[group] = error
        why = f"its machines could not be made: {type(error).__name__}: {error}"
        state.stopped = GroupStopped(group, 1, None, why)
    return state


def sweep_group(catalog: Catalog, folder: Path, group: int) -> None:
    """Remove its checkpoints, and the files of its machines. Raises OSError."""
    for one in catalog.condemn(group, -1):
        remove_tree(catalog.files, path_of(catalog.root, one))
    for left in (folder / FOLDER).glob(f"{group}.*"):
        shutil.rmtree(left)
    shutil.rmtree(folder / catalog.root / str(group), ignore_errors=True)


def sync_folders(catalog: Catalog, folder: Path) -> None:
    """What was removed does not come back with a power cut. Raises OSError."""
    for root in (FOLDER, catalog.root):
        if (folder / root).is_dir():
            catalog.files.sync(root)


def sweep_gone(catalog: Catalog, folder: Path, rows: Iterable[tuple[int, HostedRow]]) -> None:
    """At a start: what a crash left of groups that are gone, and of earlier ones of an id."""
    for group, row in rows:
        if row.gone:
            sweep_group(catalog, folder, group)
            continue
        for one in catalog.of(group):
            if one.frontier < row.base:
                catalog.forget(one)
                remove_tree(catalog.files, path_of(catalog.root, one))
