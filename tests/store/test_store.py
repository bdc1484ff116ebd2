"""The store: identity, settling, reading, growth, merging, threads."""

import os
import struct
import threading

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_lab import (
    CHOSEN,
    CLUSTER,
    KIB,
    LARGE,
    MIB,
    MIDDLE,
    NODE,
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
from phx._core.plan import SettlePlan
from phx.store import FORMAT_VERSION, MAP_BYTES, Store
from phx.store_folder import FORMAT_MEMBERS, read_identity

pytestmark = pytest.mark.usefixtures("no_leaks")


# --- identity


def test_a_store_knows_whose_it_is(tmp_path):
    with opened(tmp_path / "s", create=True) as store:
        made = store.identity
    assert (made.cluster, made.node, made.format_version) == (CLUSTER, NODE, FORMAT_VERSION)
    assert len(made.store_id) == 16
    assert made.lmdb_version[0] == 0
    assert made.lmdb_version == lmdb.version(lib_version=0)
    with opened(tmp_path / "s") as store:
        assert store.identity == made
        assert store.settled() == {}
    with opened(tmp_path / "other", create=True) as store:
        assert store.identity.store_id != made.store_id


def test_whose_a_store_is_can_be_asked(tmp_path):
    with pytest.raises(errors.NotBootstrapped):
        read_identity(tmp_path / "s", MAP_BYTES)
    with opened(tmp_path / "s", create=True) as store, pytest.raises(errors.Locked):
        read_identity(tmp_path / "s", MAP_BYTES)
    assert read_identity(tmp_path / "s", MAP_BYTES) == store.identity
    with opened(tmp_path / "s"):
        pass
    (tmp_path / "half").mkdir()
    lmdb.open(str(tmp_path / "half"), lib_version=0).close()
    with pytest.raises(errors.NotBootstrapped, match="never completely"):
        read_identity(tmp_path / "half", MAP_BYTES)


@pytest.mark.parametrize(("cluster", "node"), [(CLUSTER + 1, NODE), (CLUSTER, NODE + 1)])
def test_another_nodes_store_is_refused(tmp_path, cluster, node):
    with opened(tmp_path / "s", create=True):
        pass
    with pytest.raises(errors.Foreign, match="belongs to node 5 of cluster 0x1234"):
        Store.open(tmp_path / "s", cluster=cluster, node=node)


def rewrite_identity(path, change):
    """Change the packed identity; its checksum is made right again."""
    from phx._core.codec import crc32c

    env = lmdb.Environment(str(path), max_dbs=3, lib_version=0)
    meta = env.open_db(b"meta")
    with env.begin(write=True, db=meta) as txn:
        body = bytearray(txn.get(b"identity")[:-4])
        change(body)
        txn.put(b"identity", bytes(body) + struct.pack("<I", crc32c(bytes(body))))
    env.close()


def test_another_format_version_is_refused(tmp_path):
    with opened(tmp_path / "s", create=True):
        pass
    rewrite_identity(tmp_path / "s", lambda body: body.__setitem__(8, FORMAT_MEMBERS + 1))
    with pytest.raises(errors.Foreign, match="format version 3; this is phx for versions 1 and 2"):
        Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE)


def test_a_damaged_identity_is_refused(tmp_path):
    with opened(tmp_path / "s", create=True) as store:
        packed = store.identity.pack()
    flip(tmp_path / "s", packed, 20)
    with pytest.raises(errors.Damaged, match="identity"):
        Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE)


def test_opening_and_making_are_not_confused(tmp_path):
    with pytest.raises(errors.NotBootstrapped):
        Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE)
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").mkdir()
    with pytest.raises(errors.NotBootstrapped):
        Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE)
    with opened(tmp_path / "s", create=True):
        pass
    with pytest.raises(errors.StoreError, match="already"):
        Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE, create=True)


