"""The session table as bytes: canonical, hostile until checked."""

import random
import struct
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phx._core.batch import pack_body, pack_noop
from phx._core.codec import allocations_live, crc32c
from phx._core.delivery import Sessions
from phx._core.session_codec import table_facts

GROUP = 7
ME = 1
INCARNATION = 5
AGREE = 4096
REMEMBERED = 64
REACH = 65_536
TOP = (1 << 64) - 1
EMPTY = (GROUP, 1, 0, 0, [])


def sessions(node=ME):
    made = Sessions(node, [GROUP, 2, 900])
    made.incarnation = INCARNATION
    return made


def sealed(data, version=1):
    """`data` behind the checksum and the version."""
    rest = struct.pack("<I", version) + data
    return struct.pack("<I", crc32c(rest)) + rest


def row_bytes(node, incarnation, base, done, span=None, pad=0):
    if span is None:
        span = max(done) - base if done else 0
    bits = sum(1 << (sequence - base - 1) for sequence in done)
    size = (span + 63) // 64 * 8
    return struct.pack("<IIQII", node, incarnation, base, span, pad) + bits.to_bytes(size, "little")


def encoded(group, upcoming, chain, epoch, rows, pad=0):
    """As docs/design/checkpoints.md has it, as plainly as it can be said."""
    head = struct.pack("<IIQIIQ", group, len(rows), upcoming, chain, pad, epoch)
    return sealed(head + b"".join(row_bytes(*row) for row in rows))


def loaded(table, node=ME):
    made = sessions(node)
    assert made.load(table) == GROUP
    return made


def at_frontier(frontier, node=ME):
    """Tables of a group that has come so far, with nothing in it."""
    return loaded(encoded(GROUP, frontier + 1, 77, 0, []), node)


def body_of(run, epoch=0):
    node, incarnation, low, first, count = run
    items = [(0, b"%d" % (first + i)) for i in range(count)]
    return pack_body([(node, incarnation, low, first, items)], epoch=epoch)


def view(batches):
    """All that an applier gets of batches, wherever they are cut."""
    assert all(batch.error is None for batch in batches)
    return (
        [
            (entry.instance, entry.index, entry.node, entry.sequence, entry.epoch, entry.value)
            for batch in batches
            for entry in batch.entries
        ],
        [dropped for batch in batches for dropped in batch.dropped],
        sum(batch.own for batch in batches),
        batches[-1].digest,
    )


RUN = st.tuples(
    st.sampled_from([ME, ME, 2, 3]),  # node
    st.sampled_from([5] * 8 + [4, 6]),  # incarnation
    st.one_of(st.integers(0, 3), st.integers(0, 3), st.integers(0, 90)),  # low water
    st.one_of(
        st.integers(1, 20), st.integers(1, 300), st.sampled_from([66, 129, 9000, REACH, 70_000])
    ),
    st.integers(1, 12),
)
RUNS = st.lists(RUN, max_size=40)
DONE = st.sets(st.one_of(st.integers(1, 70), st.integers(1, REACH - 1)), max_size=40)


@st.composite
def states(draw):
    """Any state that a table can be in."""
    upcoming = draw(st.one_of(st.integers(2, 20), st.integers(2, TOP)))
    rows = []
    for node in sorted(draw(st.sets(st.integers(0, (1 << 32) - 1), max_size=6))):
        base = draw(st.one_of(st.integers(1, 200), st.integers(1, TOP), st.just(TOP)))
        done = sorted(base + offset for offset in draw(DONE) if base + offset < TOP)
        rows.append((node, draw(st.integers(0, (1 << 32) - 1)), base, done))
    return (
        GROUP,
        upcoming,
        draw(st.integers(0, (1 << 32) - 1)),
        draw(st.integers(0, TOP)),
        rows,
    )


# --- bytes


