"""Who was a member of a group once is never one again: however a node went past the change."""

import asyncio
import shutil

import pytest

import phx
from phx import errors
from phx.node.memberships import Memberships
from phx.store import MembersRow
from phx.types import Role
from tests.checkpoint.checkpoint_lab import membership
from tests.ports import at_ports

from .cluster import cluster, config_of, until
from .members_lab import addresses, counters, have_lead, joining

FIRST = {1: "a:1", 2: "a:2", 3: "a:3"}


def memberships(first=FIRST, rows=None):
    return Memberships(
        lambda group, told, removed, left: None,
        lambda *said: None,
        first=first,
        kept=lambda group: (rows or {}).get(group, ()),
    )


def test_who_was_in_the_configuration_has_left_whatever_version_is_heard_of_first():
    """Of versions 2 and 3 a node may only hear of 3."""
    made = memberships()
    made.learned(7, membership(20, 3, (1, 2, 4)))
    assert made.left(7) == {3}
    made.learned(8, membership(20, 2, (1, 2, 4)))
    assert made.left(8) == {3}


def test_what_the_store_saw_go_by_counts():
    made = memberships(rows={7: (5,)})
    made.learned(7, membership(20, 3, (1, 2, 4)))
    assert made.left(7) == {3, 5}


def test_a_row_says_who_left():
    made = memberships(first={})
    made.begin({7: MembersRow(membership(20, 3, (1, 4)), left=(2, 9))}, [])
    assert made.left(7) == {2, 9}


def test_a_node_that_catches_up_over_two_changes_at_once_lets_nobody_come_back(run, tmp_path):
    """2 was away while 3 was replaced by 4, gets the log, and leads. 5 came and went meanwhile."""

    async def main():
        at = at_ports(1, 2, 3, 5)
        first = {n: where for n, where in at.items() if n != 5}
        async with cluster(tmp_path, counters, members=first, groups=1) as nodes:
            one, two, three = nodes
            await one.group(0).propose(b"1")
            await two.close()
            await one.group(0).add_member(5, at[5], role=Role.LEARNER)
            await one.group(0).remove_member(5)
            async with joining(tmp_path, [4], [one, three], groups=1) as (four,):
                assert (await one.replace_member(3, 4, four.at)).failed == {}
                await four.opened()
                async with phx.Node(two.config, counters) as again:
                    await again.wait_ready(timeout=20)
                    await until(lambda: again.group(0).members().version == 5)
                    left = again._room._memberships.left
                    await until(lambda: left(0) == {3, 5})
                    await have_lead([one, four.node, again], again)
                    for node in (3, 5):
                        with pytest.raises(errors.ConfigError, match="never a member again"):
                            await one.group(0).add_member(node, at[node], role=Role.LEARNER)

    run(main())


def test_who_only_stands_in_the_file_of_a_node_that_joined_never_was_a_member(run, tmp_path):
    async def main():
        at = at_ports(4, 5)
        async with cluster(tmp_path, counters, groups=1) as nodes:
            config = config_of(
                tmp_path, 4, members=at, join=list(addresses(nodes).values()), groups=1
            )
            four = phx.Node(config, counters, bootstrap=True)
            opening = asyncio.ensure_future(four.open())
            try:
                await nodes[0].group(0).add_member(4, at[4])
                await opening
                assert four._room._memberships.left(0) == set()
                await have_lead([*nodes, four], four)
                now = await four.group(0).add_member(5, at[5], role=Role.LEARNER)
                assert 5 in now.by_id
            finally:
                await four.close()

    run(main())


def test_a_leader_whose_store_was_made_anew_asks_who_left(run_once, tmp_path):
    """3 -> 4 -> 5. The journal of 1 only says who the members are now."""

    async def main():
        at = at_ports(1, 2, 3)
        async with cluster(tmp_path, counters, members=at, groups=1) as (one, two, three):
            await one.group(0).propose(b"1")
            async with joining(tmp_path, [4], [one, two], groups=1) as (fourth,):
                assert (await one.replace_member(3, 4, fourth.at, timeout=30)).failed == {}
                four = await fourth.opened()
                await three.close()
                async with joining(tmp_path, [5], [one, two, four], groups=1) as (fifth,):
                    assert (await one.replace_member(4, 5, fifth.at, timeout=30)).failed == {}
                    five = await fifth.opened()
                    await until(lambda: two._room._memberships.left(0) == {3, 4})
                    await one.close()
                    shutil.rmtree(one.config.dir / "store")
                    async with phx.Node(one.config, counters) as again:
                        await again.wait_ready(timeout=20)
                        assert again._room._memberships.left(0) == {3}
                        await have_lead([again, two, five], again)
                        with pytest.raises(errors.ConfigError, match="never a member again"):
                            await again.group(0).add_member(4, fourth.at, timeout=20)
                        assert set(again.group(0).members().by_id) == {1, 2, 5}

    run_once(main())
