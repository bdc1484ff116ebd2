"""Every invariant rejects a history, made by hand, that breaks it; and takes it unbroken."""

import struct
from collections.abc import Callable

import pytest
from watch_lab import (
    B1,
    B2,
    B3,
    Case,
    History,
    accept,
    accept_message,
    check,
    lead,
    promise,
    record,
    reported,
)

from phx.sim.wire_text import (
    ACCEPT,
    CHOSEN,
    ENTRY_CHOSEN,
    FLAG_LAST,
    MARK,
    NOOP,
    Run,
    align8,
    ballot,
    batch,
    encode,
)

# Each: what happens when all is well, then what breaks the invariant. `bad` False: only the first.


def two_values_are_decided(h: History, bad: bool) -> None:
    x, y = h.body(b"x"), h.body(b"y")
    h.decide(1, x, B1)
    h.write(3, accept(1, B2, y if bad else x))
    h.write(2, accept(1, B2, y if bad else x))


def another_value_is_proposed_above_a_decision(h: History, bad: bool) -> None:
    x, y = h.body(b"x"), h.body(b"y")
    h.decide(1, x, B1)
    h.write(3, promise(B3))
    h.watch.send(3, accept_message(1, B3, y if bad else x))


def a_higher_proposal_before_the_decision_differs(h: History, bad: bool) -> None:
    x, y = h.body(b"x"), h.body(b"y")
    h.write(1, accept(1, B1, x))
    h.write(3, accept(1, B3, y if bad else x))
    h.write(2, accept(1, B1, x))


def a_decision_is_learned_as_another(h: History, bad: bool) -> None:
    x, y = h.body(b"x"), h.body(b"y")
    h.decide(1, x)
    h.write(3, record(CHOSEN, 0, 1, 0, y if bad else x))


def a_promise_reports_another_value_as_chosen(h: History, bad: bool) -> None:
    x, y = h.body(b"x"), h.body(b"y")
    h.decide(1, x)
    h.write(2, promise(B3))
    entry = reported(1, 0, y if bad else x, ENTRY_CHOSEN)
    h.watch.send(2, encode("Promise", 0, B3, entry, FLAG_LAST, first=1, count=1))


def a_value_that_nobody_proposed(h: History, bad: bool) -> None:
    text = struct.pack("<Q", 77) + b"x"
    forged = batch([Run(1, 1, 1, 1, [text])])
    h.write(1, accept(1, B1, forged if bad else NOOP))


def a_value_with_a_flipped_bit(h: History, bad: bool) -> None:
    body = bytearray(h.body(b"x"))
    body[-1] ^= bad
    h.write(1, accept(1, B1, bytes(body)))


def a_value_of_another_group(h: History, bad: bool) -> None:
    body = h.body(b"x", group=1 if bad else 0)
    h.write(1, accept(1, B1, body, group=0))


def a_value_under_another_name(h: History, bad: bool) -> None:
    h.body(b"x")
    h.write(1, accept(1, B1, batch([Run(1, 1, 1, 1 + bad, [h.value])])))


def chosen_without_a_quorum(h: History, bad: bool) -> None:
    h.decide(1, h.body(), by=(1,) if bad else (1, 2))
    h.write(1, promise(B1))
    h.watch.send(1, encode("Chosen", 0, B1, through=1))


def a_watermark_ahead_of_the_quorum(h: History, bad: bool) -> None:
    h.decide(1, h.body(), by=(1,) if bad else (1, 2))
    h.write(1, promise(B1))
    h.watch.send(1, accept_message(2, B1, h.body(), watermark=1))


def learned_by_a_peer_without_a_quorum(h: History, bad: bool) -> None:
    body = h.body()
    h.decide(1, body, by=(1,) if bad else (1, 2))
    entry = struct.pack("<QII", 1, len(body), 0) + body
    rest = entry.ljust(align8(len(entry)), b"\0")
    h.watch.send(1, encode("Learn", 0, 0, rest, first=1, chosen=0, count=1))


def a_node_takes_for_chosen_what_is_not(h: History, bad: bool) -> None:
    h.decide(1, h.body(), by=(1,) if bad else (1, 2))
    h.watch.spoil(2, 0, chosen_through=1)
    h.watch.step(2, 0)


def what_was_chosen_is_not_any_more(h: History, bad: bool) -> None:
    h.decide(1, h.body())
    h.watch.spoil(2, 0, chosen_through=1)
    h.watch.step(2, 0)
    h.watch.spoil(2, 0, chosen_through=0 if bad else 1)
    h.watch.step(2, 0)


