"""The gate, alone, on a queue whose time is counted and not waited for.

A station serves values in order, `per_s` of them a second, in batches as a node does it: what is
there when a batch begins leaves when it ends. Each takes `base_us` at least, as a sync does, and up
to a third more or less than it should. Nothing here depends on the clock of the machine.
"""

import random
from bisect import bisect_left

import pytest

from phx._core.gate import GateDoor

MS = 1_000
S = 1_000_000
PER_S = 4_000
BATCH_US = 8 * MS  # of work at most, unless a sync takes longer
FLOOR = 4


class Station:
    """Attributes: stays: (when it came, how long it stayed) of each value that left."""

    def __init__(self, bound_us, per_s=PER_S, *, base_us=1 * MS, nbytes=0, seed=1):
        self.gate = GateDoor(bound_us)
        self.chance = random.Random(seed)
        self.per_us = per_s / S
        self.base_us = base_us
        self.nbytes = nbytes
        self.now_us = 1 * S
        self.queue, self.serving = [], []  # when each came
        self.free_us = 0.0
        self.stalled = False
        self.stays, self.offered, self.refused = [], 0, 0
        self.callers = 0  # that wait for their values, and propose again at once
        self.idle = 0  # of them
        self.most = 0  # that ever waited

    def offer(self, n=1):
        self.offered += n
        if not self.gate.offer(n, n * self.nbytes, self.now_us):
            self.refused += n
            return False
        self.queue += [(self.now_us, self.nbytes)] * n
        self.most = max(self.most, self.gate.waiting)
        return True

    def serve(self):
        if self.stalled or self.now_us < self.free_us:
            return
        since_us = float(self.now_us)
        if self.serving:
            since_us = max(self.free_us, since_us - 1 * MS)  # no time is lost between two batches
            left, self.serving = self.serving, []
            nbytes = sum(one for _, one in left)
            self.gate.left(len(left), self.now_us - left[-1][0], self.now_us, nbytes)
            self.stays += [(came, self.now_us - came) for came, _ in left]
            self.idle += len(left) if self.callers else 0
        if self.queue:
            n = max(1, int(self.per_us * max(BATCH_US, self.base_us)))
            self.serving, self.queue = self.queue[:n], self.queue[n:]
            took_us = max(self.base_us, len(self.serving) / self.per_us)
            self.free_us = since_us + took_us * self.chance.uniform(0.7, 1.3)

    def run(self, seconds, per_s=0.0):
        """Offers so many a second, and whatever the callers want that wait."""
        until, due = self.now_us + seconds * S, 0.0
        while self.now_us < until:
            self.now_us += 1 * MS
            self.serve()
            due += per_s / 1_000 * self.chance.uniform(0.5, 1.5)
            while due >= 1:
                due -= 1
                self.offer()
            if self.idle and self.offer(self.idle):
                self.idle = 0

    def stand_still(self, seconds, per_s):
        self.stalled = True
        self.run(seconds, per_s)
        self.stalled = False

    def p99_us(self, since_us):
        """Of those that came since then."""
        stays = sorted(stay for _, stay in self.stays[bisect_left(self.stays, (since_us, 0)) :])
        return stays[int(len(stays) * 0.99)]

    def left_since(self, since_us):
        return len(self.stays) - bisect_left(self.stays, (since_us, 0))


def warm(bound_us, **how):
    made = Station(bound_us, **how)
    made.run(2, PER_S * 0.5)
    assert not made.refused
    return made


# --- whom it lets in


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.9])
@pytest.mark.parametrize("bound_ms", [50, 1_000])
def test_nothing_is_refused_within_capacity(share, bound_ms, seed):
    made = Station(bound_ms * MS, seed=seed)
    made.run(10, PER_S * share)
    assert not made.refused


