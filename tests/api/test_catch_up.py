"""A node that lies below everybody's floor goes on from a checkpoint that it fetches."""

import asyncio
import os
import shutil
import threading
import time
from contextlib import asynccontextmanager

import pytest

import phx
from phx.errors import GroupStopped, ResultNotKept
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.testing.proxy import Link
from tests.api.catch_up import (
    QUIET,
    Big,
    digests,
    fill,
    leave_behind,
    raise_floor,
    reopen,
    settings,
    transfers,
    trim,
    want,
)
from tests.api.cluster import Journal, all_applied, cluster, config_of, introduce, until

pytestmark = pytest.mark.usefixtures("no_leaks")

ONE = {"groups": 1, "checkpoints": QUIET}


def test_a_node_that_was_away_goes_on_from_a_checkpoint(run_once, tmp_path):
    """Under load all the while, and without stopping anything."""

    async def main():
        async with cluster(tmp_path, KeyValue, **ONE) as nodes:
            await fill(nodes[0], 200)
            await all_applied(nodes)
            promised = nodes[2].group(0).status().promised
            await nodes[2].close()
            await fill(nodes[0], 1000, seed=1)
            await all_applied(nodes[:2])
            frontier = [await trim(node) for node in nodes[:2]]
            loading = asyncio.ensure_future(fill(nodes[0], 2000, seed=2))
            three = await reopen(tmp_path, nodes, 3, **ONE)
            await until(lambda: transfers(three)["installed"] == 1)
            await loading
            await fill(nodes[1], 100, seed=3)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1
            status = three.group(0).status()
            assert status.settled_through >= min(frontier)
            assert (status.restoring, status.promised >= promised) == (False, True)
            await three.group(0).propose(encode_set("last", b"word"), timeout=5)
            await all_applied(nodes)
            assert transfers(three)["fetched"] == 1
            assert [transfers(node)["provided"] for node in nodes].count(1) == 1
        # What is on the disk goes together: it starts from there.
        three = phx.Node(config_of(tmp_path, 3, **ONE), KeyValue)
        await three.open()
        await until(lambda: three.status().checkpoints["restored"] == 1)
        assert three.group(0).status().applied_through >= min(frontier)
        await three.close()

    run_once(main())


class Witness(KeyValue):
    """It remembers whose value came by."""

    def __init__(self, group=0):
        super().__init__()
        self.seen = set()
        self.n = 0

    def apply(self, entry):
        self.n += 1
        if b"mine" in entry.value:
            self.seen.add(b"mine")
        return super().apply(entry)


def test_whoever_waits_for_a_value_below_the_checkpoint_hears_that_it_was_applied(
    run_once, tmp_path
):
    """What leaves node 3 arrives, what is for it does not: its value is chosen without it."""

    async def main():
        async with cluster(tmp_path, Witness, **ONE) as nodes:
            await fill(nodes[0], 50)
            await nodes[2].close()
            three = nodes[2] = phx.Node(config_of(tmp_path, 3, **ONE), Witness)
            await three.open()
            links = []
            for node in nodes[:2]:  # who has the lower id dials
                link = Link(lambda: three.port)
                await link.start()
                links.append(link)
                node.set_address(3, f"127.0.0.1:{link.port}")
                three.set_address(node.config.node, f"127.0.0.1:{node.port}")
            await until(lambda: all(link.bytes_forwarded for link in links))
            await until(lambda: three.group(0).status().leader in (1, 2))
            await three.group(0).propose(encode_set("before", b""))
            for link in links:
                link.hold(back=False)
            waiting = three.group(0).propose(encode_set("mine", b"1"), timeout=60)
            run = three.group(0).propose_many(settings(3, seed=9), timeout=60)
            await until(lambda: b"mine" in nodes[0].group(0).machine().seen)
            await until(lambda: nodes[0].group(0).machine().n >= 55)
            await fill(nodes[0], 200, seed=4)
            await all_applied(nodes[:2])
            for node in nodes[:2]:
                await trim(node)
            for link in links:
                link.cut()
                link.release()
            with pytest.raises(ResultNotKept) as caught:
                await asyncio.wait_for(waiting, 30)
            assert caught.value.outcome == "applied"
            with pytest.raises(phx.errors.PhxError):
                await asyncio.wait_for(run, 5)
            await three.group(0).propose(encode_set("after", b""), timeout=20)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1
            assert three.group(0).status().waiting_values == 0
            for link in links:
                await link.close()

    run_once(main())


