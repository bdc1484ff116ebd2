"""The gate, alone, on a queue whose time is counted and not waited for.

A station serves values in order, `per_s` of them a second, in batches as a node does it: everything
that is there when a batch begins, up to so many, leaves when it ends. Each batch takes `base_us` at
least, as a sync does. Nothing here depends on the clock of the machine.
"""

import heapq
import random

import pytest

from phx._core.gate import GateDoor

MS = 1_000
S = 1_000_000
TARGET_US = 20 * MS
STEP_US = 1_000


class Station:
    """Attributes: stays: (when, how long) of every value that left; refused: when, and how many."""

    def __init__(self, per_s, *, target_us=TARGET_US, base_us=1 * MS, batch_max=1 << 30, seed=1):
        self.gate = GateDoor(target_us)
        self.chance = random.Random(seed)
        self.per_us = per_s / S
        self.base_us = base_us
        self.batch_max = batch_max
        self.now_us = 1 * S
        self.queue = []  # when each came
        self.serving = []
        self.free_us = 0.0
        self.stalled = False
        self.stays, self.refused, self.offered = [], [], 0
        self.wanting = 0  # of a closed loop: callers that want to propose
        self.again = []  # (when, how many): callers that were turned away
        self.closed = False
        self.call = 1  # values per call

    def offer(self, n):
        self.offered += n
        if self.gate.offer(self.now_us, n):
            self.queue += [self.now_us] * n
            return True
        self.refused.append((self.now_us, n))
        return False

    def serve(self):
        if self.serving and self.now_us >= self.free_us and not self.stalled:
            left, self.serving = self.serving, []
            self.gate.left(len(left), self.now_us - left[-1])
            self.stays += [(self.now_us, self.now_us - one) for one in left]
            if self.closed:
                self.wanting += len(left)
        if not self.serving and self.queue and not self.stalled:
            n = min(len(self.queue), self.batch_max, max(1, int(self.per_us * 8 * MS)))
            n = max(n, min(len(self.queue), int(self.per_us * self.base_us)))
            self.serving, self.queue = self.queue[:n], self.queue[n:]
            noise = self.chance.uniform(0.7, 1.3)
            self.free_us = self.now_us + max(self.base_us, n / self.per_us) * noise

    def run(self, seconds, per_s=0.0):
        """Open loop at `per_s`, and whatever callers of a closed loop want."""
        until, due = self.now_us + seconds * S, 0.0
        while self.now_us < until:
            self.now_us += STEP_US
            self.serve()
            due += per_s / S * STEP_US * self.chance.uniform(0.5, 1.5)
            while due >= self.call:
                due -= self.call
                self.offer(self.call)
            while self.again and self.again[0][0] <= self.now_us:
                self.wanting += heapq.heappop(self.again)[1]
            while self.wanting >= self.call:
                self.wanting -= self.call
                if not self.offer(self.call):
                    heapq.heappush(self.again, (self.now_us + self.gate.retry_us(), self.call))

    def callers(self, n, call=1):
        """So many values in flight from now on, in calls of `call`."""
        self.closed, self.call = True, call
        self.wanting += n

    def p99_us(self, since_us=0):
        stays = sorted(stay for at, stay in self.stays if at >= since_us)
        return stays[int(len(stays) * 0.99)]

    def share_refused(self):
        return sum(n for _, n in self.refused) / max(self.offered, 1)


def warm(per_s=4_000, **how):
    """A station that has had a normal load for a few seconds."""
    made = Station(per_s, **how)
    made.run(3, per_s * 0.6)
    assert not made.refused
    return made


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.9])
def test_nothing_is_refused_within_capacity(share, seed):
    made = Station(4_000, seed=seed)
    made.run(20, 4_000 * share)
    assert not made.refused


@pytest.mark.parametrize("seed", range(3))
def test_hardly_anything_is_refused_at_the_edge_of_capacity(seed):
    made = Station(4_000, seed=seed)
    made.run(20, 4_000 * 0.97)
    assert made.share_refused() < 0.02


