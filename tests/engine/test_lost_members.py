"""Members that may have forgotten votes, and changes: no majority of them is to be the voters."""

import pytest
from lossy import SECOND, Lossy
from member_lab import NOT_CAUGHT_UP, UNDER_WAY, Changing

from phx._core.engine_door import Engine

NO_SYNC = 0xFFFFFFFFFFFFFFFF


class LossyMembers(Changing, Lossy):
    """Stores keep ceilings and lives; members change."""

    def remember(self, n: int, engine: Engine) -> None:
        Changing.remember(self, n, engine)
        Lossy.remember(self, n, engine)

    def start(self, n: int, **settled: int) -> int:
        return Lossy.start(self, n, **settled)


def with_learners(*lost: int) -> LossyMembers:
    """1 leads voters 1, 2, 3; 4 and 5 learn, and some of them have lost their journals."""
    s = LossyMembers()
    s.elect(1)
    s.learners(1, 4, 5)
    s.submit(1, b"a")
    s.flow()
    for n in lost:
        s.lose_journal(n)
    s.pass_time(SECOND)
    assert s.leader() == 1
    return s


def test_learners_that_lost_their_journals_are_no_majority_of_voters() -> None:
    """They lead no group to become whole: nobody would ever vote in it."""
    s = with_learners(4, 5)
    assert s.status(4)["suspect"]
    assert s.status(5)["suspect"]
    assert s.change(1, (4,)) == NOT_CAUGHT_UP
    assert s.change(1, (1, 4, 5)) == NOT_CAUGHT_UP
    assert s.change(1, (1, 2, 4, 5)) == NOT_CAUGHT_UP


def test_one_of_them_becomes_a_voter_among_others_and_is_whole_soon() -> None:
    s = with_learners(4)
    assert s.change(1, (1, 2, 4), (5,)) == UNDER_WAY
    s.pass_time(20 * SECOND)
    assert s.version(4) == 3
    assert not s.status(4)["suspect"]
    s.submit(s.leader(), b"b")
    s.flow()
    assert len({s.status(n)["chosen_through"] for n in (1, 2, 4)}) == 1


def test_who_is_whole_again_counts() -> None:
    s = with_learners(4)
    assert s.change(1, (1, 2, 4), (5,)) == UNDER_WAY
    s.pass_time(20 * SECOND)
    assert s.change(s.leader(), (4,)) == UNDER_WAY
    s.pass_time(2 * SECOND)
    assert s.leader() == 4
    assert s.voters(4) == (4,)


@pytest.mark.parametrize("values", [0, 1])
def test_a_voter_that_lost_its_journal_and_confirms_nothing_yet_does_not_count(values: int) -> None:
    """Of a young log everybody is near, unheard."""
    s = LossyMembers()
    s.elect(1)
    for number in range(values):
        s.submit(1, b"%d" % number)
        s.flow()
    s.crash(3)  # 2 needs it to become whole
    s.lose_journal(2)
    s.pass_time(SECOND // 2)
    assert s.status(2)["suspect"]
    assert s.leader() == 1
    assert s.change(1, (2,)) == NOT_CAUGHT_UP
    assert s.change(1, (1, 2)) == NOT_CAUGHT_UP
    s.restart(3)
    s.pass_time(20 * SECOND)
    assert not s.status(2)["suspect"]


class RelaxedMembers(Changing):
    """Members change, and what a node has written need not be durable."""

    def write(self, n: int) -> None:
        self.engines[n].written(self.end[n])
        self.turn(n)


def test_an_acceptance_that_waits_to_be_written_is_not_told_to_the_next_members() -> None:
    """M3. By then its node counts other members; the ballot is one of those before."""
    s = RelaxedMembers()
    s.elect(1)
    s.lazy = {3}
    assert s.engines[3].durability(0, NO_SYNC) > 0
    s.turn(3)
    s.submit(1, b"a")
    for what in (("1→3", "Accept"), ("1→2", "Accept"), ("2→1", "Accepted")):
        s.deliver(*what)
    assert s.change(1, (1, 2, 3), (4,)) == UNDER_WAY
    for what in (("1→3", "Accept"), ("1→2", "Accept"), ("2→1", "Accepted"), ("1→3", "Chosen")):
        s.deliver(*what)
    assert s.version(3) == 2
    s.write(3)
    assert not [m for m in s.pick("3→1", "Accepted") if m.config == 2]
