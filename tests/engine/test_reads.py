"""Read points, by hand: who may name one, when, and who has to be asked again (reads.md).

Each test in which something must not be said has beside it the run in which it would be wrong: what
another node knew to be chosen when the read began.
"""

import struct

import pytest
from read_lab import HEARTBEAT_US, LEASE_US, Reads, acknowledge, leaseless
from script import Script

from phx._core.engine_door import Engine
from phx.sim.wire_text import (
    POINT_LATER,
    POINT_NOT_LEADER,
    POINT_OK,
    Message,
    ballot,
    decode,
    encode,
)

TIMED_OUT, OVERLOADED, STOPPED, NO_QUORUM, POISONED = 1, 3, 5, 7, 8


# --- at the leader


def test_under_the_lease_the_leader_answers_in_the_same_turn() -> None:
    s = Reads()
    first = s.read(1)
    assert s.told(1) == [(first, 1)]
    assert s.lines == []


def test_a_group_of_one_needs_nobody() -> None:
    s = Reads(1)
    first, second = s.read(1), s.read(1, quorum=True)
    assert s.told(1) == [(first, 1), (second, 1)]


def test_a_leader_without_a_lease_asks_before_it_answers() -> None:
    """Mutant read_without_a_check: it was cut off, and others lead and have chosen more."""
    s = leaseless()
    first = s.read(1)
    assert s.told(1) == []
    assert len(s.pick("Heartbeat")) == 2, "at once, not at the next regular one"
    s.deliver("1→2", "Heartbeat")
    s.deliver("2→1", "HeartbeatAck")
    assert s.told(1) == [(first, 1)]
    assert s.engines[1].counters()["read_checks"] == 1


def test_a_leader_that_others_have_left_gets_no_point() -> None:
    """They have promised more, and so may have chosen more; each answer says it of its group."""
    s = leaseless()
    for n in (2, 3):
        s.engines[n].advance(s.now + 2 * LEASE_US)  # what it granted has run out
        s.put(5 - n, n, encode("Prepare", 0, ballot(9, 5 - n), first=1))
        assert s.status(n)["promised"] > s.ballot
    s.drop()
    s.read(1)
    s.deliver("1→2", "Heartbeat")
    s.deliver("1→3", "Heartbeat")
    assert [m.refused() for m in s.pick("→1", "HeartbeatAck")] == [{0}, {0}]
    s.deliver("→1", "HeartbeatAck")
    assert s.told(1) == []


def test_a_grant_of_a_heartbeat_from_before_the_question_says_nothing_of_now() -> None:
    """Mutant read_checked_by_an_older_beat."""
    s = leaseless()
    s.advance(HEARTBEAT_US, 1)
    older = s.pick("Heartbeat")
    assert len(older) == 2
    s.drop("Heartbeat")
    first = s.read(1)
    for beat in older:
        acknowledge(s, beat)
    assert s.told(1) == []
    s.advance(HEARTBEAT_US, 1)
    acknowledge(s, s.pick("1→2", "Heartbeat")[-1])
    assert s.told(1) == [(first, 1)]


def test_what_refuses_this_group_or_knows_of_no_such_claim_grants_nothing() -> None:
    s = leaseless()
    first = s.read(1)
    for beat in s.pick("Heartbeat"):
        acknowledge(s, beat, 0)
    assert s.told(1) == []
    s.advance(HEARTBEAT_US, 1)
    for beat in s.pick("Heartbeat")[2:]:
        acknowledge(s, beat, version=0)
    assert s.told(1) == []
    s.advance(HEARTBEAT_US, 1)
    acknowledge(s, s.pick("1→3", "Heartbeat")[-1])
    assert s.told(1) == [(first, 1)]


def test_an_answer_to_a_claim_that_was_never_made_grants_nothing() -> None:
    s = leaseless()
    before = s.engines[1].counters()["hostile_messages"]
    s.read(1)
    for beat in s.pick("Heartbeat"):
        acknowledge(s, beat, version=beat.version + 1)
    assert s.told(1) == []
    assert s.engines[1].counters()["hostile_messages"] == before + 2