def test_a_store_whose_making_was_cut_short_is_made_anew(tmp_path):
    (tmp_path / "s").mkdir()
    env = lmdb.Environment(str(tmp_path / "s"), max_dbs=3, lib_version=0)
    env.open_db(b"meta")
    env.close()
    with pytest.raises(errors.NotBootstrapped, match="never completely"):
        Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE)
    with opened(tmp_path / "s", create=True) as store:
        assert store.settled() == {}


def test_a_second_opener_is_kept_out(tmp_path):
    with opened(tmp_path / "s", create=True):
        with pytest.raises(errors.Locked):
            Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE)
        with pytest.raises(errors.Locked):
            Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE, create=True)
    with opened(tmp_path / "s"):
        pass


def test_a_file_of_another_lmdb_is_refused(tmp_path):
    env = lmdb.Environment(str(tmp_path / "s"), max_dbs=3, lib_version=1)
    env.open_db(b"meta")
    env.close()
    for create in (False, True):
        with pytest.raises(errors.Damaged, match=r"LMDB 0\.x"):
            Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE, create=create)


def test_commits_are_fully_synced(tmp_path):
    with opened(tmp_path / "s", create=True) as store:
        flags = store._env.flags()
    assert flags["sync"]
    assert flags["metasync"]
    assert not flags["map_async"]
    assert not flags["writemap"]


# --- settling and reading


def test_what_is_settled_can_be_read(tmp_path):
    log = Log()
    log.add(block(range(3), 1, 200))
    with opened(tmp_path / "s", create=True) as store:
        stats = store.settle(log.plan())
        assert (stats.entries, stats.entry_bytes, stats.skipped) == (600, 600 * 130, 0)
        assert stats.commits == 1
        assert store.settled() == {0: 200, 1: 200, 2: 200}
        assert store.bounds(1) == (1, 200)
        for group in range(3):
            assert read_all(store, group) == [(i, body_of(group, i)) for i in range(1, 201)]
        assert store.entry(1, 77) == body_of(1, 77)
        assert store.entry(1, 0) is None
        assert store.entry(1, 201) is None
        assert store.entry(9, 1) is None
        assert store.read(9, 1, 1 << 20) == b""
        assert store.verify() == 600


def test_a_read_keeps_its_limits(tmp_path):
    log = Log()
    log.add(block([1], 1, 100, 84))  # 100 bytes each, 104 with the padding
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan((1, i) for i in range(1, 51)))
        store.settle(log.plan((1, i) for i in range(51, 101)))
        assert store.stats().chunks == 2
        assert [i for i, _ in entries_of(store.read(1, 45, 1040))] == list(range(45, 55))
        assert [i for i, _ in entries_of(store.read(1, 45, 1039))] == list(range(45, 54))
        assert [i for i, _ in entries_of(store.read(1, 45, 0))] == [45]
        assert [i for i, _ in entries_of(store.read(1, 45, 1 << 30, 60))] == list(range(45, 61))
        assert [i for i, _ in entries_of(store.read(1, 99, 1 << 30))] == [99, 100]
        assert store.read(1, 50, 1 << 20, 49) == b""


def test_settling_again_changes_nothing(tmp_path):
    log = Log()
    log.add(block(range(4), 1, 50))
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan())
        before = store.stats()
        again = store.settle(log.plan())
        assert (again.entries, again.skipped, again.chunks, again.commits) == (0, 200, 0, 0)
        assert store.stats().entries == before.entries
        log.add(block(range(4), 51, 60))
        part = store.settle(log.plan())
        assert (part.entries, part.skipped) == (40, 200)
        assert store.settled() == dict.fromkeys(range(4), 60)
        assert store.verify() == 240


def test_learned_values_settle_like_accepted_ones(tmp_path):
    log = Log()
    log.add(block([1], 1, 3))
    log.add(block([1], 4, 6), kind=CHOSEN)
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan())
        assert read_all(store, 1) == [(i, body_of(1, i)) for i in range(1, 7)]


