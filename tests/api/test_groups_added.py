"""A group that is added at a restart: all who host it agree on who its first members are."""

import asyncio
import shutil
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import pytest

import phx
from phx import errors, store_first
from phx.store import Store
from phx.types import Role
from tests.ports import at_ports

from .cluster import all_applied, cluster, config_of, until
from .members_lab import addresses, counters, joining, kill


async def closed_after(folder, *changes):
    """The configurations of {1, 2, 3} in one group, and of those who came: (gone, new) each."""
    async with cluster(folder, counters, members=at_ports(1, 2, 3), groups=1) as nodes:
        there = {node.config.node: node for node in nodes}
        await nodes[0].group(0).propose(b"1")
        made = []
        try:
            for gone, new in changes:
                living = [there[n] for n in sorted(there) if n != gone]
                one = joining(folder, [new], living, groups=1)
                (joined,) = await one.__aenter__()
                made.append(one)
                changed = await living[0].replace_member(gone, new, joined.at)
                assert changed.failed == {}
                there[new] = await joined.opened()
                await there.pop(gone).close()
            for node in there.values():
                await until(lambda node=node: node.group(0).members().version == 1 + 2 * len(made))
        finally:
            for one in made:
                await one.__aexit__(None, None, None)
        return {n: node.config for n, node in there.items()}


def more(config, groups=2, **changes):
    return phx.Node(replace(config, groups=groups, **changes), counters)


@asynccontextmanager
async def opening(node):
    """It waits, perhaps."""
    task = asyncio.ensure_future(node.open())
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.close()


def test_who_joined_counts_no_members_of_its_file_in_a_group_that_is_new(run, tmp_path, caplog):
    """{1, 2, 3} -> {1, 2, 4}, and then a group more: it begins as {1, 2, 3}, where 1 and 2 are two
    of three, and 4 waits until it is a member there, too."""

    async def main():
        configs = await closed_after(tmp_path, (3, 4))
        one, two, four = (more(configs[n]) for n in (1, 2, 4))
        async with one, two, opening(four) as task:
            await asyncio.gather(one.wait_ready(timeout=20), two.wait_ready(timeout=20))
            assert [set(n.group(1).members().by_id) for n in (one, two)] == [{1, 2, 3}] * 2
            assert "group 1 is new here" in caplog.text
            assert (await one.group(1).propose(b"7")).value == 7
            assert not task.done()
            at = configs[4].members[4]
            now = await two.group(1).replace_member(3, 4, at, timeout=30)
            assert set(now.by_id) == {1, 2, 4}
            await task
            assert (await four.group(1).propose(b"100")).value == 107
            await all_applied([one, two, four], 1)
            assert four.group(1).members().by_id == now.by_id

    run(main())


def test_who_was_stopped_while_it_waited_waits_again(run_once, tmp_path):
    """Nothing of the first time says that the group is hosted."""

    async def main():
        configs = await closed_after(tmp_path, (3, 4))
        async with phx.Node(configs[1], counters), phx.Node(configs[2], counters):
            for _ in range(2):
                four = more(configs[4])
                async with opening(four) as task:
                    await asyncio.sleep(1)
                    assert not task.done()
                for _ in range(100):  # its folder is let go of, a moment later
                    await asyncio.sleep(0.05)
                    if not locked(four):
                        break
            async with phx.Node(configs[4], counters) as four:  # without it, it goes on
                await four.wait_ready(timeout=20)
                assert (await four.group(0).propose(b"1")).value == 2

    run_once(main())


def locked(node):
    return node._room._folder._lock >= 0


def test_a_crash_after_it_was_taken_in_needs_nobody_any_more(run_once, tmp_path):
    async def main():
        configs = await closed_after(tmp_path, (3, 4))
        one, two, four = (more(configs[n]) for n in (1, 2, 4))
        async with one, two, opening(four) as task:
            await one.group(1).add_member(4, configs[4].members[4], timeout=30)
            await task
            kill(four)
        async with phx.Node(four.config, counters) as four:
            assert set(four.group(1).members().by_id) == {1, 2, 3, 4}

    run_once(main())


