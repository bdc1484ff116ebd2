"""Nodes that lose their journal: what a store remembers for them, in scripts and in random runs."""

import random
from collections.abc import Callable, Iterator

from engine_checks import Checker, Violation
from harness import Cluster, Faults, Node
from script import Script

from phx._core.codec import encode_record
from phx._core.engine_door import Engine
from phx.sim.wire_text import NODE, SUSPECT, Message, Record

CEILING = 6  # the event
STEP = 1 << 20
LEASE_US = 800_000
SECOND = 1_000_000


class Lossy(Script):
    """A script whose stores keep a ceiling and a life for each node."""

    def __init__(self, nodes: int = 3, groups: int = 1, **options: int) -> None:
        self.ceiling = dict.fromkeys(range(1, nodes + 1), STEP)
        self.life = dict.fromkeys(range(1, nodes + 1), 0)
        self.lost: set[int] = set()  # whose journal is gone, until the next start
        self.keeps = True  # a ceiling is raised as soon as it is asked for
        self.stuck: set[int] = set()  # nodes where it cannot be raised
        super().__init__(nodes, groups, **options)

    def remember(self, n: int, engine: Engine) -> None:
        lease_us = LEASE_US if n in self.lost else 0
        engine.replay(encode_record(NODE, 0, self.life[n], lease_us, b""), 0)
        engine.ceiling(self.ceiling[n])
        for group in self.groups if n in self.lost else ():
            assert engine.suspect(group) == 0
        self.lost.discard(n)

    def start(self, n: int, **settled: int) -> int:
        self.life[n] = super().start(n)
        return self.life[n]

    def turn(self, n: int) -> None:
        super().turn(n)
        told = [event for event in self.events[n] if event[0] == CEILING]
        if told and self.keeps and n not in self.stuck:
            self.events[n] = [event for event in self.events[n] if event[0] != CEILING]
            self.ceiling[n] = max(self.ceiling[n], told[-1][3])
            self.engines[n].ceiling(self.ceiling[n])

    def lose_journal(self, n: int) -> None:
        """Down it goes, and comes back without."""
        if n in self.engines:
            self.crash(n, power=False)
        self.journal[n] = []
        self.lost.add(n)
        self.restart(n)

    def suspects(self, group: int = 0) -> list[int]:
        return [n for n in self.engines if self.status(n, group)["suspect"]]

    def marks(self, n: int) -> list[tuple[int, int, int]]:
        """Its SUSPECT records: group, life, ballot."""
        return [(r.group, r.index, r.ballot) for r in self.journal[n] if r.kind == SUSPECT]


class LossyNode(Node):
    """A node of a random run, with what its store keeps."""

    def __init__(self, cluster: Cluster, ident: int) -> None:
        super().__init__(cluster, ident)
        self.ceiling = 64
        self.lives = 0
        self.lost_in = 0  # a journal that does not know this life is not whole
        self.asked = 0
        self.top_before: dict[int, int] = {}  # the highest promise ever made before the last loss
        self.losses = 0

    def remember(self, engine: Engine) -> None:
        kept = self.journal.kept
        lost = self.lost_in and not any(r.kind == NODE and r.index >= self.lost_in for r in kept)
        if lost:
            self.lost_in = self.lives + 1
        engine.replay(encode_record(NODE, 0, self.lives, LEASE_US if lost else 0, b""), 0)
        self.lives += 1  # raised durably before the start
        engine.ceiling(self.ceiling)
        for group in self.cluster.groups if lost else ():
            assert engine.suspect(group) == 0

    def lose_journal(self, power: bool) -> None:
        if self.engine is not None:
            self.crash(power)
        self.losses += 1
        self.lost_in = self.lives + 1
        self.journal.kept = []
        self.cluster.checker.lost(self.id)  # type: ignore[attr-defined]

    def event(
        self, kind: int, verdict: int, group: int, first: int, count: int, leader: int
    ) -> None:
        if kind != CEILING:
            super().event(kind, verdict, group, first, count, leader)
            return

        def durable() -> None:
            # Small steps, so that it is often too low.
            lowest = max(self.ceiling, first - STEP)
            self.ceiling = lowest + 1 + self.cluster.random.randrange(8)
            assert self.engine is not None
            self.engine.ceiling(self.ceiling)
            self.poke()

        self.at(self.cluster.now + self.cluster.random.randrange(100, 20_000), durable)


