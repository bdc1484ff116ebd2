"""A cluster that a test drives by hand: it says which message arrives where, what is durable, what
time it is. Messages are taken out of their frames, so that each can be delivered, held or lost by
itself. What left a node stands in `lines`, as a transcript."""

from collections.abc import Callable, Iterable

from phx._core.engine_door import Engine
from phx.sim.wire_text import (
    FRAME_HEADER_BYTES,
    PEER,
    Message,
    Record,
    ballot_text,
    decode,
    records,
    runs_of,
    supplied,
)  # fmt: skip

BEATS = ("Heartbeat", "HeartbeatAck")
START_US = 10_000_000
LONG_US = 100_000_000


class Script:
    """Engines 1..n, one time for all of them, nothing random. Links lead everywhere at first."""

    def __init__(self, nodes: int = 3, groups: int = 1, **options: int) -> None:
        self.nodes = list(range(1, nodes + 1))
        self.groups = list(range(groups))
        self.options = {"balance": 0, **options}
        self.now = START_US
        self.wall_ahead_us: int | None = None  # by so much; None: it stands at 0
        self.engines: dict[int, Engine] = {}
        self.journal: dict[int, list[Record]] = {n: [] for n in self.nodes}
        self.end = dict.fromkeys(self.nodes, 0)
        self.durable = dict.fromkeys(self.nodes, 0)
        self.lazy: set[int] = set()  # nodes whose journal is synced by hand only
        self.settled: dict[int, dict[int, list[bytes]]] = {n: {} for n in self.nodes}
        self.kept: dict[int, dict[int, int]] = {n: {} for n in self.nodes}  # floors of the stores
        self.waiting: list[Message] = []  # made, not delivered; in order
        self.lines: list[str] = []
        self.chosen: dict[int, list[tuple[int, int, int]]] = {n: [] for n in self.nodes}
        self.events: dict[int, list[tuple[int, ...]]] = {n: [] for n in self.nodes}
        self.fetches: dict[int, list[tuple[int, ...]]] = {n: [] for n in self.nodes}
        # of reads: (group, verdict, ticket, instance)
        self.points: dict[int, list[tuple[int, ...]]] = {n: [] for n in self.nodes}
        self.wake: dict[int, int] = {}
        self.floors: dict[int, tuple[int, int]] = {}
        self.syncs: list[int] = []  # nodes whose records somebody waited for, in order
        self.seq = {n: dict.fromkeys(self.groups, 1) for n in self.nodes}
        self.cuts: set[tuple[int, int]] = set()
        for n in self.nodes:
            self.start(n)
        for a in self.nodes:
            for b in self.nodes:
                if a < b:
                    self.connect(a, b)

    # --- life

    def start(self, n: int, **settled: int) -> int:
        engine = Engine(
            n, self.nodes, self.groups, seed=7, **self.options,
            settled={g: len(bodies) for g, bodies in self.settled[n].items()},
        )  # fmt: skip
        for group, floor in self.kept[n].items():
            engine.floor(group, floor)
        for record in self.journal[n]:
            engine.replay(record.raw, record.lsn)
        self.remember(n, engine)
        self.engines[n] = engine
        self.seq[n] = dict.fromkeys(self.groups, 1)
        top = (self.end[n] + 511) & ~511
        self.durable[n] = self.end[n] = top
        incarnation = engine.start(top, self.now, self.wall())
        self.turn(n)
        return incarnation

    def remember(self, n: int, engine: Engine) -> None:
        """What is told to an engine after the replay, before its start."""

    def crash(self, n: int, power: bool = True) -> None:
        """All connections of it end; with `power`, what is not durable is lost."""
        del self.engines[n]
        if power:
            self.journal[n] = [r for r in self.journal[n] if r.lsn < self.durable[n]]
        self.waiting = [m for m in self.waiting if n not in (m.source, m.dest)]
        for peer in self.engines:
            self.engines[peer].disconnected(n)
            self.turn(peer)

    def restart(self, n: int, power: bool = True) -> None:
        if n in self.engines:
            self.crash(n, power)
        self.start(n)
        for peer in self.nodes:
            if peer != n and peer in self.engines and (min(n, peer), max(n, peer)) not in self.cuts:
                self.connect(n, peer)

    def connect(self, a: int, b: int) -> None:
        self.cuts.discard((min(a, b), max(a, b)))
        for x, y in ((a, b), (b, a)):
            assert self.engines[x].connected(y, self.engines[y].incarnation, bytes([y]) * 16) == 0
            self.turn(x)

    def disconnect(self, a: int, b: int) -> None:
        self.cuts.add((min(a, b), max(a, b)))
        self.waiting = [m for m in self.waiting if {m.source, m.dest} != {a, b}]
        for x, y in ((a, b), (b, a)):
            self.engines[x].disconnected(y)
            self.turn(x)

    # --- turns

    def turn(self, n: int) -> None:
        out = self.engines[n].turn()
        if out["sync"]:
            self.syncs.append(n)
        if out["records"]:
            self.journal[n] += records(out["records"], out["lsn_first"])
            self.end[n] = out["lsn_end"]
        if out["floor_lsn"]:
            self.floors[n] = out["floor_lsn"], out["floor_after"]
        for peer, frame, after in out["outgoing"]:
            for dest in [peer] if peer else self.nodes:
                if dest == n or dest not in self.engines:
                    continue
                if (min(n, dest), max(n, dest)) in self.cuts:
                    continue
                for m in decode(frame[FRAME_HEADER_BYTES:]):
                    m.source, m.dest, m.after, m.sent_us = n, dest, after, self.now
                    self.waiting.append(m)
                    if m.name not in BEATS:
                        self.lines.append(m.line())
        self.chosen[n] += out["chosen"]
        self.events[n] += out["events"]
        self.fetches[n] += out["fetches"]
        self.points[n] += out["points"]
        self.wake[n] = out["wake_at_us"]
        if n not in self.lazy and self.durable[n] < self.end[n]:
            self.sync(n)

    def sync(self, n: int) -> None:
        self.durable[n] = self.end[n]
        self.engines[n].durable(self.end[n])
        self.turn(n)

    def wall(self) -> int:
        return 0 if self.wall_ahead_us is None else self.now + self.wall_ahead_us

    def advance(self, by_us: int, *only: int) -> None:
        self.now += by_us
        for n in only or list(self.engines):
            self.engines[n].advance(self.now, self.wall())
            self.turn(n)

    # --- the network, by hand

    def ready(self, m: Message) -> bool:
        return m.after <= self.durable[m.source]

    def pick(self, *what: str, **fields: int) -> list[Message]:
        """Waiting messages that fit: "1→2" or a name in `what`, fields by value."""
        found = []
        for m in self.waiting:
            known = {**m.fixed, "group": m.group, "ballot": m.ballot}
            words = {m.name, f"{m.source}→{m.dest}", f"{m.source}→", f"→{m.dest}"}
            if set(what) <= words and all(known.get(k) == v for k, v in fields.items()):
                found.append(m)
        return found

    def deliver(self, *what: str, **fields: int) -> list[Message]:
        """Hand over what fits and may leave; what comes of it waits."""
        arrived = [m for m in self.pick(*what, **fields) if self.ready(m)]
        for m in arrived:
            self.waiting = [w for w in self.waiting if w is not m]
            if m.dest in self.engines:
                self.put(m.source, m.dest, m.raw)
        return arrived

    def put(self, source: int, dest: int, payload: bytes) -> None:
        """A payload from nowhere, or a copy of one."""
        self.engines[dest].receive(source, payload)
        self.turn(dest)

    def drop(self, *what: str, **fields: int) -> list[Message]:
        lost = self.pick(*what, **fields)
        self.waiting = [m for m in self.waiting if not any(m is gone for gone in lost)]
        return lost

    def flow(self, unless: Callable[[Message], bool] | None = None, limit: int = 5000) -> None:
        """Deliver until nothing moves; messages that `unless` names stay where they are."""
        for _ in range(limit):
            moving = [m for m in self.waiting if self.ready(m) and not (unless and unless(m))]
            if not moving:
                return
            m = moving[0]
            self.waiting = [w for w in self.waiting if w is not m]
            if m.dest in self.engines:
                self.put(m.source, m.dest, m.raw)
        raise AssertionError("the messages never end:\n" + "\n".join(self.lines[-40:]))

    def pass_time(
        self, us: int, unless: Callable[[Message], bool] | None = None, step_us: int = 10_000
    ) -> None:
        """Time passes for all, and messages flow."""
        for _ in range(us // step_us):
            self.advance(step_us)
            self.flow(unless)

    # --- proposing and asking

    def submit(self, n: int, *values: bytes, group: int = 0, timeout_us: int = LONG_US) -> int:
        first = self.seq[n][group]
        self.seq[n][group] += len(values)
        verdict = self.engines[n].submit(group, first, list(values), self.now + timeout_us)
        self.turn(n)
        return verdict

    def status(self, n: int, group: int = 0) -> dict[str, int]:
        return self.engines[n].status(group)

    def leaders(self, group: int = 0) -> dict[int, int]:
        return {n: self.status(n, group)["leader"] for n in self.engines}

    def elect(self, leader: int = 1, group: int = 0) -> int:
        """Time passes until `leader` leads; its ballot. Node g % n + 1 is first to try group g."""
        self.flow()
        for _ in range(400):
            self.advance(10_000)
            self.flow()
            if self.status(leader, group)["leading"]:
                return self.status(leader, group)["ballot"]
        raise AssertionError("no leader:\n" + "\n".join(self.lines[-20:]))

    def body(self, n: int, instance: int, group: int = 0) -> bytes | None:
        return self.engines[n].entry(group, instance)

    def values(self, n: int, group: int = 0) -> list[list[bytes] | str]:
        """What is chosen at this node, while in memory: values of each instance, or "no-op"."""
        found: list[list[bytes] | str] = []
        for i in range(1, self.status(n, group)["chosen_through"] + 1):
            body = self.body(n, i, group)
            assert body is not None
            found.append([v for run in runs_of(body) for v in run.values] or "no-op")
        return found

    def recorded(self, n: int, since: int = 0) -> list[str]:
        """Records of a node, but for bookkeeping."""
        return [r.line() for r in self.journal[n] if r.lsn >= since and r.kind < PEER - 1]

    def said(self, *names: str, since: int = 0) -> list[str]:
        return [line for line in self.lines[since:] if not names or line.split(" ")[1] in names]

    def answer_fetches(self, n: int) -> None:
        """From what stands in memory or in the journal."""
        asked, self.fetches[n] = self.fetches[n], []
        for group, peer, first, last in asked:
            entries = []
            for i in range(first, last + 1):
                body = self.find(n, group, i)
                if body is None:
                    break
                entries.append((i, body))
            self.engines[n].supply(group, peer, first, supplied(entries))
            self.turn(n)

    def find(self, n: int, group: int, instance: int) -> bytes | None:
        body = self.engines[n].entry(group, instance)
        if body is None:
            done = self.settled[n].get(group, [])
            if instance <= len(done):
                return done[instance - 1]
            lsn = self.engines[n].location(group, instance)
            body = next((r.body for r in self.journal[n] if lsn and r.lsn == lsn), None)
        return body


def compact(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def b(number: int) -> str:
    return ballot_text(number)
