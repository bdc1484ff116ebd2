"""The flows of Multi-Paxos as transcripts: elections, steady state, failures, catch-up, leases."""

import pytest
from script import Script

from phx.sim.wire_text import (
    FLAG_LAST,
    Message,
    ballot,
    encode,
    runs_of,
    value,
)  # fmt: skip

BEAT = ("Heartbeat", "HeartbeatAck")


def group_only(m: Message) -> bool:
    return m.name in BEAT


# --- elections and the steady state


def test_first_election() -> None:
    s = Script()
    s.flow()
    s.lines.clear()
    s.elect(1)
    assert s.said("PreVote", "PreVoteReply", "Prepare", "Promise") == [
        "1→2 PreVote g0 chosen=0",
        "1→3 PreVote g0 chosen=0",
        "2→1 PreVoteReply g0 verdict=ok",
        "3→1 PreVoteReply g0 verdict=ok",
        "1→2 Prepare g0 b(1.1) first=1 after=durable",
        "1→3 Prepare g0 b(1.1) first=1 after=durable",
        "2→1 Promise g0 b(1.1) first=1 chosen=0 after=durable",
        "3→1 Promise g0 b(1.1) first=1 chosen=0 after=durable",
    ]
    assert s.leaders() == {1: 1, 2: 1, 3: 1}


def test_steady_state_is_one_round_trip() -> None:
    s = Script()
    s.elect(1)
    s.lines.clear()
    s.submit(1, b"a")
    s.flow()
    assert s.lines == [
        "1→2 Accept g0 b(1.1) instance=1 watermark=0",
        "1→3 Accept g0 b(1.1) instance=1 watermark=0",
        "2→1 Accepted g0 b(1.1) first=1 through=1 after=durable",
        "3→1 Accepted g0 b(1.1) first=1 through=1 after=durable",
        "1→2 Chosen g0 b(1.1) through=1",
        "1→3 Chosen g0 b(1.1) through=1",
        "2→1 Confirm g0 b(1.1) through=1",
        "3→1 Confirm g0 b(1.1) through=1",
    ]
    assert [s.values(n) for n in (1, 2, 3)] == [[[b"a"]]] * 3
    assert s.chosen[3] == [(0, 1, 1)]


def test_a_silent_group_says_nothing() -> None:
    s = Script()
    s.elect(1)
    s.submit(1, b"a")
    s.pass_time(500_000)
    s.lines.clear()
    s.pass_time(3_000_000)
    assert s.lines == []


def test_forward_and_its_value_has_the_session_of_its_origin() -> None:
    s = Script()
    s.elect(1)
    s.lines.clear()
    s.submit(2, b"a", b"b")
    s.flow()
    assert s.lines[0] == "2→1 Forward g0 first_seq=1 count=2"
    (run,) = runs_of(s.body(3, 1) or b"")
    assert (run.node, run.incarnation, run.first_seq, run.values) == (2, 1, 1, [b"a", b"b"])


def test_a_forwarded_proposal_is_not_forwarded_again() -> None:
    s = Script()
    s.elect(1)
    s.lines.clear()
    items = b"\x01\0\0\0\0\0\0\0z"
    forward = encode(
        "Forward", 0, 0, items, low_water=1, first_seq=1, incarnation=1, count=1, nbytes=len(items)
    )
    s.put(3, 2, forward)  # 3 takes 2 for the leader
    assert s.lines == ["2→3 ForwardReply g0 first_seq=1 count=1 verdict=not-leader"]


def test_an_old_refusal_is_no_refusal_of_a_later_attempt() -> None:
    """Rejected is said only of a value that is in no Accept."""
    s = Script()
    s.elect(1)
    s.submit(2, b"a", timeout_us=200_000)
    (_forward,) = s.drop("2→1", "Forward")  # it is still on its way; 1 has just stepped down
    refusal = encode(
        "ForwardReply", 0, 0, first_seq=1, incarnation=1, count=1, verdict=4, leader=0, attempt=1
    )
    s.put(1, 2, refusal)
    s.pass_time(120_000, lambda m: m.name == "Forward")
    (again,) = s.pick("2→1", "Forward")  # handed out again: 1 leads after all
    s.put(3, 2, refusal)  # from somebody who was asked long ago, if ever
    s.put(1, 2, refusal)  # and a copy of the first answer, which is none of the second attempt
    s.put(2, 1, again.raw)
    s.deliver("1→3", "Accept")
    s.pass_time(300_000, lambda m: m.dest == 2)
    assert s.status(1)["chosen_through"] >= 1
    verdicts = [event[1] for event in s.events[2] if event[0] == 1]
    assert verdicts in ([], [2]), "rejected, and chosen"


