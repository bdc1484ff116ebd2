"""What a node that lost its journal may not do (U10r): histories as in test_invariants.py."""

from collections.abc import Callable

import pytest
from watch_lab import B1, B2, B3, Case, History, accept, accept_message, check, promise, record

from phx.sim.wire_text import FLAG_LAST, SUSPECT, ballot, encode

HIGH = ballot(9, 2)


class Lossy(History):
    """Whose stores keep a ceiling: 8, and after a loss 50."""

    def __init__(self) -> None:
        super().__init__()
        for node in (1, 2, 3):
            self.watch.ceiling(node, 8)

    def lose(self, node: int, *, suspect: bool = True) -> None:
        """It dies, its journal is gone, and a new life begins."""
        self.watch.die(node)
        self.watch.lose(node)
        self.log[node], self.at[node] = [], 4096
        self.watch.start(node, suspect=suspect)
        self.watch.ceiling(node, 50)

    def prepare(self, node: int, number: int, others: tuple[int, ...]) -> None:
        """It asks, and these others promise."""
        self.write(node, promise(number))
        self.watch.send(node, encode("Prepare", 0, number, first=1))
        for other in others:
            self.watch.ceiling(other, 50)
            self.write(other, promise(number))
            self.watch.send(other, encode("Promise", 0, number, flags=FLAG_LAST, first=1))

    def whole(self, node: int, number: int) -> None:
        self.write(node, record(SUSPECT, 0, 1, number))
        self.watch.spoil(node, 0, suspect=0)


def it_promises_to_somebody_else(h: Lossy, bad: bool) -> None:
    h.lose(2)
    h.write(2 if bad else 1, promise(B3))
    h.watch.send(2 if bad else 1, encode("Promise", 0, B3, flags=FLAG_LAST, first=1))


def it_acknowledges(h: Lossy, bad: bool) -> None:
    x = h.body()
    h.lose(2)
    node = 2 if bad else 1
    h.write(node, accept(1, B3, x))
    h.watch.send(node, encode("Accepted", 0, B3, first=1, through=1))


def it_answers_a_prevote(h: Lossy, bad: bool) -> None:
    h.lose(2)
    h.watch.send(2 if bad else 1, encode("PreVoteReply", 0, 0, verdict=1))


def it_answers_before_it_is_whole_durably(h: Lossy, bad: bool) -> None:
    h.lose(2)
    h.prepare(2, HIGH, (1, 3))
    h.write(2, record(SUSPECT, 0, 1, HIGH), sync=not bad)
    h.watch.spoil(2, 0, suspect=0)
    h.watch.send(2, encode("PreVoteReply", 0, 0, verdict=1))  # has no durable effect
    h.watch.send(2, encode("Promise", 0, HIGH, flags=FLAG_LAST, first=1))


def it_acknowledges_with_an_acceptance_that_is_lost(h: Lossy, bad: bool) -> None:
    """When it is whole: instance 1 was accepted by it before the loss, not after."""
    x = h.body()
    h.write(2, accept(1, B1, x))
    h.lose(2)
    h.prepare(2, HIGH, (1, 3))
    h.write(2, *() if bad else (accept(1, HIGH, x),))
    h.whole(2, HIGH)
    h.watch.send(2, encode("Accepted", 0, B1 if bad else HIGH, first=1, through=1))


def a_vote_that_was_lost_counts_for_what_is_decided(h: Lossy, bad: bool) -> None:
    x, y = h.body(b"x"), h.body(b"y")
    h.write(1, accept(1, B1, x))
    h.lose(1)
    h.write(2, accept(1, B1, x))
    h.write(3, promise(B3))
    h.watch.send(3, accept_message(1, B3, y if bad else x))


def it_begins_as_if_nothing_was_lost(h: Lossy, bad: bool) -> None:
    h.lose(2, suspect=not bad)


