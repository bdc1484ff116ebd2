"""Created groups when something else goes wrong: machines, repairs, directories, late threads."""

import asyncio
import shutil
import threading

import pytest

import phx
from phx import errors, store_hosted
from phx._core.driver import ERROR_OVERLOADED, DriverError
from phx.machines import Counter
from phx.node.hosting import Hosting
from phx.node.line import Ending
from phx.node.restorer import Restorer
from phx.store_hosted import base_of, generation_at
from phx.types import DIRECTORY_GROUP
from tests.durable.durable_lab import LmdbSums, SqliteSums
from tests.ports import at_ports

from .cluster import all_applied, until
from .created_lab import everywhere, hosts, phase, three
from .members_lab import counters, kill
from .test_lost_journal import REJOIN, lose


def hosting_of(node):
    return node._room._hosting


# --- machines


def picky(group):
    if group == 99:
        raise KeyError(f"no machine for group {group}")
    return Counter()


def test_a_group_whose_machines_cannot_be_made_is_stopped_and_can_be_deleted(run_once, tmp_path):
    async def main():
        async with three(tmp_path, machines=picky) as nodes:
            await nodes[0].create_group(99)
            await everywhere(nodes, 99)
            for node in nodes:
                with pytest.raises(errors.GroupStopped, match="no machine for group 99"):
                    await node.group(99).propose(b"1")
            await nodes[0].create_group(7)
            assert (await nodes[0].group(7).propose(b"1")).value == 1
            await nodes[2].close()
            async with phx.Node(nodes[2].config, picky) as back:  # it starts all the same
                for node in nodes[:2]:
                    back.set_address(node.config.node, f"127.0.0.1:{node.port}")
                    node.set_address(3, f"127.0.0.1:{back.port}")
                now = [*nodes[:2], back]
                await everywhere(now, 7)
                await nodes[0].delete_group(99, timeout=30)
                await everywhere(now, 99, there=False)
                assert (await back.group(7).propose(b"1", timeout=20)).value == 2

    run_once(main())


class Picky(Counter):
    def apply(self, entry):
        if entry.value == b"0":
            raise RuntimeError("not nought")
        return super().apply(entry)


def test_a_group_that_stopped_on_all_nodes_is_stopped_for_callers_too_and_deleted(
    run_once, tmp_path
):
    async def main():
        async with three(tmp_path, machines=lambda group: Picky()) as nodes:
            await nodes[0].create_group(7)
            await everywhere(nodes, 7)
            with pytest.raises(errors.StoppedUnknown):
                await nodes[0].group(7).propose(b"0", timeout=5)
            await until(lambda: all(node._room.states[7].stopped for node in nodes))
            assert (await nodes[0].stop_group(7, timeout=20)).phase == "stopped"
            await until(lambda: all(hosting_of(node).is_stopped(7) for node in nodes))
            assert (await nodes[1].resume_group(7, timeout=20)).phase == "live"
            await nodes[2].delete_group(7, timeout=30)
            await everywhere(nodes, 7, there=False)
            made = await nodes[1].create_group(7)
            assert (made.generation, (await nodes[1].group(7).propose(b"1")).value) == (2, 1)

    run_once(main())


@pytest.mark.parametrize("kind", [LmdbSums, SqliteSums])
def test_the_first_durable_machines_of_a_node_are_in_its_checkpoints(run_once, tmp_path, kind):
    """There was none when the node started."""

    def factory(group):
        return kind() if group == 7 else Counter()

    async def main():
        async with three(tmp_path, machines=factory, nodes=1) as (node,):
            await node.create_group(7)
            for _ in range(4):
                await node.group(7).propose(b"1 100")
            made = await node.group(7).checkpoint()
            state = node._room.states[7]
            assert state.committed == {0: made.frontier}
            assert made.frontier == state.applied
        shutil.rmtree(tmp_path / "node1" / "machines" / "7.0")
        async with phx.Node(node.config, factory) as back:
            await until(lambda: hosts(back, 7))
            assert (await back.group(7).propose(b"1 1", timeout=20)).value == 401

    run_once(main())


