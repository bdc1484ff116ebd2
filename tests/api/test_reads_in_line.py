"""Reads that wait: whose turn it is, who gives up, and states that are set back meanwhile."""

import asyncio
import threading
import time

import pytest

import phx
from phx import errors
from phx.applier import GroupState
from phx.blocking import Cell
from phx.group import Group
from phx.reading import Reading, Wanted
from phx.types import Leader

from .test_blocking import blocking_cluster
from .test_reads import Asked

NEVER_US = 1 << 60


class Machine(phx.StateMachine):
    def apply(self, entry):
        pass

    def query(self, query):
        return query(self) if callable(query) else query


class Points:
    """Read points that are at hand, by group."""

    def __init__(self):
        self.by_group = {}
        self.heard = 0

    def leased(self, group):
        return self.by_group.get(group, -1)

    def known(self, group):
        return 0

    def heard_us(self, node):
        return self.heard


class Told:
    """Says of each group that is asked for that a point is what it is."""

    def __init__(self, point):
        self.point = point
        self.asked = []

    def ask(self, group, due_us, told, quorum=False):
        self.asked.append(told)

    def turn(self):
        asked, self.asked = self.asked, []
        for told in asked:
            told(self.point)

    def end(self, refusal):
        pass


def a_reading(points=None):
    """Of node 1, on the running loop; its turns are the caller's to make."""
    loop = asyncio.get_running_loop()
    made = Reading(points or Points(), 1, lambda: int(time.monotonic() * 1e6), lambda: None)
    made.soon, made.new_future = loop.call_soon, loop.create_future
    return made


def a_state(group, applied=10):
    state = GroupState(group, {0: Machine()})
    state.applied = applied
    return state


def begun(reading, state, queries=(0,), consistency="linearizable"):
    future = asyncio.get_running_loop().create_future()
    return reading.begin(Wanted(state, 0, queries, consistency, NEVER_US, future)), future


def busy(_):
    end = time.perf_counter_ns() + 100_000
    while time.perf_counter_ns() < end:
        pass


def lined(reading, state, query, number=1, consistency="lease"):
    """Futures of reads that stand in line: the time of this turn of the loop is over."""
    reading._until(0)
    return [reading.at_once(state, query, consistency, 0) for _ in range(number)]


async def turns(reading, number):
    for _ in range(number):
        await asyncio.sleep(0)
        reading.turn()


def test_who_sets_a_cell_first_has_set_it():
    cell = Cell()
    assert not cell.done()
    cell.set_exception(ValueError("first"))
    cell.set_result(1)
    cell.set_exception(KeyError("third"))
    assert cell.done()
    with pytest.raises(ValueError, match="first"):
        cell.wait()


def test_a_query_outlives_its_caller_and_nobody_else_notices(tmp_path, caplog):
    with blocking_cluster(tmp_path, Asked, nodes=1) as (node,):
        group, reading = node.group(0), node._room.door.reading
        for _ in range(2):
            over = threading.Event()

            def slow(_, over=over):
                time.sleep(0.2)
                over.set()

            with pytest.raises(errors.TimedOut):
                group.read(slow, consistency="stale", timeout=0.02)
            assert over.wait(5)
            assert group.read(None, consistency="stale").value == 0
            assert reading._waiting == 0
    assert not caplog.records


def test_a_query_that_ends_all_is_counted_once():
    def out(_):
        raise SystemExit

    async def main():
        reading, state = a_reading(), a_state(0)
        _, future = begun(reading, state, [out], "stale")
        with pytest.raises(SystemExit):
            reading.turn()
        await turns(reading, 2)
        assert (reading._waiting, type(future.exception())) == (0, SystemExit)

    asyncio.run(main())


def test_a_busy_line_and_reads_that_waited_have_their_turns_both():
    async def main():
        points = Points()
        points.by_group = {1: 10}
        reading, waits, leads = a_reading(points), a_state(0), a_state(1)
        reading.asking = Told(10)
        lined(reading, leads, busy, 100)
        _, future = begun(reading, waits)
        for _ in range(6):
            await turns(reading, 1)
            lined(reading, leads, busy, 20)
        assert future.done()
        assert reading._reads > 20

    asyncio.run(main())


def test_long_reads_of_one_group_do_not_hold_up_the_others():
    async def main():
        points = Points()
        points.by_group = {1: 10, 2: 10}
        reading, states = a_reading(points), [a_state(group) for group in range(3)]
        long = begun(reading, states[0], [busy] * 1000, "stale")[1]
        others = [begun(reading, state, [0], "stale")[1] for state in states]
        lined(reading, states[1], busy, 1000)
        others += lined(reading, states[2], 0)
        await turns(reading, 12)
        assert all(one.done() for one in others)
        assert not long.done()

    asyncio.run(main())