@given(states())
@example(EMPTY)
@example((GROUP, 2, 0, 0, [(3, 1, 1, [REACH])]))
@example((GROUP, 2, 0, 0, [(node, 1, 9, [9 + REACH - 1]) for node in range(64)]))
@example((GROUP, 2, 0, 0, [(1, 1, TOP - 100, [TOP - 1])]))
def test_every_state_comes_back_from_its_bytes(state):
    table = encoded(*state)
    made = loaded(table)
    assert made.table(GROUP) == table
    assert made.rows(GROUP) == state[4]
    assert made.next_instance(GROUP) == (state[1], state[2])
    assert table_facts(table) == (GROUP, state[1] - 1, state[2], state[3])


@given(RUNS, st.integers(0, 9))
@settings(max_examples=200)
def test_the_bytes_of_a_history_are_those_of_the_page(runs, seed):
    made = sessions()
    epochs = random.Random(seed).sample(range(100), len(runs))
    for instance, (run, epoch) in enumerate(zip(runs, epochs, strict=True), 1):
        made.offer(GROUP, instance, [body_of(run, epoch)])
    upcoming, chain = made.next_instance(GROUP)
    state = (GROUP, upcoming, chain, max(epochs, default=0), made.rows(GROUP))
    assert made.table(GROUP) == encoded(*state)
    assert made.table(900) == encoded(900, 1, 0, 0, [])


@given(st.permutations(range(1, 20)), st.permutations(range(1, 20)), st.integers(1, 20))
def test_the_order_of_what_happened_leaves_nothing_in_the_rows(one, other, count):
    kept = set(one[:count])

    def rows_of(order):
        made = sessions()
        order = [sequence for sequence in order if sequence in kept]
        for instance, sequence in enumerate(order, 1):
            made.offer(GROUP, instance, [body_of((2, 1, 1, sequence, 1))])
        return made.table(GROUP)[40:]

    assert rows_of(one) == rows_of(other)


def test_room_that_a_row_once_needed_does_not_show():
    wide = sessions()
    wide.offer(GROUP, 1, [body_of((2, 1, 1, REACH, 1)), body_of((2, 1, REACH - 5, 1, 1))])
    table = wide.table(GROUP)
    narrow = loaded(table)
    assert narrow.table(GROUP) == table
    assert wide.table_bytes(GROUP) == REACH // 8
    assert narrow.table_bytes(GROUP) == 8


def test_a_full_table_is_as_large_as_the_page_says():
    rows = [(node, 1, 1, [REACH]) for node in range(1, 65)]
    table = encoded(GROUP, 2, 0, 0, rows)
    assert len(table) == 40 + 64 * (24 + 8192) < 526 * 1024
    made = loaded(table)
    assert made.table_bytes(GROUP) == 64 * 8192
    assert made.table(GROUP) == table


# --- hostile bytes


SAMPLE = encoded(
    GROUP, 12, 99, 7, [(1, 5, 4, []), (2, 1, 3, [5, 9, 70, 140]), (9, 3, 1000, [1001])]
)


def assert_refused(table, match="not a session table"):
    made = loaded(SAMPLE)
    before = made.table(GROUP), made.next_instance(GROUP), made.rows(GROUP), made.agreed(GROUP)
    with pytest.raises(ValueError, match=match):
        made.load(table)
    assert before == (
        made.table(GROUP), made.next_instance(GROUP), made.rows(GROUP), made.agreed(GROUP),
    )  # fmt: skip
    if match.startswith("not a"):
        with pytest.raises(ValueError, match=match):
            table_facts(table)


def test_every_flipped_byte_is_refused():
    for at in range(len(SAMPLE)):
        for mask in (1, 0x80, 0xFF):
            bad = bytearray(SAMPLE)
            bad[at] ^= mask
            assert_refused(bytes(bad))


def test_every_truncation_is_refused_though_the_checksum_fits():
    for size in range(len(SAMPLE)):
        assert_refused(SAMPLE[:size])
        if size >= 8:
            assert_refused(sealed(SAMPLE[8:size]))
    for more in (b"\0", bytes(8), bytes(1 << 20)):
        assert_refused(SAMPLE + more)
        assert_refused(sealed(SAMPLE[8:] + more), "longer")