@pytest.mark.parametrize(
    "wanted",
    [
        [(1, 1), (1, 3)],
        [(1, 2), (1, 3)],
        [(1, 1), (1, 2), (2, 2)],
    ],
)
def test_a_plan_with_a_gap_is_refused(tmp_path, wanted):
    log = Log()
    log.add(block([1, 2], 1, 3))
    with opened(tmp_path / "s", create=True) as store:
        with pytest.raises(errors.StoreError, match=r"does not go on.*group [12] instance [23]"):
            store.settle(log.plan(wanted))
        assert store.settled() == {}
        store.settle(log.plan())  # the store itself is well
        assert store.settled() == {1: 3, 2: 3}


def test_a_plan_in_disorder_is_refused(tmp_path):
    from phx._core.settler import plan_over

    log = Log()
    log.add(block([1, 2], 1, 1))
    items = [(2, 1, log.lsns[2, 1]), (1, 1, log.lsns[1, 1])]
    with opened(tmp_path / "s", create=True) as store, pytest.raises(errors.StoreError):
        store.settle(plan_over(log.journal, items))


def test_a_plan_without_a_journal_is_refused(tmp_path):
    with opened(tmp_path / "s", create=True) as store, pytest.raises(ValueError, match="journal"):
        store.settle(SettlePlan([(1, 1, 0)]))


def test_another_record_in_its_place_is_damage(tmp_path):
    log = Log()
    log.add(block([1, 2], 1, 2))
    log.lsns[1, 2] = log.lsns[2, 2]
    with opened(tmp_path / "s", create=True) as store:
        with pytest.raises(errors.Damaged, match="group 1 instance 2 is not what stands"):
            store.settle(log.plan())
        log.add([(1, 2, b"")], kind=1)  # a promise
        with pytest.raises(errors.Damaged, match="group 1 instance 2 is not what stands"):
            store.settle(log.plan())
        log.lsns[1, 2] = log.journal.next_lsn + 1000
        with pytest.raises(errors.StoreError, match="group 1 instance 2 cannot be read"):
            store.settle(log.plan())
        assert store.settled() == {}


def test_positions_in_any_order(tmp_path):
    """Carry-over writes old instances again, behind newer ones; the plan takes many passes."""
    log = Log(segment_bytes=64 * KIB, body_bytes_max=4 * KIB)
    entries = block(range(5), 1, 300, 200)
    log.add(entries)
    log.add(entries[::7])
    log.add(entries[400:100:-3])
    with opened(tmp_path / "s", create=True, pass_bytes=20_000, commit_bytes=100_000) as store:
        stats = store.settle(log.plan())
        assert stats.entries == 1500
        assert stats.commits > 3
        for group in range(5):
            assert read_all(store, group) == [(i, body_of(group, i, 200)) for i in range(1, 301)]
        rows = store._index.rows()
    with opened(tmp_path / "s") as store:
        assert store._index.rows() == rows
        assert store.verify() == 1500


def test_a_sparse_plan_reads_what_it_wants_only(tmp_path):
    log = Log(body_bytes_max=256 * KIB)
    entries = [(1, instance, body_of(1, instance, 20)) for instance in range(1, 11)]
    for entry in entries:
        log.add([entry])
        log.add([(2, entry[1], bytes(200 * KIB))])
    with opened(tmp_path / "s", create=True) as store:
        stats = store.settle(log.plan(key for key in log.lsns if key[0] == 1))
        assert read_all(store, 1) == [entry[1:] for entry in entries]
        assert stats.read_bytes < 2000
        assert stats.reads == 11  # the first one twice: how large are they?


