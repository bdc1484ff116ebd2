"""What goes on while a checkpoint is written or restored, and when there is none to be taken."""

import asyncio
import threading

import pytest

import phx
from tests.api.cluster import config_of, until
from tests.api.test_checkpoints import QUIET, Seen, grown, of

pytestmark = pytest.mark.usefixtures("no_leaks")


def alone(folder, groups=2, **checkpoints):
    return config_of(folder, 1, nodes=1, groups=groups, checkpoints=QUIET | checkpoints)


async def all_have_one(config):
    """Each group has a checkpoint of five values, and two more behind it; their frontiers."""
    async with phx.Node(config, Seen, bootstrap=True) as node:
        await node.wait_ready()
        frontiers = []
        for group in range(len(node.groups)):
            await grown(node, group, 5)
            frontiers.append((await node.group(group).checkpoint()).frontier)
            await grown(node, group, 2)
        return frontiers


# --- restored


def test_a_group_serves_as_soon_as_it_is_there_whoever_is_being_restored_still(run_once, tmp_path):
    config = alone(tmp_path, restore_threads=2)
    gate, held = threading.Event(), threading.Event()

    class Held(Seen):
        def restore(self, reader):
            held.set()
            assert gate.wait(60)
            super().restore(reader)

    async def main():
        frontiers = await all_have_one(config)
        async with phx.Node(config, lambda group: Seen() if group else Held()) as node:
            try:
                assert await asyncio.to_thread(held.wait, 20)
                await node.wait_ready([1], timeout=20)
                await grown(node, 1, 1)
                assert node.group(1).machine().total == 8
                assert min(node.group(1).machine().instances) > frontiers[1]
                assert node.status().checkpoints["restored"] == 1
                assert not node.ready([0])
                assert node.group(0).status().restoring
            finally:
                gate.set()
            await node.wait_ready([0], timeout=20)
            assert node.group(0).machine().total == 7
            assert min(node.group(0).machine().instances) > frontiers[0]
            assert node.status().checkpoints["restored"] == 2

    run_once(main())


@pytest.mark.parametrize("threads", [1, 3])
def test_so_many_groups_are_restored_at_a_time_as_there_are_threads(run_once, tmp_path, threads):
    config = alone(tmp_path, groups=5, restore_threads=threads)
    change = threading.Condition()
    inside, most = [], [0]

    class Counted(Seen):
        def restore(self, reader):
            with change:
                inside.append(self)
                most.append(len(inside))
                change.notify_all()
                change.wait_for(lambda: max(most) >= threads, 20)
                change.wait_for(lambda: max(most) > threads, 0.2)  # who is one too many
            super().restore(reader)
            with change:
                inside.remove(self)

    async def main():
        await all_have_one(config)
        async with phx.Node(config, Counted) as node:
            await node.wait_ready(timeout=60)
            assert node.status().checkpoints["restored"] == 5
            assert [node.group(group).machine().total for group in range(5)] == [7] * 5
        assert max(most) == threads

    run_once(main())


# --- written


def test_a_group_goes_on_while_its_state_is_written(run_once, tmp_path):
    """What is written is the state at the frontier, not the one that there is by then."""
    config = alone(tmp_path)
    gate, begun = threading.Event(), threading.Event()

    class Slow(Seen):
        def snapshot(self, writer):
            begun.set()
            assert gate.wait(60)
            super().snapshot(writer)

    async def main():
        async with phx.Node(config, Slow, bootstrap=True) as node:
            await grown(node, 0, 5)
            asking = asyncio.ensure_future(node.group(0).checkpoint())
            try:
                assert await asyncio.to_thread(begun.wait, 20)
                for total in range(6, 26):
                    assert (await node.group(0).propose(b"1", timeout=20)).value == total
                assert node.group(0).machine().total == 25
                assert not asking.done()
            finally:
                gate.set()
            frontier = (await asking).frontier
            seen = node.group(0).machine().instances
            assert seen[4] <= frontier < seen[5]
        async with phx.Node(config, Seen) as node:
            await node.wait_ready()
            assert node.status().checkpoints["restored"] == 1
            # Beginning with five, for what it applied itself are the other twenty.
            assert node.group(0).machine().instances == seen[5:]
            assert node.group(0).machine().total == 25

    run_once(main())


# --- none too many


def test_there_is_one_every_so_many_instances_and_not_one_more(run_once, tmp_path):
    every = 30
    config = alone(tmp_path, interval_instances=every, keep=50)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            group = node.group(0)
            taken = lambda: node.status().checkpoints["taken"]  # noqa: E731
            for _ in range(every):  # the first one comes earlier
                await grown(node, 0, 1)
                await asyncio.sleep(0.01)
                if taken():
                    break
            await until(taken, seconds=30)
            for count in range(1, 5):
                last = group.status().frontier
                while group.status().applied_through < last + every - 1:
                    await grown(node, 0, 1)
                await asyncio.sleep(0.1)
                assert (taken(), group.status().frontier) == (count, last)
                await grown(node, 0, 1)
                await until(lambda count=count: taken() == count + 1, seconds=30)
                assert group.status().frontier == last + every
            await asyncio.sleep(0.1)
            assert taken() == len(of(config)) == 5

    run_once(main())
