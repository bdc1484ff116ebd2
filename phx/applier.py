"""Takes chosen values from the driver, applies them, wakes callers. The only caller of machines.

A turn is a slice of one or two milliseconds, however much there is to do: then the event loop, on
which all this runs, gets to its other work. Between two turns nothing is lost: what was taken and
not yet applied stays in a backlog of at most one slice.

Order: entries of a group are applied in log order. A batch that holds entries of several machines
is applied in stretches, so that the order of the log holds across the machines of a group, too.

A durable machine may be ahead of the instance that its group goes on from: its files hold the state
of instance A, and the group starts from a checkpoint K below it, or from nothing. Exactly once
holds all the same. The session table is the one of K, and every instance above K goes through it,
so it ends up with what it had: a value that was applied at or below A and is chosen again above it
is found to be a duplicate. Instances up to A go into the chained checksum, and into machines of the
group that are not that far; this machine alone gets none of them. Their results are not computed a
second time, and nobody waits for them: a caller waits for a value that was proposed in this life of
the node, and A was committed before it began. (Who proposed in an earlier life went with it, and
never learns more; to propose the same bytes again is a new value.) If a value of this life stands
at or below A, the files are of another log, and the group stops.
"""

from __future__ import annotations

import logging
import traceback
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic, perf_counter_ns
from typing import Any, Protocol

from phx._core.delivery import BEYOND, DUPLICATE, STALE, Batch, Sessions
from phx._core.waiters import Refusal, Waiters
from phx.errors import (
    GroupStopped,
    NotApplied,
    ResultNotKept,
    UnknownMachine,
)
from phx.leaders import Watcher
from phx.machine import DurableMachine, StateMachine, has_prepare
from phx.stops import Removed, unknown_stop, verdict_error
from phx.types import AGREED_EVERY, NEVER, Entry, Leader

log = logging.getLogger("phx")

SLICE_NS = 1_500_000
SLICE_BYTES = 256 << 10
CHUNK_MAX = 1 << 16
REFUSED_EVERY_S = 60.0

# kinds of events (engine.pxd, driver.pyi)
EVENT_FAILED = 1
EVENT_LEADER = 2
EVENT_HALTED = 3
EVENT_PEER_REFUSED = 4
EVENT_BELOW = 5
EVENT_CEILING = 6
EVENT_POISONED = 64
EVENT_PRESSED = 65

_NOT_APPLIED: dict[int, Callable[[], NotApplied]] = {
    DUPLICATE: lambda: NotApplied("not applied again: a duplicate of a value that was applied"),
    STALE: lambda: NotApplied("not applied: its place in its session had gone by"),
    BEYOND: lambda: NotApplied("not applied: too far ahead of its session"),
}


class Source(Protocol):
    """What the applier needs of the driver."""

    def clear_wake(self) -> None: ...
    def take(self, bytes_max: int) -> list[Batch]: ...
    def events(self) -> list[tuple[int, int, int, int, int, int]]: ...
    def messages(self) -> list[tuple[int, str]]: ...
    def applied(self, group: int, instance: int) -> None: ...
    def stop_group(self, group: int) -> None: ...
    def done(self, group: int, first: int, count: int) -> None: ...
    def handed(self) -> list[tuple[int, int, bytes]]: ...
    @property
    def sessions(self) -> Sessions: ...


class Committing(Protocol):
    """What commits durable machines (phx.node.commits)."""

    counters: dict[str, int]

    def applied(self, state: GroupState) -> None: ...
    def turned(self, within: int) -> bool: ...
    def next_s(self) -> float: ...
    def all_of(self, state: GroupState) -> None: ...
    def forget(self, group: int) -> None: ...


class Reads(Protocol):
    """What answers reads (phx.reading)."""

    @property
    def counters(self) -> dict[str, int]: ...
    def turn(self) -> bool: ...
    def reached(self, state: GroupState) -> None: ...


