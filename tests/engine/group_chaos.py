"""Groups that come and go at random, under a few ids, among nodes that crash and links that lose,
repeat and reorder; and journals whose segments are used again.

The directory is a list of facts here, which is always right; each node hears them in order, late,
and from the beginning after each start. It does what phx.node.hosting does: the store has it first,
a crash may come before the engine does. So in one moment some nodes host one generation of an id,
others the next one, and what they say to each other of theirs is to be nobody else's.

Of each (group, generation):

U1    one value per instance, whoever announces it       U3   what is announced is decided: a
U4    no promise that was told is taken back                  majority of its members has synced an
own   it has values that were submitted to it, no others      acceptance in one ballot
U14   a read point is not below what anybody had announced when it was asked for
end   nothing is decided or announced above its last value; nothing of it when it is gone
whole every start finds its journal whole: what is of nobody there is a group that is gone
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from member_lab import MEMBERSHIP, roster
from script import LONG_US
from weather import Violation, Weather

from phx._core import members
from phx._core.engine_door import Engine
from phx.sim.wire_text import ACCEPT, Message, Record, ballot_text, runs_of, supplied
from phx.store_hosted import base_of
from phx.types import created_version

FAILED, HALTED = 1, 3
IDS = (6, 700, 1_048_575)
LIVE, ENDING, GONE = "live", "ending", "gone"

Log = tuple[int, int]  # group, generation


@dataclass
class Fact:
    group: int
    generation: int
    phase: str
    members: tuple[int, ...]


class Reference:
    """What is decided in each log, by what is durable."""

    def __init__(self) -> None:
        self.members: dict[Log, tuple[int, ...]] = {}
        self.bodies: dict[tuple[Log, int, int], bytes] = {}  # by instance and ballot
        self.votes: dict[tuple[Log, int, int], set[int]] = defaultdict(set)
        self.decided: dict[Log, dict[int, bytes]] = defaultdict(dict)
        self.last: dict[Log, int] = {}  # the instance of the last value
        self.over: set[Log] = set()  # the directory says that they are gone
        self.values: dict[Log, set[bytes]] = defaultdict(set)
        self.promised: dict[tuple[int, Log], int] = defaultdict(int)

    def synced(self, node: int, r: Record) -> None:
        if r.kind != ACCEPT:
            return
        log = r.group, r.generation
        place = log, r.index, r.ballot
        if self.bodies.setdefault(place, r.body) != r.body:
            raise Violation(f"U6: two values of {log} at {r.index} in {ballot_text(r.ballot)}")
        self.votes[place].add(node)
        voters = self.members[log]
        if 2 * len(self.votes[place] & set(voters)) > len(voters):
            self.decide(log, r.index, r.body)

    def decide(self, log: Log, instance: int, body: bytes) -> None:
        known = self.decided[log].get(instance)
        if known is not None:
            if known != body:
                raise Violation(f"U1: two values of {log} are decided at {instance}")
            return
        if log in self.over:
            raise Violation(f"end: {instance} of {log} is decided, which is gone")
        if instance > self.last.get(log, instance):
            raise Violation(f"end: {instance} of {log} is decided, and {self.last[log]} was last")
        if body[0] == MEMBERSHIP:
            read = members.read(body)
            assert read is not None
            assert not read[3], "no other change is made here"
            self.last[log] = instance
        elif strange := {v for run in runs_of(body) for v in run.values} - self.values[log]:
            raise Violation(f"own: {strange} is decided at {instance} of {log}")
        self.decided[log][instance] = body

    def announced(self, node: int, log: Log, instance: int, body: bytes | None) -> None:
        known = self.decided[log].get(instance)
        if known is None:
            raise Violation(f"U3: node {node} announces {instance} of {log}, which is not decided")
        if body is not None and body != known:
            raise Violation(f"U1: node {node} announces another value at {instance} of {log}")

    def leaves(self, m: Message) -> None:
        if m.name in ("Promise", "Accepted", "Prepare"):
            place = m.source, (m.group, m.generation)
            self.promised[place] = max(self.promised[place], m.ballot)


class GroupChaos(Weather):
    STEPS = 3000
    REACH = 80

    def __init__(self, seed: int, nodes: int = 4) -> None:
        self.begin(seed)
        self.apart = seed % 8 < 4
        self.reference = Reference()
        self.reference.members[0, 0] = tuple(range(1, nodes + 1))
        self.facts: list[Fact] = []
        self.heard: dict[int, int] = defaultdict(int)  # by node: so many facts
        # Stores: (generation, gone) by id; what is settled of which log.
        self.rows: dict[int, dict[int, tuple[int, bool]]] = defaultdict(dict)
        self.stored: dict[int, dict[Log, dict[int, bytes]]] = defaultdict(lambda: defaultdict(dict))
        self.ending: dict[int, dict[int, int]] = defaultdict(dict)
        self.seen_events: dict[int, int] = defaultdict(int)
        self.seen_chosen: dict[int, int] = defaultdict(int)
        self.number = 0
        self.heights: dict[Log, int] = defaultdict(int)  # the highest that anybody has announced
        self.asked: dict[tuple[int, int], tuple[Log, int]] = {}  # node, ticket: log, its height
        self.seen_points: dict[int, int] = defaultdict(int)
        super().__init__(nodes, window=32)
        self.lazy = set(self.nodes)

    # --- what a node hosts

    def hosted(self, n: int) -> dict[int, int]:
        """Generation by id, group 0 among them, as its store has it."""
        created = {group: g for group, (g, gone) in self.rows[n].items() if not gone}
        return {0: 0, **created}

    def fact_of(self, log: Log) -> Fact:
        return next(f for f in self.facts if (f.group, f.generation) == log)

    def know(self, n: int, group: int, generation: int) -> None:
        fact = self.fact_of((group, generation))
        value = roster(created_version(generation), fact.members)
        base = self.base((group, generation))
        told = (created_version(generation), value, base, 1, True)
        assert self.engines[n].change_known(group, *told) == 0

    def through(self, n: int, group: int, generation: int) -> int:
        """Of its store."""
        return max(self.stored[n][group, generation], default=self.base((group, generation)))

    def base(self, log: Log) -> int:
        """The instance behind which it begins. (Those of the generations of an id are far apart,
        which keeps them from each other by itself; every other seed does without that.)"""
        return 0 if not log[1] else base_of(log[1] if self.apart else 1)

    def start(self, n: int, **settled: int) -> int:
        engine = Engine(n, self.nodes, [0], seed=7, **self.options,
                        settled={0: self.through(n, 0, 0)})  # fmt: skip
        self.engines[n] = engine
        for group, (generation, gone) in sorted(self.rows[n].items()):
            if gone:
                engine.gone(group, generation)
            else:
                through = self.through(n, group, generation)
                assert engine.add_group(group, generation, through) == 0
                engine.floor(group, self.base((group, generation)) + 1)
        for group, generation in self.hosted(n).items():
            if generation:
                self.know(n, group, generation)
        for record in self.journal[n]:
            try:
                engine.replay(record.raw, record.lsn)
            except ValueError as error:
                raise Violation(f"whole: node {n}: {error}, at {record}") from None
        self.seq[n] = dict.fromkeys(self.hosted(n), 1)
        self.heard[n] = 0
        self.ending[n] = {}
        top = (self.end[n] + 511) & ~511
        self.durable[n] = self.end[n] = top
        incarnation = engine.start(top, self.now)
        self.turn(n)
        for group, generation in self.hosted(n).items():
            promised = self.status(n, group)["promised"]
            if promised < self.reference.promised[n, (group, generation)]:
                raise Violation(f"U4: node {n} has promised {ballot_text(promised)} in {group}")
        return incarnation

    # --- what everybody sees

    def turn(self, n: int) -> None:
        super().turn(n)
        self.watch(n)

    def watch(self, n: int) -> None:
        hosted = self.hosted(n)
        for group, first, last in self.chosen[n][self.seen_chosen[n] :]:
            log = group, hosted[group]
            for i in range(max(first, self.base(log) + 1), last + 1):
                body = self.engines[n].entry(group, i)
                self.reference.announced(n, log, i, body)
                self.heights[log] = max(self.heights[log], i)
        self.seen_chosen[n] = len(self.chosen[n])
        for kind, verdict, group, *_ in self.events[n][self.seen_events[n] :]:
            if kind == HALTED:
                raise Violation(f"node {n} has halted in {group}: {verdict}")
        self.seen_events[n] = len(self.events[n])
        for _, verdict, ticket, instance in self.points[n][self.seen_points[n] :]:
            log, height = self.asked.pop((n, ticket), ((0, 0), 0))
            self.counts["points"] += verdict == 0
            if verdict == 0 and instance < height:
                raise Violation(f"U14: node {n} reads {log} at {instance}, and {height} was done")
        self.seen_points[n] = len(self.points[n])

    def sync(self, n: int) -> None:
        since = self.durable[n]
        for record in reversed(self.journal[n]):
            if record.lsn < since:
                break
            self.reference.synced(n, record)
        super().sync(n)

    def answer_fetches(self, n: int) -> None:
        asked, self.fetches[n] = self.fetches[n], []
        for group, peer, first, last in asked:
            if group not in self.hosted(n):
                continue  # it was dropped since
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
            body = self.stored[n][group, self.hosted(n)[group]].get(instance)
        if body is None:
            lsn = self.engines[n].location(group, instance)
            body = next((r.body for r in self.journal[n] if lsn and r.lsn == lsn), None)
        return body

    # --- the directory, and what is done about it

    def latest(self, group: int) -> Fact | None:
        return next((f for f in reversed(self.facts) if f.group == group), None)

    def say(self, group: int, generation: int, phase: str, nodes: tuple[int, ...]) -> None:
        self.facts.append(Fact(group, generation, phase, nodes))
        self.counts[phase] += 1

    def create(self) -> None:
        group = self.random.choice(IDS)
        last = self.latest(group)
        if last is not None and last.phase != GONE:
            return
        generation = 1 if last is None else last.generation + 1
        nodes = tuple(sorted(self.random.sample(self.nodes, self.random.choice((1, 3, 3, 3, 4)))))
        self.reference.members[group, generation] = nodes
        self.say(group, generation, LIVE, nodes)

    def delete(self) -> None:
        there = [f for group in IDS if (f := self.latest(group)) is not None and f.phase == LIVE]
        if there:
            one = self.random.choice(there)
            self.say(one.group, one.generation, ENDING, one.members)

    def hear(self) -> None:
        """Some node hears a fact, or a few."""
        n = self.random.choice(sorted(self.engines))
        for _ in range(self.random.choice((1, 1, 2, 5))):
            if n in self.engines and self.heard[n] < len(self.facts):
                fact = self.facts[self.heard[n]]
                self.heard[n] += 1
                self.do(n, fact)

    def do(self, n: int, fact: Fact) -> None:
        group, generation = fact.group, fact.generation
        mine, gone = self.rows[n].get(group, (0, True))
        if generation < mine + gone:
            return  # it was done in an earlier life
        if fact.phase == GONE:
            if mine == generation:
                self.let_go(n, group)
            return
        if n not in fact.members:
            return
        if mine < generation:
            if not gone:
                self.let_go(n, group)
            if n in self.engines:
                self.host(n, group, generation)
        if fact.phase == ENDING:
            self.ending[n][group] = generation

    def host(self, n: int, group: int, generation: int) -> None:
        self.rows[n][group] = generation, False
        if self.dies(n):
            return
        through = self.through(n, group, generation)
        assert self.engines[n].add_group(group, generation, through) == 0
        self.engines[n].floor(group, self.base((group, generation)) + 1)
        self.know(n, group, generation)
        self.seq[n][group] = 1
        self.counts["hosted"] += 1
        self.turn(n)

    def let_go(self, n: int, group: int) -> None:
        generation, _ = self.rows[n][group]
        self.rows[n][group] = generation, True
        self.ending[n].pop(group, None)
        if self.dies(n):
            return
        self.watch(n)
        self.engines[n].drop_group(group)
        self.stored[n].pop((group, generation), None)
        # What was made of it before stands in no order with what comes after.
        self.chosen[n] = [c for c in self.chosen[n][: self.seen_chosen[n]] if c[0] != group]
        self.seen_chosen[n] = len(self.chosen[n])
        self.fetches[n] = [f for f in self.fetches[n] if f[0] != group]
        self.counts["dropped"] += 1
        self.turn(n)

    def dies(self, n: int) -> bool:
        """Between the store and the engine."""
        if self.quiet or self.random.random() > 0.1 or len(self.engines) < 3:
            return False
        self.crash(n, power=self.random.random() < 0.7)
        self.counts["died between"] += 1
        return True

    def end_groups(self) -> None:
        """Who leads proposes the last value; who knows it, durably, says so."""
        for n in list(self.engines):
            for group, generation in list(self.ending[n].items()):
                if self.rows[n].get(group) != (generation, False):
                    del self.ending[n][group]
                elif self.status(n, group)["ended"]:
                    self.tell_ended(n, group, generation)
                elif self.status(n, group)["leading"]:
                    version = self.engines[n].membership(group)["version"] + 1
                    self.engines[n].change_members(group, roster(version, ()))
                    self.turn(n)

    def tell_ended(self, n: int, group: int, generation: int) -> None:
        latest = self.latest(group)
        assert latest is not None
        if self.durable[n] < self.end[n] or latest.generation > generation:
            return
        if latest.phase == ENDING:
            if (group, generation) not in self.reference.last:
                raise Violation(f"end: node {n} says that {group, generation} ended")
            self.reference.over.add((group, generation))
            self.say(group, generation, GONE, ())
        del self.ending[n][group]

    # --- what happens

    def time(self) -> None:
        super().time()
        self.end_groups()

    def fall(self) -> None:
        if len(self.engines) > 2:
            n = self.random.choice(sorted(self.engines))
            self.crash(n, power=self.random.random() < 0.7)
            self.counts["crashes"] += 1

    def rise(self) -> None:
        if down := [n for n in self.nodes if n not in self.engines]:
            self.restart(self.random.choice(down))

    def write(self) -> None:
        n = self.random.choice(sorted(self.engines))
        group = self.random.choice([*self.hosted(n)])
        log = group, self.hosted(n)[group]
        self.number += 1
        value = b"%d of %d.%d" % (self.number, *log)
        self.reference.values[log].add(value)
        self.submit(n, value, group=group)

    def ask(self) -> None:
        """For a read point: of whoever leads, mostly, or of a quorum."""
        n = self.random.choice(sorted(self.engines))
        group = self.random.choice([*self.hosted(n)])
        leading = [x for x in self.engines if group in self.hosted(x)
                   and self.status(x, group)["leading"]]  # fmt: skip
        n = self.random.choice([*leading, *leading, n])
        log = group, self.hosted(n)[group]
        self.number += 1
        self.asked[n, self.number] = log, self.heights[log]
        quorum = self.random.random() < 0.2
        self.engines[n].read(group, self.number, self.now + LONG_US, quorum)
        self.turn(n)

    def settle(self) -> None:
        """What is durable goes to the store of some node, and its journal's segments are used
        again."""
        n = self.random.choice(sorted(self.engines))
        self.sync(n)
        self.turn(n)
        engine, hosted = self.engines[n], self.hosted(n)
        for group, instance, lsn in engine.settle_plan(self.durable[n]):
            body = next(r.body for r in self.journal[n] if r.lsn == lsn)
            self.stored[n][group, hosted[group]][instance] = body
        for group, generation in hosted.items():
            engine.settled(group, self.through(n, group, generation))
        self.turn(n)
        if self.random.random() < 0.7:
            assert engine.retire(self.durable[n]) == 0
            self.turn(n)
            self.sync(n)
            floor, after = self.floors[n]
            if after <= self.durable[n]:
                self.journal[n] = [r for r in self.journal[n] if r.lsn >= floor]
                self.counts["retired"] += 1

    def acts(self) -> list[tuple[Callable[[], None], float]]:
        return [
            (self.deliver_some, 50), (self.sync_one, 30 - 8 * self.bad), (self.time, 14),
            (self.write, 5), (self.ask, 4), (self.create, 3), (self.delete, 0.6), (self.hear, 6),
            (self.fall, 0.1 + 0.2 * self.bad), (self.rise, 1), (self.cut, 0.1 + 0.2 * self.bad),
            (self.settle, 0.5),
        ]  # fmt: skip

    # --- and at the end

    def settle_down(self) -> None:
        """All are back, and hear everything: what ends is gone, and what lives takes a value."""
        self.clear_up()
        goals: dict[Log, int] = {}
        for _ in range(4000):
            self.time()
            while any(self.ready(m) for m in self.waiting):
                self.deliver_one()
            for _ in range(4):
                self.hear()
            if self.all_heard():
                for group, generation in self.living().items():
                    goals.setdefault((group, generation), self.height((group, generation)) + 1)
                if all(self.height(log) >= goal for log, goal in goals.items()) and self.level():
                    return
            if self.random.random() < 0.3:
                self.write()
        raise Violation(f"liveness: {self.where()}")

    def height(self, log: Log) -> int:
        return max(self.reference.decided[log], default=self.base(log))

    def living(self) -> dict[int, int]:
        found = {0: 0}
        for group in IDS:
            fact = self.latest(group)
            if fact is not None and fact.phase == LIVE:
                found[group] = fact.generation
        return found

    def all_heard(self) -> bool:
        phases = {f.phase for group in IDS if (f := self.latest(group)) is not None}
        return ENDING not in phases and all(self.heard[n] == len(self.facts) for n in self.nodes)

    def level(self) -> bool:
        """Members have all of what lives, and nobody anything of what is gone."""
        living = self.living()
        for n in self.nodes:
            wanted = {
                group: generation
                for group, generation in living.items()
                if n in self.reference.members[group, generation]
            }
            if self.hosted(n) != wanted:
                raise Violation(f"node {n} hosts {self.hosted(n)}, and is to host {wanted}")
            for group, generation in wanted.items():
                if self.status(n, group)["chosen_through"] < self.height((group, generation)):
                    return False
        return True

    def where(self) -> str:
        lines = [str(fact) for fact in self.facts[-4:]] + [f"living {self.living()}"]
        for n in self.engines:
            lines.append(f"{n}: heard {self.heard[n]} of {len(self.facts)}, {self.rows[n]}")
            for group in self.hosted(n):
                s = self.status(n, group)
                lines.append(
                    f"  {group}: chosen={s['chosen_through']} leader={s['leader']} "
                    f"promised={ballot_text(s['promised'])} ended={s['ended']}"
                )
        return "\n".join(lines)
