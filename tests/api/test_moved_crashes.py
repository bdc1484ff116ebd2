"""Created groups that move: a crash between any two steps of it, and what is old or of others."""

import asyncio
import time
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest

import phx
from phx import errors, store_hosted
from phx.machines.directory import GroupRow, MembersSince, encode_members
from phx.membership import Membership, roster_of
from phx.node.arrivals import Arrivals, Wanted
from phx.node.hosting import Hosting
from phx.node.line import Ending
from phx.store import Store
from phx.store_hosted import base_of
from phx.transfer.changing import Page
from phx.types import DIRECTORY_GROUP, Entry, Members, learner, voter
from tests.ports import at_ports

from .cluster import until
from .created_lab import everywhere, hosts, three
from .members_lab import addresses, counters, kill
from .test_moved_groups import adds, are_members, back, nothing_is_left


def cut(*said, **more):
    """The thread by which groups come and go does nothing more: as if the process ended here."""
    raise Ending


@pytest.mark.parametrize("step", ["write", "prepare", "begin"])
def test_a_coming_that_a_crash_cuts_is_done_by_the_next_start(
    run_once, tmp_path, monkeypatch, step
):
    """A row of the store comes first: who wrote it may have voted."""

    async def main():
        async with three(tmp_path, nodes=2, members=at_ports(1, 2)) as nodes:
            await nodes[0].create_group(7, [1])
            await adds(nodes[0], 7, 1)
            with monkeypatch.context() as patch:
                if step == "begin":
                    patch.setattr(Hosting, "_begin", cut)
                else:
                    patch.setattr(store_hosted, step, cut)
                with pytest.raises(errors.NotCaughtUp):
                    await nodes[0].move_group(7, [1, 2], timeout=2)
                assert not hosts(nodes[1], 7), "nothing of it is here before the store knows"
                kill(nodes[1])
            config = nodes[1].config
            with closing(
                Store.open(config.dir / "store", cluster=config.cluster_id, node=config.node)
            ) as store:
                rows = store_hosted.read(store)
                if step == "write":
                    assert rows == {}
                else:
                    assert set(rows[7].membership.nodes) == {1, 2}
            async with back(nodes[1]) as (two,):
                await until(lambda: hosts(two, 7), seconds=20)
                await nodes[0].move_group(7, [2], timeout=30)
                await adds(two, 7, 2)
                await everywhere(nodes[:1], 7, there=False)

    run_once(main())


@pytest.mark.parametrize("step", ["_retire", "_let_go", "_clean"])
def test_a_leaving_that_a_crash_cuts_is_done_by_the_next_start(
    run_once, tmp_path, monkeypatch, step
):
    """And what the directory said before, which is read again then, brings nothing back."""

    async def main():
        async with three(tmp_path, nodes=2, members=at_ports(1, 2)) as nodes:
            await nodes[0].create_group(7, [1])
            await adds(nodes[0], 7, 1)
            await nodes[0].group(7).checkpoint()
            monkeypatch.setattr(nodes[0]._room._hosting, step, cut)
            now = await nodes[0].move_group(7, [2], timeout=30)
            assert set(now.by_id) == {2}, "it needs nothing of this node any more"
            await until(lambda: not nodes[0]._room._hosting.is_alive())
            kill(nodes[0])
            config = nodes[0].config
            with closing(
                Store.open(config.dir / "store", cluster=config.cluster_id, node=config.node)
            ) as store:
                assert store_hosted.read(store)[7].gone, "it is said before anything of it goes"
            begun = []
            monkeypatch.setattr(Hosting, "_begin", lambda *said: begun.append(said))
            async with back(nodes[0]) as (one,):
                await are_members([one], 7, 2)
                assert (hosts(one, 7), begun) == (False, [])
                nothing_is_left(one, 7)
                await adds(nodes[1], 7, 2)

    run_once(main())


def test_members_that_nobody_said_before_all_died_are_said_by_the_next_start(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=4, members=at_ports(1, 2, 3, 4)) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            await adds(nodes[0], 7, 1)
            for node in nodes:
                node._room._hosting._say = lambda group, row: 0.0
            where = addresses(nodes)[3]
            with pytest.raises(errors.NotCaughtUp):
                await nodes[0].group(7).add_member(3, where, timeout=2)
            assert nodes[1].group(7).members().by_id[3] == learner(where)
            assert not hosts(nodes[2], 7)
            for node in nodes:
                kill(node)
        async with back(*nodes) as again:
            await until(lambda: hosts(again[2], 7), seconds=20)
            assert set((await again[2].group(7).add_member(3, where, timeout=30)).by_id) == {
                1, 2, 3,
            }  # fmt: skip
            await adds(again[2], 7, 2)

    run_once(main())


