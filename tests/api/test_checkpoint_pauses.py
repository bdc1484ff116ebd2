"""Checkpoints may be paused: none by themselves meanwhile, and what is missed comes after it."""

import asyncio
import threading
import time

import pytest

import phx
from phx import errors
from phx.machines import Counter
from tests.api.test_checkpoints import alone, grown, of

pytestmark = pytest.mark.usefixtures("no_leaks")


async def until(what):
    for _ in range(1000):
        if what():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come")


def test_none_comes_by_itself_until_it_is_over(run_once, tmp_path):
    config = alone(tmp_path, interval_instances=10)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            node.pause_checkpoints()
            node.pause_checkpoints()
            assert node.status().checkpoints["paused"] == 1
            await grown(node, 0, 60)
            await grown(node, 1, 60)
            await asyncio.sleep(0.3)
            assert node.status().checkpoints["taken"] == 0
            asked = await node.group(1).checkpoint()
            assert asked.frontier >= 60
            assert of(config, 0) == []
            node.resume_checkpoints()
            await until(lambda: node.group(0).status().frontier >= 60)
            assert node.status().checkpoints["paused"] == 0
            await grown(node, 0, 30)
            await until(lambda: len(of(config, 0)) == 2)

    run_once(main())


def test_the_clock_does_not_get_round_it(run_once, tmp_path):
    config = alone(tmp_path, interval_us=50_000)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            node.pause_checkpoints()
            for _ in range(15):
                await grown(node, 0, 1)
                await asyncio.sleep(0.1)
            assert node.status().checkpoints["taken"] == 0
            node.resume_checkpoints()
            await until(lambda: node.status().checkpoints["taken"])

    run_once(main())


def test_no_log_is_trimmed_meanwhile(run_once, tmp_path):
    """Not below a checkpoint that was asked for, nor because what is held becomes old."""
    much = 1 << 40
    trims = {"trim": True, "keep": 1, "hold_instances": much, "hold_bytes": much}
    config = alone(tmp_path, hold_us=200_000, **trims)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await grown(node, 0, 50)
            node.pause_checkpoints()
            asked = await node.group(0).checkpoint()
            assert asked.frontier >= 50
            for _ in range(25):  # a second between two looks, and whoever is due in between waits
                await grown(node, 0, 1)
                await asyncio.sleep(0.1)
                assert node.group(0).status().floor == 1
            assert await node.group(0).entry(1)
            node.resume_checkpoints()
            await until(lambda: node.group(0).status().floor == asked.frontier + 1)

    run_once(main())


def test_the_one_that_is_being_taken_is_finished(run_once, tmp_path):
    config = alone(tmp_path)
    gate, begun = threading.Event(), threading.Event()

    class Slow(Counter):
        def snapshot(self, writer):
            begun.set()
            assert gate.wait(20)
            super().snapshot(writer)

    async def main():
        async with phx.Node(config, Slow, bootstrap=True) as node:
            await grown(node, 0, 5)
            asking = asyncio.ensure_future(node.group(0).checkpoint())
            await asyncio.to_thread(begun.wait, 20)
            began = time.monotonic()
            node.pause_checkpoints()
            assert time.monotonic() - began < 1
            assert node.status().checkpoints["writing"] == 1
            gate.set()
            await asking
            await until(lambda: node.status().checkpoints["writing"] == 0)

    run_once(main())


def test_blocking_nodes_pause_too_and_only_open_ones(tmp_path):
    config = alone(tmp_path, interval_instances=10)
    node = phx.blocking.Node(config, Counter, bootstrap=True)
    with pytest.raises(errors.Closed):
        node.pause_checkpoints()
    with node:
        node.pause_checkpoints()
        for _ in range(40):
            node.group(0).propose(b"1")
        time.sleep(0.3)
        assert node.status().checkpoints["taken"] == 0
        node.resume_checkpoints()
        for _ in range(1000):
            if node.status().checkpoints["taken"]:
                break
            time.sleep(0.005)
        assert of(config)
    with pytest.raises(errors.Closed):
        node.resume_checkpoints()


def test_a_group_says_why_it_has_none(run_once, tmp_path):
    config = alone(tmp_path)

    class Sometimes(Counter):
        fails = True

        def freeze(self):
            if self.fails:
                raise RuntimeError("not today")
            return super().freeze()

    class Plain(phx.StateMachine):
        def apply(self, entry):
            return None

    async def main():
        made = [Sometimes, Plain]
        async with phx.Node(config, lambda group: made[group](), bootstrap=True) as node:
            one, other = node.groups
            assert one.status().checkpoint_error is None
            assert "machine 0 gives no view" in other.status().checkpoint_error
            await grown(node, 0, 3)
            with pytest.raises(RuntimeError):
                await one.checkpoint()
            assert one.status().checkpoint_error == "RuntimeError: not today"
            one.machine().fails = False
            await one.checkpoint()
            assert one.status().checkpoint_error is None
            assert "machine 0 gives no view" in other.status().checkpoint_error

    run_once(main())
