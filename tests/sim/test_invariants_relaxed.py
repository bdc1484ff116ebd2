"""What a node may not tell of a relaxed group, and not do after its machine failed: histories as in
test_invariants.py."""

from collections.abc import Callable

import pytest
from test_invariants_members import Changing, roster
from watch_lab import B1, B2, B3, Case, History, accept, accept_message, check, promise, record
from watch_lab import reported as entry_of

from phx.sim.wire_text import CHOSEN, FLAG_LAST, NODE, SUSPECT, ballot, encode

HIGH = ballot(9, 2)
ABOVE = (8).to_bytes(8, "little")


class Relaxed(History):
    """Group 0 is relaxed at every node, and group 1 at none."""

    def __init__(self) -> None:
        super().__init__()
        for node in (1, 2, 3):
            self.watch.ceiling(node, 8)
            self.watch.relaxed_row(node, 0, True)
            self.watch.relax(node, 0, True)

    def put(self, node: int, *records: bytes) -> None:
        """They are written, and not durable."""
        self.write(node, *records, sync=False)
        self.watch.written(node, self.at[node])

    def fail(self, node: int, *left: bytes, suspect: bool = True) -> None:
        """The power of its machine goes, and these records are left; it starts again."""
        self.watch.die(node)
        self.watch.power(node)
        self.again(node, *left, suspect=suspect)
        self.watch.ceiling(node, 50)

    def again(self, node: int, *left: bytes, suspect: bool = False) -> None:
        kept = [(lsn, one) for lsn, one in self.log[node] if one in left]
        self.watch.start(node, kept, suspect=suspect)

    def acknowledges(self, node: int, number: int, through: int = 1, made: int = 0) -> None:
        self.watch.send(node, encode("Accepted", 0, number, first=1, through=through), made)

    def prepare(self, node: int, number: int, others: tuple[int, ...]) -> None:
        """It asks, and these others promise."""
        self.write(node, promise(number))
        self.watch.send(node, encode("Prepare", 0, number, first=1))
        for other in others:
            self.watch.ceiling(other, 50)
            self.write(other, promise(number))
            self.watch.send(other, encode("Promise", 0, number, flags=FLAG_LAST, first=1))


# --- what is told


def an_acceptance_that_is_not_written(h: Relaxed, bad: bool) -> None:
    h.write(2, promise(B1))
    h.write(2, accept(1, B1, h.body()), sync=False)
    if not bad:
        h.watch.written(2, h.at[2])
    h.acknowledges(2, B1)


def an_acceptance_in_a_ballot_whose_promise_is_only_written(h: Relaxed, bad: bool) -> None:
    h.write(2, promise(B1), sync=not bad)
    h.put(2, accept(1, B1, h.body()))
    h.acknowledges(2, B1)


def in_the_ballot_of_another_acceptance(h: Relaxed, bad: bool) -> None:
    x = h.body()
    h.write(2, promise(B1), promise(B2))
    h.put(2, accept(1, B2, x))
    h.acknowledges(2, B1 if bad else B2)


def a_promise_tells_of_what_is_only_written(h: Relaxed, bad: bool) -> None:
    x = h.body()
    h.write(2, promise(B3))
    h.write(2, accept(1, B3, x), sync=not bad)
    h.watch.written(2, h.at[2])
    h.watch.send(2, encode("Promise", 0, B3, entry_of(1, B3, x), FLAG_LAST, first=1, count=1))


def a_group_that_syncs_beside_it(h: Relaxed, bad: bool) -> None:
    group = 1 if bad else 0
    h.write(2, promise(B1, group))
    h.put(2, accept(1, B1, h.body(group=group), group))
    h.watch.send(2, encode("Accepted", group, B1, first=1, through=1))


def what_was_emitted_before_it_was_relaxed(h: Relaxed, bad: bool) -> None:
    h.watch.relax(2, 0, False)
    h.write(2, promise(B1))
    h.write(2, accept(1, B1, h.body()), sync=not bad)
    h.watch.relax(2, 0, True)
    h.watch.written(2, h.at[2])
    h.acknowledges(2, B1)


def what_is_only_written_once_it_syncs_again(h: Relaxed, bad: bool) -> None:
    h.write(2, promise(B1))
    h.put(2, accept(1, B1, h.body()))
    h.watch.relax(2, 0, False, turn=5)
    h.acknowledges(2, B1, made=6 if bad else 5)


