"""Takes the checkpoints of a node, one after the other, while its groups go on.

in line    somebody asked for it, or the group is due (phx.checkpoint.policy)
captured   on the applying thread, between two instances: session table and views of one instance,
           durable machines committed before
written    on the thread ``phx-snapshot``: staged, synced, renamed (phx.checkpoint.taking)
dropped    what is older than the ``keep`` newest; then the log may become shorter
           (phx.node.floors)

A checkpoint is *light* if all machines of the group are durable and it came by itself: no machine's
state is in it, for that is in their own files, committed at its frontier or later; so it costs no
copy of what is on the disk already. One that somebody asked for has all states in it: he wants
something to keep elsewhere, and there nobody has those files. With a machine in memory beside
durable ones it has all, too: the parts of one checkpoint can be brought back together.
"""

from __future__ import annotations

import errno
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from phx._core.delivery import Sessions
from phx._core.session_codec import table_facts
from phx.applier import GroupState
from phx.checkpoint.catalog import Catalog, path_of
from phx.checkpoint.compression import PLAIN, ZSTD
from phx.checkpoint.files import need_room, remove_tree
from phx.checkpoint.manifest import CONFIG_FIRST, DURABLE, MEMORY, Manifest
from phx.checkpoint.policy import ASK_NEVER, At, Policy
from phx.checkpoint.taking import Capture, Part, run, take
from phx.config import Config
from phx.errors import CheckpointFailed
from phx.machine import DurableMachine, StateMachine, View, has_snapshots, has_views
from phx.node.divergence import set_aside
from phx.node.floors import Floors
from phx.node.line import Ending
from phx.node.memberships import Memberships
from phx.node.mirror import Mirrors
from phx.types import AGREED_EVERY, CheckpointInfo

__all__ = ["Snapshots"]

log = logging.getLogger("phx")

AGREED_WAIT_S = 0.5
"""How long an agreed instance is waited for before any instance will do. There checkpoints of equal
states are equal on all nodes; so it is worth a moment, but nobody else's place in line."""
AGREED_WORTH = 2 * AGREED_EVERY
"""Where checkpoints are fewer instances apart than this, agreed ones are rare: any will do."""
RESTORING_S = 0.2
"""How often it is looked whether a group that is being restored is there."""
BURST_S = 0.05
LOOK_BYTES = 8 << 20  # written between two looks at the room that is left
NO_VIEW = "gives no view (freeze, snapshot, restore)"


@dataclass
class Wish:
    """A group of which a checkpoint is wanted."""

    group: int
    asked: bool  # any instance will do
    full: bool  # somebody wants all of it
    futures: list[Future[CheckpointInfo]] = field(default_factory=list)


@dataclass
class Taken:
    """A group as it was captured, or why it was not."""

    capture: Capture | None = None
    log_bytes: int = 0
    views: list[View] = field(default_factory=list)
    mirrored: list[int] = field(default_factory=list)  # machines that gave none
    error: BaseException | None = None
    state: GroupState | None = None  # whose it is: another may have its id by the end
    condemned: int = 0  # how often the group's checkpoints were, by then