def test_who_joined_does_not_begin_a_group_without_saying_so(run_once, tmp_path):
    """Its file without `join` looks like that of a cluster of one."""

    async def main():
        configs = await closed_after(tmp_path, (3, 4))
        with pytest.raises(errors.ConfigError, match="group 1 is new here, and this node joined"):
            await more(configs[4], join=()).open()
        async with more(configs[4], groups=1, join=()) as four:
            assert set(four.group(0).members().by_id) == {1, 2, 4}

    run_once(main())


def test_a_file_that_names_others_than_at_first_begins_no_group(run_once, tmp_path):
    async def main():
        configs = await closed_after(tmp_path, (3, 4))
        edited = {n: at for n, at in configs[1].members.items() if n != 3} | configs[4].members
        edited[9] = "127.0.0.1:9"
        with pytest.raises(errors.ConfigError, match=r"began, 1, 2, 3; now it names 1, 2, 4, 9"):
            await more(configs[1], members=edited).open()
        async with more(configs[1], groups=1, members=edited) as one:  # they have no say there
            assert set(one.group(0).members().by_id) == {1, 2, 4}
            assert one._room._memberships.left(0) == {3}

    run_once(main())


def test_members_are_not_changed_by_another_file(run_once, tmp_path):
    """Those of another node would be others; two quorums."""

    async def main():
        config = config_of(tmp_path, 1, nodes=3)
        async with phx.Node(config, counters, bootstrap=True):
            pass
        for nodes in (1, 2, 4):
            with pytest.raises(errors.ConfigError, match="those of group 0 never changed"):
                await phx.Node(config_of(tmp_path, 1, nodes=nodes), counters).open()
        async with phx.Node(config, counters) as node:
            assert set(node.group(0).members().by_id) == {1, 2, 3}

    run_once(main())


def test_a_group_that_would_never_have_a_leader_is_not_begun(run_once, tmp_path):
    """Of its three first members two are members of nothing any more."""

    async def main():
        configs = await closed_after(tmp_path, (3, 4), (2, 5))
        with pytest.raises(errors.ConfigError, match="2, 3 are members of no other group any more"):
            await more(configs[1]).open()
        async with phx.Node(configs[1], counters) as one:
            assert set(one.group(0).members().by_id) == {1, 4, 5}

    run_once(main())


def test_a_store_that_does_not_know_who_the_first_were_begins_no_group_behind_a_change(
    run_once, tmp_path
):
    async def main():
        configs = await closed_after(tmp_path, (3, 4))
        for n in (1, 4):
            forget(configs[n])
            with pytest.raises(errors.ConfigError, match="were is not known any more"):
                await more(configs[n], join=()).open()

    run_once(main())


def test_a_store_that_does_not_know_who_the_first_were_learns_it_before_any_change(
    run_once, tmp_path
):
    async def main():
        config = config_of(tmp_path, 1, nodes=1, groups=1)
        async with phx.Node(config, counters, bootstrap=True):
            pass
        forget(config)
        async with more(config) as one:
            assert (await one.group(1).propose(b"1")).value == 1
        async with phx.Node(replace(config, groups=2), counters) as one:
            assert store_first.read(one._room._store) == {1}

    run_once(main())


def forget(config):
    """As a folder has it that is older than this, or lost its store, and its file, too."""
    (config.dir / store_first.FILE).unlink()
    forget_rows(config)


def forget_rows(config):
    with closing(
        Store.open(config.dir / "store", cluster=config.cluster_id, node=config.node)
    ) as store:
        store.remember(dict.fromkeys(store_first.NAMES))


