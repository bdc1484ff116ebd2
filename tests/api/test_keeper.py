"""The store thread: what is asked of it is done between what the driver wants, and soon."""

import asyncio
import contextlib
import threading
import time

import pytest

import phx
from phx._core.driver import ERROR_OVERLOADED, DriverError
from phx.errors import Closed, NoLongerKept
from phx.machines import Counter
from phx.node import keeper
from phx.store import Floor
from tests.api.cluster import config_of, until

pytestmark = pytest.mark.usefixtures("no_leaks")

QUIET = {"interval_instances": 0, "interval_us": 0}
TIMEOUT_S = 20


def alone(folder):
    return config_of(folder, 1, nodes=1, groups=2, checkpoints=QUIET)


def keeper_of(node):
    return node._room._keeper


async def asked(node, action):
    future = asyncio.wrap_future(keeper_of(node).ask(action))
    return await asyncio.wait_for(future, TIMEOUT_S)


async def settled(node, count):
    """Propose that many values to both groups, and have them settled."""
    for _ in range(count):
        await asyncio.gather(*(node.group(group).propose(b"1") for group in (0, 1)))
    chosen = {group: node.group(group).status().chosen_through for group in (0, 1)}
    node._room.driver.settle_now()
    await until(lambda: node._room._store.settled() == chosen, seconds=TIMEOUT_S)
    return chosen


def test_it_is_done_on_the_store_thread_and_at_once(run_once, tmp_path):
    async def main():
        async with phx.Node(alone(tmp_path), Counter, bootstrap=True) as node:
            await asyncio.sleep(2.5)  # by now it waits for half a minute
            for _ in range(3):
                began = time.monotonic()
                name = await asked(node, lambda store: threading.current_thread().name)
                assert name == "phx-store"
                assert time.monotonic() - began < 1

            def refuse(store):
                raise KeyError("planted")

            with pytest.raises(KeyError, match="planted"):
                await asked(node, refuse)
            assert await asked(node, lambda store: store.identity.node) == 1
            assert node.status().store_error is None

    run_once(main())


def test_what_is_given_up_is_not_done_and_what_comes_too_late_is_refused(run_once, tmp_path):
    async def main():
        node = phx.Node(alone(tmp_path), Counter, bootstrap=True)
        await node.open()
        store_thread = keeper_of(node)
        inside, gate = threading.Event(), threading.Event()

        def stay(store):
            inside.set()
            return gate.wait(TIMEOUT_S)

        began = store_thread.ask(stay)
        await until(inside.is_set, seconds=TIMEOUT_S)
        waiting = store_thread.ask(lambda store: 1)
        done = []
        given_up = store_thread.ask(lambda store: done.append(1))
        assert given_up.cancel()
        closing = asyncio.ensure_future(node.close())
        await asyncio.sleep(0.05)
        gate.set()
        await closing
        assert began.result(0) is True
        assert not done
        with contextlib.suppress(Closed):  # or it had its turn before
            assert waiting.result(0) == 1
        with pytest.raises(Closed):
            store_thread.ask(lambda store: 1).result(0)

    run_once(main())


def test_floors_are_raised_beside_the_load_and_the_rest_follows(run_once, tmp_path):
    async def main():
        async with phx.Node(alone(tmp_path), Counter, bootstrap=True) as node:
            for _ in range(4):
                chosen = await settled(node, 5)
            await settled(node, 1)
            floors = {group: Floor(last + 1, last) for group, last in chosen.items()}

            async def load():
                while True:
                    await node.group(0).propose(b"1")

            busy = asyncio.ensure_future(load())
            stats = await asked(node, lambda store: store.raise_floors(floors))
            assert stats.groups == 2
            await until(lambda: node.status().store["dead_chunks"] == 0, seconds=TIMEOUT_S)
            busy.cancel()
            assert node.status().store_error is None
            for group, last in chosen.items():
                with pytest.raises(NoLongerKept):
                    await node.group(group).entry(last)
                assert await node.group(group).entry(last + 1) is not None
            assert node.group(1).machine().total == 21

    run_once(main())