def test_members_are_said_by_others_if_the_leader_does_not(run_once, tmp_path, monkeypatch):
    monkeypatch.setattr("phx.node.hosting.OTHERS_S", 0.5)

    async def main():
        async with three(tmp_path, nodes=3) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            await until(lambda: any(node.group(7).is_leader for node in nodes[:2]))
            lead = next(node for node in nodes[:2] if node.group(7).is_leader)
            lead._room._hosting._say = lambda group, row: 0.0
            await nodes[0].group(7).add_member(3, addresses(nodes)[3], timeout=30)
            await adds(nodes[2], 7, 1)

    run_once(main())


def test_what_is_chosen_and_not_active_is_said_too(run_once, tmp_path, monkeypatch):
    """Those that are new may be needed to make it so, if others died meanwhile."""

    async def main():
        async with three(tmp_path, nodes=1) as nodes:
            await nodes[0].create_group(7)
            await adds(nodes[0], 7, 1)
            hosting, said = nodes[0]._room._hosting, []
            chosen = replace(told(1, 3, (1, 9)), active=False)
            monkeypatch.setattr(hosting, "_propose", said.append)
            monkeypatch.setattr(hosting._parts.memberships, "newest", lambda group: chosen)
            row = hosting.rows()[7]
            assert hosting._say(7, row) > 0.0, "until the directory has it"
            where = {1: "1.test:1", 9: "9.test:1"}
            assert said == [encode_members(7, 1, 3, where, active=False)]
            machine = hosting._parts.states[DIRECTORY_GROUP].machines[0]
            there = machine.apply(Entry(value=said[0])).row
            assert set(there.nodes) == {1, 9}
            assert hosting._say(7, there) == 0.0

    run_once(main())


# --- what is old, or of others


def test_what_the_directory_said_before_it_came_or_left_is_not_done_again(
    run_once, tmp_path, monkeypatch
):
    """It is read again from the beginning: at a node that came later it names for a moment others
    than that, and at one that left it names it."""

    async def main():
        async with three(tmp_path, nodes=3) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            now = await nodes[0].move_group(7, [2, 3], timeout=30)
            await everywhere(nodes[:1], 7, there=False)
            await everywhere(nodes[1:], 7)
            first = ((1, "a:1"), (2, "b:1"))
            old = [
                GroupRow(1, "live", first),
                GroupRow(1, "ending", first),
                GroupRow(1, "live", (*first, (3, "c:1")), MembersSince(3, False, first, ())),
                GroupRow(1, "live", (*first, (3, "c:1")), MembersSince(3, True, first, ())),
            ]
            done = []
            for node in nodes:
                for step in ("_host", "_begin", "_drop"):
                    name = node.config.node
                    monkeypatch.setattr(
                        node._room._hosting, step, lambda *said, name=name: done.append(name)
                    )
                monkeypatch.setattr(node._room._hosting, "_say", lambda *said: 0.0)
                monkeypatch.setattr(node._room._hosting, "_end", lambda *said: 0.0)
            for node in nodes:
                for row in old:
                    assert node._room._hosting._reconcile(7, row) == 0.0
            assert done == []
            after = MembersSince(now.version + 1, False, first, (2, 3))
            for node in nodes:
                node._room._hosting._reconcile(7, GroupRow(1, "live", first, after))
            assert done == [], "others are chosen, and not active"
            after = MembersSince(now.version + 1, True, first, ())
            for node in nodes:
                node._room._hosting._reconcile(7, GroupRow(1, "live", ((9, "i:1"),), after))
            assert done == [2, 3], "they left; 1 had before"

    run_once(main())


def test_a_row_that_was_overtaken_before_the_directory_was_seen_begins_no_group(
    run_once, tmp_path, monkeypatch
):
    """It was taken before, and comes to its turn after."""

    async def main():
        async with three(tmp_path, nodes=2) as nodes:
            await nodes[0].create_group(7, [1])
            await nodes[0].create_group(8, [2])
            await everywhere(nodes[1:], 8)
            hosting, begun = nodes[1]._room._hosting, []
            assert hosting._is_seen()
            monkeypatch.setattr(hosting, "_begin", lambda *said: begun.append(said))
            old = GroupRow(1, "live", ((1, "a:1"), (2, "b:1")))
            assert hosting._reconcile(7, old) > 0.0, "it is looked at again"
            assert (begun, 7 in hosting._rows) == ([], False)

    run_once(main())


def test_a_row_that_may_be_older_than_this_life_begins_no_group(run_once, tmp_path, monkeypatch):
    """A node may have left, dropped its votes, and then have lost its store: nothing here says so
    but the directory, which is read again from the beginning, and may not be at its end for long.
    """

    async def main():
        async with three(tmp_path, nodes=3, members=at_ports(1, 2, 3)) as nodes:
            await nodes[0].create_group(7, [1, 2])
            await everywhere(nodes[:2], 7)
            for node in nodes:
                kill(node)
            old = GroupRow(1, "live", ((1, "a:1"), (3, "c:1")))
            begun = []
            monkeypatch.setattr(Hosting, "_begin", lambda *said: begun.append(said))
            with monkeypatch.context() as patch:
                patch.setattr(Hosting, "rows", lambda hosting: {7: old})
                async with back(nodes[2]) as (three_,):
                    await until(lambda: 7 in three_._room._hosting._undone or begun)
                    await asyncio.sleep(1.0)
                    assert begun == []
                    patch.undo()
                    monkeypatch.setattr(Hosting, "_begin", lambda *said: begun.append(said))
                    async with back(*nodes[:2]):
                        await are_members([three_], 7, 1, 2)
                        await three_.create_group(8, [1, 2], timeout=20)
                        assert (begun, hosts(three_, 7)) == ([], False)

    run_once(main())