@pytest.mark.parametrize("nbytes", [20, 8 * KIB, 30 * KIB, 200 * KIB])
def test_a_dense_plan_is_read_in_large_pieces(tmp_path, nbytes):
    """However large the entries are: it depends on how much lies between them."""
    log = Log(body_bytes_max=256 * KIB)
    log.add(block(range(3), 1, 50, nbytes))
    with opened(tmp_path / "s", create=True) as store:
        stats = store.settle(log.plan())
        assert stats.entries == 150
        assert stats.reads <= 3 + 2 * stats.read_bytes // log.segment_bytes < 100


def test_chunks_have_the_size_that_fits(tmp_path):
    log = Log()
    with opened(tmp_path / "s", create=True) as store:
        log.add(block([1], 1, 10))
        store.settle(log.plan())
        assert chunk_sizes(store) == [SMALL]
        log.add(block([1], 11, 110, 4 * KIB))
        store.settle(log.plan())
        assert chunk_sizes(store) == [SMALL, MIDDLE]
        log.add(block([1], 111, 160, 200 * KIB))
        store.settle(log.plan())
        assert chunk_sizes(store) == [SMALL, MIDDLE, LARGE, *[MIDDLE] * 5]
        assert [i for i, _ in read_all(store, 1)] == list(range(1, 161))
        page = store._page_bytes
        assert store._env.stat()["psize"] == page
        with store._env.begin() as txn:
            pages = txn.stat(store._chunks)["overflow_pages"]
        assert pages * page == sum(size + 16 for size in chunk_sizes(store))


def test_a_value_larger_than_every_class(tmp_path):
    log = Log(segment_bytes=16 * MIB, body_bytes_max=9 * MIB)
    log.add([(1, 1, body_of(1, 1)), (1, 2, b"\xa5" * (9 * MIB)), (1, 3, body_of(1, 3))])
    with opened(tmp_path / "s", create=True, map_bytes=MIB, commit_bytes=MIB) as store:
        store.settle(log.plan())
        assert store.entry(1, 2) == b"\xa5" * (9 * MIB)
        assert store.entry(1, 3) == body_of(1, 3)
        assert max(chunk_sizes(store)) == 16 * MIB - 16


class Model:
    """What a store should hold, beside one, through random plans, merges and restarts."""

    def __init__(self, path):
        self.path = path
        self.log = Log()
        self.bodies = {}
        self.through = {}
        self.store = Store.open(
            path,
            cluster=CLUSTER,
            node=NODE,
            create=True,
            pass_bytes=8 * KIB,
            commit_bytes=128 * KIB,
        )

    def settle(self, counts, size):
        wanted = []
        for group, count in counts.items():
            first = self.through.get(group, 0) + 1
            wanted += [(group, i) for i in range(first, first + count)]
        fresh = [(*key, body_of(*key, size)) for key in sorted(wanted, key=lambda key: key[::-1])]
        self.log.add(fresh)
        self.bodies |= {entry[:2]: entry[2] for entry in fresh}
        self.store.settle(self.log.plan(wanted))
        for group, instance in sorted(wanted):
            self.through[group] = instance

    def reopen(self):
        rows, chunks = self.store._index.rows(), self.store._index.chunk_list()
        self.store.close()
        self.store = Store.open(self.path, cluster=CLUSTER, node=NODE)
        assert self.store._index.rows() == rows
        assert self.store._index.chunk_list() == chunks

    def check(self):
        assert self.store.settled() == self.through
        assert self.store.verify() == len(self.bodies)
        for group in self.through:
            assert read_all(self.store, group, step=1000) == [
                (i, self.bodies[group, i]) for i in range(1, self.through[group] + 1)
            ]


steps = st.lists(
    st.one_of(
        st.tuples(
            st.dictionaries(st.integers(0, 5), st.integers(1, 40), min_size=1, max_size=6),
            st.sampled_from([0, 9, 200, 3000]),
        ),
        st.sampled_from(["merge", "reopen"]),
    ),
    max_size=20,
)


