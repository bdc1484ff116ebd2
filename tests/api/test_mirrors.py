"""Machines that can be written and give no view: a mirror behind the live one is written."""

import asyncio
import threading
import time
from io import BytesIO
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import phx
from phx import errors
from phx._core.batch import pack_body
from phx._core.delivery import Sessions
from phx._core.session_codec import table_facts
from phx.applier import GroupState
from phx.checkpoint.taking import Capture, Part
from phx.machines import Counter
from phx.node import mirror
from phx.transfer.messages import Entry, pack_entries
from tests.api.cluster import all_applied, cluster, config_of, until
from tests.api.test_checkpoints import QUIET, alone, flip, grown, of

pytestmark = pytest.mark.usefixtures("no_leaks")


class Blind(phx.StateMachine):
    """All that it was told, in order; it gives no view of it."""

    digest_cheap = True
    made: ClassVar[list["Blind"]] = []

    def __init__(self, group=0):
        self.group = group
        self.told = []
        self.restored = 0
        self.threads = set()
        self.written_by = None
        type(self).made.append(self)

    def apply(self, entry):
        self.threads.add(threading.get_ident())
        self.told.append((entry.instance, entry.value))
        return len(self.told)

    def digest(self):
        return repr((len(self.told), self.told[-1:])).encode()

    def snapshot(self, writer):
        self.written_by = threading.get_ident()
        for instance, value in self.told:
            writer.write(b"%d %s\n" % (instance, value))

    def restore(self, reader):
        data = b"".join(iter(lambda: reader.read(1000), b""))
        for line in data.splitlines():
            instance, value = line.split(b" ", 1)
            self.told.append((int(instance), value))
        self.restored = len(self.told)


class Lengths(Blind):
    """Remembers less."""

    def apply(self, entry):
        self.told.append((entry.instance, b"%d" % len(entry.value)))


SMALL = {"segment_bytes": 2 << 20, "settle_bytes": 2 << 20, "journal_bytes_max": 16 << 20}


@pytest.fixture(autouse=True)
def forgotten():
    Blind.made = []


def state_in(path):
    """What a checkpoint holds of machine 0."""
    lines = (path / "machine-0").read_bytes().splitlines()
    return [(int(one), two) for one, two in (line.split(b" ", 1) for line in lines)]


def test_without_leave_there_is_no_checkpoint_and_no_second_machine(run_once, tmp_path):
    async def main():
        async with phx.Node(alone(tmp_path), Blind, bootstrap=True) as node:
            await grown(node, 0, 5)
            with pytest.raises(errors.CheckpointFailed, match="no view"):
                await node.group(0).checkpoint()
            assert len(Blind.made) == len(node.groups)

    run_once(main())


def test_what_is_written_is_the_live_state_at_the_frontier_and_not_by_the_live_machine(
    run_once, tmp_path
):
    config = alone(tmp_path, mirror=True)

    async def main():
        async with phx.Node(config, Blind, bootstrap=True) as node:
            live = node.group(0).machine()
            await grown(node, 0, 1)
            for _ in range(4):
                load = asyncio.ensure_future(grown(node, 0, 60))
                await asyncio.sleep(0.01)
                info = await node.group(0).checkpoint()
                await load
                assert state_in(of(config)[-1]) == [
                    one for one in live.told if one[0] <= info.frontier
                ]
            assert live.threads == {threading.get_ident()}
            assert live.written_by is None
            (second,) = [one for one in Blind.made if one.written_by]
            assert not second.threads & live.threads
            assert second.restored == 0
            assert len(set(second.told)) == len(second.told)
            status = node.status().checkpoints
            assert status["mirrors"] == 1
            assert status["mirror_lag"] == len(live.told) - len(second.told)

    run_once(main())


class Log:
    """A group's log in memory, the first half of it as a store gives it."""

    def __init__(self, bodies):
        self.bodies = bodies
        self.settled = len(bodies) // 2

    def read(self, group, first, bytes_max=None, last=0):
        if bytes_max is None:  # a driver
            return self.bodies[first - 1] if self.settled < first <= len(self.bodies) else 1
        last = min(last, self.settled, first + 9)
        return pack_entries([Entry(at, self.bodies[at - 1]) for at in range(first, last + 1)])


class Unpinned:
    def pin(self, group, first):
        return SimpleNamespace(group=group, first=first, move=lambda _: None, release=lambda: None)


