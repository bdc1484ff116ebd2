"""The applier, with a scripted driver in the place of the native one."""

import logging
import time

import pytest

from phx._core.batch import pack_body, pack_noop
from phx._core.delivery import Sessions
from phx._core.waiters import IN_FLIGHT_MAX, Result, Waiters
from phx.applier import EVENT_BELOW, Applier, GroupState
from phx.errors import (
    DeletedUnknown,
    GroupDeleted,
    GroupStopped,
    NodeFailed,
    NodeFailedUnknown,
    NoQuorum,
    NotApplied,
    Overloaded,
    PartlyDone,
    StoppedUnknown,
    TimedOut,
    TimedOutUnknown,
    UnknownMachine,
)
from phx.machine import StateMachine
from phx.types import Leader

ME = 1
AGREE = 4096  # a batch ends at its multiples


class Script:
    """Stands in for the driver: what it delivers is put in by the test."""

    def __init__(self, groups):
        self.sessions = Sessions(ME, groups)
        self.sessions.incarnation = 1
        self.ready = []
        self.due = []
        self.lines = []
        self.applied_at = []
        self.stopped = []
        self.takes = 0

    def deliver(self, group, *bodies):
        first = self.sessions.next_instance(group)[0]
        self.ready += self.sessions.offer(group, first, bodies)

    def clear_wake(self):
        pass

    def take(self, bytes_max):
        self.takes += 1
        ready, self.ready = self.ready, []
        return ready

    def events(self):
        due, self.due = self.due, []
        return due

    def messages(self):
        lines, self.lines = self.lines, []
        return lines

    def applied(self, group, instance):
        self.applied_at.append((group, instance))

    def stop_group(self, group):
        self.stopped.append(group)


class Caller:
    def __init__(self):
        self.result = self.error = None

    def set_result(self, value):
        assert not self.done()
        self.result = value

    def set_exception(self, error):
        assert not self.done()
        self.error = error

    def done(self):
        return self.result is not None or self.error is not None


class Recorder(StateMachine):
    """Returns what it was given, upper case; raises for b"raise"."""

    def __init__(self):
        self.seen = []

    def apply(self, entry):
        if entry.value == b"raise":
            raise ZeroDivisionError("asked to")
        self.seen.append((entry.instance, entry.value))
        return entry.value.upper()


class BatchRecorder(Recorder):
    def __init__(self):
        super().__init__()
        self.sizes = []

    def apply_batch(self, entries):
        self.sizes.append(len(entries))
        return [self.apply(entry) for entry in entries]


class Slow(Recorder):
    def __init__(self, pause):
        super().__init__()
        self.pause = pause

    def apply(self, entry):
        until = time.perf_counter() + self.pause
        while time.perf_counter() < until:
            pass
        return super().apply(entry)


class World:
    def __init__(self, machines):
        self.driver = Script(machines)
        self.waiters = Waiters(
            list(machines),
            group_values_max=IN_FLIGHT_MAX,
            group_bytes_max=1 << 30,
            node_values_max=1 << 20,
            node_bytes_max=1 << 30,
            partly=PartlyDone,
        )
        self.states = {group: GroupState(group, found) for group, found in machines.items()}
        self.applier = Applier(self.driver, self.waiters, self.states)

    def propose(self, group, value, machine=0):
        """A caller, and the run in which its value is to be delivered."""
        caller = Caller()
        sequence = self.waiters.add(group, caller, len(value))
        return caller, (ME, 1, 1, sequence, [(machine, value)])

    def run(self):
        while self.applier.turn():
            pass


def values_of(*values, machine=0, node=2, first=1):
    return (node, 1, 1, first, [(machine, value) for value in values])