def test_a_store_that_was_left_untrimmed_is_trimmed(run_once, tmp_path, monkeypatch):
    """Whoever died after raising floors leaves it to the next life."""
    from phx.store import Store

    async def main():
        with monkeypatch.context() as patch:
            patch.setattr(Store, "trim", lambda self: False)
            async with phx.Node(alone(tmp_path), Counter, bootstrap=True) as node:
                for _ in range(3):
                    chosen = await settled(node, 5)
                frontiers = [await node.group(group).checkpoint() for group in (0, 1)]
                assert all(one.frontier >= chosen[one.group] for one in frontiers)
                await settled(node, 1)
                floors = {group: Floor(last + 1, last) for group, last in chosen.items()}
                stats = await asked(node, lambda store: store.raise_floors(floors))
                assert stats.dead_chunks >= 3
        async with phx.Node(alone(tmp_path), Counter) as node:
            await node.wait_ready()
            await until(lambda: node.status().store["dead_chunks"] == 0, seconds=TIMEOUT_S)
            assert node.group(0).machine().total == 16

    run_once(main())


def test_a_driver_that_always_wants_something_does_not_keep_the_store_from_trimming(monkeypatch):
    steps = []

    class Store:
        def settle(self, plan):
            return plan

        def trim(self):
            steps.append(time.monotonic())
            return len(steps) < 5

        def close(self):
            pass

    class Driver:
        ending = False

        def store_work(self, _):
            time.sleep(0.01)
            return ("closing",) if self.ending else ("settle", 1, 1)

        def settled(self, *_):
            pass

        def store_call(self):
            pass

    made = keeper.Keeper(Store, idle=lambda: True)
    monkeypatch.setattr(keeper, "TRIM_S", 0.02)
    driver = Driver()
    made.open()
    made.serve(driver)
    try:
        until = time.monotonic() + 10
        while len(steps) < 5:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(steps) == 5  # and then it has nothing to do
        made.ask(lambda store: None).result(10)
        while len(steps) < 6:
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        driver.ending = True
        made.end()


class FullDriver:
    """Wants a settle, a fetch and a load; refuses each answer twice, as its queue is full."""

    def __init__(self):
        self.work = [("settle", "plan", 7), ("fetch", 0, 2, 1, 1), ("load", 0, 1, 1), None]
        self.told = []
        self.refused = 0
        self.idle = 0

    def store_work(self, timeout_us):
        return self.work.pop(0) if self.work else ("closing",)

    def store_call(self):
        pass

    def _take(self, *what):
        if self.refused % 3 < 2:
            self.refused += 1
            raise DriverError(ERROR_OVERLOADED, "planted")
        self.refused += 1
        self.told.append(what)

    def settled(self, plan, upto_lsn):
        self._take("settled", plan, upto_lsn)

    def supply(self, group, peer, first, entries):
        self._take("supply", group, peer, first, entries)

    def loaded(self, group, first, entries):
        self._take("loaded", group, first, entries)

    def look(self):
        self.idle += 1
        raise DriverError(ERROR_OVERLOADED, "planted")


class ReadOnlyStore:
    def settle(self, plan):
        return True

    def read(self, group, first, bytes_max, last):
        return b"entry"

    def is_hole(self, group, first):
        return False

    def write_members(self):
        return 0

    def trim(self):
        return False

    def merge(self):
        return False

    def close(self):
        pass


def test_a_full_queue_of_the_driver_ends_no_store_thread_and_loses_no_answer():
    driver = FullDriver()
    thread = keeper.Keeper(ReadOnlyStore, idle=driver.look)
    thread.open()
    thread.serve(driver)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert driver.told == [
        ("settled", "plan", 7),
        ("supply", 0, 2, 1, b"entry"),
        ("loaded", 0, 1, b"entry"),
    ]
    assert driver.idle == 1
    assert driver.work == []
    thread.end()