def settled_before_chosen(h: History, bad: bool) -> None:
    h.decide(1, h.body())
    h.watch.row(2, 0, 1, 2)
    h.watch.spoil(2, 0, chosen_through=1, settled_through=2 if bad else 1)
    h.watch.step(2, 0)


def an_acceptance_is_forgotten_over_a_restart(h: History, bad: bool) -> None:
    body = h.body()
    h.write(1, accept(1, B1, body), promise(B3))
    h.restart(1, lambda one: one[8] != ACCEPT or not bad)


def replay_hands_on_what_was_never_written(h: History, bad: bool) -> None:
    x, y = h.body(b"x"), h.body(b"y")
    h.write(1, accept(1, B1, x))
    if bad:
        h.log[1] = [(h.log[1][0][0], accept(1, B1, y))]
    h.restart(1)


def replay_moves_a_record(h: History, bad: bool) -> None:
    h.write(1, accept(1, B1, h.body()))
    h.log[1] = [(lsn + 4096 * bad, one) for lsn, one in h.log[1]]
    h.restart(1)


def a_durable_position_is_written_again(h: History, bad: bool) -> None:
    h.write(1, promise(B1))
    h.at[1] -= 32 * bad
    h.write(1, promise(B3))


def a_promise_is_taken_back(h: History, bad: bool) -> None:
    h.write(1, promise(B3), promise(B1 if bad else B3))


def a_promise_falls_in_memory(h: History, bad: bool) -> None:
    h.watch.spoil(1, 0, promised=B3)
    h.watch.step(1, 0)
    h.watch.spoil(1, 0, promised=B1 if bad else B3)
    h.watch.step(1, 0)


def a_promise_is_forgotten_over_a_restart(h: History, bad: bool) -> None:
    h.write(1, promise(B3))
    h.restart(1, lambda _: not bad)


def an_acceptance_below_the_promise(h: History, bad: bool) -> None:
    h.write(1, promise(B3), accept(1, B1 if bad else B3, h.body()))


def an_acceptance_above_the_promise_in_memory(h: History, bad: bool) -> None:
    body = h.body()
    h.write(2, accept(1, B3, body))
    h.watch.spoil(1, 0, promised=B1 if bad else B3)
    h.watch.spoil_slot(1, 0, 1, B3, body)
    h.watch.full()


def a_leader_below_its_promise(h: History, bad: bool) -> None:
    h.watch.spoil(1, 0, promised=B1)
    h.watch.spoil_lead(1, 0, ballot(2, 1) if bad else B1, 0)
    h.watch.step(1, 0)


def a_prepare_before_the_own_promise_is_durable(h: History, bad: bool) -> None:
    h.write(1, promise(B1), sync=not bad)
    h.watch.send(1, encode("Prepare", 0, B1, first=1))


def a_promise_before_it_is_durable(h: History, bad: bool) -> None:
    h.write(2, promise(B3), sync=not bad)
    h.watch.send(2, encode("Promise", 0, B3, flags=FLAG_LAST, first=1))


def a_refusal_tells_of_a_promise_that_is_not_durable(h: History, bad: bool) -> None:
    h.write(2, promise(B3), sync=not bad)
    h.watch.send(2, encode("Refuse", 0, B1, promised=B3, reason=1))


def acknowledged_before_durable(h: History, bad: bool) -> None:
    h.write(2, promise(B1))
    h.write(2, accept(1, B1, h.body()), sync=not bad)
    h.watch.send(2, encode("Accepted", 0, B1, first=1, through=1))


def acknowledged_across_a_hole(h: History, bad: bool) -> None:
    h.write(2, accept(1, B1, h.body()), accept(3 if bad else 2, B1, h.body()))
    h.watch.send(2, encode("Accepted", 0, B1, first=1, through=3 if bad else 2))


def acknowledged_from_another_ballot(h: History, bad: bool) -> None:
    h.write(2, accept(1, B1, h.body()), promise(B3))
    h.watch.send(2, encode("Accepted", 0, B3 if bad else B1, first=1, through=1))


def a_learned_value_is_acknowledged_before_it_is_durable(h: History, bad: bool) -> None:
    body = h.body()
    h.decide(1, body)
    h.write(3, promise(B1))
    h.write(3, record(CHOSEN, 0, 1, 0, body), sync=not bad)
    h.watch.send(3, encode("Accepted", 0, B1, first=1, through=1))


def a_promise_reports_what_is_not_durable(h: History, bad: bool) -> None:
    body = h.body()
    h.write(2, promise(B3))
    h.write(2, accept(1, B3, body), sync=not bad)
    entry = reported(1, B3, body)
    h.watch.send(2, encode("Promise", 0, B3, entry, FLAG_LAST, first=1, count=1))


