"""Holes: found, noted, never served; and the chunk they lie in is written anew."""

import os
import shutil

import pytest
from store_lab import (
    KIB,
    Log,
    block,
    body_of,
    entries_of,
    flip,
    opened,
    read_all,
    settled,
    settled_singly,
)

from phx import errors
from phx._core.chunk import ChunkDamage, build_chunk, chunk_rows, verify_chunk
from phx._core.chunk_index import ChunkIndex
from phx._core.codec import crc32c
from phx._core.settler import plan_over
from phx.store import Floor, Store
from phx.store_mend import Hole, Holes, look_into, own_tail, patched

pytestmark = pytest.mark.usefixtures("no_leaks")

STORE_ID = bytes(range(16))


def bodies_of(holes):
    return {
        (hole.group, instance): body_of(hole.group, instance)
        for hole in holes
        for instance in range(hole.first, hole.last + 1)
    }


def test_a_hole_is_not_served_and_all_else_is(tmp_path):
    log = settled(tmp_path / "s")
    flip(tmp_path / "s", body_of(2, 17), 60)
    with opened(tmp_path / "s") as store:
        told = []
        store.on_damage = told.append
        with pytest.raises(errors.Damaged, match="chunk 1, group 2 instance 17"):
            store.read(2, 10, 1 << 20)
        assert told == [1]
        ailing, value_bytes = store.check(1)
        assert ailing.holes == [Hole(2, 17, 17)]
        assert value_bytes == 64 * KIB - 16
        store.note(ailing)
    for _ in range(2):  # the second time it was read from the disk
        with opened(tmp_path / "s") as store:
            told = []
            store.on_damage = told.append
            assert store.holes() == [Hole(2, 17, 17)]
            assert store.damaged() == [1]
            assert [i for i, _ in entries_of(store.read(2, 1, 1 << 20))] == list(range(1, 17))
            assert [i for i, _ in read_all(store, 2, 18)][:33] == list(range(18, 51))
            assert not store.is_hole(2, 16)
            assert store.is_hole(2, 17)
            with pytest.raises(errors.Damaged, match="group 2 instance 17 is damaged"):
                store.read(2, 17, 1 << 20)
            assert len(read_all(store, 1)) == store.settled()[1]
            assert told == []  # nobody asked the disk for it
            log.add(block([1, 2], store.settled()[1] + 1, store.settled()[1] + 1))
            store.settle(log.plan())  # and settling goes on


def test_a_chunk_is_mended_in_one_transaction(tmp_path):
    settled(tmp_path / "s")
    flip(tmp_path / "s", body_of(2, 17), 60)
    flip(tmp_path / "s", body_of(1, 50), 0)
    with opened(tmp_path / "s") as store:
        ailing, _ = store.check(1)
        store.note(ailing)
        assert store.holes() == [Hole(1, 50, 50), Hole(2, 17, 17)]
        with pytest.raises(errors.Damaged, match="group 2 instance 17"):
            store.mend(1, {(1, 50): body_of(1, 50)})
        assert store.holes() == [Hole(1, 50, 50), Hole(2, 17, 17)]  # nothing was changed
        commits = store.stats().commits
        store.mend(1, bodies_of(store.holes()))
        assert store.stats().commits == commits + 1
        assert (store.holes(), store.damaged()) == ([], [])
        store.mend(1, {})  # and again: nothing
    with opened(tmp_path / "s") as store:
        for group in (1, 2):
            assert read_all(store, group) == [(i, body_of(group, i)) for i in range(1, 51)]
        assert store.verify() == 100
        assert (store.holes(), store.damaged()) == ([], [])


def test_holes_go_with_what_is_trimmed(tmp_path):
    settled(tmp_path / "s")
    for instance in (17, 30):
        flip(tmp_path / "s", body_of(2, instance), 60)
    with opened(tmp_path / "s") as store:
        ailing, _ = store.check(1)
        store.note(ailing)
        store.raise_floors({2: Floor(20, 19)})
        assert store.holes() == [Hole(2, 30, 30)]
    with opened(tmp_path / "s") as store:
        assert store.holes() == [Hole(2, 30, 30)]
        store.mend(1, bodies_of(store.holes()))  # what is below the floor is not needed for it
        assert [i for i, _ in read_all(store, 2, 20)] == list(range(20, 51))
        assert len(read_all(store, 1)) == 50


