"""Nodes on the real engine, journal, network and store, three in one process."""

import asyncio
import fcntl
import gc
import os
import signal
import threading
import time
import warnings
from functools import partial

import pytest

import phx
from phx import errors
from phx.machines import Counter
from phx.node.room import Room

from .cluster import Journal, all_applied, cluster, config_of, introduce, until

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_values_are_applied_on_every_node_in_one_order(run, tmp_path):
    async def main():
        async with cluster(tmp_path, groups=[4, 9]) as nodes:
            calls = [
                node.group(group).propose(b"%d %d %d" % (node.config.node, group, n))
                for n in range(50)
                for node in nodes
                for group in (4, 9)
            ]
            results = await asyncio.gather(*calls)
            assert len(results) == 300
            for group in (4, 9):
                await all_applied(nodes, group)
                logs = [node.group(group).machine().values for node in nodes]
                assert logs[0] == logs[1] == logs[2]
                assert sorted(logs[0]) == sorted(
                    b"%d %d %d" % (node, group, n) for n in range(50) for node in (1, 2, 3)
                )
                for node in (b"1", b"2", b"3"):  # each caller's values in its own order
                    mine = [value for value in logs[0] if value.startswith(node)]
                    assert mine == sorted(mine, key=lambda value: int(value.split()[2]))

    run(main())


