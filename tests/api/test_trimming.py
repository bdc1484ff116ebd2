"""Nodes whose logs become shorter: which floor a group gets, and what goes on without the log."""

import asyncio
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest

import phx
from phx._core.driver import ERROR_OVERLOADED, DriverError
from phx.applier import GroupState
from phx.checkpoint.catalog import Catalog
from phx.checkpoint.manifest import DURABLE, MEMORY, MachineEntry
from phx.config import Checkpoints
from phx.errors import NoLongerKept
from phx.machines import Counter
from phx.node import floors as floors_module
from phx.node.floors import Floors
from phx.store import Floor, MembersRow, Store
from tests.api.cluster import cluster, config_of, introduce, until
from tests.checkpoint.checkpoint_lab import membership

pytestmark = pytest.mark.usefixtures("no_leaks")

QUIET = {"interval_instances": 0, "interval_us": 0, "interval_bytes": 0}
NO_HOLD = {"hold_instances": 0, "hold_bytes": 0, "hold_us": 0}
TRIM = QUIET | NO_HOLD | {"trim": True}
MUCH = 1 << 40


def folder_bytes(folder):
    total = 0
    for one in folder.iterdir():
        with suppress(FileNotFoundError):  # removed meanwhile
            total += one.stat().st_size
    return total


def manifest(frontier, *machines, taken_us=0, membership=None):
    """What counts of one; machines are (id, what it is, file)."""
    machines = machines or ((0, MEMORY, 0),)
    return SimpleNamespace(
        group=7,
        membership=membership,
        frontier=frontier,
        taken_us=taken_us,
        machines=[MachineEntry(one, kind, file, b"") for one, kind, file in machines],
    )


class Lab:
    """Floors of group 7 over a real store, with a keeper that works when it is told to."""

    def __init__(self, folder, **options):
        self.store = Store.open(folder, cluster=1, node=1, create=True)
        self.kept = []  # newest first
        self.cover = partial(Catalog.cover, self)
        self.state = GroupState(7, {})
        self.chosen = MUCH
        self.told = []
        self.overloaded = False
        self.asked = []
        self.floors = Floors(
            Checkpoints(**TRIM | options), self, {7: self.state}, self.store, self, self
        )

    def of(self, group):
        return self.kept

    def ask(self, action):
        self.asked.append(action)
        return Future()

    def group_status(self, group):
        return {"group": group, "chosen_through": self.chosen}

    def group_statuses(self):
        return [self.group_status(group) for group in self.floors._states]

    def floored(self, group, floor, settled):
        if self.overloaded:
            raise DriverError(ERROR_OVERLOADED, "planted")
        assert self.store.bounds(group) == (floor, settled), "told before it was durable"
        self.told.append(floor)

    def work(self):
        while self.asked:
            self.asked.pop(0)(self.store)

    def takes(self, frontier, *machines, keep=1):
        self.state.applied = max(self.state.applied, frontier)
        self.kept = [manifest(frontier, *machines), *self.kept][:keep]
        self.floors.covered(7, frontier, time.monotonic())
        self.work()
        return self.floor

    @property
    def floor(self):
        return self.store.bounds(7)[0]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(floors_module, "PAUSE_S", 0.0)