def a_crash_later_it_begins_as_if_nothing_was_lost(h: Lossy, bad: bool) -> None:
    """It was whole in group 0, and that was not durable; in group 1 it says that it is not."""
    h.lose(2)
    unwhole = record(SUSPECT, 1, 1, 0, (8).to_bytes(8, "little"))
    h.write(2, unwhole)
    h.prepare(2, HIGH, (1, 3))
    h.write(2, record(SUSPECT, 0, 1, HIGH), sync=not bad)
    h.watch.die(2)
    h.watch.start(2, [(lsn, one) for lsn, one in h.log[2] if one in (promise(HIGH), unwhole)])


def the_engine_forgets_it(h: Lossy, bad: bool) -> None:
    h.lose(2)
    h.watch.spoil(2, 0, suspect=0 if bad else 1)
    h.watch.step(2, 0)


def too_few_others_promised(h: Lossy, bad: bool) -> None:
    h.lose(2)
    h.prepare(2, HIGH, (1,) if bad else (1, 3))
    h.whole(2, HIGH)


def its_own_promise_counts_for_nothing(h: Lossy, bad: bool) -> None:
    h.watch.ceiling(2, 9)
    h.prepare(2, HIGH, (1, 3))
    h.lose(2)
    higher = ballot(10, 2)
    h.prepare(2, higher, (1,) if bad else (1, 3))
    h.whole(2, higher)


def in_a_ballot_below_its_ceiling(h: Lossy, bad: bool) -> None:
    h.watch.ceiling(2, 9)
    h.lose(2)
    number = HIGH if bad else ballot(10, 2)
    h.prepare(2, number, (1, 3))
    h.whole(2, number)


def in_somebody_elses_ballot(h: Lossy, bad: bool) -> None:
    h.lose(2)
    h.prepare(2, HIGH, (1, 3))
    h.whole(2, ballot(9, 3) if bad else HIGH)


def it_promises_above_its_ceiling(h: Lossy, bad: bool) -> None:
    h.watch.ceiling(2, 1 if bad else 2)
    h.write(2, promise(B3))


def it_takes_part_in_what_it_may_have_promised(h: Lossy, bad: bool) -> None:
    h.write(2, promise(ballot(8, 3)))
    h.lose(2)
    number = ballot(8, 2) if bad else HIGH
    h.write(2, promise(number))
    h.watch.send(2, encode("Prepare", 0, number, first=1))


def it_accepts_in_what_it_may_have_promised(h: Lossy, bad: bool) -> None:
    h.write(2, promise(ballot(8, 3)))
    h.lose(2)
    h.write(2, accept(1, ballot(8, 2) if bad else HIGH, h.body()))


def whole_before_it_has_accepted_what_is_decided(h: Lossy, bad: bool) -> None:
    x = h.body()
    h.decide(1, x, B2)
    h.lose(2)
    h.prepare(2, HIGH, (1, 3))
    h.write(2, *() if bad else (accept(1, HIGH, x),))
    h.whole(2, HIGH)


HISTORIES: list[Case] = [
    ("U10r", it_promises_to_somebody_else),
    ("U10r", it_acknowledges),
    ("U10r", it_answers_a_prevote),
    ("U10r", it_answers_before_it_is_whole_durably),
    ("U5", it_acknowledges_with_an_acceptance_that_is_lost),
    ("U1", a_vote_that_was_lost_counts_for_what_is_decided),
    ("U10r", it_begins_as_if_nothing_was_lost),
    ("U10r", the_engine_forgets_it),
    ("U10r", too_few_others_promised),
    ("U10r", its_own_promise_counts_for_nothing),
    ("U10r", in_a_ballot_below_its_ceiling),
    ("U10r", in_somebody_elses_ballot),
    ("U10r", it_promises_above_its_ceiling),
    ("U10r", it_takes_part_in_what_it_may_have_promised),
    ("U10r", it_accepts_in_what_it_may_have_promised),
    ("U10r", a_crash_later_it_begins_as_if_nothing_was_lost),
    ("U10r", whole_before_it_has_accepted_what_is_decided),
]


@pytest.mark.parametrize(
    ("invariant", "history"), HISTORIES, ids=[h.__name__ for _, h in HISTORIES]
)
def test_a_bad_history_is_rejected(invariant: str, history: Callable[..., None]) -> None:
    check(invariant, history)