@given(
    runs=st.lists(
        st.tuples(
            st.integers(1, 3),  # node
            st.integers(1, 2),  # incarnation
            st.integers(1, 30),  # first sequence: again and again the same ones
            st.integers(1, 4),
        ),
        min_size=1,
        max_size=60,
    ),
    cuts=st.lists(st.integers(0, 59), max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_duplicates_and_values_of_earlier_lives_count_in_it_as_they_do_in_the_live_one(runs, cuts):
    """At every instance: the same values, the same session table."""
    bodies = [
        pack_body([(node, life, 1, first, [(0, b"%d" % (first + i)) for i in range(count)])])
        for node, life, first, count in runs
    ]
    log, state = Log(bodies), GroupState(7, {})
    config = SimpleNamespace(node=1, dir=None)
    catalog = SimpleNamespace(of=lambda group: [])
    live, table = Blind(), Sessions(1, [7])
    table.incarnation = 2
    mirrors = mirror.Mirrors(
        config, catalog, {7: state}, log, log, Unpinned(), lambda _: {0: Blind()}, lambda _: None
    )
    for instance, body in enumerate(bodies, 1):
        for batch in table.offer(7, instance, [body]):
            live.apply_batch(batch.entries)
        if instance == len(bodies) or instance in cuts:
            part = Part(0, 1, None, live.digest())
            packed = table.table(7)
            chain = table_facts(packed)[2]
            capture = Capture(
                cluster=1, group=7, frontier=instance, epoch=0, config=1, members=(1,),
                sessions=packed, chain=chain, parts=(part,), taken_by=1, taken_us=0,
            )  # fmt: skip
            written = BytesIO()
            mirrors.fill(capture, [0]).parts[0].write(written)
            lines = (line.split(b" ", 1) for line in written.getvalue().splitlines())
            assert [(int(one), two) for one, two in lines] == live.told


def test_the_mirrors_of_a_cluster_write_what_its_machines_hold(run_once, tmp_path):
    async def main():
        checkpoints = QUIET | {"mirror": True}
        async with cluster(tmp_path, Blind, groups=1, checkpoints=checkpoints) as nodes:
            await grown(nodes[0], 0, 1)
            loads = [asyncio.ensure_future(grown(node, 0, 100)) for node in nodes]
            for _ in range(500):
                if all(node.group(0).status().applied_through for node in nodes):
                    break
                await asyncio.sleep(0.01)
            for _ in range(4):
                await asyncio.sleep(0.02)
                await asyncio.gather(*(node.group(0).checkpoint() for node in nodes))
            await asyncio.gather(*loads)
            for node in nodes:
                info = await node.group(0).checkpoint()
                live = node.group(0).machine()
                newest = max((node.config.dir / "checkpoints" / "0").glob("*-*"))
                assert state_in(newest) == [x for x in live.told if x[0] <= info.frontier]

    run_once(main())


def test_after_a_start_it_begins_with_the_newest_checkpoint(run_once, tmp_path):
    config = alone(tmp_path, mirror=True)

    async def main():
        async with phx.Node(config, Blind, bootstrap=True) as node:
            await grown(node, 0, 40)
            await node.group(0).checkpoint()
            await grown(node, 0, 10)
        Blind.made = []
        async with phx.Node(config, Blind) as node:
            await node.wait_ready()
            await grown(node, 0, 5)
            info = await node.group(0).checkpoint()
            live = node.group(0).machine()
            (second,) = [one for one in Blind.made if one.written_by]
            assert live.restored == second.restored == 40
            assert state_in(of(config)[-1]) == live.told
            assert len(live.told) == 55
            assert info.frontier == node.group(0).status().applied_through

    run_once(main())


def test_a_damaged_checkpoint_is_passed_over_when_it_begins(run_once, tmp_path):
    config = alone(tmp_path, mirror=True)

    async def main():
        async with phx.Node(config, Blind, bootstrap=True) as node:
            await grown(node, 0, 20)
            await node.group(0).checkpoint()
            await grown(node, 0, 20)
            await node.group(0).checkpoint()
            for one in of(config):
                flip(one / "machine-0")
            node._room._snapshots.mirrors.end()  # as if it had failed
            await grown(node, 0, 3)
            await node.group(0).checkpoint()
            assert len(state_in(of(config)[-1])) == 43

    run_once(main())


@pytest.mark.parametrize("late", [False, True])
def test_a_mirror_does_not_outlive_the_state_it_followed(run_once, tmp_path, late):
    """Late: the capture was waited for while another state came."""

    async def main():
        checkpoints = QUIET | {"mirror": True}
        async with cluster(tmp_path, Blind, groups=1, checkpoints=checkpoints) as nodes:
            one, _, three = nodes
            await grown(one, 0, 20)
            await all_applied(nodes)
            for node in nodes:
                await node.group(0).checkpoint()
            await grown(one, 0, 5)
            await all_applied(nodes)
            await one.group(0).checkpoint()
            snapshots = three._room._snapshots
            wrong = snapshots.mirrors._mirrors[0]
            wrong.machines[0].told[0] = (1, b"wrong")
            if late:
                snapshots.between = lambda task: None
            await asyncio.wait_for(three.group(0).repair(), 20)
            await grown(one, 0, 5)
            await all_applied(nodes)
            await three.group(0).checkpoint()
            assert snapshots.mirrors._mirrors[0] is not wrong
            assert state_in(of(three.config)[-1]) == three.group(0).machine().told

    run_once(main())


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
@pytest.mark.parametrize("where", ["apply", "snapshot", "factory", "restore"])
def test_what_it_raises_harms_nobody_and_it_is_made_anew(run_once, tmp_path, where, error):
    config = alone(tmp_path, mirror=True)
    failing = threading.Event()

    class Fails(Blind):
        def __init__(self, group=0):
            if where == "factory" and failing.is_set():
                raise error("not now")
            super().__init__(group)

        def apply(self, entry):
            if where == "apply" and failing.is_set() and threading.get_ident() != main_thread:
                raise error("not now")
            return super().apply(entry)

        def snapshot(self, writer):
            if where == "snapshot" and failing.is_set():
                raise error("not now")
            super().snapshot(writer)

        def restore(self, reader):
            if where == "restore" and failing.is_set():
                raise error("not now")
            super().restore(reader)

    main_thread = threading.get_ident()

    async def main():
        async with phx.Node(config, Fails, bootstrap=True) as node:
            await grown(node, 0, 10)
            await node.group(0).checkpoint()
            if where in ("factory", "restore"):
                node._room._snapshots.mirrors.end()
            failing.set()
            await grown(node, 0, 10)
            with pytest.raises(errors.CheckpointFailed if error is SystemExit else error):
                await node.group(0).checkpoint()
            assert "not now" in node.status().checkpoint_error
            assert node.status().checkpoints["mirrors"] == 0
            assert node._room.floors.pinned(0) is None
            await grown(node, 0, 10)
            assert not node.group(0).status().stopped
            failing.clear()
            await node.group(0).checkpoint()
            assert node.status().checkpoint_error is None
            assert state_in(of(config)[-1]) == node.group(0).machine().told
            assert len(node.group(0).machine().told) == 30

    run_once(main())


def test_a_machine_that_is_not_deterministic_is_found(run_once, tmp_path):
    config = alone(tmp_path, mirror=True)

    class Odd(Blind):
        def digest(self):
            return b"%d" % id(self)

    async def main():
        async with phx.Node(config, Odd, bootstrap=True) as node:
            await grown(node, 0, 10)
            with pytest.raises(errors.CheckpointFailed, match="not deterministic"):
                await node.group(0).checkpoint()
            assert of(config) == []
            await grown(node, 0, 1)

    run_once(main())


def test_the_log_that_it_needs_is_pinned_where_it_stands(run_once, tmp_path):
    config = alone(tmp_path, mirror=True)

    async def main():
        async with phx.Node(config, Blind, bootstrap=True) as node:
            floors = node._room.floors
            assert floors.pinned(0) is None
            for _ in range(2):
                await grown(node, 0, 10)
                info = await node.group(0).checkpoint()
                assert floors.pinned(0) == info.frontier + 1
                assert floors.pinned(1) is None

    run_once(main())


def test_the_live_machine_goes_on_while_a_slow_mirror_follows(run_once, tmp_path):
    config = alone(tmp_path, mirror=True)
    gate, waits = threading.Event(), threading.Event()
    main_thread = threading.get_ident()

    class Slow(Blind):
        def apply(self, entry):
            if threading.get_ident() != main_thread:
                waits.set()
                assert gate.wait(20)
            return super().apply(entry)

    async def main():
        async with phx.Node(config, Slow, bootstrap=True) as node:
            await grown(node, 0, 20)
            asking = asyncio.ensure_future(node.group(0).checkpoint())
            await asyncio.to_thread(waits.wait, 20)
            began = time.monotonic()
            await grown(node, 0, 50)
            assert time.monotonic() - began < 10
            assert not asking.done()
            assert node.status().checkpoints["mirror_lag"] >= 50
            gate.set()
            info = await asking
            assert info.frontier == 20
            assert len(state_in(of(config)[-1])) == 20

    run_once(main())


def test_a_node_closes_while_its_mirror_follows(run_once, tmp_path):
    config = alone(tmp_path, mirror=True)
    main_thread = threading.get_ident()

    class Slow(Blind):
        def apply(self, entry):
            if threading.get_ident() != main_thread:
                time.sleep(0.05)
            return super().apply(entry)

    async def main():
        async with phx.Node(config, Slow, bootstrap=True) as node:
            await grown(node, 0, 400)
            asking = asyncio.ensure_future(node.group(0).checkpoint())
            await asyncio.sleep(0.3)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        with pytest.raises(errors.CheckpointFailed, match="closes"):
            await asking

    run_once(main())


def test_it_follows_through_the_store_and_the_journal(run_once, tmp_path):
    """Settled values come from the store in large pieces, the others one by one."""
    checkpoints = QUIET | {"mirror": True}
    config = config_of(tmp_path, 1, nodes=1, journal=SMALL, checkpoints=checkpoints)

    async def main():
        async with phx.Node(config, Lengths, bootstrap=True) as node:
            for _ in range(3):
                for _ in range(40):
                    await node.group(0).propose(b"x" * 100_000)
                await until(lambda: node.group(0).status().settled_through)
                info = await node.group(0).checkpoint()
                assert 0 < node.group(0).status().settled_through < info.frontier
                assert state_in(of(config)[-1]) == node.group(0).machine().told

    run_once(main())


def test_beside_a_machine_with_a_view_it_is_one_state(run_once, tmp_path):
    config = alone(tmp_path, mirror=True)

    def both(group):
        return {0: Blind(group), 1: Counter(group)}

    async def some(node, count):
        for number in range(count):
            await node.group(0).propose(b"1", machine=number % 2)

    async def main():
        async with phx.Node(config, both, bootstrap=True) as node:
            await some(node, 30)
            await node.group(0).checkpoint()
            await some(node, 30)
            await node.group(0).checkpoint()
            assert state_in(of(config)[-1]) == node.group(0).machine(0).told
        async with phx.Node(config, both) as node:
            await node.wait_ready()
            assert node.group(0).machine(0).restored == 30
            assert node.group(0).machine(1).total == 30

    run_once(main())


def test_policy_takes_them_too(run_once, tmp_path):
    config = alone(tmp_path, mirror=True, interval_instances=50)

    async def main():
        async with phx.Node(config, Blind, bootstrap=True) as node:
            while node.status().checkpoints["taken"] < 3:
                await grown(node, 0, 20)
            assert len(of(config)) == 2
            (second,) = [one for one in Blind.made if one.written_by]
            assert second.restored == 0

    run_once(main())


def test_when_its_log_is_gone_it_begins_again(run_once, tmp_path, monkeypatch):
    """As behind a checkpoint of another node, which takes the place of the log."""
    config = alone(tmp_path, mirror=True)
    lose = threading.Event()
    bodies = mirror.Mirrors._bodies

    def lossy(self, group, first, last):
        if lose.is_set():
            lose.clear()
            raise mirror.Lost("gone")
        return bodies(self, group, first, last)

    monkeypatch.setattr(mirror.Mirrors, "_bodies", lossy)

    async def main():
        async with phx.Node(config, Blind, bootstrap=True) as node:
            await grown(node, 0, 10)
            await node.group(0).checkpoint()
            await grown(node, 0, 10)
            lose.set()
            await node.group(0).checkpoint()
            assert state_in(of(config)[-1]) == node.group(0).machine().told
            assert [one.restored for one in Blind.made if one.written_by] == [0, 10]

    run_once(main())


def test_blocking_nodes_have_them(tmp_path):
    config = alone(tmp_path, mirror=True)
    with phx.blocking.Node(config, Blind, bootstrap=True) as node:
        for _ in range(20):
            node.group(0).propose(b"1")
        node.group(0).checkpoint()
        assert state_in(of(config)[-1]) == node.group(0).machine().told


def test_a_log_that_is_trimmed_has_what_it_needs(run_once, tmp_path):
    checkpoints = QUIET | {"mirror": True, "trim": True, "hold_instances": 0, "keep": 1}
    config = config_of(tmp_path, 1, nodes=1, journal=SMALL, checkpoints=checkpoints)

    async def rounds(node, count):
        for _ in range(count):
            for _ in range(40):
                await node.group(0).propose(b"x" * 100_000)
            info = await node.group(0).checkpoint()
            assert state_in(of(config)[-1]) == node.group(0).machine().told
            for _ in range(500):
                if node.group(0).status().floor == info.frontier + 1:
                    break
                await asyncio.sleep(0.01)
            else:
                raise AssertionError("nothing was trimmed")

    async def main():
        async with phx.Node(config, Lengths, bootstrap=True) as node:
            await rounds(node, 3)
        async with phx.Node(config, Lengths) as node:
            await node.wait_ready()
            await rounds(node, 2)

    run_once(main())