# --- cuts


@asynccontextmanager
async def far_behind(folder, machine, links=(), **changes):
    """Three nodes; the third is below all floors, and reaches the others through links."""
    options = {"groups": 1, **changes}
    made = []
    async with cluster(folder, machine, **options) as nodes:
        for number in range(10):
            await nodes[0].group(0).propose(b"%d" % number)
        await all_applied(nodes)
        await nodes[2].close()
        for number in range(20):
            await nodes[0].group(0).propose(b"%d" % number)
        await all_applied(nodes[:2])
        for node in nodes[:2]:
            await trim(node)
        three = await reopen(folder, nodes, 3, machine, **options)
        for number in links:
            link = Link(lambda number=number: nodes[number - 1].port)
            await link.start()
            made.append(link)
            three.set_address(number, f"127.0.0.1:{link.port}")
        try:
            yield nodes, three, made
        finally:
            for link in made:
                await link.close()


SLOW = {"checkpoints": QUIET | {"transfer_bytes_per_s": 16 << 20}}


def half_way(node):
    found = want(node)
    return found is not None and found.total_bytes and found.there_bytes * 2 > found.total_bytes


def test_a_cut_at_half_costs_next_to_nothing(run_once, tmp_path):
    async def main():
        async with far_behind(tmp_path, Big, links=(1, 2), **SLOW) as (nodes, three, links):
            await until(lambda: half_way(three), seconds=30)
            for link in links:
                link.cut()
            await until(lambda: transfers(three)["installed"] == 1, seconds=30)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1
            found = transfers(three)
            size = Big.mib << 20
            assert found["fetch_failed"] >= 1
            assert size <= found["fetched_bytes"] < 1.05 * size
            assert not list((tmp_path / "node3/checkpoints/staging").iterdir())

    run_once(main())


def test_when_the_provider_goes_away_another_goes_on(run_once, tmp_path):
    async def main():
        async with far_behind(tmp_path, Big, **SLOW) as (nodes, three, _):
            await until(lambda: half_way(three), seconds=30)
            provider = want(three).node
            await nodes[provider - 1].close()
            await until(lambda: transfers(three)["installed"] == 1, seconds=30)
            left = [node for node in nodes if node.config.node != provider]
            await left[0].group(0).propose(b"on", timeout=20)
            await all_applied(left)
            assert len(digests(left)) == 1
            assert transfers(three)["fetched_bytes"] < 1.1 * (Big.mib << 20)

    run_once(main())


def test_a_restart_in_the_middle_goes_on_with_what_had_come(run_once, tmp_path):
    async def main():
        async with far_behind(tmp_path, Big, **SLOW) as (nodes, three, _):
            await until(lambda: half_way(three), seconds=30)
            began = time.monotonic()
            await three.close(timeout=1)
            assert time.monotonic() - began < 5
            assert not [t for t in threading.enumerate() if t.name.startswith("phx-fetch")]
            three = await reopen(tmp_path, nodes, 3, Big, groups=1, **SLOW)
            await until(lambda: transfers(three)["installed"] == 1, seconds=30)
            assert transfers(three)["fetched_bytes"] < 0.6 * (Big.mib << 20)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1

    run_once(main())


