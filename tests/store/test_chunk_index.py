"""The index in memory: rebuilt from packed indexes, suspicious of them, all or nothing."""

import pytest

from phx._core.chunk import ChunkDamage, build_chunk, chunk_rows
from phx._core.chunk_index import ChunkIndex

SID = b"s" * 16


def tail(chunk, entries, sid=SID):
    value, _ = build_chunk(chunk, 65536, sid, entries)
    return value[len(value) - 64 - 32 * len(chunk_rows(chunk, value, sid)) :]


def stretch(group, first, last, size=10):
    return [(group, instance, bytes(size)) for instance in range(first, last + 1)]


def index_of(*chunks, groups):
    index = ChunkIndex(SID)
    for chunk, entries in enumerate(chunks, 1):
        index.load(chunk, tail(chunk, entries))
    index.seal(groups)
    return index


def groups_of(*rows):
    """The table of groups as chunk_index.pxd has it."""
    import struct

    from phx._core.codec import crc32c

    body = struct.pack("<IQ", 1, len(rows)) + b"".join(
        struct.pack("<IIQQ", group, 0, kept, through) for group, kept, through in rows
    )
    return struct.pack("<I", crc32c(body)) + body


def test_a_lookup_finds_chunk_and_row():
    index = index_of(
        stretch(1, 1, 5) + stretch(4, 1, 2000),
        stretch(1, 6, 9),
        stretch(4, 2001, 2001),
        groups=groups_of((1, 1, 9), (4, 1, 2001)),
    )
    assert index.settled() == {1: 9, 4: 2001}
    assert [index.find(1, i) for i in (0, 1, 5, 6, 9, 10)] == [
        None,
        (1, 0),
        (1, 0),
        (2, 0),
        (2, 0),
        None,
    ]
    assert index.find(4, 2000) == (1, 1)
    assert index.find(4, 2001) == (3, 0)
    assert index.find(2, 1) is None
    assert index.bounds(4) == (1, 2001)
    assert index.bounds(2) == (1, 0)
    assert index.row_count() == 4
    assert index.next_id == 4


def test_what_merging_left_in_another_order_is_put_right():
    index = index_of(
        stretch(1, 21, 30),
        stretch(1, 1, 10) + stretch(2, 1, 1),
        stretch(1, 11, 20),
        groups=groups_of((1, 1, 30), (2, 1, 1)),
    )
    assert [index.find(1, i) for i in (10, 11, 20, 21)] == [(2, 0), (3, 0), (3, 0), (1, 0)]


@pytest.mark.parametrize(
    ("chunks", "groups", "where"),
    [
        ([stretch(1, 1, 5), stretch(1, 7, 9)], [(1, 1, 9)], (2, 1, 7)),  # a hole
        ([stretch(1, 1, 5), stretch(1, 5, 9)], [(1, 1, 9)], (2, 1, 5)),  # twice
        ([stretch(1, 2, 5)], [(1, 1, 5)], (1, 1, 2)),  # the beginning is missing
        ([stretch(1, 1, 5)], [(1, 1, 6)], (0, 1, 6)),  # the end is missing
        ([stretch(1, 1, 5)], [(1, 1, 4)], (0, 1, 6)),  # more than was settled
        ([stretch(1, 1, 5)], [], (1, 1, 1)),  # a group nobody knows
        ([], [(1, 1, 4)], (0, 1, 1)),  # everything is missing
    ],
)
def test_chunks_that_do_not_fit_together_are_refused(chunks, groups, where):
    with pytest.raises(ChunkDamage) as caught:
        index_of(*chunks, groups=groups_of(*groups))
    assert (caught.value.chunk, caught.value.group, caught.value.instance) == where


@pytest.mark.parametrize(
    ("kept_from", "through", "places", "kept"),
    [
        (1, 30, {1: 1, 10: 1, 11: 2, 20: 2, 21: 3, 30: 3}, [10, 10, 10]),
        (10, 30, {9: None, 10: 1, 11: 2}, [1, 10, 10]),
        (11, 30, {10: None, 11: 2, 20: 2, 21: 3}, [0, 10, 10]),
        (15, 30, {11: None, 14: None, 15: 2, 20: 2, 21: 3}, [0, 6, 10]),
        (30, 30, {29: None, 30: 3}, [0, 0, 1]),
        (31, 30, {30: None, 31: None}, [0, 0, 0]),
        (41, 40, {30: None, 40: None}, [0, 0, 0]),  # settled without a copy
    ],
)
def test_what_lies_below_the_floor_is_no_gap(kept_from, through, places, kept):
    chunks = (stretch(1, 1, 10), stretch(1, 11, 20), stretch(1, 21, 30))
    table = groups_of((1, kept_from, through))
    index = index_of(*chunks, groups=table)
    found = {instance: index.find(1, instance) for instance in places}
    assert {instance: place and place[0] for instance, place in found.items()} == places
    assert index.bounds(1) == (kept_from, through)
    assert index.floors() == {1: (kept_from, through)}
    assert [chunk[4] for chunk in index.chunk_list()] == kept
    assert index.dead_chunks(9) == [n for n, count in enumerate(kept, 1) if not count]
    assert index.groups_packed() == table
    # The same by raising a floor.
    raised = index_of(*chunks, groups=groups_of((1, 1, 30)))
    assert raised.stage_floor(1, kept_from, kept_from - 1) == (kept_from > 1)
    assert raised.groups_packed() == table
    assert raised.bounds(1) == (1, 30)
    raised.rollback()
    assert raised.groups_packed() == groups_of((1, 1, 30))
    raised.stage_floor(1, kept_from, kept_from - 1)
    raised.commit()
    assert raised.rows() == index.rows()
    assert [chunk[:5] for chunk in raised.chunk_list()] == [c[:5] for c in index.chunk_list()]
    assert raised.groups_packed() == table


