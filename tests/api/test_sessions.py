"""The replicated de-duplication table: exactly once, in log order, in bounded memory."""

import gc
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phx._core.batch import pack_body, pack_noop
from phx._core.codec import allocations_live, blocks_live, crc32c
from phx._core.delivery import BEYOND, DUPLICATE, STALE, Sessions
from phx._core.entries import entries_of
from phx._core.members import write
from phx._core.session_codec import table_facts
from phx._core.waiters import IN_FLIGHT_MAX

GROUP = 7
ME = 1
INCARNATION = 5


@dataclass
class Row:
    incarnation: int = 0
    base: int = 1
    done: set[int] = field(default_factory=set)


class Model:
    """docs/design/protocol.md, "Exactly once", as plainly as it can be said."""

    def __init__(self):
        self.rows: dict[int, Row] = {}

    def admit(self, node, incarnation, low_water, sequence):
        row = self.rows.setdefault(node, Row(incarnation))
        if incarnation < row.incarnation:
            return STALE
        if incarnation > row.incarnation:
            row = self.rows[node] = Row(incarnation)
        row.base = max(row.base, low_water)
        self.settle(row)
        if sequence < row.base:
            return STALE
        if sequence in row.done:
            return DUPLICATE
        if sequence >= row.base + IN_FLIGHT_MAX:
            return BEYOND
        row.done.add(sequence)
        self.settle(row)
        return 0

    def settle(self, row):
        row.done = {sequence for sequence in row.done if sequence >= row.base}
        while row.base in row.done:
            row.done.remove(row.base)
            row.base += 1

    def view(self):
        return [
            (node, row.incarnation, row.base, sorted(row.done))
            for node, row in sorted(self.rows.items())
        ]


def sessions(incarnation=INCARNATION):
    made = Sessions(ME, [GROUP, 2, 900])
    made.incarnation = incarnation
    return made


class Log:
    """Offers runs one after the other, an instance for each call."""

    def __init__(self, table=None):
        self.table = table or sessions()
        self.instance = 1

    def offer(self, *runs, machine=0):
        body = pack_body(
            [
                (
                    node,
                    incarnation,
                    low,
                    first,
                    [(machine, b"%d" % (first + i)) for i in range(count)],
                )
                for node, incarnation, low, first, count in runs
            ]
        )
        (batch,) = self.table.offer(GROUP, self.instance, [body])
        assert batch.error is None
        self.instance += 1
        return batch

    def applied(self, *runs):
        return [(entry.node, int(entry.value)) for entry in self.offer(*runs).entries]


RUNS = st.lists(
    st.tuples(
        st.sampled_from([1, 1, 1, 2, 3]),  # node
        st.sampled_from([5] * 8 + [4, 6]),  # incarnation
        st.one_of(st.integers(0, 3), st.integers(0, 3), st.integers(0, 90)),  # low water
        st.one_of(st.integers(1, 20), st.integers(1, 140), st.sampled_from([70_000, 1 << 40])),
        st.integers(1, 12),
    ),
    max_size=40,
)


@given(RUNS)
@settings(max_examples=300)
@example([(1, 5, 1, 7, 1), (1, 5, 1, 5, 1)])  # 7 was chosen before 5: both are applied
@example([(1, 5, 1, 1, 3), (1, 5, 1, 1, 3)])  # a retry
@example([(1, 5, 1, 2, 1), (1, 5, 1, 1, 3)])  # a retry in the middle of a new run
@example([(1, 5, 1, 65, 1), (1, 5, 1, 65, 1)])  # one beyond the smallest bitmap
@example([(1, 5, 1, 128, 1), (1, 5, 1, 129, 2), (1, 5, 1, 128, 3)])
@example([(1, 4, 1, 1, 1), (1, 5, 1, 1, 1), (1, 4, 1, 2, 1)])  # of a life that is over
def test_the_table_agrees_with_the_model(runs):
    model, log = Model(), Log()
    for node, incarnation, low, first, count in runs:
        expected, dropped = [], []
        for sequence in range(first, first + count):
            why = model.admit(node, incarnation, low, sequence)
            if not why:
                expected.append((node, sequence))
            elif (node, incarnation) == (ME, INCARNATION):
                dropped.append((sequence, why))
        batch = log.offer((node, incarnation, low, first, count))
        assert [(entry.node, int(entry.value)) for entry in batch.entries] == expected
        assert batch.dropped == dropped
        own = [entry.sequence for entry in batch.entries if entry.sequence]
        assert batch.own == len(own)
        if (node, incarnation) == (ME, INCARNATION):
            assert own == [sequence for _, sequence in expected]
        else:
            assert not own
        assert log.table.rows(GROUP) == model.view()


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(0, 30))
def test_any_order_and_any_retries_apply_each_value_once(order, lag):
    """Retries and reordering, with a low water that a real sender might send."""
    log, applied = Log(), []
    for at, sequence in enumerate(order):
        unseen = set(order[at:]) - set(order[:at])
        low = max(1, min(unseen | {sequence}, default=1) - lag)
        applied += [value for _, value in log.applied((2, 1, low, sequence, 1))]
    assert sorted(applied) == sorted(set(order))


