"""Checks traces of a debug run: ``python -m phx.testing.trace FILE…``.

A node that is started with PHX_TRACE_DIR in its environment notes there what its driver was told,
wrote, synced and sent. `check` verifies of one trace, and raises `Finding` at the first event where
it does not hold:

- durability: what was written is what the engine emitted, and no position was called durable
  before a sync of the file that it stands in had returned;
- sending: no byte of a frame left before the frame's `after` was durable, nor (from the content of
  the frame, whatever its `after` says) before what it exposes of promises and acceptances was;
- replay: a fresh engine that is told the same makes the same effects, byte for byte.

`check_all` verifies further that the traces of a cluster fit together: a value chosen once is
chosen for ever, one value per ballot, no promise forgotten over a restart.

How the order of events in a trace can be believed, and what is not proven: docs/design/trace.md.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from phx._core.codec import crc32c, encode_frame
from phx._core.engine_door import Engine
from phx.sim.wire_text import ACCEPT, PROMISE, SETTLED, ballot_text, records
from phx.testing.trace_checks import Broken, Exposure, Journal
from phx.testing.trace_file import (
    BadTrace,
    Event,
    Input,
    Kind,
    Turn,
    begin_of,
    disk_of,
    input_of,
    lines,
    options_of,
    pack_turn,
    read,
    sending_of,
    turn_lines,
    turn_of,
)

FRAME_ENGINE = 2
ROSTER_VERSION = slice(24, 32)  # in a membership value (phx/_core/members.pxd)
CONTEXT_EVENTS = 12
LINES_MAX = 40


class Finding(AssertionError):
    """A trace shows what must not be.

    Attributes:
        rule: which check: "journal", "durable", "written", "after", "frame", "U5", "replay"; of
            several traces "U1", "U4", "U6", "unseen".
        path, event: where.
        context: the last events before it, readable.
    """

    def __init__(self, rule: str, path: str, event: int, text: str, context: Sequence[str]) -> None:
        super().__init__("\n".join([f"{path}: event {event}: {rule}: {text}", *context]))
        self.rule, self.path, self.event, self.context = rule, path, event, list(context)


@dataclass
class Report:
    """What a trace showed; everything in it was checked.

    Attributes:
        closed: the driver was closed; otherwise the trace ends where the process did.
        started: the journal was replayed and the engine started.
        turns, inputs: replayed, with equal effects.
        records: emitted; writes: of records, compared with what was emitted.
        syncs_inline, syncs_thread: of segments, by the poll thread itself and by another.
        frames: that began to leave; held: those of them that had to wait for the journal.
        received: frames, of all peers.
        exposures: promises and acceptances that its frames exposed.
        durable: position up to which the disk's calls make the stream durable.
    """

    path: str
    node: int = 0
    incarnation: int = 0
    closed: bool = False
    started: bool = False
    events: int = 0
    inputs: int = 0
    turns: int = 0
    records: int = 0
    writes: int = 0
    syncs_inline: int = 0
    syncs_thread: int = 0
    frames: int = 0
    held: int = 0
    received: int = 0
    exposures: int = 0
    durable: int = 0


class Replay:
    """A fresh engine that is told what the traced one was told."""

    def __init__(self) -> None:
        self.node = self.cluster = 0
        self.members: list[int] = []
        self.options: dict[str, int] = {}
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(
                self.node,
                self.members,
                (),
                cluster=self.cluster,
                settled=None,
                **self.options,
            )
        return self._engine

    def tell(self, kind: Kind, told: Input) -> None:
        result = self._tell(kind, told)
        if result is not None and result != told.result:
            raise Broken("replay", f"{kind.name} gave {told.result}, and now gives {result}")

    def _tell(self, kind: Kind, t: Input) -> int | None:
        """The engine's answer, where it gives one."""
        match kind:
            case Kind.GROUP | Kind.GONE | Kind.DROP_GROUP | Kind.CHANGE_MEMBERS | Kind.CHANGE_KNOWN:
                return self._tell_groups(kind, t)
            case Kind.REPLAYED:
                try:
                    self.engine.replay(t.body + bytes(-len(t.body) % 8), t.first)
                except ValueError:
                    return -1
                return 0
            case Kind.START:
                return self.engine.start(t.first, t.second, int.from_bytes(t.body, "little"))
            case Kind.RECEIVE:
                self.engine.receive(t.peer, t.body)
            case Kind.SUBMIT:
                return self.engine.submit_items(t.group, t.first, t.peer, t.body, t.second)
            case Kind.DURABLE | Kind.WRITTEN | Kind.SYNC | Kind.DURABILITY:
                self._tell_journal(kind, t)
            case Kind.ADVANCE:
                self.engine.advance(t.first, t.second)
            case Kind.CONNECTED:
                return self.engine.connected(t.peer, t.first, t.body)
            case Kind.ADD_PEER:
                return self.engine.add_peer(t.peer, t.body or None)
            case Kind.DROP_PEER:
                return self.engine.drop_peer(t.peer)
            case Kind.DISCONNECTED:
                self.engine.disconnected(t.peer)
            case Kind.SUPPLY:
                self.engine.supply(t.group, t.peer, t.first, t.body)
            case Kind.APPLIED:
                self.engine.applied(t.group, t.first)
            case Kind.SETTLED:
                self.engine.settled(t.group, t.first)
            case Kind.RETIRE:
                return self.engine.retire(t.first)
            case Kind.STOP_GROUP:
                self.engine.stop_group(t.group)
            case Kind.RESTORING:
                self.engine.restoring(t.group, t.first != 0)
            case Kind.FLOOR:
                self.engine.floor(t.group, t.first)
            case Kind.INSTALL:
                return self.engine.install(t.group, t.first, t.second)
            case Kind.DONE:
                self.engine.done(t.group, t.first, t.peer)
            case Kind.CEILING:
                self.engine.ceiling(t.first)
            case Kind.SUSPECT:
                return self.engine.suspect(t.group)
            case Kind.READ:
                return self.engine.read(t.group, t.first, t.second, t.peer)
            case Kind.TRANSFER:
                return self.engine.transfer(t.group, t.peer)
            case Kind.POISON:
                self.engine.poison()
            case Kind.PRESSURE:
                self.engine.pressure(t.first)
            case Kind.PRIORITY:
                self.engine.priority(t.first)
            case Kind.LATE:
                self.engine.late(t.first)
            case Kind.RESIGN:
                self.engine.resign()
            case _:
                raise AssertionError(kind)
        return None

    def _tell_journal(self, kind: Kind, t: Input) -> None:
        """What is durable, and what is to be."""
        match kind:
            case Kind.DURABLE:
                self.engine.durable(t.first)
            case Kind.WRITTEN:
                self.engine.written(t.first)
            case Kind.SYNC:
                self.engine.sync()
            case Kind.DURABILITY:
                if self.engine.durability(t.group, t.first) != t.second:
                    raise Broken("replay", "DURABILITY gives another position now")

    def _tell_groups(self, kind: Kind, t: Input) -> int | None:
        """Which groups there are, and who their members are."""
        match kind:
            case Kind.GROUP:
                return self.engine.add_group(t.group, t.peer, t.first)
            case Kind.CHANGE_MEMBERS:
                return self.engine.change_members(t.group, t.body)
            case Kind.CHANGE_KNOWN:
                version = int.from_bytes(t.body[24:32], "little")  # members.pxd
                return self.engine.change_known(
                    t.group, version, t.body, t.first, t.second, t.peer != 0
                )
            case Kind.GONE:
                self.engine.gone(t.group, t.peer)
            case Kind.DROP_GROUP:
                self.engine.drop_group(t.group)
        return None

    def turn(self, data: bytes) -> None:
        now = pack_turn(self.engine.turn())
        if now != data[: len(now)] or any(data[len(now) :]):
            raise Broken("replay", difference(turn_of(data), turn_of(now)))