def test_what_a_peer_is_sent_is_kept_for_it(run_once, tmp_path):
    """Newer ones come, and push out all that nobody needs."""
    slow = {"checkpoints": QUIET | {"transfer_bytes_per_s": 8 << 20, "keep": 1}}

    async def main():
        async with far_behind(tmp_path, Big, **slow) as (nodes, three, _):
            await until(lambda: want(three) is not None and want(three).there_bytes, seconds=30)
            provider = nodes[want(three).node - 1]
            for _ in range(3):
                await nodes[0].group(0).propose(b"more")
                await provider.group(0).checkpoint()
            assert transfers(provider)["held"] == 1
            await until(lambda: transfers(three)["installed"] == 1, seconds=30)
            assert transfers(three)["fetch_failed"] == 0
            await all_applied(nodes)
            assert len(digests(nodes)) == 1

    run_once(main())


# --- nothing here that a start could go on from


@pytest.mark.parametrize("lost", ["manifest", "file", "all"])
def test_a_start_without_a_checkpoint_that_serves_fetches_one(run_once, tmp_path, lost):
    """Its journal and its store's rows are whole; its log is trimmed."""
    options = {"groups": 2, "checkpoints": QUIET}

    async def main():
        async with cluster(tmp_path, KeyValue, **options) as nodes:
            for group in range(2):
                await fill(nodes[0], 200, group)
                await all_applied(nodes, group)
            for node in nodes:
                await trim(node)
            await nodes[2].close()
            (folder,) = (tmp_path / "node3/checkpoints/0").iterdir()
            if lost == "all":
                shutil.rmtree(tmp_path / "node3/checkpoints")
            else:
                path = folder / ("manifest" if lost == "manifest" else "machine-0")
                path.write_bytes(b"x" + path.read_bytes()[1:])
            await fill(nodes[0], 100, seed=1)
            three = await reopen(tmp_path, nodes, 3, **options)
            assert three.group(0).status().restoring
            await three.wait_ready(timeout=20)
            for group in range(2):
                await all_applied(nodes, group)
                assert len(digests(nodes, group)) == 1
            assert transfers(three)["installed"] == 1
            await three.group(0).propose(encode_set("on", b""), timeout=10)
            await three.close()
            three = await reopen(tmp_path, nodes, 3, **options)
            await three.wait_ready(timeout=20)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1

    run_once(main())


def test_its_own_checkpoint_will_do_where_the_engine_knows_less(run_once, tmp_path):
    """The journal does not say that what the checkpoint holds was chosen, and nobody has it."""

    async def main():
        async with cluster(tmp_path, KeyValue, **ONE) as nodes:
            await fill(nodes[0], 300)
            await all_applied(nodes)
            frontier = (await nodes[2].group(0).checkpoint()).frontier
            await nodes[2].close(timeout=0)
            for node in nodes[:2]:
                assert await trim(node) >= frontier
            three = await reopen(tmp_path, nodes, 3, **ONE)
            await fill(nodes[0], 10, seed=1)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1
            assert transfers(three)["fetched"] == 0

    run_once(main())


# --- a group that stopped


class Frail(Journal):
    """Raises on one node, once."""

    broken = None

    def apply(self, entry):
        if entry.value == b"raise" and type(self).broken is self:
            raise RuntimeError("asked to")
        return super().apply(entry)

    def digest(self):
        return repr(self.values).encode()

    def freeze(self):
        view = Frail()
        view.values = list(self.values)
        return phx.machine.CopyView(view)

    def snapshot(self, writer):
        writer.write(b"\0".join(self.values))

    def restore(self, reader):
        self.values = reader.read(1 << 20).split(b"\0")


def test_a_group_that_stopped_is_made_anew(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Frail, **ONE) as nodes:
            three = nodes[2]
            for number in range(20):
                await nodes[0].group(0).propose(b"%d" % number)
            await all_applied(nodes)
            Frail.broken = three.group(0).machine()
            await nodes[0].group(0).propose(b"raise")
            await until(lambda: three.group(0).status().stopped)
            for number in range(20):
                await nodes[0].group(0).propose(b"more %d" % number, timeout=20)
            with pytest.raises(GroupStopped):
                await three.group(0).propose(b"never")
            three._room.rebuild(0)
            await until(lambda: not three.group(0).status().stopped)
            await three.group(0).propose(b"again", timeout=20)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1
            assert three.group(0).machine() is not Frail.broken
            assert three.status().stopped == ()
            assert transfers(three)["fetched"] == 1

    run_once(main())


