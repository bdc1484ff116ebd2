"""Durable machines under the applier, with a scripted driver: when they commit, what they get."""

import time

import pytest

from phx._core.batch import pack_body, pack_noop
from phx._core.delivery import Sessions
from phx._core.waiters import Result
from phx.errors import StoppedUnknown
from phx.machine import DurableMachine
from phx.node.commits import Commits
from tests.api.test_applier import AGREE, World, values_of

EVERY_US = 20_000
SOON_S = 5.0


class Kept(DurableMachine):
    """Its files are a list; `state` is (applied, values) of the last commit."""

    def __init__(self, pause_s=0.0):
        self.values = []
        self.state = (0, [])
        self.commits = []
        self.pause_s = pause_s
        self.closed = 0
        self.fails = None

    def apply(self, entry):
        time.sleep(self.pause_s)
        if entry.value == b"raise":
            raise ZeroDivisionError("asked to")
        self.values.append((entry.instance, entry.value))
        return entry.value.upper()

    def open(self, folder):
        return self.state[0]

    def commit(self, applied):
        assert not self.closed
        if self.fails is not None:
            raise self.fails
        self.commits.append(applied)
        self.state = (applied, list(self.values))

    def close(self):
        self.closed += 1

    def freeze(self):
        raise NotImplementedError


def world_of(machines, applied=0, every_us=EVERY_US):
    """Groups whose machines all hold what was applied up to the instance `applied`."""
    world = World(machines)
    world.applier.commits = Commits(every_us, world.applier.halt)
    for state in world.states.values():
        state.durable = {n: m for n, m in state.machines.items() if isinstance(m, DurableMachine)}
        state.committed = dict.fromkeys(state.durable, applied)
        state.skip = dict(state.committed) if applied else {}
    return world


def body(first, *values, machine=0):
    return pack_body([values_of(*values, first=first, machine=machine)])


def whole(machine):
    """The state that was committed is that of all instances up to its number."""
    applied, values = machine.state
    return values == [one for one in machine.values if one[0] <= applied]


def rung(world):
    """Turns at the times that the applier asks for."""
    end = time.monotonic() + SOON_S
    while (wait_s := world.applier.wait_s()) is not None:
        assert time.monotonic() < end
        time.sleep(wait_s)
        world.run()


def test_nothing_is_waited_for_where_nothing_is_durable():
    world = World({5: {}})
    assert world.applier.wait_s() is None


def test_it_commits_when_its_time_has_come_and_not_before():
    machine = Kept()
    world = world_of({5: {0: machine}}, every_us=200_000)
    world.driver.deliver(5, body(1, b"a"), body(2, b"b"))
    began = time.monotonic()
    world.run()
    assert machine.commits == []
    assert 0 < world.applier.wait_s() <= 0.2
    world.driver.deliver(5, body(3, b"c"))
    world.run()
    rung(world)
    assert time.monotonic() - began >= 0.2
    assert machine.commits == [3]
    assert whole(machine)
    world.run()
    assert machine.commits == [3]
    world.driver.deliver(5, pack_noop(1, 1))
    world.run()
    rung(world)
    assert machine.commits == [3, 4]


def test_under_load_it_commits_in_time_and_only_where_an_instance_ends():
    """Batches that take longer than a slice: no turn ends between two of them."""
    machine = Kept(pause_s=0.0005)
    world = world_of({5: {0: machine}})
    for n in range(30):
        first = 1 + n * 20
        world.driver.deliver(5, *[body(first + 10 * i, *[b"%d" % n] * 10) for i in range(2)])
    turns, began = 0, time.monotonic()
    while world.applier.turn():
        turns += 1
        assert whole(machine)
    took_s = time.monotonic() - began
    assert turns > 60
    assert all(one % 2 == 0 for one in machine.commits)  # batches here have two instances
    assert len(machine.commits) >= took_s / 0.1
    assert len(machine.commits) <= took_s / (EVERY_US / 1e6) + 1


