"""Groups that are created, stopped and deleted while their cluster runs, on real nodes."""

import asyncio
import json

import pytest
from click.testing import CliRunner

import phx
from phx import errors, store_hosted
from phx._core.codec import allocations_live, blocks_live
from phx.cli.commands import phx as phx_command
from phx.machines import Counter
from phx.store import Store
from phx.types import DIRECTORY_GROUP
from tests.ports import at_ports

from .cluster import Journal, all_applied, cluster, config_of, until
from .created_lab import everywhere, hosts, phase, three
from .members_lab import addresses, counters, kill

# --- create


@pytest.mark.parametrize("creator", [0, 1, 2])
def test_a_group_that_is_created_at_any_node_is_there_at_all(run_once, tmp_path, creator):
    async def main():
        async with three(tmp_path) as nodes:
            made = await nodes[creator].create_group(7)
            assert (made.group, made.generation, made.phase) == (7, 1, "live")
            assert list(made.members) == [1, 2, 3]
            assert (await nodes[creator].group(7).propose(b"5")).value == 5, "at once"
            await everywhere(nodes, 7)
            for number, node in enumerate(nodes):
                assert (await node.group(7).propose(b"1")).value == 6 + number
            await all_applied(nodes, 7)
            assert (await nodes[0].group(0).propose(b"1")).value == 1, "others know nothing of it"

    run_once(main())


def test_groups_live_on_different_subsets_of_the_nodes(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=4) as nodes:
            subsets = {5: (1, 2), 6: (2, 3, 4), 7: (4,)}
            for number, (group, members) in enumerate(subsets.items()):
                await nodes[number].create_group(group, members)
            for group, members in subsets.items():
                those = [nodes[node - 1] for node in members]
                await everywhere(those, group)
                for number, node in enumerate(those):
                    assert set(node.group(group).members().by_id) == set(members)
                    assert (await node.group(group).propose(b"1")).value == number + 1
                for node in nodes:
                    if node not in those:
                        with pytest.raises(errors.NotInCluster):
                            node.group(group)
            # Nobody else's vote counts: 2 is half of {1, 2}.
            await nodes[0].close()
            with pytest.raises((errors.NoQuorum, errors.Unknown)):
                await nodes[1].group(5).propose(b"1", timeout=1)
            assert (await nodes[1].group(6).propose(b"1", timeout=10)).value == 4

    run_once(main())


def test_a_group_that_is_there_is_created_only_with_the_same_members(run_once, tmp_path):
    async def main():
        async with three(tmp_path) as nodes:
            first = await nodes[0].create_group(7, [1, 2])
            assert await nodes[2].create_group(7, [2, 1]) == first, "to ask again is safe"
            with pytest.raises(errors.GroupExists) as refused:
                await nodes[0].create_group(7)
            assert (refused.value.group, refused.value.phase) == (7, "live")
            with pytest.raises(errors.GroupExists, match="configured"):
                await nodes[0].create_group(0)
            with pytest.raises(errors.GroupExists, match="configured"):
                await nodes[0].create_group(DIRECTORY_GROUP)
            with pytest.raises(errors.NotInCluster):
                await nodes[0].create_group(8, [1, 9])
            with pytest.raises(ValueError, match="members"):
                await nodes[0].create_group(8, [])
            with pytest.raises(errors.NotInCluster):
                await nodes[0].delete_group(9)

    run_once(main())


def test_who_hears_at_the_same_time_of_two_creators_hosts_one_group(run_once, tmp_path):
    async def main():
        async with three(tmp_path) as nodes:
            found = await asyncio.gather(
                nodes[0].create_group(7, [1, 2]),
                nodes[1].create_group(7, [2, 3]),
                return_exceptions=True,
            )
            refused = [one for one in found if isinstance(one, errors.GroupExists)]
            made = [one for one in found if isinstance(one, phx.types.CreatedGroup)]
            assert len(refused) == len(made) == 1
            those = [nodes[node - 1] for node in made[0].members]
            await everywhere(those, 7)
            assert (await those[0].group(7).propose(b"1")).value == 1

    run_once(main())


def test_without_a_directory_no_group_is_created(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, counters, nodes=1) as nodes:
            for call in (nodes[0].create_group(7), nodes[0].delete_group(7)):
                with pytest.raises(errors.ConfigError, match="directory"):
                    await call

    run_once(main())


