"""Who leads a group: asking, being told, moving it."""

import asyncio
import contextlib
import logging
import threading
import time
from functools import partial
from itertools import pairwise

import pytest

import phx
from phx import blocking, errors
from phx.applier import GroupState
from phx.leaders import CallbackThread, Watcher

from .cluster import TIMING, Journal, all_applied, cluster, config_of, introduce, until

pytestmark = pytest.mark.usefixtures("no_leaks")


def leading(nodes, group=0):
    """The node that leads, and the others, once all agree who it is."""
    told = {node.group(group).leader() for node in nodes}
    if len(told) == 1 and (led := told.pop()) is not None:
        first = next(node for node in nodes if node.config.node == led.node)
        return first, [node for node in nodes if node is not first]
    return None


async def led(nodes, group=0):
    await until(lambda: leading(nodes, group))
    return leading(nodes, group)


async def move(nodes, target):
    """Have `target` lead, whoever does. (Connections come and go for a moment at the start.)"""
    for _ in range(500):
        first, _ = await led(nodes)
        try:
            return await first.group(0).transfer_leadership(target.config.node)
        except (errors.TransferFailed, errors.NotLeader):
            await asyncio.sleep(0.01)
    raise AssertionError("it cannot be moved")


async def resigned(nodes):
    """Who led and gave it away, and who leads now. (As `move`.)"""
    for _ in range(500):
        first, _ = await led(nodes)
        try:
            return first, await first.group(0).resign()
        except (errors.TransferFailed, errors.NotLeader):
            await asyncio.sleep(0.01)
    raise AssertionError("nobody resigns")


async def why_not(first, target):
    """What it says that `target` will not lead, once the two are connected."""
    for _ in range(500):
        with pytest.raises(errors.TransferFailed) as caught:
            await first.group(0).transfer_leadership(target.config.node)
        if "not connected" not in str(caught.value):
            return str(caught.value)
        await asyncio.sleep(0.01)
    raise AssertionError("they are not connected")


def test_every_node_says_who_leads_and_in_which_epoch(run, tmp_path):
    async def main():
        async with cluster(tmp_path, balance=False) as nodes:
            first, others = await led(nodes)
            leader = first.group(0).leader()
            assert leader == phx.Leader(first.config.node, first.group(0).status().ballot)
            assert [node.group(0).is_leader for node in (first, *others)] == [True, False, False]
            await others[0].group(0).propose(b"x")
            assert others[0].group(0).machine().entries[0].epoch == leader.epoch

    run(main())


def test_a_leadership_is_moved_to_each_member_and_stays_there(run, tmp_path):
    async def main():
        async with cluster(tmp_path, balance=True) as nodes:
            # (Node 1 is preferred: once it has it, nothing moves by itself.)
            await until(lambda: (found := leading(nodes)) and found[0] is nodes[0])
            epoch = nodes[0].group(0).leader().epoch
            for target in (nodes[2], nodes[0], nodes[1]):
                first, _ = await led(nodes)
                moved = await move(nodes, target)
                assert moved.node == target.config.node
                assert moved.epoch > epoch or target is first
                await until(lambda to=target: (found := leading(nodes)) and found[0] is to)
                assert target.group(0).leader() == moved
                epoch = moved.epoch
            await asyncio.sleep(2.5)  # node 1 is preferred, and balance looks twice a second
            assert leading(nodes)[0] is nodes[1]
            result = await nodes[2].group(0).propose(b"x")
            await all_applied(nodes)
            assert nodes[0].group(0).machine().entries[-1].epoch == epoch
            assert result.value == 1

    run(main())


def test_who_resigns_leads_no_more(run, tmp_path):
    async def main():
        async with cluster(tmp_path, balance=False) as nodes:
            first, leader = await resigned(nodes)
            assert leader.node != first.config.node
            assert first.group(0).leader() == leader
            assert not first.group(0).is_leader

    run(main())


def test_what_cannot_be_moved_says_why_and_nothing_happens(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, balance=False) as nodes:
            first, others = await led(nodes)
            leader = first.group(0).leader()
            with pytest.raises(errors.NotLeader, match=f"node {leader.node} does") as caught:
                await others[0].group(0).transfer_leadership(others[1].config.node)
            assert caught.value.leader == leader.node
            with pytest.raises(errors.NotLeader):
                await others[0].group(0).resign()
            with pytest.raises(errors.NotInCluster, match="node 9"):
                await first.group(0).transfer_leadership(9)
            assert await first.group(0).transfer_leadership(leader.node) == leader
            await others[0].close()
            with pytest.raises(errors.TransferFailed, match="not connected"):
                await first.group(0).transfer_leadership(others[0].config.node)
            await others[1].close()
            with pytest.raises(errors.TransferFailed, match="every other member"):
                await first.group(0).resign()
            await first.close()
            for call in (first.group(0).leader, lambda: first.group(0).on_leader_change(print)):
                with pytest.raises(errors.Closed):
                    call()

    run_once(main())