@pytest.mark.parametrize("kind", [Recorder, BatchRecorder])
def test_values_are_applied_in_order_and_callers_get_results(kind):
    world = World({5: {0: kind()}})
    caller, run = world.propose(5, b"mine")
    world.driver.deliver(5, pack_body([values_of(b"a", b"b")]), pack_noop(1, 1))
    world.driver.deliver(5, pack_body([run, values_of(b"c", first=3)]))
    world.run()
    assert world.states[5].machines[0].seen == [(1, b"a"), (1, b"b"), (3, b"mine"), (3, b"c")]
    assert caller.result == Result(3, b"MINE")
    assert world.driver.applied_at == [(5, 2), (5, 3)]
    assert world.states[5].applied == 3


@pytest.mark.parametrize("kind", [Recorder, BatchRecorder])
def test_a_take_that_is_cut_at_an_agreed_instance_is_applied_in_order(kind):
    world = World({5: {0: kind()}})
    world.driver.deliver(5, *[pack_noop(1, 1)] * (AGREE - 1))
    caller, run = world.propose(5, b"mine")
    late, run_late = world.propose(5, b"late")
    bodies = [values_of(b"a"), values_of(b"b", first=2), run_late, values_of(b"c", first=3)]
    world.driver.deliver(5, pack_body([run, bodies[0]]), *(pack_body([b]) for b in bodies[1:]))
    world.run()
    assert [value for _, value in world.states[5].machines[0].seen] == [
        b"mine", b"a", b"b", b"late", b"c",
    ]  # fmt: skip
    assert (caller.result, late.result) == (Result(AGREE, b"MINE"), Result(AGREE + 2, b"LATE"))
    assert world.driver.applied_at == [(5, AGREE - 1), (5, AGREE), (5, AGREE + 3)]
    assert world.states[5].applied == AGREE + 3


def test_a_group_that_stops_in_one_batch_applies_nothing_of_the_next_one_of_the_same_take():
    world = World({5: {0: Recorder()}})
    world.driver.deliver(5, *[pack_noop(1, 1)] * (AGREE - 1))
    caller, run = world.propose(5, b"late")
    world.driver.deliver(5, pack_body([values_of(b"raise")]), pack_body([run]))
    assert len(world.driver.ready) == 3
    world.run()
    assert world.states[5].machines[0].seen == []
    assert world.states[5].applied == AGREE - 1
    assert world.states[5].stopped.instance == AGREE
    assert isinstance(caller.error, StoppedUnknown)
    assert world.driver.applied_at == [(5, AGREE - 1)]


def test_a_batch_goes_to_apply_batch_whole():
    world = World({5: {0: BatchRecorder()}})
    bodies = pack_body([values_of(b"a", b"b")]), pack_body([values_of(b"c", first=3)])
    world.driver.deliver(5, *bodies)
    world.run()
    assert world.states[5].machines[0].sizes == [3]


@pytest.mark.parametrize("kind", [Recorder, BatchRecorder])
def test_several_machines_share_a_log_in_its_order(kind):
    first, second = kind(), kind()
    world = World({5: {0: first, 7: second}})
    body = pack_body([(2, 1, 1, 1, [(0, b"a"), (7, b"b"), (7, b"c"), (0, b"d")])])
    world.driver.deliver(5, body)
    world.run()
    assert [value for _, value in first.seen] == [b"a", b"d"]
    assert [value for _, value in second.seen] == [b"b", b"c"]


def test_an_unknown_machine_is_an_error_for_its_caller_and_nothing_else():
    world = World({5: {0: Recorder()}})
    lost, run = world.propose(5, b"x", machine=9)
    kept, run_kept = world.propose(5, b"y")
    world.driver.deliver(5, pack_body([run, run_kept, values_of(b"z", machine=9)]))
    world.run()
    assert isinstance(lost.error, UnknownMachine)
    assert kept.result == Result(1, b"Y")
    assert world.states[5].machines[0].seen == [(1, b"y")]
    assert world.states[5].applied == 1
    assert not world.driver.stopped


