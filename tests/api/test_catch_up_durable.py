"""Durable machines of a node that lies below everybody's floor are replaced, files and all."""

import asyncio

import pytest

from phx.machines import Counter
from tests.api.catch_up import raise_floor, reopen, transfers
from tests.api.cluster import all_applied, cluster, until
from tests.durable.durable_lab import LmdbSums, SqliteSums

pytestmark = pytest.mark.usefixtures("no_leaks")

OFTEN = {"interval_instances": 50, "interval_bytes": 0, "interval_us": 0}
"""They come by themselves, so they are light."""


class Lmdb(LmdbSums):
    retired = 0

    def __init__(self, group=0):
        super().__init__()

    def retire(self):
        type(self).retired += 1


class Sqlite(SqliteSums):
    retired = 0

    def __init__(self, group=0):
        super().__init__()

    def retire(self):
        type(self).retired += 1


async def add(node, count, first=0, machine=0):
    for at in range(first, first + count):
        value = b"%d %d" % (at % 97, at) if machine == 0 else b"%d" % at
        await node.group(0).propose(value, machine=machine, timeout=20)


async def have_checkpoints(nodes, *, beyond):
    """Values, until each node has one: they are taken while something is applied."""
    catalogs = [node._room._snapshots._catalog for node in nodes]
    async with asyncio.timeout(30):
        while not all(one.of(0) and one.of(0)[0].frontier > beyond for one in catalogs):
            await nodes[0].group(0).propose(b"0 0", timeout=20)
            await asyncio.sleep(0.01)
    await all_applied(nodes)


def digests(nodes):
    return {
        tuple(node.group(0).machine(one).digest() for one in node._room.states[0].machines)
        for node in nodes
    }


def generations(folder, machine=0):
    return [one for one in folder.glob(f"node3/machines/0.{machine}/*") if one.is_dir()]


async def trim_all(nodes):
    for node in nodes:
        newest = node._room._snapshots._catalog.of(0)[0]
        await raise_floor(node, 0, newest.frontier)


@pytest.mark.parametrize("running", [False, True], ids=["restarted", "running"])
@pytest.mark.parametrize("kind", [Lmdb, Sqlite])
def test_a_durable_machine_is_replaced(run_once, tmp_path, kind, running):
    """Peers have only light checkpoints: one takes a whole one when it is asked."""
    options = {"groups": 1, "checkpoints": OFTEN}

    async def main():
        kind.retired = 0
        async with cluster(tmp_path, kind, **options) as nodes:
            await add(nodes[0], 70)
            await all_applied(nodes)
            await nodes[2].close()
            await add(nodes[0], 150, 70)
            await all_applied(nodes[:2])
            await have_checkpoints(nodes[:2], beyond=150)
            for node in nodes[:2]:
                assert all(one.light for one in node._room._snapshots._catalog.of(0))
            await trim_all(nodes[:2])
            three = await reopen(tmp_path, nodes, 3, kind, **options)
            await until(lambda: transfers(three)["installed"] == 1, seconds=30)
            await add(nodes[0], 20, 220)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1
            assert kind.retired == 1
            await until(lambda: len(generations(tmp_path)) == 1)
            if not running:
                await three.close()
                three = await reopen(tmp_path, nodes, 3, kind, **options)
                await all_applied(nodes)
            await add(three, 20, 240)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1

    run_once(main())


def test_machines_of_all_kinds_in_one_group(run_once, tmp_path):
    options = {"groups": 1, "checkpoints": OFTEN}

    def machines(group):
        return {0: Lmdb(), 1: Counter(), 2: Sqlite()}

    async def main():
        async with cluster(tmp_path, machines, **options) as nodes:
            for machine in range(2):
                await add(nodes[0], 40, machine=machine)
            await all_applied(nodes)
            await nodes[2].close()
            for machine in range(2):
                await add(nodes[0], 60, machine=machine)
            await all_applied(nodes[:2])
            await have_checkpoints(nodes[:2], beyond=120)
            await trim_all(nodes[:2])
            three = await reopen(tmp_path, nodes, 3, machines, **options)
            await until(lambda: transfers(three)["installed"] == 1, seconds=30)
            await asyncio.gather(*(add(nodes[0], 20, machine=machine) for machine in range(2)))
            await all_applied(nodes)
            assert len(digests(nodes)) == 1

    run_once(main())


@pytest.mark.parametrize("kind", [Lmdb, Sqlite])
def test_lost_files_are_fetched(run_once, tmp_path, kind):
    """The checkpoint that is there is light: the state was in the files."""
    import shutil

    options = {"groups": 1, "checkpoints": OFTEN}

    async def main():
        async with cluster(tmp_path, kind, **options) as nodes:
            await add(nodes[0], 180)
            await all_applied(nodes)
            await have_checkpoints(nodes, beyond=100)
            await trim_all(nodes)
            await nodes[2].close()
            shutil.rmtree(tmp_path / "node3/machines")
            three = await reopen(tmp_path, nodes, 3, kind, **options)
            await three.wait_ready(timeout=30)
            await add(nodes[0], 20, 180)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1
            assert transfers(three)["installed"] == 1

    run_once(main())