def test_join_does_not_make_the_file_of_a_first_node_count(run_once, tmp_path):
    """1 of {1, 2, 3}, with a file that names itself alone: it would choose in {1}."""

    async def main():
        at = at_ports(1, 2, 3)
        async with cluster(tmp_path, counters, members=at, groups=1) as nodes:
            await nodes[0].group(0).propose(b"1")
            config = nodes[0].config
            await nodes[0].close()
            alone = {"members": {1: at[1]}, "join": (at[2],)}
            with pytest.raises(errors.ConfigError, match=r"began, 1, 2, 3; now it names 1\."):
                await more(config, groups=1, **alone).open()
            with pytest.raises(errors.ConfigError, match=r"began, 1, 2, 3; now it names 1\."):
                await more(config, groups=2, **alone).open()
            forget(config)
            with pytest.raises(errors.ConfigError, match="never changed, and nothing here says"):
                await more(config, groups=1, **alone).open()
            async with more(config, groups=1) as one:
                assert set(one.group(0).members().by_id) == {1, 2, 3}

    run_once(main())


def test_a_first_node_may_have_join_and_whom_it_named_at_first(run_once, tmp_path):
    async def main():
        at = at_ports(1, 2, 3)
        async with cluster(tmp_path, counters, members=at, groups=1) as nodes:
            await nodes[0].group(0).propose(b"1")
            config = nodes[0].config
            await nodes[0].close()
            async with more(config, groups=1, join=(at[2],)) as one:
                await one.wait_ready(timeout=20)
                assert set(one.group(0).members().by_id) == {1, 2, 3}
                assert (await one.group(0).propose(b"2")).value == 3
                assert (await one.add_member(4, "127.0.0.1:9", role=Role.LEARNER)).failed == {}

    run_once(main())


def test_who_the_first_were_outlives_the_store(run_once, tmp_path):
    async def main():
        configs = await closed_after(tmp_path, (3, 4))
        for n, ids in ((1, {1, 2, 3}), (4, set())):
            assert store_first.read_file(configs[n].dir) == ids
            forget_rows(configs[n])
        with pytest.raises(errors.ConfigError, match="group 1 is new here, and this node joined"):
            await more(configs[4], join=()).open()
        async with more(configs[1]) as one, more(configs[2]):
            assert store_first.read(one._room._store) == {1, 2, 3}
            assert (await one.group(1).propose(b"7")).value == 7

    run_once(main())


def test_a_node_that_joined_and_lost_its_store_knows_where_the_others_are(run_once, tmp_path):
    """Its file names itself alone; the journal says who the members are."""

    async def main():
        configs = await closed_after(tmp_path, (3, 4))
        async with phx.Node(configs[1], counters), phx.Node(configs[2], counters):
            shutil.rmtree(configs[4].dir / "store")
            async with phx.Node(configs[4], counters) as four:
                await four.wait_ready(timeout=20)
                assert four.status().stopped == ()
                assert (await four.group(0).propose(b"1")).value == 2

    run_once(main())


def test_a_group_that_it_is_a_member_of_is_not_left_out(run_once, tmp_path):
    async def main():
        configs = await closed_after(tmp_path, (3, 4))
        async with phx.Node(configs[1], counters), phx.Node(configs[2], counters):
            four = phx.Node(replace(configs[4], groups=(1,)), counters)
            with pytest.raises(errors.ConfigError, match="group 0, which cannot be left out"):
                await four.open()

    run_once(main())


def test_a_node_is_peer_of_the_members_it_was_told_of_and_of_nobody_else(run, tmp_path):
    """Whoever a node is asked for may have named a hundred others: more than 63 it has no room
    for."""

    async def main():
        async with cluster(tmp_path, counters, groups=1) as nodes:
            for other in range(100, 140):
                nodes[0]._room.peers.add(other, "127.0.0.1:9")
            for other in range(200, 240):
                nodes[1]._room.peers.add(other, "127.0.0.1:9")
            async with joining(tmp_path, [4], nodes, groups=1) as (four,):
                assert (await nodes[0].add_member(4, four.at)).failed == {}
                node = await four.opened()
                assert set(node.status().peers) == {1, 2, 3}
                assert {n: one.address for n, one in node.status().peers.items()} == addresses(
                    nodes
                )

    run(main())
