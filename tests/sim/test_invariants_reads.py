"""U14 rejects read points that miss what was known when their read began, and takes all others."""

from collections.abc import Callable

import pytest
from watch_lab import Case, History, check


class Known(History):
    """Two instances of group 0 are decided; node 1 knows of both, node 3 of the first."""

    def __init__(self) -> None:
        super().__init__()
        for instance in (1, 2):
            self.decide(instance, self.body(b"x%d" % instance))
        for node, through in ((1, 2), (3, 1)):
            self.watch.spoil(node, 0, chosen_through=through)
            self.watch.step(node, 0)


def a_point_below_what_another_node_knew(h: Known, bad: bool) -> None:
    h.watch.point(3, 0, h.watch.known(0), 1 if bad else 2)


def a_point_that_was_known_to_whoever_is_dead_now(h: Known, bad: bool) -> None:
    """It told its caller, and died: that is what a read must not forget."""
    h.watch.die(1)
    h.watch.point(3, 0, h.watch.known(0), 1 if bad else 2)


def a_quorum_read_below_what_was_known(h: Known, bad: bool) -> None:
    h.watch.point(2, 0, h.watch.known(0), 1 if bad else 2, quorum=True)


def known_between_two_steps(h: Known, bad: bool) -> None:
    """In the memory of the node that was first to know, and of nobody else."""
    h.decide(3, h.body(b"x3"))
    h.watch.spoil(1, 0, chosen_through=3)
    h.watch.point(3, 0, h.watch.known(0), 2 if bad else 3)


def a_leader_s_point_above_what_is_decided(h: Known, bad: bool) -> None:
    h.watch.point(1, 0, h.watch.known(0), 3 if bad else 2)


HISTORIES: list[Case] = [
    ("U14", history)
    for history in (
        a_point_below_what_another_node_knew,
        a_point_that_was_known_to_whoever_is_dead_now,
        a_quorum_read_below_what_was_known,
        known_between_two_steps,
        a_leader_s_point_above_what_is_decided,
    )
]


@pytest.mark.parametrize(
    ("invariant", "history"), HISTORIES, ids=[h.__name__ for _, h in HISTORIES]
)
def test_a_bad_history_is_rejected(invariant: str, history: Callable[..., None]) -> None:
    check(invariant, history)


def test_what_becomes_known_after_a_read_began_need_not_be_covered() -> None:
    h = Known()
    known = h.watch.known(0)
    h.decide(3, h.body(b"x3"))
    h.watch.spoil(1, 0, chosen_through=3)
    h.watch.step(1, 0)
    h.watch.point(3, 0, known, 2)
    assert h.watch.failure() is None


def test_a_quorum_read_may_point_above_what_is_decided() -> None:
    h = Known()
    h.watch.point(2, 0, h.watch.known(0), 9, quorum=True)
    assert h.watch.failure() is None