@pytest.mark.parametrize(
    ("chunks", "groups", "where"),
    [
        ([stretch(1, 8, 15), stretch(1, 17, 20)], [(1, 10, 20)], (1, 17)),  # a hole above
        ([stretch(1, 8, 15), stretch(1, 9, 20)], [(1, 10, 20)], (1, 9)),  # twice
        ([stretch(1, 1, 5), stretch(1, 11, 20)], [(1, 10, 20)], (1, 11)),  # the floor itself
        ([stretch(1, 1, 5)], [(1, 4, 8)], (1, 6)),  # the end
        ([stretch(1, 1, 5)], [(1, 4, 3)], (1, 6)),  # more than is settled
        ([stretch(1, 1, 5), stretch(2, 1, 2)], [(1, 6, 5)], (2, 1)),  # a group nobody knows
    ],
)
def test_at_and_above_the_floor_a_gap_is_damage(chunks, groups, where):
    with pytest.raises(ChunkDamage) as caught:
        index_of(*chunks, groups=groups_of(*groups))
    assert (caught.value.group, caught.value.instance) == where


def test_how_much_of_the_log_fits_in_so_many_bytes():
    """Entries of 100 bytes take 120 in a chunk, and a stretch its row of 32 besides."""
    chunks = [stretch(1, 1, 100, 100), stretch(1, 101, 200, 100) + stretch(2, 1, 9)]
    index = index_of(*chunks, groups=groups_of((1, 1, 200), (2, 1, 9)))

    def fits(through, count):
        return through + 1 - index.first_within(1, through, count)

    assert fits(200, 0) == fits(200, 100) == 0
    assert fits(150, 0) == 0
    for through in (30, 100, 101, 150, 200):
        for count in (1, 7, 29):
            assert count - 1 <= fits(through, count * 121) <= count
        assert fits(through, 1 << 40) == through
    assert 140 <= fits(200, 150 * 121) <= 150  # over both chunks
    # What is not settled takes nothing; what is not kept is not counted.
    assert index.first_within(1, 230, 121 * 10) == 191
    index.stage_floor(1, 151, 150)
    index.commit()
    assert index.first_within(1, 200, 1 << 40) == 151
    assert 29 <= fits(200, 30 * 121) <= 30
    assert index.first_within(1, 140, 1 << 40) == 141
    assert index.first_within(3, 140, 1 << 40) == 141
    index.stage_floor(1, 201, 200)
    index.commit()
    assert index.first_within(1, 200, 1 << 40) == 201


def test_only_dead_chunks_can_be_dropped():
    index = index_of(stretch(1, 1, 5), stretch(1, 6, 9), groups=groups_of((1, 5, 9)))
    with pytest.raises(ValueError, match="chunk 1 is not there, or is not dead"):
        index.stage_drops([1])
    with pytest.raises(ValueError, match="chunk 3"):
        index.stage_drops([3])
    index.rollback()
    index.stage_floor(1, 6, 5)
    index.commit()
    index.stage_drops([1])
    index.rollback()
    assert len(index.chunk_list()) == 2
    index.stage_drops([1])
    index.commit()
    assert [chunk[0] for chunk in index.chunk_list()] == [2]
    assert index.find(1, 9) == (2, 0)


def test_every_flipped_byte_of_an_index_is_found():
    good = tail(1, stretch(1, 1, 5) + stretch(2, 1, 5))
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 0x20
        with pytest.raises(ChunkDamage):
            ChunkIndex(SID).load(1, bytes(bad))
    for bad in (b"", good[8:], bytes(8) + good, good[:-1]):
        with pytest.raises(ChunkDamage):
            ChunkIndex(SID).load(1, bad)
    with pytest.raises(ChunkDamage):
        ChunkIndex(b"t" * 16).load(1, good)
    with pytest.raises(ChunkDamage):
        ChunkIndex(SID).load(2, good)


def test_every_flipped_byte_of_the_table_of_groups_is_found():
    good = groups_of((1, 1, 5), (7, 1, 2))
    chunks = [stretch(1, 1, 5) + stretch(7, 1, 2)]
    assert index_of(*chunks, groups=good).groups_packed() == good
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1
        with pytest.raises(ChunkDamage):
            index_of(*chunks, groups=bytes(bad))
    for bad in (
        b"",
        good[:-24],
        good[:8],
        groups_of((7, 1, 2), (1, 1, 5)),
        groups_of((1, 0, 5), (7, 1, 2)),
        groups_of((1, 1, 5), (7, 4, 2)),
    ):
        with pytest.raises(ChunkDamage):
            index_of(*chunks, groups=bad)


def test_few_small_chunks_are_left_alone():
    many = [stretch(1, n, n) for n in range(1, 17)]
    groups = groups_of((1, 1, 16))
    index = ChunkIndex(SID)
    for chunk, entries in enumerate(many, 1):
        value, _ = build_chunk(chunk, 65520, SID, entries)
        index.load(chunk, value[-96:])
    index.seal(groups)
    assert index.mergeable(17) == []
    assert index.mergeable(16) == list(range(1, 17))