def test_a_result_has_the_instance_and_what_apply_returned(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            group = nodes[1].group(1)
            first, second = await group.propose(b"a"), await group.propose(b"b")
            assert (first.value, second.value) == (1, 2)
            assert 1 <= first.instance < second.instance
            entries = group.machine().entries
            assert [(one.instance, one.node, one.value) for one in entries] == [
                (first.instance, 2, b"a"),
                (second.instance, 2, b"b"),
            ]
            assert all(one.time_us > 1_600_000_000_000_000 and one.epoch for one in entries)

    run_once(main())


def test_equal_bytes_are_two_values(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            calls = [node.group(0).propose(b"same") for node in nodes for _ in range(10)]
            results = await asyncio.gather(*calls)
            await all_applied(nodes)
            assert sorted(result.value for result in results) == list(range(1, 31))
            assert nodes[0].group(0).machine().values == [b"same"] * 30

    run_once(main())


def test_a_run_of_values_is_applied_in_its_order(run, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            values = [b"%d" % n for n in range(5000)]
            calls = [node.group(0).propose_many(values) for node in nodes]
            for results in await asyncio.gather(*calls):
                counts = [result.value for result in results]
                instances = [result.instance for result in results]
                assert counts == sorted(counts)
                assert instances == sorted(instances)
            await all_applied(nodes)
            for number in (1, 2, 3):
                entries = nodes[0].group(0).machine().entries
                assert [one.value for one in entries if one.node == number] == values
            assert await nodes[0].group(0).propose_many([]) == []
            assert len(await nodes[0].group(0).propose_many(iter([b"x", b"y"]))) == 2

    run(main())


def test_what_cannot_be_proposed_is_refused_at_once(run_once, tmp_path):
    async def main():
        limits = {"value_bytes_max": 1000}
        async with cluster(tmp_path, limits=limits) as nodes:
            group = nodes[0].group(0)
            assert (await group.propose(b"x" * 1000)).value == 1
            assert (await group.propose(bytearray(b"mutable"))).value == 2
            assert (await group.propose(memoryview(b"view"))).value == 3
            assert (await group.propose(b"")).value == 4

            def propose_one_of_many(value, **more):
                return group.propose_many([value], **more)

            for propose in (group.propose, propose_one_of_many):
                with pytest.raises(errors.ValueTooLarge, match="1001 bytes"):
                    propose(b"x" * 1001)
                with pytest.raises(errors.UnknownMachine):
                    propose(b"x", machine=3)
                with pytest.raises(errors.TimedOut):
                    propose(b"x", timeout=0)
                with pytest.raises(TypeError, match="not str"):
                    propose("text")
            with pytest.raises(errors.NotInCluster):
                nodes[0].group(77)
            assert group.status().waiting_values == 0
            assert (await group.propose(b"still alive")).value == 5

    run_once(main())


def test_several_machines_share_a_group(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, {0: Counter, 5: Journal}) as nodes:
            group = nodes[0].group(0)
            assert (await group.propose(b"41")).value == 41
            assert (await group.propose(b"entry", machine=5)).value == 1
            assert (await group.propose(b"1", machine=0)).value == 42
            await all_applied(nodes)
            for node in nodes:
                assert node.group(0).machine(0).total == 42
                assert node.group(0).machine(5).values == [b"entry"]
            with pytest.raises(errors.UnknownMachine):
                group.machine(1)

    run_once(main())


def test_a_failing_apply_stops_its_group_on_its_node_and_nothing_else(run, tmp_path, caplog):
    async def main():
        async with cluster(tmp_path) as nodes:
            broken = nodes[0]
            broken.group(0).machine().raises = True
            mine = broken.group(0).propose(b"raise")
            with pytest.raises(errors.StoppedUnknown):
                await mine
            status = broken.group(0).status()
            assert status.stopped
            assert broken.status().stopped == (0,)
            with pytest.raises(errors.GroupStopped) as caught:
                broken.group(0).propose(b"more")
            stopped = caught.value
            assert (stopped.group, stopped.machine) == (0, 0)
            assert isinstance(stopped.__cause__, RuntimeError)
            assert stopped.instance == status.applied_through + 1
            # The poison value is a value like any other for the others,
            others = nodes[1:]
            result = await others[0].group(0).propose(b"after")
            assert result.value == 2
            # the other group of the broken node goes on,
            assert (await broken.group(1).propose(b"other")).value == 1
            # and so does its acceptor: with a third node gone its vote is needed.
            await others[1].close()
            assert (await others[0].group(0).propose(b"needs the broken node's vote")).value == 3
            assert broken.group(0).machine().values == []

    run(main())
    assert "group 0 stopped at instance" in caplog.text


def test_cancelling_a_caller_disturbs_nobody(run, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            group = nodes[0].group(0)
            calls = [group.propose(b"%d" % n) for n in range(200)]
            calls.append(group.propose_many([b"many"] * 10))
            for call in calls[::2]:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            for number, result in enumerate(results):
                if number % 2:
                    assert isinstance(result, phx.Result)
                else:
                    assert isinstance(result, asyncio.CancelledError)
            await all_applied(nodes)
            applied = group.machine().values
            assert applied == [b"%d" % n for n in range(200)] + [b"many"] * 10
            assert group.status().waiting_values == 0
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(group.propose(b"late")), 0)
            assert (await group.propose(b"next")).value == len(group.machine().values)

    run(main())


def test_back_pressure_by_count_and_bytes(run_once, tmp_path):
    async def main():
        limits = {
            "group_values_max": 100,
            "value_bytes_max": 10_000,
            "group_bytes_max": 50_000,
            "node_bytes_max": 70_000,
        }
        async with cluster(tmp_path, limits=limits) as nodes:
            group, other = nodes[0].group(0), nodes[0].group(1)
            calls = [group.propose(b"x") for _ in range(100)]
            assert group.status().waiting_values == 100
            with pytest.raises(errors.Overloaded, match="group_values_max is 100: 100 in flight"):
                group.propose(b"x")
            with pytest.raises(errors.Overloaded, match="group_values_max"):
                group.propose_many([b"x"] * 2)
            assert (await other.propose(b"not concerned")).value == 1
            await asyncio.gather(*calls)
            calls = [group.propose(b"x" * 10_000) for _ in range(5)]
            with pytest.raises(errors.Overloaded, match="group_bytes_max"):
                group.propose(b"x")
            calls += [other.propose(b"x" * 10_000) for _ in range(2)]
            with pytest.raises(errors.Overloaded, match="node_bytes_max"):
                other.propose(b"x")
            assert nodes[0].status().waiting_bytes == 70_000
            await asyncio.gather(*calls)
            assert nodes[0].status().waiting_bytes == 0
            assert (await group.propose(b"x")).value == 106

    run_once(main())


def test_without_a_majority_a_value_is_rejected_when_its_time_is_up(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, ready=False) as nodes:
            await nodes[1].close()
            await nodes[2].close()
            await until(lambda: nodes[0].group(0).status().leader is None)
            began = time.monotonic()
            with pytest.raises(errors.Rejected) as caught:
                await nodes[0].group(0).propose(b"x", timeout=0.5)
            assert isinstance(caught.value, errors.NoQuorum | errors.TimedOut)
            assert 0.4 < time.monotonic() - began < 3
            with pytest.raises(errors.Rejected) as caught:
                await nodes[0].group(0).propose_many([b"x", b"y"], timeout=0.3)
            assert isinstance(caught.value, errors.NoQuorum | errors.TimedOut)
            with pytest.raises(errors.NotReady) as unready:
                await nodes[0].wait_ready(timeout=0.2)
            assert unready.value.groups == [0, 1]
            assert not nodes[0].ready()

    run_once(main())


def test_a_cluster_that_was_restarted_has_lost_nothing(run, tmp_path):
    async def write():
        async with cluster(tmp_path) as nodes:
            for group in (0, 1):
                calls = [
                    node.group(group).propose_many([b"%d" % n for n in range(500)])
                    for node in nodes
                ]
                await asyncio.gather(*calls)
            await all_applied(nodes, 0)
            await all_applied(nodes, 1)
            return (
                [nodes[0].group(group).machine().values for group in (0, 1)],
                [nodes[0].group(group).status() for group in (0, 1)],
                nodes[0].status(),
            )

    async def read(incarnation, statuses, logs):
        async with cluster(tmp_path) as nodes:
            for group in (0, 1):
                # What was acknowledged is there before anybody writes.
                for node in nodes:
                    await applied_up_to(node.group(group), statuses[group].applied_through)
                    assert node.group(group).machine().values[: len(logs[group])] == logs[group]
                await nodes[2].group(group).propose(b"again")
                await all_applied(nodes, group)
                for node in nodes:
                    assert node.group(group).machine().values == [*logs[group], b"again"]
            assert nodes[0].status().incarnation == incarnation + 1
            return (
                [[*log, b"again"] for log in logs],
                [nodes[0].group(group).status() for group in (0, 1)],
                nodes[0].status(),
            )

    async def applied_up_to(group, instance):
        await until(lambda: group.status().applied_through >= instance)

    logs, statuses, status = run(write())
    for _ in range(2):
        logs, statuses, status = run(read(status.incarnation, statuses, logs))


def test_old_instances_can_be_read_from_memory_journal_and_store(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, groups=1) as nodes:
            group = nodes[0].group(0)
            results = [await group.propose(b"%d" % n) for n in range(20)]
            await check(group, results)
            with pytest.raises(errors.NotChosenYet):
                await group.entry(results[-1].instance + 100)
            with pytest.raises(ValueError, match="from 1"):
                await group.entry(0)
        async with cluster(tmp_path, groups=1) as nodes:
            group = nodes[0].group(0)
            assert group.status().settled_through >= results[-1].instance
            await check(group, results)
            await group.propose(b"more")
            assert len(group.machine().values) == 21

    async def check(group, results):
        for number, result in enumerate(results):
            (entry,) = await group.entry(result.instance)
            assert (entry.value, entry.instance) == (b"%d" % number, result.instance)

    run_once(main())


def test_a_member_that_was_away_catches_up(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, groups=1) as nodes:
            await nodes[2].close()
            for n in range(50):
                await (
                    nodes[n % 2]
                    .group(0)
                    .propose_many([b"%d %d" % (n, k) for k in range(20)], timeout=20)
                )
            back = phx.Node(config_of(tmp_path, 3, groups=1), Journal)
            await back.open()
            try:
                introduce([nodes[0], nodes[1], back])
                await all_applied([nodes[0], nodes[1], back])
                assert back.group(0).machine().values == nodes[0].group(0).machine().values
            finally:
                await back.close()

    run_once(main())


def test_status_tells_what_there_is(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            await nodes[0].group(0).propose(b"x")
            found = [node.group(0).status() for node in nodes]
            leader = found[0].leader
            assert {one.leader for one in found} == {leader}
            assert [one.leading for one in found] == [n == leader for n in (1, 2, 3)]
            status = nodes[0].status()
            assert (status.cluster, status.node, status.groups) == ("test", 1, 2)
            assert status.port == nodes[0].port
            assert set(status.peers) == {2, 3}
            assert all(peer.connected for peer in status.peers.values())
            assert status.journal["syncs"] > 0
            assert not status.poisoned
            assert status.store_error is None
            assert status.applier["values"] >= 1
            assert [group.id for group in nodes[0].groups] == [0, 1]
            assert sum(node.status().leading for node in nodes) == 2

    run_once(main())


# --- the end


def test_closing_twice_or_at_once_is_closing(run, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            await asyncio.gather(nodes[0].close(), nodes[0].close())
            await nodes[0].close()
            with pytest.raises(errors.Closed):
                nodes[0].status()
            with pytest.raises(errors.Closed):
                nodes[0].set_address(2, "127.0.0.1:1")
            with pytest.raises(errors.Closed):
                await nodes[0].open()
        await nodes[1].close()

    run(main())


def test_closing_that_is_cancelled_is_closing(run, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1)
        for pause in (0, 0.001, 0.01):
            node = phx.Node(config, Journal, bootstrap=True)
            await node.open()
            waiting = node.group(0).propose(b"x")
            closing = asyncio.ensure_future(node.close())
            await asyncio.sleep(pause)
            # As a loop does that ends: everything is cancelled, what close() waits for included.
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.wait([closing], timeout=10)
            assert closing.done()
            await node.close()
            await asyncio.wait([waiting], timeout=10)
            await until(lambda: not locked(config))

    def locked(config):
        with open(config.dir / "lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    run(main())


def test_what_hands_over_when_a_close_is_cancelled_ends_in_silence(
    run_once, tmp_path, monkeypatch, caplog
):
    """It finds a driver that was stopped under it."""
    begun, cut = threading.Event(), threading.Event()

    def settle(room, until, settle=Room._settle):
        begun.set()
        assert cut.wait(20)
        settle(room, until)

    monkeypatch.setattr(Room, "_settle", settle)

    async def main():
        node = phx.Node(config_of(tmp_path, 1, nodes=1), Journal, bootstrap=True)
        await node.open()
        closing = asyncio.ensure_future(node.close())
        await until(begun.is_set)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait([closing], timeout=10)
        cut.set()
        await asyncio.get_running_loop().shutdown_default_executor()

    run_once(main())
    assert [one.getMessage() for one in caplog.records] == []


def test_a_loop_that_ends_in_the_middle_of_a_close_leaves_no_thread(tmp_path):
    """`close` is cancelled before what it waits for; nobody calls it again."""

    def opened_and_left(folder, nodes):
        async def main():
            node = phx.Node(config_of(folder, 1, nodes=1), Journal, bootstrap=True)
            nodes.append(node)  # it is not collected
            await node.open()
            closing = asyncio.ensure_future(node.close())
            for _ in range(2):
                await asyncio.sleep(0)
            assert node._closed is not None
            assert not closing.done()

        asyncio.run(main())

    nodes = []
    for number in range(8):
        opened_and_left(tmp_path / str(number), nodes)
        for _ in range(200):
            left = [one.name for one in threading.enumerate() if one.name.startswith("phx-")]
            if not left:
                break
            time.sleep(0.05)
        assert left == []


def test_callers_that_wait_when_a_node_closes_are_told(run, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            group = nodes[0].group(0)
            await nodes[1].close()
            await nodes[2].close()
            waiting = [group.propose(b"x", timeout=None) for _ in range(10)]
            waiting.append(group.propose_many([b"y"] * 3, timeout=30))
            await nodes[0].close(timeout=0.2)
            for call in waiting:
                with pytest.raises((errors.Unknown, errors.Closed)):
                    await asyncio.wait_for(call, 1)
            with pytest.raises(errors.Closed):
                group.propose(b"z")
            with pytest.raises(errors.Closed):
                group.status()
            with pytest.raises(errors.Closed):
                await group.entry(1)

    run(main())


def test_a_node_that_was_never_opened_can_be_closed(run_once, tmp_path):
    async def main():
        node = phx.Node(config_of(tmp_path, 1), Journal)
        with pytest.raises(errors.Closed):
            node.status()
        with pytest.raises(errors.Closed):
            node.group(0)
        await node.close()
        assert not (tmp_path / "node1").exists()

    run_once(main())


def test_a_failing_body_closes_the_node(run_once, tmp_path):
    async def main():
        node = phx.Node(config_of(tmp_path, 1, nodes=1), Journal, bootstrap=True)

        async def fail():
            async with node:
                await node.group(0).propose(b"x")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        with pytest.raises(errors.Closed):
            node.status()

    run_once(main())


def test_opening_that_is_cancelled_leaves_nothing_open(run_once, tmp_path):
    async def main():
        node = phx.Node(config_of(tmp_path, 1, nodes=1), Journal, bootstrap=True)
        opening = asyncio.ensure_future(node.open())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await node.close()
        again = phx.Node(config_of(tmp_path, 1, nodes=1), Journal, bootstrap=True)
        for _ in range(100):
            try:
                await again.open()
                break
            except errors.Locked:
                await asyncio.sleep(0.02)
                again = phx.Node(config_of(tmp_path, 1, nodes=1), Journal, bootstrap=True)
        await again.group(0).propose(b"x")
        await again.close()

    run_once(main())


def test_a_node_that_nobody_closed_is_closed_when_it_is_collected(run_once, tmp_path):
    async def main():
        node = phx.Node(config_of(tmp_path, 1, nodes=1), Journal, bootstrap=True)
        await node.open()
        await node.group(0).propose(b"x")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del node
            gc.collect()
        assert [one.category for one in caught] == [ResourceWarning]
        async with phx.Node(config_of(tmp_path, 1, nodes=1), Journal) as again:
            await again.wait_ready()
            assert again.group(0).machine().values == [b"x"]

    run_once(main())


def test_a_group_in_use_keeps_its_node(run_once, tmp_path):
    async def main():
        node = phx.Node(config_of(tmp_path, 1, nodes=1), Journal, bootstrap=True)
        await node.open()
        close, group = node.close, node.group(0)
        del node
        gc.collect()
        assert (await group.propose(b"x")).value == 1
        await close()

    run_once(main())


# --- processes


def test_a_forked_child_finds_its_node_dead(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            group = nodes[0].group(0)
            await group.propose(b"before")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                os._exit(in_child(nodes))
            for n in range(20):
                await group.propose(b"%d" % n)
            assert await asyncio.to_thread(ended, child) == 0
            await group.propose(b"after")
            await all_applied(nodes)
            assert len(nodes[2].group(0).machine().values) == 22

    def ended(child):
        deadline = time.monotonic() + 10
        done, status = os.waitpid(child, os.WNOHANG)
        while not done and time.monotonic() < deadline:
            time.sleep(0.01)
            done, status = os.waitpid(child, os.WNOHANG)
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) if done else "hung"

    def in_child(nodes):
        try:
            for node in nodes:
                group = node.group(0)
                for use in (node.status, group.status, partial(group.propose, b"x")):
                    try:
                        use()
                    except errors.ForkedError:
                        continue
                    return 2
            del node, group, use
            nodes.clear()
            gc.collect()
            return 0
        except BaseException:
            return 3

    run_once(main())


def test_an_address_that_cannot_be_is_refused(run_once, tmp_path):
    async def main():
        async with phx.Node(config_of(tmp_path, 1), Journal, bootstrap=True) as node:
            with pytest.raises(errors.NotInCluster):
                node.set_address(9, "127.0.0.1:1")
            with pytest.raises(errors.ConfigError):
                node.set_address(1, "127.0.0.1:1")
            with pytest.raises(ValueError, match="host:port"):
                node.set_address(2, "nowhere")
            with pytest.raises(errors.SystemFailure, match="no address"):
                node.set_address(2, "no.such.host.invalid:1")

    run_once(main())


def test_threads_do_not_grow_with_groups(run_once, tmp_path):
    async def threads(groups):
        async with phx.Node(
            config_of(tmp_path / str(groups), 1, nodes=1, groups=groups), Journal, bootstrap=True
        ) as node:
            await node.wait_ready()
            # asyncio's own helpers, which open and close run on, come and go.
            helpers = [t for t in threading.enumerate() if t.name.startswith("asyncio_")]
            return len(os.listdir("/proc/self/task")) - len(helpers)

    async def main():
        return await threads(1), await threads(300)

    if not os.path.isdir("/proc/self/task"):
        pytest.skip("threads are counted in /proc")
    few, many = run_once(main())
    assert few == many


def test_a_group_cannot_be_left_out(run_once, tmp_path):
    """Its promises would not be carried over, and so be forgotten (U4)."""

    async def main():
        async with cluster(tmp_path, nodes=1, groups=[0, 1, 2]) as (node,):
            await node.group(1).propose(b"a")
        fewer = phx.Node(config_of(tmp_path, 1, 1, groups=[0, 2]), Journal)
        with pytest.raises(phx.errors.ConfigError, match="store holds group 1"):
            await fewer.open()
        silent = phx.Node(config_of(tmp_path, 1, 1, groups=[0, 1]), Journal)
        with pytest.raises(phx.errors.ConfigError, match="journal holds votes of group 2"):
            await silent.open()
        async with cluster(tmp_path, nodes=1, groups=[0, 1, 2, 3]) as (node,):
            await node.group(3).propose(b"one more may come")

    run_once(main())


def test_a_member_with_another_window_is_refused(run_once, tmp_path, caplog):
    """The window belongs to the group: a smaller one would drop what a leader sends."""

    async def main():
        limits = [{}, {}, {"window": 512}]
        nodes = [
            phx.Node(config_of(tmp_path, i + 1, limits=limits[i]), Journal, bootstrap=True)
            for i in range(3)
        ]
        await asyncio.gather(*(node.open() for node in nodes))
        introduce(nodes)
        try:
            result = await nodes[0].group(0).propose(b"two are a majority")
            assert result.instance >= 1
            assert not any(peer.connected for peer in nodes[2].status().peers.values())
            await until(lambda: "another limits.window" in caplog.text)
        finally:
            await asyncio.gather(*(node.close() for node in nodes))

    run_once(main())