def a_mark_runs_ahead(h: History, bad: bool) -> None:
    h.write(1, promise(B1), sync=not bad)
    h.write(1, record(MARK, 0, h.at[1], 0))


def two_values_in_one_ballot(h: History, bad: bool) -> None:
    x, y = h.body(b"x"), h.body(b"y")
    h.write(1, accept(1, B1, x))
    h.write(2, accept(1, B1, y if bad else x))


def a_ballot_of_an_earlier_life(h: History, bad: bool) -> None:
    h.write(1, promise(B1))
    h.watch.send(1, encode("Prepare", 0, B1, first=1))
    h.restart(1)
    number = B1 if bad else ballot(2, 1)
    h.write(1, promise(number))
    h.watch.send(1, encode("Prepare", 0, number, first=1))


def somebody_elses_ballot(h: History, bad: bool) -> None:
    h.write(1, promise(B2 if bad else B1))
    h.watch.send(1, encode("Prepare", 0, B2 if bad else B1, first=1))


def handed_on_out_of_order(h: History, bad: bool) -> None:
    first, second = h.body(), h.body()
    h.decide(1, first)
    h.decide(2, second)
    if not bad:
        h.watch.chosen(1, 0, 1, first)
    h.watch.chosen(1, 0, 2, second)


def handed_on_with_another_value(h: History, bad: bool) -> None:
    x, y = h.body(b"x"), h.body(b"y")
    h.decide(1, x)
    h.watch.chosen(1, 0, 1, y if bad else x)


def applied_twice(h: History, bad: bool) -> None:
    h.decide(1, h.body())
    h.watch.applied(1, 0, 1, 0, h.value, 7, 99)
    if bad:
        h.watch.applied(1, 0, 1, 0, h.value, 7, 99)


def a_duplicate_is_applied(h: History, bad: bool) -> None:
    first = h.body()
    value = h.value
    h.decide(1, first)
    h.decide(2, batch([Run(1, 1, 1, 1, [value])], 8))  # the same value again: left out
    h.decide(3, h.body())
    h.watch.applied(2, 0, 1, 0, value, 7, 99)
    if bad:
        h.watch.applied(2, 0, 2, 0, value, 8, 0)
    h.watch.applied(2, 0, 3, 0, h.value, 7, 99)


def a_value_is_left_out(h: History, bad: bool) -> None:
    """Sequence 2 is chosen before 1: remembering the highest sequence only would lose 1."""
    first, one = h.body(), h.value
    second, two = h.body(), h.value
    h.decide(1, second)
    h.decide(2, first)
    h.decide(3, h.body())
    h.watch.applied(2, 0, 1, 0, two, 7, 99)
    if not bad:
        h.watch.applied(2, 0, 2, 0, one, 7, 99)
    h.watch.applied(2, 0, 3, 0, h.value, 7, 99)


def apply_sees_another_epoch(h: History, bad: bool) -> None:
    h.decide(1, h.body(epoch=7))
    h.watch.applied(1, 0, 1, 0, h.value, B1 if bad else 7, 99)


def applied_beyond_the_log(h: History, bad: bool) -> None:
    h.decide(1, h.body(), by=(1,) if bad else (1, 2))
    h.watch.applied(1, 0, 1, 0, h.value, 7, 99)


def applied_before_chosen(h: History, bad: bool) -> None:
    h.decide(1, h.body())
    h.watch.spoil(1, 0, chosen_through=1, applied_through=2 if bad else 1)
    h.watch.step(1, 0)


def dropped_and_never_applied(h: History, bad: bool) -> None:
    h.decide(1, h.body(), by=(1,) if bad else (1, 2))
    h.watch.dropped(1, 0, h.value)


def rejected_and_chosen(h: History, bad: bool) -> None:
    h.decide(1, h.body())
    h.watch.verdict(h.value, bad)


def chosen_after_it_was_rejected(h: History, bad: bool) -> None:
    body = h.body()
    h.watch.verdict(h.value, bad)
    h.decide(1, body)


def told_twice(h: History, bad: bool) -> None:
    h.decide(1, h.body())
    h.watch.acked(1, 0, h.value)
    if bad:
        h.watch.verdict(h.value, False)


def acknowledged_and_not_applied(h: History, bad: bool) -> None:
    h.decide(1, h.body(), by=(1,) if bad else (1, 2))
    h.watch.acked(1, 0, h.value)


def two_hold_the_lease(h: History, bad: bool) -> None:
    h.watch.time(1000)
    lead(h, 1, B1, 2000)
    lead(h, 2, B2, 2000 if bad else 500)
    h.watch.full()


