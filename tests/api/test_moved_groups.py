"""Created groups that move to nodes that they did not begin on."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from click.testing import CliRunner

import phx
from phx import errors
from phx._core.driver import ERROR_OPTION, DriverError
from phx._core.member_table import CHANGE_CONFLICT
from phx.cli.commands import phx as phx_command
from phx.machines import Counter
from phx.membership import roster_of
from phx.types import DIRECTORY_GROUP, Role, created_version, learner, voter
from phx.verify import examine
from tests.durable.durable_lab import SqliteSums
from tests.ports import at_ports

from .catch_up import QUIET, trim
from .cluster import all_applied, until
from .created_lab import everywhere, hosts, phase, three
from .members_lab import addresses, counters, joining, kill, leader_of


def said_of(node, group):
    """Its members, as the directory has them by what this node has heard."""
    return [{*one.members} for one in node.created_groups() if one.group == group]


async def are_members(nodes, group, *members):
    """As each of these nodes hears by and by."""
    await until(lambda: all(said_of(node, group) == [{*members}] for node in nodes), seconds=20)


def nothing_is_left(node, group):
    """But a row of the store that says so."""
    store, folder = node._room._store, node.config.dir
    assert not list(folder.glob(f"checkpoints/{group}"))
    assert not list(folder.glob(f"machines/{group}.*"))
    assert group not in store.members()
    kept, settled = store.bounds(group)
    assert kept > settled


@asynccontextmanager
async def back(*nodes, machines=counters):
    """The same folders again."""
    again = [phx.Node(node.config, machines) for node in nodes]
    try:
        await asyncio.gather(*(one.open() for one in again))
        yield again
    finally:
        await asyncio.gather(*(one.close() for one in again))


async def adds(node, group, expected, times=1):
    for number in range(times):
        assert (await node.group(group).propose(b"1", timeout=20)).value == expected + number


def test_a_group_moves_to_other_nodes_altogether(run_once, tmp_path):
    """The old ones keep nothing, and callers there are told; the new ones have all of it."""

    async def main():
        async with three(tmp_path, nodes=6) as nodes:
            await nodes[0].create_group(7, [1, 2, 3])
            await everywhere(nodes[:3], 7)
            await adds(nodes[1], 7, 1, 5)
            await nodes[2].group(7).checkpoint()
            old = nodes[0].group(7)
            now = await nodes[0].move_group(7, [4, 5, 6], timeout=30)
            assert {node: one.role for node, one in now.by_id.items()} == {
                4: Role.VOTER, 5: Role.VOTER, 6: Role.VOTER,
            }  # fmt: skip
            assert now.active
            for number, node in enumerate(nodes[3:]):
                await adds(node, 7, 6 + number)
            await all_applied(nodes[3:], 7)
            await everywhere(nodes[:3], 7, there=False)
            await are_members(nodes, 7, 4, 5, 6)
            for node in nodes[:3]:
                with pytest.raises(errors.NotInCluster):
                    node.group(7)
                await until(lambda node=node: node._room._hosting.is_gone(7, 1))
                nothing_is_left(node, 7)
            for call in (lambda: old.propose(b"1"), lambda: old.read(None), old.checkpoint):
                with pytest.raises(errors.NotInCluster):
                    await call()
            with pytest.raises(errors.NotInCluster):
                await nodes[0].move_group(7, [4, 5], timeout=5)
            assert (await nodes[1].create_group(7, [1, 2, 3])).generation == 1, "it was created"
            with pytest.raises(errors.GroupExists):
                await nodes[1].create_group(7, [4, 5, 6])

    run_once(main())


def test_members_come_and_go_one_at_a_time_and_in_other_roles(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=5) as nodes:
            await nodes[0].create_group(7, [1, 2, 3])
            await everywhere(nodes[:3], 7)
            await adds(nodes[0], 7, 1)
            where, group = addresses(nodes), nodes[0].group(7)
            now = await group.add_member(4, where[4], role=Role.LEARNER, timeout=20)
            assert now.by_id[4] == learner(where[4])
            await until(lambda: hosts(nodes[3], 7))
            await adds(nodes[3], 7, 2)
            now = await nodes[3].group(7).replace_member(1, 5, where[5], timeout=20)
            assert (set(now.by_id), now.by_id[4].role) == ({2, 3, 4, 5}, Role.LEARNER)
            await everywhere(nodes[:1], 7, there=False)
            with pytest.raises(errors.VersionConflict):
                await nodes[1].group(7).set_members({2: voter(where[2])}, now.version - 1)
            later = (
                await nodes[1]
                .group(7)
                .set_members({n: voter(where[n]) for n in (2, 4, 5)}, now.version, timeout=20)
            )
            assert later.version == now.version + 1
            await everywhere(nodes[2:3], 7, there=False)
            for number, node in enumerate((nodes[1], nodes[3], nodes[4])):
                await adds(node, 7, 3 + number)
            with pytest.raises(errors.NotInCluster, match="directory"):
                await nodes[1].group(7).add_member(6, "127.0.0.1:9")
            with pytest.raises(errors.NotInCluster, match="directory"):
                await nodes[1].move_group(7, [2, 6])

    run_once(main())


def test_new_voters_that_were_no_learners_come_as_soon_as_they_are_named(run_once, tmp_path):
    """Where the members before are most of those that are to be."""

    async def main():
        async with three(tmp_path, nodes=5, members=at_ports(1, 2, 3, 4, 5)) as nodes:
            await nodes[0].create_group(7, [1, 2, 3])
            await everywhere(nodes[:3], 7)
            await adds(nodes[0], 7, 1)
            where = addresses(nodes)
            to = {node: voter(where[node]) for node in range(1, 6)}
            now = await nodes[1].group(7).set_members(to, timeout=20)
            assert now.active
            await everywhere(nodes, 7)
            await all_applied(nodes, 7)
            for node in nodes[:2]:
                kill(node)
            await adds(nodes[3], 7, 2)
            with pytest.raises(errors.NotCaughtUp):
                await nodes[4].group(7).set_members({1: to[1], 2: to[2]}, timeout=2)

    run_once(main())


def test_who_left_is_never_a_member_of_the_same_group_again(run_once, tmp_path):
    """And may be one of the next group of the id."""

    async def main():
        async with three(tmp_path, nodes=4) as nodes:
            await nodes[0].create_group(7, [1, 2, 3])
            await everywhere(nodes[:3], 7)
            await adds(nodes[0], 7, 1)
            await nodes[0].move_group(7, [2, 3, 4], timeout=30)
            await everywhere(nodes[:1], 7, there=False)
            for node in nodes[1:]:
                with pytest.raises(errors.ConfigError, match="never a member again"):
                    await node.move_group(7, [1, 2, 3], timeout=20)
            assert set(nodes[3].group(7).members().by_id) == {2, 3, 4}
            await nodes[0].delete_group(7, timeout=20)
            await everywhere(nodes, 7, there=False)
            again = await nodes[3].create_group(7, [1, 4])
            assert again.generation == 2
            await everywhere([nodes[0], nodes[3]], 7)
            await adds(nodes[0], 7, 1)
            await nodes[0].move_group(7, [1, 2, 3], timeout=30)
            await adds(nodes[2], 7, 2)

    run_once(main())


def test_values_are_taken_while_a_group_moves_and_each_is_applied_once(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=6) as nodes:
            await nodes[0].create_group(7, [1, 2, 3])
            await everywhere(nodes[:3], 7)
            done, perhaps, ending = 0, 0, False

            async def client(node):
                nonlocal done, perhaps
                while not ending and hosts(node, 7):
                    try:
                        await node.group(7).propose(b"1", timeout=20)
                        done += 1
                    except errors.Unknown:
                        perhaps += 1
                    except errors.Rejected:
                        await asyncio.sleep(0.01)

            clients = [asyncio.ensure_future(client(node)) for node in nodes[:3] for _ in range(4)]
            await until(lambda: done > 100)
            await nodes[1].move_group(7, [4, 5, 6], timeout=30)
            clients += [asyncio.ensure_future(client(node)) for node in nodes[3:]]
            before = done
            await until(lambda: done > before + 100)
            ending = True
            await asyncio.gather(*clients)
            total = (await nodes[4].group(7).propose(b"0", timeout=20)).value
            assert done <= total <= done + perhaps

    run_once(main())


async def command(*words):
    return await asyncio.to_thread(CliRunner().invoke, phx_command, [*map(str, words)])


def test_groups_move_by_commands(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=5) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            folders, where = [node.config.dir for node in nodes], addresses(nodes)
            done = await command("groups", "move", folders[0], 7, 3, 4, "--json")
            assert done.exit_code == 0, done.output
            (found,) = json.loads(done.stdout)["groups"]
            assert [one["node"] for one in found["members"]] == [3, 4]
            await everywhere(nodes[:2], 7, there=False)
            refused = await command("groups", "move", folders[0], 7, 1)
            assert (refused.exit_code, "not hosted" in refused.output) == (1, True)
            refused = await command("groups", "move", folders[2], 7, 9)
            assert (refused.exit_code, "directory" in refused.output) == (1, True)
            done = await command("member", "add", folders[2], 5, where[5], "--group", 7)
            assert done.exit_code == 0, done.output
            await adds(nodes[4], 7, 1)
            done = await command("member", "remove", folders[2], 4, "--group", 7)
            assert done.exit_code == 0, done.output
            await are_members(nodes, 7, 3, 5)
            listed = await command("groups", "list", folders[0])
            assert listed.output == (
                f"group 7, generation 1: live, 3 at {where[3]}, 5 at {where[5]}\n"
            )

    run_once(main())


def test_a_cluster_with_created_groups_moves_to_other_machines_in_one_call(run_once, tmp_path):
    """Groups of the configuration, the directory and created ones, on nodes that join for it."""

    async def main():
        async with three(tmp_path) as nodes:
            for group in (7, 8):
                await nodes[0].create_group(group)
                await everywhere(nodes, group)
                await adds(nodes[1], group, 1)
            async with joining(tmp_path, (4, 5, 6), nodes, groups=1, directory=True) as new:
                to = {one.number: voter(one.at) for one in new}
                changed = await nodes[0].set_members(to, timeout=60)
                assert (changed.failed, set(changed.done)) == ({}, {0, 7, 8, DIRECTORY_GROUP})
                for node in nodes:
                    kill(node)
                those = [await one.opened() for one in new]
                for group in (7, 8):
                    await everywhere(those, group)
                    for number, node in enumerate(those):
                        await adds(node, group, 2 + number)
                await those[1].create_group(9)
                await adds(those[1], 9, 1)
                await those[2].delete_group(7, timeout=30)
                await everywhere(those, 7, there=False)

    run_once(main())


# --- restarts


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_moved_group_is_there_after_a_restart_of_all_nodes(run_once, tmp_path, how):
    async def main():
        async with three(tmp_path, nodes=4, members=at_ports(1, 2, 3, 4)) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            await adds(nodes[0], 7, 1, 3)
            await nodes[0].move_group(7, [3, 4], timeout=30)
            await adds(nodes[2], 7, 4)
            await everywhere(nodes[:2], 7, there=False)
            if how == "killed":
                for node in nodes:
                    kill(node)
        for number in range(2):
            async with back(*nodes) as again:
                assert [hosts(node, 7) for node in again] == [False, False, True, True]
                await adds(again[3], 7, 5 + 2 * number)
                await adds(again[2], 7, 6 + 2 * number)
                await are_members(again, 7, 3, 4)
                assert set(again[2].group(7).members().by_id) == {3, 4}
                if how == "killed":
                    for node in again:
                        kill(node)
        for node in nodes:
            found = await asyncio.to_thread(examine, node.config.dir, whole=True)
            assert found.findings == []

    run_once(main())


def test_a_moved_group_is_stopped_resumed_and_deleted(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=4, members=at_ports(1, 2, 3, 4)) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            await adds(nodes[0], 7, 1)
            await nodes[1].move_group(7, [3, 4], timeout=30)
            await nodes[0].stop_group(7)
            await until(lambda: all(node.group(7).status().stopped for node in nodes[2:]))
            with pytest.raises(errors.GroupStopped):
                await nodes[2].group(7).propose(b"1")
            with pytest.raises(errors.GroupStopped):
                await nodes[2].move_group(7, [1, 4])
            await nodes[3].close()
            async with back(nodes[3]) as (four,):
                await until(lambda: four.group(7).status().stopped)
                await nodes[1].resume_group(7)
                await until(lambda: not four.group(7).status().stopped)
                await adds(four, 7, 2)
                await nodes[2].stop_group(7)
                assert (await nodes[0].delete_group(7, timeout=20)).phase == "gone"
                await everywhere([nodes[2], four], 7, there=False)
                for node in (nodes[2], four):
                    await until(lambda node=node: node._room._hosting.is_gone(7, 1))
                    nothing_is_left(node, 7)

    run_once(main())


# --- nodes that are down meanwhile


def test_a_node_that_is_down_is_a_learner_until_it_is_back(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=4, members=at_ports(1, 2, 3, 4)) as nodes:
            await nodes[0].create_group(7, [1, 2, 3])
            await everywhere(nodes[:3], 7)
            await adds(nodes[0], 7, 1)
            kill(nodes[3])
            with pytest.raises(errors.NotCaughtUp):
                await nodes[0].move_group(7, [2, 3, 4], timeout=2)
            now = nodes[0].group(7).members()
            assert {n for n, one in now.by_id.items() if one.role == Role.VOTER} == {1, 2, 3}
            await adds(nodes[2], 7, 2)
            async with back(nodes[3]) as (four,):
                await until(lambda: hosts(four, 7), seconds=20)
                await nodes[0].move_group(7, [2, 3, 4], timeout=30)
                await adds(four, 7, 3)
                await everywhere(nodes[:1], 7, there=False)

    run_once(main())


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("stays", [True, False])
def test_a_member_that_was_down_while_its_group_moved_hears_of_it(run_once, tmp_path, stays, begun):
    """The others of then have dropped all they had: they answer nothing."""

    async def main():
        async with three(tmp_path, nodes=5, members=at_ports(1, 2, 3, 4, 5)) as nodes:
            if not begun:
                kill(nodes[2])
            await nodes[0].create_group(7, [1, 2, 3])
            await everywhere(nodes[: 3 if begun else 2], 7)
            await adds(nodes[0], 7, 1, 3)
            if begun:
                await all_applied(nodes[:3], 7)
                kill(nodes[2])
            where, group = addresses(nodes[:2] + nodes[3:]), nodes[0].group(7)
            for node in (4, 5):
                await group.add_member(node, where[node], timeout=20)
            now = group.members()
            kept = {3: now.by_id[3]} if stays else {}
            to = {n: voter(where[n]) for n in (4, 5)} | kept
            await group.set_members(to, now.version, timeout=20)
            await everywhere(nodes[:2], 7, there=False)
            await adds(nodes[3], 7, 4)
            async with back(nodes[2]) as (three_,):
                if stays:
                    await until(lambda: hosts(three_, 7), seconds=20)
                    await adds(three_, 7, 5)
                    kill(nodes[4])
                    await adds(nodes[3], 7, 6)
                else:
                    await until(lambda: three_._room._hosting.is_gone(7, 1), seconds=20)
                    await are_members([three_], 7, 4, 5)
                    assert not hosts(three_, 7)
                    assert 7 not in three_._room._store.members()

    run_once(main())


def test_a_node_that_comes_late_gets_what_the_log_has_no_more(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=3, checkpoints=QUIET) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            await adds(nodes[0], 7, 1, 20)
            await all_applied(nodes[:2], 7)
            for node in nodes[:2]:
                assert await trim(node, 7) > 20
            await nodes[0].move_group(7, [2, 3], timeout=30)
            await adds(nodes[2], 7, 21)
            assert nodes[2].status().transfers["installed"] == 1
            await nodes[2].move_group(7, [3], timeout=30)
            await adds(nodes[2], 7, 22)

    run_once(main())


@pytest.mark.parametrize("trimmed", [False, True])
def test_the_files_of_durable_machines_move(run_once, tmp_path, trimmed):
    """They are made by the log or a checkpoint where they come, and go where they were."""

    def sums(group):
        return SqliteSums() if group == 7 else Counter()

    async def main():
        members = at_ports(1, 2, 3)
        async with three(tmp_path, sums, members=members, checkpoints=QUIET) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            for _ in range(5):
                await nodes[0].group(7).propose(b"1 2")
            if trimmed:
                await all_applied(nodes[:2], 7)
                for node in nodes[:2]:
                    await trim(node, 7)
            await nodes[0].move_group(7, [3], timeout=30)
            assert (await nodes[2].group(7).propose(b"1 2")).value == 12
            assert list(nodes[2].config.dir.glob("machines/7.*"))
            for node in nodes[:2]:
                await until(lambda node=node: node._room._hosting.is_gone(7, 1))
                nothing_is_left(node, 7)
            kill(nodes[2])
            async with back(nodes[2], machines=sums) as (again,):
                await everywhere([again], 7)
                assert (await again.group(7).propose(b"1 2", timeout=20)).value == 14

    run_once(main())


# --- deleted, and leaders that die, meanwhile


def test_a_group_is_deleted_while_it_moves(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=4, members=at_ports(1, 2, 3, 4)) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            await adds(nodes[0], 7, 1)
            kill(nodes[3])
            moving = asyncio.ensure_future(nodes[0].move_group(7, [3, 4], timeout=60))
            await until(lambda: hosts(nodes[2], 7))
            await nodes[1].delete_group(7, timeout=30)
            with pytest.raises((errors.NotInCluster, errors.GroupDeleted, errors.Unknown)):
                await asyncio.wait_for(moving, 30)
            await everywhere(nodes[:3], 7, there=False)
            async with back(nodes[3]) as (four,):
                assert (await four.create_group(7, [3, 4], timeout=20)).generation == 2
                await everywhere([nodes[2], four], 7)
                await adds(four, 7, 1)

    run_once(main())


def test_a_group_moves_on_though_its_leader_dies(run_once, tmp_path):
    """At a time of the move that is another one each time."""

    async def main():
        async with three(tmp_path, nodes=6, members=at_ports(*range(1, 7))) as nodes:
            await nodes[0].create_group(7, [1, 2, 3])
            await everywhere(nodes[:3], 7)
            await adds(nodes[0], 7, 1)
            await until(lambda: any(node.group(7).is_leader for node in nodes[:3]))
            lead = leader_of(nodes[:3], 7)
            asker = next(node for node in nodes[:3] if node is not lead)
            moving = asyncio.ensure_future(asker.move_group(7, [4, 5, 6], timeout=60))
            await until(lambda: asker.group(7).members().version > 2)
            kill(lead)
            now = await moving
            assert set(now.by_id) == {4, 5, 6}
            await adds(nodes[3], 7, 2)
            left = [node for node in nodes if node is not lead]
            await are_members(left, 7, 4, 5, 6)
            async with back(lead) as (again,):
                await until(lambda: again._room._hosting.is_gone(7, 1), seconds=20)
                assert not hosts(again, 7)
                await until(lambda: phase(again, 7) == "live")

    run_once(main())


# --- calls that are of another group than they were


def test_a_call_ends_with_its_group_and_does_not_move_the_next_one_of_its_id(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=4, members=at_ports(1, 2, 3, 4)) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            await adds(nodes[0], 7, 1)
            kill(nodes[3])
            moving = asyncio.ensure_future(nodes[0].move_group(7, [3, 4], timeout=40))
            await until(lambda: hosts(nodes[2], 7))
            await nodes[1].delete_group(7, timeout=30)
            made = await nodes[1].create_group(7, [1, 2], timeout=20)
            assert made.generation == 2
            async with back(nodes[3]):
                with pytest.raises((errors.NotInCluster, errors.TimedOutUnknown)):
                    await asyncio.wait_for(moving, 30)
                await everywhere(nodes[:2], 7)
                await adds(nodes[0], 7, 1)
                await asyncio.sleep(0.5)
                assert said_of(nodes[0], 7) == [{1, 2}]
                assert nodes[0].group(7).members().version == created_version(2)

    run_once(main())


def test_a_version_of_one_generation_is_none_of_the_next(run_once, tmp_path):
    """Neither with the handle of before, nor with that of now."""

    async def main():
        async with three(tmp_path, nodes=2) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes, 7)
            old = nodes[0].group(7)
            seen = old.members()
            await nodes[0].delete_group(7, timeout=20)
            await nodes[0].create_group(7, [1, 2], timeout=20)
            await everywhere(nodes, 7)
            one = {1: seen.by_id[1]}
            (end,) = await asyncio.gather(
                old.set_members(one, version=seen.version, timeout=10), return_exceptions=True
            )
            assert isinstance(end, errors.NotInCluster), end
            now = nodes[0].group(7)
            with pytest.raises(errors.VersionConflict):
                await now.set_members(one, version=seen.version, timeout=10)
            assert now.members().by_id.keys() == {1, 2}
            # Whoever leads the next one turns down what is meant for the one before.
            changes = nodes[0]._room.changes
            await until(lambda: any(node.group(7).is_leader for node in nodes))
            leader = leader_of(nodes, 7)
            answer = leader._room.changes.answer(7, roster_of(seen.version + 1, one))
            assert answer.verdict == CHANGE_CONFLICT
            assert changes.members(7)[7].version == created_version(2)

    run_once(main())


def test_only_created_groups_are_moved(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=2) as nodes:
            for group in (DIRECTORY_GROUP, 0, 8):
                with pytest.raises(errors.NotInCluster, match="was not created"):
                    await nodes[0].move_group(group, [1], timeout=5)
            done = await command("groups", "move", nodes[0].config.dir, DIRECTORY_GROUP, 1)
            assert (done.exit_code, "was not created" in done.output) == (1, True)
            assert len(nodes[0].group(DIRECTORY_GROUP).members().by_id) == 2

    run_once(main())


def test_a_group_that_moves_on_before_its_creator_has_it_was_created_all_the_same(
    run_once, tmp_path
):
    async def main():
        async with three(tmp_path, nodes=4, members=at_ports(1, 2, 3, 4)) as nodes:
            hosting = nodes[0]._room._hosting
            hosting._is_seen = lambda: False  # it is slow to see the directory
            making = asyncio.ensure_future(nodes[0].create_group(7, [1, 2, 3], timeout=30))
            await everywhere(nodes[1:3], 7)
            await adds(nodes[1], 7, 1)
            await nodes[1].move_group(7, [2, 3, 4], timeout=20)
            del hosting._is_seen
            assert (await making).generation == 1

    run_once(main())


def test_news_that_come_while_a_group_is_looked_at_are_looked_at(run_once, tmp_path, monkeypatch):
    async def main():
        async with three(tmp_path, nodes=1) as (node,):
            await node.create_group(7)
            hosting, looks = node._room._hosting, []
            reconcile = hosting._reconcile

            def slow(group, row):
                looks.append(group)
                if len(looks) == 1:
                    hosting.again(group)  # as a change of members that is heard of just now
                return reconcile(group, row)

            monkeypatch.setattr(hosting, "_reconcile", slow)
            hosting.again(7)
            await until(lambda: len(looks) >= 2)

    run_once(main())


def test_a_group_that_could_not_begin_may_be_the_next_one_of_its_id(
    run_once, tmp_path, monkeypatch
):
    async def main():
        async with three(tmp_path, nodes=3) as nodes:
            hosting = nodes[2]._room._hosting
            table = hosting._table

            class Refusing:
                def __getattr__(self, name):
                    return getattr(table, name)

                def add(self, *of, **more):
                    raise DriverError(ERROR_OPTION, "it cannot be")

            hosting._table = Refusing()
            await nodes[0].create_group(7, [1, 2, 3])
            await until(lambda: 7 in hosting.failed)
            await nodes[0].delete_group(7, timeout=20)
            hosting._table = table
            await nodes[0].create_group(7, [1, 2, 3], timeout=20)
            await everywhere(nodes, 7)
            await adds(nodes[2], 7, 1)

    run_once(main())