def test_flipped_bits_whose_checksum_was_put_right_are_refused_or_another_canonical_table():
    taken = 0
    for bit in range(8 * 8, len(SAMPLE) * 8):
        bad = bytearray(SAMPLE)
        bad[bit // 8] ^= 1 << bit % 8
        bad = sealed(bytes(bad[8:]))
        made = sessions()
        try:
            group = made.load(bad)
        except ValueError:
            continue
        taken += 1
        assert made.table(group) == bad
    assert taken > 0


def test_another_version_is_refused():
    assert_refused(sealed(SAMPLE[8:], version=2), "version")
    assert_refused(sealed(SAMPLE[8:], version=0), "version")


def test_a_group_of_another_node_is_refused():
    assert_refused(encoded(8, 12, 99, 7, []), "group 8, which is not hosted")
    assert table_facts(encoded(8, 12, 99, 7, [])) == (8, 11, 99, 7)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([(2, 1, 1, []), (1, 1, 1, [])], "order"),
        ([(2, 1, 1, []), (2, 2, 1, [])], "order"),
        ([(2, 1, 0, [])], "range"),
        ([(2, 1, 1, [REACH + 1])], "range"),
        ([(2, 1, TOP, [], 1)], "range"),
        ([(2, 1, TOP - 9, [TOP])], "range"),  # no body has that sequence
        ([(2, 1, TOP - 9, [TOP - 8], 10)], "range"),
        ([(2, 1, 1, [3], 1)], "bits"),  # a bit above the span
        ([(2, 1, 1, [2], 2)], "bits"),  # the span ends at a bit that is not set
        ([(2, 1, 1, [], 64)], "bits"),
        ([(2, 1, 1, [2], 65)], "bits"),
        ([(2, 1, 1, [2], 128)], "bits"),
        ([(2, 1, 1, [], None, 1)], "padding"),
        ([(node, 1, 1, []) for node in range(65)], "range"),
        ([(node, 1, 1, []) for node in range(1 << 16)], "longer"),
    ],
)
def test_rows_that_no_table_can_have_are_refused(rows, match):
    assert_refused(encoded(GROUP, 12, 99, 7, rows), match)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ((GROUP, 0, 0, 0, []), "range"),
        ((GROUP, 1, 1, 0, []), "range"),
        ((GROUP, 1, 0, 1, []), "range"),
        ((GROUP, 1, 0, 0, [(1, 1, 1, [])]), "range"),
        ((GROUP, 12, 0, 0, [], 1), "padding"),
    ],
)
def test_a_head_that_no_table_can_have_is_refused(state, match):
    assert_refused(encoded(*state), match)


def test_more_rows_in_the_head_than_there_are_are_refused():
    head = struct.pack("<IIQIIQ", GROUP, 3, 12, 9, 0, 0)
    assert_refused(sealed(head + row_bytes(1, 1, 1, []) * 1), "shorter")
    assert_refused(sealed(head + row_bytes(1, 1, 1, [9])[:-1]), "shorter")
    assert_refused(sealed(head[:-8]), "shorter")


@pytest.mark.parametrize("table", [None, bytearray(SAMPLE), "x"])
def test_what_is_not_bytes_is_refused(table):
    with pytest.raises(TypeError):
        sessions().load(table)
    with pytest.raises(TypeError):
        table_facts(table)


# --- a table that goes on somewhere else


@given(RUNS, RUNS)
@settings(max_examples=300)
@example([(2, 1, 1, REACH, 1), (2, 1, 500, 600, 1)], [(2, 1, 500, 500, 12)])
@example([(2, 6, 1, 1, 1)], [(2, 5, 1, 2, 1), (2, 6, 1, 1, 2), (2, 6, 1, 70_000, 1)])
def test_a_loaded_table_admits_what_the_original_admits(before, after):
    original = sessions()
    for instance, run in enumerate(before, 1):
        original.offer(GROUP, instance, [body_of(run)])
    copy = loaded(original.table(GROUP))
    for instance, run in enumerate(after, len(before) + 1):
        body = body_of(run, epoch=instance)
        assert view(original.offer(GROUP, instance, [body])) == view(
            copy.offer(GROUP, instance, [body])
        )
    assert copy.rows(GROUP) == original.rows(GROUP)
    assert copy.table(GROUP) == original.table(GROUP)