# --- delete


def test_a_deleted_group_is_gone_everywhere_and_its_id_is_another_groups(run_once, tmp_path):
    async def main():
        async with three(tmp_path) as nodes:
            await nodes[0].create_group(7)
            await everywhere(nodes, 7)
            await nodes[0].group(7).propose(b"5")
            old = nodes[0].group(7)
            gone = await nodes[1].delete_group(7)
            assert (gone.phase, gone.generation, dict(gone.members)) == ("gone", 1, {})
            await everywhere(nodes, 7, there=False)
            for call in (lambda: old.propose(b"1"), lambda: old.read(None)):
                with pytest.raises(errors.GroupDeleted):
                    await call()
            assert not list(tmp_path.glob("node*/checkpoints/7"))
            again = await nodes[2].create_group(7, [1, 2])
            assert (again.generation, list(again.members)) == (2, [1, 2])
            await everywhere(nodes[:2], 7)
            assert (await nodes[0].group(7).propose(b"1")).value == 1, "it knows nothing of the 5"
            assert (await nodes[1].group(7).propose(b"1")).value == 2
            with pytest.raises(errors.GroupDeleted):
                await old.propose(b"1")
            await nodes[1].delete_group(7)
            await everywhere(nodes, 7, there=False)
            for call in (old.checkpoint, old.repair):
                with pytest.raises(errors.GroupDeleted):
                    await call()
            with pytest.raises(errors.NotInCluster):
                await old.remove_member(3)
            with pytest.raises(errors.NotInCluster):
                await nodes[1].delete_group(7)

    run_once(main())


def test_a_value_on_its_way_is_applied_or_refused_when_its_group_is_deleted(run_once, tmp_path):
    """Whoever is told a result has it in the log of all; whoever is told `rejected` in that of
    none; nobody is left waiting."""
    applied = {}

    class Kept(Journal):
        def __init__(self, node):
            super().__init__()
            self.node = node

        def apply(self, entry):
            applied.setdefault(self.node, []).append(entry.value)
            return super().apply(entry)

    async def main():
        numbers = iter(range(1, 100))

        def machines(group):
            return Kept(next(numbers)) if group == 7 else Counter()

        async with three(tmp_path, machines) as nodes:
            await nodes[0].create_group(7)
            await everywhere(nodes, 7)
            done, rejected = [], []

            async def client(node, name):
                number = 0
                while True:
                    value = b"%s-%d" % (name, number)
                    number += 1
                    try:
                        await node.group(7).propose(value, timeout=10)
                    except errors.DeletedUnknown:
                        return
                    except (errors.GroupDeleted, errors.NotInCluster):
                        rejected.append(value)
                        return
                    done.append(value)

            clients = [
                asyncio.ensure_future(client(node, b"%d.%d" % (node.config.node, n)))
                for node in nodes
                for n in range(8)
            ]
            await until(lambda: len(done) > 50)
            await nodes[1].delete_group(7)
            await asyncio.wait_for(asyncio.gather(*clients), 20)
            logs = sorted(applied.values(), key=len)
            assert set(done) <= set(logs[-1])
            assert not set(rejected) & set(logs[-1])
            assert all(log == logs[-1][: len(log)] for log in logs)
            await everywhere(nodes, 7, there=False)
            assert nodes[0].status().waiting_values == 0

    run_once(main())


def test_a_node_that_was_down_hears_later(run_once, tmp_path):
    """Of a group that was created meanwhile, of one that was deleted, and of one whose id is
    another group's by now."""

    async def main():
        members = at_ports(1, 2, 3)
        async with three(tmp_path, members=members) as nodes:
            for group in (5, 6):
                await nodes[0].create_group(group)
                await everywhere(nodes, group)
                await nodes[2].group(group).propose(b"5")
            kill(nodes[2])
            await nodes[0].delete_group(5)
            await nodes[0].delete_group(6)
            await nodes[1].create_group(6)
            await nodes[1].create_group(8)
            assert (await nodes[0].group(6).propose(b"1")).value == 1
            back = phx.Node(nodes[2].config, counters)
            async with back:
                await until(lambda: hosts(back, 8) and not hosts(back, 5), seconds=20)
                await until(lambda: hosts(back, 6) and back.group(6).status().applied_through)
                await back.wait_ready(timeout=20)
                assert (await back.group(6).propose(b"1")).value == 2
                assert (await back.group(8).propose(b"1")).value == 1
                await all_applied([nodes[0], nodes[1], back], 6)

    run_once(main())