def told(generation, version, members, since=9):
    where = {node: voter(f"{node}.test:1") for node in members}
    return Membership(roster_of(version, where), base_of(generation) + since, 5, active=True)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({2: told(1, 3, (2, 4))}, None),
        ({2: told(3, 3, (2, 4))}, None),
        ({2: told(2, 3, (2, 3))}, None),
        ({2: told(2, 3, (2, 4))}, 3),
        ({2: told(2, 3, (2, 4)), 3: told(2, 5, (3, 4), since=20)}, 5),
        ({2: told(2, 3, (2, 4)), 3: told(2, 5, (3, 5), since=20)}, None),
        ({2: told(2, 3, (2, 4)), 3: told(1, 9, (3, 5), since=20)}, 3),
        ({2: told(2, 2, (2, 4), since=0)}, 2),  # one of the first, and nobody knows of later ones
        ({2: told(2, 2, (2, 3), since=0)}, None),
        ({2: told(1, 2, (2, 4), since=0)}, None),
        ({2: told(2, 2, (2, 4), since=0), 3: told(2, 5, (3, 4), since=20)}, 5),
        ({2: told(2, 2, (2, 4), since=0), 3: told(2, 5, (3, 5), since=20)}, None),
        ({2: None, 3: told(2, 3, (2, 4))}, 3),
    ],
)
def test_who_comes_begins_with_the_newest_members_that_name_it(said, found):
    """Those that somebody says of another generation are another group's."""
    peers = SimpleNamespace(node=4)
    arrivals = Arrivals(peers, lambda group: None)

    def told_by(node, group):
        one = said.get(node)
        if one is None:
            raise OSError("it does not answer")
        return Page({group: one}, {group: (1,)}, None, 0)

    arrivals._told_by = told_by
    row = arrivals._ask(7, Wanted(2, 5, (2, 3)))
    assert (None if row is None else row.membership.version) == found
    if row is not None:
        assert row.left == ((1,) if row.membership.instance > base_of(2) else ())


def test_who_waits_at_a_node_that_leaves_is_told_before_it_forgets(run_once, tmp_path):
    """However late its thread comes to it."""

    async def main():
        async with three(tmp_path, nodes=2) as nodes:
            await nodes[0].create_group(7, [1])
            await adds(nodes[0], 7, 1)
            changes, slept = nodes[0]._room.changes, []
            outcome, waits = changes._outcome, changes._memberships.wait

            def late(wanted):
                newest = changes._memberships.newest(7)
                if 1 not in newest.nodes and newest.active and not slept:
                    slept.append(None)
                    time.sleep(2.0)
                return outcome(wanted)

            changes._outcome = late
            changes._memberships.wait = lambda holds, left_s: waits(lambda: False, 0.01)
            moving = nodes[0].move_group(7, [2], timeout=30)
            (now,) = await asyncio.gather(moving, return_exceptions=True)
            assert isinstance(now, Members)
            assert (set(now.by_id), len(slept)) == ({2}, 1)
            await everywhere(nodes[:1], 7, there=False)

    run_once(main())


def test_a_node_that_waits_for_who_the_members_are_closes_at_once(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=2) as nodes:
            await nodes[0].create_group(7, [1])
            await adds(nodes[0], 7, 1)
            nodes[0]._room._transfers.provider.members = lambda group: time.sleep(1) or b""
            with pytest.raises(errors.NotCaughtUp):
                await nodes[0].group(7).add_member(2, addresses(nodes)[2], timeout=1)
            assert not hosts(nodes[1], 7)
            await asyncio.wait_for(nodes[1].close(), 20)

    run_once(main())


def test_a_node_whose_store_is_lost_does_not_come_again(run_once, tmp_path):
    """It does not know what it voted for in the group."""

    async def main():
        async with three(tmp_path, nodes=2, members=at_ports(1, 2)) as nodes:
            await nodes[0].create_group(7, [1])
            await adds(nodes[0], 7, 1)
            await nodes[0].move_group(7, [2], timeout=30)
            await adds(nodes[1], 7, 2)
            kill(nodes[1])
            for file in (nodes[1].config.dir / "store").iterdir():
                file.unlink()
            lost = phx.Node(nodes[1].config, counters)
            with pytest.raises(errors.ConfigError, match="group 7"):
                await lost.open()

    run_once(main())