def known_of(t: Input) -> tuple[int, bytes, int, int, bool]:
    version = int.from_bytes(t.body[ROSTER_VERSION], "little")
    return version, t.body, t.first, t.second, t.peer != 0


def difference(then: Turn, now: Turn) -> str:
    """The first difference between the effects in a trace and those of the replay."""
    told = zip(turn_lines(then), turn_lines(now), strict=False)
    for before, after in told:
        if before != after:
            return f"the turn made\n  {before.strip()}\nand now makes\n  {after.strip()}"
    for name, value in then.effects.items():
        if value != now.effects[name]:
            return f"the turn's {name} differ: {value!r:.200} then, {now.effects[name]!r:.200} now"
    return "the effects are equal, and their bytes are not"


class Check:
    """One trace, event by event."""

    def __init__(self, path: str | Path, *, replay: bool = True) -> None:
        self.report = Report(str(path))
        self.limited = False
        self._replaying = replay
        self.journal = Journal()
        self.exposure = Exposure()
        self.replay = Replay()
        self.replayed: dict[int, int] = defaultdict(int)  # highest promise that the journal had
        self._last: deque[Event] = deque(maxlen=CONTEXT_EVENTS)
        self._syncs: dict[int, int] = defaultdict(int)  # by thread
        self._poll_thread = 0
        self._peers: dict[int, int] = {}  # incarnation of each that is connected
        # (peer, its incarnation): (bytes, crc if it was sent to all, crc if to this node alone)
        self.received: dict[tuple[int, int], set[tuple[int, int, int]]] = defaultdict(set)

    def run(self) -> Report:
        for one in read(self.report.path):
            self._last.append(one)
            self.report.events += 1
            try:
                self._event(one)
            except Broken as broken:
                _, _, text = str(broken).partition(": ")
                raise Finding(
                    broken.rule, self.report.path, one.number, text, self._context()
                ) from broken
        return self._finish()

    def _finish(self) -> Report:
        report = self.report
        report.writes = self.journal.writes
        report.durable = self.journal.durable
        report.frames, report.held = self.exposure.sent, self.exposure.held
        report.exposures = self.exposure.checked
        report.syncs_inline = self._syncs.pop(self._poll_thread, 0)
        report.syncs_thread = sum(self._syncs.values())
        return report

    def _context(self) -> list[str]:
        told = [f"  {one.number}: {text}" for one in self._last for text in lines(one)]
        return told[-LINES_MAX:]

    def _event(self, one: Event) -> None:
        kind = one.kind
        if Kind.GROUP <= kind < Kind.TURN:
            self._input(kind, input_of(one))
        elif kind == Kind.TURN:
            self._turn(one)
        elif kind == Kind.SENDING:
            peer, frames = sending_of(one)
            for crc, size, after in frames:
                self.exposure.sending(peer, crc, size, after, self.journal.durable)
        elif kind == Kind.BEGIN:
            begun = begin_of(one)
            self.report.node = self.replay.node = begun["node"]
            self.replay.cluster = begun["cluster"]
        elif kind == Kind.OPTIONS:
            self.replay.options, self.replay.members = options_of(one)
        elif kind in (Kind.END, Kind.LIMIT):
            self.report.closed = kind == Kind.END
            self.limited = kind == Kind.LIMIT
        else:
            self._disk(one)

    def _disk(self, one: Event) -> None:
        disk = disk_of(one)
        match one.kind:
            case Kind.OPENED:
                self.journal.opened(disk)
            case Kind.WROTE:
                self.journal.wrote(disk)
                self.exposure.wrote(self.journal.written)
            case Kind.SYNCING:
                self.journal.syncing(disk)
            case Kind.SYNCED:
                self.journal.synced(disk)
                self.exposure.durable(self.journal.durable)
                file = self.journal.files[disk.file]
                if file.base is not None and self.report.started:
                    self._syncs[one.thread] += 1

    def _input(self, kind: Kind, told: Input) -> None:
        self.report.inputs += 1
        if kind == Kind.START:
            self.report.started = True
            self.report.incarnation = told.result
            self.journal.start(told.first)
        elif kind == Kind.GROUP:
            if told.result == 0:
                self.exposure.chosen[told.group] = told.first
        elif kind == Kind.DROP_GROUP:
            self.replayed.pop(told.group, None)
            self.exposure.relaxed.discard(told.group)
        elif kind == Kind.DURABILITY:
            relaxed = self.exposure.relaxed
            relaxed.add(told.group) if told.first else relaxed.discard(told.group)
        elif kind == Kind.FLOOR:
            self.exposure.known(told.group, told.first - 1)
        elif kind == Kind.INSTALL and told.result == 0:
            self.exposure.known(told.group, told.first)
        elif kind == Kind.REPLAYED:
            for record in records(told.body + bytes(-len(told.body) % 8), told.first):
                if record.kind in (PROMISE, ACCEPT):
                    self.replayed[record.group] = max(self.replayed[record.group], record.ballot)
                elif record.kind == SETTLED:
                    self.exposure.known(record.group, record.index)
        elif kind == Kind.CONNECTED and told.result == 0:
            self._peers[told.peer] = told.first
        elif kind == Kind.RECEIVE:
            self._receive(told)
        elif kind == Kind.DURABLE and told.first > self.journal.durable:
            raise Broken(
                "durable",
                f"the engine is told that {told.first} is durable; the disk has synced"
                f" everything up to {self.journal.durable}",
            )
        elif kind == Kind.WRITTEN and told.first > self.journal.written:
            raise Broken(
                "written",
                f"the engine is told that {told.first} is written; the disk has taken"
                f" everything up to {self.journal.written}",
            )
        if self._replaying:
            self.replay.tell(kind, told)

    def _receive(self, told: Input) -> None:
        node, cluster = self.report.node, self.replay.cluster
        to_all, to_me = (
            encode_frame(FRAME_ENGINE, told.peer, dest, cluster, told.body) for dest in (0, node)
        )
        life = told.peer, self._peers.get(told.peer, 0)
        self.received[life].add((len(to_all), crc32c(to_all), crc32c(to_me)))
        self.report.received += 1

    def _turn(self, one: Event) -> None:
        turn = turn_of(one.data)
        self.report.turns += 1
        self._poll_thread = one.thread
        self.journal.emit(turn.effects["lsn_first"], turn.effects["records"])
        self.report.records += self.exposure.turn(turn)
        if self._replaying:
            self.replay.turn(one.data)


