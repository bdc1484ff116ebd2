"""Created groups that move to nodes that they did not begin on."""


import pytest

from phx import errors
from phx.types import voter

from .cluster import all_applied
from .created_lab import everywhere, hosts, three
from .members_lab import addresses


def said(nodes, *numbers):
    where = addresses(nodes)
    return {number: voter(where[number]) for number in numbers}


def nothing_is_left(folder, node, group):
    """But a row of the store."""
    store = node._room._store
    assert not list(folder.glob(f"node{node.config.node}/checkpoints/{group}"))
    assert group not in store.members()
    kept, settled = store.bounds(group)
    assert kept > settled


async def moved_all(nodes, group, to):
    """All at once: learners first, then they are the members."""
    now = next(node for node in nodes if hosts(node, group))
    changed = await now._room.changes.all_to(lambda _: dict(to), 30.0, group)
    return changed


def test_a_group_moves_to_other_nodes_altogether(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=6) as nodes:
            await nodes[0].create_group(7, [1, 2, 3])
            await everywhere(nodes[:3], 7)
            for _ in range(5):
                await nodes[1].group(7).propose(b"1")
            group = nodes[0].group(7)
            where = addresses(nodes)
            for number in (4, 5, 6):
                await group.add_member(number, where[number], timeout=20)
            now = group.members()
            assert set(now.by_id) == {1, 2, 3, 4, 5, 6}
            now = await group.set_members(said(nodes, 4, 5, 6), now.version, timeout=20)
            assert set(now.by_id) == {4, 5, 6} and now.active
            await everywhere(nodes[3:], 7)
            await everywhere(nodes[:3], 7, there=False)
            for number, node in enumerate(nodes[3:]):
                assert (await node.group(7).propose(b"1", timeout=10)).value == 6 + number
            await all_applied(nodes[3:], 7)
            for node in nodes[:3]:
                with pytest.raises(errors.NotInCluster):
                    node.group(7)
                nothing_is_left(tmp_path, node, 7)
            with pytest.raises(errors.NotInCluster):
                await group.propose(b"1")
            made = {one.group: one for one in nodes[0].created_groups()}[7]
            assert sorted(made.members) == [4, 5, 6]

    run_once(main())