def test_reads_that_come_while_a_check_is_on_its_way_wait_for_the_next() -> None:
    s = leaseless()
    first = s.read(1)
    s.submit(1, b"b")
    s.deliver("1→2", "Accept")
    s.deliver("2→1", "Accepted")
    second = s.read(1)
    s.deliver("1→2", "Heartbeat")
    s.deliver("2→1", "HeartbeatAck")
    assert s.told(1)[0] == (first, 1)
    s.pass_time(HEARTBEAT_US)
    assert s.told(1) == [(first, 1), (second, 2)]


def test_a_new_leader_names_no_point_before_what_its_phase_1_found_is_chosen() -> None:
    """Mutant read_before_recovered: instance 2 was chosen by 1 and 2, and answered by 1."""
    s = Reads()
    s.submit(1, b"b")
    s.deliver("1→2", "Accept")
    s.drop("1→3", "Accept")
    s.deliver("2→1", "Accepted")
    assert s.status(1)["chosen_through"] == 2
    s.drop("Chosen")
    s.crash(1)
    held = ("Accept", "Accepted")
    for _ in range(300):
        s.advance(10_000)
        s.flow(lambda m: m.name in held)
        if s.status(2)["leading"] or s.status(3)["leading"]:
            break
    (leader,) = [n for n in (2, 3) if s.status(n)["leading"]]
    other = 5 - leader
    s.pass_time(2 * HEARTBEAT_US, lambda m: m.name in held)  # its lease runs
    assert s.status(leader)["chosen_through"] == 1
    own, asked = s.read(leader), s.read(other)
    s.flow(lambda m: m.name in held)
    assert s.told(leader) == s.told(other) == []
    assert [p[1] for m in s.said("ReadPoint") for p in [m.split(":")]] == ["later"]
    s.flow()
    assert s.told(leader) == [(own, 2)]
    assert s.told(other) == [(asked, 2)]
    assert len(s.said("ReadAsk")) == 1, "it answered by itself"


def test_a_leader_that_has_left_something_open_below_answers_later_and_then_not_at_all() -> None:
    """It led, was to answer later, and lost the leadership: the asker hears that, and goes on."""
    s = leaseless()
    asked = s.read(2)
    s.deliver("2→1", "ReadAsk")
    assert s.told(2) == []
    s.engines[1].transfer(0, 3)
    s.turn(1)
    (said,) = s.said("ReadPoint")
    assert said.endswith("g0:not-leader")
    s.pass_time(LEASE_US)
    assert s.told(2) == [(asked, 1)]


# --- at a follower


def test_all_reads_of_a_turn_are_one_question_for_each_leader() -> None:
    s = Reads(groups=12)
    s.pass_time(2 * LEASE_US)
    s.lines.clear()
    leaders = {group: s.status(3, group)["leader"] for group in range(12)}
    assert {1, 2} <= set(leaders.values())
    questions = [
        f"3→{n} ReadAsk " + " ".join(f"g{group}" for group in range(12) if leaders[group] == n)
        for n in (1, 2)
    ]
    for group in range(12):
        for _ in range(10):
            s.tickets += 1
            assert s.engines[3].read(group, s.tickets, s.now + 1_000_000) == 0
    s.turn(3)
    assert s.said("ReadAsk") == questions
    s.flow()
    assert len(s.said("ReadPoint")) == 2
    assert sorted(ticket for ticket, _ in s.told(3)) == list(range(s.tickets - 119, s.tickets + 1))


def test_reads_that_begin_while_a_question_is_on_its_way_are_in_the_next_one() -> None:
    """Mutant read_point_of_an_older_round: what was chosen in between is in the second point."""
    s = Reads()
    first = s.read(2)
    s.deliver("2→1", "ReadAsk")
    s.submit(1, b"b")
    s.deliver("1→3", "Accept")
    s.deliver("3→1", "Accepted")
    assert s.status(1)["chosen_through"] == 2
    second = s.read(2)
    assert len(s.said("ReadAsk")) == 1
    s.deliver("1→2", "ReadPoint")
    assert s.told(2) == [(first, 1)]
    s.flow()
    assert s.told(2) == [(first, 1), (second, 2)]
    assert len(s.said("ReadAsk")) == 2


