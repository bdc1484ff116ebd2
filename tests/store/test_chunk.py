"""Chunks: what goes in comes out, sizes are exact, and not one byte may change unseen."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_lab import KIB, LARGE, MIB, MIDDLE, SMALL, entries_of

from phx._core.chunk import (
    CLASS_BYTES,
    PAGE_HEADER_BYTES,
    ChunkDamage,
    Gather,
    build_chunk,
    chunk_rows,
    value_bytes,
    verify_chunk,
)

SID = bytes(range(16))
EVERYTHING = (1 << 64) - 1


@st.composite
def runs(draw):
    """Entries in order: some groups, each with some stretches of consecutive instances."""
    entries = []
    groups = draw(st.lists(st.integers(0, (1 << 20) - 1), min_size=1, max_size=4, unique=True))
    for group in sorted(groups):
        at = 1
        for _ in range(draw(st.integers(1, 3))):
            at += draw(st.integers(0, 1 << 40))
            for body in draw(st.lists(st.binary(max_size=200), min_size=1, max_size=20)):
                entries.append((group, at, body))
                at += 1
    return entries


def gather(value, group, first, last=EVERYTHING, bytes_max=1 << 40, row=0, chunk=9):
    found = Gather(SID, group, first, last, bytes_max)
    found.add(chunk, value, row)
    return entries_of(found.take())


@given(runs())
def test_every_entry_comes_out_as_it_went_in(entries):
    value, taken = build_chunk(9, SMALL, SID, entries)
    assert taken == len(entries) == verify_chunk(9, value, SID)
    for group, instance, body in entries:
        assert gather(value, group, instance, instance) == [(instance, body)]


@given(runs(), st.integers(0, 2000), st.data())
def test_a_read_is_consecutive_and_within_its_limits(entries, bytes_max, data):
    value, _ = build_chunk(9, SMALL, SID, entries)
    group, first, _ = data.draw(st.sampled_from(entries))
    last = first + data.draw(st.integers(0, 30))
    bodies = {(g, i): body for g, i, body in entries}
    expected, size = [], 0
    for instance in itertools.count(first):
        body = bodies.get((group, instance))
        if body is None or instance > last:
            break
        size += 16 + len(body) + -len(body) % 8
        if expected and size > bytes_max:
            break
        expected.append((instance, body))
    assert gather(value, group, first, last, bytes_max) == expected


@given(runs())
def test_rows_tell_where_everything_is(entries):
    value, _ = build_chunk(9, SMALL, SID, entries)
    rows = chunk_rows(9, value, SID)
    listed = [(group, first + n) for group, first, count, _, _ in rows for n in range(count)]
    assert listed == [(group, instance) for group, instance, _ in entries]
    assert [row[3] for row in rows] == list(
        itertools.accumulate((row[4] for row in rows), initial=0)
    )[:-1]


def test_long_stretches_have_many_rows():
    entries = [(3, instance, bytes(1000)) for instance in range(1, 60)]
    value, taken = build_chunk(9, SMALL, SID, entries)
    assert taken == 59
    rows = chunk_rows(9, value, SID)
    assert len(rows) == 4
    assert [row[:3] for row in rows] == [(3, 1, 17), (3, 18, 17), (3, 35, 17), (3, 52, 8)]
    for row in range(4):  # a hint may be any row at or before the right one
        assert gather(value, 3, 52, 52, row=row) == [(52, bytes(1000))]
    assert [i for i, _ in gather(value, 3, 10)] == list(range(10, 60))


def test_a_full_chunk_says_so_and_is_sound():
    entries = [(1, instance, bytes(100)) for instance in range(1, 2000)]
    value, taken = build_chunk(9, SMALL, SID, entries)
    assert len(value) == SMALL
    assert taken == verify_chunk(9, value, SID)
    assert SMALL - 64 - 120 * (taken + 1) < 32 * len(chunk_rows(9, value, SID)) + 32


def test_an_empty_body_and_an_empty_chunk():
    value, _ = build_chunk(9, SMALL, SID, [(0, 1, b"")])
    assert gather(value, 0, 1) == [(1, b"")]
    value, taken = build_chunk(9, 64, SID, [(0, 1, b"")])
    assert taken == 0
    assert verify_chunk(9, value, SID) == 0


def test_values_fill_lmdb_pages_exactly():
    assert CLASS_BYTES == (64 * KIB, 512 * KIB, 8 * MIB)
    assert PAGE_HEADER_BYTES == 16
    for total, first in [(1, 0), (300 * KIB, 100), (100 * MIB, 100), (30 * MIB, 30 * MIB)]:
        assert (value_bytes(total, first) + PAGE_HEADER_BYTES) % 4096 == 0


@pytest.mark.parametrize(
    ("total", "first", "expected"),
    [
        (100, 100, SMALL),
        (SMALL - 64, 100, SMALL),
        (200 * KIB, 100, SMALL),  # several, rather than one that is mostly empty
        (300 * KIB, 100, MIDDLE),
        (3 * MIB, 100, MIDDLE),
        (5 * MIB, 100, LARGE),
        (500 * MIB, 100, LARGE),
        (70 * KIB, 70 * KIB, MIDDLE),  # one entry alone may need a larger class
        (MIB, MIB, LARGE),
        (9 * MIB, 9 * MIB, 16 * MIB - 16),
        (8 * MIB - 16 - 64 - 32, 8 * MIB - 16 - 64 - 32, LARGE),
        (8 * MIB - 16 - 64 - 24, 8 * MIB - 16 - 64 - 24, 16 * MIB - 16),
    ],
)
def test_size_classes(total, first, expected):
    assert value_bytes(total, first) == expected


# --- damage

SMALL_ENTRIES = [(2, 7, b"abc"), (2, 8, b""), (2, 9, b"x" * 21), (5, 1, b"12345678")]


def test_every_flipped_byte_is_found():
    value, _ = build_chunk(9, 1024, SID, SMALL_ENTRIES)
    used = 24 + 16 + 40 + 24
    assert used < 1024 - 64 - 32 * len(chunk_rows(9, value, SID))  # zeros between them
    for at in range(1024):
        for bit in (0, 7):
            bad = bytearray(value)
            bad[at] ^= 1 << bit
            with pytest.raises(ChunkDamage) as caught:
                verify_chunk(9, bytes(bad), SID)
            assert caught.value.chunk == 9
            if at < used:
                expected = next(
                    (g, i)
                    for (g, i, _), end in zip(SMALL_ENTRIES, (24, 40, 80, 104), strict=True)
                    if at < end
                )
                assert (caught.value.group, caught.value.instance) == expected


def test_a_flipped_byte_is_never_served():
    """Reading does not check the whole index again: whatever is wrong there must show otherwise."""
    entries = [*SMALL_ENTRIES, *((6, i, b"y" * (i % 50)) for i in range(1, 1401))]
    value, taken = build_chunk(9, SMALL, SID, entries)
    assert taken == len(entries)
    rows_at = SMALL - 64 - 32 * len(chunk_rows(9, value, SID))
    bodies = {(g, i): body for g, i, body in entries}
    for at in itertools.chain(range(0, rows_at, 97), range(rows_at, SMALL)):
        bad = bytearray(value)
        bad[at] ^= 0x10
        for group, instance in ((2, 9), (5, 1), (6, 1), (6, 1400)):
            try:
                found = gather(bytes(bad), group, instance, instance)
            except ChunkDamage as damage:
                found = [(damage.instance, bodies[damage.group, instance])]
            assert found == [(instance, bodies[group, instance])]


@given(st.binary(max_size=300))
def test_noise_is_no_chunk(noise):
    with pytest.raises(ChunkDamage):
        verify_chunk(9, noise, SID)
    with pytest.raises(ChunkDamage):
        gather(noise, 1, 1)


def test_a_chunk_elsewhere_is_refused():
    value, _ = build_chunk(9, SMALL, SID, SMALL_ENTRIES)
    for chunk, sid, data in [
        (8, SID, value),
        (9, bytes(16), value),
        (9, SID, value[:-8]),
        (9, SID, value + bytes(8)),
    ]:
        with pytest.raises(ChunkDamage):
            verify_chunk(chunk, data, sid)
        with pytest.raises(ChunkDamage):
            Gather(sid, 2, 7, 7, 100).add(chunk, data, 0)


def test_what_is_not_there_is_said():
    value, _ = build_chunk(9, SMALL, SID, SMALL_ENTRIES)
    for group, instance in [(2, 6), (2, 10), (3, 7), (0, 1), (9, 9)]:
        with pytest.raises(ChunkDamage, match=f"chunk 9, group {group} instance {instance}: "):
            gather(value, group, instance)
