"""Random runs of a whole cluster, one per seed; every invariant is checked all the time.

PHX_ENGINE_SEEDS=5000 runs that many seeds of each kind, PHX_ENGINE_FIRST=n starts at seed n.
"""

import os

import pytest
from harness import SECOND, Cluster, Faults

FIRST = int(os.environ.get("PHX_ENGINE_FIRST", "1"))
SEEDS = int(os.environ.get("PHX_ENGINE_SEEDS", "0"))


def seeds(count: int) -> range:
    return range(FIRST, FIRST + (SEEDS or count))


class Trouble:
    """Crashes, cuts, settling and callers, drawn from the cluster's own generator."""

    def __init__(self, cluster: Cluster, faults: Faults, rate: float) -> None:
        self.c = cluster
        self.faults = faults
        self.rate = rate
        self.over = False
        self.count = 0

    def start(self) -> None:
        self.c.faults = self.c.worst = self.faults
        self.every(1 / self.rate, self.submit)
        if len(self.c.nodes) == 1:
            self.faults.cuts = 0
        for per_second, what in (
            (self.faults.crashes, self.crash), (self.faults.cuts, self.cut),
            (self.faults.settle, self.settle), (self.faults.stop_everything, self.stop_everything),
        ):  # fmt: skip
            if per_second:
                self.every(1 / per_second, what)

    def every(self, seconds: float, what) -> None:  # type: ignore[no-untyped-def]
        def again() -> None:
            if not self.over:
                what()
                self.every(seconds, what)

        self.c.at(self.c.now + int(self.c.random.expovariate(1 / seconds) * SECOND), again)

    def submit(self) -> None:
        r, c = self.c.random, self.c
        n = r.choice(c.nodes)
        if c.alive(n):
            values = []
            for _ in range(r.choice([1, 1, 1, 2, 5, 20])):
                self.count += 1
                values.append(b"%d." % self.count + b"x" * r.choice([0, 0, 10, 200]))
            timeout = r.choice([20_000, 500_000, 2 * SECOND, 10 * SECOND])
            c.node[n].submit(r.choice(c.groups), values, timeout)

    def crash(self) -> None:
        r, c = self.c.random, self.c
        up = [n for n in c.nodes if c.alive(n)]
        if len(up) > 1:
            down_us = r.choice([1_000, 50_000, SECOND])
            c.crash(r.choice(up), r.random() < self.faults.power, down_us)

    def stop_everything(self) -> None:
        power = self.c.random.random() < self.faults.power
        for n in self.c.nodes:
            self.c.crash(n, power, self.c.random.randrange(200_000))

    def cut(self) -> None:
        r, c = self.c.random, self.c
        how = r.choice(["told", "told", "silent", "one-way"])
        if r.random() < 0.5:
            pairs = [tuple(r.sample(c.nodes, 2))]
        else:
            side = set(r.sample(c.nodes, r.randrange(1, max(2, len(c.nodes)))))
            pairs = [(a, b) for a in side for b in c.nodes if b not in side]
        for a, b in pairs:
            c.cut(a, b, how)

        def heal() -> None:
            for a, b in pairs:
                c.heal(a, b)

        def tell() -> None:
            for a, b in pairs:
                if {(a, b), (b, a)} & c.blocked:
                    c.unlink(a, b)

        if how != "told" and r.random() < 0.5:
            c.at(c.now + r.randrange(300_000), tell)
        c.at(c.now + r.choice([10_000, 300_000, 2 * SECOND]), heal)

    def settle(self) -> None:
        node = self.c.node[self.c.random.choice(self.c.nodes)]
        if self.c.alive(node.id):
            node.settle()

    def end(self) -> None:
        self.over = True
        self.c.faults = Faults()
        self.c.heal_all()
        for n in self.c.nodes:
            self.c.restart(n)


def run(
    seed: int, faults: Faults, nodes: int, seconds: float, rate: float, **options: int
) -> Cluster:
    cluster = Cluster(seed, nodes, 2, **options)
    trouble = Trouble(cluster, faults, rate)
    trouble.start()
    cluster.run(int(seconds * SECOND))
    trouble.end()
    recover(cluster)
    return cluster


def recover(cluster: Cluster) -> None:
    """U12: with the faults gone everything is decided again, everywhere, and then it is quiet."""
    # Restarts that were drawn before the end, then leases, elections, and the balance.
    cluster.run_until(cluster.even, 8 * SECOND)
    keys = []
    for n in cluster.nodes:
        for g in cluster.groups:
            keys += cluster.node[n].submit(g, [b"last %d %d" % (n, g)], 10 * SECOND)
    cluster.run_until(lambda: all(k in cluster.checker.acked for k in keys), 3 * SECOND)
    cluster.run(3 * SECOND)
    before = cluster.counters()
    cluster.run(2 * SECOND)
    after = cluster.counters()
    for name in ("elections", "prevotes", "step_downs", "resends", "transfers", "re_prepares"):
        assert after[name] == before[name], f"{name} go on for ever\n{cluster.text()}"
    if not cluster.worst.twice:  # (copies of heartbeats are counted as hostile)
        assert after["hostile_messages"] == 0
    cluster.run_until(cluster.even, SECOND)
    check_end(cluster)


def check_end(cluster: Cluster) -> None:
    checker = cluster.checker
    for g in cluster.groups:
        through = {s["chosen_through"] for s in cluster.statuses(g).values()}
        assert through == {checker.log_end[g]}
        for n, status in cluster.statuses(g).items():
            for instance in range(1, status["chosen_through"] + 1):
                assert cluster.node[n].body(g, instance) == checker.decided[g, instance]
    # Nobody waits for ever: every caller of a node that lives has heard of its values.
    late = [
        key for key in checker.submitted
        if key[2] == cluster.node[key[1]].incarnation
        and key not in checker.acked and key not in checker.verdicts
    ]  # fmt: skip
    for key in late:
        assert cluster.statuses(key[0])[key[1]]["waiting_values"], f"nobody waits for {key}"
    assert set(checker.acked) <= set(checker.applied)


@pytest.mark.parametrize("seed", seeds(40))
def test_network(seed: int) -> None:
    faults = Faults(loss=0.02, twice=0.02, slow=0.02, cuts=1.5)
    run(seed, faults, 3, 4, 40)


@pytest.mark.parametrize("seed", seeds(40))
def test_crashes(seed: int) -> None:
    faults = Faults(crashes=1.0, slow_sync=0.02, settle=2.0, stop_everything=0.1)
    run(seed, faults, 3, 5, 40)


@pytest.mark.parametrize("seed", seeds(40))
def test_everything(seed: int) -> None:
    faults = Faults(
        loss=0.01, twice=0.02, slow=0.02, slow_sync=0.02, crashes=0.5, cuts=1.0, settle=2.0,
        stop_everything=0.05,
    )  # fmt: skip
    run(seed, faults, 3 if seed % 2 else 5, 4, 30)