class GroupState:
    """What a node keeps of one group on the Python side."""

    __slots__ = (
        "applied",
        "bytes_at",
        "checkpoint_at",
        "chunk",
        "committed",
        "digest",
        "digest_at",
        "durable",
        "epoch",
        "group",
        "led",
        "led_since",
        "log_bytes",
        "machines",
        "parked",
        "reads",
        "skip",
        "stopped",
        "taking",
        "watchers",
    )

    def __init__(self, group: int, machines: dict[int, StateMachine]) -> None:
        self.group = group
        self.machines = machines
        # Those whose values take the short way; none once it has stopped, or the node closes.
        self.taking = taking(machines)
        self.stopped: GroupStopped | None = None
        self.parked = False  # by the directory: callers are refused until it is live again
        self.applied = 0  # every instance up to it is applied
        self.log_bytes = 0  # of the instances applied in this life
        # When one of the two reaches this, somebody wants to know (node/snapshots).
        self.checkpoint_at = self.bytes_at = NEVER
        self.digest = 0  # chained checksum after digest_at
        self.digest_at = 0
        self.chunk = 64  # entries that are likely to fit in half a slice
        self.led: Leader | None = None  # who leads, as this node was told; None: none known
        self.epoch = 0  # the highest that it was told of
        self.watchers: tuple[Watcher, ...] = ()
        # A heap of (read point, order, who waits for its state).
        self.reads: list[tuple[int, int, Any]] | None = None
        self.led_since = 0.0  # monotonic seconds; 0: no leader was seen yet
        self.durable: dict[int, DurableMachine] = {}  # those of `machines` that are open
        self.committed: dict[int, int] = {}  # and the instance of the last commit of each
        self.skip: dict[int, int] = {}  # those that hold the state of a later instance already

    @property
    def removed(self) -> bool:
        """The group goes on without this node, for good."""
        return isinstance(self.stopped, Removed)

    def let_go(self) -> None:
        """Close what is durable, as of its last commit. On the applying thread, if it applied."""
        durable, self.durable = self.durable, {}
        for machine, one in durable.items():
            try:
                one.close()
            except Exception:
                log.exception("closing machine %d of group %d", machine, self.group)


def taking(machines: Mapping[int, StateMachine]) -> Mapping[int, StateMachine]:
    """Those of the machines whose values are proposed as they come."""
    return {machine: one for machine, one in machines.items() if not has_prepare(one)}


@dataclass(frozen=True, slots=True)
class Replacement:
    """What takes the place of a group's machines: those of a checkpoint.

    Attributes:
        frontier: they hold the state of the instances up to it.
        table: the session table of that instance.
        members: ids of the members there, if they ever changed; else ().
        chain: and the chained checksum.
        machines: the new ones, all of the group.
        durable: those of them that are durable, and open.
        idle: the driver delivers nothing of the group, and will go on behind the frontier.
        settle: called right before nothing can fail any more; what it raises undoes it all.
    """

    frontier: int
    table: bytes
    members: tuple[int, ...]
    chain: int
    machines: dict[int, StateMachine]
    durable: dict[int, DurableMachine]
    idle: bool
    settle: Callable[[], None]