class Snapshots(threading.Thread):
    """The thread that writes checkpoints, and who may ask for one.

    Guarantee: a checkpoint holds machines, session table and chained checksum of one and the same
    instance, between two of which it was captured. No group waits for the writing; all that is done
    on the applying thread is to commit the group's durable machines and to make the views.

    Args:
        catalog: the checkpoints that the node has.
        states, sessions: what is applied, and the tables.
        wake: makes the applying thread take a turn soon.
        commit: commits the durable machines of a group; on the applying thread.
        floors: is told what is covered.
        memberships: knows who the members at an instance are.
        idle: something to do on this thread when no checkpoint is wanted; gives the seconds after
            which to do more of it.
    """

    def __init__(
        self,
        catalog: Catalog,
        config: Config,
        states: Mapping[int, GroupState],
        sessions: Sessions,
        wake: Callable[[], None],
        commit: Callable[[GroupState], None],
        floors: Floors,
        memberships: Memberships,
        idle: Callable[[], float] = lambda: math.inf,
    ) -> None:
        super().__init__(name="phx-snapshot", daemon=True)
        self._idle = idle
        self._idle_s = 0.0  # when to do more of it
        self._catalog = catalog
        self._config = config
        self._options = config.checkpoints
        self._states = states
        self._sessions = sessions
        self._wake = wake
        self._commit = commit
        self._floors = floors
        self._memberships = memberships
        floors.wake = self._look_again
        self._change = threading.Condition()
        self._line: deque[Wish] = deque()
        self._between: deque[Callable[[], None]] = deque()
        self._due: set[int] = set()  # groups that stand in it unasked
        self._policy = Policy(  # under `_change`
            interval_instances=config.checkpoints.interval_instances,
            interval_bytes=config.checkpoints.interval_bytes,
            interval_us=config.checkpoints.interval_us,
            cluster=config.cluster_id,
            node=config.node,
            members=config.members,
        )
        self._wanted: Wish | None = None  # the one that is being captured
        self._taken: Taken | None = None
        self._ending = False
        self._held = False  # only those that somebody asks for
        self._writing = False
        self._condemned: Counter[int] = Counter()  # under `_change`
        self._outlived: set[int] = set()  # groups whose mirror is not of their state
        self._errors: dict[int, str] = {}  # why a group's last one failed
        self._free_s = 0.0  # when the pace allows the next byte
        self._unlooked_bytes = 0
        self.on_drop: Callable[[], None] = lambda: None  # before older ones are dropped
        self.paused: Container[int] = ()  # groups whose machines are being restored
        self.mirrors: Mirrors | None = None  # None: machines without a view have no checkpoints
        self.error: str | None = None
        self.counters = {
            "restored": 0,
            "taken": 0,
            "failed": 0,
            "bytes": 0,
            "freeze_us_max": 0,
            "write_us": 0,
        }

    # --- who wants one

    def schedule(self, state: GroupState, frontier: int) -> None:
        """The group goes on from a checkpoint at `frontier`, or from none where its log begins
        behind that. Any thread, before it applies anything."""
        self._floors.begins(state)
        if not self._may_come(state):
            ask_at(state, ASK_NEVER)
            self._errors[state.group] = f"{_blind(state)}, so the group has no checkpoints"
            return
        with self._change:
            ask_at(state, self._policy.begins(state.group, frontier))
            self.counters["restored"] += frontier > 0 and bool(self._catalog.of(state.group))

    def installed(self, state: GroupState) -> None:
        """The group goes on from a checkpoint of another node, at what is applied now. On the
        applying thread."""
        self._floors.begins(state)
        if self.mirrors is not None:
            self._outlived.add(state.group)
            self.between(lambda: self._forget_mirror(state.group))
        if not self._may_come(state):
            ask_at(state, ASK_NEVER)
            return
        with self._change:
            at = self._policy.taken(state.group, state.applied, state.log_bytes, time.monotonic())
            ask_at(state, at)

    def _forget_mirror(self, group: int) -> None:
        """It is of another state than the group has. On this thread."""
        assert self.mirrors is not None
        self._outlived.discard(group)
        self.mirrors.drop(group)

    def condemn(self, group: int, above: int, but: bytes) -> list[Manifest]:
        """Take a group's checkpoints beyond this instance out of the catalog, but for the one with
        this ident; nor does one become a checkpoint that was captured before. They lie where they
        lay. Any thread."""
        with self._change:
            self._condemned[group] += 1
            return self._catalog.condemn(group, above, but)

    def forget(self, group: int) -> None:
        """It is gone: no checkpoint of it is taken any more. On the applying thread."""
        with self._change:
            line = [wish for wish in self._line if wish.group == group]
            for wish in line:
                self._line.remove(wish)
            if self._wanted is not None and self._wanted.group == group and self._taken is None:
                self._taken = Taken(error=gone(group))
            self._due.discard(group)
            self._policy.forget(group)
            self._condemned.pop(group, None)
            self._errors.pop(group, None)
            self._change.notify_all()
        for wish in line:
            self._settle(wish, gone(group))
        self._floors.forget(group)

    def between(self, task: Callable[[], None]) -> None:
        """Have something done that changes a group's checkpoints, or needs that no view is open:
        between two checkpoints, unless the node closes before. Any thread."""
        with self._change:
            self._between.append(task)
            self._change.notify_all()

    def ask(self, group: int) -> Future[CheckpointInfo]:
        """A checkpoint of what is applied by now, or a little later. Any thread."""
        future: Future[CheckpointInfo] = Future()
        with self._change:
            if self._ending:
                future.set_exception(CheckpointFailed("the node is closed"))
                return future
            for wish in self._line:
                if wish.group == group and wish.asked:
                    wish.futures.append(future)
                    return future
            before = sum(wish.asked for wish in self._line)  # they stand in front
            self._line.insert(before, Wish(group, True, True, [future]))
            self._change.notify_all()
        return future

    def hold(self, held: bool) -> None:
        """Take none but those that somebody asks for, and let the floors stay; the one that is
        being taken is finished. False: as ever again, beginning with what came due meanwhile. Any
        thread."""
        with self._change:
            self._held = held
            self._change.notify_all()
        self._floors.hold(held)

    def error_of(self, group: int) -> str | None:
        """Why the group's last checkpoint failed, or it has none. Any thread."""
        return self._errors.get(group)

    def _look_again(self) -> None:
        with self._change:
            self._change.notify_all()

    def due(self, state: GroupState) -> None:
        """The group has come to where it is to be asked for. On the applying thread."""
        with self._change:
            due, at = self._policy.reached(
                state.group, state.applied, state.log_bytes, time.monotonic()
            )
            ask_at(state, at)
            if due:
                self._join(state.group)
            self._change.notify_all()

    def numbers(self) -> dict[str, int]:
        """What there is to say about all of them, by name."""
        mirrors = self.mirrors.counters() if self.mirrors is not None else {}
        now = {"paused": int(self._held), "writing": int(self._writing)}
        return {**self.counters, **self._floors.counters, **mirrors, **now}

    def _join(self, group: int) -> None:
        if group not in self._due:
            self._due.add(group)
            self._line.append(Wish(group, False, False))

    # --- capturing, on the applying thread

    def table(self, state: GroupState, table: bytes) -> None:
        """A batch was applied to its end, and `table` is the group's after it."""
        wish = self._wanted
        if wish is not None and wish.group == state.group and self._taken is None:
            self._capture(state, table, wish)

    def turned(self) -> None:
        """Whoever is wanted may be captured as it is, if all of its batches are applied. (Under
        load that is waited for at a batch's end; a group without load has none.)"""
        wish = self._wanted
        if wish is None or self._taken is not None:
            return
        state = self._states.get(wish.group)
        if state is None:
            self._hand(Taken(error=gone(wish.group)))
        elif state.stopped is not None:
            self._hand(Taken(error=CheckpointFailed(str(state.stopped))))
        elif wish.group in self.paused:
            self._hand(Taken(error=CheckpointFailed(f"group {wish.group} is being restored")))
        elif not state.applied:
            self._hand(Taken(error=CheckpointFailed(f"group {wish.group}: nothing is applied yet")))
        elif wish.asked and self._sessions.next_instance(wish.group)[0] == state.applied + 1:
            self._capture(state, self._sessions.table(wish.group), wish)

    def _capture(self, state: GroupState, table: bytes, wish: Wish) -> None:
        began = time.perf_counter_ns()
        taken = Taken()
        try:
            self._commit_all(state)
            _, frontier, chain, epoch = table_facts(table)
            assert frontier == state.applied, "the table is of another instance"
            taken.log_bytes = state.log_bytes
            taken.state, taken.condemned = state, self._condemned[state.group]
            told = self._memberships.at(state.group, frontier)
            parts = tuple(self._parts(state, taken, wish.full))
            taken.capture = Capture(
                cluster=self._config.cluster_id,
                group=state.group,
                frontier=frontier,
                epoch=epoch,
                config=CONFIG_FIRST if told is None else told.version,
                members=tuple(sorted(self._config.members)) if told is None else told.nodes,
                sessions=table,
                chain=chain,
                parts=parts,
                membership=told and replace(told, active=False),
                taken_by=self._config.node,
                taken_us=time.time_ns() // 1000,
            )
        except BaseException as error:
            close_all(taken.views)
            taken = Taken(error=error)
            if not isinstance(error, Exception):
                raise  # the applying thread's business, too
        finally:
            took_us = (time.perf_counter_ns() - began) // 1000
            self.counters["freeze_us_max"] = max(self.counters["freeze_us_max"], took_us)
            self._hand(taken)

    def _commit_all(self, state: GroupState) -> None:
        """Afterwards the files of all durable machines hold the state of `state.applied`."""
        if state.stopped is None and state.durable:
            self._commit(state)
        if state.stopped is not None:
            raise CheckpointFailed(str(state.stopped))
        for machine, through in state.committed.items():
            if through > state.applied:
                raise CheckpointFailed(
                    f"machine {machine} of group {state.group} holds the state of {through} "
                    f"already, and the log was followed up to {state.applied} so far"
                )
            if through < state.applied:
                raise CheckpointFailed(
                    f"machine {machine} of group {state.group} holds the state of {through}, and "
                    f"that of {state.applied}, which is applied, was not committed"
                )

    def _parts(self, state: GroupState, taken: Taken, full: bool) -> Iterator[Part]:
        light = not full and all_durable(state)
        for machine, one in state.machines.items():
            kind = DURABLE if isinstance(one, DurableMachine) else MEMORY
            view = one.freeze() if has_views(one) and not light else None
            if view is not None:
                taken.views.append(view)
            elif not light and self._may_mirror(one):
                taken.mirrored.append(machine)
            elif not light:
                raise CheckpointFailed(f"machine {machine} of group {state.group} {NO_VIEW}")
            digest = one.digest() if one.digest_cheap else b""
            yield Part(machine, kind, view.snapshot if view else None, digest)

    def _may_mirror(self, machine: StateMachine) -> bool:
        return self.mirrors is not None and has_snapshots(machine)

    def _may_come(self, state: GroupState) -> bool:
        """Whether the group can have checkpoints without being asked."""
        return all_durable(state) or all(
            has_views(one) or self._may_mirror(one) for one in state.machines.values()
        )

    def _hand(self, taken: Taken) -> None:
        with self._change:
            self._taken = taken
            self._change.notify_all()

    # --- writing, on this thread

    def run(self) -> None:
        while (wish := self._next()) is not None:
            if not isinstance(wish, Wish):
                try:
                    wish()
                except Exception:
                    log.exception("tidying checkpoints")
                continue
            self._writing = True
            try:
                info = self._take(wish)
            except Ending:
                self._settle(wish, CheckpointFailed("the node closes"))
            except BaseException as error:  # of a user's view: also SystemExit
                self._failed(wish, error)
            else:
                self.error = None
                self._errors.pop(wish.group, None)
                self.counters["taken"] += 1
                self.counters["bytes"] += info.bytes
                for future in wish.futures:
                    if future.set_running_or_notify_cancel():
                        future.set_result(info)
            finally:
                self._writing = False

    def _next(self) -> Wish | Callable[[], None] | None:
        """The next in line, after whatever is to be done between two; None at the end."""
        with self._change:
            while not self._ending:
                if self._between:
                    return self._between.popleft()
                now_s = time.monotonic()
                for group in self._policy.ringing(now_s):
                    self._join(group)
                while (wish := self._first()) is not None:
                    if wish.asked:
                        return wish
                    self._due.discard(wish.group)
                    state = self._states.get(wish.group)
                    if state is not None and state.applied > self._policy.last(wish.group):
                        return wish
                self._floors.ring(now_s)
                next_s = min(self._policy.next_s(), self._floors.next_s())
                wait_s = next_s - now_s
                if self._line and not self._held:
                    wait_s = min(wait_s, RESTORING_S)
                if self._idle_s <= now_s:
                    return self._do_idle
                wait_s = min(wait_s, self._idle_s - now_s)
                self._change.wait(None if wait_s == math.inf else wait_s)
        return None

    def _do_idle(self) -> None:
        self._idle_s = time.monotonic() + self._idle()

    def _first(self) -> Wish | None:
        """Take the first in line whose machines are there, or will not be."""
        for at, wish in enumerate(self._line):
            if self._held and not wish.asked:
                return None  # none that was asked for stands behind it
            state = self._states.get(wish.group)
            if wish.group not in self.paused or state is None or state.stopped is not None:
                del self._line[at]
                return wish
        return None

    def _take(self, wish: Wish) -> CheckpointInfo:
        began = time.monotonic()
        taken = self._captured(wish)
        captured_s = time.monotonic()
        try:
            if taken.error is not None:
                raise taken.error
            capture = taken.capture
            assert capture is not None
            if taken.mirrored:
                assert self.mirrors is not None
                if wish.group in self._outlived:  # it was waited for while that came
                    self.mirrors.drop(wish.group)
                capture = self.mirrors.fill(capture, taken.mirrored)
            manifest = self._write(capture, taken)
        finally:
            close_all(taken.views)
        state = self._states.get(wish.group)
        if state is None or state is not taken.state:
            raise gone(wish.group)
        with self._change:
            at = self._policy.taken(
                wish.group, manifest.frontier, taken.log_bytes, time.monotonic()
            )
            ask_at(state, At(min(state.checkpoint_at, at.instance), at.log_bytes))
        self._floors.covered(wish.group, manifest.frontier, captured_s)
        took_s = time.monotonic() - began
        self.counters["write_us"] += int(took_s * 1e6)
        return CheckpointInfo(
            group=wish.group,
            frontier=manifest.frontier,
            bytes=sum(one.size_bytes for one in manifest.files),
            path=str(self._config.dir / path_of(self._catalog.root, manifest)),
            seconds=took_s,
        )

    def _captured(self, wish: Wish) -> Taken:
        """Wait for the applying thread."""
        with self._change:
            self._wanted, self._taken = wish, None
        try:
            if not wish.asked and self._agreed_may_come():
                self._sessions.want(wish.group, False)
                if (taken := self._await(AGREED_WAIT_S)) is not None:
                    return taken
            wish.asked = True
            self._sessions.want(wish.group, True)
            self._wake()
            while (taken := self._await(AGREED_WAIT_S)) is None:
                self._wake()  # somebody else's turn may have come between
            return taken
        finally:
            with self._change:
                self._wanted = None

    def _agreed_may_come(self) -> bool:
        return self._options.interval_instances >= AGREED_WORTH and not self._line

    def _await(self, seconds: float) -> Taken | None:
        with self._change:
            self._change.wait_for(lambda: self._taken is not None or self._ending, seconds)
            taken = self._taken
            if taken is not None:
                self._wanted = self._taken = None  # at once: there is no second capture
            elif self._ending:
                raise Ending
            return taken

    def _write(self, capture: Capture, taken: Taken) -> Manifest:
        catalog, options = self._catalog, self._options
        steps = take(
            catalog.files,
            catalog.root,
            capture,
            estimate_bytes=sum(
                one.size_bytes for last in catalog.of(capture.group)[:1] for one in last.files
            ),
            reserve_bytes=options.reserve_bytes,
            codec=ZSTD if options.compress == "zstd" else PLAIN,
            pace=self._pace,
        )
        manifest = run(steps)
        with self._change:
            here = self._states.get(capture.group) is taken.state
            sound = here and self._condemned[capture.group] == taken.condemned
            if sound:
                catalog.add(manifest)
        if not here:  # it was dropped meanwhile, and another of its id may have begun
            remove_tree(catalog.files, path_of(catalog.root, manifest))
            raise gone(capture.group)
        if not sound:
            set_aside(catalog, [manifest])
            raise CheckpointFailed(f"group {capture.group}: its state was not what its log says")
        self.on_drop()
        try:
            for _ in catalog.drop(capture.group, options.keep):
                pass
        except OSError:
            log.exception("group %d: an older checkpoint stays", capture.group)
        return manifest

    def _pace(self, nbytes: int) -> None:
        """Sleep until so much may have been written; OSError if it leaves too little room."""
        self._unlooked_bytes += nbytes
        if self._unlooked_bytes >= LOOK_BYTES:
            self._unlooked_bytes = 0
            need_room(self._catalog.files, 0, self._options.reserve_bytes)
        now = time.monotonic()
        self._free_s = max(self._free_s, now - BURST_S) + nbytes / self._options.write_bytes_per_s
        self.rest(self._free_s - now)

    def rest(self, seconds: float) -> None:
        """Sleep on this thread, not longer than the node is open."""
        with self._change:
            self._change.wait_for(lambda: self._ending, max(0.0, seconds))
            if self._ending:
                raise Ending

    def _failed(self, wish: Wish, error: BaseException) -> None:
        """Say so; later again, less and less often."""
        self.counters["failed"] += 1
        self.error = f"group {wish.group}: {type(error).__name__}: {error}"
        self._errors[wish.group] = f"{type(error).__name__}: {error}"
        if not isinstance(error, CheckpointFailed):
            log.error("no checkpoint of group %d", wish.group, exc_info=error)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._make_room()
            if isinstance(error, OSError) or not isinstance(error, Exception):
                why = f"group {wish.group}: {type(error).__name__}: {error}"
                error = CheckpointFailed(why)
        self._settle(wish, error)
        state = self._states.get(wish.group)
        if state is not None and state.stopped is None and self._may_come(state):
            with self._change:
                self._policy.failed(wish.group, time.monotonic())

    def _make_room(self) -> None:
        """With less than half the reserve free, of each group only the newest one stays."""
        try:
            if self._catalog.files.free_bytes() < self._options.reserve_bytes // 2:
                for group in self._catalog.groups():
                    for _ in self._catalog.drop(group, 1):
                        pass
        except OSError as error:
            log.error("older checkpoints stay: %s", error)

    def _settle(self, wish: Wish, error: BaseException) -> None:
        for future in wish.futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def end(self, wait_s: float | None = None) -> None:
        """Finish nothing that is not nearly done; whoever waits is told.

        Args:
            wait_s: for the thread, at most: whoever collects garbage may be inside a lock of ours.
        """
        with self._change:
            self._ending = True
            self._change.notify_all()
        if self.ident is not None and self is not threading.current_thread():
            self.join(wait_s)
        if self.mirrors is not None and not self.is_alive():
            self.mirrors.end()
        for wish in self._line:
            self._settle(wish, CheckpointFailed("the node is closed"))
        self._line.clear()


def gone(group: int) -> CheckpointFailed:
    return CheckpointFailed(f"group {group} is not hosted here any more")


def _blind(state: GroupState) -> str:
    """The machine for want of whose view there are no checkpoints."""
    return next(
        f"machine {machine} {NO_VIEW}"
        for machine, one in state.machines.items()
        if not has_views(one)
    )


def all_durable(state: GroupState) -> bool:
    return all(isinstance(one, DurableMachine) for one in state.machines.values())


def ask_at(state: GroupState, at: At) -> None:
    state.checkpoint_at, state.bytes_at = at


def close_all(views: list[View]) -> None:
    for view in views:
        try:
            view.close()
        except Exception:
            log.exception("closing a view")
    views.clear()