def test_bodies_that_a_loaded_table_has_seen_are_passed_over():
    made = at_frontier(10)
    noop = pack_noop(1, 2)
    (batch,) = made.offer(GROUP, 4, [b"anything", noop])
    assert (batch.first, batch.last, list(batch.entries), batch.error) == (6, 5, [], None)
    (batch,) = made.offer(GROUP, 8, [noop, noop, noop, body_of((2, 1, 1, 1, 1)), noop])
    assert (batch.first, batch.last, batch.error) == (11, 12, None)
    assert [entry.instance for entry in batch.entries] == [11]
    (batch,) = made.offer(GROUP, 10, [noop, noop])
    assert "went on at 11 instead of 13" in batch.error
    (batch,) = made.offer(GROUP, 14, [noop])
    assert "went on at 14 instead of 13" in batch.error


def test_a_table_may_be_loaded_over_a_newer_one():
    made = sessions()
    old = made.table(GROUP)
    body = body_of((2, 1, 1, 1, 1))
    assert len(made.offer(GROUP, 1, [body])[0].entries) == 1
    newer = made.table(GROUP)
    made.load(old)
    assert made.table(GROUP) == old
    assert len(made.offer(GROUP, 1, [body])[0].entries) == 1
    assert made.table(GROUP) == newer


def test_loading_leaves_other_groups_alone():
    made = sessions()
    made.offer(2, 1, [body_of((2, 1, 1, 1, 1))])
    made.load(SAMPLE)
    assert made.rows(2) == [(2, 1, 2, [])]
    assert made.next_instance(900) == (1, 0)


def test_a_table_and_what_it_replaced_are_given_back():
    made = sessions()
    for _ in range(3):  # the conftest counts what is left
        made.load(encoded(GROUP, AGREE + 1, 3, 4, [(node, 1, 1, [900]) for node in range(64)]))
        with pytest.raises(ValueError, match="bits"):
            made.load(encoded(GROUP, 9, 3, 4, [(1, 1, 1, [900]), (2, 1, 1, [], 64)]))


@pytest.mark.parametrize(
    "call",
    [
        lambda made: made.table(3),
        lambda made: made.agreed(3),
        lambda made: made.want(3, True),
        lambda made: made.rows(3),
        lambda made: made.table_bytes(3),
        lambda made: made.next_instance(3),
    ],
)
def test_a_group_that_is_not_hosted_is_a_key_error(call):
    with pytest.raises(KeyError):
        call(sessions())


# --- where batches end


def ends(batches):
    return [(batch.first, batch.last) for batch in batches]


def test_a_batch_ends_at_every_agreed_instance():
    made = sessions()
    batches = made.offer(GROUP, 1, [pack_noop(1, 2)] * (2 * AGREE + 10))
    assert ends(batches) == [(1, AGREE), (AGREE + 1, 2 * AGREE), (2 * AGREE + 1, 2 * AGREE + 10)]
    assert made.agreed(GROUP) == [
        (AGREE, batches[0].digest),
        (2 * AGREE, batches[1].digest),
    ]
    assert ends(made.offer(GROUP, 2 * AGREE + 11, [pack_noop(1, 2)] * (AGREE - 10))) == [
        (2 * AGREE + 11, 3 * AGREE)
    ]


@given(st.lists(RUN, min_size=4, max_size=30), st.integers(0, 30), st.data())
@settings(max_examples=200)
def test_batches_cut_anywhere_admit_the_same(runs, before, data):
    frontier = AGREE - before
    bodies = [body_of(run, epoch=9) for run in runs]
    whole, other = at_frontier(frontier), at_frontier(frontier, node=ME)
    batches = whole.offer(GROUP, frontier + 1, bodies)
    agreed = before and before < len(runs)
    assert len(batches) == (2 if agreed else 1)
    assert batches[-1].last == frontier + len(runs)
    cut, at = [], 0
    while at < len(bodies):
        some = data.draw(st.integers(1, len(bodies) - at))
        cut += other.offer(GROUP, frontier + 1 + at, bodies[at : at + some])
        at += some
    assert view(cut) == view(batches)
    assert all(one.first == last.last + 1 for last, one in pairwise(cut))
    assert other.table(GROUP) == whole.table(GROUP)
    assert other.agreed(GROUP) == whole.agreed(GROUP)


