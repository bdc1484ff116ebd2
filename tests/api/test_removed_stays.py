"""A group that this node is no member of any more stays away: no call, mark or transfer brings it
back, and each call says why."""

import asyncio
import threading

import pytest

import phx
from phx import errors
from phx.checkpoint.files import OsFiles
from phx.checkpoint.rebuild import MARK, mark
from phx.machines import Counter
from phx.node import control
from phx.verify import examine

from .cluster import all_applied, cluster, introduce, until
from .members_lab import counters

REMOVED = "node 3 is no member of it any more"


async def removed_third(nodes):
    one, _, three = nodes
    for _ in range(5):
        await one.group(0).propose(b"1")
    await all_applied(nodes, 0)
    await three.group(0).checkpoint()
    await one.group(0).remove_member(3)
    await until(lambda: three.group(0).status().removed)
    await until(lambda: left_of(three) == [])
    return three


def left_of(node):
    folder = node.config.dir / "checkpoints"
    return [one.name for one in (folder / "0").iterdir()] if (folder / "0").exists() else []


def test_each_call_says_that_the_node_is_no_member(run, tmp_path):
    async def main():
        async with cluster(tmp_path, counters, groups=1) as nodes:
            three = await removed_third(nodes)
            group = three.group(0)
            for call in (
                lambda: group.propose(b"1"),
                lambda: group.read(None),
                lambda: group.barrier(),
                lambda: group.checkpoint(),
                lambda: group.repair(),
                lambda: group.transfer_leadership(1),
                lambda: group.resign(),
            ):
                with pytest.raises(errors.NotInCluster, match=REMOVED):
                    await asyncio.wait_for(call(), 20)
            with pytest.raises(errors.NotInCluster, match=REMOVED):
                group.machine()
            await three.wait_ready(timeout=20)
            assert left_of(three) == []
            assert three.status().transfers["wanted"] == 0

    run(main())


def test_a_mark_that_was_left_makes_nothing_anew(run, tmp_path):
    """As of a repair that was asked for in the moment of the removal."""

    async def main():
        async with cluster(tmp_path, counters, groups=1) as nodes:
            three = await removed_third(nodes)
            await three.close()
            folder = three.config.dir / "checkpoints"
            for _ in mark(OsFiles(folder), "", 0):
                pass
            assert left_of(three) == [MARK]
            async with phx.Node(three.config, counters) as again:
                await until(lambda: left_of(again) == [])
                assert again.status().removed == (0,)
                assert again.status().transfers["wanted"] == 0
                await again.wait_ready(timeout=20)

    run(main())


def test_a_node_that_is_removed_while_a_group_is_made_anew_keeps_nothing_of_it(run, tmp_path):
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Counter):
        def restore(self, reader):
            entered.set()
            assert go_on.wait(30)
            super().restore(reader)

    async def main():
        async with cluster(tmp_path, lambda group: Slow(), groups=1) as nodes:
            one, _, three = nodes
            for _ in range(5):
                await one.group(0).propose(b"1")
            await all_applied(nodes, 0)
            repairing = asyncio.ensure_future(three.group(0).repair())
            try:
                await until(entered.is_set)
                await one.group(0).remove_member(3)
                with pytest.raises(errors.NotInCluster, match=REMOVED):
                    await asyncio.wait_for(repairing, 20)
            finally:
                go_on.set()
            await until(lambda: three.status().transfers["wanted"] == 0)
            await until(lambda: left_of(three) == [])
            assert three.status().transfers["installed"] == 0
            await three.wait_ready(timeout=20)

    run(main())


def test_a_node_that_is_removed_while_a_group_is_restored_keeps_nothing_of_it(run_once, tmp_path):
    """It starts from a checkpoint while the others take it out; then what is restored fails, or
    does not: what was said before stays said."""
    entered, go_on, outcome = threading.Event(), threading.Event(), [None]

    class Slow(Counter):
        def restore(self, reader):
            if outcome[0] is not None:
                entered.set()
                assert go_on.wait(30)
                if outcome[0] == "fails":
                    raise OSError("no more files")
            super().restore(reader)

    async def main():
        for number, then in enumerate(("fails", "goes on")):
            folder = tmp_path / str(number)
            async with cluster(folder, lambda group: Slow(), groups=1) as nodes:
                one, two, three = nodes
                for _ in range(5):
                    await one.group(0).propose(b"1")
                await all_applied(nodes, 0)
                await three.group(0).checkpoint()
                await three.close()
                outcome[0] = then
                async with phx.Node(three.config, lambda group: Slow()) as three:
                    introduce([one, two, three])
                    try:
                        await until(entered.is_set)
                        await one.group(0).remove_member(3)
                        await until(lambda three=three: three.status().removed, seconds=20)
                    finally:
                        go_on.set()
                    await until(lambda three=three: not three._room._restorer.at)
                    await until(lambda three=three: left_of(three) == [])
                    assert three.status().removed == (0,)
                    assert three.status().stopped == ()
                    group = three.group(0)
                    with pytest.raises(errors.NotInCluster, match=REMOVED):
                        await group.propose(b"1")
                    with pytest.raises(errors.NotInCluster, match=REMOVED):
                        await group.repair()
                    assert three._room.states[0].machines == {}
            outcome[0] = None
            entered.clear()
            go_on.clear()

    run_once(main())


def test_a_checkpoint_of_all_groups_is_not_of_those_that_were_left(run, tmp_path):
    async def main():
        async with cluster(tmp_path, counters, groups=2) as nodes:
            for group in (0, 1):
                await nodes[0].group(group).propose(b"1")
            three = await removed_third(nodes)
            await all_applied(nodes, 1)
            asked = {"do": "checkpoint", "group": None}
            answer = await asyncio.to_thread(control.ask, three.config.dir, asked)
            assert [one["group"] for one in answer["taken"]] == [1]
            assert answer["failed"] == []

    run(main())


def test_verify_has_nothing_against_what_is_left(run_once, tmp_path):
    """All that was settled is given up, and no checkpoint has it: that is no damage."""

    async def main():
        async with cluster(tmp_path, counters, groups=1) as nodes:
            three = await removed_third(nodes)
            await three.close()  # which settles
            async with phx.Node(three.config, counters) as again:
                await until(lambda: again._room._store.bounds(0)[0] > 1)
            report = await asyncio.to_thread(examine, three.config.dir, whole=True)
            assert report.findings == []
            assert report.groups[0].removed

    run_once(main())