def test_a_duplicate_is_left_out_however_late():
    log = Log()
    assert log.applied((2, 1, 1, 1, 3)) == [(2, 1), (2, 2), (2, 3)]
    for _ in range(3):
        assert log.applied((2, 1, 1, 2, 1)) == []


def test_seven_chosen_before_five_loses_neither():
    log = Log()
    assert log.applied((2, 1, 5, 7, 1)) == [(2, 7)]
    assert log.applied((2, 1, 5, 5, 1)) == [(2, 5)]
    assert log.applied((2, 1, 5, 7, 1)) == []


def test_low_water_closes_the_holes_below_it():
    log = Log()
    log.offer((2, 1, 1, 3, 1))
    assert log.applied((2, 1, 3, 1, 3)) == []
    assert log.table.rows(GROUP) == [(2, 1, 4, [])]


def test_a_newer_incarnation_ends_the_older_session():
    log = Log()
    assert log.applied((2, 1, 1, 1, 2)) == [(2, 1), (2, 2)]
    assert log.applied((2, 3, 1, 1, 1)) == [(2, 1)]
    assert log.applied((2, 2, 1, 9, 1)) == []
    assert log.table.rows(GROUP) == [(2, 3, 2, [])]


def test_beyond_the_bitmap_is_not_applied_and_leaves_no_trace():
    log = Log()
    assert log.applied((2, 1, 1, IN_FLIGHT_MAX, 1)) == [(2, IN_FLIGHT_MAX)]
    assert log.applied((2, 1, 1, IN_FLIGHT_MAX + 1, 1)) == []
    assert log.applied((2, 1, 1, 1, 1)) == [(2, 1)]
    assert log.applied((2, 1, 1, IN_FLIGHT_MAX + 1, 1)) == [(2, IN_FLIGHT_MAX + 1)]


def test_a_run_across_the_edge_of_the_bitmap_is_cut_there():
    log = Log()
    batch = log.offer((ME, INCARNATION, 1, IN_FLIGHT_MAX - 1, 4))
    assert [entry.sequence for entry in batch.entries] == [IN_FLIGHT_MAX - 1, IN_FLIGHT_MAX]
    assert batch.dropped == [(IN_FLIGHT_MAX + 1, BEYOND), (IN_FLIGHT_MAX + 2, BEYOND)]


def test_memory_is_bounded_and_given_back():
    log = Log()
    for node in range(1, 4):
        log.offer((node, 1, 1, IN_FLIGHT_MAX, 1))
    assert log.table.table_bytes(GROUP) == 3 * IN_FLIGHT_MAX // 8
    for node in range(1, 4):
        log.offer((node, 1, IN_FLIGHT_MAX, IN_FLIGHT_MAX, 1))
    assert log.table.table_bytes(GROUP) == 0


def test_values_in_order_need_no_bitmap():
    log = Log()
    for first in range(1, 10_001, 100):
        assert len(log.offer((2, 1, first, first, 100)).entries) == 100
    assert log.table.table_bytes(GROUP) == 0


# --- members that change


def roster(*nodes, version=2, ballot=3 << 20):
    return write(version, ballot, 9, [(node, 1, b"h%d:7000" % node) for node in nodes])


def change(log, *nodes, **others):
    (batch,) = log.table.offer(GROUP, log.instance, [roster(*nodes, **others)])
    assert (batch.error, list(batch.entries), batch.dropped) == (None, [], [])
    log.instance += 1
    return batch


def test_the_rows_of_who_is_no_member_any_more_end_at_the_change():
    log = Log()
    log.offer((1, 5, 1, 1, 3), (2, 5, 1, 7, 1), (3, 5, 1, 9, 2))
    change(log, 1, 3, 4)
    assert [row[0] for row in log.table.rows(GROUP)] == [1, 3]
    assert log.table.rows(GROUP)[1] == (3, 5, 1, [9, 10])  # of who stays nothing is forgotten


def test_nothing_of_who_left_is_applied_any_more():
    log = Log()
    assert log.applied((2, 5, 1, 1, 2)) == [(2, 1), (2, 2)]
    change(log, 1, 3, 4)
    assert log.applied((2, 5, 1, 3, 1), (3, 5, 1, 1, 1)) == [(3, 1)]
    assert log.applied((2, 6, 1, 1, 1)) == []  # nor of a later life
    assert [row[0] for row in log.table.rows(GROUP)] == [3]