@pytest.mark.parametrize("sync_ms", [10, 30, 100])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.9])
def test_nothing_is_refused_on_a_slow_disk_if_the_bound_allows_for_it(sync_ms, share):
    made = Station(4 * sync_ms * MS, base_us=sync_ms * MS)
    made.run(10, PER_S * share)
    made.run(5, PER_S * share / 10)
    made.run(5, PER_S * share)
    assert not made.refused


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_bursts_that_are_done_within_the_bound_are_let_in(share):
    made = Station(200 * MS)
    for _ in range(20):
        for _ in range(400):  # a tenth of a second of work
            made.offer()
        made.run(0.5, PER_S * share)
    assert not made.refused


@pytest.mark.parametrize(("share", "seconds"), [(0.3, 2), (0.3, 0.9), (0.8, 0.9)])
def test_nothing_is_refused_for_an_election_whose_backlog_is_done_within_the_bound(share, seconds):
    """Also if the election itself took longer than that."""
    made = warm(1 * S)
    for _ in range(3):
        made.stand_still(seconds, PER_S * share)
        made.run(8, PER_S * share)
    assert not made.refused


def test_after_a_long_election_is_refused_what_would_wait_for_longer_and_no_more():
    made = warm(200 * MS)
    made.stand_still(2, PER_S * 0.6)  # more than a second of work
    ended_us = made.now_us
    made.run(3, PER_S * 0.6)
    assert made.refused
    # Each of those let in once it is known found as much before it as leaves within the bound.
    assert made.p99_us(ended_us + 200 * MS) < 1.5 * 200 * MS
    made.run(3, PER_S * 0.6)
    refused = made.refused
    made.run(20, PER_S * 0.6)
    assert made.refused == refused


@pytest.mark.parametrize("callers", [1, 10, 200, 1_500])
@pytest.mark.parametrize("base_ms", [1, 50])
def test_callers_that_wait_are_let_in_if_the_bound_allows_for_so_many(callers, base_ms):
    made = Station(600 * MS, base_us=base_ms * MS)
    made.callers = made.idle = callers
    made.run(10)
    assert not made.refused


@pytest.mark.parametrize("bound_ms", [5, 50])
def test_a_few_are_always_let_in(bound_ms):
    """And what a few wait is not to be bounded: there is nobody before them."""
    made = Station(bound_ms * MS, per_s=20)
    made.callers = made.idle = FLOOR
    made.run(60)
    assert not made.refused


def test_a_gate_without_traffic_is_open():
    gate = GateDoor(5 * MS)
    assert gate.offer(1 << 20)
    assert gate.offer(1 << 20)


# --- and whom not


@pytest.mark.parametrize(("base_ms", "bound_ms"), [(1, 20), (1, 200), (30, 200), (1, 1_000)])
@pytest.mark.parametrize("times", [1.3, 2, 5, 10])
def test_under_overload_stays_are_bounded_and_capacity_is_used(times, base_ms, bound_ms):
    made = warm(bound_ms * MS, base_us=base_ms * MS)
    began_us, before, offered = made.now_us, len(made.stays), made.offered
    made.run(10, PER_S * times)
    # What came before it was known, and waits before the others, takes its time.
    found_us = began_us + (bound_ms / 2 + 150) * times * MS
    assert made.p99_us(found_us) < 1.5 * bound_ms * MS
    assert len(made.stays) - before > 0.9 * 10 * PER_S
    assert made.refused / (made.offered - offered) < 1 - 1 / times + 0.05
    # And when it is over nothing is refused any more.
    made.run(1 + bound_ms / 1_000, PER_S * 0.7)
    count = made.refused
    made.run(5, PER_S * 0.7)
    assert made.refused == count


@pytest.mark.parametrize("bound_ms", [20, 200])
def test_a_minute_of_five_times_overload_its_beginning_included(bound_ms):
    made = warm(bound_ms * MS)
    began_us = made.now_us
    made.run(60, PER_S * 5)
    assert made.p99_us(began_us) < 2 * bound_ms * MS


