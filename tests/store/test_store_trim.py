"""Floors: what is below is never served again, what is above never lost, and room comes back."""

import tempfile
import threading
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_lab import (
    KIB,
    LARGE,
    MIB,
    SMALL,
    Log,
    block,
    body_of,
    chunk_sizes,
    entries_of,
    flip,
    in_thread,
    opened,
    read_all,
)

from phx import errors
from phx.sim.storage import SettledStore, StoreFailed
from phx.store import Floor, Store

pytestmark = pytest.mark.usefixtures("no_leaks")


def raised(store, group, kept_from):
    return store.raise_floors({group: Floor(kept_from, kept_from - 1)})


def trim_all(store):
    steps = 0
    while store.trim():
        steps += 1
    return steps


def settle_by_group(store, log):
    for group in sorted({group for group, _ in log.lsns}):
        store.settle(log.plan(key for key in log.lsns if key[0] == group))


def kept_in_chunks(store):
    return [(chunk[3], chunk[4]) for chunk in store._index.chunk_list()]


# --- what a floor means


def test_nothing_below_a_floor_is_served(tmp_path):
    log = Log()
    log.add(block([1, 2], 1, 100))
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan())
        assert store.floors() == {1: Floor(1, 100), 2: Floor(1, 100)}
        stats = raised(store, 1, 41)
        assert (stats.groups, stats.entries, stats.passed, stats.dead_chunks) == (1, 40, 0, 0)

    def check(store):
        assert store.floors() == {1: Floor(41, 100), 2: Floor(1, 100)}
        assert store.bounds(1) == (41, 100)
        assert store.settled() == {1: 100, 2: 100}
        assert store.entry(1, 40) is None
        assert store.read(1, 1, 1 << 20) == store.read(1, 40, 1 << 20) == b""
        assert read_all(store, 1, 41) == [(i, body_of(1, i)) for i in range(41, 101)]
        assert read_all(store, 2) == [(i, body_of(2, i)) for i in range(1, 101)]
        assert store.stats().entries == 160

    with opened(tmp_path / "s") as store:
        check(store)
        assert not store.trim()  # most of the only chunk is kept
        check(store)
        assert raised(store, 1, 41).groups == 0
        assert raised(store, 1, 7).groups == 0  # a floor never goes back
        check(store)


def test_a_floor_beyond_what_is_settled_settles_without_a_copy(tmp_path):
    log = Log()
    log.add(block([1], 1, 60))
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan((1, i) for i in range(1, 21)))
        stats = raised(store, 1, 51)
        assert (stats.groups, stats.entries, stats.passed, stats.dead_chunks) == (1, 20, 30, 1)
        raised(store, 9, 8)  # of a group that the store never heard of
        assert store.floors() == {1: Floor(51, 50), 9: Floor(8, 7)}
        assert store.stats().entries == 0
        again = store.settle(log.plan())
        assert (again.entries, again.skipped) == (10, 50)
        assert trim_all(store) == 1
        assert read_all(store, 1, 51) == [(i, body_of(1, i)) for i in range(51, 61)]
    with opened(tmp_path / "s") as store:
        assert store.floors() == {1: Floor(51, 60), 9: Floor(8, 7)}
        assert store.verify() == 10
        assert raised(store, 1, 61).entries == 10
        trim_all(store)
        assert store.stats().chunks == 0
    with opened(tmp_path / "s") as store:  # nothing but floors
        assert store.floors() == {1: Floor(61, 60), 9: Floor(8, 7)}


@pytest.mark.parametrize(
    "floor",
    [
        Floor(1, 11),  # more than there is, and kept
        Floor(5, 20),
        Floor(7, 5),  # an instance that is neither
        Floor(0, 0),
        Floor((1 << 64) - 1, (1 << 64) - 2),
    ],
)
def test_a_floor_that_leaves_something_out_is_refused(tmp_path, floor):
    log = Log()
    log.add(block([1, 2], 1, 10))
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan())
        with pytest.raises(ValueError, match="group 2: "):
            store.raise_floors({1: Floor(4, 3), 2: floor})
        assert store.floors() == {1: Floor(1, 10), 2: Floor(1, 10)}
        assert raised(store, 1, 11).groups == 1