def check(path: str | Path, *, replay: bool = True) -> Report:
    """Verify one trace; without the replay also one that another version of phx has made.

    Raises:
        Finding: it shows what must not be.
        BadTrace: it is none, or damaged.
    """
    return Check(path, replay=replay).run()


class Together:
    """What must hold between the traces of a cluster, over all lives of its nodes."""

    def __init__(self) -> None:
        self.bodies: dict[tuple[int, int, int], int] = {}
        self.votes: dict[tuple[int, int, int], set[int]] = defaultdict(set)
        self.chosen: dict[tuple[int, int], tuple[int, int]] = {}  # (ballot, hash of the value)
        self.exposed: dict[tuple[int, int], int] = defaultdict(int)
        self.left: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
        self.limited: set[tuple[int, int]] = set()

    def sent(self, one: Check) -> None:
        """All lives, before any `add`."""
        life = one.report.node, one.report.incarnation
        self.left[life] |= one.exposure.left
        if one.limited:
            self.limited.add(life)

    def _unseen(self, one: Check) -> None:
        for life, frames in one.received.items():
            left = self.left.get(life)
            if left is None or life in self.limited:
                continue
            for size, to_all, to_me in frames:
                if (to_all, size) not in left and (to_me, size) not in left:
                    raise Finding(
                        "unseen", one.report.path, 0,
                        f"{size} bytes came from node {life[0]}, incarnation {life[1]}, and its"
                        " trace does not show that they left", (),
                    )  # fmt: skip

    def add(self, one: Check) -> None:
        """Lives of one node in their order."""
        node, path = one.report.node, one.report.path
        self._unseen(one)
        if one.report.started:
            for (who, group), ballot in self.exposed.items():
                if who == node and one.replayed[group] < ballot:
                    raise Finding(
                        "U4", path, 0,
                        f"in an earlier life node {node} told of its promise"
                        f" {ballot_text(ballot)} in group {group}; now its journal has"
                        f" {ballot_text(one.replayed[group])}", (),
                    )  # fmt: skip
        for group, ballot in one.exposure.exposed.items():
            self.exposed[node, group] = max(self.exposed[node, group], ballot)
        quorum = len(one.replay.members) // 2 + 1
        for key, value in one.exposure.bodies.items():
            group, instance, ballot = key
            if self.bodies.setdefault(key, value) != value:
                raise Finding(
                    "U6", path, 0,
                    f"two values for group {group}, instance {instance}, ballot"
                    f" {ballot_text(ballot)}", (),
                )  # fmt: skip
            self.votes[key].add(node)
            if len(self.votes[key]) < quorum:
                continue
            first, known = self.chosen.setdefault((group, instance), (ballot, value))
            if known != value:
                raise Finding(
                    "U1", path, 0,
                    f"group {group}, instance {instance}: one value was chosen in ballot"
                    f" {ballot_text(first)}, another in {ballot_text(ballot)}", (),
                )  # fmt: skip