def test_a_state_that_was_not_committed_is_in_no_checkpoint(run_once, tmp_path):
    async def main():
        async with three(tmp_path, machines=lambda group: SqliteSums(), nodes=1) as (node,):
            await node.create_group(7)
            await node.group(7).propose(b"1 100")
            node._room._snapshots._commit = lambda state: None
            state = node._room.states[7]
            state.committed[0] = state.applied - 1
            with pytest.raises(errors.CheckpointFailed, match="was not committed"):
                await node.group(7).checkpoint()

    run_once(main())


# --- repairs, and the directory


def test_a_stopped_group_that_is_repaired_stays_stopped_and_goes_on_when_it_is_resumed(
    run_once, tmp_path
):
    async def main():
        async with three(tmp_path) as nodes:
            await nodes[0].create_group(7)
            await everywhere(nodes, 7)
            await nodes[0].group(7).propose(b"5")
            await nodes[0].group(7).checkpoint()
            await nodes[0].stop_group(7)
            await until(lambda: all(7 in hosting_of(node)._paused for node in nodes))
            await asyncio.wait_for(nodes[2].group(7).repair(), 20)
            with pytest.raises(errors.GroupStopped, match="stop_group"):
                await nodes[2].group(7).propose(b"1", timeout=5)
            await nodes[2].resume_group(7, timeout=20)
            assert (await nodes[2].group(7).propose(b"1", timeout=20)).value == 6
            await until(lambda: {n.group(7).machine().total for n in nodes} == {6})
            assert hosting_of(nodes[2]).failed == {}

    run_once(main())


def suspects(node):
    return [row["group"] for row in node._room.driver.group_statuses() if row["suspect"]]


@pytest.mark.timeout(180)
def test_a_member_of_a_stopped_group_that_lost_its_journal_votes_again_before_it_is_resumed(
    run_once, tmp_path
):
    """Or another one that loses its own, later, leaves the group without a quorum for good. (Who
    rejoins leads once, and nothing is led where it is stopped.)"""

    async def main():
        members = at_ports(1, 2, 3)
        async with three(tmp_path, members=members, checkpoints=REJOIN) as nodes:
            await nodes[0].create_group(7)
            await everywhere(nodes, 7)
            await nodes[0].group(7).propose(b"5")
            await all_applied(nodes, 7)
            await nodes[0].stop_group(7)
            for at in (1, 2):
                await until(lambda: all(7 in hosting_of(node)._paused for node in nodes))
                await nodes[at].close()
                lose(nodes[at].config)
                nodes[at] = phx.Node(nodes[at].config, counters)
                await nodes[at].open()
                assert nodes[at].group(7).status().suspect
                # In the directory, too: two that lack votes at a time are a majority.
                await until(lambda at=at: not suspects(nodes[at]), seconds=40)
                with pytest.raises(errors.GroupStopped, match="stop_group"):
                    await nodes[at].group(7).propose(b"1", timeout=5)
            await until(lambda: all(7 in hosting_of(node)._paused for node in nodes))
            await until(lambda: not any(node.group(7).is_leader for node in nodes))
            await nodes[2].resume_group(7, timeout=20)
            await nodes[0].close()  # what is chosen now is chosen by those two
            assert (await nodes[2].group(7).propose(b"1", timeout=20)).value == 6

    run_once(main())


QUICK = {
    "interval_instances": 0, "interval_us": 0, "interval_bytes": 0,
    "hold_instances": 0, "hold_bytes": 0, "hold_us": 0, "keep": 1,
}  # fmt: skip


