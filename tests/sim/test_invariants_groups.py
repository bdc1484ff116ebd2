"""The claims about groups that come and go (U15) reject what breaks them, and take all else."""

import struct

import pytest
from test_invariants_members import roster
from watch_lab import Case, History, accept, check, promise, record

from phx.sim.watch_door import WatchDoor
from phx.sim.wire_text import MEMBERS, ballot, encode
from phx.types import created_version

GROUP = 1
BASE = 1
FIRST = created_version(1)
OURS = (1, 2, 3)
B5 = ballot(5, 1)


class Created(History):
    """Four nodes, one group of the configuration, and one that was created on three of them."""

    def __init__(self) -> None:
        nodes = range(1, 5)
        self.watch = WatchDoor(4, 1, 1)
        self.watch.members(nodes)
        self.at = dict.fromkeys(nodes, 1 << 20)
        self.log = {node: [] for node in nodes}
        for node in nodes:
            self.watch.start(node)
        self.promised: dict[tuple[int, int], int] = {}
        self.sequence = 0
        self.first = roster(FIRST, OURS, packed=1)
        self.watch.created(GROUP, self.first)

    def host(self, node: int, row: bool = True) -> None:
        if row:
            self.watch.hosts(node, GROUP, True)
        self.watch.host(node, GROUP, self.first)
        self.watch.members_row(node, GROUP, BASE, FIRST)

    def lead(self, node: int = 1, number: int = B5, made: int = 0) -> None:
        self.write(node, promise(number, GROUP))
        self.watch.send(node, encode("Prepare", GROUP, number, config=FIRST, first=2), made)

    def end(self) -> None:
        """Its last value is decided, and 1 and 2 know that."""
        last = roster(FIRST + 1, (), packed=B5)
        for node in (1, 2):
            self.write(node, accept(BASE + 1, B5, last, GROUP))
        for node in (1, 2):
            flags = struct.pack("<II", 0b1111, 0)
            self.write(node, record(MEMBERS, GROUP, BASE + 1, B5, flags + last))

    def all_of_it(self) -> None:
        for node in OURS:
            self.host(node)
        self.lead()
        self.end()
        self.watch.over(1, GROUP)


def takes_part_without_a_row(h: Created, bad: bool) -> None:
    if not bad:
        h.watch.hosts(1, GROUP, True)
    h.watch.send(1, encode("PreVote", GROUP, B5, config=FIRST, chosen=1))


def writes_without_a_row(h: Created, bad: bool) -> None:
    h.watch.hosts(2 if bad else 1, GROUP, True)
    if not bad:
        h.host(1, row=False)
    h.write(1, promise(0 if bad else B5, GROUP), sync=False)


def is_hosted_without_a_row(h: Created, bad: bool) -> None:
    h.host(1, row=not bad)


def takes_part_after_it_was_dropped(h: Created, bad: bool) -> None:
    h.all_of_it()
    h.watch.turn(1, 7)
    h.watch.hosts(1, GROUP, False)
    h.watch.unhost(1, GROUP)
    h.watch.send(1, encode("Chosen", GROUP, B5, config=FIRST, through=2), 9 if bad else 8)


def takes_part_in_the_next_life(h: Created, bad: bool) -> None:
    h.all_of_it()
    h.watch.hosts(1, GROUP, False)
    h.watch.die(1)
    h.watch.start(1, created={GROUP: h.first} if bad else {})


def a_start_forgets_that_it_hosts_it(h: Created, bad: bool) -> None:
    h.host(1)
    h.watch.die(1)
    h.watch.start(1, created={} if bad else {GROUP: h.first})


def dropped_before_the_store_knows(h: Created, bad: bool) -> None:
    h.all_of_it()
    if not bad:
        h.watch.hosts(2, GROUP, False)
    h.watch.unhost(2, GROUP)


def lets_go_before_it_is_over(h: Created, bad: bool) -> None:
    for node in OURS:
        h.host(node)
    h.lead()
    if not bad:
        h.end()
    h.watch.hosts(3, GROUP, False)


def over_before_its_last_value_is_decided(h: Created, bad: bool) -> None:
    for node in OURS:
        h.host(node)
    h.lead()
    if not bad:
        h.end()
    h.watch.over(1, GROUP)


def hosted_again(h: Created, bad: bool) -> None:
    h.all_of_it()
    h.watch.hosts(1, GROUP, False)
    h.watch.unhost(1, GROUP)
    h.watch.hosts(1 if bad else 2, GROUP, not bad or h.watch.failure() is None)


def decided_behind_its_last_value(h: Created, bad: bool) -> None:
    h.all_of_it()
    h.watch.send(1, encode("Chosen", GROUP, B5, config=FIRST, through=3 if bad else 2))


def begins_behind_another_instance(h: Created, bad: bool) -> None:
    """Its machine gets the first value as 2, for 1 is the creation."""
    for node in OURS:
        h.host(node)
    h.lead()
    body = h.body(group=GROUP)
    for node in (1, 2):
        h.write(node, accept(2, B5, body, GROUP))
    if not bad:
        h.watch.begun(1, GROUP)
    h.watch.chosen(1, GROUP, 2, body)


def begins_anew_when_it_was_handed_values(h: Created, bad: bool) -> None:
    begins_behind_another_instance(h, False)
    if bad:
        h.watch.begun(1, GROUP)


HISTORIES: list[Case] = [
    ("U15", takes_part_without_a_row),
    ("U15", writes_without_a_row),
    ("U15", is_hosted_without_a_row),
    ("U15", takes_part_after_it_was_dropped),
    ("U15", takes_part_in_the_next_life),
    ("U15", a_start_forgets_that_it_hosts_it),
    ("U15", dropped_before_the_store_knows),
    ("U15", lets_go_before_it_is_over),
    ("U15", over_before_its_last_value_is_decided),
    ("U15", hosted_again),
    ("U3", decided_behind_its_last_value),
    ("U7", begins_behind_another_instance),
    ("U9e", begins_anew_when_it_was_handed_values),
]


@pytest.mark.parametrize(
    ("invariant", "history"), HISTORIES, ids=[h.__name__ for _, h in HISTORIES]
)
def test_a_bad_history_is_rejected(invariant, history) -> None:
    check(invariant, history)
