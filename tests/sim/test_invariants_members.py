"""The claims about members that change (U10) reject what breaks them, and take all else."""

import struct

import pytest
from watch_lab import Case, History, accept, accept_message, check, lead, promise, record

from phx._core import members
from phx.sim.watch_door import WatchDoor
from phx.sim.wire_text import CHOSEN, MEMBERS, NOOP, ballot, encode

VOTER, WITNESS, LEARNER = 1, 2, 3
ACTIVE, HELD, LEFT = 1, 2, 4
B1, B2, B3 = ballot(1, 1), ballot(2, 2), ballot(3, 3)
C3, C4 = ballot(4, 3), ballot(5, 4)  # of newer members


def roster(version: int, voters: tuple[int, ...], learners: tuple[int, ...] = (),
           witnesses: tuple[int, ...] = (), packed: int = B1) -> bytes:  # fmt: skip
    roles = {**dict.fromkeys(voters, VOTER), **dict.fromkeys(learners, LEARNER)}
    roles |= dict.fromkeys(witnesses, WITNESS)
    return members.write(version, packed, 0, [(n, roles[n], b"x:1") for n in sorted(roles)])


def members_record(instance: int, floor: int, value: bytes, flags: int = HELD) -> bytes:
    return record(MEMBERS, 0, instance, floor, struct.pack("<II", flags, 0) + value)


class Changing(History):
    """Five nodes, of which the first three are the members at first."""

    def __init__(self) -> None:
        nodes = range(1, 6)
        self.watch = WatchDoor(5, 2)
        self.watch.members((1, 2, 3))
        self.at = dict.fromkeys(nodes, 1 << 20)
        self.log = {node: [] for node in nodes}
        for node in nodes:
            self.watch.start(node)
        self.promised: dict[tuple[int, int], int] = {}
        self.sequence = 0
        self.prepare(1, B1)

    def prepare(self, node: int, number: int, version: int = 1) -> None:
        """The ballot is one of that version."""
        if self.promised.get((node, 0), 0) < number:
            self.write(node, promise(number))
        self.watch.send(node, encode("Prepare", 0, number, config=version, first=1))

    def change(self, instance: int, value: bytes, number: int = B1,
               by: tuple[int, ...] = (1, 2)) -> None:  # fmt: skip
        """These members are decided."""
        self.decide(instance, value, number, by)

    def pass_it(self, node: int, instance: int, value: bytes, floor: int = B1) -> None:
        """The node knows that they are, durably."""
        self.write(node, members_record(instance, floor, value))


TO_345 = roster(2, (3, 4, 5))


def who_has_no_vote_accepts(h: Changing, bad: bool) -> None:
    body = h.body()
    h.write(1, accept(1, B1, body))
    h.write(4 if bad else 2, accept(1, B1, body))


def chosen_by_a_learner(h: Changing, bad: bool) -> None:
    h.change(1, roster(2, (1, 2), (3,)))
    for node in (1, 2, 3):
        h.pass_it(node, 1, roster(2, (1, 2), (3,)))
    number = ballot(4, 1)
    h.prepare(1, number, 2)
    h.write(1, accept(2, number, NOOP))
    if bad:
        h.write(3, record(CHOSEN, 0, 2, 0, NOOP))
    else:
        h.write(2, accept(2, number, NOOP))
    h.watch.send(1, encode("Chosen", 0, number, config=2, through=2))


def old_members_decide_above_the_change(h: Changing, bad: bool) -> None:
    h.change(1, TO_345)
    h.prepare(2, B2)
    h.write(1, accept(2, B2, NOOP))
    h.write(2, accept(2, B2, NOOP))
    h.watch.send(2, encode("Chosen", 0, B2, through=2 if bad else 1))


def new_members_decide_the_change_itself(h: Changing, bad: bool) -> None:
    h.change(1, roster(2, (1, 4, 5)), by=(1, 3) if not bad else (1,))
    if bad:
        h.write(1, record(CHOSEN, 0, 1, 0, roster(2, (1, 4, 5))))
    h.watch.send(1, encode("Chosen", 0, B1, through=1))


def a_ballot_of_old_members_counts_for_new_ones(h: Changing, bad: bool) -> None:
    """3 and 2 are members of both: what they accepted before is of no ballot of the new ones."""
    to_235 = roster(2, (2, 3, 5))
    h.write(2, accept(2, B1, NOOP))
    h.write(3, accept(2, B1, NOOP))
    h.prepare(2, B2)
    h.change(1, to_235, B2, (1, 2))
    h.watch.send(2, encode("Chosen", 0, B2, through=2 if bad else 1))


