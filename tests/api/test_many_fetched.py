"""Many groups of a node lie below all floors: how many are fetched at a time, and that all come."""

import asyncio
import threading

import pytest

from phx.machines import Counter
from phx.node.fetcher import Fetcher
from phx.store import Floor
from tests.api.catch_up import QUIET, reopen, transfers
from tests.api.cluster import all_applied, cluster, until

pytestmark = pytest.mark.usefixtures("no_leaks")


async def grown(node, groups, count):
    values = [b"1"] * count
    await asyncio.gather(*(node.group(group).propose_many(values, timeout=60) for group in groups))


async def all_have(nodes, groups, total):
    for group in groups:
        await until(
            lambda group=group: all(node.group(group).machine().total == total for node in nodes),
            seconds=60,
        )


async def trim(node, groups):
    """Take a checkpoint of each, and let the log below go."""
    taken = await asyncio.gather(*(node.group(group).checkpoint() for group in groups))
    floors = {one.group: Floor(one.frontier + 1, one.frontier) for one in taken}
    await asyncio.wrap_future(node._room._keeper.ask(lambda store: store.raise_floors(floors)))
    for group, floor in floors.items():
        node._room.driver.floored(group, floor.kept_from, floor.settled_through)


async def leave_behind(nodes, groups):
    """The third node goes, and what it misses is in checkpoints alone."""
    await grown(nodes[0], groups, 20)
    await all_have(nodes, groups, 20)
    await nodes[2].close()
    await grown(nodes[0], groups, 40)
    await all_have(nodes[:2], groups, 60)
    for node in nodes[:2]:
        await trim(node, groups)


def test_several_are_fetched_at_once_and_no_more_than_allowed(run_once, tmp_path, monkeypatch):
    groups = range(5)
    settings = {"groups": len(groups), "checkpoints": QUIET | {"fetches_max": 2}}
    receive, change = Fetcher._receive, threading.Condition()
    inside, most = set(), []

    def counted(self, want, *rest):
        with change:
            inside.add(want.group)
            most.append(len(inside))
            change.notify_all()
            change.wait_for(lambda: max(most) >= 2, 10)
            change.wait_for(lambda: max(most) > 2, 0.5)  # who is one too many would come by now
        try:
            return receive(self, want, *rest)
        finally:
            with change:
                inside.discard(want.group)

    async def main():
        async with cluster(tmp_path, Counter, **settings) as nodes:
            await leave_behind(nodes, groups)
            monkeypatch.setattr(Fetcher, "_receive", counted)
            three = await reopen(tmp_path, nodes, 3, Counter, **settings)
            await until(lambda: transfers(three)["installed"] == len(groups), seconds=60)
            await all_have(nodes, groups, 60)
            assert max(most) == 2
            for group in groups:
                await all_applied(nodes, group)

    run_once(main())


def test_a_hundred_groups_come_back_in_a_node_that_runs(run_once, tmp_path):
    """None is stopped for it, and whoever calls another group there notices nothing."""
    groups, busy = range(100), 100
    settings = {"groups": len(groups) + 1, "checkpoints": QUIET}

    async def main():
        async with cluster(tmp_path, Counter, **settings) as nodes:
            await leave_behind(nodes, groups)
            over, calls, during = asyncio.Event(), [], set()

            async def called(node):
                while not over.is_set():
                    await node.group(busy).propose(b"1", timeout=60)
                    calls.append(node)
                    if node is not nodes[0] and 0 < transfers(node)["installed"] < len(groups):
                        during.add(len(calls))

            calling = [asyncio.ensure_future(called(nodes[0]))]
            three = await reopen(tmp_path, nodes, 3, Counter, **settings)
            incarnation = three.status().incarnation
            calling.append(asyncio.ensure_future(called(three)))
            try:
                await until(lambda: transfers(three)["installed"] >= len(groups), seconds=240)
            finally:
                over.set()
                ends = await asyncio.gather(*calling, return_exceptions=True)
            assert ends == [None, None]
            assert during, "nobody called while they came"
            assert three.status().incarnation == incarnation
            assert transfers(three)["fetched"] >= len(groups)
            assert not any(three.group(group).status().stopped for group in groups)
            await all_have(nodes, groups, 60)
            await all_have(nodes, [busy], len(calls))
            await asyncio.gather(*(three.group(g).propose(b"1", timeout=60) for g in groups))
            await all_have(nodes, groups, 61)

    run_once(main())