def test_an_answer_to_a_question_from_before_the_read_counts_for_nothing() -> None:
    s = Reads()
    first = s.read(2)
    (ask,) = s.pick("ReadAsk")
    s.drop("ReadAsk")
    s.pass_time(HEARTBEAT_US, lambda m: m.name == "ReadAsk")
    assert len(s.said("ReadAsk")) >= 2, "asked again"
    s.read(2)
    s.answers(1, 2, (0, POINT_OK, 1, s.ballot), number=ask.round - 1)
    assert s.told(2) == []
    s.answers(1, 2, (0, POINT_OK, 1, s.ballot), number=ask.round)
    assert s.told(2) == [(first, 1)]
    s.pass_time(HEARTBEAT_US)
    assert len(s.told(2)) == 2


def test_what_was_asked_in_an_earlier_life_is_no_question_of_this_one() -> None:
    s = leaseless()
    s.read(2)
    (old,) = s.pick("ReadAsk")
    s.deliver("2→1", "ReadAsk")
    s.restart(2)
    assert s.points[2] == []
    s.pass_time(HEARTBEAT_US, lambda m: m.name == "ReadAsk")
    assert not s.pick("ReadPoint"), "the leader has forgotten who is gone"
    s.pass_time(2 * LEASE_US)
    s.read(2)
    rounds = {m.round for m in s.pick("ReadAsk")}
    assert rounds
    assert old.round not in rounds
    s.answers(1, 2, (0, POINT_OK, 1, s.ballot), number=old.round)
    assert s.told(2) == []


