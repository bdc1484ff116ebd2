"""A node that lies below everybody's floor goes on from a checkpoint that it fetches."""

import asyncio
import random

import pytest

import phx
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.store import Floor
from tests.api.cluster import all_applied, cluster, config_of, introduce, until

pytestmark = pytest.mark.usefixtures("no_leaks")

QUIET = {"interval_instances": 0, "interval_bytes": 0, "interval_us": 0}


async def trim(node, group):
    """Take a checkpoint, and let the log go below it; its frontier."""
    frontier = (await node.group(group).checkpoint()).frontier
    room = node._room
    floor = Floor(frontier + 1, frontier)
    await asyncio.wrap_future(room._keeper.ask(lambda store: store.raise_floors({group: floor})))
    room.driver.floored(group, frontier + 1, frontier)
    return frontier


async def fill(node, group, count, size=100, seed=0):
    chance = random.Random(seed)
    values = [encode_set(f"k{chance.randrange(500)}", chance.randbytes(size)) for _ in range(count)]
    for at in range(0, count, 50):
        await node.group(group).propose_many(values[at : at + 50])


async def reopen(folder, nodes, number, machines=KeyValue, **changes):
    node = phx.Node(config_of(folder, number, **changes), machines)
    await node.open()
    nodes[number - 1] = node
    introduce(nodes)
    return node


def digests(nodes, group=0):
    return {node.group(group).machine().digest() for node in nodes}


def test_a_node_that_was_away_goes_on_from_a_checkpoint(run_once, tmp_path):
    options = {"groups": 1, "checkpoints": QUIET}

    async def main():
        async with cluster(tmp_path, KeyValue, **options) as nodes:
            await fill(nodes[0], 0, 200)
            await all_applied(nodes)
            await nodes[2].close()
            await fill(nodes[0], 0, 2000, seed=1)
            await all_applied(nodes[:2])
            for node in nodes[:2]:
                frontier = await trim(node, 0)
            three = await reopen(tmp_path, nodes, 3, **options)
            await until(lambda: three.status().transfers["installed"] == 1)
            await fill(nodes[1], 0, 100, seed=2)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1
            status = three.group(0).status()
            assert status.settled_through >= frontier
            assert not status.restoring
            await three.group(0).propose(encode_set("last", b"word"), timeout=5)
            await all_applied(nodes)

    run_once(main())