def test_identical_bytes_are_two_values() -> None:
    s = Script()
    s.elect(1)
    s.submit(2, b"same")
    s.submit(3, b"same")
    s.submit(3, b"same")
    s.pass_time(100_000)
    assert sum(len(v) for v in s.values(1)) == 3
    keys = [
        (run.node, run.first_seq + k)
        for i in range(1, s.status(1)["chosen_through"] + 1)
        for run in runs_of(s.body(1, i) or b"")
        for k in range(len(run.values))
    ]
    assert sorted(keys) == [(2, 1), (3, 1), (3, 2)]


def test_leader_crash() -> None:
    s = Script()
    s.elect(1)
    s.submit(1, b"a")
    s.flow()
    s.crash(1)
    s.lines.clear()
    s.pass_time(2_000_000)
    assert s.leaders() == {2: 2, 3: 2}
    assert s.said("Prepare", "Promise")[:2] == [
        "2→3 Prepare g0 b(2.2) first=2 after=durable",
        "3→2 Promise g0 b(2.2) first=2 chosen=1 after=durable",
    ]
    s.submit(3, b"b")
    s.flow()
    assert s.values(2) == [[b"a"], [b"b"]]


def test_rejoin_does_not_disturb() -> None:
    """A node that was away comes back: no election, no new ballot."""
    s = Script()
    s.elect(1)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    s.submit(1, b"a")
    s.pass_time(5_000_000)
    before = s.engines[1].counters()
    s.connect(1, 3)
    s.connect(2, 3)
    s.pass_time(3_000_000)
    after = s.engines[1].counters()
    for name in ("elections", "step_downs", "re_prepares"):
        assert after[name] == before[name]
    assert s.leaders() == {1: 1, 2: 1, 3: 1}
    assert s.values(3) == [[b"a"]]


def test_prevote_is_denied_while_the_leader_is_heard() -> None:
    s = Script()
    s.elect(1)
    s.disconnect(1, 3)
    s.pass_time(2_500_000)
    assert [line for line in s.said("PreVoteReply") if line.endswith("verdict=hears-leader")]
    assert not [line for line in s.said("Prepare") if line.startswith("3→")]
    assert s.status(1)["leading"]


def test_a_leader_without_quorum_steps_down() -> None:
    s = Script()
    s.elect(1)
    s.disconnect(1, 2)
    s.disconnect(1, 3)
    s.pass_time(1_800_000)
    assert not s.status(1)["leading"]
    assert s.leaders() == {1: 0, 2: 2, 3: 2}


def test_working_leader_prepares_again_above_a_stale_ballot() -> None:
    """A member that promised a ballot of somebody who does not lead costs no election."""
    s = Script()
    s.elect(1)
    s.submit(1, b"a")
    s.flow()
    # 3 has promised 5.2, a ballot that came to nothing: by hand, its own grant run out.
    s.disconnect(1, 3)
    s.pass_time(900_000, lambda m: m.name in ("PreVote", "Prepare"))
    s.put(2, 3, encode("Prepare", 0, ballot(5, 2), first=1))
    s.drop("3→2")
    s.lines.clear()
    s.connect(1, 3)
    s.submit(1, b"b")
    s.flow()
    s.pass_time(1_000_000)
    assert "3→1 Refuse g0 b(1.1) promised=5.2 reason=ballot" in s.lines
    assert "1→3 Prepare g0 b(6.1) first=3 after=durable" in s.lines or (
        "1→3 Prepare g0 b(6.1) first=2 after=durable" in s.lines
    )
    assert s.engines[1].counters()["step_downs"] == 0
    assert s.engines[1].counters()["re_prepares"] == 1
    assert s.leaders() == {1: 1, 2: 1, 3: 1}
    assert s.values(3) == [[b"a"], [b"b"]]


