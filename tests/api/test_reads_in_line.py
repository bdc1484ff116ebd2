"""Reads that wait: whose turn it is, who gives up, and states that are set back meanwhile."""

import asyncio
import time

import pytest

import phx
from phx import errors
from phx.applier import GroupState
from phx.blocking import Cell
from phx.group import Group
from phx.reading import Reading, Wanted
from phx.types import Leader

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
