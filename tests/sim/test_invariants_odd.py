"""The claims about replicas that diverge (U9i) reject what breaks them, and take all else."""

import pytest
from watch_lab import Case, History, check

from phx._core.batch import pack_noop
from phx._core.delivery import Sessions
from phx._core.session_codec import table_facts
from phx.checkpoint.digests import Agreed, Known
from phx.checkpoint.manifest import DURABLE, MachineEntry, Manifest
from phx.sim.oddness import Oddness, missed, settled


def one_that_is_right_stops(h: History, bad: bool) -> None:
    h.watch.odd(1 if bad else 2, 0, 12)
    h.watch.found(2, 0, 8, 16)


def a_later_interval_is_named(h: History, bad: bool) -> None:
    h.watch.odd(2, 0, 16)
    h.watch.found(2, 0, 16 if bad else 8, 24 if bad else 16)


def an_earlier_interval_is_named(h: History, bad: bool) -> None:
    h.watch.odd(2, 0, 17)
    h.watch.found(2, 0, 8 if bad else 16, 16 if bad else 24)


def it_is_odd_since_it_first_was(h: History, bad: bool) -> None:
    h.watch.odd(2, 0, 12)
    h.watch.odd(2, 0, 20)
    h.watch.found(2, 0, 16 if bad else 8, 24 if bad else 16)


def the_odd_one_goes_on_answering(h: History, bad: bool) -> None:
    h.watch.odd(2, 0, 12)
    assert h.watch.answers(2, 0)  # in nobody's history
    h.watch.found(2, 0, 8, 16)
    h.watch.answers(2, 1)
    h.watch.answers(1, 0)
    if bad:
        h.watch.answers(2, 0)


def what_it_says_counts_again_when_it_was_made_anew(h: History, bad: bool) -> None:
    h.watch.odd(2, 0, 12)
    h.watch.found(2, 0, 8, 16)
    if not bad:
        h.watch.made_of(2, 0, 20, False, False)
    assert not h.watch.answers(2, 0) or bad


def made_anew_of_its_own(h: History, bad: bool) -> None:
    h.watch.odd(2, 0, 12)
    h.watch.found(2, 0, 8, 16)
    h.watch.made_of(2, 0, 13, True, own=bad)


def restored_though_it_is_marked(h: History, bad: bool) -> None:
    h.watch.marked(2, 0, True)
    h.restart(2)
    h.watch.made_of(2, 0, 5, False, own=bad)


def a_mark_goes_when_it_is_made_anew(h: History, bad: bool) -> None:
    h.watch.marked(2, 0, True)
    if not bad:
        h.watch.marked(2, 0, False)
    h.restart(2)
    h.watch.made_of(2, 0, 5, False, True)


def it_gives_away_what_is_odd(h: History, bad: bool) -> None:
    h.watch.odd(2, 0, 12)
    h.watch.gives(2, 0, 13, True)  # nobody can know
    h.watch.found(2, 0, 8, 16)
    h.watch.gives(2, 0, 5, False)
    if bad:
        h.watch.gives(2, 0, 13, True)


def it_gives_away_what_is_to_be_made_anew(h: History, bad: bool) -> None:
    h.watch.marked(2, 0, True)
    if not bad:
        h.watch.made_of(2, 0, 5, False, False)
    h.watch.gives(2, 0, 5, False)


CASES: list[Case] = [
    ("U9i", one_that_is_right_stops),
    ("U9i", a_later_interval_is_named),
    ("U9i", an_earlier_interval_is_named),
    ("U9i", it_is_odd_since_it_first_was),
    ("U9i", the_odd_one_goes_on_answering),
    ("U9i", what_it_says_counts_again_when_it_was_made_anew),
    ("U9i", made_anew_of_its_own),
    ("U9i", restored_though_it_is_marked),
    ("U9i", a_mark_goes_when_it_is_made_anew),
    ("U9i", it_gives_away_what_is_odd),
    ("U9i", it_gives_away_what_is_to_be_made_anew),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1].__name__)