def decided_beside_a_holder(h: History, bad: bool) -> None:
    """A reader under the lease would not see it."""
    body = h.body()
    h.watch.time(1000)
    lead(h, 1, B1, 2000 if bad else 999)
    h.decide(1, body, B3, by=(2, 3))


def an_acceptance_beyond_the_window(h: History, bad: bool) -> None:
    h.write(1, accept(17 if bad else 16, B1, h.body()))


def a_cache_over_its_limit(h: History, bad: bool) -> None:
    h.watch.spoil(1, 0, cached_bytes=1 << (30 if bad else 10))
    h.watch.full()
    h.watch.spoil(1, 0, cached_bytes=0)


def more_waits_than_the_limit(h: History, bad: bool) -> None:
    h.watch.spoil(1, 0, pending_bytes=1 << (30 if bad else 10))
    h.watch.full()


def another_chain_than_another_replica(h: History, bad: bool) -> None:
    h.watch.chain(1, 0, 1, 77)
    h.watch.chain(2, 0, 1, 77 + bad)


HISTORIES: list[Case] = [
    ("U1", two_values_are_decided),
    ("U1", another_value_is_proposed_above_a_decision),
    ("U1", a_higher_proposal_before_the_decision_differs),
    ("U1", a_decision_is_learned_as_another),
    ("U1", a_promise_reports_another_value_as_chosen),
    ("U1", handed_on_with_another_value),
    ("U2", a_value_that_nobody_proposed),
    ("U2", a_value_with_a_flipped_bit),
    ("U2", a_value_of_another_group),
    ("U2", a_value_under_another_name),
    ("U3", chosen_without_a_quorum),
    ("U3", a_watermark_ahead_of_the_quorum),
    ("U3", learned_by_a_peer_without_a_quorum),
    ("U3", a_node_takes_for_chosen_what_is_not),
    ("U3", what_was_chosen_is_not_any_more),
    ("U3", settled_before_chosen),
    ("U3", an_acceptance_is_forgotten_over_a_restart),
    ("U3", replay_hands_on_what_was_never_written),
    ("U3", replay_moves_a_record),
    ("U3", a_durable_position_is_written_again),
    ("U4", a_promise_is_taken_back),
    ("U4", a_promise_falls_in_memory),
    ("U4", a_promise_is_forgotten_over_a_restart),
    ("U4", an_acceptance_below_the_promise),
    ("U4", an_acceptance_above_the_promise_in_memory),
    ("U4", a_leader_below_its_promise),
    ("U5", a_prepare_before_the_own_promise_is_durable),
    ("U5", a_promise_before_it_is_durable),
    ("U5", a_refusal_tells_of_a_promise_that_is_not_durable),
    ("U5", acknowledged_before_durable),
    ("U5", acknowledged_across_a_hole),
    ("U5", acknowledged_from_another_ballot),
    ("U5", a_learned_value_is_acknowledged_before_it_is_durable),
    ("U5", a_promise_reports_what_is_not_durable),
    ("U5", a_mark_runs_ahead),
    ("U6", two_values_in_one_ballot),
    ("U6", a_ballot_of_an_earlier_life),
    ("U6", somebody_elses_ballot),
    ("U7", handed_on_out_of_order),
    ("U7", applied_twice),
    ("U7", a_duplicate_is_applied),
    ("U7", a_value_is_left_out),
    ("U7", apply_sees_another_epoch),
    ("U7", applied_beyond_the_log),
    ("U7", applied_before_chosen),
    ("U7", dropped_and_never_applied),
    ("U8", rejected_and_chosen),
    ("U1", chosen_after_it_was_rejected),
    ("U8", told_twice),
    ("U8", acknowledged_and_not_applied),
    ("U7", another_chain_than_another_replica),
    ("U11", two_hold_the_lease),
    ("U11", decided_beside_a_holder),
    ("bounded", an_acceptance_beyond_the_window),
    ("bounded", a_cache_over_its_limit),
    ("bounded", more_waits_than_the_limit),
]


@pytest.mark.parametrize(
    ("invariant", "history"), HISTORIES, ids=[h.__name__ for _, h in HISTORIES]
)
def test_a_bad_history_is_rejected(invariant: str, history: Callable[..., None]) -> None:
    check(invariant, history)


def test_every_invariant_of_the_page_is_here() -> None:
    named = {invariant for invariant, _ in HISTORIES}
    assert named == {"U1", "U2", "U3", "U4", "U5", "U6", "U7", "U8", "U11", "bounded"}
