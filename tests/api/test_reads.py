"""Reads: what they see, where they may be answered, and what waits for what."""

import asyncio
import threading
import time

import pytest

import phx
from phx import errors, reading
from phx.machines import KeyValue
from phx.machines.kv import encode_set

from .cluster import Journal, all_applied, cluster, syncs_at_rest, until
from .test_blocking import blocking_cluster
from .test_leaders import led

pytestmark = pytest.mark.usefixtures("no_leaks")


class Asked(Journal):
    """A journal that answers: how many values, or does what the query says."""

    def __init__(self, group=0):
        super().__init__(group)
        self.threads = set()

    def query(self, query):
        self.threads.add(threading.get_ident())
        return query(self) if callable(query) else len(self.values)


async def leased(node, group=0):
    """Wait until that node, which leads, has a lease."""
    await until(lambda: node._room.driver.points.leased(group) >= 0)


async def leader_of(nodes, group=0):
    first, others = await led(nodes, group)
    await leased(first, group)
    return first, others


def test_a_leader_with_a_lease_answers_in_the_call(run, tmp_path):
    async def main():
        async with cluster(tmp_path, Asked, balance=False) as nodes:
            first, _ = await leader_of(nodes)
            group = first.group(0)
            written = await group.propose(b"a")
            await all_applied(nodes)
            before = await syncs_at_rest([first])
            for how in ("lease", "linearizable"):
                for _ in range(5):  # on a starved machine a lease may end just before
                    await leased(first)
                    loops = []
                    asyncio.get_running_loop().call_soon(loops.append, 1)
                    found = await group.read(None, consistency=how)
                    if not loops:  # no turn of the loop
                        break
                assert (found, loops) == (phx.Read(1, written.instance, 0), [])
            assert [first.status().journal["syncs"]] == before
            assert group.machine().threads == {threading.get_ident()}

    run(main())


def test_elsewhere_a_lease_read_is_refused_at_once_and_says_who_leads(run, tmp_path):
    async def main():
        async with cluster(tmp_path, Asked, balance=False) as nodes:
            first, others = await leader_of(nodes)
            for node in others:
                with pytest.raises(errors.NotLeader) as caught:
                    await node.group(0).read(None, consistency="lease")
                assert caught.value.leader == first.config.node

    run(main())


def test_a_stale_read_is_answered_anywhere_and_says_how_old_it_may_be(run, tmp_path):
    async def main():
        async with cluster(tmp_path, Asked, balance=False) as nodes:
            first, others = await leader_of(nodes)
            await first.group(0).propose_many([b"a", b"b"])
            await all_applied(nodes)
            for node in others:
                found = await node.group(0).read(None, consistency="stale")
                assert found.value == 2
                assert found.instance == node.group(0).status().applied_through
                assert 0 <= found.lag_us < 5_000_000
            assert (await first.group(0).read(None, consistency="stale")).lag_us == 0
            # Alone, it knows less and less, also if the leadership was handed to it.
            await asyncio.gather(*(node.close() for node in nodes if node is not others[0]))
            await asyncio.sleep(1)
            lags = []
            for _ in range(2):
                lags.append((await others[0].group(0).read(None, consistency="stale")).lag_us)
                await asyncio.sleep(0.2)
            assert lags[0] >= 200_000
            assert lags[1] >= lags[0] + 150_000

    run(main())


def test_a_read_sees_what_its_caller_wrote_however_fast(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, KeyValue, balance=False) as nodes:
            first, others = await leader_of(nodes)
            for number in range(200):
                # Written at a follower: it is told of the value after the leader was.
                value = b"%d" % number
                await others[number % 2].group(0).propose(encode_set("k", value))
                assert (await first.group(0).read("k")).value == value

    run_once(main())


