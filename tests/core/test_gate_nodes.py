"""Gates of several nodes that apply one log, on queues whose time is counted and not waited for.

Each node lets in values of its own callers, and applies those of all. Every tenth of a second it
hears how late the others apply, as heartbeats tell it. Nothing here depends on the machine's clock.
"""

import random

import pytest

from phx._core.gate import GateDoor

MS = 1_000
S = 1_000_000
PER_S = 4_000  # each node can apply
BOUND_US = 60 * MS
BATCH_US = 8 * MS
HEARTBEAT_US = 100 * MS
ILL_US = 1 * S  # whoever is later is not waited for (published.late_of)


class Node:
    """Attributes: stays: (when it came, how long it stayed) of each of its callers' values."""

    def __init__(self, nodes, seed):
        self.nodes = nodes
        self.gate = GateDoor(BOUND_US)
        self.chance = random.Random(seed)
        self.per_us = PER_S / S
        self.at = self.serving = 0  # of the log: applied; and that many with the batch it is in
        self.free_us = 0.0
        self.stalled = False
        self.late_us = 0
        self.heard_us = {}  # how late each other node was
        self.stays = []

    def behind_us(self):
        return max(0, max(self.heard_us.values(), default=0) - self.late_us)

    def offer(self):
        if self.gate.offer(1, 0, self.nodes.now_us, self.behind_us()):
            self.nodes.log.append((self, self.nodes.now_us))

    def serve(self):
        now_us, log = self.nodes.now_us, self.nodes.log
        if self.stalled or now_us < self.free_us:
            return
        since_us = float(now_us)
        if self.serving > self.at:
            since_us = max(self.free_us, since_us - 1 * MS)
            done = log[self.at : self.serving]
            self.at = self.serving
            self.late_us = now_us - done[-1][1]
            if own := [came for node, came in done if node is self]:
                self.gate.left(len(own), now_us - own[-1], now_us)
                self.stays += [(came, now_us - came) for came in own]
        else:
            self.late_us = 0
        if len(log) > self.at:
            self.serving = min(len(log), self.at + int(self.per_us * BATCH_US))
            took_us = max(1 * MS, (self.serving - self.at) / self.per_us)
            self.free_us = since_us + took_us * self.chance.uniform(0.7, 1.3)

    def p99_us(self, since_us):
        stays = sorted(stay for came, stay in self.stays if came >= since_us)
        assert len(stays) > 100
        return stays[int(len(stays) * 0.99)]


class Nodes:
    def __init__(self, seed, *, tell=True):
        self.log, self.now_us, self.tell = [], 1 * S, tell
        self.nodes = [Node(self, 10 * seed + number) for number in range(3)]
        self.chance = random.Random(seed)

    def beat(self):
        for number, node in enumerate(self.nodes):
            if (self.now_us + number * 37 * MS) % HEARTBEAT_US == 0:
                late_us = node.late_us if node.gate.window and node.late_us <= ILL_US else 0
                for other in self.nodes:
                    if other is not node:
                        other.heard_us[node] = late_us

    def run(self, seconds, times):
        """Offers so many times of what they can apply, a third at each."""
        until = self.now_us + int(seconds * S)
        while self.now_us < until:
            self.now_us += 1 * MS
            if self.tell:
                self.beat()
            for node in self.nodes:
                node.serve()
                wanted = PER_S * times / 3 / 1_000 * self.chance.uniform(0.5, 1.5)
                for _ in range(int(wanted + self.chance.random())):
                    node.offer()


def overloaded(seed, pause_ms, **how):
    """All stand under five times overload, then one stands still for a moment."""
    made = Nodes(seed, **how)
    made.run(2, 0.5)
    made.run(4, 5)
    late = made.nodes[0]
    late.stalled = True
    made.run(pause_ms / 1_000, 5)
    late.stalled = False
    ended_us, applied = made.now_us, late.at
    made.run(10, 5)
    return late, ended_us, late.at - applied


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("pause_ms", "after_s"), [(50, 1), (150, 1), (400, 5)])
def test_a_node_that_is_late_for_once_catches_up_under_overload(pause_ms, after_s, seed):
    late, ended_us, applied = overloaded(seed, pause_ms)
    assert late.p99_us(ended_us + after_s * S) < 2 * BOUND_US
    assert applied > 0.85 * 10 * PER_S


@pytest.mark.parametrize("seed", range(3))
def test_nodes_without_any_pause_have_their_share_under_overload(seed):
    """Batches take up to a third more or less than they should: without it one is late for long,
    and its callers have next to nothing."""
    late, ended_us, _ = overloaded(seed, 0)
    for node in late.nodes.nodes:
        assert node.p99_us(ended_us + 1 * S) < 2 * BOUND_US
        assert sum(came > ended_us for came, _ in node.stays) > 10 * PER_S / 3 / 2


def slower(seed, share):
    """One can apply so much of what the others can; since when it is looked at, and what each
    node applied in the twenty seconds from then on, as a share."""
    made = Nodes(seed)
    made.nodes[0].per_us *= share
    made.run(2, 0.3)
    made.run(10, 5)
    since_us, before = made.now_us, [node.at for node in made.nodes]
    made.run(20, 5)
    done = zip(made.nodes, before, strict=True)
    return made.nodes, since_us, [(node.at - at) / (20 * PER_S) for node, at in done]


@pytest.mark.parametrize("seed", range(3))
def test_a_node_that_is_a_little_slower_holds_the_others_to_its_pace(seed):
    nodes, since_us, applied = slower(seed, 0.95)
    assert all(node.p99_us(since_us) < 2 * BOUND_US for node in nodes)
    assert all(share > 0.93 for share in applied)


@pytest.mark.parametrize("share", [0.4, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_a_node_that_is_much_slower_is_left_to_itself(seed, share):
    """The few that are always let in are more than it can do. It is soon later than a second."""
    nodes, since_us, applied = slower(seed, share)
    assert all(node.p99_us(since_us) < 2 * BOUND_US for node in nodes[1:])
    assert all(share > 0.95 for share in applied[1:])