# --- catch-up


def test_a_follower_that_lags_learns() -> None:
    s = Script(window=4)
    s.elect(1)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    for i in range(12):
        s.submit(1, b"%d" % i)
        s.flow()
    s.connect(1, 3)
    s.pass_time(1_000_000)
    assert s.values(3) == [[b"%d" % i] for i in range(12)]
    assert "3→1 LearnAsk g0 first=1 last=12" in s.lines
    assert {line for line in s.recorded(3) if line.startswith("CHOSEN")} == {
        f"CHOSEN g0 {i}" for i in range(1, 13)
    }


def test_a_restarted_node_learns_before_any_time_has_passed() -> None:
    """It waits for no timer: peers say at once how far they are."""
    s = Script()
    s.elect(1)
    s.submit(1, b"before")
    s.pass_time(1_000_000)
    s.crash(3)
    for i in range(12):
        s.submit(1, b"%d" % i)
        s.flow()
    s.lines.clear()
    now = s.now
    s.restart(3)
    s.flow()
    assert s.now == now
    assert s.values(3) == [[b"before"], *([b"%d" % i] for i in range(12))]
    assert len(s.said("LearnAsk")) == 1


def test_an_answer_from_somebody_else_does_not_end_the_asking() -> None:
    """3 asks 1, then 2; 1 answers late, 2 never. It must still ask for what comes later."""
    s = Script()
    s.elect(1)
    s.pass_time(200_000)
    s.disconnect(1, 3)
    s.submit(1, b"a")
    s.flow()
    s.connect(1, 3)

    def swallow(m: Message) -> bool:
        return m.name in ("Learn", "LearnAsk")

    s.flow(swallow)
    (first,) = s.deliver("3→1", "LearnAsk")  # answered, but slowly
    assert first.last == 1
    s.pass_time(400_000, swallow)  # the answer does not come: it asks another node
    assert s.pick("3→2", "LearnAsk")
    s.drop("3→2", "LearnAsk")  # which never hears of it
    s.deliver("1→3", "Learn")  # the late answer tells all
    assert s.status(3)["chosen_through"] == 1
    s.flow()
    # Now 3 misses an Accept, and hears only of the watermark.
    s.submit(1, b"b")
    s.drop("1→3", "Accept")
    s.pass_time(3_000_000)
    assert s.values(3) == [[b"a"], [b"b"]]


def test_a_full_window_does_not_wait_for_a_resend() -> None:
    """The watermark in an Accept makes room for that very Accept."""
    s = Script(window=4, batch_bytes_max=64)
    s.elect(1)
    for i in range(40):
        s.submit(1, b"%d" % i + b"x" * 100)
    s.flow()
    assert s.status(1)["chosen_through"] == 40
    assert s.engines[1].counters()["resends"] == 0


def test_accept_beyond_the_window_is_neither_taken_nor_acknowledged() -> None:
    s = Script(window=4)
    number = s.elect(1)
    s.lines.clear()
    body = value(b"x")
    s.put(1, 2, encode("Accept", 0, number, body, instance=5, first=1, nbytes=len(body)))
    assert s.lines == ["2→1 Accepted g0 b(1.1) first=1 through=0"]
    assert s.recorded(2) == ["PROMISE g0 b(1.1)"]
    s.put(1, 2, encode("Accept", 0, number, body, instance=4, first=1, nbytes=len(body)))
    assert s.recorded(2) == ["PROMISE g0 b(1.1)", "ACCEPT g0 4 b(1.1)"]


def test_hole_stops_the_acknowledgement() -> None:
    s = Script()
    s.elect(1)
    s.lazy.add(1)  # its own sync does not end: every value is an instance of its own
    for i in (1, 2, 3):
        s.submit(1, b"%d" % i * 300_000)
    s.drop("1→2", "Accept", instance=2)
    s.deliver("1→2", "Accept")
    assert [m.through for m in s.pick("2→1", "Accepted")] == [1, 1]
    s.advance(400_000, 1)  # sent again
    s.deliver("1→2", "Accept")
    assert s.pick("2→1", "Accepted")[-1].through == 3