def test_a_caller_of_a_node_that_left_hears_that_its_value_was_not_applied():
    log = Log()
    change(log, 2, 3, 4)
    batch = log.offer((ME, INCARNATION, 1, 5, 2))
    assert (batch.own, batch.dropped) == (0, [(5, STALE), (6, STALE)])


def test_who_comes_by_a_change_is_admitted_from_there_on():
    log = Log()
    change(log, 1, 2, 3)
    assert log.applied((4, 1, 1, 1, 1)) == []
    change(log, 2, 3, 4, version=3)
    assert log.applied((4, 1, 1, 1, 1), (1, 5, 1, 1, 1)) == [(4, 1)]


def test_a_change_of_members_is_in_the_digest_and_in_the_epoch():
    def state(body):
        table = sessions()
        (batch,) = table.offer(GROUP, 1, [body])
        return batch.digest, table_facts(table.table(GROUP))

    digest, facts = state(roster(1, 2, 3))
    assert facts == (GROUP, 1, digest, 3 << 20)
    assert digest == chain((1).to_bytes(8, "little"), roster(1, 2, 3))
    assert len({state(roster(*nodes))[0] for nodes in ((1, 2, 3), (1, 2, 4), (1, 2))}) == 3


def test_a_loaded_table_goes_on_under_the_members_of_its_checkpoint():
    log = Log()
    log.offer((1, 5, 1, 1, 3), (2, 5, 1, 7, 1))
    change(log, 1, 3, 4)
    other = Sessions(3, [GROUP])
    other.load(log.table.table(GROUP), (1, 3, 4))
    after = [
        pack_body([(2, 5, 1, 8, [(0, b"left")]), (4, 1, 1, 1, [(0, b"came")])]),
        pack_body([(1, 5, 1, 4, [(0, b"stays")])]),
    ]
    (mine,), (its,) = (table.offer(GROUP, log.instance, after) for table in (log.table, other))
    assert [entry.value for entry in its.entries] == [b"came", b"stays"]
    assert mine.digest == its.digest
    assert log.table.table(GROUP) == other.table(GROUP)


def test_a_table_that_is_loaded_without_members_admits_everybody():
    log = Log()
    change(log, 1, 3, 4)
    table = sessions()
    table.offer(GROUP, 1, [pack_body([(2, 5, 1, 1, [(0, b"x")])])])
    log.table.load(table.table(GROUP))
    log.instance = 2
    assert log.applied((2, 5, 1, 2, 1)) == [(2, 2)]
    with pytest.raises(ValueError, match="16 are more than 15"):
        log.table.load(table.table(GROUP), range(1, 17))


def test_changes_of_members_leak_nothing():
    before, others = blocks_live(), allocations_live()
    log = Log()
    for version in range(2, 40):
        log.offer((1, 5, 1, 1000 + 70 * version, 1), (version, 5, 1, 90, 1))
        change(log, 1, version, 50, version=version)
    log.table.load(log.table.table(GROUP), (1, 39, 50))
    del log
    gc.collect()
    assert (blocks_live(), allocations_live()) == (before, others)


def test_more_nodes_than_rows_are_refused_alike_everywhere():
    log = Log()
    for node in range(1, 65):
        assert len(log.applied((node, 1, 1, 1, 1))) == 1
    assert log.applied((65, 1, 1, 1, 1)) == []
    assert log.applied((64, 1, 1, 2, 1)) == [(64, 2)]


# --- batches


def test_what_apply_sees_stands_in_the_value():
    table = sessions()
    body = pack_body([(3, 9, 1, 4, [(2, b"x"), (65_535, b"")])], epoch=77, time_us=88)
    (batch,) = table.offer(GROUP, 1, [body])
    (first, second) = batch.entries
    assert (first.group, first.instance, first.index, first.machine) == (GROUP, 1, 0, 2)
    assert (first.epoch, first.time_us, first.node, first.value) == (77, 88, 3, b"x")
    assert (second.index, second.machine, second.value) == (1, 65_535, b"")
    assert first.sequence == second.sequence == 0
    assert "group=7" in repr(first)


def test_only_values_of_this_life_of_this_node_have_callers():
    log = Log()
    batch = log.offer((ME, INCARNATION, 1, 5, 1), (ME + 1, INCARNATION, 1, 5, 1))
    assert [entry.sequence for entry in batch.entries] == [5, 0]
    assert batch.own == 1
    assert Log(sessions(INCARNATION + 1)).offer((ME, INCARNATION, 1, 5, 1)).own == 0