def test_batches_of_several_groups_stay_apart_and_each_knows_its_machine():
    made = at_frontier(AGREE - 1)
    bodies = [pack_body([(2, 1, 1, n + 1, [(n, b"x")])]) for n in range(3)]
    first, second = made.offer(GROUP, AGREE, bodies)
    assert (first.machine, second.machine) == (0, -1)
    assert [entry.machine for entry in first.entries] == [0]
    assert [entry.machine for entry in second.entries] == [1, 2]
    assert made.next_instance(2) == (1, 0)


def test_an_unsound_body_right_behind_an_agreed_instance_is_named_in_a_batch_of_its_own():
    made = at_frontier(AGREE - 1)
    made.want(GROUP, at_any=False)
    whole, bad = made.offer(GROUP, AGREE, [pack_noop(1, 2), b"bad", pack_noop(1, 2)])
    assert (whole.last, whole.error) == (AGREE, None)
    assert whole.table is not None
    assert (bad.first, bad.last) == (AGREE + 1, AGREE)
    assert "not the body" in bad.error
    assert made.next_instance(GROUP)[0] == AGREE + 1


def test_the_last_agreed_instances_are_remembered_and_no_more():
    made = sessions()
    assert made.agreed(GROUP) == []
    digests, noops = [], [pack_noop(1, 2)] * AGREE
    for n in range(REMEMBERED + 3):
        (batch,) = made.offer(GROUP, n * AGREE + 1, noops)
        digests.append((batch.last, batch.digest))
        assert made.agreed(GROUP) == digests[-REMEMBERED:]
    assert made.agreed(2) == []


def test_a_group_at_rest_takes_nothing_for_what_it_does_not_remember_yet():
    before = allocations_live()
    made = Sessions(ME, range(100))
    for group in range(100):
        made.offer(group, 1, [pack_noop(1, 2)])
    assert allocations_live() - before == 100
    made.offer(5, 2, [pack_noop(1, 2)] * AGREE)
    assert allocations_live() - before == 101


def test_a_loaded_table_knows_the_agreed_instance_it_was_made_at_and_none_before():
    made = sessions()
    made.offer(GROUP, 1, [pack_noop(1, 2)] * AGREE)
    made.load(encoded(GROUP, 2 * AGREE + 1, 55, 0, []))
    assert made.agreed(GROUP) == [(2 * AGREE, 55)]
    made.load(encoded(GROUP, 3 * AGREE, 55, 0, []))
    assert made.agreed(GROUP) == []
    (batch,) = made.offer(GROUP, 3 * AGREE, [pack_noop(1, 2)])
    assert made.agreed(GROUP) == [(3 * AGREE, batch.digest)]


# --- the table of a batch


def test_a_table_is_of_the_instance_where_its_batch_ends_however_far_the_take_went_on():
    made, slow = at_frontier(AGREE - 3), at_frontier(AGREE - 3)
    made.want(GROUP, at_any=False)
    bodies = [body_of((2, 1, 1, n * 2 + 1, 1), epoch=n) for n in range(9)]
    first, second = made.offer(GROUP, AGREE - 2, bodies)
    slow.offer(GROUP, AGREE - 2, bodies[:3])
    assert first.table == slow.table(GROUP)
    assert table_facts(first.table) == (GROUP, AGREE, first.digest, 2)
    assert second.table is None
    assert made.table(GROUP) != first.table


def test_a_table_that_is_wanted_at_an_agreed_instance_waits_for_one():
    made = at_frontier(AGREE - 2)
    made.want(GROUP, at_any=False)
    noop = pack_noop(1, 2)
    tables = [made.offer(GROUP, AGREE - 1 + n, [noop])[0].table for n in range(4)]
    assert [table is not None for table in tables] == [False, True, False, False]