def test_a_leader_that_does_not_answer_is_asked_again_after_half_a_heartbeat() -> None:
    s = Reads()
    first = s.read(2)
    s.drop("ReadAsk")
    s.pass_time(HEARTBEAT_US // 2 - 10_000)
    assert s.told(2) == []
    s.pass_time(20_000)
    assert s.told(2) == [(first, 1)]


def test_whoever_is_asked_and_does_not_lead_says_so_and_the_next_leader_is_asked() -> None:
    s = Reads()
    first = s.read(2)
    s.engines[1].transfer(0, 3)
    s.turn(1)
    s.deliver("2→1", "ReadAsk")
    s.deliver("1→2", "ReadPoint")
    assert s.told(2) == []
    s.pass_time(300_000)
    assert s.told(2) == [(first, 1)]
    assert s.status(2)["leader"] == 3
    assert s.said("ReadAsk")[-1].startswith("2→3")


def test_a_leader_that_is_gone_is_asked_no_more() -> None:
    s = Reads()
    first = s.read(2)
    s.drop("ReadAsk")
    s.crash(1)
    s.pass_time(3 * LEASE_US)
    assert s.status(2)["leader"] in (2, 3)
    assert s.told(2) == [(first, 1)]


def test_what_is_missing_is_asked_for() -> None:
    """The follower has neither the value nor the watermark, and learns from the point of both."""
    s = Reads()
    s.submit(1, b"b")
    s.drop("1→2", "Accept")
    s.deliver("1→3", "Accept")
    s.deliver("3→1", "Accepted")
    s.drop("1→2", "Chosen")
    s.read(2)
    s.deliver("2→1", "ReadAsk")
    s.deliver("1→2", "ReadPoint")
    assert s.said("LearnAsk") == ["2→1 LearnAsk g0 first=2 last=2"]
    s.flow()
    assert s.status(2)["chosen_through"] == 2


def test_a_read_ends_at_its_deadline_and_says_why() -> None:
    s = Reads()
    first = s.read(2, within_us=30_000)
    s.drop("ReadAsk")
    s.pass_time(40_000, lambda m: m.name == "ReadAsk")
    assert s.failed(2) == [(first, TIMED_OUT)]
    s.crash(1)
    s.crash(3)
    s.pass_time(2 * LEASE_US)
    second = s.read(2, within_us=1_000_000)
    third = s.read(2, quorum=True, within_us=1_000_000)
    s.pass_time(1_100_000)
    assert s.failed(2)[1:] == [(second, NO_QUORUM), (third, NO_QUORUM)]


def test_reads_are_bounded() -> None:
    s = Reads()
    engine = s.engines[2]
    for ticket in range(65_536):
        assert engine.read(0, ticket, s.now + 1_000_000) == 0
    assert engine.read(0, 65_536, s.now + 1_000_000) == OVERLOADED
    s.turn(2)
    s.flow()
    assert len(s.told(2)) == 65_536
    assert engine.read(0, 65_536, s.now + 1_000_000) == 0


def test_a_question_about_very_many_groups_is_cut() -> None:
    engine = Engine(1, [1, 2], range(5_000))
    engine.start(0, 10_000_000)
    engine.connected(2, 1, b"2" * 16)
    engine.turn()
    engine.durable(1 << 40)
    claims = b"".join(struct.pack("<IIQ", group, 0, ballot(1, 2)) for group in range(5_000))
    engine.receive(2, encode("Heartbeat", 0, 0, claims, flags=2, seq=1, version=2,
                             incarnation=1, lease_us=LEASE_US, count=5_000))  # fmt: skip
    engine.turn()
    for group in range(5_000):
        assert engine.read(group, group, 20_000_000) == 0
    sizes = [
        len(m.asked())
        for _, frame, _ in engine.turn()["outgoing"]
        for m in decode(frame[32:])
        if m.name == "ReadAsk"
    ]
    assert sizes == [4096, 904]


def test_nothing_is_read_after_the_journal_failed_or_the_group_halted() -> None:
    s = Reads()
    first = s.read(2)
    s.drop("ReadAsk")
    s.engines[2].poison()
    s.turn(2)
    assert s.failed(2) == [(first, POISONED)]
    assert s.engines[2].read(0, 99, s.now + 1) == POISONED
    assert s.engines[2].read(7, 99, s.now + 1) == STOPPED, "there is no such group"


# --- a majority instead of a leader


def test_a_quorum_read_takes_what_was_accepted_and_not_what_is_known_to_be_chosen() -> None:
    """Mutant quorum_read_of_chosen_only: 1 had it chosen, answered its caller, and died."""
    s = Reads()
    s.submit(1, b"b")
    s.deliver("1→2", "Accept")
    s.drop("1→3", "Accept")
    s.deliver("2→1", "Accepted")
    assert s.status(1)["chosen_through"] == 2
    s.drop("Chosen")
    s.crash(1)
    assert s.status(2)["chosen_through"] == s.status(3)["chosen_through"] == 1
    first = s.read(3, quorum=True)
    s.deliver("3→2", "ReadAsk")
    s.deliver("2→3", "ReadPoint")
    s.pass_time(HEARTBEAT_US)  # (no leader yet)
    assert s.told(3) == [(first, 2)]
    s.pass_time(2 * LEASE_US)
    assert s.status(3)["chosen_through"] >= 2, "and it becomes chosen"


def test_a_quorum_read_needs_no_leader() -> None:
    s = Reads()
    s.crash(1)
    first = s.read(2, quorum=True)
    s.deliver("2→3", "ReadAsk")
    s.deliver("3→2", "ReadPoint")
    assert s.told(2) == [(first, 1)]


def test_two_of_five_are_no_majority_and_nobody_counts_twice() -> None:
    s = Reads.__new__(Reads)
    Script.__init__(s, 5)
    s.tickets = 0
    s.pass_time(2 * LEASE_US)
    (leader,) = [n for n in s.nodes if s.status(n)["leading"]]
    a, b, c = [n for n in s.nodes if n != leader][:3]
    s.submit(leader, b"a")
    s.pass_time(HEARTBEAT_US)
    s.crash(leader)
    first = s.read(a, quorum=True)
    s.deliver(f"{a}→{b}", "ReadAsk")
    (point,) = s.deliver(f"{b}→{a}", "ReadPoint")
    assert s.told(a) == []
    s.put(b, a, point.raw)
    assert s.told(a) == [], "the same member twice"
    s.deliver(f"{a}→{c}", "ReadAsk")
    s.deliver(f"{c}→{a}", "ReadPoint")
    assert s.told(a) == [(first, 1)]


def test_what_one_member_accepted_and_nobody_chose_does_not_hold_a_quorum_read_up() -> None:
    """3 accepted instance 2 of a leadership that ended there. Two that do not know of it are a
    majority, too, and what they accepted is enough."""
    s = Reads()
    s.submit(1, b"b")
    s.deliver("1→3", "Accept")
    s.drop("Accept")
    s.drop("Accepted")
    assert s.status(3)["accepted_last"] == 2
    first = s.read(3, quorum=True)
    s.deliver("3→2", "ReadAsk")
    s.deliver("2→3", "ReadPoint")
    assert s.told(3) == [], "2 and 3: up to 2, which is open; 1 may know of less"
    other = s.read(2, quorum=True)
    s.deliver("2→1", "ReadAsk")
    s.deliver("1→2", "ReadPoint")
    assert s.told(2) == []  # the leader itself has proposed 2
    s.pass_time(HEARTBEAT_US, lambda m: m.name == "Accept")
    assert s.told(3) == [(first, 2)]
    assert s.told(2) == [(other, 2)]


class Suspects(Reads):
    """Node 3 has lost its votes."""

    lost: tuple[int, ...] = ()

    def remember(self, n: int, engine: Engine) -> None:
        if n in self.lost:
            engine.ceiling(50)
            assert engine.suspect(0) == 0


def test_a_replica_that_may_have_forgotten_votes_does_not_answer() -> None:
    """Mutant learner_answers_a_quorum_read: 3 accepted instance 2, which 1 knew to be chosen."""
    s = Suspects()
    s.submit(1, b"b")
    s.deliver("1→3", "Accept")
    s.drop("1→2", "Accept")
    s.deliver("3→1", "Accepted")
    assert s.status(1)["chosen_through"] == 2
    s.drop()
    s.crash(1)
    s.lost = (3,)
    s.crash(3)
    s.journal[3] = []
    s.start(3)
    s.connect(2, 3)
    assert s.status(3)["suspect"]
    s.drop()
    s.lines.clear()
    s.read(2, quorum=True)
    s.deliver("2→3", "ReadAsk")
    assert s.said("ReadPoint") == []
    s.read(3, quorum=True)
    s.deliver("3→2", "ReadAsk")
    s.deliver("2→3", "ReadPoint")
    assert s.told(2) == s.told(3) == [], "nor does it count itself"


# --- what nobody honest says


@pytest.mark.parametrize(
    ("verdict", "instance", "by"),
    [(POINT_OK, 1 << 63, 1), (POINT_OK, 5, 3), (9, 5, 1), (POINT_LATER, 5, 1)],
)
def test_a_point_that_cannot_be_is_none(verdict: int, instance: int, by: int) -> None:
    s = Reads()
    first = s.read(2)
    (ask,) = s.pick("ReadAsk")
    number = s.ballot if by == 1 else ballot(3, by)
    s.answers(1, 2, (0, verdict, instance, number), number=ask.round)
    assert s.told(2) == []
    s.drop("ReadAsk")
    s.pass_time(HEARTBEAT_US)
    assert s.told(2) == [(first, 1)]


def test_answers_of_others_than_the_asked_one_count_for_nothing() -> None:
    s = Reads()
    s.read(2)
    (ask,) = s.pick("ReadAsk")
    s.answers(3, 2, (0, POINT_OK, 0, ballot(1, 3)), number=ask.round)
    s.answers(3, 2, (0, POINT_NOT_LEADER, 0, 0), number=ask.round)
    assert s.told(2) == []
    s.flow()
    assert len(s.told(2)) == 1


@pytest.mark.parametrize("name", ["ReadAsk", "ReadPoint"])
def test_a_list_that_is_too_long_or_not_there_is_not_read(name: str) -> None:
    s = Reads()
    size = 16 if name == "ReadAsk" else 24
    for count, rest in ((3, bytes(2 * size)), (4097, bytes(4097 * size)), (0xFFFFFFFF, b"")):
        before = s.engines[1].counters()["hostile_messages"]
        s.put(2, 1, encode(name, 0, 0, rest, round=1, count=count))
        assert s.engines[1].counters()["hostile_messages"] == before + 1
    assert s.said("ReadPoint") == []
    ask = struct.pack("<IIQ", 77, 0, 0) + struct.pack("<IIQ", 0, 0, ballot(9, 3))
    s.put(2, 1, encode("ReadAsk", 0, 0, ask, round=1, count=2))
    assert s.said("ReadPoint") == [], "no such group; and who is asked does not lead in that"


# --- a silent group


def test_nothing_remains_of_reads_that_are_over() -> None:
    s = Reads()
    s.read(1)
    s.read(2)
    s.read(3, quorum=True)
    s.flow()
    assert [len(s.told(n)) for n in s.nodes] == [1, 1, 1]
    s.pass_time(500_000)
    s.lines.clear()
    s.pass_time(2_000_000)
    assert s.lines == []
    for n in s.nodes:
        assert s.wake[n] >= s.now


# --- a leader that prepares again


def test_a_point_of_an_older_ballot_of_the_same_leader_is_not_named() -> None:
    """3 leads for a moment, unheard by 1, has a value chosen and dies; 2 takes 1 for the leader
    still, reads, and 1 learns by the refusal that it has to prepare again."""
    s = Reads.__new__(Reads)
    Script.__init__(s, 5)
    s.tickets = 0
    heard_late = late_heartbeats(s)
    leader = led_unchecked(s, heard_late)
    other, written = led_unheard(s, leader)
    near = [n for n in s.nodes if n not in (leader, other)]
    asker = near[-1]
    beats = [m for m in s.waiting if m.source == leader and m.name == "Heartbeat"]
    assert beats
    s.crash(other)
    s.waiting = beats
    for n in near:
        s.deliver(f"{leader}→{n}", "Heartbeat")
    s.drop(f"→{leader}")
    assert s.status(asker)["leader"] == leader
    assert s.status(leader)["leading"]
    s.read(asker)  # begins after the write at `other` is complete
    s.deliver(f"{asker}→{leader}", "ReadAsk")
    assert s.told(asker) == []
    for _ in range(100):
        s.flow(lambda m: (m.name == "Accept" and m.dest == asker) or m.name == "Learn")
        if s.told(asker):
            break
        s.advance(1_000)
    ((_, instance),) = s.told(asker)
    assert instance >= written


def late_heartbeats(s: Reads):
    return lambda m: m.name == "Heartbeat" and s.status(m.source)["leading"]


def led_unchecked(s: Reads, unless) -> int:
    """Whoever comes to lead, with one value chosen, and without a grant."""
    for _ in range(200):
        s.advance(10_000)
        s.flow(unless)
        found = [n for n in s.nodes if s.status(n)["leading"]]
        if found:
            s.submit(found[0], b"a")
            s.flow(unless)
            s.drop()
            return found[0]
    raise AssertionError("nobody leads")


def led_unheard(s: Reads, leader: int) -> tuple[int, int]:
    """Another one leads, of which `leader` hears nothing, and has a value chosen: who, and where.
    One of the others does not get the value."""

    def unless(m: Message) -> bool:
        return leader in (m.source, m.dest) or m.name in ("Chosen", "Heartbeat")

    rest = [n for n in s.nodes if n != leader]
    for _ in range(75):
        s.advance(10_000)
        s.flow(unless)
        found = [n for n in rest if s.status(n)["leading"]]
        if found:
            (other,) = found
            s.submit(other, b"b")
            s.drop(f"{other}→{[n for n in rest if n != other][-1]}", "Accept")
            s.flow(unless)
            written = int(s.status(other)["chosen_through"])
            assert written == 2
            assert s.status(leader)["chosen_through"] == 1
            return other, written
    raise AssertionError("nobody else leads")