def test_duplicate_accept_is_answered_when_the_first_is_durable() -> None:
    s = Script()
    number = s.elect(1)
    s.lazy.add(2)
    body = value(b"x")
    accept = encode("Accept", 0, number, body, instance=1, first=1, nbytes=len(body))
    s.put(1, 2, accept)
    s.put(1, 2, accept)
    first, second = s.pick("2→1", "Accepted")
    assert first.after == second.after == s.end[2] > s.durable[2]
    assert s.recorded(2).count("ACCEPT g0 1 b(1.1)") == 1
    s.sync(2)
    s.put(1, 2, accept)
    assert s.pick("2→1", "Accepted")[-1].after == 0


def test_duplicate_prepare_is_answered_when_the_promise_is_durable() -> None:
    s = Script()
    s.lazy.add(2)
    prepare = encode("Prepare", 0, ballot(1, 1), first=1)
    s.put(1, 2, prepare)
    s.put(1, 2, prepare)
    first, second = s.pick("2→1", "Promise")
    assert first.after == second.after == s.end[2] > s.durable[2]


def test_watermark_over_an_older_ballot_fetches() -> None:
    """3 holds an older value at 1 and missed the Accept of the new leader: it must not apply it."""
    s = Script()
    old = value(b"old", 9)
    s.put(2, 3, encode("Accept", 0, ballot(1, 2), old, instance=1, first=1, nbytes=len(old)))
    s.drop("3→2")
    s.elect(1)  # (3 is not needed for its quorum, but answers: so the value is adopted…)
    t = Script()
    t.put(2, 3, encode("Accept", 0, ballot(1, 2), old, instance=1, first=1, nbytes=len(old)))
    t.drop("3→2")
    t.put(1, 3, encode("Prepare", 0, ballot(2, 1), first=1))
    t.drop("3→1")
    t.lines.clear()
    t.put(1, 3, encode("Chosen", 0, ballot(2, 1), through=1))
    assert t.status(3)["chosen_through"] == 0
    assert t.said("LearnAsk")[0].endswith("LearnAsk g0 first=1 last=1")


def test_watermark_of_an_older_ballot_proves_nothing_about_a_newer_acceptance() -> None:
    """The leader of b learns a value that a ballot above b has chosen, and then says: chosen
    through 1 (b). A node that accepted something else at 1 in a ballot between the two must fetch.

    A run of five: 1 prepares b = 1.1 with {1, 2, 3}, and has to learn first. 4 prepares 2.4 with
    {4, 2, 5} and proposes X at 1, which only 4 accepts. 5 prepares 3.5 with {5, 2, 3}, chooses Y at
    1. 1 learns Y from 2 among the rest, begins to lead, and tells its watermark to 4.
    """
    s = Script(nodes=5)
    x = value(b"X", 4)
    s.put(5, 4, encode("Prepare", 0, ballot(2, 5), first=1))
    s.put(5, 4, encode("Accept", 0, ballot(2, 5), x, instance=1, first=1, nbytes=len(x)))
    assert s.recorded(4) == ["PROMISE g0 b(2.5)", "ACCEPT g0 1 b(2.5)"]
    s.lines.clear()
    s.put(1, 4, encode("Chosen", 0, ballot(1, 1), through=1))
    assert s.status(4)["chosen_through"] == 0
    assert "LearnAsk g0 first=1 last=1" in s.lines[0]


# --- leases


def beat(
    s: Script, source: int, dest: int, seq: int, version: int, *claims: tuple[int, int]
) -> None:
    import struct

    rest = b"".join(struct.pack("<IIQ", g, 0, number) for g, number in claims)
    s.put(
        source, dest,
        encode("Heartbeat", 0, 0, rest, flags=2, seq=seq, version=version, base=0,
               incarnation=s.engines[source].incarnation, lease_us=800_000, count=len(claims)),
    )  # fmt: skip