@pytest.mark.parametrize("kind", [Recorder, BatchRecorder])
def test_a_machine_that_raises_stops_its_group_and_nothing_else(kind, caplog):
    world = World({5: {0: kind()}, 6: {0: kind()}})
    before, run_before = world.propose(5, b"before")
    guilty, run_guilty = world.propose(5, b"raise")
    after, run_after = world.propose(5, b"after")
    waiting, _ = world.propose(5, b"waiting")
    other, run_other = world.propose(6, b"other")
    world.driver.deliver(5, *[pack_body([run]) for run in (run_before, run_guilty, run_after)])
    world.driver.deliver(6, pack_body([run_other]))
    world.driver.deliver(5, pack_body([values_of(b"later")]))
    world.run()
    stopped = world.states[5].stopped
    assert (stopped.group, stopped.machine) == (5, 0)
    assert isinstance(stopped.__cause__, ZeroDivisionError)
    assert "ZeroDivisionError: asked to" in str(stopped)
    assert world.driver.stopped == [5]
    assert other.result == Result(1, b"OTHER")
    assert world.driver.applied_at == [(6, 1)]
    for caller in (guilty, after, waiting):
        assert isinstance(caller.error, StoppedUnknown)
        assert isinstance(caller.error.__cause__, GroupStopped)
    if kind is Recorder:
        # Value by value it is known which one failed, and what came before is acknowledged.
        assert stopped.instance == 2
        assert before.result == Result(1, b"BEFORE")
        assert world.states[5].machines[0].seen == [(1, b"before")]
    else:
        assert stopped.instance == 1
        assert "in a batch of instances 1 to 3" in str(stopped)
        assert isinstance(before.error, StoppedUnknown)
    assert "group 5 stopped at instance" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_results_that_do_not_match_stop_the_group():
    class Short(Recorder):
        def apply_batch(self, entries):
            return [None]

    world = World({5: {0: Short()}})
    world.driver.deliver(5, pack_body([values_of(b"a", b"b")]))
    world.run()
    assert "1 results for 2 entries" in str(world.states[5].stopped)


def test_an_interrupt_inside_apply_stops_the_group_and_goes_on_up():
    class Interrupted(Recorder):
        def apply(self, entry):
            raise KeyboardInterrupt

    world = World({5: {0: Interrupted()}})
    caller, run = world.propose(5, b"x")
    world.driver.deliver(5, pack_body([run]))
    with pytest.raises(KeyboardInterrupt):
        world.applier.turn()
    assert world.states[5].stopped is not None
    assert isinstance(caller.error, StoppedUnknown)
    assert not world.applier.turn()


def test_a_log_that_is_unsound_stops_the_group_after_what_was_sound():
    world = World({5: {0: Recorder()}})
    world.driver.deliver(5, pack_body([values_of(b"a")]), b"not a body")
    world.run()
    stopped = world.states[5].stopped
    assert (stopped.instance, stopped.machine) == (2, None)
    assert world.states[5].machines[0].seen == [(1, b"a")]
    assert world.driver.applied_at == [(5, 1)]


def test_own_values_that_are_not_applied_resolve_their_callers():
    world = World({5: {0: Recorder()}})
    done, run = world.propose(5, b"a")
    stale, (*_, value) = world.propose(5, b"b")
    late = (ME, 1, 3, 2, value)
    world.driver.deliver(5, pack_body([run]), pack_body([late]))
    world.run()
    assert done.result == Result(1, b"A")
    assert isinstance(stale.error, NotApplied)
    assert stale.error.outcome == "unknown"


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        (1, TimedOut),
        (2, TimedOutUnknown),
        (3, Overloaded),
        (4, NoQuorum),
        (5, GroupStopped),
        (6, StoppedUnknown),
        (7, NoQuorum),
        (8, NodeFailed),
        (9, NodeFailedUnknown),
        (10, GroupDeleted),
        (11, DeletedUnknown),
        (99, TimedOutUnknown),
    ],
)
def test_a_verdict_of_the_engine_becomes_its_error(verdict, kind):
    world = World({5: {0: Recorder()}})
    callers = [world.propose(5, b"x")[0] for _ in range(4)]
    world.driver.due = [(1, verdict, 5, 2, 2, 0)]
    world.run()
    assert [type(caller.error) for caller in callers] == [type(None), kind, kind, type(None)]
    assert callers[1].error.outcome == kind.outcome