def test_at_most_one_machine_a_turn_and_all_of_them_in_the_end():
    machines = {group: {0: Kept(), 1: Kept()} for group in range(6)}
    world = world_of(machines, every_us=1_000)
    for group in machines:
        world.driver.deliver(group, body(1, b"a"))
    done = 0
    for _ in range(12):
        time.sleep(0.002)
        world.applier.turn()
        now = sum(len(one.commits) for pair in machines.values() for one in pair.values())
        assert now - done <= 1
        done = now
    rung(world)
    assert all(one.commits == [1] for pair in machines.values() for one in pair.values())


def test_a_commit_of_all_of_a_group_comes_at_once_and_once():
    machine, other = Kept(), Kept()
    world = world_of({5: {0: machine}, 6: {0: other}})
    world.driver.deliver(5, body(1, b"a"))
    world.driver.deliver(6, body(1, b"a"))
    world.run()
    world.applier.commits.all_of(world.states[5])
    world.applier.commits.all_of(world.states[5])
    assert (machine.commits, other.commits) == ([1], [])
    rung(world)
    assert (machine.commits, other.commits) == ([1], [1])


def test_an_apply_that_raises_commits_nothing_of_its_group_any_more():
    machine, beside, other = Kept(), Kept(), Kept()
    world = world_of({5: {0: machine, 1: beside}, 6: {0: other}})
    world.driver.deliver(5, body(1, b"a"), body(2, b"b", machine=1))
    world.run()
    rung(world)
    world.driver.deliver(5, body(3, b"c"), body(4, b"raise"))
    world.driver.deliver(6, body(1, b"a"))
    world.run()
    rung(world)
    assert (machine.closed, beside.closed, other.closed) == (1, 1, 0)
    assert machine.state == (2, [(1, b"a")])
    assert beside.state == (2, [(2, b"b")])
    assert other.commits == [1]
    world.applier.commit_all()
    assert machine.commits == [2]


@pytest.mark.parametrize("error", [OSError(28, "no space"), SystemExit(1)])
def test_a_commit_that_raises_stops_its_group_and_the_caller_is_told(error):
    machine, other = Kept(), Kept()
    world = world_of({5: {0: machine}, 6: {0: other}}, every_us=1_000)
    waiting, _ = world.propose(5, b"waiting")
    world.driver.deliver(5, body(1, b"a"))
    world.driver.deliver(6, body(1, b"a"))
    machine.fails = error
    for _ in range(2):  # a SystemExit passes, and the others go on
        try:
            world.run()
            rung(world)
        except SystemExit:
            pass
    assert "commit raised" in str(world.states[5].stopped)
    assert isinstance(waiting.error, StoppedUnknown)
    assert (machine.closed, other.commits, world.driver.stopped) == (1, [1], [5])


def test_at_the_end_a_group_inside_of_a_batch_stays_as_it_was():
    machine, other = Kept(pause_s=0.001), Kept()
    world = world_of({5: {0: machine}, 6: {0: other}}, every_us=600_000_000)
    world.driver.deliver(6, body(1, b"a"))
    world.run()
    world.driver.deliver(5, body(1, *[b"a"] * 200))
    assert world.applier.turn()
    world.applier.commit_all()
    assert 0 < len(machine.values) < 200
    assert (machine.commits, other.commits) == ([], [1])


# --- a machine that is ahead of its group


@pytest.mark.parametrize("through", [1, 2, 3, 5])
def test_it_gets_what_comes_after_it_and_the_others_get_all(through):
    ahead, beside = Kept(), Kept()
    world = world_of({5: {0: ahead, 1: beside}})
    state = world.states[5]
    state.committed[0] = state.skip[0] = through
    runs = [values_of(b"%d" % n, b"%d+" % n, first=1 + 4 * n) for n in range(5)]
    others = [values_of(b"o", machine=1, first=3 + 4 * n) for n in range(5)]
    world.driver.deliver(5, *[pack_body([one, two]) for one, two in zip(runs, others, strict=True)])
    world.run()
    assert [one for one, _ in ahead.values] == [n for n in range(through + 1, 6) for _ in "12"]
    assert len(beside.values) == 5
    assert state.applied == 5
    rung(world)
    assert beside.commits == [5]
    assert ahead.commits == ([5] if through < 5 else [])


