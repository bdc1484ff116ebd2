"""A node whose store has forgotten what a checkpoint covers."""

import pytest

import phx
from phx.errors import CheckpointFailed, NoLongerKept
from phx.machines import Counter
from phx.store import Floor, Store
from tests.api.cluster import config_of

pytestmark = pytest.mark.usefixtures("no_leaks")

QUIET = {"interval_instances": 0, "interval_us": 0}


def raised(config, floor):
    """Raise the floor of group 0 of a node that does not run; how far its log was settled."""
    store = Store.open(config.dir / "store", cluster=config.cluster_id, node=1)
    try:
        settled = store.settled()[0]
        store.raise_floors({0: Floor(floor, floor - 1)})
        return settled
    finally:
        store.close()


def test_below_the_floor_nothing_is_read_and_all_else_goes_on(run_once, tmp_path):
    config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=QUIET)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            group = node.group(0)
            for _ in range(30):
                await group.propose(b"1")
            frontier = (await group.checkpoint()).frontier
            for _ in range(5):
                await group.propose(b"1")
        floor = frontier - 3
        assert raised(config, floor) >= frontier  # a node that closes settles
        for _ in range(2):
            async with phx.Node(config, Counter) as node:
                await node.wait_ready()
                group = node.group(0)
                assert group.machine().total == 35
                for instance in (1, floor - 1):
                    with pytest.raises(NoLongerKept, match=f"instance {instance} is not kept"):
                        await group.entry(instance)
                for instance in range(floor, frontier + 1):
                    for entry in await group.entry(instance):
                        assert entry.value == b"1"
        async with phx.Node(config, Counter) as node:
            await node.wait_ready()
            assert await node.group(0).propose(b"1") is not None
            assert node.group(0).machine().total == 36

    run_once(main())


def test_a_group_without_what_is_below_its_floor_stops_and_no_other(run_once, tmp_path):
    config = config_of(tmp_path, 1, nodes=1, groups=2, checkpoints=QUIET)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await node.wait_ready()
            for group in range(2):
                for _ in range(5):
                    await node.group(group).propose(b"1")
            frontier = (await node.group(0).checkpoint()).frontier
        raised(config, frontier + 1)
        (manifest,) = config.dir.glob("checkpoints/0/*/manifest")
        manifest.write_bytes(b"x" + manifest.read_bytes()[1:])
        async with phx.Node(config, Counter) as node:
            await node.wait_ready()
            assert node.group(0).status().stopped
            assert node.group(1).machine().total == 5
            await node.group(1).propose(b"1")
            with pytest.raises(CheckpointFailed):
                await node.group(0).checkpoint()

    run_once(main())
