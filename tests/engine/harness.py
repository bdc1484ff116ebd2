"""A simulated cluster of engines: network, journals, stores, crashes and callers, from one seed.

Everything random is drawn from one generator, every event has a time and a number, so one seed is
one run. Each engine is the compiled one; around it stand

- a journal that knows emitted, written and synced records. A crash of the process leaves what was
  written, a crash of the power a random part of what was not synced; a sync of one life says
  nothing about the unsynced bytes of the life before;
- a store that settled entries go to, off the commit path;
- links: frames in order per link, with delay; they may be lost, sent twice, cut in one direction
  or both, silently or with both ends told;
- callers, that submit and wait.

`checker` sees all of it (engine_checks.py).
"""

import heapq
import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine_checks import Checker, Violation

from phx._core.engine_door import Engine
from phx.sim.wire_text import (
    ACCEPT,
    CHOSEN,
    FRAME_HEADER_BYTES,
    Message,
    Record,
    decode,
    records,
    supplied,
)  # fmt: skip

LEADER, FAILED, HALTED, PEER_REFUSED = 2, 1, 3, 4
SECOND = 1_000_000

OPTIONS = {"window": 16, "batch_bytes_max": 512, "cache_bytes_max": 4096}


@dataclass
class Faults:
    """How unkind the run is. Probabilities are per frame, or per second of the cluster."""

    loss: float = 0.0
    twice: float = 0.0
    delay_us: tuple[int, int] = (50, 400)
    slow: float = 0.0  # of frames, delayed up to 50 ms (the link waits behind them)
    sync_us: tuple[int, int] = (100, 800)
    slow_sync: float = 0.0  # of syncs, up to 300 ms
    crashes: float = 0.0
    power: float = 0.5  # of crashes
    cuts: float = 0.0
    settle: float = 0.0
    stop_everything: float = 0.0


class Journal:
    """Records of one node, over all of its lives."""

    def __init__(self) -> None:
        self.kept: list[Record] = []
        self.emitted: list[Record] = []
        self.top = 0  # above everything that was ever emitted

    def find(self, lsn: int) -> Record | None:
        low, high = 0, len(self.kept)
        while low < high:
            middle = (low + high) // 2
            if self.kept[middle].lsn < lsn:
                low = middle + 1
            else:
                high = middle
        return self.kept[low] if low < len(self.kept) and self.kept[low].lsn == lsn else None


@dataclass
class Waiting:
    node: int
    group: int
    seq: int
    incarnation: int