@pytest.mark.parametrize("sync_ms", [10, 30, 100])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.9])
def test_nothing_is_refused_on_a_slow_disk(sync_ms, share):
    made = Station(4_000, base_us=sync_ms * MS)
    made.run(20, 4_000 * share)
    assert not made.refused
    made.run(5, 4_000 * share / 10)
    made.run(5, 4_000 * share)
    assert not made.refused


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("call", [1, 50, 500, 5000])
@pytest.mark.parametrize("base_ms", [1, 100])
def test_nothing_is_refused_of_ten_thousand_in_flight(call, cold, base_ms):
    made = Station(5_000, base_us=base_ms * MS)
    if not cold:
        made.run(3, 3_000)
    made.callers(10_000, call)
    made.run(20)
    assert not made.refused
    assert len(made.stays) > 20 * 5_000 * 0.6


def test_callers_that_join_one_after_another_are_let_in():
    made = Station(5_000)
    for _ in range(8):
        made.callers(200)
        made.run(2)
    assert not made.refused


def test_bursts_that_leave_before_the_next_are_let_in():
    made = warm()
    for _ in range(20):
        made.offer(1_000)  # a quarter of a second of work
        made.run(0.5, 400)
    assert not made.refused


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_an_election_is_no_overload(share):
    made = warm()
    for _ in range(3):
        made.stalled = True
        made.run(2, 4_000 * share)
        made.stalled = False
        made.run(12, 4_000 * share)
    assert not made.refused


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("base_ms", [1, 30])
@pytest.mark.parametrize("times", [1.3, 2, 5, 10])
def test_under_overload_stays_are_bounded_and_capacity_is_used(times, base_ms, seed):
    made = warm(base_us=base_ms * MS, seed=seed)
    normal_us = made.p99_us(since_us=made.now_us - 2 * S)
    began_us, before, offered = made.now_us, len(made.stays), made.offered
    made.run(60, 4_000 * times)
    # Until it is found out about a tenth of a second's offer is let in, or four syncs'.
    found_us = 0 if times <= 5 and base_ms == 1 else 3 * S
    assert made.p99_us(since_us=began_us + found_us) < 3 * max(normal_us, TARGET_US)
    assert len(made.stays) - before > 0.9 * 60 * 4_000
    refused = sum(n for _, n in made.refused) / (made.offered - offered)
    assert refused == pytest.approx(1 - 1 / times, abs=0.06)
    # And when it is over nothing is refused any more.
    made.run(2, 4_000 * 0.8)
    count = len(made.refused)
    made.run(20, 4_000 * 0.8)
    assert len(made.refused) == count


def test_a_little_too_much_is_found_too():
    made = warm()
    made.run(60, 4_000 * 1.1)
    assert made.refused
    assert max(stay for _, stay in made.stays) < 400 * MS


@pytest.mark.parametrize("base_ms", [1, 100])
def test_overload_from_the_first_value_on(base_ms):
    made = Station(4_000, base_us=base_ms * MS)
    made.run(30, 20_000)
    assert made.refused
    late = made.p99_us(since_us=made.now_us - 15 * S)
    assert late < 3 * max(TARGET_US, 2 * base_ms * MS)
    assert len(made.stays) > 0.85 * 30 * 4_000


def test_a_disk_that_becomes_slower_meanwhile_keeps_its_throughput():
    made = warm()
    made.run(5, 20_000)
    made.base_us = 60 * MS  # what is let in now would be too little to keep it busy
    before = len(made.stays)
    made.run(30, 20_000)
    assert len(made.stays) - before > 0.5 * 30 * 4_000


def test_half_the_capacity_is_noticed():
    made = warm()
    made.run(5, 20_000)
    made.per_us /= 2
    made.run(5, 20_000)
    assert made.p99_us(since_us=made.now_us - 1 * S) < 10 * TARGET_US


def test_the_hint_is_within_its_range():
    made = warm()
    assert 1 * MS <= made.gate.retry_us() <= 1 * S
    made.run(1, 20_000)
    assert made.gate.limit
    assert TARGET_US <= made.gate.retry_us() <= 1 * S


def test_a_queue_that_emptied_is_no_overload():
    made = warm()
    made.run(1, 20_000)
    assert made.gate.limit
    made.run(1)
    assert made.gate.waiting == 0
    assert made.gate.offer(made.now_us)
    assert not made.gate.limit


def test_a_gate_without_traffic_is_open():
    gate = GateDoor(TARGET_US)
    assert gate.offer(1, 1 << 20)
    assert gate.offer(3600 * S, 1 << 20)
    assert not gate.limit