def test_it_does_not_commit_before_its_group_has_come_so_far():
    ahead = Kept()
    world = world_of({5: {0: ahead}}, applied=3, every_us=1_000)
    world.driver.deliver(5, body(1, b"a"), body(2, b"b"))
    world.run()
    rung(world)
    world.applier.commit_all()
    world.applier.commits.all_of(world.states[5])
    assert ahead.commits == []
    world.driver.deliver(5, body(3, b"c"), body(4, b"d"))
    world.run()
    rung(world)
    assert ahead.commits == [4]
    assert ahead.values == [(4, b"d")]


@pytest.mark.parametrize("frontier", [0, 1, 2])
def test_a_value_that_was_applied_below_it_is_not_applied_again_above_it(frontier):
    """The table comes from the log above the checkpoint, so it knows what the machine holds."""
    log = [body(1, b"a"), body(2, b"b"), body(3, b"c"), body(2, b"b"), body(1, b"a"), body(4, b"d")]
    before = Sessions(1, [5])
    before.offer(5, 1, log[:frontier])
    ahead, twin = Kept(), Kept()
    world = world_of({5: {0: ahead}}, applied=3)
    straight = world_of({5: {0: twin}})
    if frontier:
        world.driver.sessions.load(before.table(5))
        world.states[5].applied = frontier
    world.driver.deliver(5, *log[frontier:])
    straight.driver.deliver(5, *log)
    world.run()
    straight.run()
    assert ahead.values == [(6, b"d")]
    assert [value for _, value in twin.values] == [b"a", b"b", b"c", b"d"]
    assert world.states[5].applied == 6
    assert world.states[5].digest == straight.states[5].digest
    assert world.driver.sessions.table(5) == straight.driver.sessions.table(5)


def test_callers_get_the_results_of_what_is_above_it():
    """Nobody of this life can wait for what is below it: it was committed before that began."""
    ahead = Kept()
    world = world_of({5: {0: ahead}}, applied=2)
    first, run_first = world.propose(5, b"mine")
    again, run_again = world.propose(5, b"a")  # what an earlier life proposed: a value of its own
    world.driver.deliver(5, body(1, b"a"), body(2, b"b"), pack_body([run_first, run_again]))
    world.run()
    assert first.result == Result(3, b"MINE")
    assert again.result == Result(3, b"A")
    assert ahead.values == [(3, b"mine"), (3, b"a")]


def test_a_new_value_below_it_means_that_its_files_are_of_another_log():
    ahead, other = Kept(), Kept()
    world = world_of({5: {0: ahead}, 6: {0: other}}, applied=9)
    world.states[6].skip.clear()
    caller, run = world.propose(5, b"mine")
    world.driver.deliver(5, body(1, b"a"), pack_body([run]))
    world.driver.deliver(6, body(1, b"a"))
    world.run()
    assert "9 is applied, and a new value" in str(world.states[5].stopped)
    assert (world.states[5].stopped.instance, world.states[5].stopped.machine) == (2, 0)
    assert isinstance(caller.error, StoppedUnknown)
    assert (ahead.values, ahead.commits, ahead.closed) == ([], [], 1)
    assert len(other.values) == 1


def test_it_is_passed_over_across_batches_that_end_at_agreed_instances():
    ahead = Kept()
    world = world_of({5: {0: ahead}}, applied=AGREE + 1)
    log = [pack_noop(1, 1)] * (AGREE - 1)
    log += [body(n, b"%d" % n) for n in (1, 2, 3)]
    world.driver.deliver(5, *log)
    world.run()
    assert ahead.values == [(AGREE + 2, b"3")]
    assert world.states[5].skip == {}
