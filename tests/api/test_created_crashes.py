"""Groups that come and go: a crash, or a close, between any two steps of it."""

import asyncio
import itertools
from contextlib import closing

import pytest

import phx
from phx import errors, store_hosted
from phx.machines.directory import GroupRow
from phx.node.hosting import Hosting
from phx.node.line import Ending
from phx.store import Store
from phx.types import DIRECTORY_GROUP

from .cluster import until
from .created_lab import everywhere, hosts, three
from .members_lab import counters, kill


def cut(*said, **more):
    """The thread by which groups come and go does nothing more: as if the process ended here."""
    raise Ending


@pytest.mark.parametrize("step", ["write", "prepare", "begin"])
def test_a_create_that_a_crash_cuts_is_done_by_the_next_start(
    run_once, tmp_path, monkeypatch, step
):
    """The group is one of a node alone, so nobody else tells it anything."""

    async def main():
        async with three(tmp_path, nodes=1) as nodes:
            with monkeypatch.context() as patch:
                if step == "begin":
                    patch.setattr(Hosting, "_begin", cut)
                else:
                    patch.setattr(store_hosted, step, cut)
                with pytest.raises(errors.TimedOutUnknown):
                    await nodes[0].create_group(7, timeout=1)
                assert not hosts(nodes[0], 7), "nothing of it is here before the store knows"
                kill(nodes[0])
        async with phx.Node(nodes[0].config, counters) as back:
            await until(lambda: hosts(back, 7))
            assert (await back.group(7).propose(b"3", timeout=10)).value == 3

    run_once(main())


@pytest.mark.parametrize("step", ["_retire", "_let_go", "_clean"])
def test_a_delete_that_a_crash_cuts_is_done_by_the_next_start(
    run_once, tmp_path, monkeypatch, step
):
    async def main():
        async with three(tmp_path, nodes=1) as nodes:
            await nodes[0].create_group(7)
            await nodes[0].group(7).propose(b"5")
            await nodes[0].group(7).checkpoint()
            with monkeypatch.context() as patch:
                patch.setattr(Hosting, step, cut)
                with pytest.raises(errors.TimedOutUnknown):
                    await nodes[0].delete_group(7, timeout=1)
                kill(nodes[0])
        config = nodes[0].config
        with closing(
            Store.open(config.dir / "store", cluster=config.cluster_id, node=config.node)
        ) as store:
            assert store_hosted.read(store)[7].gone, "it is said before anything of it goes"
        async with phx.Node(nodes[0].config, counters) as back:
            assert not hosts(back, 7)
            assert not list(tmp_path.glob("node1/checkpoints/7"))
            assert (await back.create_group(7)).generation == 2
            assert (await back.group(7).propose(b"1", timeout=10)).value == 1
        async with phx.Node(nodes[0].config, counters) as back:
            assert (await back.group(7).propose(b"1", timeout=10)).value == 2

    run_once(main())


@pytest.mark.parametrize("call", ["create_group", "delete_group"])
def test_a_call_that_a_close_cuts_is_never_said_to_be_rejected(run_once, tmp_path, call):
    """Nobody is left to choose it; it lies in the log of one, and may be chosen by others."""

    async def main():
        async with three(tmp_path) as nodes:
            await nodes[0].create_group(7)
            await everywhere(nodes, 7)
            lead = next(node for node in nodes if node.group(DIRECTORY_GROUP).is_leader)
            others = [node for node in nodes if node is not lead]
            created = lead._room.groups
            kill(others[0])
            begun = asyncio.Event()
            propose, loop = created._propose, asyncio.get_running_loop()

            def proposing(*said):
                loop.call_soon_threadsafe(begun.set)
                return propose(*said)

            created._propose = proposing
            asked = created._row
            created._row = lambda *said: (asked(*said), kill(others[1]))[0]
            if call == "create_group":
                kill(others[1])
            calling = asyncio.ensure_future(
                getattr(lead, call)(8 if call == "create_group" else 7, timeout=60)
            )
            await asyncio.wait_for(begun.wait(), 20)
            await asyncio.sleep(0.5)
            await lead.close(timeout=1)
            with pytest.raises(errors.ClosedUnknown):
                await calling

    run_once(main())


def test_a_call_that_was_answered_and_a_close_cuts_is_not_said_to_be_rejected(
    run_once, tmp_path, monkeypatch
):
    """It is in the directory, and only not done here."""

    async def main():
        async with three(tmp_path, nodes=1) as nodes:
            monkeypatch.setattr(Hosting, "_host", lambda *said: 60.0)
            calling = asyncio.ensure_future(nodes[0].create_group(7, timeout=60))
            await until(lambda: [one.group for one in nodes[0].created_groups()] == [7])
            await nodes[0].close()
            with pytest.raises(errors.ClosedUnknown):
                await calling

    run_once(main())


def test_what_the_directory_said_before_the_start_is_not_done_again(
    run_once, tmp_path, monkeypatch
):
    """It is read again from the beginning: of a group whose id is another's by now, and of one that
    is gone, it says for a moment that they live, are stopped, are to end."""

    async def main():
        async with three(tmp_path, nodes=1) as nodes:
            node, done = nodes[0], []
            for group in (7, 8):
                await node.create_group(group)
                await node.delete_group(group)
            await node.create_group(7)
            hosting = node._room._hosting
            for step in ("_host", "_begin", "_park", "_end", "_drop"):
                monkeypatch.setattr(hosting, step, lambda *said: done.append(said))
            for group, phase in itertools.product((7, 8), ("live", "stopped", "ending", "gone")):
                old = GroupRow(1, phase, ((1, "a:1"),) if phase != "gone" else ())
                assert hosting._reconcile(group, old) == 0.0
            assert done == []
            assert hosting._reconcile(7, GroupRow(2, "ending", ((1, "a:1"),))) != 0.0
            assert len(done) == 1

    run_once(main())