def test_a_group_is_deleted_though_a_member_is_down_and_not_without_most(run_once, tmp_path):
    async def main():
        members = at_ports(1, 2, 3)
        async with three(tmp_path, members=members) as nodes:
            await nodes[0].create_group(7, [2, 3])
            await everywhere(nodes[1:], 7)
            kill(nodes[2])
            asked = await asyncio.gather(
                nodes[0].delete_group(7, timeout=1), return_exceptions=True
            )
            assert [type(one) for one in asked] == [errors.TimedOutUnknown]
            assert phase(nodes[0], 7) == "ending"
            with pytest.raises(errors.GroupExists, match="ending"):
                await nodes[0].create_group(7)
            async with phx.Node(nodes[2].config, counters) as back:
                assert (await nodes[0].delete_group(7, timeout=20)).phase == "gone"
                await everywhere([nodes[1], back], 7, there=False)

    run_once(main())


def test_what_the_store_has_of_a_deleted_group_is_nothing_of_the_next_one_of_its_id(
    run_once, tmp_path
):
    async def settled(node):
        node._room.driver.settle_now()
        await until(lambda: not node.status().settle["pending"])
        assert node.group(7).status().settled_through == node.group(7).status().chosen_through

    async def main():
        async with three(tmp_path, nodes=1) as nodes:
            await nodes[0].create_group(7)
            for _ in range(20):
                await nodes[0].group(7).propose(b"5")
            await settled(nodes[0])
            await nodes[0].delete_group(7)
            await nodes[0].create_group(7)
            for number in range(1, 5):
                assert (await nodes[0].group(7).propose(b"1")).value == number
            await settled(nodes[0])
        async with phx.Node(nodes[0].config, counters) as back:
            await until(lambda: back.group(7).status().leader or back.group(7).status().stopped)
            assert not back.group(7).status().stopped
            assert (await back.group(7).propose(b"1", timeout=10)).value == 5
            sound = await asyncio.to_thread(lambda: back._room._store.verify())
            assert sound >= 4

    run_once(main())


# --- stop


def test_a_stopped_group_keeps_all_and_takes_no_values_until_it_is_resumed(run_once, tmp_path):
    async def main():
        members = at_ports(1, 2, 3)
        async with three(tmp_path, members=members) as nodes:
            await nodes[0].create_group(7)
            await everywhere(nodes, 7)
            await nodes[0].group(7).propose(b"5")
            assert (await nodes[1].stop_group(7)).phase == "stopped"
            await until(lambda: all(node.group(7).status().stopped for node in nodes))
            for node in nodes:
                for call in (lambda g: g.propose(b"1"), lambda g: g.read(None)):
                    with pytest.raises(errors.GroupStopped):
                        await call(node.group(7))
            assert nodes[0].ready(), "nobody waits for it"
            with pytest.raises(errors.GroupExists, match="stopped"):
                await nodes[0].create_group(7)
            await nodes[2].close()
            async with phx.Node(nodes[2].config, counters) as back:
                with pytest.raises(errors.GroupStopped):
                    await back.group(7).propose(b"1")
                assert (await back.resume_group(7)).phase == "live"
                those = [nodes[0], nodes[1], back]
                await until(lambda: not any(node.group(7).status().stopped for node in those))
                for number, node in enumerate(those):
                    assert (await node.group(7).propose(b"1", timeout=20)).value == 6 + number
                await all_applied(those, 7)
                await nodes[0].stop_group(7)
                assert (await nodes[0].delete_group(7, timeout=20)).phase == "gone"

    run_once(main())


# --- what they share with all groups


def test_a_created_group_is_there_after_a_restart_from_log_and_from_checkpoint(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=1) as nodes:
            for group in (7, 8):
                await nodes[0].create_group(group)
                await nodes[0].group(group).propose(b"5")
            await nodes[0].group(8).checkpoint()
            await nodes[0].group(8).propose(b"1")
        for number in range(2):
            async with phx.Node(nodes[0].config, counters) as back:
                await back.wait_ready(timeout=20)
                assert (await back.group(7).propose(b"1")).value == 6 + number
                assert (await back.group(8).propose(b"1")).value == 7 + number
                if number:
                    kill(back)

    run_once(main())