def test_a_directory_that_comes_as_a_checkpoint_is_acted_upon(run_once, tmp_path):
    async def main():
        async with three(tmp_path, checkpoints=QUICK) as nodes:
            await nodes[0].create_group(5, [1, 2])
            await all_applied(nodes, DIRECTORY_GROUP)
            await nodes[2].close()
            for group in range(7, 12):
                await nodes[0].create_group(group)
            for node in nodes[:2]:
                await node.group(DIRECTORY_GROUP).checkpoint()
            await until(lambda: all(n.group(DIRECTORY_GROUP).status().floor > 3 for n in nodes[:2]))
            async with phx.Node(nodes[2].config, counters) as back:
                for node in nodes[:2]:
                    back.set_address(node.config.node, f"127.0.0.1:{node.port}")
                    node.set_address(3, f"127.0.0.1:{back.port}")
                await until(lambda: back.status().transfers["installed"] > 0, seconds=30)
                await until(lambda: all(hosts(back, group) for group in range(7, 12)))

    run_once(main())


# --- dropping


def test_a_group_that_the_driver_has_no_room_to_drop_is_dropped_later(run_once, tmp_path):
    async def main():
        async with three(tmp_path, nodes=1) as (node,):
            await node.create_group(7)
            await node.group(7).propose(b"5")
            table = hosting_of(node)._table

            class Full:
                refused = 0

                def __getattr__(self, name):
                    return getattr(table, name)

                def drop(self, group):
                    if self.refused < 2:
                        self.refused += 1
                        raise DriverError(ERROR_OVERLOADED, "the command queue is full")
                    table.drop(group)

            full = hosting_of(node)._table = Full()
            await node.delete_group(7, timeout=20)
            assert full.refused == 2
            assert 7 not in table.groups()
            assert 7 not in node._room.states
            assert (await node.create_group(7)).generation == 2
            assert (await node.group(7).propose(b"1")).value == 1

    run_once(main())


def test_news_of_a_group_that_the_directory_does_not_know_yet_are_no_reason_to_look(
    run_once, tmp_path
):
    async def main():
        async with three(tmp_path, nodes=1) as (node,):
            hosting, looks = hosting_of(node), [0]
            rows = hosting.rows

            def counted():
                looks[0] += 1
                return rows()

            hosting.rows = counted
            hosting.again(55)
            await until(lambda: looks[0])
            await asyncio.sleep(0.3)
            assert looks[0] < 10

    run_once(main())


def test_a_restoration_that_ends_late_does_not_touch_the_next_group_of_its_id(
    run_once, tmp_path, monkeypatch
):
    """The group is removed while it is restored; what was opened of it is let go of slowly."""
    go, late = threading.Event(), threading.Event()
    restores, drops = Restorer._restore, Restorer._drop

    async def main():
        async with three(tmp_path) as nodes:
            room = nodes[2]._room

            def restore(self, state):
                if self is room._restorer and state.group == 7 and not go.is_set():
                    go.wait(20)
                return restores(self, state)

            def drop(self, state):
                if self is room._restorer:
                    late.wait(30)
                return drops(self, state)

            monkeypatch.setattr(Restorer, "_restore", restore)
            monkeypatch.setattr(Restorer, "_drop", drop)
            await nodes[0].create_group(7)
            await until(lambda: 7 in room.states)
            await nodes[0].group(7).propose(b"5")
            first = room.states[7]
            deleting = asyncio.ensure_future(nodes[0].delete_group(7, timeout=20))
            await until(lambda: room.states[7].removed)
            go.set()
            await deleting
            await nodes[0].create_group(7)
            await asyncio.sleep(0.2)
            assert room.states[7] is first  # while somebody is at it
            late.set()
            await until(lambda: room.states.get(7, first) is not first)
            for total in range(1, 6):
                assert (await nodes[2].group(7).propose(b"1", timeout=20)).value == total
            await nodes[2].group(7).checkpoint()
            catalog, done = room._snapshots._catalog, threading.Event()
            before = catalog.of(7)
            assert before
            room._removal.free(first)  # whoever comes as late as this
            room._snapshots.between(done.set)
            assert await asyncio.to_thread(done.wait, 10)
            assert catalog.of(7) == before
            assert list((tmp_path / "node3" / "checkpoints" / "7").iterdir())

    run_once(main())