def test_thousands_give_up_in_little_time():
    async def main():
        reading, state = a_reading(), a_state(0)
        reading.asking = Told(11)
        all_of = [begun(reading, state) for _ in range(10_000)]
        reading.turn()
        assert len(state.reads) == reading._waiting == 10_000
        began_s = time.thread_time()
        for wanted, _ in all_of[:9_000]:
            reading.forget(wanted)
            reading.forget(wanted)
        assert time.thread_time() - began_s < 1
        assert reading._waiting == 1_000
        assert len(state.reads) <= 2_000
        state.applied = 11
        reading.reached(state)
        await turns(reading, 50)
        assert [future.done() for _, future in all_of] == [False] * 9_000 + [True] * 1_000
        assert (reading._waiting, state.reads) == (0, [])

    asyncio.run(main())


def test_a_read_waits_again_when_its_group_is_set_back():
    async def main():
        points = Points()
        points.by_group = {0: 10}
        reading, state = a_reading(points), a_state(0)
        (single,) = lined(reading, state, "single", 1, "linearizable")
        (dropped,) = lined(reading, state, "dropped", 1, "linearizable")
        (stale,) = lined(reading, state, "stale", 1, "stale")
        _, many = begun(reading, state, ["many"])
        reading._take(reading._begun.popleft())
        state.applied = 4  # repaired, of an older checkpoint
        await turns(reading, 4)
        assert (stale.result().instance, single.done(), many.done()) == (4, False, False)
        dropped.cancel()
        await turns(reading, 1)
        assert (reading._queued, reading._waiting) == (0, 2)
        state.applied = 12
        reading.reached(state)
        await turns(reading, 2)
        assert single.result() == phx.Read("single", 12, 0)
        assert many.result() == [phx.Read("many", 12, 0)]
        assert (reading._queued, reading._waiting) == (0, 0)

    asyncio.run(main())


def test_a_read_in_line_keeps_its_timeout():
    class Door:
        refusal = None

        class waiters:
            propose = propose_many = None

    async def main():
        door, state = Door(), a_state(1)
        reading = door.reading = a_reading()
        reading.within = lambda: 1  # an instance of it is half applied
        group = Group(door, state, None, asyncio.get_running_loop())
        began_s = time.monotonic()
        with pytest.raises(errors.TimedOut):
            await asyncio.wait_for(group.read(0, consistency="stale", timeout=0.02), 5)
        with pytest.raises(errors.TimedOut, match="leaves no time"):
            await asyncio.wait_for(group.read(0, consistency="stale", timeout=0), 5)
        assert time.monotonic() - began_s < 4
        waits = [
            asyncio.create_task(group.read(7, consistency="stale", timeout=left))
            for left in (None, 5)
        ]
        await asyncio.sleep(0)
        reading.within = lambda: -1
        await turns(reading, 2)
        assert [(await one).value for one in waits] == [7, 7]
        assert (reading._queued, reading._reads) == (0, 2)

    asyncio.run(main())


def test_who_led_once_vouches_for_nothing():
    now_us, points = [10_000_000], Points()
    reading, state = Reading(points, 3, lambda: now_us[0], lambda: None), a_state(0)
    state.epoch = 7 << 20 | 1
    now_us[0] += 3_600_000_000
    points.heard = now_us[0] - 20_000
    assert reading.at_once(state, 0, "stale", 0).lag_us == 3_600_000_000
    state.led = Leader(1, state.epoch)
    assert reading.at_once(state, 0, "stale", 0).lag_us == 20_000


class Quorum(Told):
    """Counts who is asked; the points are those of its list."""

    def __init__(self, *points):
        super().__init__(0)
        self.points, self.count = list(points), 0

    def ask(self, group, due_us, told, quorum=False):
        assert quorum
        self.count += 1
        super().ask(group, due_us, told, quorum)

    def turn(self):
        asked, self.asked = self.asked, []
        for told in asked:
            told(self.points.pop(0))


def test_a_point_of_members_before_is_asked_for_again():
    """{1, 2, 3} -> {4, 5, 6} at 12: 2 and 3 say 12, and a write at 15 was complete before."""

    async def main():
        reading, state = a_reading(), a_state(0, applied=10)
        version, asking = [1], Quorum(12, 15)
        reading.asking, reading.version_of = asking, lambda group: version[0]
        _, future = begun(reading, state, [lambda machine: state.applied], "quorum")
        reading.turn()
        reading.turn()
        assert (asking.count, future.done()) == (1, False)
        version[0] = 2  # heard before anything of 12 is applied
        state.applied = 12
        reading.reached(state)
        await turns(reading, 3)
        assert (asking.count, future.done()) == (2, False)
        state.applied = 15
        reading.reached(state)
        await turns(reading, 2)
        assert (await future)[0].value == 15
        assert asking.count == 2
        # Where this node leads under a lease by then, nobody is asked.
        asking.points.append(16)
        _, future = begun(reading, state, [1], "quorum")
        await turns(reading, 2)
        assert not future.done()
        version[0], reading._points.by_group[0], state.applied = 3, 16, 16
        reading.reached(state)
        await turns(reading, 3)
        assert (await future)[0].value == 1
        assert asking.count == 3
        del reading._points.by_group[0]
        asking.count = 2
        asking.points.clear()
        # Of those who decide now one answer is enough; and a leader's point stays good.
        asking.points.append(15)
        _, future = begun(reading, state, [0], "quorum")
        await turns(reading, 3)
        assert (await future)[0].value == 0
        assert asking.count == 3

    asyncio.run(main())