def test_a_chunk_of_which_nothing_is_kept_any_more_is_left_to_be_trimmed(tmp_path):
    settled(tmp_path / "s")
    flip(tmp_path / "s", body_of(2, 17), 60)
    with opened(tmp_path / "s") as store:
        ailing, _ = store.check(1)
        store.note(ailing)
        bodies = bodies_of(store.holes())
        store.raise_floors({1: Floor(51, 50), 2: Floor(51, 50)})  # while they were fetched
        store.mend(1, bodies)
        assert store.holes() == []
        while store.trim():
            pass
        assert (store.chunks(), store.damaged()) == ([], [])


def test_a_damaged_chunk_is_neither_merged_nor_joined(tmp_path):
    settled_singly(tmp_path / "s", 20)
    flip(tmp_path / "s", body_of(1, 5))
    with opened(tmp_path / "s") as store:
        with pytest.raises(errors.Damaged, match="chunk 5, group 1 instance 5"):
            store.merge()
        ailing, _ = store.check(5)
        store.note(ailing)
        while store.merge():
            pass
        assert [chunk for chunk in store.chunks() if chunk <= 20] == [5, 18, 19, 20]
        assert entries_of(store.read(1, 6, 1)) == [(6, body_of(1, 6))]
        with pytest.raises(errors.Damaged):
            store.read(1, 5, 1)
        store.mend(5, bodies_of(store.holes()))
        assert len(read_all(store, 1)) == 20


def test_a_damaged_index_is_taken_from_its_chunk_and_the_other_way_round(tmp_path):
    settled(tmp_path / "s")
    with opened(tmp_path / "s") as store, store._env.begin() as txn:
        tail = txn.get((1).to_bytes(8, "big"), db=store._indexes)
    content = (tmp_path / "s" / "data.mdb").read_bytes()
    places = {content.index(tail), content.rindex(tail)}
    assert len(places) == 2
    for where in places:
        for at in (0, len(tail) - 60, len(tail) - 1):  # a row, the magic, the id of the store
            shutil.copytree(tmp_path / "s", tmp_path / "bad")
            bad = bytearray(content)
            bad[where + at] ^= 4
            (tmp_path / "bad" / "data.mdb").write_bytes(bad)
            with opened(tmp_path / "bad") as store:
                ailing, _ = store.check(1)
                assert ailing.holes == []
                store.note(ailing)
                store.mend(1, {})
                assert store.damaged() == []
            with opened(tmp_path / "bad") as store:
                assert store.verify() == 100
            shutil.rmtree(tmp_path / "bad")


def test_a_table_of_holes_that_is_damaged_says_nothing(tmp_path):
    holes = Holes([Hole(2, 17, 17), Hole(1, 5, 9)])
    packed = holes.packed()
    assert Holes.unpack(packed).all() == [Hole(1, 5, 9), Hole(2, 17, 17)]
    for at in range(len(packed)):
        assert not Holes.unpack(packed[:at])
        for bit in range(8):
            bad = bytearray(packed)
            bad[at] ^= 1 << bit
            assert not Holes.unpack(bytes(bad))
    assert not Holes.unpack(None)


def test_the_next_hole():
    holes = Holes([Hole(1, 5, 9), Hole(1, 20, 20), Hole(3, 2, 2)])
    assert holes.next(1, 1) == holes.next(1, 5) == holes.next(1, 9) == Hole(1, 5, 9)
    assert holes.next(1, 10) == holes.next(1, 20) == Hole(1, 20, 20)
    assert holes.next(1, 21) is holes.next(2, 1) is holes.next(3, 3) is None
    assert holes.next(0, 1) is None
    assert holes.above({1: 8}).all() == [Hole(1, 8, 9), Hole(1, 20, 20), Hole(3, 2, 2)]


def test_what_the_journal_cannot_give_is_taken_from_whoever_gives_it(tmp_path):
    log = Log()
    log.add(block([1, 2], 1, 20))
    good = [(*key, lsn) for key, lsn in sorted(log.lsns.items())]
    bad = [
        (group, instance, log.lsns[1, 1] if (group, instance) == (2, 7) else lsn)
        for group, instance, lsn in good
    ]
    with opened(tmp_path / "s", create=True) as store:
        told = []
        store.on_unreadable = lambda group, instance: told.append((group, instance))
        for _ in range(2):
            with pytest.raises(errors.Damaged, match="group 2 instance 7"):
                store.settle(plan_over(log.journal, bad))
        assert told == [(2, 7), (2, 7)]
        assert store.settled() == {}
        store.give(2, 7, body_of(2, 7))
        store.give(2, 8, b"not asked for")
        store.settle(plan_over(log.journal, bad))
        assert store.settled() == {1: 20, 2: 20}
        assert read_all(store, 2) == [(i, body_of(2, i)) for i in range(1, 21)]
        assert store.verify() == 40
        assert store._given == {}