def test_a_node_provides_though_its_own_machine_failed(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Frail, **ONE) as nodes:
            for number in range(20):
                await nodes[0].group(0).propose(b"%d" % number)
            await all_applied(nodes)
            await nodes[2].close()
            for number in range(20):
                await nodes[0].group(0).propose(b"more %d" % number)
            await all_applied(nodes[:2])
            for node in nodes[:2]:
                frontier = await trim(node)
            other = 2 if nodes[0].group(0).status().leader == 1 else 1
            (path,) = (tmp_path / f"node{3 - other}/checkpoints/0").iterdir()
            shutil.rmtree(path)  # the other one gives nothing
            nodes[2 - other]._room._transfers.provider.catalog.forget(
                nodes[2 - other]._room._transfers.provider.catalog.of(0)[0]
            )
            Frail.broken = nodes[other - 1].group(0).machine()
            await nodes[2 - other].group(0).propose(b"raise", timeout=20)
            await until(lambda: nodes[other - 1].group(0).status().stopped)
            three = await reopen(tmp_path, nodes, 3, Frail, **ONE)
            await until(lambda: transfers(three)["installed"] == 1, seconds=20)
            assert three.group(0).status().applied_through >= frontier

    run_once(main())


# --- what the machines do not take


def test_a_checkpoint_that_the_machines_refuse_is_not_fetched_for_ever(run_once, tmp_path, caplog):
    class Refuses(KeyValue):
        refuses = True

        def restore(self, reader):
            if type(self).refuses:
                raise ValueError("of another version")
            super().restore(reader)

    async def main():
        async with cluster(tmp_path, KeyValue, **ONE) as nodes:
            for node in await leave_behind(nodes):
                await trim(node)
            three = await reopen(tmp_path, nodes, 3, Refuses, **ONE)
            await until(lambda: "of another version" in caplog.text, seconds=20)
            assert not three.group(0).status().stopped
            assert three.group(0).status().restoring
            fetched = transfers(three)["fetched_bytes"]
            Refuses.refuses = False
            await asyncio.sleep(1.0)
            assert transfers(three)["fetched_bytes"] == fetched
            # At a start it is there, and taken.
            await three.close()
            three = await reopen(tmp_path, nodes, 3, Refuses, **ONE)
            await fill(nodes[0], 10, seed=2)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1

    run_once(main())


def test_it_needs_no_checkpoint_when_somebody_has_the_log(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, KeyValue, **ONE) as nodes:
            await leave_behind(nodes)
            await trim(nodes[0])
            three = await reopen(tmp_path, nodes, 3, **ONE)
            await all_applied(nodes)
            assert transfers(three)["fetched"] == 0

    run_once(main())


def test_nobody_has_one_until_one_is_asked_for(run_once, tmp_path):
    """The checkpoints were lost after the floor was raised; who is asked takes new ones."""

    async def main():
        async with cluster(tmp_path, KeyValue, **ONE) as nodes:
            stay = await leave_behind(nodes)
            applied = nodes[0].group(0).status().applied_through
            for node in stay:
                await raise_floor(node, 0, applied)
            three = await reopen(tmp_path, nodes, 3, **ONE)
            await until(lambda: transfers(three)["installed"] == 1, seconds=20)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1

    run_once(main())


def fork():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def test_a_fork_leaves_the_transfer_to_its_parent(run_once, tmp_path):
    async def main():
        async with far_behind(tmp_path, Big, **SLOW) as (nodes, three, _):
            await until(lambda: want(three) is not None and want(three).there_bytes, seconds=30)
            fork()
            await until(lambda: transfers(three)["installed"] == 1, seconds=30)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1

    run_once(main())