def test_index_counts_duplicates_too():
    log = Log()
    log.offer((2, 1, 1, 1, 1))
    batch = log.offer((2, 1, 1, 1, 2), (3, 1, 1, 1, 1))
    assert [entry.index for entry in batch.entries] == [1, 2]


def test_a_batch_knows_whether_all_is_for_one_machine():
    log = Log()
    assert log.offer((2, 1, 1, 1, 2), machine=4).machine == 4
    assert log.offer((2, 1, 1, 1, 2)).machine == -1  # duplicates only
    body = pack_body([(2, 1, 1, 3, [(1, b""), (1, b""), (2, b"")])])
    assert [batch.machine for batch in log.table.offer(GROUP, 3, [body])] == [-1]


def test_a_noop_advances_the_log():
    table = sessions()
    (batch,) = table.offer(GROUP, 1, [pack_noop(1, 2), pack_noop(1, 2)])
    assert (batch.first, batch.last, list(batch.entries), batch.error) == (1, 2, [], None)
    assert table.next_instance(GROUP)[0] == 3


@pytest.mark.parametrize("bad", [b"", b"x" * 24, pack_noop(1, 2) + b"\0"])
def test_an_unsound_body_ends_its_batch_and_is_named(bad):
    table = sessions()
    good = pack_body([(2, 1, 1, 1, [(0, b"x")])])
    (batch,) = table.offer(GROUP, 1, [good, bad, good])
    assert batch.last == 1
    assert len(batch.entries) == 1
    assert "not the body" in batch.error
    assert table.next_instance(GROUP)[0] == 2


@pytest.mark.parametrize("first", [0, 2, 3])
def test_a_gap_in_the_log_is_never_skipped(first):
    (batch,) = sessions().offer(GROUP, first, [pack_noop(1, 2)])
    assert "instead of 1" in batch.error
    assert batch.last == first - 1 or first == 0
    assert not batch.entries


def test_groups_do_not_share_their_tables():
    table = sessions()
    body = pack_body([(2, 1, 1, 1, [(0, b"x")])])
    for group in (GROUP, 2):
        (batch,) = table.offer(group, 1, [body])
        assert len(batch.entries) == 1
    (batch,) = table.offer(3, 1, [body])
    assert "not host" in batch.error
    with pytest.raises(KeyError):
        table.rows(3)


def test_entries_of_an_instance_hold_its_duplicates():
    body = pack_body([(2, 1, 1, 1, [(0, b"a")]), (2, 1, 1, 1, [(0, b"a")])], epoch=3)
    assert [entry.value for entry in entries_of(GROUP, 9, body)] == [b"a", b"a"]
    with pytest.raises(ValueError, match="not the body"):
        entries_of(GROUP, 9, body[:-1])


# --- the chained checksum


def chain(*pieces):
    crc = 0
    for piece in pieces:
        crc = crc32c(piece, crc)
    return crc


def test_the_digest_is_a_chain_over_instance_header_and_applied_items():
    table = sessions()
    runs = [(2, 1, 1, 1, [(0, b"aa"), (0, b"b")]), (2, 1, 1, 1, [(0, b"aa"), (3, b"ccc")])]
    body = pack_body(runs, epoch=1, time_us=2)
    (batch,) = table.offer(GROUP, 1, [body])
    assert [entry.value for entry in batch.entries] == [b"aa", b"b"]
    items = body[24 + 32 :][: 8 + 2 + 8 + 1]
    assert batch.digest == chain((1).to_bytes(8, "little"), body[:24], items)
    assert table.next_instance(GROUP) == (2, batch.digest)


def test_replicas_with_one_log_have_one_digest_whatever_their_batches():
    bodies = [pack_body([(2, 1, 1, i, [(0, b"%d" % i)])]) for i in (3, 1, 3, 2, 9, 1)]
    (whole,) = sessions().offer(GROUP, 1, bodies)
    other = Sessions(3, [GROUP])
    for instance, body in enumerate(bodies, 1):
        (part,) = other.offer(GROUP, instance, [body])
    assert part.digest == whole.digest


def test_a_changed_value_changes_the_digest():
    def digest(machine, value, epoch):
        body = pack_body([(2, 1, 1, 1, [(machine, value)])], epoch=epoch)
        (batch,) = sessions().offer(GROUP, 1, [body])
        return batch.digest

    changed = [(0, b"a", 1), (0, b"b", 1), (1, b"a", 1), (0, b"a", 2)]
    assert len({digest(*one) for one in changed}) == 4


def test_no_block_is_leaked():
    before = blocks_live()
    table = sessions()
    table.offer(GROUP, 1, [pack_noop(1, 2), b"bad", pack_noop(1, 2)])
    table.offer(3, 1, [pack_noop(1, 2)])
    table.offer(GROUP, 9, [pack_noop(1, 2)])
    assert blocks_live() == before
