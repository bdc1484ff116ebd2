"""Read points over links on which an answer takes longer than the pause between two questions, and
answers to several questions at once on their way (reads.md, section 4)."""

import pytest
from read_lab import HEARTBEAT_US, LEASE_US, QUORUM, Reads, acknowledge, leaseless
from script import Script

from phx.sim.wire_text import POINT_OK

PAUSE_US = HEARTBEAT_US // 2
TALK = ("ReadAsk", "ReadPoint")


def far(s: Script, us: int):
    """For pass_time: questions and answers take so long, each way."""
    return lambda m: m.name in TALK and m.sent_us + us > s.now


def of_five() -> tuple[Reads, int, list[int]]:
    """Five nodes, one value chosen, no leader any more: who asks, and the three others."""
    s = Reads.__new__(Reads)
    Script.__init__(s, 5)
    s.tickets = 0
    s.pass_time(2 * LEASE_US)
    (leader,) = [n for n in s.nodes if s.status(n)["leading"]]
    s.submit(leader, b"a")
    s.pass_time(HEARTBEAT_US)
    s.crash(leader)
    s.drop()
    s.lines.clear()
    asker, *others = [n for n in s.nodes if n != leader]
    return s, asker, others


def rounds(s: Script, *what: str) -> list[int]:
    return [m.round for m in s.pick("ReadAsk", *what)]


def answered(s: Script, a: int, b: int, number: int) -> None:
    """What a asked b in that question comes, and its answer."""
    assert s.deliver(f"{a}→{b}", "ReadAsk", round=number)
    assert s.deliver(f"{b}→{a}", "ReadPoint", round=number)


# --- answers that take long


