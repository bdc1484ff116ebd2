"""Members of groups change: the calls, on real nodes in one process."""

import asyncio
import json
import shutil
import socket

import pytest
from click.testing import CliRunner

import phx
from phx import errors
from phx.cli.commands import phx as phx_command
from phx.node import control
from phx.node.memberships import Memberships
from phx.types import Role, learner, voter
from tests.ports import at_ports, free_address

from .cluster import all_applied, cluster, config_of, until
from .members_lab import Joining, addresses, counters, joining, kill, leader_of, voters

# --- one change


def test_a_change_is_active_when_the_call_returns_at_whatever_node(run, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes:
            led = leader_of(nodes)
            other = next(node for node in nodes if node is not led)
            members = voters(nodes)
            for version, node in ((2, led), (3, other), (4, led), (5, other)):
                now = await node.group(0).set_members(members, version - 1)
                assert (now.version, now.active, dict(now.by_id)) == (version, True, members)
                # Active, and here, whatever the others have heard.
                assert node.group(0).members() == now
                await node.group(0).propose(b"1")
            assert nodes[0].group(1).members().version == 1

    run(main())


def test_a_change_that_is_heard_of_between_two_looks_is_the_one_that_was_asked_for(
    run_once, tmp_path, monkeypatch
):
    """Nothing of the version was known at one look, and it was the newest at the next."""
    whole = Memberships.of_version

    def of_version(self, group, version):
        found = whole(self, group, version)
        if found is None:
            self.wait(lambda: self.version(group) >= version, 5)
        return found

    async def main():
        async with cluster(tmp_path, counters) as nodes:
            monkeypatch.setattr(Memberships, "of_version", of_version)
            now = await nodes[0].group(0).set_members(voters(nodes), 1)
            assert (now.version, now.active) == (2, True)

    run_once(main())


@pytest.mark.parametrize("version", [1, 7])
def test_a_leader_that_says_nothing_is_waited_for_no_longer_than_the_call_may_take(
    run_once, tmp_path, monkeypatch, version
):
    """Whoever is stopped takes connections, and never answers."""

    async def main():
        async with cluster(tmp_path, counters, balance=False) as nodes:
            led = leader_of(nodes)
            other = next(node for node in nodes if node is not led)
            await until(
                lambda: (there := other.group(0).leader()) and there.node == led.config.node
            )
            lines = other._room.changes._lines

            def dial(host, port, timeout_us, dial=lines.dial):
                return dial(*silent.getsockname(), timeout_us)

            monkeypatch.setattr(lines, "dial", dial)
            with socket.create_server(("127.0.0.1", 0)) as silent:
                call = other.group(0).set_members(voters(nodes), version, timeout=0.5)
                with pytest.raises(errors.PhxError) as ended:
                    await asyncio.wait_for(call, 5)
            # It may have been proposed, if it was asked for at all.
            kinds = {1: errors.TimedOutUnknown, 7: errors.VersionConflict}
            assert type(ended.value) is kinds[version]

    run_once(main())


def test_a_change_of_another_version_is_refused_with_the_members_there_are(run, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes:
            members = voters(nodes)
            await nodes[0].group(0).set_members(members, 1)
            for node in nodes:
                with pytest.raises(errors.VersionConflict) as refused:
                    await node.group(0).set_members({1: members[1]}, 1)
                assert refused.value.members.version == 2
                assert dict(refused.value.members.by_id) == members
            with pytest.raises(errors.VersionConflict) as refused:
                await nodes[1].group(0).set_members(members, 7)
            assert refused.value.members.version == 2

    run(main())


def test_of_two_calls_for_one_version_one_succeeds(run, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes:
            members = voters(nodes)
            wishes = [
                {n: one for n, one in members.items() if n != 3},
                {**members, 3: learner(members[3].address)},
                {**members, 2: learner(members[2].address)},
            ]
            found = await asyncio.gather(
                *(
                    node.group(0).set_members(wish, 1)
                    for node, wish in zip(nodes, wishes, strict=True)
                ),
                return_exceptions=True,
            )
            done = [one for one in found if not isinstance(one, BaseException)]
            refused = [one for one in found if isinstance(one, BaseException)]
            assert len(done) == 1
            assert done[0].version == 2
            assert {type(one) for one in refused} == {errors.VersionConflict}
            for one in refused:
                assert one.members.by_id == done[0].by_id

    run(main())


def test_who_has_not_caught_up_does_not_come_to_vote(run, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes:
            members = voters(nodes)
            new = {n: voter(f"127.0.0.1:{n}") for n in (4, 5, 6)}
            with pytest.raises(errors.NotCaughtUp) as refused:
                await nodes[0].group(0).set_members(new)
            assert refused.value.nodes == [4, 5, 6]
            # As learners they come at once, though nobody is there.
            with_learners = {**members, **{n: learner(one.address) for n, one in new.items()}}
            now = await nodes[1].group(0).set_members(with_learners)
            assert now.version == 2
            with pytest.raises(errors.NotCaughtUp):
                await nodes[2].group(0).set_members(new, 2, timeout=0.5)
            assert (await nodes[0].group(0).set_members(members)).version == 3
            await nodes[0].group(0).propose(b"1")

    run(main())


def test_what_cannot_be_is_refused_at_once(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes:
            group, members = nodes[0].group(0), voters(nodes)
            for bad in ({}, {1: learner("a:1")}, {0: voter("a:1")}, {1: voter("no blank:1")}):
                with pytest.raises(ValueError, match=r"members, not|must vote|node id is|address"):
                    await group.set_members(bad)
            with pytest.raises(errors.NotInCluster, match="node 9"):
                await group.replace_member(9, 4, "127.0.0.1:1")
            await group.set_members({**members, 2: learner("a:2"), 3: learner("a:3")})
            with pytest.raises(ValueError, match="at least one member must vote"):
                await group.remove_member(1)
            assert group.members().version == 2

    run_once(main())


def test_what_is_so_already_is_not_changed(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes:
            group, at = nodes[0].group(0), addresses(nodes)
            first = await group.set_members(voters(nodes))
            assert await group.add_member(3, at[3]) == first
            assert await group.remove_member(7) == first
            assert (await group.add_member(3, at[3], role=Role.LEARNER)).version == 3
            assert (await group.add_member(3, at[3])).version == 4

    run_once(main())


def test_without_a_leader_nothing_is_done(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes:
            for node in nodes[1:]:
                await node.close()
            one = nodes[0]
            await until(lambda: one.group(0).leader() is None)
            with pytest.raises(errors.NoQuorum):
                await one.group(0).set_members(voters([one]), timeout=0.3)
            assert one.group(0).members().version == 1

    run_once(main())


# --- nodes that join


def test_a_node_that_is_added_catches_up_and_votes(run, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes:
            for _ in range(20):
                await nodes[0].group(0).propose(b"1")
            async with joining(tmp_path, [4], nodes) as (four,):
                changed = await nodes[1].add_member(4, four.at)
                assert changed.failed == {}
                assert set(changed.done) == {0, 1}
                node = await four.opened()
                for members in changed.done.values():
                    assert (members.version, members.active) == (3, True)
                    assert members.by_id[4] == voter(four.at)
                await all_applied([*nodes, node])
                assert node.group(0).machine().total == 20
                await node.group(0).propose(b"5")
                # It votes: without one of the others, and it, there are not three of four.
                await nodes[2].close()
                await asyncio.gather(
                    *(one.wait_ready(timeout=20) for one in (nodes[0], nodes[1], node))
                )
                assert (await nodes[0].group(0).propose(b"1")).value == 26

    run(main())


def test_one_node_is_replaced_by_another(run, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes:
            await nodes[0].group(0).propose(b"1")
            await nodes[2].close()  # it is dead
            async with joining(tmp_path, [4], nodes[:2]) as (four,):
                changed = await nodes[0].replace_member(3, 4, four.at)
                assert changed.failed == {}
                node = await four.opened()
                await node.group(0).propose(b"1")
                await until(lambda: set(node.group(1).members().by_id) == {1, 2, 4})
                again = await nodes[1].replace_member(3, 4, four.at)
                assert again.done == changed.done

    run(main())


def test_a_new_member_does_not_vote_before_it_has_caught_up(run_once, tmp_path):
    """Though the others are a quorum of the new ones without it."""

    async def main():
        async with cluster(tmp_path, counters) as nodes:
            await nodes[0].group(0).propose(b"1")
            at = free_address()
            with pytest.raises(errors.NotCaughtUp) as refused:
                await nodes[0].group(0).add_member(4, at, timeout=0.5)
            assert refused.value.nodes == [4]
            now = nodes[0].group(0).members()
            assert (now.version, now.by_id[4]) == (2, learner(at))
            # Who means it may have it.
            now = await nodes[0].group(0).set_members({**now.by_id, 4: voter(at)}, 2)
            assert now.version == 3

    run_once(main())


def test_a_node_that_joins_waits_until_all_its_groups_have_it(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes, joining(tmp_path, [4], nodes) as (four,):
            adding = asyncio.ensure_future(nodes[0].group(0).add_member(4, four.at))
            await until(lambda: 4 in nodes[0].group(0).members().by_id)
            await asyncio.sleep(0.5)
            assert not four.opening.done()
            both = await asyncio.gather(adding, nodes[0].group(1).add_member(4, four.at))
            await four.opened()
            assert all(4 in one.by_id for one in both)

    run_once(main())


def test_who_gives_up_waiting_to_be_a_member_leaves_nothing(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes:
            four = Joining(tmp_path, 4, nodes)
            await asyncio.sleep(0.3)
            await four.close()
            for _ in range(100):  # its folder is let go of, a moment later
                four = Joining(tmp_path, 4, nodes)
                await asyncio.sleep(0.2)
                if not four.opening.done():
                    break
                assert isinstance(four.opening.exception(), errors.Locked)
            try:
                assert (await nodes[0].add_member(4, four.at)).failed == {}
                await four.opened()
            finally:
                await four.close()

    run_once(main())


def test_a_cluster_moves_to_other_machines_and_the_old_ones_are_thrown_away(run, tmp_path):
    """{1, 2, 3} -> {4, 5, 6}: the folders of the old nodes are deleted the moment the call returns,
    and everything that was acknowledged is there."""

    async def main():
        old, acknowledged = tmp_path / "old", 0
        async with (
            cluster(old, counters) as nodes,
            joining(tmp_path, [4, 5, 6], nodes) as made,
        ):
            for _ in range(30):
                await nodes[0].group(0).propose(b"1")
                acknowledged += 1
            changed = await nodes[0].set_members({one.number: voter(one.at) for one in made})
            for node in nodes:
                kill(node)
            shutil.rmtree(old)
            assert changed.failed == {}
            new = [await one.opened() for one in made]
            await asyncio.gather(*(one.wait_ready(timeout=20) for one in new))
            for one in new:
                assert set(one.group(1).members().by_id) == {4, 5, 6}
                await one.group(0).barrier()
                assert one.group(0).machine().total == acknowledged
            assert (await new[0].group(0).propose(b"1")).value == acknowledged + 1

    run(main())


# --- nodes that are removed


def test_a_removed_node_says_so_to_its_callers_and_keeps_nothing_but_a_tombstone(run, tmp_path):
    async def main():
        async with cluster(tmp_path, counters) as nodes:
            one, two, three = nodes
            for _ in range(5):
                await three.group(0).propose(b"1")
            await three.group(0).checkpoint()
            assert list((tmp_path / "node3" / "checkpoints" / "0").iterdir())
            waiting = three.group(0)
            now = await one.group(0).remove_member(3)
            assert set(now.by_id) == {1, 2}
            await until(lambda: three.group(0).status().removed)
            assert three.status().removed == (0,)
            assert three.group(0).members().by_id == now.by_id
            for call in (
                lambda: waiting.propose(b"1"),
                lambda: waiting.read(None),
                lambda: waiting.set_members(voters(nodes)),
            ):
                with pytest.raises(errors.NotInCluster, match="no member of it any more"):
                    await call()
            with pytest.raises(errors.NotInCluster):
                waiting.machine()
            with pytest.raises(errors.ConfigError, match="never a member again"):
                await one.group(0).add_member(3, f"127.0.0.1:{three.port}")
            # The other groups go on, and so does this one, elsewhere.
            await three.group(1).propose(b"1")
            assert (await two.group(0).propose(b"1")).value == 6
            folder = tmp_path / "node3" / "checkpoints" / "0"
            await until(lambda: not folder.exists() or not list(folder.iterdir()))
            members = three._room._store.members
            await until(lambda: 0 in members() and members()[0].removed)
        config = three.config
        async with phx.Node(config, counters) as three:
            assert three.status().removed == (0,)
            with pytest.raises(errors.NotInCluster):
                await three.group(0).propose(b"1")
            assert three.group(0).status().stopped

    run(main())


def test_callers_of_a_node_that_is_removed_are_all_told(run_once, tmp_path):
    """Whatever they wait for when it happens: applied, rejected, or not known."""

    async def main():
        async with cluster(tmp_path, counters) as nodes:
            three = nodes[2]
            stop, told = False, []

            async def load():
                while not stop:
                    try:
                        told.append(await three.group(0).propose(b"1"))
                    except errors.PhxError as error:
                        told.append(error)
                        if isinstance(error, errors.NotInCluster):
                            return

            callers = [asyncio.ensure_future(load()) for _ in range(20)]
            await until(lambda: len(told) > 50)
            await nodes[0].group(0).remove_member(3)
            async with asyncio.timeout(20):
                await asyncio.gather(*callers)
            stop = True
            assert {type(one) for one in told if isinstance(one, errors.Rejected)} <= {
                errors.NotInCluster
            }
            done = sum(not isinstance(one, errors.PhxError) for one in told)
            unknown = sum(isinstance(one, errors.Unknown) for one in told)
            await nodes[0].group(0).barrier()
            assert done <= nodes[0].group(0).machine().total <= done + unknown

    run_once(main())


def test_a_restart_with_the_old_file_counts_the_new_members(run, tmp_path):
    """{1, 2, 3} -> {1, 2, 4}; then all start again, and 3 is of no use to anybody."""

    async def main():
        at = at_ports(1, 2, 3)
        async with cluster(tmp_path, counters, members=at) as nodes:
            await nodes[0].group(0).propose(b"1")
            async with joining(tmp_path, [4], nodes) as (four,):
                assert (await nodes[0].replace_member(3, 4, four.at)).failed == {}
                await four.opened()
                await asyncio.gather(
                    *(
                        until(
                            lambda node=node: all(
                                node.group(g).members().version == 3 for g in (0, 1)
                            )
                        )
                        for node in nodes
                    )
                )
        configs = [node.config for node in nodes] + [four.node.config]
        assert set(configs[0].members) == {1, 2, 3}
        one, three = (phx.Node(configs[at], counters) for at in (0, 2))
        async with one, three:
            # Two of the three of the file: no quorum of the members.
            for node in (one, three):
                await until(lambda node=node: 4 in node.status().peers)
            with pytest.raises(errors.NoQuorum):
                await one.group(0).propose(b"1", timeout=1.5)
            async with phx.Node(configs[3], counters) as four:
                await asyncio.gather(one.wait_ready(timeout=20), four.wait_ready(timeout=20))
                assert (await four.group(0).propose(b"1")).value == 2
                for node in (one, four):  # one has seen it, the other was told when it joined
                    with pytest.raises(errors.ConfigError, match="never a member again"):
                        await node.group(0).add_member(3, "127.0.0.1:1")
                with pytest.raises(errors.NotInCluster):
                    await three.group(0).propose(b"1")

    run(main())


# --- while values are proposed


class Load:
    """Callers of whoever is there, for as long as it runs; what was acknowledged, and what was not
    known to be."""

    def __init__(self, nodes, group=0):
        self.nodes, self.group = nodes, group
        self.done = self.unknown = 0
        self.stop = False
        self.callers = [asyncio.ensure_future(self._run(n)) for n in range(4)]

    async def _run(self, number):
        while not self.stop:
            node = self.nodes[number % len(self.nodes)]
            try:
                await node.group(self.group).propose(b"1", timeout=5)
                self.done += 1
            except errors.Unknown:
                self.unknown += 1
            except errors.Rejected:
                await asyncio.sleep(0.02)

    async def end(self):
        self.stop = True
        await asyncio.gather(*self.callers)


def test_every_node_is_replaced_one_by_one_under_load(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, counters, groups=1) as nodes:
            there = {node.config.node: node for node in nodes}
            living = list(nodes)
            load = Load(living)
            made = []
            try:
                for old, new in ((1, 4), (2, 5), (3, 6)):
                    before = load.done
                    await until(lambda before=before: load.done > before + 20, seconds=20)
                    one = Joining(tmp_path, new, living, groups=1)
                    made.append(one)
                    asked = next(node for node in living if node is not there[old])
                    now = await asked.group(0).replace_member(old, new, one.at)
                    assert set(now.by_id) == (set(there) - {old}) | {new}
                    living.append(await one.opened())
                    living.remove(there[old])
                    await there.pop(old).close()
                    shutil.rmtree(tmp_path / f"node{old}")
                    there[new] = one.node
                before = load.done
                await until(lambda: load.done > before + 20, seconds=20)
                await load.end()
                for node in living:
                    await node.group(0).barrier()
                    total = node.group(0).machine().total
                    assert load.done <= total <= load.done + load.unknown
                    assert node.group(0).members().version == 7
            finally:
                load.stop = True
                await asyncio.gather(*(one.close() for one in made))

    run_once(main())


@pytest.mark.parametrize("when", [0.0, 0.002, 0.01, 0.05])
def test_a_leader_that_dies_in_the_middle_of_a_change(run_once, tmp_path, when):
    """The call ends, and members() says what came of it: it is so, or it is not."""

    async def main():
        at = at_ports(1, 2, 3)
        async with cluster(tmp_path, counters, groups=1, members=at) as nodes:
            led = leader_of(nodes)
            others = [node for node in nodes if node is not led]
            first = voters(nodes)
            wanted = {n: one for n, one in first.items() if n != others[1].config.node}
            wanted |= {others[1].config.node: learner(first[others[1].config.node].address)}
            call = asyncio.ensure_future(others[0].group(0).set_members(wanted, 1, timeout=20))
            await asyncio.sleep(when)
            kill(led)
            # Two are left: a quorum of the first ones. Of the two that are to vote one is dead; so
            # it becomes so and stays inactive until that comes back, or it does not become so.
            async with phx.Node(led.config, counters) as again:
                now = await call
                assert dict(now.by_id) == wanted
                for node in (again, *others):
                    await until(lambda node=node: node.group(0).members().active, seconds=20)
                    assert node.group(0).members().by_id == now.by_id
                await others[0].group(0).propose(b"1", timeout=20)

    run_once(main())


def test_a_change_that_cannot_become_active_ends_with_unknown(run_once, tmp_path):
    """{1, 2, 3} -> {1, 2}: 2 is asked for its vote and never answers."""

    async def main():
        async with cluster(tmp_path, counters, groups=1) as nodes:
            led = leader_of(nodes)
            others = [node for node in nodes if node is not led]
            members, dead = voters(nodes), others[0].config.node
            # 3 makes the quorum of the first ones; of the next ones 2 is missing.
            wanted = {n: one for n, one in members.items() if n != others[1].config.node}
            asked = led.group(0).set_members(wanted, 1, timeout=3)
            call = asyncio.ensure_future(asked)
            kill(others[0])
            (found,) = await asyncio.gather(call, return_exceptions=True)
            assert isinstance(found, errors.TimedOutUnknown | errors.NotCaughtUp)
            now = led.group(0).members()
            assert not now.active or now.version == 1
            assert dead in now.by_id

    run_once(main())


# --- commands


async def command(*words):
    return await asyncio.to_thread(CliRunner().invoke, phx_command, [str(one) for one in words])


def test_members_are_shown_and_changed_by_commands(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, counters, groups=3) as nodes:
            folders, at = [node.config.dir for node in nodes], addresses(nodes)
            shown = await command("member", "list", folders[0])
            assert shown.exit_code == 0, shown.output
            assert shown.output.startswith("groups 0 to 2: version 1: 1 at 127.0.0.1:0, 2 at")
            done = await command("member", "remove", folders[1], 3, "--group", 1, "--json")
            assert done.exit_code == 0, done.output
            answer = json.loads(done.stdout)
            assert [one["group"] for one in answer["groups"]] == [1]
            assert {one["node"] for one in answer["groups"][0]["members"]} == {1, 2}
            assert {one["role"] for one in answer["groups"][0]["members"]} == {"voter"}
            async with joining(tmp_path, [4], nodes, groups=3) as (four,):
                done = await command("member", "add", folders[0], 4, four.at)
                assert done.exit_code == 0, done.output
                await four.opened()
                done = await command("member", "replace", folders[0], 3, 5, at[3], "--timeout", 1)
                assert done.exit_code == 1
                assert "group 0: NotCaughtUp" in done.stderr
                assert "5 lag" in done.stderr
                assert "group 1: NotInCluster: node 3 is no member" in done.stderr
                done = await command("member", "remove", folders[0], 5)
                assert done.exit_code == 0, done.output
                done = await command("decommission", folders[2])
                assert done.exit_code == 0, done.output
                await until(lambda: nodes[2].status().removed == (0, 1, 2))
                done = await command("member", "list", four.node.config.dir, "--json")
                for one in json.loads(done.stdout)["groups"]:
                    assert {each["node"] for each in one["members"]} == {1, 2, 4}
                whole = [f"{n}={a}" for n, a in at.items() if n != 3]
                done = await command("member", "set", folders[1], *whole)
                assert done.exit_code == 0, done.output
                assert done.output.count("version") == 2  # group 1 was changed once more
                await until(lambda: four.node.status().removed == (0, 1, 2))

    run_once(main())


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"do": "members", "group": 9}, "group 9 is not hosted"),
        ({"do": "members", "group": True}, "a group is a number"),
        ({"do": "change", "how": "turn"}, "is one of add, remove, replace, set"),
        ({"do": "change", "how": "add", "group": None, "timeout": 1}, "a change by 'add' says"),
        ({"do": "change", "how": "remove", "group": 7, "node": 1, "timeout": 1}, "group 7 is not"),
        ({"do": "change", "how": "remove", "group": 0, "node": "1", "timeout": 1}, "is a number"),
        ({"do": "change", "how": "remove", "group": 0, "node": 1, "timeout": 0}, "a timeout is"),
        (
            {"do": "change", "how": "set", "group": 0, "members": [[1, "king", "a:1"]],
             "timeout": 1},
            "a role is one of",
        ),
        (
            {"do": "change", "how": "set", "group": 0, "members": [[1, "voter"]], "timeout": 1},
            "a member is",
        ),
        ({"do": "decommission", "timeout": None}, "a timeout is"),
    ],
)  # fmt: skip
def test_orders_that_are_not_understood(run_once, tmp_path, request_, why):
    async def main():
        config = config_of(tmp_path, 1, nodes=1)
        async with phx.Node(config, counters, bootstrap=True):
            answer = await asyncio.to_thread(control.ask, config.dir, request_)
            assert why in answer["error"]

    run_once(main())