# --- every byte of a chunk


def index_of(chunk: int, value: bytes, kept: dict[int, int]) -> ChunkIndex:
    index = ChunkIndex(STORE_ID)
    ends: dict[int, int] = {}
    for group, first, count, _, _ in chunk_rows(chunk, value, STORE_ID):
        ends[group] = first + count - 1
    made = ChunkIndex(STORE_ID)
    for group, last in ends.items():
        made.stage_floor(group, last + 1, last)
    groups = bytearray(made.groups_packed())
    for at, group in enumerate(sorted(ends)):
        groups[16 + 24 * at + 8 : 16 + 24 * at + 16] = kept.get(group, 1).to_bytes(8, "little")
    groups[:4] = crc_of(groups[4:])
    index.load(chunk, own_tail(value))
    index.seal(bytes(groups))
    return index


def crc_of(data: bytes) -> bytes:
    return crc32c(bytes(data)).to_bytes(4, "little")


ENTRIES = [
    (group, instance, body_of(group, instance, size))
    for group, sizes in ((1, (0, 5, 40)), (7, (3, 16, 8, 1)))
    for instance, size in enumerate(sizes, 1)
]


@pytest.mark.parametrize("kept", [{}, {7: 3}])
def test_each_byte_of_a_chunk_may_be_damaged(kept):
    """It is found, and with the right bodies in the holes all that is kept is there again."""
    value, taken = build_chunk(9, 900, STORE_ID, ENTRIES)
    assert taken == len(ENTRIES)
    index = index_of(9, value, kept)
    wanted = [one for one in ENTRIES if one[1] >= kept.get(one[0], 1)]
    bodies = {(group, instance): body for group, instance, body in ENTRIES}
    spans = 0
    for at in range(len(value)):
        bad = bytearray(value)
        bad[at] ^= 1 << at % 8
        ailing = look_into(STORE_ID, index.bounds, 9, bytes(bad), own_tail(value))
        assert ailing is not None, at
        holes = {
            (hole.group, instance): bodies[hole.group, instance]
            for hole in ailing.holes
            for instance in range(hole.first, hole.last + 1)
        }
        spans += len(holes) > 1
        assert all(instance >= kept.get(group, 1) for group, instance in holes)
        merger, (number, made, _) = patched(index, 9, bytes(bad), own_tail(value), holes)
        made = bytes(made)
        del merger
        assert verify_chunk(number, made, STORE_ID) == len(wanted)
        assert body_list(number, made) == wanted, at
        if holes:  # and without them nothing is made
            with pytest.raises(ChunkDamage):
                patched(index, 9, bytes(bad), own_tail(value), {})
    assert spans > 0, "no damaged header hid what is behind it"


def body_list(chunk, value):
    return [
        (group, instance, body)
        for group, _, _, offset, size in chunk_rows(chunk, value, STORE_ID)
        for instance, body in entries_of_raw(value[offset : offset + size])
    ]


def entries_of_raw(data):
    at = 0
    while at < len(data):
        instance = int.from_bytes(data[at : at + 8], "little")
        size = int.from_bytes(data[at + 8 : at + 12], "little")
        yield instance, data[at + 16 : at + 16 + size]
        at += 16 + size + -size % 8


def test_a_mending_that_is_cut_short_changes_nothing(tmp_path, monkeypatch):
    settled(tmp_path / "s")
    flip(tmp_path / "s", body_of(2, 17), 60)
    for name in ("_put_chunk", "_delete_chunks"):
        with opened(tmp_path / "s") as store:
            ailing, _ = store.check(1)
            store.note(ailing)
            with monkeypatch.context() as patch:
                patch.setattr(Store, name, lambda *_: os.close(-1))
                with pytest.raises(errors.StoreError):
                    store.mend(1, bodies_of(ailing.holes))
        with opened(tmp_path / "s") as store:
            assert store.holes() == ailing.holes
            assert store.settled() == {1: 50, 2: 50}