@pytest.mark.parametrize("quorum", [False, True])
def test_answers_may_take_longer_than_the_pause_between_questions(quorum: bool) -> None:
    s = Reads()
    first = s.read(2, quorum, within_us=1_000_000)
    s.pass_time(3 * PAUSE_US + 20_000, far(s, 3 * PAUSE_US // 2))
    assert s.told(2) == [(first, 1)]
    assert s.failed(2) == []


@pytest.mark.parametrize("quorum", [False, True])
def test_under_load_each_takes_one_round_trip_and_a_question_goes_out_once_in_a_pause(
    quorum: bool,
) -> None:
    s = Reads()
    begun = {}
    for _ in range(100):
        begun[s.read(2, quorum)] = s.now
        s.pass_time(10_000, far(s, 3 * PAUSE_US // 2))
        for ticket, _ in s.told(2):
            assert s.now - begun.pop(ticket, s.now) <= 4 * PAUSE_US + 10_000
    assert len(s.told(2)) >= 100 - 4 * PAUSE_US // 10_000 - 1
    for n in (1, 3):
        asked = [m for m in s.said("ReadAsk") if m.startswith(f"2→{n}")]
        assert len(asked) <= (100 * 10_000) // PAUSE_US + 1
    s.pass_time(5 * PAUSE_US, far(s, 3 * PAUSE_US // 2))
    assert len(s.told(2)) == 100


def test_a_check_goes_on_when_the_same_member_asks_again() -> None:
    """Its heartbeat takes longer than the pause: each question would begin the check anew."""
    s = leaseless()
    first = s.read(2)
    s.deliver("2→1", "ReadAsk")
    (beat,) = s.pick("1→3", "Heartbeat")
    second = s.read(2)
    s.advance(PAUSE_US, 2)
    s.deliver("2→1", "ReadAsk")
    assert len(s.said("ReadAsk")) == 2
    acknowledge(s, beat)
    s.deliver("1→2", "ReadPoint")
    assert s.told(2) == [(first, 1)], "the second began after that heartbeat"
    later = s.pick("1→3", "Heartbeat")[-1]
    assert later is not beat
    acknowledge(s, later)
    s.deliver("1→2", "ReadPoint")
    assert s.told(2) == [(first, 1), (second, 1)]
    assert s.engines[1].counters()["read_checks"] == 2


# --- several questions on their way


def test_an_answer_to_a_later_question_is_good_for_whoever_was_asking_before() -> None:
    """It overtakes the one before, which then says nothing to anybody."""
    s = Reads()
    first = s.read(2)
    s.deliver("2→1", "ReadAsk")
    second = s.read(2)
    s.advance(PAUSE_US, 2)
    s.submit(1, b"b")
    s.deliver("1→3", "Accept")
    s.deliver("3→1", "Accepted")
    s.deliver("2→1", "ReadAsk")
    older, newer = s.pick("1→2", "ReadPoint")
    s.deliver("1→2", "ReadPoint", round=newer.round)
    assert s.told(2) == [(first, 2), (second, 2)]
    third = s.read(2)
    s.deliver("1→2", "ReadPoint", round=older.round)
    assert len(s.told(2)) == 2
    s.flow()
    assert s.told(2)[2:] == [(third, 2)]


def test_what_an_earlier_leader_vouched_for_counts_although_another_one_is_asked_by_now() -> None:
    s = Reads()
    first = s.read(2)
    s.deliver("2→1", "ReadAsk")
    (answer,) = s.pick("1→2", "ReadPoint")
    s.engines[1].transfer(0, 3)
    s.turn(1)
    s.flow(lambda m: m.name in TALK)
    s.advance(PAUSE_US)
    s.flow(lambda m: m.name in TALK)
    assert {m.dest for m in s.pick("ReadAsk")} == {3}
    second = s.read(2)
    s.put(1, 2, answer.raw)
    assert s.told(2) == [(first, 1)], "the second began when it was on its way"
    s.flow()
    assert [ticket for ticket, _ in s.told(2)] == [first, second]


def test_a_majority_may_answer_one_by_one_to_different_questions() -> None:
    s, a, (b, c, _) = of_five()
    first = s.read(a, quorum=True)
    (number,) = set(rounds(s))
    answered(s, a, b, number)
    assert s.told(a) == []
    s.drop("ReadAsk")
    second = s.read(a, quorum=True)
    s.advance(PAUSE_US, a)
    later = max(rounds(s))
    assert later > number
    answered(s, a, c, later)
    assert s.told(a) == [(first, 1)], "b has not answered since the second began"
    answered(s, a, b, later)
    assert s.told(a) == [(first, 1), (second, 1)]


def test_an_older_answer_of_the_same_member_takes_nothing_back() -> None:
    s, a, (b, c, _) = of_five()
    s.read(a, quorum=True)
    number = rounds(s)[0]
    s.deliver(f"{a}→{b}", "ReadAsk")
    (older,) = s.pick(f"{b}→{a}", "ReadPoint")
    s.drop("ReadAsk")
    s.read(a, quorum=True)
    s.advance(PAUSE_US, a)
    later = max(rounds(s))
    answered(s, a, b, later)
    s.put(b, a, older.raw)
    assert older.round == number
    answered(s, a, c, later)
    assert len(s.told(a)) == 2


def test_a_majority_that_was_asked_before_a_read_began_does_not_answer_it() -> None:
    """Mutant quorum_answer_of_an_older_round: what was chosen in between is above its point."""
    s = Reads()
    first = s.read(2, quorum=True)
    s.deliver("2→3", "ReadAsk")
    s.drop("2→1", "ReadAsk")
    s.submit(1, b"b")
    s.deliver("1→3", "Accept")
    s.deliver("3→1", "Accepted")
    assert s.status(1)["chosen_through"] == 2, "and its caller has been answered"
    second = s.read(2, quorum=True)
    s.deliver("3→2", "ReadPoint")
    assert s.told(2) == [(first, 1)]
    s.flow()
    assert s.told(2) == [(first, 1), (second, 2)]


def test_no_answer_of_an_earlier_life_is_one_of_this_life() -> None:
    s = Reads()
    s.read(2, quorum=True)
    old = rounds(s)[0]
    s.restart(2)
    s.pass_time(HEARTBEAT_US)
    s.read(2, quorum=True)
    assert rounds(s)
    assert old not in rounds(s)
    for n in (1, 3):
        s.answers(n, 2, (0, POINT_OK, 1, s.ballot), number=old, flags=QUORUM)
    assert s.told(2) == []


@pytest.mark.parametrize("flags", [0, QUORUM])
def test_nobody_answers_what_was_not_asked_yet(flags: int) -> None:
    s = Reads()
    s.read(2, quorum=bool(flags))
    asked = rounds(s)[0]
    before = s.engines[2].counters()["hostile_messages"]
    for n in (1, 3):
        for number in (asked + 1, 1 << 63):
            s.answers(n, 2, (0, POINT_OK, 1, s.ballot), number=number, flags=flags)
    assert s.told(2) == []
    assert s.engines[2].counters()["hostile_messages"] == before + 4
