"""Digests of views, worked out a little at a time: what it may cost, and who is told."""

import threading
import time
from contextlib import contextmanager

import pytest

from phx.checkpoint.digests import state_of
from phx.machine import CopyView, StateMachine
from phx.machines import Counter, KeyValue
from phx.machines.kv import encode_set
from phx.node import view_digests
from phx.node.view_digests import Pace, ViewDigests
from phx.types import AGREED_EVERY, Entry

pytestmark = pytest.mark.usefixtures("no_leaks")


class Slow(StateMachine):
    """Its views count how many are open; their digest waits for `go`, resting."""

    digest_of_views = True

    def __init__(self):
        self.go = threading.Event()
        self.reached = threading.Event()
        self.open = 0

    def apply(self, entry):
        return None

    def freeze(self):
        self.open += 1
        return Held(self)


class Held:
    def __init__(self, machine):
        self.machine = machine

    def snapshot(self, writer):
        raise AssertionError("it is not written")

    def digest(self, rest):
        self.machine.reached.set()
        while not self.machine.go.wait(0.001):
            sum(range(20_000))  # (a rest is for what was worked)
            rest()
        return b"slow"

    def close(self):
        self.machine.open -= 1


@pytest.fixture
def often(monkeypatch):
    """Nothing that a freeze took is waited for."""
    monkeypatch.setattr(view_digests, "FROZEN_PART", 1e9)
    monkeypatch.setattr(view_digests, "FROZEN_PART_ALL", 1e9)


@contextmanager
def walking():
    made, told = ViewDigests(), []

    def begin(machine, number=1, group=7):
        machines = machine if isinstance(machine, dict) else {0: machine}
        return made.begin(group, number * AGREED_EVERY, machines, told.append)

    try:
        yield made, told, begin
    finally:
        made.end(10)
        assert not made.is_alive()


def until(holds):
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def filled(keys):
    machine = KeyValue()
    machine.apply_batch([Entry(value=encode_set(f"{key}", b"%d" % key)) for key in range(keys)])
    return machine


def test_a_state_is_what_it_was_when_it_was_frozen(often):
    class Cheap(KeyValue):
        digest_cheap = True

    cheap, machine, counter = Cheap(), filled(1000), Counter()
    cheap._items, cheap._version = dict(machine._items), machine._version
    before = state_of({0: cheap, 3: counter})
    with walking() as (made, told, begin):
        assert begin({0: machine, 3: counter})
        machine.apply(Entry(value=encode_set("later", b"")))
        counter.apply(Entry(value=b"1"))
        until(lambda: told)
        assert told == [before]
        assert made.counters["states_walked"] == 1
        assert made.counters["states_freeze_us_max"] > 0


def test_no_more_than_its_part_of_the_time_is_spent(often):
    with walking() as (made, told, begin):
        before_s = time.monotonic()
        begin(filled(4000))
        until(lambda: told)
        took_s = time.monotonic() - before_s
        assert took_s > made._worked_s / view_digests.BUSY_PART / 2
        assert made._worked_s < 0.25 * took_s


def test_views_that_wait_are_not_many_and_all_are_closed(often):
    machines = [Slow() for _ in range(view_digests.WAITING_MAX + 2)]
    with walking() as (_, told, begin):
        begun = [begin(machine, group=group) for group, machine in enumerate(machines)]
        assert begun == [True] * view_digests.WAITING_MAX + [False] * 2
        until(machines[0].reached.is_set)
        for machine in machines[:-1]:
            machine.go.set()
        until(lambda: len(told) == view_digests.WAITING_MAX)
        assert begin(machines[-1], group=99)  # there is room again
        until(machines[-1].reached.is_set)
    assert [machine.open for machine in machines] == [0] * len(machines)
    assert len(told) == view_digests.WAITING_MAX


def test_nobody_is_told_of_a_group_that_is_forgotten(often):
    one, other, third = Slow(), Slow(), Slow()
    with walking() as (made, told, begin):
        assert begin(one, group=1)
        assert begin(other, group=2)
        assert begin(third, group=3)
        until(one.reached.is_set)
        made.forget(1)
        made.forget(2)
        other.go.set()
        third.go.set()
        until(lambda: told)
        assert one.open == other.open == 0
        assert len(told) == 1


