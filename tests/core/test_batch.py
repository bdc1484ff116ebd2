"""Bodies of instances: golden bytes, limits to the byte, and what is refused as unsound."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phx._core import batch

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
ITEMS = st.lists(st.tuples(U16, st.binary(max_size=40)), min_size=1, max_size=6)
RUNS = st.lists(
    st.tuples(U32, U32, U64, st.integers(0, (1 << 64) - 100), ITEMS), min_size=1, max_size=5
)

# Written by hand from the tables in batch.pxd.
# fmt: off
NOOP = bytes.fromhex("00" "01" "0000" "00000000" "0500000000000000" "0600000000000000")
BODY = bytes.fromhex(
    "01" "01" "0200" "03000000"        # kind BATCH, version, 2 runs, 3 values
    "0500000000000000"                 # epoch
    "0600000000000000"                 # time_us
    "01000000" "02000000"              # node, incarnation
    "0300000000000000"                 # low_water
    "0400000000000000"                 # first_seq
    "02000000" "14000000"              # count, bytes
    "01000000" "0000" "0000" "61"      # a, for machine 0
    "03000000" "0100" "0000" "626364"  # bcd, for machine 1
    "07000000" "08000000"
    "0900000000000000"
    "0a00000000000000"
    "01000000" "08000000"
    "00000000" "ffff" "0000"           # nothing, for machine 65535
)
# fmt: on
CONTENT = [(1, 2, 3, 4, [(0, b"a"), (1, b"bcd")]), (7, 8, 9, 10, [(0xFFFF, b"")])]
RUN1, RUN2 = 24, 24 + 32 + 20


def changed(at: int, form: str, value: int) -> bytes:
    body = bytearray(BODY)
    struct.pack_into("<" + form, body, at, value)
    return bytes(body)


# --- golden bytes, round trips


def test_noop_golden_bytes():
    assert batch.pack_noop(5, 6) == NOOP
    assert batch.check_body(NOOP)
    assert batch.unpack_body(NOOP) == (0, 5, 6, [])


def test_batch_golden_bytes():
    assert batch.pack_body(CONTENT, 5, 6) == BODY
    assert batch.check_body(BODY)
    assert batch.unpack_body(BODY) == (1, 5, 6, CONTENT)


@given(RUNS, U64, U64)
def test_batch_round_trip(runs, epoch, time_us):
    body = batch.pack_body(runs, epoch, time_us)
    assert batch.check_body(body)
    assert batch.unpack_body(body) == (1, epoch, time_us, runs)


# --- unsound bodies


def test_body_is_sound_at_its_own_length_only():
    for length in range(len(BODY)):
        assert not batch.check_body(BODY[:length]), length
    assert not batch.check_body(BODY + b"\0")
    assert not batch.check_body(NOOP + b"\0")
    assert not batch.check_body(b"")


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        pytest.param(0, "B", 0, id="a noop with runs"),
        pytest.param(0, "B", 2, id="a kind of later versions"),
        pytest.param(0, "B", 255, id="no kind at all"),
        pytest.param(1, "B", 0, id="version 0"),
        pytest.param(1, "B", 2, id="version 2"),
        pytest.param(2, "H", 0, id="no runs"),
        pytest.param(2, "H", 1, id="fewer runs"),
        pytest.param(2, "H", 3, id="more runs"),
        pytest.param(2, "H", 0xFFFF, id="many more runs"),
        pytest.param(4, "I", 2, id="fewer values"),
        pytest.param(4, "I", 4, id="more values"),
        pytest.param(RUN1 + 16, "Q", (1 << 64) - 2, id="sequence wraps"),
        pytest.param(RUN1 + 24, "I", 1, id="fewer items in the run"),
        pytest.param(RUN1 + 24, "I", 3, id="more items in the run"),
        pytest.param(RUN1 + 24, "I", 0, id="empty run"),
        pytest.param(RUN1 + 24, "I", 0xFFFFFFFF, id="many more items in the run"),
        pytest.param(RUN1 + 28, "I", 19, id="run shorter"),
        pytest.param(RUN1 + 28, "I", 21, id="run longer"),
        pytest.param(RUN1 + 28, "I", 0xFFFFFFFF, id="run much longer"),
        pytest.param(RUN1 + 32, "I", 0, id="item shorter"),
        pytest.param(RUN1 + 32, "I", 2, id="item longer"),
        pytest.param(RUN1 + 32, "I", 0xFFFFFFFF, id="item much longer"),
        pytest.param(RUN1 + 32, "I", 0xFFFFFFF8, id="item whose length wraps"),
        pytest.param(RUN2 + 28, "I", 7, id="last run shorter"),
        pytest.param(RUN2 + 32, "I", 1, id="last item longer"),
    ],
)
def test_unsound_body_is_refused(at, form, value):
    unsound = changed(at, form, value)
    assert unsound != BODY
    assert not batch.check_body(unsound)
    with pytest.raises(ValueError):
        batch.unpack_body(unsound)


def test_counts_that_make_up_for_each_other_are_refused():
    # 3 values in the first run and 0 in the second are 3 in all.
    body = bytearray(changed(RUN1 + 24, "I", 3))
    struct.pack_into("<I", body, RUN2 + 24, 0)
    assert not batch.check_body(bytes(body))


def test_sequence_may_end_just_below_the_top():
    assert batch.check_body(changed(RUN1 + 16, "Q", (1 << 64) - 3))


@given(st.binary(max_size=200))
def test_random_bytes_do_no_harm(data):
    for body in (data, BODY[:24] + data, BODY[:56] + data):
        if batch.check_body(body):
            kind, epoch, time_us, runs = batch.unpack_body(body)
            assert kind == 0 or len(batch.pack_body(runs, epoch, time_us)) == len(body)


@given(st.data())
def test_several_changed_bytes_do_no_harm(data):
    body = bytearray(BODY)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    if batch.check_body(bytes(body)):
        batch.unpack_body(bytes(body))


# --- items

PACKED = batch.pack_items([(0, b"abc"), (1, b""), (2, b"0123456789")])  # 11 + 8 + 18 bytes


@pytest.mark.parametrize(("values", "nbytes"), [(0, 0), (1, 11), (2, 19), (3, 37), (4, 0)])
def test_prefix_bytes(values, nbytes):
    assert batch.prefix_bytes(PACKED, values) == nbytes


def test_prefix_of_cut_items_does_not_reach_beyond_them():
    for length in range(37):
        for values, nbytes in ((1, 11), (2, 19), (3, 37)):
            expected = nbytes if nbytes <= length else 0
            assert batch.prefix_bytes(PACKED[:length], values) == expected


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        pytest.param(0, (1, 11), id="one at least"),
        pytest.param(10, (1, 11), id="one at least, n-1"),
        pytest.param(11, (1, 11), id="first, n"),
        pytest.param(12, (1, 11), id="first, n+1"),
        pytest.param(18, (1, 11), id="second, n-1"),
        pytest.param(19, (2, 19), id="second, n"),
        pytest.param(20, (2, 19), id="second, n+1"),
        pytest.param(36, (2, 19), id="all, n-1"),
        pytest.param(37, (3, 37), id="all, n"),
        pytest.param(38, (3, 37), id="all, n+1"),
        pytest.param((1 << 64) - 1, (3, 37), id="no limit"),
    ],
)
def test_fit_within_a_budget(budget, expected):
    assert batch.fit(PACKED, 3, budget) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(0, (0, 0)), (1, (1, 11)), (2, (2, 19)), (3, (3, 37)), (4, (3, 37))]
)
def test_fit_takes_no_more_than_it_is_told(count, expected):
    assert batch.fit(PACKED, count, 1000) == expected


def test_fit_takes_no_item_that_is_not_whole():
    assert batch.fit(PACKED[:10], 3, 1000) == (0, 0)
    assert batch.fit(PACKED[:18], 3, 1000) == (1, 11)
    assert batch.fit(b"", 3, 1000) == (0, 0)


@given(ITEMS, st.integers(0, 400))
def test_fit_is_the_longest_prefix(items, budget):
    packed = batch.pack_items(items)
    fit, nbytes = batch.fit(packed, len(items), budget)
    assert nbytes == len(batch.pack_items(items[:fit]))
    assert fit == 1 or nbytes <= budget
    assert fit == len(items) or len(batch.pack_items(items[: fit + 1])) > budget


@given(ITEMS, st.integers(0, 8))
def test_check_items_takes_the_exact_count_only(items, count):
    packed = batch.pack_items(items)
    assert batch.check_items(packed, count) == (count == len(items))
    assert not batch.check_items(packed + b"\0", len(items))
    assert not batch.check_items(packed[:-1], len(items))
    assert batch.unpack_items(packed) == items


def test_no_items_are_exactly_no_items():
    assert batch.check_items(b"", 0)
    assert not batch.check_items(b"", 1)
    assert not batch.check_items(b"\0" * 8, 0)


def test_blocks_are_given_back_when_packing_fails(no_leaks):
    with pytest.raises(OverflowError):
        batch.pack_body([(1, 1, 1, 1, [(0, b"x"), (1 << 16, b"y")])])
    with pytest.raises(TypeError):
        batch.pack_items([(0, None)])
    batch.pack_body(CONTENT)
    batch.pack_noop(1, 1)