def test_a_checkpoint_in_the_making_goes_with_its_group(run_once, tmp_path):
    go, at = threading.Event(), threading.Event()

    class View:
        def __init__(self, view):
            self.view = view

        def snapshot(self, writer):
            at.set()
            go.wait(20)
            self.view.snapshot(writer)

        def close(self):
            self.view.close()

    class Slow(Counter):
        def freeze(self):
            return View(super().freeze())

    async def main():
        async with three(tmp_path, machines=lambda group: Slow(), nodes=1) as (node,):
            await node.create_group(7)
            await node.group(7).propose(b"5")
            taking = asyncio.ensure_future(node.group(7).checkpoint())
            await asyncio.to_thread(at.wait, 10)
            deleting = asyncio.ensure_future(node.delete_group(7, timeout=20))
            await until(lambda: 7 not in node._room.states)
            go.set()
            await deleting
            with pytest.raises(errors.CheckpointFailed, match="not hosted here any more"):
                await taking
            assert not (tmp_path / "node1" / "checkpoints" / "7").exists()
            assert node._room._snapshots._catalog.of(7) == []

    run_once(main())


# --- what a power cut brings back


def test_what_was_removed_of_a_group_is_durable_before_the_next_one_of_its_id_is(
    run_once, tmp_path, monkeypatch
):
    """The names in a folder and the store are not on the disk in the order in which they change."""
    done = []

    async def main():
        async with three(tmp_path, machines=lambda group: SqliteSums(), nodes=1) as (node,):
            await node.create_group(7)
            await node.group(7).propose(b"1 111")
            await node.group(7).checkpoint()
            await node.delete_group(7)
            files, write = node._room._snapshots._catalog.files, store_hosted.write
            sync = files.sync
            monkeypatch.setattr(files, "sync", lambda path: (done.append(path), sync(path))[1])
            monkeypatch.setattr(
                store_hosted, "write", lambda *of: (done.append("row"), write(*of))[1]
            )
            await node.create_group(7)
            assert set(done[: done.index("row")]) >= {"machines", "checkpoints"}

    run_once(main())


def test_files_of_an_earlier_group_of_the_id_are_nobodys(run_once, tmp_path, monkeypatch):
    """As if they had come back with a power cut."""

    def cut(*of):
        raise Ending

    async def main():
        folder = tmp_path / "node1" / "machines"
        async with three(tmp_path, machines=lambda group: SqliteSums(), nodes=1) as (node,):
            await node.create_group(7)
            await node.group(7).propose(b"1 111")
            await node.group(7).checkpoint()
            shutil.copytree(folder / "7.0", tmp_path / "saved")
            await node.delete_group(7)
            monkeypatch.setattr(Hosting, "_begin", cut)
            with pytest.raises(errors.TimedOutUnknown):
                await node.create_group(7, timeout=1)
            kill(node)
        monkeypatch.undo()
        shutil.copytree(tmp_path / "saved", folder / "7.0", dirs_exist_ok=True)
        async with phx.Node(node.config, lambda group: SqliteSums()) as back:
            await until(lambda: hosts(back, 7))
            assert (await back.group(7).propose(b"1 1", timeout=20)).value == 1
            await until(lambda: phase(back, 7) == "live")  # the directory is read again meanwhile

    run_once(main())


def test_an_instance_says_whose_it_is():
    for generation in (1, 2, 3, 65_535):
        base = base_of(generation)
        for instance in (base + 1, base + 2, base_of(generation + 1) - 1):
            assert generation_at(instance) == generation
    assert generation_at(1) == 1
