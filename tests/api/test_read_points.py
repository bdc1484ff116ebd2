"""Linearizable reads at any node: read points that are asked for, and the barrier."""

import asyncio

import pytest

import phx
from phx import errors
from phx._core.options import DriverError
from phx.asking import Asked
from phx.machines import KeyValue
from phx.machines.kv import encode_set

from .cluster import all_applied, cluster, syncs_at_rest, until
from .test_blocking import blocking_cluster
from .test_leaders import led

pytestmark = pytest.mark.usefixtures("no_leaks")
HOW = ("linearizable", "quorum")


@pytest.mark.parametrize("how", HOW)
def test_every_node_sees_what_was_complete_wherever_it_was_written(run_once, tmp_path, how):
    async def main():
        async with cluster(tmp_path, KeyValue, balance=False) as nodes:
            for number in range(60):
                value = b"%d" % number
                await nodes[number % 3].group(0).propose(encode_set("k", value))
                found = await asyncio.gather(
                    *(node.group(0).read("k", consistency=how) for node in nodes)
                )
                assert [one.value for one in found] == [value] * 3
                assert all(one.lag_us == 0 for one in found)

    run_once(main())


def test_a_read_writes_nothing(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, KeyValue, balance=False) as nodes:
            _, others = await led(nodes, 0)
            await others[0].group(0).propose(encode_set("k", b"1"))
            await all_applied(nodes)
            before = await syncs_at_rest(nodes)
            chosen = [node.group(0).status().chosen_through for node in nodes]
            for node in nodes:
                for how in HOW:
                    assert (await node.group(0).read("k", consistency=how)).value == b"1"
                await node.group(0).barrier()
            assert [node.group(0).status().chosen_through for node in nodes] == chosen
            assert [node.status().journal["syncs"] for node in nodes] == before

    run_once(main())


def test_reads_of_one_turn_are_one_question_for_all_groups(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, KeyValue, groups=20, balance=False) as nodes:
            node = nodes[2]
            groups = [g for g in range(20) if not node.group(g).is_leader]
            assert len(groups) > 5
            before = node._room.driver.status()["engine"]["read_questions"]
            found = await asyncio.gather(
                *(node.group(g).read("k") for g in groups for _ in range(10))
            )
            assert len(found) == 10 * len(groups)
            asked = node._room.driver.status()["engine"]["read_questions"] - before
            assert 4 * asked < len(found), "what takes long is asked again; else it is two or three"

    run_once(main())


def test_a_barrier_waits_for_what_others_were_told(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, KeyValue, balance=False) as nodes:
            first, others = await led(nodes, 0)
            for number in range(30):
                written = await first.group(0).propose(encode_set("k", b"%d" % number))
                await others[number % 2].group(0).barrier()
                state = others[number % 2].group(0).status()
                assert state.applied_through >= written.instance
                assert others[number % 2].group(0).machine().query("k") == b"%d" % number

    run_once(main())


def test_without_a_leader_a_majority_is_enough_for_what_is_settled(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, KeyValue, balance=False) as nodes:
            first, others = await led(nodes, 0)
            await first.group(0).propose(encode_set("k", b"1"))
            await all_applied(nodes)
            closing = asyncio.create_task(first.close())
            for node in others:
                assert (await node.group(0).read("k", consistency="quorum")).value == b"1"
            await closing

    run_once(main())


def test_alone_nobody_answers_and_the_error_says_so(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, KeyValue, balance=False) as nodes:
            await asyncio.gather(nodes[0].close(), nodes[1].close())
            group = nodes[2].group(0)
            await until(lambda: group.leader() is None)
            for call in (
                group.read("k", timeout=0.4),
                group.read("k", consistency="quorum", timeout=0.4),
                group.barrier(timeout=0.4),
            ):
                with pytest.raises((errors.TimedOut, errors.NoQuorum)) as caught:
                    await call
                assert caught.value.outcome == "rejected"
            assert (await group.read("k", consistency="stale")).value is None

    run_once(main())


def test_reads_that_wait_end_when_the_node_closes(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, KeyValue, balance=False) as nodes:
            await asyncio.gather(nodes[0].close(), nodes[1].close())
            group = nodes[2].group(0)
            await until(lambda: group.leader() is None)
            reads = [asyncio.ensure_future(group.read("k", timeout=None)) for _ in range(3)]
            reads.append(asyncio.ensure_future(group.barrier(timeout=None)))
            await asyncio.sleep(0.2)
            await nodes[2].close()
            for one in reads:
                with pytest.raises(errors.Closed):
                    await one

    run_once(main())


def test_a_blocking_node_reads_and_waits_alike(tmp_path):
    with blocking_cluster(tmp_path, KeyValue) as nodes:
        for number in range(20):
            value = b"%d" % number
            nodes[number % 3].group(0).propose(encode_set("k", value))
            for node in nodes:
                node.group(0).barrier()
                assert node.group(0).machine().query("k") == value
                assert node.group(0).read("k") == phx.Read(
                    value, node.group(0).read("k").instance, 0
                )
                assert node.group(0).read("k", consistency="quorum").value == value


# --- tickets


class FakeTickets:
    def __init__(self):
        self.asked = []
        self.found = []
        self.full = False

    def ask(self, group, ticket, deadline_us, quorum=False):
        if self.full:
            raise DriverError(2, "full")
        self.asked.append((group, ticket, deadline_us, quorum))

    def take(self):
        found, self.found = self.found, []
        return found


def asked_of():
    tickets = FakeTickets()
    return tickets, Asked(tickets, lambda error: errors.Overloaded(error.message))


def test_the_reads_of_a_turn_share_a_ticket_and_later_ones_do_not():
    tickets, asked = asked_of()
    told = []
    asked.ask(1, 10, told.append)
    asked.ask(1, 30, told.append)
    asked.ask(2, 20, told.append)
    asked.ask(1, 20, told.append, quorum=True)
    assert tickets.asked == [], "not before the turn"
    asked.turn()
    assert tickets.asked == [(1, 1, 30, False), (2, 2, 20, False), (1, 3, 20, True)]
    asked.ask(1, 40, lambda point: told.append(("later", point)))
    asked.turn()
    assert tickets.asked[3:] == [(1, 4, 40, False)]
    tickets.found = [(1, 1, 7, 0)]
    asked.turn()
    assert told == [7, 7], "what was on its way is nothing for who came later"
    tickets.found = [(1, 4, 9, 0), (2, 2, 0, 7), (1, 3, 0, 1)]
    asked.turn()
    assert told[2] == ("later", 9)
    assert [type(one) for one in told[3:]] == [errors.NoQuorum, errors.TimedOut]


def test_every_verdict_is_an_error_that_is_safe_to_repeat():
    tickets, asked = asked_of()
    told = []
    expected = {
        1: errors.TimedOut,
        3: errors.Overloaded,
        5: errors.GroupStopped,
        7: errors.NoQuorum,
        8: errors.NodeFailed,
    }
    for number, verdict in enumerate(expected, 1):
        asked.ask(number, 1, told.append)
        asked.turn()
        tickets.found = [(number, number, 0, verdict)]
        asked.turn()
    assert [type(one) for one in told] == list(expected.values())
    assert {one.outcome for one in told} == {"rejected"}
    tickets.full = True
    asked.ask(1, 1, told.append)
    asked.turn()
    assert type(told[-1]) is errors.Overloaded
    tickets.full = False
    asked.ask(1, 1, told.append)
    asked.turn()
    asked.ask(1, 1, told.append)
    asked.end(lambda: errors.Closed("closed"))
    assert [type(one) for one in told[-2:]] == [errors.Closed] * 2