@pytest.fixture
def lab(tmp_path):
    made = []

    def make(**options):
        made.append(Lab(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


def test_the_floor_is_behind_the_oldest_that_is_kept(lab):
    one = lab()
    assert one.takes(100, keep=2) == 101
    assert one.takes(200, keep=2) == 101
    assert one.takes(300, keep=2) == 201
    assert one.told == [101, 201]
    assert one.store.bounds(7) == (201, 200)
    one.floors.due(7)
    one.work()
    assert one.told == [101, 201]  # nothing is said twice


def test_what_is_held_stays(lab):
    hold = {"hold_instances": 30, "hold_bytes": MUCH, "hold_us": 3_600_000_000}
    one = lab(**hold)
    assert one.takes(20) == 1
    assert one.takes(100) == 71
    one = lab(**hold | {"hold_bytes": 1_000})
    one.state.log_bytes = 10_000  # of the instances 1 .. 100
    one.state.applied = 100
    assert one.takes(80) == 80 + 1 - 1_000 // 101


def test_unless_it_trims_nothing_goes(lab):
    one = lab(trim=False)
    assert one.takes(100) == 1
    one.floors.begins(one.state)
    assert not one.asked
    assert not any(one.floors._retention._marks.values())  # nobody would take them away
    assert Checkpoints().trim is True


def test_of_several_machines_the_one_that_is_least_far_counts(lab):
    one = lab()
    light = ((0, DURABLE, -1), (1, DURABLE, -1))
    one.state.committed = {0: 150, 1: 120}
    assert one.takes(100, *light) == 101
    one.state.committed = {0: 250, 1: 170}  # its files were lost, and begun anew
    assert one.takes(200, *light) == 171
    one.state.committed = {0: 350, 1: 0}
    assert one.takes(300, *light) == 171
    del one.state.committed[1]  # it is not open yet
    assert one.takes(400, *light) == 171
    assert one.takes(500, (0, DURABLE, 0), (1, DURABLE, 1)) == 501  # all state is in it
    one.state.committed = {1: 550}
    assert one.takes(600, (0, MEMORY, 0), (1, DURABLE, -1)) == 551


def test_nothing_goes_that_is_not_known_to_be_chosen_or_not_applied(lab, monkeypatch):
    one = lab()
    one.chosen = 60
    monkeypatch.setattr(floors_module, "RETRY_S", 0.0)
    assert one.takes(100) == 61
    one.chosen = 90
    one.floors.ring(one.floors.next_s())
    one.work()
    assert one.floor == 91
    one.chosen = MUCH
    one.kept = [manifest(5000)]
    one.state.applied = 4000
    one.floors.due(7)
    one.work()
    assert one.floor == 4001


def test_a_group_that_stopped_keeps_what_it_has(lab):
    one = lab()
    one.takes(100)
    one.state.stopped = phx.errors.GroupStopped(7, 101, None, "planted")
    assert one.takes(200) == 101


def test_a_checkpoint_that_the_log_does_not_reach_covers_nothing(lab):
    """It could not be dropped when it should have been."""
    one = lab()
    assert one.takes(300) == 301
    one.kept = [manifest(400), manifest(100)]
    one.state.applied = 400
    one.floors.due(7)
    one.work()
    assert one.floor == 401
    one.kept = [manifest(100)]
    one.floors.due(7)
    one.work()
    assert one.floor == 401


def test_the_lowest_pin_holds(lab):
    one = lab()
    assert one.floors.pinned(7) is None
    low, high = one.floors.pin(7, 10), one.floors.pin(7, 30)
    assert one.floors.pinned(7) == 10
    assert one.takes(100) == 10
    low.move(20)
    low.move(5)
    assert one.takes(200) == 20
    low.release()
    low.release()
    one.work()
    assert one.floor == 30
    with one.floors.pin(7, 3) as third:
        assert third.first == 30  # what was below is gone
        high.release()
        one.work()
        assert one.floor == 30
    one.work()
    assert one.floor == 201
    assert one.floors.pin(7, 500).first == 500
    with pytest.raises(ValueError, match="from 1"):
        one.floors.pin(7, 0)


def test_while_they_are_held_all_floors_stay(lab):
    one = lab(hold_us=100_000, hold_instances=MUCH, hold_bytes=MUCH)
    one.floors.hold(True)
    one.floors.hold(True)
    assert one.takes(100) == 1
    time.sleep(0.2)
    one.floors.ring(time.monotonic())  # what is held is old
    with one.floors.pin(7, 50) as pin:
        assert pin.first == 50
    one.work()
    assert one.takes(200) == 1
    assert one.floors.next_s() == float("inf")
    one.floors.hold(False)
    one.work()
    assert one.floor == 101
    # Whoever is asked for before it is held, and comes to be looked at after that, stays, too.
    one.kept = [manifest(300)]
    one.state.applied = 300
    time.sleep(0.2)
    one.floors.due(7)
    one.floors.hold(True)
    one.work()
    assert one.floor == 101
    one.floors.hold(False)
    one.work()
    assert one.floor == 201


def test_what_is_about_to_go_is_not_promised(lab):
    one = lab()
    raise_floors, pins = one.store.raise_floors, []

    def pin_in_between(floors, *members):
        pins.append(one.floors.pin(7, 50).first)
        return raise_floors(floors, *members)

    one.store.raise_floors = pin_in_between
    assert one.takes(100) == 101
    assert pins == [101]


def test_the_members_of_the_cover_go_with_the_floor(lab):
    """What is passed is not copied: nothing of the log will say that they changed."""
    one = lab()
    told = membership(instance=40)
    one.state.applied = 100
    one.kept = [manifest(100, membership=told)]
    one.floors.covered(7, 100, time.monotonic())
    one.work()
    assert one.floor == 101
    assert one.store.members() == {7: MembersRow(told)}


def test_several_groups_go_in_one_transaction(lab):
    one = lab()
    states = {group: GroupState(group, {}) for group in range(600)}
    one.floors._states = states
    one.kept = [manifest(100)]
    for state in states.values():
        state.applied = 100
        one.floors.due(state.group)
    before = one.store.stats().commits
    assert len(one.asked) == 1
    one.work()
    assert one.store.stats().commits - before == 3
    assert set(one.store.floors().values()) == {Floor(101, 100)}
    assert len(one.told) == 600


def test_the_store_is_not_asked_all_the_time(lab, monkeypatch):
    """Whoever is due meanwhile goes with the next turn."""
    monkeypatch.setattr(floors_module, "PAUSE_S", 0.4)
    one = lab()
    one.floors._states = states = {group: GroupState(group, {}) for group in range(7, 10)}
    one.kept = [manifest(100)]
    for state in states.values():
        state.applied = 100
        one.floors.due(state.group)
    one.work()
    commits = one.store.stats().commits
    one.kept = [manifest(200)]
    for state in states.values():
        state.applied = 200
        one.floors.due(state.group)
    assert not one.asked
    assert 0.2 < one.floors.next_s() - time.monotonic() <= 0.4
    time.sleep(0.4)
    one.floors.ring(time.monotonic())
    one.work()
    assert one.store.stats().commits == commits + 1
    assert set(one.store.floors().values()) == {Floor(201, 200)}


def test_what_failed_is_done_later(lab, monkeypatch):
    monkeypatch.setattr(floors_module, "RETRY_S", 0.0)
    one = lab()
    rung = []
    one.floors.wake = lambda: rung.append(1)
    one.overloaded = True
    assert one.takes(100) == 101
    assert (one.told, rung) == ([], [1])
    one.overloaded = False
    one.floors.ring(one.floors.next_s())
    one.work()
    assert one.told == [101]  # the row was committed, and the engine did not know

    def full(floors, *members):
        raise phx.errors.StoreError("planted")

    raise_floors, one.store.raise_floors = one.store.raise_floors, full
    assert one.takes(200) == 101
    assert one.floors.pin(7, 150).first == 150  # it was not raised after all
    one.store.raise_floors = raise_floors
    one.floors.ring(one.floors.next_s())
    one.work()
    assert one.told == [101, 150]


def test_what_is_held_becomes_old_also_without_load(lab):
    hold = {"hold_instances": MUCH, "hold_bytes": MUCH, "hold_us": 60_000_000}
    one = lab(**hold)
    one.state.applied = 300
    now_us = time.time_ns() // 1000
    one.kept = [
        manifest(300, taken_us=now_us - 10_000_000),
        manifest(200, taken_us=now_us - 59_500_000),
        manifest(100, taken_us=now_us - 61_000_000),
    ]
    one.floors.begins(one.state)
    one.work()
    assert one.floor == 101  # the oldest is the cover, and older than a minute
    one.kept.pop()
    one.floors.due(7)
    one.work()
    assert one.floor == 101
    assert 0.2 < one.floors.next_s() - time.monotonic() < 0.6
    time.sleep(0.6)
    one.floors.ring(time.monotonic())
    one.work()
    assert one.floor == 201
    assert one.floors.next_s() == float("inf")


# --- nodes


async def grown(node, group, count):
    await node.group(group).propose_many([b"1"] * count)
    for _ in range(count // 10):
        await node.group(group).propose(b"1")


async def taken(node, group=0):
    """A checkpoint was taken, and the log is as short as that allows."""
    info = await node.group(group).checkpoint()
    covers = sorted(one.frontier for one in node._room._snapshots._catalog.of(group))
    await until(lambda: node.group(group).status().floor >= covers[0] + 1)
    return info


def entries(node):
    return node.status().store["entries"]


def test_a_log_goes_and_a_start_does_without_it(run_once, tmp_path):
    config = config_of(tmp_path, 1, nodes=1, groups=2, checkpoints=TRIM)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await grown(node, 0, 200)
            first = await taken(node)
            await grown(node, 0, 200)
            node._room.driver.settle_now()
            await until(lambda: entries(node) > 0)
            second = await taken(node)
            await grown(node, 0, 200)
            status = node.group(0).status()
            assert status.floor == first.frontier + 1
            assert status.frontier == second.frontier
            third = await taken(node)
            status = node.group(0).status()
            assert status.floor == second.frontier + 1 <= status.settled_through + 1
            assert status.frontier == third.frontier
            other = node.group(1).status()
            assert (other.floor, other.frontier) == (1, 0)
            with pytest.raises(NoLongerKept):
                await node.group(0).entry(second.frontier)
            assert await node.group(0).entry(second.frontier + 1)
            counters = node.status().checkpoints
            assert counters["floors_raised"] == 2
            # The first went before it was settled, and was never copied.
            assert counters["entries_passed"] >= first.frontier
            total = node.group(0).machine().total
        for _ in range(2):
            async with phx.Node(config, Counter) as node:
                await node.wait_ready()
                assert node.group(0).machine().total == total
                status = node.group(0).status()
                assert (status.floor, status.frontier) == (second.frontier + 1, third.frontier)
                with pytest.raises(NoLongerKept):
                    await node.group(0).entry(second.frontier)
        async with phx.Node(config, Counter) as node:
            await node.wait_ready()
            await node.group(0).propose(b"1")
            assert node.group(0).machine().total == total + 1

    run_once(main())


def test_while_a_checkpoint_is_written_its_log_stays(run_once, tmp_path):
    """It is no checkpoint before it has its name: if the node dies, the log is all there is."""
    config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=TRIM | {"keep": 1})
    gate, begun = threading.Event(), threading.Event()
    gate.set()

    class Slow(Counter):
        def snapshot(self, writer):
            begun.set()
            assert gate.wait(30)
            super().snapshot(writer)

    async def looked_at(node):
        node._room.floors.due(0)
        for _ in range(2):  # whoever is due while others are looked at comes in the next turn
            await asyncio.wrap_future(node._room._keeper.ask(lambda store: None))

    async def main():
        async with phx.Node(config, Slow, bootstrap=True) as node:
            await grown(node, 0, 50)
            first = await taken(node)
            await grown(node, 0, 50)
            gate.clear()
            begun.clear()
            asking = asyncio.ensure_future(node.group(0).checkpoint())
            try:
                assert await asyncio.to_thread(begun.wait, 20)
                await looked_at(node)
                await grown(node, 0, 50)
                await looked_at(node)
                assert node.group(0).status().floor == first.frontier + 1
                assert await node.group(0).entry(first.frontier + 1)
            finally:
                gate.set()
            second = await asking
            assert second.frontier > first.frontier
            await until(lambda: node.group(0).status().floor == second.frontier + 1)

    run_once(main())


def test_a_start_raises_what_a_crash_left(run_once, tmp_path):
    stays = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=TRIM | {"trim": False})
    goes = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=TRIM)

    async def main():
        async with phx.Node(stays, Counter, bootstrap=True) as node:
            await grown(node, 0, 100)
            frontier = (await node.group(0).checkpoint()).frontier
            await grown(node, 0, 10)
            assert node.group(0).status().floor == 1
        async with phx.Node(goes, Counter) as node:
            await node.wait_ready()
            await until(lambda: node.group(0).status().floor == frontier + 1)
            assert node._room._store.floors()[0].kept_from == frontier + 1
            await until(lambda: node.status().store["dead_chunks"] == 0)
            assert node.group(0).machine().total == 121

    run_once(main())