def a_ballot_decides_only_together_with_what_is_below(h: Changing, bad: bool) -> None:
    """1 proposes x at 1 and w at 2; of x only 1 has heard. 2 finds w, drops it, and has other
    members decided at 1 (M2); they decide another value at 2. If x had a quorum, it was decided."""
    x, w, v = h.body(b"x"), h.body(b"w"), h.body(b"v", node=3)
    h.write(1, accept(1, B1, x), accept(2, B1, w))
    h.write(3, accept(1, B1, x) if bad else promise(B1), accept(2, B1, w))
    h.prepare(2, B2)
    value = roster(2, (3, 4, 5), packed=B2)
    h.write(2, accept(1, B2, value))
    h.write(3, accept(1, B2, value))
    h.pass_it(3, 1, value, B2)
    h.pass_it(4, 1, value, B2)
    h.prepare(3, C3, 2)
    h.write(3, accept(2, C3, v))
    h.write(4, accept(2, C3, v))
    h.watch.send(3, encode("Chosen", 0, C3, config=2, through=2))


def proposed_while_something_below_is_open(h: Changing, bad: bool) -> None:
    if not bad:
        h.decide(1, NOOP)
    h.write(1, accept(2, B1, TO_345))


def adopted_while_something_below_is_open(h: Changing, bad: bool) -> None:
    """That is right: what is below goes the same way."""
    h.decide(1, NOOP)
    h.prepare(2, B2)
    h.write(1, accept(2, B1, TO_345))
    h.write(2, accept(3 if bad else 2, B2, TO_345))


def proposed_by_a_ballot_that_has_proposed_above(h: Changing, bad: bool) -> None:
    h.prepare(2, B2)
    h.write(1 if bad else 2, accept(2, B1 if bad else B2, NOOP))
    h.watch.send(1, accept_message(1, B1, TO_345))


def something_is_proposed_above_in_the_same_ballot(h: Changing, bad: bool) -> None:
    h.watch.send(1, accept_message(1, B1, TO_345))
    h.watch.send(1, accept_message(2 if bad else 1, B1, NOOP if bad else TO_345))


def a_ballot_of_two_versions(h: Changing, bad: bool) -> None:
    h.change(1, roster(2, (1, 2)))
    h.pass_it(1, 1, roster(2, (1, 2)))
    h.watch.send(1, encode("Prepare", 0, B1, config=2 if bad else 1, first=1))


def answered_in_another_version(h: Changing, bad: bool) -> None:
    value = roster(2, (1, 2, 3))
    h.change(1, value)
    h.pass_it(2, 1, value)
    h.prepare(3, B3)
    h.write(2, promise(B3))
    h.watch.send(2, encode("Promise", 0, B3, b"", 1, 2 if bad else 1, first=1))


def it_takes_part_before_it_knows_durably(h: Changing, bad: bool) -> None:
    value = roster(2, (1, 2, 3))
    h.change(1, value)
    number = ballot(4, 2)
    h.write(2, promise(number))
    h.write(2, members_record(1, B1, value), sync=not bad)
    h.watch.send(2, encode("Prepare", 0, number, config=2, first=2))


def decided_above(h: Changing, by: tuple[int, ...] = (3, 4)) -> None:
    h.change(1, TO_345, by=(1, 3))
    for node in by:
        h.pass_it(node, 1, TO_345)
    h.prepare(3, C3, 2)
    for node in by:
        h.write(node, accept(2, C3, NOOP))


def active_before_something_is_decided_above(h: Changing, bad: bool) -> None:
    decided_above(h, (3,) if bad else (3, 4))
    h.write(4, record(CHOSEN, 0, 1, 0, TO_345))
    h.watch.know_members(3, 0, 2, TO_345, 1, B1, True)
    h.watch.step(3, 0)


def active_and_nobody_else_has_it(h: Changing, bad: bool) -> None:
    decided_above(h)
    if not bad:
        h.write(4, record(CHOSEN, 0, 1, 0, TO_345))
    h.watch.know_members(3, 0, 2, TO_345, 1, B1, True)
    h.watch.step(3, 0)


def members_that_nobody_decided(h: Changing, bad: bool) -> None:
    if not bad:
        h.change(1, TO_345)
    h.watch.know_members(4, 0, 2, TO_345, 1, B1, False)
    h.watch.step(4, 0)


def members_of_another_instance(h: Changing, bad: bool) -> None:
    h.decide(1, NOOP)
    h.change(2, TO_345)
    h.watch.know_members(4, 0, 2, TO_345, 1 if bad else 2, B1, False)
    h.watch.step(4, 0)


def a_member_ends(h: Changing, bad: bool) -> None:
    """By what is decided 3 is one; somebody says otherwise."""
    decided_above(h)
    h.write(4, record(CHOSEN, 0, 1, 0, TO_345))
    said = roster(2, (4, 5)) if bad else TO_345
    h.watch.know_members(3, 0, 2, said, 1, B1, True)
    h.watch.step(3, 0)


def ends(h: Changing) -> None:
    decided_above(h)
    h.write(4, record(CHOSEN, 0, 1, 0, TO_345))
    h.watch.turn(1, 7)
    h.watch.know_members(1, 0, 2, TO_345, 1, B1, True)
    h.watch.step(1, 0)


def ended_and_takes_part(h: Changing, bad: bool) -> None:
    ends(h)
    refusal = encode("Refuse", 0, B1, promised=B1, reason=4)
    h.watch.send(1, encode("Promise", 0, B1, b"", 1, first=1) if bad else refusal, 8)