def test_what_a_view_raises_leaves_the_state_unknown_and_the_next_one_is_walked(often, caplog):
    class Blind(KeyValue):
        def freeze(self):
            class Bare:
                def close(self):
                    pass

            return Bare()

    class Wrong(KeyValue):
        def digest_slowly(self, rest):
            raise SystemExit

    with walking() as (_, told, begin):
        begin(Blind(), group=1)
        begin(Wrong(), group=2)
        begin(KeyValue(), group=3)
        until(lambda: len(told) == 3)
        assert told[:2] == [b"", b""]
        assert told[2]
    assert "Bare has no digest" in caplog.text


def test_a_machine_that_cannot_be_frozen_leaves_no_view_behind(often):
    class Nothing(Slow):
        def freeze(self):
            return None

    good = Slow()
    with walking() as (made, told, begin):
        with pytest.raises(TypeError, match="machine 1 has digest_of_views and gave no view"):
            begin({0: good, 1: Nothing()})
        assert good.open == 0
        assert made.ident is None
        assert told == []


def frozen_slowly(monkeypatch):
    """A clock that stands, a machine whose freeze moves it by 20 ms, and what would freeze it."""
    now = [1000.0]
    monkeypatch.setattr(view_digests.time, "monotonic", lambda: now[0])

    class Large(KeyValue):
        def freeze(self):
            now[0] += 0.02
            return super().freeze()

    made = ViewDigests()
    monkeypatch.setattr(made, "start", lambda: None)
    return now, Large, made


def test_a_large_state_is_frozen_for_a_thousandth_of_the_time(monkeypatch):
    now, Large, made = frozen_slowly(monkeypatch)
    walked = []
    for number in range(1, 200):  # one each 3 seconds
        if made.begin(7, number * AGREED_EVERY, {0: Large()}, lambda found: None):
            walked.append(number)
            made._line.clear()
        now[0] += 3
    assert walked[:3] == [1, 8, 16]
    assert walked[3:] == list(range(24, 200, 8))  # 20 ms in 24 seconds
    # They come a quarter of an hour apart: then there is time for each.
    walked = []
    for number in range(200, 212):
        now[0] += 1000
        if made.begin(7, number * AGREED_EVERY, {0: KeyValue()}, lambda found: None):
            walked.append(number)
            made._line.clear()
    assert walked == [200, 204, 206, 207, 208, 209, 210, 211]


def test_groups_share_what_freezing_may_take(monkeypatch):
    now, Large, made = frozen_slowly(monkeypatch)

    def begin(group):
        return made.begin(group, AGREED_EVERY, {0: Large()}, lambda found: None)

    assert begin(1)
    now[0] += 1.9
    assert not begin(2)
    assert made._paces[2].level == 0
    now[0] += 0.2
    assert begin(2)


def test_levels_that_differ_meet():
    """Whoever walks more often walks where others do."""
    for low in range(5):
        for high in range(low, 6):
            one, other = Pace(level=low), Pace(level=high)
            for number in range(1, 200):
                at = number * AGREED_EVERY
                assert one.says(at) or not other.says(at)


def test_a_walk_that_takes_longer_than_to_the_next_is_rarer(often):
    machine = Slow()
    with walking() as (made, told, begin):
        assert begin(machine, 1)
        for number in range(2, 5):
            made.missed(7, number * AGREED_EVERY)
        assert made._paces[7].level == 2  # 3 is not one at which it would have been
        machine.go.set()
        until(lambda: told)
        made.missed(8, AGREED_EVERY)  # a group that was forgotten
        assert 8 not in made._paces


def test_a_closed_one_begins_nothing(often):
    made = ViewDigests()
    made.end(1)
    assert not made.begin(7, AGREED_EVERY, {0: KeyValue()}, lambda found: None)
    assert made.ident is None


def test_a_view_of_a_copy_has_the_digest_of_its_machine():
    counter = Counter()
    counter.total = 7
    assert CopyView(counter).digest(lambda: None) == b"7"