def test_a_member_that_needs_less_than_all_others_have_hears_it(run_once, tmp_path):
    """It does not lead, it invents nothing, and others go on."""
    below = []

    async def main():
        settings = {"groups": 1, "checkpoints": TRIM | {"keep": 1}}
        async with cluster(tmp_path, Counter, **settings) as nodes:
            await grown(nodes[2], 0, 50)
            await until(lambda: nodes[2].group(0).machine().total == 55)
            applied = nodes[2].group(0).status().applied_through
            await nodes[2].close()
            for _ in range(3):
                await grown(nodes[0], 0, 50)
            for node in nodes[:2]:
                await until(lambda node=node: node.group(0).machine().total == 220)
                info = await taken(node)
                assert node.group(0).status().floor == info.frontier + 1
            again = nodes[2] = phx.Node(config_of(tmp_path, 3, **settings), Counter)
            await again.open()
            # Nothing is fetched here: this is what the log says.
            again._room.applier.on_below = lambda *told: below.append(told)
            introduce(nodes)
            await until(lambda: below, seconds=20)
            group, peer, lowest = below[0]
            floors = {node.config.node: node.group(0).status().floor for node in nodes[:2]}
            assert (group, lowest) == (0, min(floors.values()))
            assert floors[peer] == lowest
            for _ in range(5):
                await nodes[0].group(0).propose(b"1")
            status = again.group(0).status()
            assert not status.leading
            assert status.applied_through <= applied + 5 < lowest
            assert again.group(0).machine().total <= 55
            # A checkpoint of another node brings it on.
            again._room.applier.on_below = again._room._transfers.fetcher.below
            await until(lambda: again.group(0).machine().total == 225, seconds=20)
            assert again.group(0).status().floor >= lowest
            assert await again.group(0).propose(b"1")

    run_once(main())