def test_only_the_writing_thread_raises_and_trims(tmp_path):
    log = Log()
    log.add(block([1], 1, 10))
    with opened(tmp_path / "s", create=True) as store:
        in_thread(lambda: store.settle(log.plan()))
        with pytest.raises(errors.StoreError, match="only one thread may write"):
            raised(store, 1, 2)
        with pytest.raises(errors.StoreError, match="only one thread may write"):
            store.trim()


# --- chunks


def test_dead_chunks_go_eight_at_a_time(tmp_path):
    log = Log()
    log.add(block([1], 1, 20))
    with opened(tmp_path / "s", create=True) as store:
        for n in range(1, 21):
            store.settle(log.plan([(1, n)]))
        stats = raised(store, 1, 20)
        assert (stats.dead_chunks, stats.dead_bytes) == (19, 19 * SMALL)
        assert store._index.dead_chunks(3) == [1, 2, 3]
        left = []
        while store.trim():
            left.append(store.stats().chunks)
            assert store.entry(1, 20) == body_of(1, 20)
        assert left == [12, 4, 1]
        assert store.stats().trims == 3
        with store._env.begin() as txn:
            assert txn.stat(store._chunks)["entries"] == txn.stat(store._indexes)["entries"] == 1


def test_trimming_goes_on_after_a_restart(tmp_path):
    log = Log()
    log.add(block([1], 1, 20))
    with opened(tmp_path / "s", create=True) as store:
        for n in range(1, 21):
            store.settle(log.plan([(1, n)]))
        raised(store, 1, 20)
        store.trim()
    with opened(tmp_path / "s") as store:
        assert store.stats().dead_chunks == 11
        assert trim_all(store) == 2
        assert chunk_sizes(store) == [SMALL]
        assert store.verify() == 1


def test_thin_chunks_are_written_anew(tmp_path):
    """A group that has come to rest keeps few entries in a large chunk."""
    log = Log(segment_bytes=16 * MIB)
    log.add([(1, i, body_of(1, i)) for i in range(1, 11)])
    log.add(block([2], 1, 900, 6 * KIB))
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan())
        assert chunk_sizes(store) == [LARGE]
        raised(store, 2, 700)
        assert not store.trim()  # 1.2 MiB need a chunk of 8 MiB again
        raised(store, 2, 895)
        assert store._index.thin_chunks(16) == [1]
        assert store.trim()
        assert chunk_sizes(store) == [SMALL]
        assert kept_in_chunks(store) == [(16, 16)]
        assert not store.trim()
        assert read_all(store, 1) == [(i, body_of(1, i)) for i in range(1, 11)]
        assert read_all(store, 2, 895) == [(i, body_of(2, i, 6 * KIB)) for i in range(895, 901)]
        rows = store._index.rows()
    with opened(tmp_path / "s") as store:
        assert store._index.rows() == rows
        assert store.verify() == 16


def test_two_thin_chunks_become_one_but_one_alone_stays(tmp_path):
    log = Log(segment_bytes=16 * MIB)
    log.add(block([1, 2], 1, 900, 6 * KIB))
    with opened(tmp_path / "s", create=True) as store:
        settle_by_group(store, log)
        assert chunk_sizes(store) == [LARGE, LARGE]
        raised(store, 1, 701)
        assert not store.trim()
        raised(store, 2, 701)
        assert trim_all(store) == 1
        assert chunk_sizes(store) == [LARGE]
        for group in (1, 2):
            found = read_all(store, group, 701)
            assert found == [(i, body_of(group, i, 6 * KIB)) for i in range(701, 901)]


def test_a_chunk_made_of_thin_ones_is_joined_again(tmp_path):
    """Or one group that holds on would cost a large chunk for the little of every few."""
    with opened(tmp_path / "s", create=True) as store:
        for n in range(12):
            log = Log(segment_bytes=16 * MIB)
            first = 200 * n + 1
            log.add(block([1], first, first + 199, 4 * KIB))
            log.add(block([2], 25 * n + 1, 25 * n + 25, 200 * KIB))
            store.settle(log.plan())
            raised(store, 2, 25 * n + 26)
            trim_all(store)
        stats = store.stats()
        assert stats.kept_bytes > 9 * MIB
        assert stats.value_bytes <= 4 * stats.kept_bytes + LARGE
        assert len(read_all(store, 1)) == 2400