def what_was_told_before_it_syncs_again_is_told_once_more(h: Relaxed, bad: bool) -> None:
    h.write(2, promise(B1))
    h.put(2, accept(1, B1, h.body()))
    h.acknowledges(2, B1, made=5)
    h.watch.relax(2, 0, False, turn=5)
    if not bad:
        h.watch.durable(2, h.at[2])
    h.acknowledges(2, B1, made=6)


def what_is_chosen_and_learned_and_not_written(h: Relaxed, bad: bool) -> None:
    x, y = h.body(b"x"), h.body(b"y")
    h.decide(2, y, by=(1, 3))
    h.write(2, promise(B1))
    h.put(2, accept(1, B1, x))
    h.write(2, record(CHOSEN, 0, 2, 0, y), sync=False)
    if not bad:
        h.watch.written(2, h.at[2])
    h.acknowledges(2, B1, through=2)


# --- what counts


def what_is_only_written_counts_for_nothing_where_groups_sync(h: Relaxed, bad: bool) -> None:
    group = 1 if bad else 0
    x = h.body(group=group)
    for node in (1, 2):
        h.write(node, promise(B1, group))
        h.put(node, accept(1, B1, x, group))
    h.watch.send(1, encode("Chosen", group, B1, through=1))


def votes_that_went_with_the_power_count_for_what_is_decided(h: Relaxed, bad: bool) -> None:
    x, y = h.body(b"x"), h.body(b"y")
    h.write(1, promise(B1))
    h.put(1, accept(1, B1, x))
    h.fail(1, promise(B1))
    h.put(2, accept(1, B1, x))
    h.write(3, promise(B3))
    h.watch.send(3, accept_message(1, B3, y if bad else x))


# --- after its machine, or its process, failed


def it_begins_as_if_nothing_was_lost(h: Relaxed, bad: bool) -> None:
    h.write(2, promise(B1))
    h.put(2, accept(1, B1, h.body()))
    h.fail(2, promise(B1), suspect=not bad)


def so_it_does_where_nothing_was_written(h: Relaxed, bad: bool) -> None:
    """It may have been: its store has the group as relaxed."""
    h.fail(2, suspect=not bad)


def it_acknowledges_before_it_is_whole(h: Relaxed, bad: bool) -> None:
    x = h.body()
    h.write(2, promise(B1), accept(1, B1, x))
    h.put(2, accept(2, B1, h.body()))
    if bad:
        h.fail(2, promise(B1), accept(1, B1, x))
    h.acknowledges(2, B1)


def it_promises_before_it_is_whole(h: Relaxed, bad: bool) -> None:
    if bad:
        h.fail(2)
    h.write(2, promise(B3))
    h.watch.send(2, encode("Promise", 0, B3, flags=FLAG_LAST, first=1))


def a_promise_went_with_the_power(h: Relaxed, bad: bool) -> None:
    h.write(2, promise(B3))
    h.fail(2, *() if bad else (promise(B3),))


def an_acceptance_that_was_durable_went_with_the_power(h: Relaxed, bad: bool) -> None:
    x = h.body()
    h.write(2, promise(B1), accept(1, B1, x))
    h.fail(2, promise(B1), *() if bad else (accept(1, B1, x),))


def an_acceptance_went_with_the_process(h: Relaxed, bad: bool) -> None:
    x = h.body()
    h.write(2, promise(B1))
    h.put(2, accept(1, B1, x))
    h.watch.die(2)
    h.again(2, promise(B1), *() if bad else (accept(1, B1, x),))


def that_it_was_whole_after_an_earlier_loss_is_not_that_it_is_now(h: Relaxed, bad: bool) -> None:
    lives = [record(NODE, 0, number, 0) for number in (1, 2, 3)]
    gone = record(SUSPECT, 0, 2, 0, ABOVE)
    whole = record(SUSPECT, 0, 2, HIGH)
    h.write(2, lives[0])
    h.fail(2, lives[0])
    h.write(2, gone, lives[1])
    h.prepare(2, HIGH, (1, 3))
    h.write(2, whole)
    h.watch.spoil(2, 0, suspect=0)
    h.watch.relaxed_row(2, 0, True)
    h.fail(2, lives[0], lives[1], gone, whole, promise(HIGH), suspect=not bad)


def its_acceptances_in_doubt_are_only_written(h: Relaxed, bad: bool) -> None:
    """It becomes whole with one that is not durable."""
    x = h.body()
    h.decide(1, x, B1, by=(1, 3))
    h.fail(2)
    h.watch.relax(2, 0, True)
    h.prepare(2, HIGH, (1, 3))
    h.write(2, accept(1, HIGH, x), sync=not bad)
    h.watch.written(2, h.at[2])
    h.write(2, record(SUSPECT, 0, 1, HIGH), sync=False)
    h.watch.spoil(2, 0, suspect=0)