def test_many_queries_share_a_read_point_and_a_query_that_raises_ends_them(run, tmp_path):
    async def main():
        async with cluster(tmp_path, Asked, balance=False) as nodes:
            first, _ = await leader_of(nodes)
            group = first.group(0)
            await group.propose(b"a")
            found = await group.read_many([None, lambda machine: machine.values[0], None])
            assert [one.value for one in found] == [1, b"a", 1]
            assert await group.read_many([]) == []
            for many in (group.read(lambda _: 1 // 0), group.read_many([None, lambda _: 1 // 0])):
                with pytest.raises(ZeroDivisionError):
                    await many
            with pytest.raises(RuntimeError, match="StopIteration"):
                await group.read_many([lambda _: next(iter(()))])
            assert (await group.propose(b"b")).value == 2  # the group goes on

    run(main())


def test_errors_that_are_known_at_once(run, tmp_path):
    async def main():
        async with cluster(tmp_path, {0: Journal, 3: Asked}, nodes=1) as (node,):
            group = node.group(0)
            await leased(node)
            with pytest.raises(errors.NoQueries):
                await group.read(None)
            with pytest.raises(errors.UnknownMachine):
                await group.read(None, machine=1)
            with pytest.raises(ValueError, match="consistency"):
                await group.read(None, consistency="strong")
            assert (await group.read(None, machine=3)).value == 0
            group.machine().raises = True
            with pytest.raises(errors.StoppedUnknown):
                await group.propose(b"raise")
            for how in ("stale", "linearizable", "lease"):
                with pytest.raises(errors.GroupStopped):
                    await group.read(None, consistency=how, machine=3)
        with pytest.raises(errors.Closed):
            await group.read(None)

    run(main())


def test_a_durable_machine_that_is_ahead_says_of_which_instance_it_is(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, {0: Asked, 1: Asked}, nodes=1) as (node,):
            await leased(node)
            group, state = node.group(0), node._room.states[0]
            state.skip = {1: 1 << 30}
            assert (await group.read(None)).instance == state.applied
            assert (await group.read(None, machine=1)).instance == 1 << 30
            both = await asyncio.gather(*(group.read_many([None], machine=one) for one in (0, 1)))
            assert [one[0].instance for one in both] == [state.applied, 1 << 30]
            state.skip = {}

    run_once(main())


def test_a_group_that_is_being_restored_answers_nothing(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Asked, nodes=1) as (node,):
            await leased(node)
            node._room._restorer.paused.add(0)
            for many in (node.group(0).read(None), node.group(0).read_many([None])):
                with pytest.raises(errors.GroupRestoring):
                    await many
            node._room._restorer.paused.discard(0)
            assert (await node.group(0).read(None)).value == 0

    run_once(main())


def test_queries_hold_the_event_loop_for_no_longer_than_a_stretch(run_once, tmp_path):
    def slow(_):
        until = time.thread_time() + 0.0001
        while time.thread_time() < until:
            pass

    async def main():
        async with cluster(tmp_path, Asked, nodes=1) as (node,):
            await leased(node)
            group, gaps, last = node.group(0), [], time.thread_time()
            done = asyncio.Event()

            async def watch():
                nonlocal last
                while not done.is_set():
                    gaps.append(time.thread_time() - last)
                    last = time.thread_time()
                    await asyncio.sleep(0)

            async def single():
                for _ in range(1000):
                    await group.read(slow)

            watching = asyncio.create_task(watch())
            await asyncio.sleep(0)
            await asyncio.gather(single(), group.read_many([slow] * 1000))
            done.set()
            await watching
            # 200 ms of queries, in pieces of half a millisecond, and what comes with each. (CPU
            # time: the machine may be busy.)
            assert len(gaps) >= 300
            assert sorted(gaps)[len(gaps) * 9 // 10] < 0.002

    run_once(main())


def test_a_read_waits_for_its_state_and_no_longer_than_its_deadline(run_once, tmp_path):
    class Told:
        """Knows of an instance that is not applied here."""

        def __init__(self, point):
            self.point = point

        def ask(self, group, due_us, told, quorum=False):
            asyncio.get_running_loop().call_soon(told, self.point)

        def turn(self):
            pass

        def end(self, refusal):
            pass

    async def main():
        async with cluster(tmp_path, Asked, balance=False) as nodes:
            _, others = await leader_of(nodes)
            group, reads = others[0].group(0), others[0]._room.door.reading
            last = (await group.propose(b"a")).instance
            reads.asking = Told(last + 1)
            with pytest.raises(errors.TimedOut):
                await group.read(None, timeout=0.1)
            assert others[0]._room.states[0].reads == []
            waiting = asyncio.create_task(group.read(None))
            await until(lambda: others[0]._room.states[0].reads)
            assert not waiting.done()
            await group.propose(b"b")
            found = await waiting
            assert (found.value, found.instance >= last + 1) == (2, True)
            reads.asking = Told(1 << 40)
            waiting = asyncio.create_task(group.read(None))
            await until(lambda: others[0]._room.states[0].reads)
            await others[0].close()
            with pytest.raises(errors.Closed):
                await waiting
            assert reads._waiting == 1  # (closed as it stood)

    run_once(main())


def test_reads_that_wait_are_limited(run_once, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "READS_MAX", 3)

    async def main():
        async with cluster(tmp_path, Asked, nodes=1) as (node,):
            await leased(node)
            many = [None] * (reading.FEW + 1)
            tasks = [asyncio.create_task(node.group(0).read_many(many)) for _ in range(5)]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(one) for one in found].count(errors.Overloaded) == 2
            assert (await node.group(0).read_many([None]))[0].value == 0

    run_once(main())


def test_no_query_runs_in_the_middle_of_an_instance(run_once, tmp_path):
    """A batch that takes many slices: what is asked meanwhile waits for its end."""

    class Slowly(Asked):
        def apply(self, entry):
            time.sleep(0.0005)
            return super().apply(entry)

    async def main():
        async with cluster(tmp_path, Slowly, nodes=1) as (node,):
            await leased(node)
            group = node.group(0)
            writing = group.propose_many([b"x"] * 400)
            await until(group.machine().values.__len__)
            seen = set()
            while not writing.done():
                found = await group.read(lambda machine: len(machine.values), consistency="stale")
                through = [one for one in group.machine().entries if one.instance > found.instance]
                assert found.value + len(through) == len(group.machine().values)
                seen.add(found.value)
                await asyncio.sleep(0)
            await writing
            # Each state that was seen ends with an instance.
            ends = {0}
            entries = group.machine().entries
            for at, entry in enumerate(entries, 1):
                if at == len(entries) or entries[at].instance != entry.instance:
                    ends.add(at)
            assert seen <= ends

    run_once(main())


def test_a_lease_that_ran_out_serves_no_read(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Asked, balance=False) as nodes:
            first, others = await leader_of(nodes)
            await asyncio.gather(*(node.close() for node in others))
            found = None
            end = time.monotonic() + 5
            while found is None and time.monotonic() < end:
                try:
                    await first.group(0).read(None, consistency="lease")
                    await asyncio.sleep(0.01)
                except errors.NotLeader as error:
                    found = error
            assert found is not None

    run_once(main())


def test_who_gave_the_leadership_away_answers_no_lease_read(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Asked, balance=False) as nodes:
            for _ in range(5):
                first, _ = await leader_of(nodes)
                await until(
                    lambda first=first: all(
                        peer.connected for peer in first.status().peers.values()
                    )
                )
                try:
                    await first.group(0).resign()
                except errors.TransferFailed:
                    continue
                with pytest.raises(errors.NotLeader):
                    await first.group(0).read(None, consistency="lease")

    run_once(main())


def test_without_await(tmp_path):
    with blocking_cluster(tmp_path, Asked, nodes=1) as (node,):
        group = node.group(0)
        end = time.monotonic() + 5
        while node._room.driver.points.leased(0) < 0:
            assert time.monotonic() < end
            time.sleep(0.01)
        group.propose(b"a")
        assert group.read(None).value == 1
        assert [one.value for one in group.read_many([None] * 3)] == [1, 1, 1]
        assert group.read_many([]) == []
        with pytest.raises(ZeroDivisionError):
            group.read(lambda _: 1 // 0)
        with pytest.raises(errors.UnknownMachine):
            group.read(None, machine=9)
        assert group.machine().threads == {node._room.applier.thread}
        busy = threading.Event()
        threading.Timer(0.5, busy.set).start()
        first = threading.Thread(target=group.read, args=(lambda _: busy.wait(5),))
        first.start()
        with pytest.raises(errors.TimedOut):
            group.read(None, timeout=0.05)
        first.join()
        assert group.read(None).value == 1
        assert node._room.door.reading._waiting == 0
    with pytest.raises(errors.Closed):
        group.read(None)
