"""Named leases on real nodes: waiting, renewing, letting in, and a holder that is gone."""

import asyncio
import itertools
import time
from types import SimpleNamespace

import pytest

from phx import blocking, errors
from phx.machines import Counter, KeyValue, Leases
from phx.machines import lease as lease_module
from phx.machines.lease import Belief, Granted, Wanted, encode_acquire, encode_release

from .cluster import all_applied, cluster, config_of

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_a_lease_is_had_by_one_at_a_time(run, tmp_path):
    async def main():
        async with cluster(tmp_path, Leases) as nodes:
            inside, tokens = 0, []

            async def work(node):
                nonlocal inside
                async with await node.group(0).lease("job", 5) as lease:
                    assert lease.held
                    assert 0 < lease.left_s() <= 5
                    inside += 1
                    assert inside == 1
                    tokens.append(lease.token)
                    await asyncio.sleep(0.005)
                    inside -= 1
                assert not lease.held

            await asyncio.gather(*(work(node) for node in nodes for _ in range(4)))
            assert len(tokens) == 12
            assert tokens == sorted(tokens), "tokens fence: the later one is larger"
            await all_applied(nodes)
            assert len({node.group(0).machine().digest() for node in nodes}) == 1
            assert nodes[0].group(0).machine().get("job") is None

    run(main())


def test_whoever_waits_gets_it_when_the_holder_is_gone(run, tmp_path):
    async def main():
        async with cluster(tmp_path, Leases) as nodes:
            ttl = 0.6
            held = await nodes[0].group(0).lease("job", ttl, holder="gone")
            since = time.monotonic()
            assert await held.renew()
            with pytest.raises(errors.TimedOut, match=r"not to be had in 0\.1 s"):
                await nodes[1].group(0).lease("job", ttl, timeout=0.1)
            await nodes[0].close()
            taken = await nodes[1].group(0).lease("job", ttl)
            waited = time.monotonic() - since
            assert waited > ttl
            assert not held.held
            assert taken.held
            assert taken.token > held.token

    run(main())


def test_waiting_proposes_nothing(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Leases) as nodes:
            await nodes[0].group(0).lease("job", 60)
            await all_applied(nodes)
            before = nodes[0].group(0).status().chosen_through
            with pytest.raises(errors.TimedOut):
                await nodes[1].group(0).lease("job", 60, timeout=0.3)
            assert nodes[0].group(0).status().chosen_through == before

    run_once(main())


def test_a_renewed_lease_lasts_and_a_lost_one_says_so(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Leases) as nodes:
            first = await nodes[0].group(0).lease("job", 0.2)
            for _ in range(4):
                await asyncio.sleep(0.1)
                assert await first.renew(0.4)
            assert first.held
            second = await nodes[1].group(0).lease("job", 60)
            assert not first.held
            assert not await first.renew()
            assert not first.held
            await second.release()
            assert not await second.renew()
            with pytest.raises(ValueError, match="a lease of 0 s"):
                await first.renew(0)

    run_once(main())


def test_a_release_beats_a_renewal_that_is_under_way(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Leases, nodes=1) as (node,):
            lease = await node.group(0).lease("job", 60)
            renewal = asyncio.ensure_future(lease.renew())
            await asyncio.sleep(0)
            await lease.release()
            await renewal
            assert not lease.held

    run_once(main())


def test_a_holder_lets_others_in_below(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Leases) as nodes:
            whole = await nodes[0].group(0).lease("jobs", 60)
            with pytest.raises(errors.TimedOut):
                await nodes[1].group(0).lease("jobs/night", 60, timeout=0.1)
            part = await nodes[1].group(0).lease("jobs/night", 60, under=whole.token)
            other = await nodes[2].group(0).lease("jobs/day", 60, under=whole)
            assert whole.held
            assert part.held
            assert other.held
            await whole.release()
            with pytest.raises(errors.TimedOut):
                await nodes[2].group(0).lease("jobs", 60, timeout=0.1)

    run_once(main())


def test_the_machine_is_found_or_named(run_once, tmp_path):
    async def main():
        def machines(group):
            if group == 0:
                return {0: KeyValue(), 7: Leases()}
            return {0: Leases(), 1: Leases()} if group == 1 else Counter()

        async with cluster(tmp_path, machines, nodes=1, groups=3) as (node,):
            assert (await node.group(0).lease("a", 1)).held
            with pytest.raises(errors.UnknownMachine, match="2 machines"):
                await node.group(1).lease("a", 1)
            assert (await node.group(1).lease("a", 1, machine=1)).held
            for group, machine in ((0, 0), (2, None), (2, 0)):
                with pytest.raises(errors.UnknownMachine):
                    await node.group(group).lease("a", 1, machine=machine)
            for name, ttl in (("", 1), ("a/", 1), ("b", 0), ("b", 1e9)):
                with pytest.raises(ValueError, match="no name, holder or time"):
                    await node.group(0).lease(name, ttl)

    run_once(main())


def test_leases_survive_a_restart_and_count_anew(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Leases, nodes=1) as (node,):
            first = await node.group(0).lease("job", 1, holder="me")
            await node.group(0).checkpoint()
        async with cluster(tmp_path, Leases, nodes=1) as (node,):
            group = node.group(0)
            assert group.machine().get("job").token == first.token
            with pytest.raises(errors.TimedOut):
                await group.lease("job", 1, timeout=0.2)
            again = await group.lease("job", 1, holder="me")
            assert again.token > first.token
            assert not await first_like(group, first)

    async def first_like(group, first):
        """A renewal under the token of a lease of the life before."""
        first._group = group
        return await first.renew()

    run_once(main())