class LossyChecker(Checker):
    """Besides: a suspect replica says nothing that counts; all it ever promised is below its
    ceiling; it becomes whole only in a ballot above all that it ever promised before."""

    def __init__(self, cluster: "LossyCluster") -> None:
        super().__init__(cluster.nodes)
        self.cluster = cluster
        self.ever: dict[tuple[int, int], int] = {}  # the highest promise, lost ones too
        self.before: dict[tuple[int, int], int] = {}  # the same at the last loss
        self.suspect: set[tuple[int, int]] = set()
        self.rejoins = 0

    def lost(self, node: int) -> None:
        for group in self.cluster.groups:
            self.before[node, group] = self.ever.get((node, group), 0)
            self.suspect.add((node, group))
            for table in (self.exposed, self.promised, self.promise):
                table.pop((node, group), None)
        self.synced = {key for key in self.synced if key[0] != node}
        self.accepted = {key for key in self.accepted if key[0] != node}
        self.synced_chosen = {key for key in self.synced_chosen if key[0] != node}

    def record_emitted(self, node: int, r: Record) -> None:
        super().record_emitted(node, r)
        key = (node, r.group)
        if r.kind in (1, 2):
            self.ever[key] = max(self.ever.get(key, 0), r.ballot)
            known = self.cluster.lossy(node).ceiling
            if r.ballot >> 20 > known:
                raise Violation(f"node {node}: {r.line()} above the ceiling {known}")
            if key in self.suspect and r.ballot <= self.before[key]:
                raise Violation(f"node {node}, suspect: {r.line()} below what it may have promised")
        if r.kind == SUSPECT and r.ballot:
            if r.ballot >> 20 <= self.before[key] >> 20:
                raise Violation(f"node {node} is whole in a ballot that it may have promised")
            self.suspect.discard(key)
            self.rejoins += 1
        elif r.kind == SUSPECT:
            self.suspect.add(key)

    def leaves(self, node: int, m: Message, chosen_through: int) -> None:
        super().leaves(node, m, chosen_through)
        status = self.cluster.statuses(m.group).get(node)
        if status is None or not status["suspect"]:
            return
        if m.name in ("PreVoteReply", "Promise", "Accepted"):
            raise Violation(f"U10r: node {node} is suspect, and says {m.line()}")


class LossyCluster(Cluster):
    def __init__(
        self, seed: int, nodes: int = 3, groups: int = 2, faults: Faults | None = None,
        **options: int,
    ) -> None:  # fmt: skip
        super().__init__(seed, nodes, groups, faults, **options)

    def make_node(self, n: int) -> Node:
        if not isinstance(self.checker, LossyChecker):
            self.checker = LossyChecker(self)
        return LossyNode(self, n)

    def lossy(self, n: int) -> LossyNode:
        node = self.node[n]
        assert isinstance(node, LossyNode)
        return node

    def suspects(self) -> Iterator[tuple[int, int]]:
        for group in self.groups:
            for n, status in self.statuses(group).items():
                if status["suspect"]:
                    yield n, group


def storm(
    c: LossyCluster,
    dice: random.Random,
    with_power: Callable[[], bool],
    hits: float,
    hit: Callable[[int], None],
) -> None:
    """Values, cut links, crashes, and what loses votes, at random; then all is well at last.

    Args:
        with_power: whether a crash is one of the machine.
        hits, hit: how often a node loses votes, and what does that to it; one node at a time, for
            two would be suspect for ever.
    """
    for number in range(250):
        n, group = dice.choice(c.nodes), dice.choice(c.groups)
        if c.alive(n):
            c.node[n].submit(group, [b"%d" % number], 20 * SECOND)
            if dice.random() < 0.3:
                c.node[n].settle()
        if dice.random() < 0.05:
            a, b = dice.sample(c.nodes, 2)
            c.cut(a, b, dice.choice(["told", "silent", "one-way"]))
        if dice.random() < 0.1:
            c.heal_all()
        if dice.random() < 0.06:
            c.crash(n, power=with_power(), restart_us=dice.randrange(1, SECOND))
        elif (
            dice.random() < hits
            and not {m for m, _ in c.suspects()} - {n}
            and all(c.alive(m) for m in c.nodes)
        ):
            hit(n)
        c.run(dice.randrange(120_000))
    c.heal_all()
    c.faults = Faults()
    c.run_until(
        lambda: all(map(c.alive, c.nodes)) and c.even() and not list(c.suspects()), 120 * SECOND
    )