def test_a_member_that_cannot_lead_sends_it_back_and_the_call_says_so(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, balance=False) as nodes:
            first, others = await led(nodes)
            others[0].group(0).machine().raises = True
            with pytest.raises(errors.PhxError):
                await others[0].group(0).propose(b"raise", timeout=5)
            await until(lambda: others[0].group(0).status().stopped)
            assert "leads it now" in await why_not(first, others[0])
            await first.group(0).propose(b"goes on")

    run_once(main())


def test_nothing_fails_while_leaderships_are_moved_to_and_fro_under_load(run, tmp_path):
    """Three callers at three nodes, a thousand values in flight, twenty-five moves."""

    async def main():
        async with cluster(tmp_path, groups=1, balance=False) as nodes:
            sent = {node.config.node: 0 for node in nodes}
            waits, moves, over = [], [], False

            async def caller(node):
                group, mine = node.group(0), node.config.node
                while not over:
                    values = [b"%d %d" % (mine, sent[mine] + n) for n in range(100)]
                    sent[mine] += 100
                    since = time.monotonic()
                    results = await group.propose_many(values)  # raises if any of them failed
                    waits.append(time.monotonic() - since)
                    assert len(results) == 100

            callers = [asyncio.create_task(caller(node)) for node in nodes for _ in range(3)]
            for n in range(25):
                first, _ = await led(nodes)
                to = nodes[n % 3] if nodes[n % 3] is not first else nodes[(n + 1) % 3]
                since = time.monotonic()
                moved = await move(nodes, to)
                moves.append(time.monotonic() - since)
                await until(partial(led_something, to, moved.epoch))
            over = True
            await asyncio.gather(*callers)
            await all_applied(nodes)
            values = nodes[0].group(0).machine().values
            assert len(values) == len(set(values)) == sum(sent.values())
            epochs = {entry.epoch for entry in nodes[0].group(0).machine().entries}
            assert len(epochs) >= 25
            print(f"moves: longest {max(moves):.3f} s; calls: longest {max(waits):.3f} s")
            assert max(waits) < 5

    run(main())


def led_something(node, epoch):
    """Whether a value of this leadership is applied there."""
    entries = node.group(0).machine().entries
    return entries and entries[-1].epoch >= epoch


# --- being told


def test_callbacks_hear_every_epoch_in_order(run, tmp_path):
    async def main():
        async with cluster(tmp_path, balance=False) as nodes:
            heard = {node.config.node: [] for node in nodes}
            stops = [
                node.group(0).on_leader_change(heard[node.config.node].append) for node in nodes
            ]
            expected = []
            for target in (*nodes, *nodes):
                first, _ = await led(nodes)
                if target is not first:
                    expected.append(await move(nodes, target))
            await until(lambda: all(told[-1:] == expected[-1:] for told in heard.values()))
            for told in heard.values():
                leaders = [leader for leader in told if leader is not None]
                assert leaders == sorted(leaders, key=lambda one: one.epoch)
                assert len(set(leaders)) == len(leaders)
                assert all(a != b for a, b in pairwise(told))
            # Whoever hands it over hears of the next one; nothing is left out where loops are idle.
            assert all(one in heard[one.node] for one in expected)
            stops[0]()
            count = len(heard[1])
            _, others = await led(nodes)
            last = await move(nodes, others[0])
            await until(lambda: heard[2][-1] == heard[3][-1] == last)
            assert len(heard[1]) == count
        assert heard[2][-1] is None
        assert heard[3][-1] is None
        assert len(heard[1]) == count

    run(main())


def test_a_callback_runs_in_a_turn_of_its_own_and_may_raise(run_once, tmp_path, caplog):
    async def main():
        async with cluster(tmp_path, nodes=1) as (node,):
            told = []

            def tell(leader):
                told.append(leader)
                if len(told) == 1:
                    node.group(0).on_leader_change(told.append)
                    raise RuntimeError("of a user")

            with caplog.at_level(logging.ERROR, "phx"):
                node.group(0).on_leader_change(tell)
                assert told == []
                await asyncio.sleep(0.01)
            leader = node.group(0).leader()
            assert told == [leader, leader]
            assert "leader callback of group 0" in caplog.text
            await node.group(0).propose(b"x")
        assert told == [leader, leader, None, None]

    run_once(main())