def test_a_member_that_lost_its_state_gets_it_from_the_others(run_once, tmp_path):
    async def main():
        async with three(tmp_path) as nodes:
            await nodes[0].create_group(7)
            await everywhere(nodes, 7)
            await nodes[0].group(7).propose(b"5")
            await nodes[0].group(7).checkpoint()
            await nodes[2].group(7).repair()
            assert (await nodes[2].group(7).propose(b"1")).value == 6

    run_once(main())


def test_members_of_a_created_group_change_among_those_that_it_began_with(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=4) as nodes:
            await nodes[0].create_group(7, [1, 2, 3])
            await everywhere(nodes[:3], 7)
            group = nodes[0].group(7)
            now = await group.remove_member(3)
            assert set(now.by_id) == {1, 2}
            with pytest.raises(errors.NotInCluster, match="directory"):
                await group.add_member(5, f"127.0.0.1:{nodes[3].port}")
            with pytest.raises(ValueError, match="members"):
                await group.set_members({}, now.version)
            assert (await group.propose(b"1")).value == 1
            await nodes[2].delete_group(7, timeout=20)
            await everywhere(nodes, 7, there=False)

    run_once(main())


def test_the_blocking_node_has_the_same_calls(tmp_path):
    config = config_of(tmp_path, 1, 1, groups=0, directory=True)
    with phx.blocking.Node(config, counters, bootstrap=True) as node:
        node.wait_ready(timeout=20)
        assert node.create_group(3).phase == "live"
        assert node.group(3).propose(b"4").value == 4
        assert node.stop_group(3).phase == "stopped"
        with pytest.raises(errors.GroupStopped):
            node.group(3).propose(b"4")
        assert node.resume_group(3).phase == "live"
        assert node.group(3).propose(b"4").value == 8
        assert set(node.move_group(3, [1]).by_id) == {1}, "it is there already"
        assert node.delete_group(3).phase == "gone"
        with pytest.raises(errors.NotInCluster):
            node.group(3)
        assert [one.phase for one in node.created_groups()] == ["gone"]


def test_a_file_that_does_not_go_with_the_groups_there_are_is_refused(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=1) as nodes:
            await nodes[0].create_group(7)
        for changes in ({"directory": False}, {"groups": 9}):
            wrong = phx.Node(config_of(tmp_path, 1, 1, **{"directory": True, **changes}), counters)
            with pytest.raises(errors.ConfigError, match="group 7"):
                await wrong.open()

    run_once(main())


def test_a_cluster_gets_a_directory_at_a_restart_of_its_nodes(run_once, tmp_path):
    async def main():
        members = at_ports(1, 2, 3)
        async with cluster(tmp_path, counters, groups=1, members=members) as nodes:
            await nodes[0].group(0).propose(b"5")
        async with three(tmp_path, members=members) as nodes:
            await nodes[2].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            assert (await nodes[0].group(7).propose(b"1", timeout=10)).value == 1
            assert (await nodes[0].group(0).propose(b"1")).value == 6

    run_once(main())


def test_who_joins_the_directory_may_be_a_member_of_a_new_group(run_once, tmp_path):
    async def main():
        async with three(tmp_path) as nodes:
            await nodes[0].create_group(7)
            await everywhere(nodes, 7)
            config = config_of(
                tmp_path, 4, members=at_ports(4), join=list(addresses(nodes).values()), groups=1,
                directory=True,
            )  # fmt: skip
            four = phx.Node(config, counters, bootstrap=True)
            opening = asyncio.ensure_future(four.open())
            changed = await nodes[0].add_member(4, config.members[4], timeout=30)
            assert changed.failed == {}
            assert set(changed.done) == {0, 7, DIRECTORY_GROUP}
            await opening
            try:
                await four.create_group(8, [3, 4], timeout=20)
                assert (await four.group(8).propose(b"1", timeout=10)).value == 1
                await four.create_group(9, [2, 3])
                await everywhere([four], 7)
                await everywhere(nodes[1:], 9)
                changed = await nodes[2].replace_member(1, 4, config.members[4], timeout=30)
                assert changed.failed == {}
                assert set(changed.done) == {0, 7, 8, DIRECTORY_GROUP}, "9 never had 1"
                assert set(four.group(7).members().by_id) == {2, 3, 4}
            finally:
                await four.close()

    run_once(main())