def ended_and_leads(h: Changing, bad: bool) -> None:
    ends(h)
    if bad:
        lead(h, 1, ballot(9, 1), 0)
        h.watch.spoil(1, 0, promised=ballot(9, 1))
    h.watch.step(1, 0)


def ended_and_begins_again(h: Changing, bad: bool) -> None:
    ends(h)
    h.write(1, members_record(1, B1, TO_345, ACTIVE | LEFT | HELD))
    h.restart(1, lambda one: not bad or one[8] != MEMBERS)


def forgotten_over_a_restart(h: Changing, bad: bool) -> None:
    h.change(1, roster(2, (1, 2, 3, 4)))
    h.pass_it(2, 1, roster(2, (1, 2, 3, 4)))
    h.restart(2, lambda one: not bad or one[8] != MEMBERS)


def leads_without_a_vote(h: Changing, bad: bool) -> None:
    node = 4 if bad else 1
    lead(h, node, ballot(4, node), 0)
    h.watch.step(node, 0)


def the_epoch_falls(h: Changing, bad: bool) -> None:
    h.watch.leads(1, 0, B1)
    decided_above(h)
    if bad:
        h.prepare(2, ballot(8, 2))
        h.watch.leads(2, 0, ballot(8, 2))
    h.watch.leads(3, 0, C3)


def the_epoch_of_older_members_comes_later(h: Changing, bad: bool) -> None:
    decided_above(h)
    h.watch.leads(3, 0, C3)
    h.prepare(2, ballot(8, 2) if bad else B2)
    h.watch.leads(2, 0, ballot(8, 2) if bad else B2)


def settled_past_a_change(h: Changing, bad: bool) -> None:
    h.change(1, TO_345)
    h.watch.members_row(2, 0, 1, 1 if bad else 2)


def wiped_and_a_member(h: Changing, bad: bool) -> None:
    h.change(1, TO_345)
    h.watch.die(2)
    h.watch.members_row(2, 1, 0, 1)
    value = roster(2, (3, 4, 5))
    if not bad:
        number = ballot(1, 1)
        h.write(1, promise(number, 1))
        h.watch.send(1, encode("Prepare", 1, number, first=1))
        h.write(1, accept(1, number, value, group=1))
        h.write(3, accept(1, number, value, group=1))
    h.watch.wiped(2)


def a_value_of_who_left_is_applied(h: Changing, bad: bool) -> None:
    h.change(1, TO_345, by=(1, 3))
    mine, other = h.body(b"x", node=2 if bad else 3), h.value
    h.pass_it(3, 1, TO_345)
    h.pass_it(4, 1, TO_345)
    h.prepare(3, C3, 2)
    for node in (3, 4):
        h.write(node, accept(2, C3, mine))
    h.watch.chosen(3, 0, 1, TO_345)
    h.watch.chosen(3, 0, 2, mine)
    h.watch.applied(3, 0, 2, 0, other, 7, 99)


CASES: list[Case] = [
    ("U10", who_has_no_vote_accepts),
    ("U3", chosen_by_a_learner),
    ("U3", old_members_decide_above_the_change),
    ("U3", new_members_decide_the_change_itself),
    ("U3", a_ballot_of_old_members_counts_for_new_ones),
    ("U1", a_ballot_decides_only_together_with_what_is_below),
    ("U10", proposed_while_something_below_is_open),
    ("U10", adopted_while_something_below_is_open),
    ("U10", proposed_by_a_ballot_that_has_proposed_above),
    ("U10", something_is_proposed_above_in_the_same_ballot),
    ("U10", a_ballot_of_two_versions),
    ("U10", answered_in_another_version),
    ("U10", it_takes_part_before_it_knows_durably),
    ("U10", active_before_something_is_decided_above),
    ("U10", active_and_nobody_else_has_it),
    ("U10", members_that_nobody_decided),
    ("U10", members_of_another_instance),
    ("U10", a_member_ends),
    ("U10", ended_and_takes_part),
    ("U10", ended_and_leads),
    ("U10", ended_and_begins_again),
    ("U10", forgotten_over_a_restart),
    ("U10", leads_without_a_vote),
    ("U10", the_epoch_falls),
    ("U10", the_epoch_of_older_members_comes_later),
    ("U10", settled_past_a_change),
    ("U10", wiped_and_a_member),
    ("U7", a_value_of_who_left_is_applied),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1].__name__)
def test_what_breaks_it_is_rejected(case: Case) -> None:
    check(*case)


def test_without_changes_every_instance_is_decided_by_itself() -> None:
    """The leader of 1 proposes x at 1 and w at 2; a quorum has w alone. Who proposes another value
    there breaks U1 at once, where members cannot change."""
    h = History()
    x, w, v = h.body(b"x"), h.body(b"w"), h.body(b"v")
    one, two = ballot(1, 1), ballot(1, 2)
    h.write(1, accept(1, one, x), accept(2, one, w))
    h.write(2, accept(2, one, w), promise(two))
    h.watch.send(2, accept_message(1, two, NOOP))
    assert h.watch.failure() is None
    h.watch.send(2, accept_message(2, two, v))
    failure = h.watch.failure()
    assert failure is not None
    assert failure[0] == "U1"