def a_suspect_acceptance_is_told_once_it_is_written(h: Relaxed, bad: bool) -> None:
    h.fail(2)
    h.watch.relax(2, 0, True)
    h.prepare(2, HIGH, (1, 3))
    h.write(2, record(SUSPECT, 0, 2, HIGH) if not bad else accept(1, HIGH, h.body()), sync=False)
    if not bad:
        h.watch.spoil(2, 0, suspect=0)
        h.watch.durable(2, h.at[2])
        h.put(2, accept(1, HIGH, h.body()))
    h.watch.written(2, h.at[2])
    h.acknowledges(2, HIGH)


# --- what its store knows


def it_is_relaxed_before_its_store_knows(h: Relaxed, bad: bool) -> None:
    if not bad:
        h.watch.relaxed_row(2, 1, True)
    h.watch.relax(2, 1, True)


def its_store_forgets_it_while_it_is_relaxed(h: Relaxed, bad: bool) -> None:
    if not bad:
        h.watch.relax(2, 0, False)
    h.watch.relaxed_row(2, 0, False)


def its_store_forgets_it_before_all_is_durable(h: Relaxed, bad: bool) -> None:
    h.write(2, promise(B1))
    h.put(2, accept(1, B1, h.body()))
    h.watch.relax(2, 0, False)
    if not bad:
        h.watch.durable(2, h.at[2])
    h.watch.relaxed_row(2, 0, False)


def its_store_forgets_a_failure_before_its_journal_has_it(h: Relaxed, bad: bool) -> None:
    h.fail(2)
    h.write(2, record(SUSPECT, 0, 2, 0, ABOVE), sync=not bad)
    h.watch.relaxed_row(2, 0, False)


def a_change_of_members_is_only_written(h: Changing, bad: bool) -> None:
    value = roster(2, (1, 2), (3,))
    h.watch.relaxed_row(2, 0, True)
    h.watch.relax(2, 0, True)
    h.write(2, promise(ballot(1, 1)))
    h.write(2, accept(1, ballot(1, 1), value if bad else h.body()), sync=False)
    h.watch.written(2, h.at[2])
    h.watch.send(2, encode("Accepted", 0, ballot(1, 1), config=1, first=1, through=1))


HISTORIES: list[Case] = [
    ("U5", an_acceptance_that_is_not_written),
    ("U5", an_acceptance_in_a_ballot_whose_promise_is_only_written),
    ("U5", in_the_ballot_of_another_acceptance),
    ("U5", a_promise_tells_of_what_is_only_written),
    ("U5", a_group_that_syncs_beside_it),
    ("U5", what_was_emitted_before_it_was_relaxed),
    ("U5", what_is_only_written_once_it_syncs_again),
    ("U5", what_was_told_before_it_syncs_again_is_told_once_more),
    ("U5", what_is_chosen_and_learned_and_not_written),
    ("U5", a_change_of_members_is_only_written),
    ("U3", what_is_only_written_counts_for_nothing_where_groups_sync),
    ("U1", votes_that_went_with_the_power_count_for_what_is_decided),
    ("U10r", it_begins_as_if_nothing_was_lost),
    ("U10r", so_it_does_where_nothing_was_written),
    ("U10r", it_acknowledges_before_it_is_whole),
    ("U10r", it_promises_before_it_is_whole),
    ("U4", a_promise_went_with_the_power),
    ("U3", an_acceptance_that_was_durable_went_with_the_power),
    ("U3", an_acceptance_went_with_the_process),
    ("U10r", that_it_was_whole_after_an_earlier_loss_is_not_that_it_is_now),
    ("U10r", its_acceptances_in_doubt_are_only_written),
    ("U10r", a_suspect_acceptance_is_told_once_it_is_written),
    ("U10r", it_is_relaxed_before_its_store_knows),
    ("U10r", its_store_forgets_it_while_it_is_relaxed),
    ("U10r", its_store_forgets_it_before_all_is_durable),
    ("U10r", its_store_forgets_a_failure_before_its_journal_has_it),
]


@pytest.mark.parametrize(
    ("invariant", "history"), HISTORIES, ids=[h.__name__ for _, h in HISTORIES]
)
def test_a_bad_history_is_rejected(invariant: str, history: Callable[..., None]) -> None:
    check(invariant, history)