def test_a_grant_refuses_promises_and_ends_by_itself() -> None:
    s = Script()
    number = s.elect(1)
    s.drop()
    s.lines.clear()
    s.put(3, 2, encode("Prepare", 0, ballot(2, 3), first=1))
    assert s.said("Refuse") == ["2→3 Refuse g0 b(2.3) promised=1.1 reason=leased"]
    s.advance(1_000_000, 2)
    s.put(3, 2, encode("Prepare", 0, ballot(3, 3), first=1))
    assert s.status(2)["promised"] == ballot(3, 3) > number


def test_an_older_heartbeat_does_not_end_a_grant() -> None:
    """A copy of the heartbeat before the claim comes after it: the grant was given all the same."""
    s = Script()
    s.put(1, 2, encode("Prepare", 0, ballot(1, 1), first=1))
    beat(s, 1, 2, 11, 2, (0, ballot(1, 1)))
    (ack,) = [m for m in s.pick("2→1", "HeartbeatAck") if m.seq == 11]
    assert ack.refused() == set()  # granted: 1 counts on it
    beat(s, 1, 2, 10, 1)
    s.lines.clear()
    s.put(3, 2, encode("Prepare", 0, ballot(2, 3), first=1))
    assert s.said("Refuse") == ["2→3 Refuse g0 b(2.3) promised=1.1 reason=leased"]


def test_quiet_period_after_restart() -> None:
    s = Script()
    s.elect(1)
    s.restart(2)
    s.drop()
    s.lines.clear()
    s.put(3, 2, encode("Prepare", 0, ballot(2, 3), first=1))
    assert s.said("Refuse") == ["2→3 Refuse g0 b(2.3) promised=1.1 reason=leased"]
    # As long as a grant that was given just before: an eighth more than it says, for clocks.
    s.advance(899_000, 2)
    s.put(3, 2, encode("Prepare", 0, ballot(3, 3), first=1))
    assert s.status(2)["promised"] == ballot(1, 1)
    s.advance(1_000, 2)
    s.put(3, 2, encode("Prepare", 0, ballot(4, 3), first=1))
    assert s.status(2)["promised"] == ballot(4, 3)


def test_transfer() -> None:
    """Leadership goes to the preferred node without waiting for grants to run out."""
    s = Script(groups=2, balance=1)
    s.crash(2)
    s.pass_time(1_500_000)
    assert {n: s.status(n, 1)["leader"] for n in (1, 3)} in ({1: 3, 3: 3}, {1: 1, 3: 1})
    s.restart(2)
    s.pass_time(4_000_000)
    assert {n: s.status(n, 1)["leader"] for n in (1, 2, 3)} == {1: 2, 2: 2, 3: 2}
    assert [line.split("→")[1][0] for line in s.said("Transfer")].count("2") == 1


# --- partial partitions


@pytest.mark.parametrize("balance", [0, 1])
def test_chain_causes_no_endless_elections(balance: int) -> None:
    """1 - 2 - 3, with no link between 1 and 3."""
    s = Script(groups=3, balance=balance)
    s.disconnect(1, 3)
    s.pass_time(8_000_000)
    before = {n: s.engines[n].counters() for n in s.nodes}
    s.pass_time(8_000_000)
    for n in s.nodes:
        after = s.engines[n].counters()
        for name in ("elections", "step_downs", "transfers"):
            assert after[name] - before[n][name] <= 2, (n, name)
    for g in s.groups:
        assert any(s.status(n, g)["leading"] for n in s.nodes)


@pytest.mark.parametrize("balance", [0, 1])
def test_quorum_loss_star_elects_the_connected_node(balance: int) -> None:
    """OmniPaxos' scenario: everybody reaches only 3, so only 3 has a quorum."""
    s = Script(nodes=5, groups=5, balance=balance)
    s.flow()
    s.pass_time(3_000_000)
    for a in s.nodes:
        for other in s.nodes:
            if a < other and 3 not in (a, other):
                s.disconnect(a, other)
    s.pass_time(10_000_000)
    before = s.engines[3].counters()
    led = 0
    for _ in range(100):
        s.pass_time(100_000)
        led += sum(s.status(3, g)["leading"] for g in s.groups)
    after = s.engines[3].counters()
    assert after["transfers"] - before["transfers"] <= 5, "leaderships go to and fro"
    assert led >= 450  # of 500