def test_a_pin_of_a_node_holds_its_log(run_once, tmp_path):
    config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=TRIM | {"keep": 1})

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await grown(node, 0, 50)
            with node._room.floors.pin(0, 5) as pin:
                info = await node.group(0).checkpoint()
                await until(lambda: node.group(0).status().floor == 5)
                assert await node.group(0).entry(pin.first)
                await grown(node, 0, 50)
                again = await node.group(0).checkpoint()
                assert again.frontier > info.frontier
                await asyncio.sleep(0.1)
                assert node.group(0).status().floor == 5
            await until(lambda: node.group(0).status().floor == again.frontier + 1)

    run_once(main())


def test_log_that_nobody_needs_goes_though_the_group_is_quiet(run_once, tmp_path):
    checkpoints = TRIM | {"keep": 1, "hold_us": 1_500_000, "hold_instances": MUCH}
    checkpoints["hold_bytes"] = MUCH
    config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=checkpoints)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await grown(node, 0, 50)
            began = time.monotonic()
            frontier = (await node.group(0).checkpoint()).frontier
            assert node.group(0).status().floor == 1
            await until(lambda: node.group(0).status().floor == frontier + 1)
            assert time.monotonic() - began > 1.4

    run_once(main())


def test_journal_segments_go_though_one_group_is_idle(run_once, tmp_path):
    """Its few entries, its promise and what it settled lie in the oldest segment, and would hold
    all that follow."""
    config = config_of(
        tmp_path,
        1,
        nodes=1,
        groups=2,
        checkpoints=TRIM | {"interval_instances": 100, "keep": 1},
        journal={
            "segment_bytes": 1 << 20,
            "journal_bytes_max": 32 << 20,
            "settle_bytes": 2 << 20,
        },
        limits={"value_bytes_max": 64 << 10},
    )
    value = bytes(60 << 10)

    class Sink(Counter):
        def apply(self, entry):
            self.total += 1
            return self.total

    async def main():
        async with phx.Node(config, Sink, bootstrap=True) as node:
            await node.group(1).propose(b"idle")
            promised = node.group(1).status().promised
            begins = node.status().journal["floor_lsn"]
            for _ in range(60):
                await node.group(0).propose_many([value] * 20)
            journal = node.status().journal
            assert journal["floor_lsn"] - begins > 40 << 20
            await until(lambda: folder_bytes(config.dir / "journal") < 16 << 20)
            assert await node.group(1).entry(1)
        async with phx.Node(config, Sink) as node:
            await node.wait_ready()
            assert node.group(1).status().promised >= promised
            assert (node.group(0).machine().total, node.group(1).machine().total) == (1200, 1)
            assert node.group(0).status().floor > 1
            assert node.group(1).status().floor == 1

    run_once(main())


def test_a_pin_that_is_released_after_the_node_closed_is_nothing(run_once, tmp_path):
    config = config_of(tmp_path, 1, nodes=1, groups=1, checkpoints=TRIM)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await node.group(0).propose(b"1")
            pin = node._room.floors.pin(0, 1)
        pin.release()

    run_once(main())
