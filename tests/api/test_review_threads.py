"""Threads of a node where something is late, busy, or numbered high."""

import asyncio
import gc
import os
import threading
import time
import warnings
from pathlib import Path

import pytest

import phx
from phx import errors
from phx.blocking import Node
from phx.machine import CopyView
from phx.machines import Counter
from phx.node import keeper
from phx.node.snapshots import Snapshots
from phx.store import Floor, Store
from tests.api.cluster import Journal, config_of
from tests.durable.durable_lab import LmdbSums

QUIET = {"interval_instances": 0, "interval_us": 0}


@pytest.mark.usefixtures("no_leaks")
def test_a_checkpoint_of_a_group_that_is_being_restored_waits_for_it(run_once, tmp_path):
    config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=QUIET)
    gate = threading.Event()

    class Slow(Counter):
        def restore(self, reader):
            gate.wait(20)
            super().restore(reader)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await node.wait_ready()
            for _ in range(5):
                await node.group(0).propose(b"1")
            before = await node.group(0).checkpoint()
        async with phx.Node(config, Slow) as node:
            taking = asyncio.ensure_future(node.group(0).checkpoint())
            done, _ = await asyncio.wait([taking], timeout=1)
            assert not done
            gate.set()
            assert (await taking).frontier >= before.frontier
            assert node.group(0).machine().total == 5

    run_once(main())


@pytest.mark.usefixtures("no_leaks")
def test_a_checkpoint_is_captured_once(tmp_path, monkeypatch):
    """The applying thread takes a turn while the other one has just been given what it wanted."""
    made, closed = [], []

    class View(CopyView):
        def close(self):
            closed.append(self)
            super().close()

    class Noting(Counter):
        def freeze(self):
            made.append(View(Counter()))
            return made[-1]

    plain = Snapshots._await

    def slow(self, seconds):
        if (taken := plain(self, seconds)) is not None:
            self._wake()
            time.sleep(0.2)
        return taken

    monkeypatch.setattr(Snapshots, "_await", slow)
    config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=QUIET)
    with Node(config, Noting, bootstrap=True) as node:
        node.wait_ready()
        for _ in range(2):
            node.group(0).propose(b"1")
            node.group(0).checkpoint()
    assert len(made) == 2
    assert closed == made


def test_descriptors_may_have_any_number(tmp_path):
    """select.select takes none above 1023."""
    held = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(1100)]
    try:

        class Slow(Journal):
            def apply(self, entry):
                time.sleep(0.002)
                return super().apply(entry)

        with Node(config_of(tmp_path, 1, nodes=1, groups=1), Slow, bootstrap=True) as node:
            node.wait_ready()
            for _ in range(2):
                assert len(node.group(0).propose_many([b"x"] * 30)) == 30
    finally:
        for one in held:
            os.close(one)


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

    class Config:
        cluster_id = node = 1

    made = keeper.Keeper(Path("/nowhere"), Config, create=False, idle=lambda: True)
    made._open = Store
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


@pytest.mark.usefixtures("no_leaks")
def test_a_group_that_is_being_restored_holds_up_no_other_s_checkpoint(run_once, tmp_path):
    config = config_of(tmp_path, 1, nodes=1, groups=2, checkpoints=QUIET)
    gate = threading.Event()

    class Slow(Counter):
        def restore(self, reader):
            gate.wait(20)
            super().restore(reader)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await node.wait_ready()
            for group in range(2):
                await node.group(group).propose(b"1")
            await node.group(0).checkpoint()
        async with phx.Node(config, Slow) as node:
            await node.wait_ready([1])
            taking = asyncio.ensure_future(node.group(0).checkpoint())
            await asyncio.sleep(0)
            taken = await asyncio.wait_for(node.group(1).checkpoint(), 10)
            assert taken.group == 1
            assert not taking.done()
            gate.set()
            assert (await taking).group == 0

    run_once(main())


@pytest.mark.usefixtures("no_leaks")
def test_a_group_without_what_is_below_its_floor_stops_and_no_other(run_once, tmp_path):
    config = config_of(tmp_path, 1, nodes=1, groups=2, checkpoints=QUIET)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await node.wait_ready()
            for group in range(2):
                for _ in range(5):
                    await node.group(group).propose(b"1")
            frontier = (await node.group(0).checkpoint()).frontier
        store = Store.open(config.dir / "store", cluster=config.cluster_id, node=1)
        try:
            store.raise_floors({0: Floor(frontier + 1, frontier)})
        finally:
            store.close()
        (manifest,) = config.dir.glob("checkpoints/0/*/manifest")
        manifest.write_bytes(b"x" + manifest.read_bytes()[1:])
        async with phx.Node(config, Counter) as node:
            await node.wait_ready()
            assert node.group(0).status().stopped
            assert node.group(1).machine().total == 5
            await node.group(1).propose(b"1")
            with pytest.raises(errors.CheckpointFailed):
                await node.group(0).checkpoint()

    run_once(main())


def test_machines_of_a_node_whose_thread_has_ended_are_closed(tmp_path):
    """It was never closed; whoever looks at its machine still does not keep the files."""
    config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=QUIET)
    kept = []

    async def main():
        node = phx.Node(config, lambda group: LmdbSums(), bootstrap=True)
        await node.open()
        await node.wait_ready()
        await node.group(0).propose(b"1 1")
        kept.append(node.group(0).machine())

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        thread.start()
        thread.join()
        gc.collect()
    with Node(config, lambda group: LmdbSums()) as node:
        node.wait_ready()
        assert not node.group(0).status().stopped
        node.group(0).propose(b"1 1")