def test_a_blocking_node_takes_the_commands(tmp_path):
    with blocking.Node(config_of(tmp_path, 1, 1), Leases, bootstrap=True) as node:
        node.wait_ready()
        group = node.group(0)
        granted = group.propose(encode_acquire("job", "me", 1_000_000)).value
        assert granted == Granted(1)
        with pytest.raises(errors.PrepareFailed, match="not given by the caller"):
            group.propose(b"\x92\xa6forget\x90")
        with pytest.raises(errors.TimedOut):
            group.lease("job", 5, timeout=0.1)
        assert group.propose(encode_release("job", granted.token)).value is True
        with group.lease("job", 5) as lease:
            assert lease.held
            assert lease.token > granted.token
            assert lease.renew(60)
            assert lease.left_s() > 5
            with group.lease("job/part", 5, under=lease) as part:
                assert part.held
        assert not lease.held
        assert not lease.renew()
        assert group.machine().get("job") is None


def test_a_time_that_is_up_between_two_looks_at_it_is_nothing_and_not_less(monkeypatch):
    """A thread may be kept waiting anywhere. (CI on a busy machine: "must be non-negative".)"""
    clock = itertools.count(0.0, 0.4)
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: next(clock))
    lease = SimpleNamespace(name="job", holder="me")
    leases = SimpleNamespace(wait_us=lambda *_: 10**9)
    pauses = []

    def walk(wanted):
        while True:
            pauses.append(wanted.next())

    for timeout in (0.5, 0.9, 1.3, 1.7):
        wanted = Wanted(lease, lambda: leases, 1.0, 0, timeout)
        with pytest.raises(errors.TimedOut):
            walk(wanted)
        assert wanted.left_s == 0
    assert len(pauses) > 2
    assert min(pauses) >= 0


# --- leases that renew themselves


def test_a_kept_lease_lasts_until_it_is_released(run, tmp_path):
    async def main():
        async with cluster(tmp_path, Leases) as nodes:
            async with (await nodes[0].group(0).lease("job", 0.4)).keep() as lease:
                since = time.monotonic()
                while time.monotonic() < since + 2:
                    assert lease.held
                    await asyncio.sleep(0.01)
                assert lease.keep() is lease
                with pytest.raises(errors.TimedOut):
                    await nodes[1].group(0).lease("job", 1, timeout=0.1)
            assert not lease.held
            other = await nodes[1].group(0).lease("job", 60, timeout=5)
            await asyncio.sleep(0.6)
            assert other.held
            assert not lease.held

    run(main())


def test_one_that_nobody_refers_to_any_more_runs_out(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Leases) as nodes:
            lease = (await nodes[0].group(0).lease("job", 0.3)).keep()
            await asyncio.sleep(0.5)
            assert lease.held
            del lease
            await nodes[1].group(0).lease("job", 0.3, timeout=5)

    run_once(main())


def test_a_kept_lease_is_lost_when_nothing_can_be_chosen(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Leases) as nodes:
            lease = (await nodes[0].group(0).lease("job", 0.4)).keep()
            await asyncio.gather(nodes[1].close(), nodes[2].close())
            since = time.monotonic()
            while lease.held:
                assert time.monotonic() < since + 5
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            assert not lease.held

    run_once(main())


def test_a_kept_lease_that_somebody_else_has_is_over(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Leases, nodes=1) as (node,):
            group = node.group(0)
            lease = (await group.lease("job", 0.6)).keep()
            await group.propose(encode_release("job", lease.token))
            await group.lease("job", 60)
            await asyncio.sleep(0.4)  # its first renewal comes after a third
            assert not lease.held

    run_once(main())


def test_blocking_leases_are_kept_by_a_thread(tmp_path):
    with blocking.Node(config_of(tmp_path, 1, 1), Leases, bootstrap=True) as node:
        node.wait_ready()
        with node.group(0).lease("job", 1.0).keep() as lease:
            since = time.monotonic()
            while time.monotonic() < since + 2.5:
                assert lease.held
                time.sleep(0.01)
            assert lease.keep()._keeper.name == "phx-lease"
        assert not lease.held
        lease._keeper.join(5)
        assert not lease._keeper.is_alive()
        dropped = node.group(0).lease("job", 0.2).keep()
        keeper = dropped._keeper
        del dropped
        keeper.join(5)
        assert not keeper.is_alive()


def test_when_a_lease_is_renewed_by_itself():
    now = [0]
    lease = Belief(0, lambda: now[0], "job", "me")
    assert lease.renew_in_s() is None
    lease._acquired(Granted(1), 0, 30_000_000)
    assert lease.renew_in_s() == pytest.approx(10)
    now[0] = 4_000_000
    assert lease.renew_in_s() == pytest.approx(6)
    now[0] = 10_000_000  # it is due, or the attempt failed
    assert lease.renew_in_s() == pytest.approx(30 / 16)
    now[0] = 29_000_000
    assert lease.renew_in_s() == pytest.approx(1)
    now[0] = 30_000_000
    assert lease.renew_in_s() is None
    lease._renewed(True, 29_500_000, 30_000_000)
    assert lease.renew_in_s() == pytest.approx(9.5)
    lease._ended()
    assert lease.renew_in_s() is None