def test_what_breaks_it_is_rejected(case: Case) -> None:
    check(*case)


def test_an_odd_state_is_not_compared_with_what_was_decided() -> None:
    h = History()
    h.decide(1, h.body())
    h.watch.odd(2, 0, 1)
    h.watch.chain(2, 0, 1, 8)  # it comes there first, and the others are right all the same
    h.watch.chain(1, 0, 1, 7)
    assert h.watch.failure() is None
    h.watch.chain(3, 0, 1, 8)
    failure = h.watch.failure()
    assert failure is not None
    assert failure[0] == "U7"


def test_a_start_makes_machines_anew() -> None:
    h = History()
    h.watch.odd(2, 0, 12)
    h.watch.found(2, 0, 8, 16)
    h.restart(2)
    assert not h.watch.answers(2, 0)
    h.watch.made_of(2, 0, 13, True, True)  # nothing is left of what was found
    assert h.watch.answers(2, 0)
    assert h.watch.failure() is None


@pytest.mark.parametrize(
    ("noted", "right", "at"),
    [
        ([8, 16, 24], {16: {1, 3, 4}}, 16),
        ([8, 16, 24], {16: {1, 3}, 24: {1, 3, 4}}, 24),
        ([8, 16, 24], {16: {1, 3}, 24: {1, 3}}, None),  # no majority of five
        ([8, 16, 24], {8: {1, 3, 4}}, None),  # it was right there
        ([8], {16: {1, 3, 4}}, None),  # it has not come there
        ([], {}, None),
    ],
)
def test_it_is_found_by_whoever_was_told_by_a_majority(
    noted: list[int], right: dict[int, set[int]], at: int | None
) -> None:
    assert missed(noted, 12, right, 5) == at


def test_since_when_is_claimed_where_a_majority_is_known() -> None:
    right, wrong = Agreed(8, 5, b"right"), Agreed(8, 5, b"wrong")
    assert settled(Known(None, [wrong], {2: [right], 3: [right]}), 8, 3)
    assert settled(Known(None, [right], {2: [right], 3: [wrong]}), 8, 3)
    assert not settled(Known(None, [wrong], {2: [right]}), 8, 3)
    assert not settled(Known(None, [right], {2: [right], 3: [wrong]}), 8, 5)
    assert not settled(Known(None, [wrong], {2: [right], 3: [right]}), 16, 3)


def table(frontier: int) -> bytes:
    sessions = Sessions(1, [7])
    batches = sessions.offer(7, 1, [pack_noop(1, 2)] * frontier)
    assert batches[-1].last == frontier
    return sessions.table(7)


def manifest(node: int, taken_us: int, frontier: int = 9) -> Manifest:
    sessions = table(frontier)
    _, _, chain, epoch = table_facts(sessions)
    return Manifest(
        cluster=1, group=7, frontier=frontier, epoch=epoch, config=1, members=(1, 2, 3),
        sessions=sessions, chain=chain, machines=(MachineEntry(0, DURABLE, -1, b""),), files=(),
        taken_by=node, taken_us=taken_us,
    )  # fmt: skip


def test_a_checkpoint_is_odd_whoever_has_it() -> None:
    known = Oddness(3)
    known.took(7, 9, 2, 1000)
    assert known.is_odd(manifest(2, 1000))
    assert not known.is_odd(manifest(2, 1001))
    assert not known.is_odd(manifest(3, 1000))
    assert not known.is_odd(manifest(2, 1000, frontier=10))


def test_a_majority_of_each_group_stays_right() -> None:
    known = Oddness(5)
    assert known.joins(7, 1)
    assert known.joins(7, 2)
    assert known.joins(7, 2)
    assert not known.joins(7, 3)
    assert known.joins(8, 3)
    assert not Oddness(2).joins(0, 1)