# --- a halted, poisoned or stopped replica


def test_a_halted_group_gives_its_leadership_up() -> None:
    """Ballots run out at the leader (refused, never wrapped): another node must lead on."""
    s = Script()
    number = s.elect(1)
    top = (1 << 44) - 1
    counter = 1
    while counter < top and not s.status(1)["halted"]:
        counter = min(top, counter + (1 << 32))
        number = s.status(1)["ballot"]
        s.put(
            2, 1,
            encode("Refuse", 0, number, promised=ballot(counter, 2), reason=1),
        )  # fmt: skip
        counter = s.status(1)["ballot"] >> 20
        if s.status(1)["leading"]:
            continue
        s.lines.clear()
        s.drop()
        for member in (2, 3):
            s.put(
                member, 1,
                encode("Promise", 0, s.status(1)["ballot"], flags=FLAG_LAST, first=1, floor=1),
            )  # fmt: skip
    assert s.status(1)["halted"]
    assert not s.status(1)["leading"]
    assert s.status(1)["leader"] != 1


def test_a_poisoned_node_sleeps() -> None:
    s = Script()
    s.elect(1)
    s.engines[1].poison()
    s.turn(1)
    s.advance(1_000_000, 1)
    s.advance(1_000, 1)
    assert s.wake[1] > s.now


def test_poisoned_node_claims_and_votes_no_more() -> None:
    s = Script()
    s.elect(1)
    s.engines[1].poison()
    s.turn(1)
    s.pass_time(2_000_000)
    assert s.leaders()[2] == s.leaders()[3] == 2
    s.submit(2, b"a")
    s.lines.clear()
    s.pass_time(100_000)
    assert not [line for line in s.lines if line.startswith("1→")]


# --- settling


def settle(s: Script, n: int, upto: int) -> None:
    for group, instance, lsn in s.engines[n].settle_plan(upto):
        body = next(r.body for r in s.journal[n] if r.lsn == lsn)
        done = s.settled[n].setdefault(group, [])
        assert instance == len(done) + 1
        done.append(body)
    for group, done in s.settled[n].items():
        s.engines[n].settled(group, len(done))
    assert s.engines[n].retire(upto) == 0
    s.turn(n)
    floor, after = s.floors[n]
    assert after <= s.durable[n]
    s.journal[n] = [r for r in s.journal[n] if r.lsn >= floor]


def test_carry_over_then_replay_gives_the_same_state() -> None:
    s = Script()
    number = s.elect(1)
    for text in (b"a", b"b", b"c"):
        s.submit(1, text)
        s.flow()
    open_value = value(b"open")
    s.put(
        1, 2, encode("Accept", 0, number, open_value, instance=5, first=1, watermark=3,
                     nbytes=len(open_value))
    )  # fmt: skip
    settle(s, 2, s.end[2])
    assert s.recorded(2) == ["PROMISE g0 b(1.1)", "ACCEPT g0 5 b(1.1)"]
    s.restart(2)
    status = s.status(2)
    assert (status["promised"], status["chosen_through"], status["settled_through"],
            status["accepted_last"]) == (number, 3, 3, 5)  # fmt: skip
    assert s.engines[2].incarnation == 2
    s.advance(900_000)
    s.drop()
    s.put(3, 2, encode("Prepare", 0, ballot(9, 3), first=1))
    (promise,) = s.pick("2→3", "Promise")
    (entry,) = promise.entries()
    assert (entry.instance, entry.ballot, entry.body) == (5, number, open_value)


def test_older_entries_are_fetched_from_journal_and_store() -> None:
    s = Script(cache_bytes_max=0)
    s.elect(1)
    s.disconnect(2, 3)
    s.disconnect(1, 3)
    for text in (b"a", b"b", b"c"):
        s.submit(1, text)
        s.flow()
    settle(s, 1, s.end[1])
    s.submit(1, b"d")
    s.flow()
    s.connect(1, 3)
    s.flow()
    s.pass_time(100_000)
    assert s.fetches[1] == [(0, 3, 1, 4)]
    s.answer_fetches(1)
    s.pass_time(100_000)
    assert s.status(3)["chosen_through"] == 4