def test_a_watcher_tells_what_holds_and_nothing_twice():
    state, calls, told = GroupState(0, {}), [], []
    watcher = Watcher(state, told.append, calls.append)

    def run():
        assert len(calls) == 1
        calls.pop()()

    watcher.changed()
    run()
    assert told == [None]
    for epoch in (1, 2, 3):
        state.led = phx.Leader(7, epoch)
        watcher.changed()  # asks once, however often
    run()
    assert told[1:] == [phx.Leader(7, 3)]
    state.led = None
    watcher.changed()
    state.led = phx.Leader(7, 3)
    watcher.changed()
    run()
    assert told[2:] == []
    state.led = None
    watcher.changed()
    watcher.stop()
    run()
    assert told[2:] == []


def test_an_older_claim_counts_as_nobody(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, nodes=1) as (node,):
            room = node._room
            state, told = room.states[0], []
            node.group(0).on_leader_change(told.append)
            high = node.group(0).leader().epoch
            event = room.applier._event
            await asyncio.sleep(0.01)
            for leader, epoch in ((2, high + 9), (1, high), (0, 0), (2, high + 9), (1, high + 10)):
                event(2, 0, 0, epoch, 0, leader)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert told[1:] == [
                phx.Leader(2, high + 9), None, phx.Leader(2, high + 9), phx.Leader(1, high + 10),
            ]  # fmt: skip
            assert state.led == told[-1]

    run_once(main())


# --- without a loop


@contextlib.contextmanager
def blocking_cluster(folder, **changes):
    timing = {"timing": TIMING, "balance": False, **changes}
    made = [
        blocking.Node(config_of(folder, node, **timing), Journal, bootstrap=True)
        for node in (1, 2, 3)
    ]
    with contextlib.ExitStack() as stack:
        for node in made:
            stack.enter_context(node)
        introduce(made)
        for node in made:
            node.wait_ready()
        yield made


def settled(call):
    """What it returns, once all are connected: that comes and goes for a moment at the start."""
    for _ in range(500):
        try:
            return call()
        except errors.TransferFailed:
            time.sleep(0.01)
    raise AssertionError("it cannot be moved")


def wait(holds):
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_blocking_nodes_have_the_same(tmp_path):
    with blocking_cluster(tmp_path, balance=False) as nodes:
        wait(lambda: leading(nodes))
        first, others = leading(nodes)
        told, threads = [], set()

        def tell(leader):
            told.append(leader)
            threads.add(threading.current_thread().name)

        others[0].group(0).on_leader_change(tell)
        with pytest.raises(errors.NotLeader):
            others[0].group(0).resign()
        moved = settled(lambda: first.group(0).transfer_leadership(others[0].config.node))
        wait(lambda: others[0].group(0).is_leader)
        assert others[0].group(0).leader() == moved
        wait(lambda: told and told[-1] == moved)
        assert threads == {"phx-callbacks"}
        assert others[0].group(0).transfer_leadership(moved.node) == moved
        given = settled(others[0].group(0).resign)
        assert given.node != moved.node
        assert given.epoch > moved.epoch
    assert told[-1] is None
    assert [leader.epoch for leader in told if leader] == sorted(
        leader.epoch for leader in told if leader
    )


def test_a_callback_that_blocks_holds_up_callbacks_only(tmp_path):
    with blocking_cluster(tmp_path, balance=False) as nodes:
        go_on, told = threading.Event(), []

        def stuck(leader):
            told.append(leader)
            go_on.wait(10)

        group = nodes[0].group(0)
        group.on_leader_change(stuck)
        wait(lambda: told)
        for n in range(20):
            assert group.propose(b"%d" % n).value == n + 1
        assert len(told) == 1
        go_on.set()


def test_the_thread_of_callbacks_ends_and_takes_nothing_more(caplog):
    thread = CallbackThread()
    done = []
    thread.soon(lambda: done.append(1))
    thread.end()
    assert done == [1]
    thread.soon(lambda: done.append(2))
    thread.end()
    assert done == [1]
    CallbackThread().end()


@pytest.mark.parametrize("error", [SystemExit, RuntimeError])
def test_what_a_callback_raises_ends_no_thread_of_callbacks(caplog, error):
    thread = CallbackThread()
    done = []

    def leaves():
        raise error("planted")

    thread.soon(leaves)
    thread.soon(lambda: done.append(1))
    thread.end()
    assert done == [1]
    assert "planted" in caplog.text
