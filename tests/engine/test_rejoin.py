"""Rejoin: a replica that lost promises or acceptances does not vote until that is safe."""

import random

import pytest
from harness import Faults
from lossy import SECOND, STEP, Lossy, LossyCluster, storm
from member_lab import roster

from phx._core.codec import encode_record
from phx._core.engine_door import Engine
from phx.sim.wire_text import NODE, SUSPECT, Message, ballot, encode

ANSWERS = ("PreVoteReply", "Promise", "Accepted")


def answers(s: Lossy, n: int, since: int) -> list[str]:
    return [line for line in s.said(*ANSWERS, since=since) if line.startswith(f"{n}→")]


def kept_suspect() -> Lossy:
    """2 has lost its journal, and 3, whose answer it needs to rejoin, is down."""
    s = Lossy()
    s.elect(1)
    s.crash(3)
    s.lose_journal(2)
    s.pass_time(SECOND)
    return s


def without_its_store_too() -> Lossy:
    """Then 2 loses its store as well, and starts with another one; it has no connection yet."""
    s = kept_suspect()
    s.crash(2)
    s.ceiling[2] = 0
    s.start(2)
    assert s.suspects() == [2]
    return s


def test_a_suspect_replica_answers_nothing_and_grants_nothing() -> None:
    s = Lossy()
    number = s.elect(1)
    s.disconnect(1, 3)  # so that nobody else is there to answer its own rejoin
    s.disconnect(2, 3)
    s.submit(1, b"v")
    s.flow()
    s.lose_journal(2)
    assert s.suspects() == [2]
    since = len(s.lines)
    s.drop("2→1")
    higher = ballot((number >> 20) + 7, 1)
    s.put(1, 2, encode("PreVote", 0, higher, chosen=0))
    s.put(1, 2, encode("Prepare", 0, higher, first=1, start=1, released=0, holds=0))
    granted: list[bool] = []

    def watched(m: Message) -> bool:
        if m.name == "HeartbeatAck" and m.source == 2 and s.status(1)["leading"]:
            granted.append(0 not in m.refused())
        return False

    s.pass_time(6 * SECOND, watched)
    assert not answers(s, 2, since)
    assert s.status(2)["promised"] == 0
    assert granted
    assert not any(granted[1:])  # (the first answers what was claimed before)
    assert s.suspects() == [2]


def test_the_run_that_breaks_paxos_made_live() -> None:
    """v is chosen by {1, 2}; 2 loses its journal; 1 goes; 3 prepares with 2."""
    s = Lossy()
    s.elect(1)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    s.submit(1, b"v")
    s.flow()
    assert s.status(1)["chosen_through"] == 1
    s.lose_journal(2)
    s.crash(1, power=False)
    s.connect(2, 3)
    s.submit(3, b"w")
    s.pass_time(20 * SECOND)
    assert [s.status(n)["chosen_through"] for n in (2, 3)] == [0, 0]
    assert s.suspects() == [2]
    s.cuts.clear()
    s.restart(1)
    s.pass_time(20 * SECOND)
    assert s.suspects() == []
    assert s.values(1) == s.values(2) == s.values(3)
    assert s.values(2)[0] == [b"v"]
    assert [b"w"] in s.values(2)


def test_it_is_whole_after_it_led_once_above_its_ceiling() -> None:
    s = Lossy()
    s.elect(1)
    for text in (b"a", b"b"):
        s.submit(1, text)
        s.flow()
    s.lose_journal(2)
    s.submit(1, b"c")
    s.pass_time(10 * SECOND)
    assert s.suspects() == []
    marks = s.marks(2)
    assert marks[0] == (0, 2, 0)
    assert marks[1][:2] == (0, 2)
    assert marks[1][2] >> 20 > STEP
    assert s.status(2)["leading"]
    kinds = [r.kind for r in s.journal[2]]
    assert kinds.index(SUSPECT) < kinds.index(NODE)
    s.crash(1)
    s.pass_time(5 * SECOND)
    s.submit(3, b"d")
    s.pass_time(5 * SECOND)
    assert [v for v in s.values(3) if v != "no-op"] == [[b"a"], [b"b"], [b"c"], [b"d"]]