@settings(max_examples=30)
@given(steps)
def test_any_history(steps):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model = Model(os.path.join(folder, "s"))
        try:
            for step in steps:
                if step == "merge":
                    model.store.merge()
                elif step == "reopen":
                    model.reopen()
                else:
                    model.settle(*step)
            model.check()
            model.reopen()
            while model.store.merge():
                pass
            model.check()
        finally:
            model.store.close()


# --- growth


def test_the_map_grows_from_one_mebibyte(tmp_path):
    """100 MiB into a map of 1 MiB, with readers all the while."""
    log = Log(segment_bytes=16 * MIB, body_bytes_max=256 * KIB)
    stop = threading.Event()

    def large(group, instance):
        return body_of(group, instance, 100) * KIB

    trouble = []
    reads = [0]

    def reader(store):
        while not stop.is_set():
            for group, through in store.settled().items():
                instance = 1 + reads[0] % through
                if store.entry(group, instance) != large(group, instance):
                    trouble.append((group, instance))
                reads[0] += 1

    with opened(tmp_path / "s", create=True, map_bytes=MIB, commit_bytes=4 * MIB) as store:
        assert store.stats().map_bytes == MIB
        threads = [threading.Thread(target=reader, args=(store,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for first in range(1, 260, 26):
                log.add(
                    (group, instance, large(group, instance))
                    for instance in range(first, first + 26)
                    for group in range(4)
                )
                store.settle(log.plan())
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert not trouble
        assert reads[0] > 0
        assert store.stats().map_bytes > store.stats().file_bytes > 100 * MIB
        assert store.verify() == 1040
    with opened(tmp_path / "s", map_bytes=MIB) as store:
        assert store.settled() == dict.fromkeys(range(4), 260)


def test_a_map_that_is_full_after_all_grows_too(tmp_path, monkeypatch):
    """Even if the room needed was reckoned wrongly, nothing is lost and nothing is there twice."""
    log = Log()
    log.add(block(range(4), 1, 100, 20 * KIB))
    grown = []
    make_room = Store._make_room

    def stingy(self, value_bytes):
        if value_bytes == self._map_bytes:  # asked for because the map was full
            grown.append(value_bytes)
            make_room(self, value_bytes)

    monkeypatch.setattr(Store, "_make_room", stingy)
    with opened(tmp_path / "s", create=True, map_bytes=MIB, commit_bytes=2 * MIB) as store:
        stats = store.settle(log.plan())
        assert grown
        assert store.settled() == dict.fromkeys(range(4), 100)
        assert store.verify() == 400
        assert stats.entries + stats.skipped == 400


# --- merging


def test_small_chunks_are_merged(tmp_path):
    log = Log()
    with opened(tmp_path / "s", create=True) as store:
        assert not store.merge()
        for n in range(1, 101):
            log.add(block(range(3), n, n))
            store.settle(log.plan((group, n) for group in range(3)))
        before = store.stats()
        assert before.chunks == before.small_chunks == 100
        steps = 0
        while store.merge():
            steps += 1
        after = store.stats()
        assert 2 < steps < 20
        assert after.chunks < 16
        assert (after.entries, after.groups) == (300, 3)
        assert after.index_rows < before.index_rows
        for group in range(3):
            assert read_all(store, group) == [(i, body_of(group, i)) for i in range(1, 101)]
        rows = store._index.rows()
        assert store.verify() == 300
    with opened(tmp_path / "s") as store:
        assert store._index.rows() == rows


def test_merging_fills_the_next_class(tmp_path):
    log = Log()
    with opened(tmp_path / "s", create=True) as store:
        for n in range(10):
            log.add(block([1], 10 * n + 1, 10 * n + 10, 5 * KIB))
            store.settle(log.plan())
        assert chunk_sizes(store) == [SMALL] * 10
        assert store.merge()
        assert chunk_sizes(store) == [SMALL, MIDDLE]
        assert not store.merge()
        assert read_all(store, 1) == [(i, body_of(1, i, 5 * KIB)) for i in range(1, 101)]


def test_readers_do_not_notice_merges(tmp_path):
    log = Log()
    stop = threading.Event()
    trouble = []

    def reader(store):
        while not stop.is_set():
            through = store.settled().get(1, 0)
            found = read_all(store, 1)
            if [i for i, _ in found][:through] != list(range(1, through + 1)):
                trouble.append(through)

    with opened(tmp_path / "s", create=True) as store:
        threads = [threading.Thread(target=reader, args=(store,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for n in range(1, 201):
                log.add(block([1], n, n))
                store.settle(log.plan([(1, n)]))
                store.merge()
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert not trouble
        assert store.stats().merges > 5


def test_freed_pages_are_used_again(tmp_path):
    log = Log()
    with opened(tmp_path / "s", create=True) as store:
        sizes = []
        for n in range(1, 250):
            log.add(block([1], n, n))
            store.settle(log.plan([(1, n)]))
            store.merge()
            sizes.append(store.stats().file_bytes)
        assert sizes[-1] < sizes[40] * 1.5


# --- threads, the end


def test_a_second_writer_is_refused(tmp_path):
    log = Log()
    log.add(block([1], 1, 10))
    with opened(tmp_path / "s", create=True) as store:
        assert in_thread(lambda: store.settle(log.plan([(1, 1)]))).entries == 1
        with pytest.raises(errors.StoreError, match="only one thread may write"):
            store.settle(log.plan())
        with pytest.raises(errors.StoreError, match="only one thread may write"):
            store.merge()
        assert store.entry(1, 1) == body_of(1, 1)  # reading is for all


def test_after_close_everything_is_refused(tmp_path):
    with opened(tmp_path / "s", create=True) as store:
        pass
    store.close()
    for call in (
        store.settled,
        store.merge,
        store.stats,
        store.verify,
        lambda: store.read(1, 1, 1),
        lambda: store.settle(SettlePlan()),
    ):
        with pytest.raises(errors.Closed):
            call()


def test_close_waits_for_readers(tmp_path):
    log = Log()
    log.add(block([1], 1, 100))
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan())
        outcomes = []

        def reader():
            try:
                while True:
                    assert len(read_all(store, 1)) == 100
            except errors.Closed:
                outcomes.append("closed")
            except BaseException as error:
                outcomes.append(error)

        threads = [threading.Thread(target=reader) for _ in range(3)]
        for thread in threads:
            thread.start()
        store.close()
        for thread in threads:
            thread.join(30)
        assert outcomes == ["closed"] * 3


def test_a_forked_child_is_told_and_does_not_unlock(tmp_path):
    with opened(tmp_path / "s", create=True) as store:
        child = os.fork()
        if child == 0:
            try:
                store.abandon()
                store.settled()
            except errors.ForkedError:
                os._exit(7)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        with pytest.raises(errors.Locked):
            Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE)
        assert store.settled() == {}


def test_the_highest_settled_instance_is_found_without_a_read(tmp_path, monkeypatch):
    """However many entries there are: it stands in memory from the opening on."""

    class Closed:
        """An environment that nothing may be asked of."""

        def __getattr__(self, name):
            raise AssertionError(f"the lookup asks the files: {name}")

    log = Log()
    with opened(tmp_path / "s", create=True) as store:
        log.add((group, at, body_of(group, at)) for group in (1, 7) for at in range(1, 2001))
        store.settle(log.plan())
    with opened(tmp_path / "s") as store:
        with monkeypatch.context() as patch:
            patch.setattr(store, "_env", Closed())
            assert store.bounds(1) == store.bounds(7) == (1, 2000)
            assert store.bounds(3) == (1, 0)
            assert store.settled() == {1: 2000, 7: 2000}
            with pytest.raises(AssertionError, match="asks the files"):
                store.read(1, 1, 4096, 5)
        assert read_all(store, 1)