def test_a_little_too_much_is_found_too():
    made = warm(100 * MS)
    made.run(60, PER_S * 1.1)
    assert made.refused
    assert max(stay for _, stay in made.stays) < 2 * 100 * MS


def test_overload_from_the_first_value_on():
    made = Station(100 * MS)
    made.run(20, PER_S * 5)
    assert made.p99_us(10 * S) < 1.5 * 100 * MS
    assert len(made.stays) > 0.9 * 20 * PER_S


@pytest.mark.parametrize("part", [0.5, 0.1])
def test_capacity_that_falls_meanwhile_is_noticed(part):
    made = warm(100 * MS)
    made.run(5, PER_S * 5)
    made.per_us *= part
    made.run(15, PER_S * 5)
    assert made.p99_us(made.now_us - 3 * S) < 2 * 100 * MS


def test_a_disk_that_is_slower_than_the_bound_meanwhile_leaves_a_few_and_comes_back():
    """No value can be had within the bound then; it says that they are not to be let in."""
    made = warm(100 * MS)
    made.run(5, PER_S * 5)
    made.base_us = 250 * MS
    began_us = made.now_us
    made.run(30, PER_S * 5)
    assert made.left_since(began_us) > 30 * FLOOR
    made.base_us = 1 * MS
    made.run(2, PER_S * 5)
    began_us = made.now_us
    made.run(5, PER_S * 5)
    assert made.left_since(began_us) > 0.8 * 5 * PER_S


@pytest.mark.parametrize("sync_ms", [30, 50, 100, 300])
def test_few_are_let_in_also_when_those_few_have_left(sync_ms):
    """The bound is below what any value takes. When the four that may wait have left nobody waits
    for a moment; thousands were let in then, before the next left."""
    made = Station(20 * MS, base_us=sync_ms * MS)
    made.run(2, PER_S * 5)
    made.run(20)  # what was let in before anything was known leaves
    assert made.gate.waiting == 0
    made.run(20, PER_S * 5)
    began_us, made.most = made.now_us, 0
    made.run(20, PER_S * 5)
    assert made.gate.window == made.most == FLOOR
    assert made.left_since(began_us) >= FLOOR * 15 * S / (sync_ms * MS)
    assert made.p99_us(began_us) < 1.5 * sync_ms * MS


def test_what_waits_does_not_grow_while_nothing_leaves_under_overload():
    made = warm(100 * MS)
    made.run(5, PER_S * 5)
    made.most = 0
    made.stand_still(3, PER_S * 5)
    assert made.most < 2 * PER_S * 100 / 1_000
    made.run(5, PER_S * 5)
    assert made.p99_us(made.now_us - 3 * S) < 1.5 * 100 * MS


def test_callers_that_wait_are_too_many_for_the_bound():
    made = Station(50 * MS)
    for callers in (200, 400, 800):
        made.idle += callers - made.callers
        made.callers = callers
        made.run(5)
    assert made.refused


def test_large_values_are_bounded_by_their_bytes():
    """How long a thousand small ones take says nothing of a thousand large ones."""
    made = warm(100 * MS, nbytes=100)
    made.run(5, PER_S * 5)
    made.run(0.05)  # half of what may wait leaves
    before = made.gate.waiting
    assert made.gate.window - before > 100
    made.nbytes = 4_000
    while made.offer():
        pass
    assert (made.gate.waiting - before) * 4_000 < made.gate.window_bytes
    assert made.gate.waiting < made.gate.window


def test_a_queue_that_emptied_is_no_overload():
    made = warm(20 * MS)
    made.run(1, PER_S * 5)
    assert made.gate.window
    assert made.gate.rate_per_s == pytest.approx(PER_S, rel=0.3)
    burst = 10 * made.gate.window
    made.run(1)
    assert made.gate.waiting == 0
    assert made.offer(burst)
    assert made.offer(burst)
    assert made.gate.window == 0