def test_who_has_asked_and_passes_a_change_of_members_asks_again_and_is_whole() -> None:
    """3 has the word of 1, and that of 2 is missing; the members change; then 2 is there."""
    s = Lossy()
    s.elect(1)
    s.disconnect(2, 3)
    s.lose_journal(3)
    s.pass_time(3 * SECOND)
    assert s.suspects() == [3]
    assert s.engines[1].change_members(0, roster(2, (1, 2, 3))) == 0
    s.pass_time(3 * SECOND)
    assert {s.engines[n].membership(0)["version"] for n in s.nodes} == {2}
    assert s.suspects() == [3]
    s.connect(2, 3)
    s.pass_time(10 * SECOND)
    assert s.suspects() == []


def test_who_is_told_of_members_before_it_has_the_log_below_them_asks_once_it_has() -> None:
    """3 fetches a checkpoint, whose members the engine is told first: as long as it does not know
    what is below them it has no vote to ask for, and later nothing reminded it (torture --created,
    seed 14)."""
    s = Lossy()
    s.elect(1)
    s.submit(1, b"a")
    s.pass_time(SECOND // 5)
    assert s.engines[1].change_members(0, roster(2, (1, 2, 3))) == 0
    s.pass_time(SECOND // 5)
    s.submit(1, b"b")
    s.pass_time(SECOND // 5)
    through = s.status(1)["chosen_through"]
    for n in (1, 2):  # what is below is trimmed
        s.engines[n].floor(0, through + 1)
        s.kept[n][0] = through + 1
        s.turn(n)
    s.lose_journal(3)
    s.pass_time(SECOND)
    known = s.engines[1].membership(0)
    told = (known["version"], known["value"], known["instance"], known["floor"], known["active"])
    assert s.engines[3].change_known(0, *told) == 0
    s.turn(3)
    s.pass_time(3 * SECOND)  # it is being written
    assert s.suspects() == [3]
    assert s.status(3)["leader"] == 1
    assert s.engines[3].install(0, through, s.status(1)["promised"]) == 0
    s.turn(3)
    s.pass_time(10 * SECOND)
    assert s.suspects() == []


def test_it_takes_all_that_were_not_lost_and_its_own_promise_does_not_count() -> None:
    """Of five, two others are there: with the node itself a majority, and not enough."""
    s = Lossy(nodes=5)
    s.elect(5)
    s.submit(5, b"v")
    s.flow()
    s.crash(5)
    s.crash(1)
    s.lose_journal(2)
    s.pass_time(20 * SECOND)
    assert s.suspects() == [2]
    assert not any(status for status in s.leaders().values())
    s.cuts.clear()
    s.restart(1)
    s.pass_time(20 * SECOND)
    assert s.suspects() == []
    assert s.values(3)[0] == [b"v"]


def test_two_suspects_do_not_vouch_for_each_other() -> None:
    s = Lossy()
    s.elect(1)
    s.submit(1, b"v")
    s.flow()
    s.lose_journal(2)
    s.lose_journal(3)
    s.submit(1, b"w")
    s.pass_time(30 * SECOND)
    assert s.suspects() == [2, 3]
    assert s.status(1)["chosen_through"] == 1


def test_four_need_two_others() -> None:
    s = Lossy(nodes=4)
    s.elect(1)
    s.submit(1, b"v")
    s.flow()
    s.crash(4)
    s.lose_journal(2)
    s.pass_time(20 * SECOND)
    assert s.suspects() == []
    assert s.values(2)[0] == [b"v"]


def test_two_need_the_other_and_one_alone_never_votes_again() -> None:
    s = Lossy(nodes=2)
    s.elect(1)
    s.submit(1, b"v")
    s.flow()
    s.lose_journal(1)
    s.pass_time(20 * SECOND)
    assert s.suspects() == []
    assert s.values(1)[0] == [b"v"]
    alone = Lossy(nodes=1)
    alone.elect(1)
    alone.lose_journal(1)
    alone.submit(1, b"v")
    alone.pass_time(20 * SECOND)
    assert alone.suspects() == [1]
    assert alone.status(1)["chosen_through"] == 0


def test_it_is_not_whole_before_what_it_was_told_is_durable_here() -> None:
    s = Lossy()
    s.elect(1)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    s.submit(1, b"v")
    s.deliver("1→2", "Accept")
    s.drop("2→")  # accepted by both, and not known to be chosen
    s.cuts.clear()
    s.lose_journal(2)
    s.connect(1, 3)
    s.lazy.add(2)
    for _ in range(2000):
        s.advance(10_000)
        s.flow(lambda m: m.name == "Accept")
        if s.status(2)["leading"]:
            break
        if s.status(2)["accepted_last"] == 0:  # all but what its own phase 1 found
            s.sync(2)
    assert s.status(2)["leading"]
    assert s.status(2)["accepted_last"] >= 1
    assert s.suspects() == [2]
    s.crash(2)  # what it accepted while it led is lost again, and that is no loss of the journal
    s.lazy.discard(2)
    s.restart(2)
    assert s.suspects() == [2]
    s.pass_time(20 * SECOND)
    assert s.suspects() == []
    assert s.values(2)[0] == [b"v"]


def test_a_second_loss_counts_the_ballot_of_the_rejoin() -> None:
    s = Lossy()
    s.elect(1)
    s.lose_journal(2)
    s.pass_time(10 * SECOND)
    first = s.marks(2)[-1][2]
    s.lose_journal(2)
    s.pass_time(20 * SECOND)
    assert s.suspects() == []
    assert s.marks(2)[0][2] == 0
    assert s.marks(2)[-1][2] >> 20 > first >> 20
    assert s.marks(2)[0][1] > 2  # a life of its own


def test_a_suspect_replica_whose_store_is_lost_too_still_knows_its_ceiling() -> None:
    """The store had it, and is made anew from the journal, which has none of the lost promises."""
    s = without_its_store_too()
    s.connect(1, 2)
    s.restart(3)
    s.pass_time(20 * SECOND)
    assert s.suspects() == []
    assert s.marks(2)[-1][2] >> 20 > STEP


def test_a_restart_and_a_retired_segment_leave_it_suspect() -> None:
    s = kept_suspect()
    assert s.engines[2].retire(s.durable[2]) == 0
    s.turn(2)
    s.journal[2] = [r for r in s.journal[2] if r.lsn >= s.floors[2][0]]
    assert s.marks(2)[-1] == (0, 2, 0)
    s.restart(2)
    assert s.suspects() == [2]
    s.restart(3)
    s.pass_time(20 * SECOND)
    assert s.suspects() == []
    s.restart(2)
    assert s.suspects() == []


def test_it_learns_and_forwards_meanwhile() -> None:
    s = Lossy()
    s.elect(1)
    s.disconnect(2, 3)
    s.lose_journal(2)
    s.cuts.add((2, 3))
    s.submit(1, b"a")
    s.pass_time(SECOND, lambda m: m.name == "Rejoin")
    s.submit(2, b"b")
    s.pass_time(SECOND, lambda m: m.name == "Rejoin")
    assert s.suspects() == [2]
    assert s.values(2) == [[b"a"], [b"b"]]


def test_a_leader_hands_over_only_where_it_can_succeed() -> None:
    s = Lossy(nodes=5)
    number = s.elect(5)
    s.submit(5, b"v")
    s.pass_time(SECOND)
    s.lines.clear()
    s.put(2, 5, encode("Rejoin", 0, number - (1 << 20), chosen=1))  # of another leadership
    s.crash(4)
    s.crash(1)
    s.pass_time(2 * SECOND)
    s.put(2, 5, encode("Rejoin", 0, number, chosen=1))  # 5 and 3 are two, three are needed
    assert not s.said("Transfer")
    s.restart(4)
    s.pass_time(2 * SECOND)
    s.put(2, 5, encode("Rejoin", 0, number, chosen=1))
    assert [line.split(" ")[0] for line in s.said("Transfer")] == ["5→2"]


def led(s: Lossy, seconds: int) -> int:
    """In how many of so many tenths of seconds somebody leads, and 2 asks."""
    count = 0
    for _ in range(seconds * 10):
        s.pass_time(SECOND // 10)
        count += any(s.status(n)["leading"] for n in s.engines)
    return count


def test_it_does_not_ask_for_what_its_ceiling_forbids() -> None:
    """Its store cannot be written: the group would be without a leader again and again."""
    s = Lossy()
    s.elect(1)
    s.lose_journal(2)
    s.stuck.add(2)
    s.pass_time(2 * SECOND)
    transfers = s.engines[1].counters()["transfers"]
    assert led(s, 60) == 600
    assert s.engines[1].counters()["transfers"] == transfers == 0
    assert s.suspects() == [2]
    s.stuck.clear()
    s.pass_time(10 * SECOND)
    assert s.suspects() == []


def test_it_takes_no_group_from_a_pair_of_which_one_could_not_follow() -> None:
    """3 cannot raise its ceiling, which the ballot of the rejoin is above: with 1 bound by that
    ballot, nobody would be left whom 3 can follow."""
    s = Lossy()
    s.elect(1)
    s.lose_journal(2)
    s.stuck.add(3)
    assert led(s, 60) == 600
    s.submit(1, b"v")
    s.pass_time(SECOND)
    assert s.status(1)["chosen_through"] >= 1
    assert s.status(3)["chosen_through"] == s.status(1)["chosen_through"]
    assert s.engines[1].counters()["transfers"] == 0
    assert s.suspects() == [2]
    s.stuck.clear()
    s.pass_time(10 * SECOND)
    assert s.suspects() == []
    assert [b"v"] in s.values(2)


@pytest.mark.parametrize("power", [False, True])
def test_nor_when_nobody_leads_for_a_while(power: bool) -> None:
    """It campaigns then, as anybody does."""
    s = Lossy()
    s.elect(1)
    s.lose_journal(2)
    s.stuck.add(3)
    s.pass_time(3 * SECOND)
    s.crash(1, power=power)
    s.pass_time(10 * SECOND)
    assert not [line for line in s.said("Prepare") if line.startswith("2→")]
    s.restart(1)
    s.pass_time(10 * SECOND)
    s.submit(1, b"v")
    s.pass_time(2 * SECOND)
    assert [b"v"] in s.values(1)
    assert [b"v"] in s.values(3)
    assert s.suspects() == [2]
    s.stuck.clear()
    s.pass_time(20 * SECOND)
    assert s.suspects() == []


def test_nor_by_a_transfer_that_it_did_not_ask_for() -> None:
    """Balance hands over to whoever should lead and has caught up."""
    s = Lossy()
    number = s.elect(1)
    s.lose_journal(2)
    s.stuck.add(3)
    s.pass_time(3 * SECOND)
    s.waiting.clear()
    mark = len(s.lines)
    s.put(1, 2, encode("Transfer", 0, number))
    assert [m.name for m in s.waiting if m.source == 2 and m.dest == 1] == ["Refuse"]
    assert not s.said("Prepare", since=mark)


def test_what_it_promised_itself_and_nobody_heard_does_not_keep_it_from_its_vote() -> None:
    """2 is given the leadership, promises its own ballot, and dies; it comes back with that
    promise, which is above the ballot in which the next leader gives it away."""
    s = Lossy()
    s.elect(1)
    s.lose_journal(2)
    for _ in range(400):
        s.pass_time(10_000, lambda m: m.source == 2 and m.name == "Prepare")
        if s.status(2)["promised"]:
            break
    own = s.status(2)["promised"]
    assert own >> 20 > STEP
    s.crash(2, power=False)
    s.drop("2→")
    s.pass_time(5 * SECOND)
    s.restart(2)
    assert s.status(2)["promised"] == own
    assert max(s.status(n)["promised"] for n in (1, 3)) < own
    s.pass_time(20 * SECOND)
    assert s.suspects() == []


def test_of_five_two_that_cannot_follow_are_waited_for() -> None:
    s = Lossy(nodes=5)
    s.elect(5)
    s.lose_journal(2)
    s.stuck |= {3, 4}
    assert led(s, 30) == 300
    assert s.suspects() == [2]
    s.stuck.discard(4)  # three others can: 1, 4 and 5
    s.pass_time(10 * SECOND)
    assert s.suspects() == []
    s.submit(2, b"v")
    s.pass_time(2 * SECOND)
    assert [b"v"] in s.values(1)


def test_a_prevote_of_an_impossible_ballot_raises_no_ceiling() -> None:
    s = Lossy()
    s.keeps = False
    s.elect(1)
    s.put(3, 2, encode("PreVote", 0, ballot(1 << 43, 3), chosen=0))
    assert not [e for e in s.events[2] if e[0] == 6]
    assert s.engines[2].counters()["hostile_messages"] == 1


def test_a_transfer_above_the_ceiling_is_refused_at_once() -> None:
    s = Lossy()
    number = s.elect(1)
    s.stuck.add(3)
    s.put(2, 3, encode("PreVote", 0, ballot(STEP + 5, 2), chosen=0))
    s.put(2, 3, encode("Prepare", 0, ballot(STEP + 5, 2), first=1, start=1, released=0, holds=0))
    s.waiting.clear()
    s.put(1, 3, encode("Transfer", 0, number))
    assert [m.name for m in s.waiting if m.source == 3 and m.dest == 1] == ["Refuse"]
    assert not s.status(3)["leading"]


def test_under_pressure_it_does_not_ask_for_what_it_would_refuse() -> None:
    s = Lossy()
    s.elect(1)
    s.lose_journal(2)
    s.engines[2].pressure(1)
    assert led(s, 60) == 600
    assert s.engines[1].counters()["transfers"] == 0
    s.engines[2].pressure(0)
    s.pass_time(10 * SECOND)
    assert s.suspects() == []


def test_a_refused_transfer_does_not_shorten_the_pause_after_many() -> None:
    """Whoever asks each second and refuses each time gets it ever more seldom."""
    s = Lossy()
    s.elect(1)
    s.lose_journal(2)
    s.engines[2].pressure(1)
    for _ in range(300):
        s.pass_time(SECOND)
        if s.status(1)["leading"]:
            status = s.status(1)
            asked = encode("Rejoin", 0, status["ballot"], chosen=status["chosen_through"])
            s.put(2, 1, asked)
    # Pauses of 15 s at first, then of 16, 32 and 64.
    assert s.engines[1].counters()["transfers"] in (8, 9, 10)


def test_the_highest_ballot_seen_is_told_with_the_group() -> None:
    """What a store made anew beside a suspect journal takes for the ceiling."""
    s = without_its_store_too()
    assert s.status(2)["promised"] == 0
    assert s.status(2)["highest_seen"] >> 20 >= STEP
    assert all(s.status(n)["highest_seen"] >= s.status(n)["promised"] for n in s.engines)


def test_nothing_is_promised_above_the_ceiling_and_it_is_asked_for_once() -> None:
    s = Lossy()
    s.keeps = False
    s.elect(1)
    s.pass_time(SECOND)
    above = ballot(STEP + 1, 3)
    before = s.status(2)["promised"]
    s.crash(1)
    s.advance(5 * SECOND)
    s.lines.clear()
    for _ in range(3):
        s.put(3, 2, encode("Prepare", 0, above, first=1, start=1, released=0, holds=0))
    assert not s.said("Promise", "Refuse")
    assert s.status(2)["promised"] == before
    assert [e[3] for e in s.events[2] if e[0] == 6] == [2 * STEP + 1]
    s.engines[2].ceiling(STEP)  # it is never lowered, and this raises nothing
    s.engines[2].ceiling(2 * STEP + 1)
    s.put(3, 2, encode("Prepare", 0, above, first=1, start=1, released=0, holds=0))
    assert s.status(2)["promised"] == above


def test_it_is_raised_long_before_it_is_needed() -> None:
    s = Lossy()
    s.keeps = False
    s.elect(1)
    s.put(3, 2, encode("Prepare", 0, ballot(STEP // 2, 3), first=1, start=1, released=0, holds=0))
    assert not [e for e in s.events[2] if e[0] == 6]
    s.crash(1)
    s.advance(5 * SECOND)
    for counter in (STEP // 2, STEP // 2 + 1):
        number = ballot(counter, 3)
        s.put(3, 2, encode("Prepare", 0, number, first=1, start=1, released=0, holds=0))
        assert s.status(2)["promised"] == number
    assert [e[3] for e in s.events[2] if e[0] == 6] == [STEP + STEP // 2 + 1]


@pytest.mark.parametrize("order", [1, -1])
def test_the_latest_loss_counts_whatever_the_order_of_records(order: int) -> None:
    def mark(life: int, number: int) -> bytes:
        return encode_record(SUSPECT, 0, life, number, b"" if number else bytes(8))

    for marks, suspect in (
        ([mark(2, 0)], 1),
        ([mark(2, 0), mark(2, 77)], 0),
        ([mark(2, 0), mark(2, 77), mark(5, 0)], 1),
        ([mark(2, 0), mark(5, 0), mark(5, 99)], 0),
    ):
        engine = Engine(1, [1, 2, 3], [0])
        for record in marks[::order]:
            engine.replay(record, 0)
        assert engine.status(0)["suspect"] == suspect


@pytest.mark.parametrize(
    ("life", "body"),
    [(0, bytes(8)), (1 << 32, bytes(8)), (1, b"x" * 7), (1, b"\xff" * 8), (1, b"")],
)
def test_a_mark_that_cannot_be_is_damage(life: int, body: bytes) -> None:
    engine = Engine(1, [1, 2, 3], [0])
    with pytest.raises(ValueError, match="damaged"):
        engine.replay(encode_record(SUSPECT, 0, life, 0, body), 0)
    with pytest.raises(ValueError, match="damaged"):  # of a group that is not hosted
        engine.replay(encode_record(SUSPECT, 7, 1, 0, bytes(8)), 0)
    with pytest.raises(ValueError, match="damaged"):
        engine.replay(encode_record(SUSPECT, 0, 1, 77, bytes(8)), 0)


@pytest.mark.parametrize("seed", range(24))
def test_journals_are_lost_at_random_and_every_claim_holds(seed: int) -> None:
    """U1 to U7, the leases, and that nobody who is suspect votes, watched by the checker."""
    dice = random.Random(seed)
    c = LossyCluster(
        seed, nodes=5 if seed % 3 == 0 else 3, faults=Faults(loss=0.03, twice=0.02, slow_sync=0.02)
    )
    losses = 0

    def lose(n: int) -> None:
        nonlocal losses
        c.note(f"node {n} loses its journal")
        c.lossy(n).lose_journal(dice.random() < 0.5)
        c.at(c.now + dice.randrange(1, SECOND), lambda: c.restart(n))
        losses += 1

    storm(c, dice, lambda: dice.random() < 0.5, 0.08, lose)
    assert losses
    assert c.checker.rejoins  # type: ignore[attr-defined]