class Applier:
    """Applies what the driver delivers, in slices.

    Guarantee: a machine that raises stops its own group on this node and nothing else; every
    waiting caller is resolved at most once; no turn takes much longer than a slice unless a single
    call of a machine does.

    Thread-safety: one thread at a time.
    """

    def __init__(self, driver: Source, waiters: Waiters, groups: Mapping[int, GroupState]) -> None:
        self._driver = driver
        self._waiters = waiters
        self._groups = groups
        self._backlog: deque[Batch] = deque()
        self.poisoned = False
        self.on_poisoned: Callable[[], None] = lambda: None
        # Why the journal takes no new values: reason, errno, bytes.
        self.on_pressed: Callable[[int, int, int], None] = lambda by, number, nbytes: None
        self.note: Callable[[], str] = lambda: ""  # for whoever was not served in time
        self.stopped: list[int] = []  # groups
        self._calls: deque[Callable[[], None]] = deque()
        self.on_due: Callable[[GroupState], None] | None = None
        self.on_table: Callable[[GroupState, bytes], None] | None = None
        self.on_agreed: Callable[[GroupState], None] | None = None  # at an agreed instance
        # After each look at the driver, and before what was taken is applied.
        self.on_taken: Callable[[], None] | None = None
        self.on_turn: Callable[[], None] | None = None  # at the end of each
        self.on_below: Callable[[int, int, int], None] | None = None  # group, who, its floor
        self.on_ceiling: Callable[[int], None] | None = None
        self.on_handed: Callable[[list[tuple[int, int, bytes]]], None] | None = None
        self.commits: Committing | None = None  # None: no machine is durable
        self.reads: Reads | None = None
        self.thread = 0  # ident of the one that applies
        self._refused_s: dict[int, float] = {}  # by node: when that was last said
        self.turns = 0
        self.batches = 0
        self.values = 0
        self.apply_ns = 0
        self.wake_ns = 0  # completing the futures of callers

    def turn(self) -> bool:
        """One slice of work; True when there may be more to do at once."""
        self._driver.clear_wake()
        self.turns += 1
        while self._calls:
            self._calls.popleft()()
        self.tell()
        if self.on_taken is not None:
            self.on_taken()  # also where nothing is applied any more
        more = self._slice()
        if self.reads is not None:
            more = self.reads.turn() or more
        if self.commits is not None:
            more = self.commits.turned(self.within()) or more
        if self.on_turn is not None:
            self.on_turn()
        return more

    def soon(self, call: Callable[[], None]) -> None:
        """Have the next turn begin with this. Any thread; it does not make a turn come."""
        self._calls.append(call)

    def commit_all(self) -> None:
        """Commit every durable machine, as of the end of the last batch; a group that is inside of
        one is left as it was. Nothing is applied after it."""
        if self.commits is not None:
            within = self.within()
            for state in self._groups.values():
                if state.durable and state.group != within:
                    self.commits.all_of(state)

    def commit(self, state: GroupState) -> None:
        """Commit the durable machines of a group, as of the end of the last batch."""
        if self.commits is not None:
            self.commits.all_of(state)

    def within(self) -> int:
        """The group that was left inside of a batch; -1: none."""
        backlog = self._backlog
        return backlog[0].group if backlog and backlog[0].done else -1

    def wait_s(self) -> float | None:
        """For how long nothing has to be done if nothing comes; None: for ever."""
        if self.commits is None or (next_s := self.commits.next_s()) == inf:
            return None
        return max(0.0, next_s - monotonic())

    def _slice(self) -> bool:
        until = perf_counter_ns() + SLICE_NS
        backlog = self._backlog
        while True:
            if not backlog:
                taken = self._driver.take(SLICE_BYTES)
                if not taken:
                    return False
                backlog.extend(taken)
                if self.on_taken is not None:
                    self.on_taken()
            while backlog:
                if self._apply(backlog[0], until):
                    backlog.popleft()
                if perf_counter_ns() >= until:
                    return True

    def tell(self) -> None:
        """Pass on what the native side reports: failed proposals, leaders, log lines."""
        for level, text in self._driver.messages():
            log.log(level, "%s", text)
        events = self._driver.events()
        if events and self.on_taken is not None:
            self.on_taken()  # whoever fails because this node was removed is told so
        for event in events:
            try:
                self._event(*event)
            except Exception:  # the others are told all the same
                log.exception("event %d of group %d", event[0], event[2])
        if self.on_handed is not None and (handed := self._driver.handed()):
            try:
                self.on_handed(handed)
            except Exception:
                log.exception("connections that fetch")

    def counters(self) -> dict[str, int]:
        return {
            "turns": self.turns,
            "batches": self.batches,
            "values": self.values,
            "apply_ns": self.apply_ns,
            "wake_ns": self.wake_ns,
            "backlog": len(self._backlog),
            **(self.commits.counters if self.commits is not None else {}),
            **(self.reads.counters if self.reads is not None else {}),
        }

    # --- a checkpoint in the place of what is applied

    def replace(self, state: GroupState, made: Replacement) -> bool:
        """Put a group's machines, session table and applied instance in the place of what it has.

        Guarantee: either all of it is replaced, or nothing. Whoever waits for a value that the new
        table has seen is told that it was applied (ResultNotKept); all others wait on. The old
        machines are retired, and closed if they are durable. A group that stopped goes on.

        Returns:
            False: nothing was changed, as the group has passed the frontier, or will with what is
            here already. For a group that stopped and is not idle, too.

        On the applying thread, between two batches.
        """
        self.tell()  # what the driver has given up fails as such
        sessions = self._driver.sessions
        if state.removed:
            return False
        if not made.idle and (
            state.stopped is not None or sessions.next_instance(state.group)[0] > made.frontier
        ):
            return False
        made.settle()
        self._drop(state.group, made.idle)
        sessions.load(made.table, made.members)
        self._retire(state)
        state.machines, state.durable, state.skip = made.machines, made.durable, {}
        state.committed = dict.fromkeys(made.durable, made.frontier)
        state.applied = state.digest_at = made.frontier
        state.digest, state.chunk = made.chain, 64
        state.taking = {} if state.parked else taking(made.machines)
        if state.stopped is not None:
            state.stopped = None
            self.stopped.remove(state.group)
        self._settle_applied(state)
        if state.reads and self.reads is not None:
            self.reads.reached(state)
        return True

    def _drop(self, group: int, idle: bool) -> None:
        """Forget what was taken of a group, and what of an idle one is there to be taken."""
        backlog = self._backlog
        while idle and (taken := self._driver.take(1 << 62)):
            backlog.extend(taken)
        kept = [batch for batch in backlog if batch.group != group]
        for batch in backlog:
            if batch.group == group:
                for sequence, why in batch.dropped:
                    self._waiters.fail(group, sequence, 1, _NOT_APPLIED[why])
        backlog.clear()
        backlog.extend(kept)

    def _retire(self, state: GroupState) -> None:
        for machine, one in state.machines.items():
            if isinstance(one, DurableMachine) and machine not in state.durable:
                continue  # it was closed when the group stopped, or never opened
            try:
                one.retire()
            except Exception:
                log.exception("retiring machine %d of group %d", machine, state.group)
        state.let_go()

    def _settle_applied(self, state: GroupState) -> None:
        group, sessions = state.group, self._driver.sessions
        why = f"group {group}: it was applied, in a state that came from another node"
        me = (sessions.node, sessions.incarnation)
        for row in sessions.rows(group):
            if row[:2] == me:
                runs = self._waiters.settle_applied(group, row, lambda: ResultNotKept(why))
                for first, count in runs:
                    try:
                        self._driver.done(group, first, count)
                    except Exception as error:  # they are proposed once more, and are duplicates
                        log.debug("group %d: %s", group, error)

    # --- events

    def _event(
        self, kind: int, verdict: int, group: int, first_seq: int, count: int, leader: int
    ) -> None:
        if kind == EVENT_FAILED:
            stopped, note = self._groups[group].stopped, self.note()
            self._waiters.fail(
                group, first_seq, count, lambda: verdict_error(verdict, stopped, note)
            )
        elif kind == EVENT_LEADER:
            # (Whoever claims less than somebody claimed before has lost the leadership, and does
            # not know it yet.)
            known = leader and first_seq >= self._groups[group].epoch
            self.led(self._groups[group], Leader(leader, first_seq) if known else None)
        elif kind == EVENT_HALTED:
            log.critical(
                "group %d: invariant %d of the protocol broke: no vote in it any more",
                group,
                verdict,
            )
        elif kind == EVENT_PEER_REFUSED:
            self._peer_refused(group)
        elif kind == EVENT_BELOW:
            if self.on_below is not None:
                self.on_below(group, leader, first_seq)
        elif kind == EVENT_CEILING:
            if self.on_ceiling is not None:
                self.on_ceiling(first_seq)
        elif kind == EVENT_POISONED:
            self.poisoned = True
            self.on_poisoned()
            log.critical("a write or sync of the journal failed: this node votes no more")
        elif kind == EVENT_PRESSED:
            self.on_pressed(verdict, group, first_seq)

    def led(self, state: GroupState, leader: Leader | None) -> None:
        """Who leads the group from now on, as this node was told."""
        if leader is None:
            state.led_since = 0.0
        else:
            state.epoch = leader.epoch
            state.led_since = state.led_since or monotonic()
        if leader != state.led:
            state.led = leader
            for watcher in state.watchers:
                watcher.changed()

    # --- applying

    def _peer_refused(self, node: int) -> None:
        """Said once a minute, however often it knocks."""
        now = monotonic()
        if now - self._refused_s.get(node, -REFUSED_EVERY_S) >= REFUSED_EVERY_S:
            self._refused_s[node] = now
            log.error("node %d is refused: its store is not the one that node had", node)

    def _apply(self, batch: Batch, until: int) -> bool:
        """Apply (more of) a batch; False when time was up before its end."""
        state = self._groups[batch.group]
        if state.stopped is not None:
            return True
        end = len(batch.entries)
        while batch.done < end:
            start = batch.done
            stop = min(end, start + state.chunk)
            machine = batch.machine
            if machine < 0:
                machine, stop = _stretch(batch.entries, start, stop)
            if state.skip and machine in state.skip:
                if not self._pass_over(state, batch, machine, start, stop):
                    return True
            elif not self._apply_chunk(state, batch, machine, start, stop):
                return True
            if stop < end and perf_counter_ns() >= until:
                return False
        self._finish(state, batch)
        return True

    def _pass_over(
        self, state: GroupState, batch: Batch, machine: int, start: int, stop: int
    ) -> bool:
        """Mark as done those of entries[start:stop], all of this machine, whose effects it holds
        already; False when that stopped the group. Behind them it goes on as any other."""
        entries, through = batch.entries, state.skip[machine]
        end = bisect_right(entries, through, start, stop, key=lambda entry: entry.instance)
        for at in range(start, end):
            if batch.own and (entry := entries[at]).sequence:
                why = f"its files say that {through} is applied, and a new value stands below it"
                self.halt(state, GroupStopped(state.group, entry.instance, machine, why), None)
                return False
        if end < stop:
            del state.skip[machine]
        batch.done = end
        return True

    def _apply_chunk(
        self, state: GroupState, batch: Batch, machine: int, start: int, stop: int
    ) -> bool:
        """Apply entries[start:stop], all of one machine; False when that stopped the group."""
        whole = stop - start == len(batch.entries)
        chunk = batch.entries if whole else batch.entries[start:stop]
        results: list[Any] = []
        one = state.machines.get(machine)
        began = perf_counter_ns()
        try:
            if one is None:
                results = _unknown_machine(machine, chunk)
            elif type(one).apply_batch is StateMachine.apply_batch:
                apply, append = one.apply, results.append
                for entry in chunk:
                    append(apply(entry))
            else:
                results = _as_results(one.apply_batch(chunk), chunk)
        except BaseException as error:
            # Entries before the one that raised are applied, and their callers are told so.
            self._waiters.complete(state.group, batch.entries, results, start)
            # The error stays, and with it its frames: they must not keep this piece of the log.
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            traceback.clear_frames(error.__traceback__)
            self._stop(state, chunk, len(results), machine, error)
            del chunk
            batch.drop()
            if not isinstance(error, Exception):
                raise
            return False
        batch.done = stop  # before anything else may fail: nothing is applied twice
        applied = perf_counter_ns()
        took = applied - began
        self.apply_ns += took
        if batch.own:
            self._waiters.complete(state.group, batch.entries, results, start)
            self.wake_ns += perf_counter_ns() - applied
        self.values += stop - start
        # Half a slice's worth, from what this chunk cost; a short one says little.
        if took > 100_000:
            state.chunk = max(1, min(CHUNK_MAX, (stop - start) * (SLICE_NS // 2) // took))
        elif state.chunk < CHUNK_MAX:
            state.chunk = min(CHUNK_MAX, state.chunk * 2)
        return True

    def _finish(self, state: GroupState, batch: Batch) -> None:
        for sequence, why in batch.dropped:
            self._waiters.fail(state.group, sequence, 1, _NOT_APPLIED[why])
        self.batches += 1
        if batch.last >= batch.first:
            state.applied = state.digest_at = batch.last
            state.digest = batch.digest
            state.log_bytes += batch.log_bytes
            self._driver.applied(state.group, batch.last)
            if state.reads and self.reads is not None:
                self.reads.reached(state)
            if state.durable and self.commits is not None:
                self.commits.applied(state)
            if batch.last % AGREED_EVERY == 0 and self.on_agreed is not None:
                self.on_agreed(state)
            if batch.table is not None and self.on_table is not None:
                self.on_table(state, batch.table)
            due = state.applied >= state.checkpoint_at or state.log_bytes >= state.bytes_at
            if due and self.on_due is not None:
                self.on_due(state)
        if batch.error is not None:
            self.halt(state, GroupStopped(state.group, batch.last + 1, None, batch.error), None)

    def _stop(
        self, state: GroupState, chunk: Sequence[Entry], at: int, machine: int, error: BaseException
    ) -> None:
        first, last = chunk[at], chunk[-1]
        batched = type(state.machines[machine]).apply_batch is not StateMachine.apply_batch
        span = ""
        if batched and last.instance != first.instance:
            span = f" in a batch of instances {first.instance} to {last.instance}"
        why = f"apply raised {type(error).__name__}: {error}{span}"
        self.halt(state, GroupStopped(state.group, first.instance, machine, why), error)

    def remove(self, state: GroupState, removed: Removed) -> None:
        """This node is no member of the group any more: nothing of it is applied or proposed here,
        and its machines are retired, and let go of. On the applying thread."""
        if state.group in self.stopped:
            self.stopped.remove(state.group)
        state.stopped = removed
        state.taking = {}
        self._retire(state)
        state.machines, state.skip = {}, {}

        # (Those that the engine knows to be rejected are told that first.)
        def fail() -> None:
            self._waiters.fail_group(state.group, lambda: unknown_stop(removed))

        self.soon(fail)
        if state.reads and self.reads is not None:
            self.reads.reached(state)

    def forget(self, state: GroupState) -> None:
        """Nothing that was taken of the group is applied any more, and nobody watches it: it is
        about to be dropped. On the applying thread, between two turns."""
        self._drop(state.group, idle=False)
        if state.group in self.stopped:
            self.stopped.remove(state.group)
        if self.commits is not None:
            self.commits.forget(state.group)
        self.led(state, None)

    def halt(self, state: GroupState, stopped: GroupStopped, error: BaseException | None) -> None:
        """Nothing more is applied or proposed in the group on this node; all else goes on."""
        if state.removed:  # for good, whatever else fails of what is left of it
            return
        stopped.__cause__ = error
        state.stopped = stopped
        state.taking = {}
        state.let_go()
        self.stopped.append(state.group)
        log.error("%s", stopped, exc_info=error)
        self._driver.stop_group(state.group)
        self._waiters.fail_group(state.group, lambda: unknown_stop(stopped))
        if state.reads and self.reads is not None:
            self.reads.reached(state)


def _stretch(entries: Sequence[Entry], start: int, stop: int) -> tuple[int, int]:
    """The machine of entries[start], and where its run of entries ends."""
    machine = entries[start].machine
    end = start + 1
    while end < stop and entries[end].machine == machine:
        end += 1
    return machine, end


def _unknown_machine(machine: int, chunk: Sequence[Entry]) -> list[Any]:
    # The same on every node that has no such machine; entries of the other machines go on.
    return [
        Refusal(UnknownMachine(f"group {entry.group} has no machine {machine}"))
        if entry.sequence
        else None
        for entry in chunk
    ]


def _as_results(results: object, chunk: Sequence[Entry]) -> list[Any]:
    made = results if isinstance(results, list) else list(results)  # type: ignore[call-overload]
    if len(made) != len(chunk):
        raise ValueError(f"apply_batch returned {len(made)} results for {len(chunk)} entries")
    return made