# --- values of the log


def test_values_of_the_log_are_fetched_one_by_one(run_once, tmp_path):
    """Settled or not; what lies below the floor, or is not chosen yet, is not there."""

    async def main():
        async with cluster(tmp_path, KeyValue, **ONE) as nodes:
            await fill(nodes[0], 300)
            await all_applied(nodes)
            frontier = await trim(nodes[0])
            await fill(nodes[0], 300, seed=1)
            nodes[0]._room.driver.settle_now()
            await until(lambda: nodes[0].group(0).status().settled_through > frontier + 3)
            for value in settings(20, seed=2):
                await nodes[0].group(0).propose(value)
            await all_applied(nodes)
            last = nodes[0].group(0).status().applied_through
            fetch = nodes[2]._room._transfers.fetcher.entries

            def ask(first, through):
                return asyncio.to_thread(fetch, 1, 0, first, through)

            found = await ask(frontier + 1, last)
            assert [one.instance for one in found] == list(range(frontier + 1, last + 1))
            mine = nodes[1]._room
            for one in found:
                body = mine.driver.read(0, one.instance)
                assert one.body == (
                    body if isinstance(body, bytes) else mine._store.entry(0, one.instance)
                )
            assert [one.instance for one in await ask(last, last + 10)] == [last]
            assert await ask(frontier, last) == []
            assert await ask(last + 1, last + 2) == []
            assert await asyncio.to_thread(fetch, 7, 0, 1, 2) == []

    run_once(main())


def test_a_peer_that_has_the_log_may_not_know_that_it_is_chosen(run_once, tmp_path):
    """All lose what they knew in memory. One has trimmed what the two others accepted, and leads:
    each of these two has the log that the other one needs, and neither can give it."""

    async def main():
        async with cluster(tmp_path, KeyValue, **ONE) as nodes:
            await fill(nodes[0], 300)
            await all_applied(nodes)
            await trim(nodes[1])
            for node in nodes:
                node._pump.stop()
                node._room.abandon()
                node._finalizer.detach()
            nodes[:] = [phx.Node(node.config, KeyValue) for node in nodes]
            await asyncio.gather(*(node.open() for node in nodes))
            introduce(nodes)
            await nodes[1].group(0).propose(encode_set("last", b"word"), timeout=20)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1

    run_once(main())


def test_without_an_event_loop(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, KeyValue, **ONE) as nodes:
            for node in await leave_behind(nodes):
                await trim(node)
            await asyncio.to_thread(catch_up, nodes)

    def catch_up(nodes):
        with phx.blocking.Node(config_of(tmp_path, 3, **ONE), KeyValue) as three:
            introduce([*nodes[:2], three])
            three.wait_ready(timeout=20)
            for number in range(20):
                three.group(0).propose(encode_set(f"b{number}", b""), timeout=20)
            assert transfers(three)["installed"] == 1
            until_s = time.monotonic() + 10
            while digests([three]) != digests(nodes[:1]):
                assert time.monotonic() < until_s
                time.sleep(0.01)

    run_once(main())


def test_two_that_were_away_together_both_come_back(run_once, tmp_path):
    """Each of them has trimmed nothing, and has not got what the other needs."""
    options = {"nodes": 5, **ONE}

    async def main():
        async with cluster(tmp_path, KeyValue, **options) as nodes:
            for node in await leave_behind(nodes, away=2):
                await trim(node)
            for number in (4, 5):
                node = nodes[number - 1] = phx.Node(
                    config_of(tmp_path, number, **options), KeyValue
                )
                await node.open()
            introduce(nodes)
            await all_applied(nodes)
            assert len(digests(nodes)) == 1
            assert [transfers(node)["installed"] for node in nodes[3:]] == [1, 1]

    run_once(main())