def test_what_is_kept_is_weighed_in_bytes(tmp_path):
    """Many small entries in a chunk do not keep the room of few large ones."""
    log = Log(segment_bytes=16 * MIB)
    log.add(block([1], 1, 300, 10))
    log.add(block([2], 1, 30, 200 * KIB))
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan())
        assert chunk_sizes(store) == [LARGE]
        raised(store, 2, 31)
        assert trim_all(store) == 1
        assert chunk_sizes(store) == [SMALL]
        assert len(read_all(store, 1)) == 300


def test_merging_leaves_out_what_is_below(tmp_path):
    log = Log()
    log.add(block([1, 2], 1, 40))
    with opened(tmp_path / "s", create=True) as store:
        for n in range(1, 41, 2):
            store.settle(log.plan((group, i) for group in (1, 2) for i in (n, n + 1)))
        raised(store, 1, 28)  # in the middle of a chunk
        assert not store.trim()
        assert store.merge()
        assert kept_in_chunks(store)[-1] == (16 * 4 - 27, 16 * 4 - 27)
        rows = store._index.rows()
        assert read_all(store, 1, 28) == [(i, body_of(1, i)) for i in range(28, 41)]
        assert read_all(store, 2) == [(i, body_of(2, i)) for i in range(1, 41)]
    with opened(tmp_path / "s") as store:
        assert store._index.rows() == rows
        assert store.verify() == 80 - 27


def test_a_dead_chunk_is_not_merged(tmp_path):
    log = Log()
    log.add(block([1], 1, 17))
    with opened(tmp_path / "s", create=True) as store:
        for n in range(1, 18):
            store.settle(log.plan([(1, n)]))
        raised(store, 1, 3)
        assert not store.merge()
        assert store.trim()
        assert read_all(store, 1, 3) == [(i, body_of(1, i)) for i in range(3, 18)]


def test_damage_of_what_is_kept_is_not_trimmed_away(tmp_path):
    log = Log(segment_bytes=16 * MIB)
    log.add(block([1], 1, 900, 6 * KIB))
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan())
    flip(tmp_path / "s", body_of(1, 899, 6 * KIB), 60)
    with opened(tmp_path / "s") as store:
        raised(store, 1, 895)
        for _ in range(2):
            with pytest.raises(errors.Damaged, match="chunk 1, group 1 instance 899"):
                store.trim()
        assert store.entry(1, 900) == body_of(1, 900, 6 * KIB)
        raised(store, 1, 901)  # and once it is not kept, it is nobody's concern
        assert store.verify() == 0
        assert store.trim()
        assert chunk_sizes(store) == []


def test_the_floor_is_on_the_disk_before_the_call_returns(tmp_path):
    """What another process would see, at each step: the floor first, then fewer chunks."""
    log = Log()
    log.add(block([1], 1, 10))

    def seen():
        env = lmdb.Environment(
            str(tmp_path / "s"), max_dbs=3, lib_version=0, readonly=True, lock=False
        )
        try:
            with env.begin() as txn:
                packed = txn.get(b"groups", db=env.open_db(b"meta", txn=txn, create=False))
                chunks = env.open_db(b"chunks", txn=txn, create=False)
                return int.from_bytes(packed[24:32], "little"), txn.stat(chunks)["entries"]
        finally:
            env.close()

    with opened(tmp_path / "s", create=True) as store:
        for n in range(1, 11):
            store.settle(log.plan([(1, n)]))
    assert seen() == (1, 10)
    with opened(tmp_path / "s") as store:
        raised(store, 1, 10)
    assert seen() == (10, 10)
    with opened(tmp_path / "s") as store:
        store.trim()
    assert seen() == (10, 2)


def test_a_map_that_is_full_after_all_grows(tmp_path, monkeypatch):
    """Even if the room needed was reckoned wrongly, floors are raised and chunks joined."""
    grown = []
    make_room = Store._make_room

    def stingy(self, value_bytes):
        if value_bytes == self._map_bytes:  # asked for because the map was full
            grown.append(value_bytes)
            make_room(self, value_bytes)

    log = Log(segment_bytes=16 * MIB)
    log.add(block([1, 2], 1, 900, 6 * KIB))
    with opened(tmp_path / "s", create=True, map_bytes=MIB) as store:
        settle_by_group(store, log)
        raised(store, 1, 701)
        raised(store, 2, 701)
        pages = store._env.info()["last_pgno"] + 1
        store._env.set_mapsize(pages * store._page_bytes)
        store._map_bytes = pages * store._page_bytes
        monkeypatch.setattr(Store, "_make_room", stingy)
        assert trim_all(store) == 1
        assert grown
        assert store.verify() == 400