class Node:
    """One member: an engine while it lives, a journal and a store always."""

    def __init__(self, cluster: "Cluster", ident: int) -> None:
        self.cluster = cluster
        self.id = ident
        self.journal = Journal()
        self.store: dict[int, list[bytes]] = {g: [] for g in cluster.groups}
        self.store_id = bytes([ident]) * 16
        self.offset_us = cluster.random.randrange(1, 10 * SECOND)
        self.engine: Engine | None = None
        self.life = 0  # counts starts, also those that left nothing durable
        self.incarnation = 0
        self.totals: dict[str, int] = defaultdict(int)
        self.halted: set[int] = set()

    # --- life

    def start(self) -> None:
        c, j = self.cluster, self.journal
        self.life += 1
        self.engine = Engine(
            self.id, c.nodes, c.groups, seed=c.seed * 1000 + self.life, **c.options,
            settled={g: len(bodies) for g, bodies in self.store.items()},
        )  # fmt: skip
        for record in j.kept:
            self.engine.replay(record.raw, record.lsn)
        self.remember(self.engine)
        top = (j.top + 4095) & ~4095
        self.incarnation = self.engine.start(top, self.clock(), c.now)
        for group in c.groups:
            c.checker.restarted(self.id, group, self.engine.status(group)["promised"])
        self.first_lsn = top
        self.durable = top
        self.syncing = False
        self.sync_due = False  # a lazy mark alone is not worth a sync
        self.settling = False
        self.turn_due = False
        self.wake_token = 0
        self.held: deque[tuple[int, int, bytes]] = deque()
        self.links: set[int] = set()
        self.next_seq = dict.fromkeys(c.groups, 1)
        self.announced = dict.fromkeys(c.groups, 0)
        self.floor: list[tuple[int, int]] = []
        self.led: dict[int, int] = {}
        self.idle_turns = 0
        self.poke()

    def remember(self, engine: Engine) -> None:
        """What is told to an engine after the replay, before its start."""

    def crash(self, power: bool) -> None:
        c, j = self.cluster, self.journal
        self.count()
        self.engine = None
        c.checker.died(self.id)
        if self.durable == self.first_lsn:
            # Its incarnation was not durable, so nothing has left: the next life may have the same.
            c.checker.forget(self.id, self.incarnation)
        for peer in sorted(self.links):
            c.unlink(self.id, peer)
        if not power:
            # Whatever the journal thread had been given and had not written is lost.
            lost = c.random.randrange(len(j.emitted) + 1)
            j.kept.extend(j.emitted[:lost])
        else:
            unsynced = [r for r in j.kept if not r.synced] + j.emitted
            cut = c.random.randrange(len(unsynced) + 1)
            j.kept = [r for r in j.kept if r.synced] + unsynced[:cut]
            for r in unsynced[:cut]:
                r.synced = True
                c.checker.record_synced(self.id, r)
            j.kept.sort(key=lambda r: r.lsn)
        j.emitted = []

    def count(self) -> None:
        if self.engine is not None:
            for name, value in self.engine.counters().items():
                self.totals[name] += value

    def clock(self) -> int:
        return self.cluster.now + self.offset_us

    def at(self, at_us: int, what: Callable[[], None]) -> None:
        """At this time, unless the node has died by then."""
        life = self.life

        def unless_dead() -> None:
            if self.engine is not None and self.life == life:
                what()

        self.cluster.at(at_us, unless_dead)

    def poke(self) -> None:
        """Something was put in: a turn will follow."""
        if not self.turn_due:
            self.turn_due = True
            self.at(self.cluster.now + self.cluster.random.randrange(50), self.turn)

    # --- a turn

    def turn(self) -> None:
        c, engine = self.cluster, self.engine
        assert engine is not None
        self.turn_due = False
        engine.advance(self.clock(), c.now)
        out = engine.turn()
        if out["records"]:
            made = list(records(out["records"], out["lsn_first"]))
            assert out["lsn_first"] >= self.journal.top or not self.journal.emitted
            for record in made:
                c.checker.record_emitted(self.id, record)
            self.journal.emitted.extend(made)
            self.journal.top = out["lsn_end"]
        if out["floor_lsn"]:
            self.floor.append((out["floor_after"], out["floor_lsn"]))
        self.watch_leadership()
        # A value may be given up and become known as chosen in one turn, in this order only.
        for event in out["events"]:
            self.event(*event)
        for group, first, last in out["chosen"]:
            self.chosen(group, first, last)
        for peer, frame, after in out["outgoing"]:
            for dest in [peer] if peer else c.nodes:
                if dest != self.id:
                    self.held.append((after, dest, frame))
        self.send()
        for fetch in out["fetches"]:
            self.fetch(*fetch)
        self.sync_due = self.sync_due or out["sync"]
        if self.sync_due and not self.syncing:
            self.sync()
        self.schedule_wake(out["wake_at_us"])

    def schedule_wake(self, wake_at_us: int) -> None:
        self.wake_token += 1
        token = self.wake_token
        if wake_at_us >= 1 << 63:
            return
        if wake_at_us <= self.clock():
            self.idle_turns += 1
            if self.idle_turns > 200:
                raise Violation(f"node {self.id} asks again and again to be woken at once")
        else:
            self.idle_turns = 0
        at = max(wake_at_us - self.offset_us, self.cluster.now + 100)

        def wake() -> None:
            if token == self.wake_token:
                self.poke()

        self.at(at, wake)

    def watch_leadership(self) -> None:
        engine = self.engine
        assert engine is not None
        led = {}
        for group in self.cluster.groups:
            status = engine.status(group)
            if status["leading"]:
                led[group] = status["ballot"]
            elif group in self.led:
                self.cluster.checker.gave_up(self.id, group)
        self.led = led

    def chosen(self, group: int, first: int, last: int) -> None:
        assert first == self.announced[group] + 1
        self.announced[group] = last
        for instance in range(first, last + 1):
            self.cluster.checker.announced(
                self.id, self.incarnation, group, instance, self.body(group, instance)
            )

    def body(self, group: int, instance: int) -> bytes:
        """Of a chosen instance, from wherever it is."""
        assert self.engine is not None
        if instance <= len(self.store[group]):
            return self.store[group][instance - 1]
        body = self.engine.entry(group, instance)
        lsn = self.engine.location(group, instance)
        record = self.journal.find(lsn)
        if record is None:
            record = next((r for r in self.journal.emitted if r.lsn == lsn), None)
        if record is None:
            raise Violation(f"node {self.id}: no record of g{group} {instance} at {lsn}")
        if (record.group, record.index) != (group, instance) or record.kind not in (ACCEPT, CHOSEN):
            raise Violation(f"node {self.id}: g{group} {instance} is said to be at {record.line()}")
        if body is not None and body != record.body:
            raise Violation(f"node {self.id}: the record of g{group} {instance} has another value")
        return record.body

    def event(
        self, kind: int, verdict: int, group: int, first: int, count: int, leader: int
    ) -> None:
        c = self.cluster
        if kind == FAILED:
            for seq in range(first, first + count):
                c.checker.verdict(self.id, self.incarnation, group, seq, verdict)
        elif kind == HALTED:
            raise Violation(f"node {self.id} halts g{group}: reason {verdict}")
        elif kind == PEER_REFUSED:
            raise Violation(f"node {self.id} refuses peer {group}")

    # --- journal

    def sync(self) -> None:
        """Write what has collected, then sync it; what comes meanwhile waits for the next one."""
        c, f = self.cluster, self.cluster.faults
        batch = list(self.journal.emitted)
        self.syncing = True
        self.sync_due = False
        wait = c.random.randrange(*f.sync_us)
        if c.random.random() < f.slow_sync:
            wait = c.random.randrange(300_000)

        def written() -> None:
            self.journal.kept.extend(batch)
            del self.journal.emitted[: len(batch)]

        def synced() -> None:
            for record in batch:
                record.synced = True
                c.checker.record_synced(self.id, record)
            self.syncing = False
            self.durable = batch[-1].lsn + len(batch[-1].raw)
            assert self.engine is not None
            self.engine.durable(self.durable)
            self.drop_dead()
            self.send()
            self.poke()

        self.at(c.now + wait // 4, written)
        self.at(c.now + wait, synced)

    def drop_dead(self) -> None:
        for floor in [f for f in self.floor if f[0] <= self.durable]:
            self.floor.remove(floor)
            self.journal.kept = [r for r in self.journal.kept if r.lsn >= floor[1]]

    def send(self) -> None:
        """Frames whose records are durable leave, in the order in which they were made."""
        c = self.cluster
        engine = self.engine
        assert engine is not None
        kept: deque[tuple[int, int, bytes]] = deque()
        for after, dest, frame in self.held:
            if after > self.durable:
                kept.append((after, dest, frame))
            else:
                c.transmit(self, dest, frame)
        self.held = kept

    # --- store

    def settle(self) -> None:
        c = self.cluster
        if self.settling or self.engine is None:
            return
        upto = c.random.choice([self.durable, (self.first_lsn + self.durable) // 2])
        upto = max((r.lsn for r in self.journal.kept if r.lsn <= upto), default=0)
        plan = self.engine.settle_plan(upto)
        if any(lsn >= self.durable for _, _, lsn in plan):
            # Accepted again since, in a higher ballot: the plan goes on to a record below `upto`.
            return
        self.settling = True
        taken: dict[int, list[bytes]] = defaultdict(list)
        for group, instance, lsn in plan:
            assert instance == len(self.store[group]) + len(taken[group]) + 1
            record = self.journal.find(lsn)
            if record is None or (record.group, record.index) != (group, instance):
                raise Violation(f"node {self.id}: settle plan g{group} {instance} at {lsn}")
            taken[group].append(record.body)

        def committed() -> None:
            assert self.engine is not None
            for group, bodies in taken.items():
                self.store[group].extend(bodies)
            if c.random.random() < 0.1:
                self.settling = False  # and the process is slow to say so
            for group in taken:
                self.engine.settled(group, len(self.store[group]))
            if c.random.random() < 0.8:
                self.engine.retire(upto)
            self.settling = False
            self.poke()

        self.at(c.now + c.random.randrange(100, 20_000), committed)

    def fetch(self, group: int, peer: int, first: int, last: int) -> None:
        c = self.cluster

        def answer() -> None:
            assert self.engine is not None
            count = c.random.choice([0, 1, 5, 100, 100])
            entries = []
            for instance in range(first, min(last, first + count - 1) + 1):
                entries.append((instance, self.body(group, instance)))
            self.engine.supply(group, peer, first, supplied(entries))
            self.poke()

        self.at(c.now + c.random.randrange(50, 5_000), answer)

    # --- callers

    def submit(self, group: int, values: list[bytes], timeout_us: int) -> list[tuple[int, ...]]:
        c, engine = self.cluster, self.engine
        assert engine is not None
        first = self.next_seq[group]
        self.next_seq[group] += len(values)
        keys = []
        for i, text in enumerate(values):
            key = (group, self.id, self.incarnation, first + i)
            c.checker.submitted[key] = text
            keys.append(key)
        verdict = engine.submit(group, first, values, self.clock() + timeout_us)
        if verdict:
            for i in range(len(values)):
                c.checker.verdict(self.id, self.incarnation, group, first + i, verdict)
        self.poke()
        return keys


class Cluster:
    def __init__(
        self, seed: int, nodes: int = 3, groups: int = 2, faults: Faults | None = None,
        **options: int,
    ) -> None:  # fmt: skip
        self.seed = seed
        self.random = random.Random(seed)
        self.faults = self.worst = faults or Faults()
        self.options = {**OPTIONS, **options}
        self.nodes = list(range(1, nodes + 1))
        self.groups = list(range(groups))
        self.now = 0
        self.number = 0
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.checker = Checker(self.nodes)
        self.links: dict[tuple[int, int], dict[str, Any]] = {}  # (a, b), a < b, while connected
        self.blocked: set[tuple[int, int]] = set()  # directions that swallow frames
        self.apart: set[tuple[int, int]] = set()  # pairs that cannot connect
        self.last: deque[str] = deque(maxlen=60)
        self.trace: Callable[[str], None] | None = None
        self.watcher: Callable[[Message], bool] | None = None  # False: the message is lost
        self.node = {n: self.make_node(n) for n in self.nodes}
        for n in self.nodes:
            self.node[n].start()
        self.reconnect()

    def make_node(self, n: int) -> Node:
        return Node(self, n)

    # --- time

    def at(self, at_us: int, what: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (at_us, self.number, what))

    def note(self, text: str) -> None:
        self.last.append(f"{self.now / SECOND:.6f} {text}")
        if self.trace is not None:
            self.trace(self.last[-1])

    def run(self, for_us: int) -> None:
        end = self.now + for_us
        try:
            while self.events and self.events[0][0] <= end:
                self.now, _, what = heapq.heappop(self.events)
                what()
        except (Violation, AssertionError) as error:
            story = "\n".join(self.last)
            raise Violation(f"seed {self.seed}, {self.now} us: {error}\n{story}") from error
        self.now = end

    def run_until(self, what: Callable[[], bool], limit_us: int, step_us: int = 20_000) -> int:
        """Time that it took; fails when it takes longer."""
        start = self.now
        while not what():
            if self.now - start >= limit_us:
                story = "\n".join(self.last)
                raise Violation(
                    f"seed {self.seed}: not within {limit_us} us\n{self.text()}\n{story}"
                )
            self.run(step_us)
        return self.now - start

    # --- network

    def reconnect(self) -> None:
        """The dialer of every pair tries again every now and then, for ever."""
        for a in self.nodes:
            for b in self.nodes:
                if a < b and (a, b) not in self.links and self.may_link(a, b):
                    self.link(a, b)
        self.at(self.now + self.random.randrange(5_000, 30_000), self.reconnect)

    def may_link(self, a: int, b: int) -> bool:
        return (
            (a, b) not in self.apart and not {(a, b), (b, a)} & self.blocked
            and all(self.alive(n) and self.node[n].durable > self.node[n].first_lsn for n in (a, b))
        )  # fmt: skip

    def link(self, a: int, b: int) -> None:
        link = {"free": {(a, b): 0, (b, a): 0}}
        self.links[a, b] = link
        for x, y in ((a, b), (b, a)):
            self.node[x].links.add(y)
            engine = self.node[x].engine
            assert engine is not None
            refused = engine.connected(y, self.node[y].incarnation, self.node[y].store_id)
            if refused:
                raise Violation(f"node {x} refuses the connection of {y}")
            self.node[x].poke()
        self.note(f"link {a}-{b}")

    def unlink(self, a: int, b: int) -> None:
        pair = (min(a, b), max(a, b))
        if self.links.pop(pair, None) is None:
            return
        self.note(f"unlink {pair[0]}-{pair[1]}")
        for x, y in ((a, b), (b, a)):
            node = self.node[x]
            node.links.discard(y)
            if node.engine is not None:
                node.engine.disconnected(y)
                node.poke()

    def transmit(self, sender: Node, dest: int, frame: bytes) -> None:
        pair = (min(sender.id, dest), max(sender.id, dest))
        link = self.links.get(pair)
        if link is None:
            return
        messages = list(decode(frame[FRAME_HEADER_BYTES:]))
        lost = self.random.random() < self.faults.loss or (sender.id, dest) in self.blocked
        payload = b""
        for m in messages:
            m.source, m.dest, m.sent_us = sender.id, dest, sender.clock()
            self.checker.leaves(sender.id, m, sender.announced.get(m.group, 0))
            if m.name == "Heartbeat":
                m.sent_us = self.now
                self.checker.beat(sender.id, m)
            elif m.name != "HeartbeatAck":
                self.note(m.line() + (" LOST" if lost else ""))
            if self.watcher is None or self.watcher(m):
                payload += m.raw
        if lost or not payload:
            return
        delay = self.random.randrange(*self.faults.delay_us)
        if self.random.random() < self.faults.slow:
            delay = self.random.randrange(50_000)
        at = max(self.now + delay, link["free"][sender.id, dest])
        link["free"][sender.id, dest] = at
        self.deliver(pair, link, dest, sender.id, payload, at)
        if self.random.random() < self.faults.twice:
            # A copy, which others may overtake. (Not of forwards: TCP makes no copies, and a leader
            # that steps down refuses the copy of a value that it has proposed.)
            copies = [m.raw for m in messages if m.name not in ("Forward", "ForwardReply")]
            again = at + self.random.randrange(20_000)
            if copies:
                self.deliver(pair, link, dest, sender.id, b"".join(copies), again)

    def deliver(
        self, pair: tuple[int, int], link: dict[str, Any], dest: int, source: int,
        payload: bytes, at_us: int,
    ) -> None:  # fmt: skip
        def arrive() -> None:
            node = self.node[dest]
            if self.links.get(pair) is not link or node.engine is None:
                return
            node.engine.advance(node.clock(), self.now)
            node.engine.receive(source, payload)
            node.watch_leadership()
            for m in decode(payload):
                if m.name == "HeartbeatAck":
                    m.source = source
                    self.checker.beat_acked(dest, m, self.now, node.led)
            node.poke()

        self.at(at_us, arrive)

    # --- what happens to it

    def alive(self, n: int) -> bool:
        return self.node[n].engine is not None

    def crash(self, n: int, power: bool = False, restart_us: int | None = None) -> None:
        if not self.alive(n):
            return
        self.note(f"node {n} crashes ({'power' if power else 'process'})")
        self.node[n].crash(power)
        if restart_us is not None:
            self.at(self.now + restart_us, lambda: self.restart(n))

    def restart(self, n: int) -> None:
        if not self.alive(n):
            self.note(f"node {n} starts")
            self.node[n].start()

    def cut(self, a: int, b: int, how: str) -> None:
        """`how`: "told" (both ends know), "silent", or "one-way" (only a to b is lost)."""
        self.note(f"cut {a}-{b} {how}")
        if how == "told":
            self.apart.add((min(a, b), max(a, b)))
            self.unlink(a, b)
        else:
            self.blocked.add((a, b))
            if how == "silent":
                self.blocked.add((b, a))

    def heal(self, a: int, b: int) -> None:
        self.note(f"heal {a}-{b}")
        self.blocked -= {(a, b), (b, a)}
        self.apart.discard((min(a, b), max(a, b)))

    def heal_all(self) -> None:
        for a in self.nodes:
            for b in self.nodes:
                if a < b:
                    self.heal(a, b)

    # --- questions

    def statuses(self, group: int) -> dict[int, dict[str, int]]:
        return {
            n: self.node[n].engine.status(group)  # type: ignore[union-attr]
            for n in self.nodes if self.alive(n)
        }  # fmt: skip

    def leader(self, group: int) -> int:
        """The node that leads and that every live node names; else 0."""
        statuses = self.statuses(group)
        named = {s["leader"] for s in statuses.values()}
        if len(named) == 1:
            only = named.pop()
            if only in statuses and statuses[only]["leading"]:
                return only
        return 0

    def even(self) -> bool:
        """Every group has one leader, and all live nodes know the same chosen prefix."""
        return all(
            self.leader(g) and len({s["chosen_through"] for s in self.statuses(g).values()}) == 1
            for g in self.groups
        )

    def counters(self) -> dict[str, int]:
        """Over all nodes and lives."""
        total: dict[str, int] = defaultdict(int)
        for node in self.node.values():
            for name, value in node.totals.items():
                total[name] += value
            if node.engine is not None:
                for name, value in node.engine.counters().items():
                    total[name] += value
        return total

    def text(self) -> str:
        lines = []
        for g in self.groups:
            for n, s in self.statuses(g).items():
                lines.append(
                    f"g{g} node {n}: leader {s['leader']} leading {s['leading']} chosen "
                    f"{s['chosen_through']} accepted {s['accepted_last']} promised "
                    f"{s['promised'] >> 20}.{s['promised'] & 0xFFFFF} waiting {s['waiting_values']}"
                )
        return "\n".join(lines)