def test_a_table_that_is_wanted_anywhere_comes_with_the_next_batch_of_its_group():
    made, noop = sessions(), pack_noop(1, 2)
    made.want(GROUP, at_any=True)
    made.want(GROUP, at_any=False)  # does not take it back
    assert made.offer(2, 1, [noop])[0].table is None
    assert made.offer(GROUP, 1, [])[0].table is None  # nothing in it
    (batch,) = made.offer(GROUP, 1, [noop, noop])
    assert batch.table == made.table(GROUP)
    assert made.offer(GROUP, 3, [noop])[0].table is None


def test_a_batch_with_an_error_carries_no_table():
    made, noop = sessions(), pack_noop(1, 2)
    made.want(GROUP, at_any=True)
    (batch,) = made.offer(GROUP, 1, [noop, b"bad"])
    assert (batch.last, batch.table) == (1, None)
    (batch,) = made.offer(GROUP, 2, [noop])
    assert batch.table == made.table(GROUP)


def test_a_value_of_this_life_under_the_checkpoint_is_an_error_and_not_passed_over():
    """The log is not the one that the checkpoint was taken of: it would be lost without a word."""
    table = at_frontier(30)
    others = [body_of((ME, INCARNATION - 1, 1, 1, 2)), body_of((2, INCARNATION, 1, 1, 2))]
    (passed,) = table.offer(GROUP, 1, others)
    assert (passed.error, len(passed.entries)) == (None, 0)
    (refused,) = table.offer(GROUP, 3, [body_of((ME, INCARNATION, 1, 1, 1)), *others])
    assert (refused.first, refused.last, len(refused.entries)) == (3, 2, 0)
    assert "the checkpoint says that all is applied" in refused.error
    (after,) = table.offer(GROUP, 31, [body_of((ME, INCARNATION, 1, 1, 1))])
    assert (after.error, len(after.entries)) == (None, 1)


def test_values_of_this_life_that_an_installed_table_has_done_are_passed_over():
    """A node that lags installs a checkpoint of another one while its own values are in flight."""
    log = [
        body_of((ME, INCARNATION, 1, 1, 3)),
        body_of((ME, INCARNATION, 1, 6, 2)),  # 4 and 5 are still on their way
        body_of((2, 7, 1, 1, 2)),
    ]
    other = sessions(node=2)
    other.offer(GROUP, 1, log)
    table = other.table(GROUP)
    mine = sessions()
    (batch,) = mine.offer(GROUP, 1, log[:1])
    assert len(batch.entries) == 3
    mine.load(table)
    (passed,) = mine.offer(GROUP, 2, log[1:])
    assert (passed.error, len(passed.entries), passed.dropped) == (None, 0, [])
    for strange in ((ME, INCARNATION, 1, 4, 1), (ME, INCARNATION, 1, 6, 3)):
        (refused,) = mine.offer(GROUP, 3, [body_of(strange)])
        assert "the checkpoint says that all is applied" in refused.error
    (after,) = mine.offer(GROUP, 4, [body_of((ME, INCARNATION, 1, 4, 2))])
    assert (after.error, len(after.entries)) == (None, 2)


def test_a_table_that_begins_behind_an_instance_admits_what_follows_of_members_alone():
    made = sessions()
    made.begin(GROUP, 1 << 44, (1, 2))
    assert made.next_instance(GROUP) == ((1 << 44) + 1, 0)
    for frontier in (0, 1 << 44):
        with pytest.raises(ValueError, match="begun"):
            made.begin(GROUP, frontier, ())
    with pytest.raises(KeyError):
        made.begin(GROUP + 1, 5, ())
    with pytest.raises(ValueError, match="members"):
        made.begin(2, 5, range(1, 17))
    assert made.next_instance(2) == (1, 0), "what is refused changes nothing"
    of = {node: pack_body([(node, 1, 1, 1, [(0, b"v")])]) for node in (2, 3)}
    batches = made.offer(GROUP, (1 << 44) + 1, [of[2], of[3]])
    assert [entry.value for batch in batches for entry in batch.entries] == [b"v"]