def test_what_the_native_side_says_is_logged(caplog):
    world = World({5: {0: Recorder()}})
    world.driver.lines = [(logging.WARNING, "peer 3: 100 % wrong"), (logging.INFO, "hello")]
    world.driver.due = [
        (2, 0, 5, 12, 0, 3),
        (3, 4, 5, 0, 0, 0),
        (4, 0, 2, 0, 0, 0),
        (64, 0, 0, 0, 0, 0),
    ]
    with caplog.at_level(logging.INFO, "phx"):
        world.run()
    assert world.states[5].led == Leader(3, 12)
    assert world.applier.poisoned
    expected = "peer 3: 100 % wrong", "hello", "invariant 4", "node 2 is refused", "votes no more"
    assert all(text in caplog.text for text in expected)


def test_a_slow_machine_is_interrupted_between_values():
    world = World({5: {0: Slow(0.001)}, 6: {0: Recorder()}})
    world.driver.deliver(5, pack_body([values_of(*[b"x"] * 100)]))
    world.driver.deliver(6, pack_body([values_of(b"y")]))
    slices = []
    more = True
    while more:
        began = time.perf_counter()
        more = world.applier.turn()
        slices.append(time.perf_counter() - began)
    assert len(world.states[5].machines[0].seen) == 100
    assert world.states[6].machines[0].seen == [(1, b"y")]
    # The first slice does not know the machine yet; those after it do.
    assert sorted(slices)[len(slices) // 2] < 0.02
    assert len(slices) > 10
    assert world.driver.applied_at == [(5, 1), (6, 1)]


def test_chunks_of_a_batch_machine_follow_its_speed():
    world = World({5: {0: BatchRecorder()}})
    for first in range(1, 100_000, 20_000):
        world.driver.deliver(5, pack_body([values_of(*[b"x"] * 20_000, first=first)]))
    world.run()
    sizes = world.states[5].machines[0].sizes
    assert sum(sizes) == 100_000
    assert 64 < max(sizes) < 20_000


def test_nothing_to_do_costs_one_look():
    world = World({5: {0: Recorder()}})
    assert not world.applier.turn()
    assert world.driver.takes == 1


def test_the_digest_of_what_was_applied_is_the_tables():
    world = World({5: {0: Recorder()}})
    world.driver.deliver(5, pack_body([values_of(b"a")]), pack_noop(1, 1))
    world.run()
    state = world.states[5]
    assert (state.digest_at, state.digest) == (2, world.driver.sessions.next_instance(5)[1])


def test_an_event_that_cannot_be_seen_to_takes_no_other_with_it(caplog):
    world = World({0: {0: Recorder()}})
    applier, driver = world.applier, world.driver
    below, handed = [], []

    def on_below(group, leader, floor):
        below.append(floor)
        if floor == 1:
            raise RuntimeError("can't start new thread")

    applier.on_below, applier.on_handed = on_below, handed.append
    driver.handed = lambda: [(7, 2, b"")]
    driver.due = [(EVENT_BELOW, 0, 0, floor, 0, 2) for floor in (1, 2)]
    applier.turn()
    assert below == [1, 2]
    assert handed == [[(7, 2, b"")]]
    assert "can't start new thread" in caplog.text


def test_connections_that_cannot_be_taken_do_not_stop_the_turn(caplog):
    world = World({0: {0: Recorder()}})
    applier, driver = world.applier, world.driver

    def on_handed(found):
        raise RuntimeError("can't start new thread")

    applier.on_handed = on_handed
    driver.handed = lambda: [(7, 2, b"")]
    applier.turn()
    assert driver.takes == 1