def test_groups_are_created_and_deleted_by_commands(run_once, tmp_path):
    async def command(*words):
        words = ["groups", *map(str, words)]
        return await asyncio.to_thread(CliRunner().invoke, phx_command, words)

    async def main():
        async with three(tmp_path) as nodes:
            folders = [node.config.dir for node in nodes]
            done = await command("create", folders[0], 7, 1, 2)
            assert (done.exit_code, done.output[:34]) == (0, "group 7, generation 1: live, 1 at ")
            await everywhere(nodes[:2], 7)
            for word, phase in (("stop", "stopped"), ("resume", "live")):
                done = await command(word, folders[2], 7, "--json")
                assert json.loads(done.stdout)["groups"][0]["phase"] == phase, done.output
            refused = await command("create", folders[1], 7)
            assert (refused.exit_code, "group 7 is there already" in refused.output) == (1, True)
            asked = await command("delete", folders[1], 7)
            assert asked.exit_code == 1, "it asks first, and nobody says yes"
            done = await command("delete", folders[1], 7, "--yes")
            assert (done.exit_code, done.output) == (0, "group 7, generation 1: gone\n")
            listed = await command("list", folders[0])
            assert listed.output == "group 7, generation 1: gone\n"
            refused = await command("resume", folders[0], 7)
            assert (refused.exit_code, "there is no group 7" in refused.output) == (1, True)
        for word in ("verify", "inspect"):
            sound = CliRunner().invoke(phx_command, [word, str(folders[0])])
            assert sound.exit_code == 0, sound.output

    run_once(main())


# --- nothing leaks


@pytest.mark.timeout(300)
def test_a_thousand_groups_come_and_go_and_nothing_is_left(run_once, tmp_path):
    async def main():
        # (So that the directory's own values are not kept in memory.)
        async with three(
            tmp_path, nodes=1, limits={"cache_bytes_max": 16384, "value_bytes_max": 4096}
        ) as nodes:
            node, ids = nodes[0], range(7, 47)

            async def cycle(group, checkpoint):
                await node.create_group(group)
                await node.group(group).propose(b"1")
                if checkpoint:
                    await node.group(group).checkpoint()
                await node.delete_group(group)

            async def cycles(rounds):
                for number in range(rounds):
                    await asyncio.gather(*(cycle(one, (one + number) % 9 == 0) for one in ids))

            async def rest():
                for _ in range(20):
                    await node.group(0).propose(b"1")
                node._room.driver.settle_now()
                await until(lambda: not node.status().settle["pending"])
                await asyncio.sleep(0.3)

            def rows():
                store = node._room._store
                with store._env.begin() as txn:
                    return txn.stat(db=store._meta)["entries"], node.status().store["groups"]

            await cycles(3)
            await rest()
            before = allocations_live(), blocks_live()
            kept = rows(), len(node._room.states), len(node._room._memberships._known)
            await cycles(25)
            await rest()
            assert (rows(), len(node._room.states), len(node._room._memberships._known)) == kept
            allocations, blocks = before
            # (The journal's open segments, the directory's own log: as many as before, about.)
            assert allocations_live() <= allocations + 64
            assert blocks_live() <= blocks + 64
            assert node.status().waiting_values == 0
            for group in ids:
                assert not list(tmp_path.glob(f"node1/checkpoints/{group}"))
            assert [one.phase for one in node.created_groups()] == ["gone"] * 40
            assert {one.generation for one in node.created_groups()} == {28}

    run_once(main())


def test_a_row_of_which_one_copy_is_whole_counts_and_of_none_it_is_damage(tmp_path):
    store = Store.open(tmp_path / "store", cluster=1, node=1, create=True)
    told = store_hosted.first_members(3, {1: "a:1", 2: "b:2"})
    row = store_hosted.HostedRow(3, told.roster)
    store_hosted.write(store, 7, row)
    assert store_hosted.read(store) == {7: row}
    for number, key in enumerate(store_hosted.keys_of(7)):
        packed = bytearray(store.remembered(key))
        packed[20] ^= 1
        store.remember({key: bytes(packed)})
        if number == 0:
            assert store_hosted.read(store) == {7: row}
    with pytest.raises(errors.Damaged, match="group 7"):
        store_hosted.read(store)
    store.close()