def check_all(paths: Sequence[str | Path], *, replay: bool = True) -> list[Report]:
    """Verify each trace, and that those of one cluster fit together. Raises as `check`."""
    checks = [Check(path, replay=replay) for path in paths]
    for one in checks:
        one.run()
    clusters: dict[int, Together] = defaultdict(Together)
    for one in checks:
        clusters[one.replay.cluster].sent(one)
    # Two lives have one incarnation if the start of the first was not durable: nothing has left it.
    for one in sorted(checks, key=lambda c: (c.report.node, c.report.incarnation, c.report.path)):
        clusters[one.replay.cluster].add(one)
    return [one.report for one in checks]


def main(arguments: Sequence[str]) -> int:
    """One JSON line for each trace. Exit code 0: all is well; 1: a finding; 2: not a trace."""
    paths = [one for one in arguments if one != "--no-replay"]
    if not paths or any(one.startswith("-") for one in paths):
        print("usage: python -m phx.testing.trace [--no-replay] FILE…", file=sys.stderr)
        return 2
    try:
        for report in check_all(paths, replay=len(paths) == len(arguments)):
            print(json.dumps(asdict(report)))
    except Finding as finding:
        print(finding, file=sys.stderr)
        return 1
    except (BadTrace, OSError) as problem:
        print(problem, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