# --- readers


def test_readers_see_all_that_is_kept_and_nothing_else(tmp_path):
    log = Log()
    stop = threading.Event()
    trouble = []
    reads = [0]

    def reader(store):
        while not stop.is_set():
            floor, through = store.bounds(1)
            found = entries_of(store.read(1, floor, 64 * KIB))
            if not found:
                if store.bounds(1)[0] == floor <= through:
                    trouble.append(("nothing", floor))
            elif [i for i, _ in found] != list(range(floor, floor + len(found))):
                trouble.append(floor)
            elif any(body != body_of(1, i, 900) for i, body in found):
                trouble.append(("bytes", floor))
            reads[0] += 1

    with opened(tmp_path / "s", create=True) as store:
        threads = [threading.Thread(target=reader, args=(store,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for n in range(1, 200, 4):
                log.add(block([1], n, n + 3, 900))
                store.settle(log.plan((1, i) for i in range(n, n + 4)))
                if n > 40:
                    raised(store, 1, n - 40)
                    store.trim()
                    store.merge()
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert not trouble
        assert reads[0] > 0
        assert store.stats().trims > 5


# --- the file


def fill_and_forget(store, begin, end, hold=100, entries=40, size=3000):
    """Settle and trim in turn; the size of the file after each round."""
    log = Log(segment_bytes=4 * MIB)
    found = []
    for n in range(begin, end):
        if n % 100 == 99:
            log = Log(segment_bytes=4 * MIB)  # or the journal grows
        first = n * entries + 1
        log.add(block([1, 2], first, first + entries - 1, size))
        store.settle(
            log.plan((group, i) for group in (1, 2) for i in range(first, first + entries))
        )
        if n == 0:
            log.add([(3, 1, b"of a group at rest")])
            store.settle(log.plan([(3, 1)]))
        store.raise_floors(
            {
                1: Floor(max(1, first - hold), max(1, first - hold) - 1),
                2: Floor(max(1, first - 3 * hold), max(1, first - 3 * hold) - 1),
            }
        )
        while store.trim() or store.merge():
            pass
        found.append(store.stats().file_bytes)
    return found


@pytest.mark.timeout(180)
def test_the_file_is_bounded(tmp_path):
    """1,000 rounds of settling and trimming: 240 MB through a file of a few."""
    with opened(tmp_path / "s", create=True) as store:
        found = fill_and_forget(store, 0, 1000)
        stats = store.stats()
        assert stats.settled_bytes > 230_000_000
        assert max(found) <= 1.25 * max(found[:50])
        assert max(found) < 16 * MIB
        assert stats.dead_chunks == 0
        assert stats.kept_bytes > stats.used_bytes // 4
        assert store.entry(3, 1) == b"of a group at rest"
        assert store.verify() >= stats.entries
    with opened(tmp_path / "s") as store:
        assert store.floors()[1].kept_from == 999 * 40 + 1 - 100


def test_a_long_reader_keeps_pages_from_being_used_again(tmp_path):
    """Why nothing may hold a snapshot for long: the file grows until it is gone, then no more."""
    with opened(tmp_path / "s", create=True) as store:
        fill_and_forget(store, 0, 30)
        with store._env.begin():
            held = fill_and_forget(store, 30, 60)
        after = fill_and_forget(store, 60, 120)
        assert held[-1] > 2 * held[0]
        assert after[-1] <= 1.1 * held[-1]


# --- any history


class Kept:
    """What a store should hold: a plain dict, and where each group begins and ends."""

    def __init__(self):
        self.bodies = {}
        self.floors = {}

    def settle(self, entries):
        for group, instance, body in entries:
            kept_from, through = self.floors.get(group, (1, 0))
            if instance > through:
                self.bodies[group, instance] = body
                self.floors[group] = (kept_from, instance)

    def raise_floor(self, group, kept_from):
        old_from, through = self.floors.get(group, (1, 0))
        if kept_from > old_from:
            self.floors[group] = (kept_from, max(through, kept_from - 1))
            for key in [k for k in self.bodies if k[0] == group and k[1] < kept_from]:
                del self.bodies[key]


class Model:
    """The store, and the simulated one, beside a plain dict."""

    def __init__(self, path):
        self.path = path
        self.log = Log()
        self.kept = Kept()
        self.simulated = SettledStore(b"s" * 16)
        self.store = self.open(create=True)

    def open(self, create=False):
        return Store.open(
            self.path,
            cluster=0x1234,
            node=5,
            create=create,
            pass_bytes=8 * KIB,
            commit_bytes=128 * KIB,
        )

    def settle(self, counts, size):
        ends = self.kept.floors
        fresh = [
            (group, i, body_of(group, i, size))
            for group, count in sorted(counts.items())
            for i in range(ends.get(group, (1, 0))[1] + 1, ends.get(group, (1, 0))[1] + count + 1)
        ]
        self.log.add(fresh)
        plan = [entry[:2] for entry in fresh]
        self.store.settle(self.log.plan(plan))
        self.simulated.settle(self.log.plan(plan))
        self.kept.settle(fresh)

    def raise_floors(self, wanted):
        floors = {}
        for group, share in wanted.items():
            kept_from, through = self.kept.floors.get(group, (1, 0))
            # down to 0.5 below where it is, and up to some way beyond the end
            at = max(1, round(kept_from + (through + 1 - kept_from) * share))
            floors[group] = Floor(at, at - 1)
            self.kept.raise_floor(group, at)
        before = len(self.kept.floors)
        self.store.raise_floors(floors)
        self.simulated.raise_floors(floors)
        assert len(self.store.floors()) == before

    def refuse(self, group):
        through = self.kept.floors.get(group, (1, 0))[1]
        for store in (self.store, self.simulated):
            with pytest.raises(ValueError, match="cannot be settled"):
                store.raise_floors({group: Floor(through + 1, through + 1)})

    def reopen(self):
        rows = self.store._index.rows()
        counts = kept_in_chunks(self.store)
        self.store.close()
        self.store = self.open()
        assert self.store._index.rows() == rows
        assert kept_in_chunks(self.store) == counts
        self.simulated.reopen()

    def fail(self):
        """A transaction that fails leaves nothing behind."""
        self.simulated.failing = 1
        with pytest.raises(StoreFailed):
            self.simulated.raise_floors({1: Floor(1 << 40, (1 << 40) - 1)})

    def check(self):
        floors = {g: Floor(*at) for g, at in self.kept.floors.items() if at[1]}
        for store in (self.store, self.simulated):
            assert store.floors() == floors
            assert store.settled() == {
                group: floor.settled_through for group, floor in floors.items()
            }
            for group, floor in floors.items():
                wanted = [
                    (i, self.kept.bodies[group, i])
                    for i in range(floor.kept_from, floor.settled_through + 1)
                ]
                assert entries_of(store.read(group, floor.kept_from, 1 << 30, 1 << 63)) == wanted
                assert store.read(group, floor.kept_from - 1, 1 << 30, 1 << 63) == b""
                assert store.read(group, floor.settled_through + 1, 1 << 30, 1 << 63) == b""
        assert self.store.stats().entries == len(self.kept.bodies)
        assert self.store.verify() >= len(self.kept.bodies)


groups = st.integers(0, 4)
history = st.lists(
    st.one_of(
        st.tuples(
            st.just("settle"),
            st.dictionaries(groups, st.integers(1, 40), min_size=1),
            st.sampled_from([0, 9, 200, 3000]),
        ),
        st.tuples(
            st.just("floors"), st.dictionaries(groups, st.floats(-0.5, 1.5, width=16), min_size=1)
        ),
        st.tuples(st.just("refuse"), groups),
        st.sampled_from([("trim",), ("merge",), ("reopen",), ("fail",)]),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(history)
def test_any_history(history):
    with tempfile.TemporaryDirectory() as folder:
        model = Model(Path(folder) / "s")
        try:
            for step in history:
                match step:
                    case ("settle", counts, size):
                        model.settle(counts, size)
                    case ("floors", wanted):
                        model.raise_floors(wanted)
                    case ("refuse", group):
                        model.refuse(group)
                    case ("trim",):
                        model.store.trim()
                        model.simulated.trim()
                    case ("merge",):
                        model.store.merge()
                        model.simulated.merge()
                    case ("reopen",):
                        model.reopen()
                    case ("fail",):
                        model.fail()
                model.check()
            while model.store.trim() or model.store.merge():
                pass
            trim_all(model.simulated)
            model.check()
            assert model.store.stats().dead_chunks == 0
            model.reopen()
            model.check()
        finally:
            model.store.close()
