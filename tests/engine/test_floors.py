"""Floors: what a node no longer has in its log, what it says of that, and what others make of it.

Beside each room of the table in docs/design/checkpoints.md, section 6, stands the run that breaks
the shortcut of that row.
"""

import pytest
from script import Script
from trimmed import SECOND, belows, lagging, led, recovering, retire, settle, trim

from phx.sim.wire_text import (
    FLAG_LAST,
    RECORD_HEADER,
    SETTLED,
    ballot,
    encode,
    runs_of,
    supplied,
)


def candidate() -> tuple[Script, int]:
    """1 prepares, and nobody has heard of it yet; in which ballot."""
    s = Script()
    while not s.pick("1→2", "PreVote"):
        s.advance(10_000, 1)
    s.deliver("PreVote")
    s.deliver("PreVoteReply")
    number = s.pick("1→2", "Prepare")[0].ballot
    s.drop("1→")
    return s, number


# --- what is said


def test_golden_bytes_of_a_promise_and_a_learn_with_their_floor() -> None:
    """By the tables of docs/design/wire.md."""
    s = lagging(3)
    trim(s, 2, 3)
    s.drop()
    s.connect(2, 3)
    s.drop()
    s.put(3, 2, encode("LearnAsk", 0, 0, first=1, last=2))
    (learn,) = s.pick("2→3", "Learn")
    assert learn.raw == bytes.fromhex(
        "38000000" "0b" "00" "0000"  # length 56, LEARN, flags, space
        "00000000" "01000000"        # group 0, configuration 1
        "0000000000000000"           # no ballot
        "0100000000000000"           # first 1
        "0300000000000000"           # chosen_through 3
        "0300000000000000"           # floor 3
        "00000000" "00000000"        # no entries, pad
    )  # fmt: skip
    s.pass_time(3 * SECOND, unless=lambda m: True)  # its grant to 1 ends
    s.drop()
    s.put(3, 2, encode("Prepare", 0, ballot(9, 3), first=1))
    (promise,) = s.pick("2→3", "Promise")
    assert promise.raw[:24] == bytes.fromhex(
        "48000000" "04" "01" "0000"  # length 72, PROMISE, the last page, space
        "00000000" "01000000"
        "0300900000000000"           # ballot: counter 9 above node 3
    )  # fmt: skip
    fixed = promise.raw[24:]
    assert fixed[:32] == bytes.fromhex(
        "0100000000000000"           # first 1
        "0100000000000000"           # start 1
        "0300000000000000"           # chosen_through 3
        "0300000000000000"           # floor 3
    )  # fmt: skip
    assert int.from_bytes(fixed[32:40], "little") >> 40 == s.engines[2].incarnation  # reply
    assert fixed[40:] == bytes.fromhex("0000000000000000")  # page 0, no entries


def test_golden_bytes_of_a_settled_record() -> None:
    """By the table of docs/design/journal.md; the checksum is the codec's, and tested there."""
    s = lagging(5)
    trim(s, 2, 4)
    retire(s, 2)
    (record,) = [r for r in s.journal[2] if r.kind == SETTLED]
    assert record.raw[4:] == bytes.fromhex(
        "00000000"          # no body
        "09" "00" "0000"    # kind SETTLED, flags, space
        "00000000"          # group 0
        "0500000000000000"  # settled through 5
        "0400000000000000"  # kept from 4
    )  # fmt: skip
    assert RECORD_HEADER.unpack(record.raw)[2] == SETTLED


def test_floor_only_rises_and_is_never_above_what_is_chosen() -> None:
    s = lagging(6)
    trim(s, 1, 5)
    s.engines[1].floor(0, 3)
    s.engines[1].floor(9, 3)  # a group that is not hosted
    status = s.status(1)
    assert (status["floor"], status["settled_through"], status["chosen_through"]) == (5, 6, 6)


def test_floor_above_what_was_settled_settles_without_a_copy() -> None:
    s = lagging(6)
    settle(s, 2, through=2)
    s.engines[2].floor(0, 5)
    s.turn(2)
    status = s.status(2)
    assert (status["floor"], status["settled_through"], status["chosen_through"]) == (5, 4, 6)
    assert [instance for _, instance, _ in s.engines[2].settle_plan(s.end[2])] == [5, 6]
    assert [s.find(2, 0, i) is not None for i in (5, 6)] == [True, True]


# --- acceptor.report


def test_report_lists_nothing_trimmed_and_says_that_it_is_chosen() -> None:
    s = lagging(6)
    trim(s, 2, 5)
    s.drop()
    s.pass_time(3 * SECOND, unless=lambda m: True)  # grants end
    s.connect(2, 3)
    s.drop()
    s.put(3, 2, encode("Prepare", 0, ballot(9, 3), first=1))
    (promise,) = s.pick("2→3", "Promise")
    assert (promise.fixed["floor"], promise.fixed["chosen"]) == (5, 6)
    assert promise.entries() == []


def test_what_is_trimmed_everywhere_is_not_taken_for_open() -> None:
    """1 and 2 chose 1 to 4 and trimmed them; 1 dies; 3 prepares with 2, which cannot lead. By the
    entries alone it would hear that nothing was accepted, and fill 1 to 4 with no-ops (U1)."""
    s = lagging(4)
    trim(s, 1, 5)
    trim(s, 2, 5)
    s.crash(1)
    s.engines[2].restoring(0, True)
    s.pass_time(3 * SECOND)  # its grant to 1 ends
    s.connect(2, 3)
    s.lines.clear()
    s.pass_time(5 * SECOND)
    assert [line for line in s.said("Prepare") if line.startswith("3→2")]
    assert [line for line in s.said("Promise") if line.startswith("2→3")]
    assert not [line for line in s.said("Accept") if line.startswith("3→")]
    assert s.status(3)["chosen_through"] == 0
    s.restart(1)
    s.pass_time(3 * SECOND)
    s.submit(1, b"goes on")
    s.pass_time(SECOND)
    assert s.status(1)["chosen_through"] == s.status(2)["chosen_through"] >= 5


def test_candidate_believes_a_floor_as_it_believes_chosen_through() -> None:
    """A member that left chosen_through out: "the floor says it". Nothing is proposed below."""
    s, number = candidate()
    s.put(2, 1, encode("Promise", 0, number, flags=FLAG_LAST, first=1, chosen=0, floor=9))
    assert not s.status(1)["leading"]
    assert s.pick("1→2", "LearnAsk")[0].fixed["last"] == 8
    assert not s.pick("Accept")


def test_promise_without_a_floor_is_no_promise() -> None:
    s, number = candidate()
    s.put(2, 1, encode("Promise", 0, number, flags=FLAG_LAST, first=1, floor=0))
    assert not s.status(1)["leading"]
    assert s.engines[1].counters()["hostile_messages"] == 1
    s.put(2, 1, encode("Promise", 0, number, flags=FLAG_LAST, first=1))
    assert s.status(1)["leading"]


# --- acceptor.follow, acknowledge


def test_an_instance_that_is_trimmed_is_acknowledged_as_known_chosen() -> None:
    """Refused, it would leave a leader that has to finish it waiting for ever."""
    s = lagging(4)
    trim(s, 2, 5)
    s.pass_time(3 * SECOND, unless=lambda m: True)
    s.connect(2, 3)
    s.drop()
    number = ballot(9, 3)
    s.put(3, 2, encode("Prepare", 0, number, first=1))
    body = s.settled[2][0][1]
    accept = encode("Accept", 0, number, body, instance=2, first=1, watermark=0, nbytes=len(body))
    s.put(3, 2, accept)
    (ack,) = s.pick("2→3", "Accepted")
    assert (ack.fixed["first"], ack.fixed["through"], ack.fixed["chosen"]) == (1, 4, 4)
    assert s.status(2)["accepted_last"] == 4


# --- learner.note_watermark


def test_a_watermark_is_no_permission_to_jump() -> None:
    """With it, 3 would go on at the floor, and the machine there would miss 1 to 4 (U7)."""
    s = lagging(6)
    trim(s, 1, 5)
    trim(s, 2, 5)
    s.connect(1, 3)
    s.connect(2, 3)
    s.pass_time(2 * SECOND)
    status = s.status(3)
    assert (status["chosen_through"], status["floor"]) == (0, 1)
    assert s.chosen[3] == []


# --- learner.on_learn_ask


def test_question_below_the_floor_is_answered_at_once_with_the_floor_and_nothing_else() -> None:
    s = lagging(6)
    trim(s, 1, 5)
    s.connect(1, 3)
    s.drop()
    s.put(3, 1, encode("LearnAsk", 0, 0, first=4, last=6))
    (learn,) = s.pick("1→3", "Learn")
    assert (learn.fixed["floor"], learn.fixed["count"], learn.fixed["chosen"]) == (5, 0, 6)
    assert s.fetches[1] == []
    s.drop()
    s.put(3, 1, encode("LearnAsk", 0, 0, first=5, last=6))
    (learn,) = s.pick("1→3", "Learn")
    assert [entry.instance for entry in learn.entries()] == [5, 6]


def test_what_was_trimmed_while_it_was_fetched_is_not_supplied() -> None:
    s = Script(cache_bytes_max=0)
    s.elect(1)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    for number in range(4):
        s.submit(1, b"%d" % number)
        s.flow()
    settle(s, 1)
    s.connect(1, 3)
    s.drop()
    s.put(3, 1, encode("LearnAsk", 0, 0, first=1, last=4))
    assert s.fetches[1] == [(0, 3, 1, 4)]
    trim(s, 1, 3)
    s.answer_fetches(1)
    (learn,) = s.pick("1→3", "Learn")
    assert (learn.fixed["count"], learn.fixed["floor"]) == (0, 3)


def test_entries_from_a_floor_on_are_not_taken_by_whoever_lacks_more() -> None:
    """The shortcut "begin at F": 3 would take F for its next instance (U7)."""
    s = lagging(6)
    s.connect(1, 3)
    s.drop()
    s.put(1, 3, encode("Chosen", 0, s.status(1)["ballot"], through=6))
    s.drop("3→1", "LearnAsk")
    rest = supplied([(i, s.find(1, 0, i) or b"") for i in (5, 6)])
    s.put(1, 3, encode("Learn", 0, 0, rest, first=5, chosen=6, floor=5, count=2))
    assert s.status(3)["chosen_through"] == 0
    assert s.chosen[3] == []


# --- learner.on_learn


def test_one_that_has_trimmed_is_not_believed_while_another_has_the_log() -> None:
    """Believed, a checkpoint would travel although 2 can supply everything."""
    s = lagging(6)
    trim(s, 1, 5)
    s.connect(1, 3)
    s.connect(2, 3)
    s.pass_time(SECOND)
    assert [line for line in s.said("Learn") if line.startswith("1→3")]
    assert s.values(3) == s.values(2)
    assert belows(s, 3) == []


def test_the_next_is_asked_at_once() -> None:
    s = lagging(6)
    trim(s, 1, 5)
    s.connect(1, 3)
    s.connect(2, 3)
    s.drop()
    s.put(1, 3, encode("Chosen", 0, s.status(1)["ballot"], through=6))
    s.deliver("3→1", "LearnAsk")
    s.deliver("1→3", "Learn")
    assert s.pick("3→2", "LearnAsk", first=1, last=6)


def test_when_all_have_trimmed_it_is_told_who_has_trimmed_least() -> None:
    s = lagging(6)
    trim(s, 1, 6)
    trim(s, 2, 4)
    s.connect(1, 3)
    s.connect(2, 3)
    s.pass_time(100_000)
    assert set(belows(s, 3)) == {(0, 2, 4)}


def test_it_is_told_again_while_it_lasts_and_not_more_often_than_it_asks() -> None:
    s = lagging(6)
    trim(s, 1, 5)
    trim(s, 2, 5)
    s.connect(1, 3)
    s.connect(2, 3)
    s.pass_time(SECOND)
    s.lines.clear()
    s.events[3].clear()
    for number in range(100):
        s.submit(1, b"more %d" % number)  # each with a watermark
        s.pass_time(100_000)
    asked = [line for line in s.said("LearnAsk") if line.startswith("3→")]
    assert 5 <= len(belows(s, 3)) <= len(asked) <= 40


def test_one_that_knows_no_more_does_not_hide_that_the_others_have_trimmed() -> None:
    """Five, two cut off together: the "nothing" of one does not end the question of the other."""
    s = Script(nodes=5)
    leader = led(s)
    lost, unaware, *others = [n for n in s.nodes if n != leader]
    for n in (lost, unaware):
        for other in (leader, *others):
            s.disconnect(other, n)
    for number in range(6):
        s.submit(leader, b"%d" % number)
        s.flow()
    s.pass_time(SECOND)
    for n in (leader, *others):
        trim(s, n, 5)
    for n in others:
        s.crash(n)
    s.connect(leader, lost)
    s.pass_time(2 * SECOND)
    assert belows(s, lost)[-1] == (0, leader, 5)
    assert s.status(unaware)["chosen_through"] == 0


def test_a_member_that_never_answers_does_not_hide_that_the_others_have_trimmed() -> None:
    """2 is there and votes; its group is halted, so it supplies nothing, not even an answer."""
    s = lagging(6)
    trim(s, 1, 5)
    s.connect(1, 3)
    s.connect(2, 3)
    s.pass_time(10 * SECOND, unless=lambda m: m.name == "LearnAsk" and m.dest == 2)
    assert belows(s, 3)[-1] == (0, 1, 5)
    s.flow()  # it was only slow
    s.pass_time(3 * SECOND)
    assert s.values(3) == s.values(2)


def test_nor_does_one_that_cannot_read_what_it_has() -> None:
    s = lagging(6)
    trim(s, 1, 5)
    s.connect(1, 3)
    s.connect(2, 3)
    assert told_though_unreadable(s, 2, [3], 6) == {3: (0, 1, 5)}


def test_nor_does_a_leader_that_cannot_read_what_it_has() -> None:
    """Its watermarks come all the time, and each has it asked first."""
    s = lagging(6)
    trim(s, 2, 5)
    s.connect(1, 3)
    s.connect(2, 3)
    assert told_though_unreadable(s, 1, [3], 6) == {3: (0, 2, 5)}
    asked = [line for line in s.said("LearnAsk") if line.startswith("3→")]
    assert len(asked) <= 40  # in 10 s: nobody is asked in a circle without a pause


def test_nor_do_others_that_lag_and_a_leader_that_cannot_read_what_it_has() -> None:
    """Five, two behind: each finds out, though what it asks first is the leader, then the other."""
    s = Script(nodes=5)
    leader = led(s)
    *lost, near, far = [n for n in s.nodes if n != leader]
    for n in lost:
        for other in (leader, near, far):
            s.disconnect(other, n)
    for number in range(6):
        s.submit(leader, b"%d" % number)
        s.flow()
    s.pass_time(SECOND)
    for n in (near, far):
        trim(s, n, 5)
    for n in lost:
        for other in (leader, near, far):
            s.connect(other, n)
    found = told_though_unreadable(s, leader, lost, 6)
    assert found in (dict.fromkeys(lost, (0, near, 5)), dict.fromkeys(lost, (0, far, 5)))


def told_though_unreadable(
    s: Script, damaged: int, lost: list[int], chosen: int
) -> dict[int, tuple[int, int, int]]:
    """Ten seconds in which `damaged` cannot read what the others ask it for: what each was told."""
    for _ in range(100):
        s.pass_time(100_000, unless=lambda m: m.name == "LearnAsk" and m.dest == damaged)
        for n in lost:
            if s.drop(f"{n}→{damaged}", "LearnAsk"):
                s.put(damaged, n, encode("Learn", 0, 0, first=1, chosen=chosen, floor=1))
    return {n: belows(s, n)[-1] for n in lost if belows(s, n)}


def test_a_lower_floor_that_rises_is_told_as_it_is() -> None:
    s = lagging(8)
    trim(s, 1, 8)
    trim(s, 2, 4)
    s.connect(1, 3)
    s.connect(2, 3)
    s.pass_time(SECOND)
    assert belows(s, 3)[-1] == (0, 2, 4)
    s.kept[2][0] = 6
    s.engines[2].floor(0, 6)
    s.pass_time(5 * SECOND)
    assert belows(s, 3)[-1] == (0, 2, 6)


def test_a_member_that_comes_with_the_log_is_asked_at_once() -> None:
    s = lagging(6)
    trim(s, 1, 5)
    s.connect(1, 3)
    s.pass_time(2 * SECOND)
    assert belows(s, 3)
    assert s.status(3)["chosen_through"] == 0
    s.connect(2, 3)
    s.flow()
    assert s.values(3) == s.values(2)
    s.events[3].clear()
    s.pass_time(3 * SECOND)
    assert belows(s, 3) == []


def test_a_member_that_could_not_say_it_is_asked_at_once_when_it_comes_again() -> None:
    """Nobody has trimmed anything, and neither could read what it has, again and again."""
    s = lagging(6)
    s.connect(1, 3)
    s.connect(2, 3)
    for _ in range(500):
        s.pass_time(20_000, step_us=20_000, unless=lambda m: m.name == "LearnAsk")
        for n in (1, 2):
            if s.drop(f"3→{n}", "LearnAsk"):
                s.put(n, 3, encode("Learn", 0, 0, first=1, chosen=6, floor=1))
    assert s.status(3)["chosen_through"] == 0
    s.disconnect(1, 3)
    s.drop("→3")
    s.connect(1, 3)
    assert s.pick("3→1", "LearnAsk")
    s.flow()
    assert s.status(3)["chosen_through"] == 6


def test_a_floor_that_is_above_what_its_sender_knows_is_hostile() -> None:
    s = lagging(6)
    s.connect(1, 3)
    s.drop()
    s.put(1, 3, encode("Chosen", 0, s.status(1)["ballot"], through=6))
    s.drop()
    s.put(1, 3, encode("Learn", 0, 0, first=1, chosen=6, floor=8))
    s.put(2, 3, encode("Learn", 0, 0, first=1, chosen=6, floor=5))  # nobody asked it
    assert belows(s, 3) == []
    assert s.engines[3].counters()["hostile_messages"] == 1


# --- proposer, elections


@pytest.mark.parametrize("there", [False, True])
def test_candidate_that_cannot_learn_steps_down_at_once_and_does_not_campaign_again(there) -> None:
    """1 is away, or there, and promises nothing any more."""
    s = lagging(6)
    trim(s, 1, 5)
    trim(s, 2, 5)
    if there:
        s.engines[1].poison()
        s.turn(1)
    else:
        s.crash(1)
    s.engines[2].restoring(0, True)  # nobody else leads
    s.pass_time(3 * SECOND)  # its grant to 1 ends
    if there:
        s.connect(1, 3)
    s.connect(2, 3)
    for _ in range(300):
        s.pass_time(10_000, unless=lambda m: m.name == "Learn" and m.dest == 3)
        if any(line.startswith("2→3") for line in s.said("Promise")):
            break
    assert s.status(3)["ballot"] != 0  # it knows what it has to learn, and has asked
    s.flow()
    assert belows(s, 3) == [(0, 2, 5)]
    assert s.status(3)["ballot"] == 0  # no attempt
    s.lines.clear()
    s.pass_time(5 * SECOND)
    assert not [line for line in s.said("Prepare", "PreVote") if line.startswith("3→")]


def test_a_leadership_that_is_offered_to_whoever_needs_a_checkpoint_is_refused() -> None:
    s = lagging(6)
    trim(s, 1, 5)
    trim(s, 2, 5)
    s.connect(1, 3)
    s.connect(2, 3)
    s.pass_time(SECOND)
    s.lines.clear()
    s.put(1, 3, encode("Transfer", 0, s.status(1)["ballot"]))
    assert [line for line in s.said("Refuse") if line.endswith("reason=stopped")]
    assert s.status(1)["leading"]


# --- phase2.resend_to


def test_nothing_below_the_floor_is_sent_again() -> None:
    s = lagging(6)
    trim(s, 1, 5)
    s.lines.clear()
    s.connect(1, 3)
    s.submit(1, b"on")
    s.pass_time(2 * SECOND)
    sent = [line for line in s.said("Accept") if line.startswith("1→3")]
    assert sent
    assert all(int(line.split("instance=")[1].split(" ")[0]) >= 7 for line in sent)


# --- what only grew by one


def test_a_floor_above_what_the_engine_knows_takes_it_there() -> None:
    """After a restart nothing unsettled is known as chosen. The row says that it is."""
    s = lagging(8)
    settle(s, 2, through=2)
    s.restart(2)
    s.disconnect(1, 2)
    s.drop()
    assert s.status(2)["chosen_through"] == 2
    s.engines[2].floor(0, 6)
    s.turn(2)
    status = s.status(2)
    assert [status[name] for name in ("floor", "chosen_through", "settled_through")] == [6, 5, 5]
    assert status["accepted_last"] == 8
    s.connect(1, 2)
    s.pass_time(2 * SECOND)
    assert s.status(2)["chosen_through"] == 8
    assert (0, 6, 8) in s.chosen[2]
    assert [s.body(2, i) == s.body(1, i) for i in (6, 7, 8)] == [True] * 3
    assert [s.body(2, i) for i in (3, 4, 5)] == [None] * 3


def test_memory_of_what_was_jumped_over_is_given_back_and_the_rest_is_evicted_in_order() -> None:
    """The line of what is next to go holds one place for each entry in memory, and no other. With
    places left over, the first entry behind the jump would go before older ones of other groups."""
    s = Script(groups=2, cache_bytes_max=2000)

    def propose(group: int, count: int) -> None:
        leader = led(s, group)
        for _ in range(count):
            s.submit(leader, bytes(60), group=group)
            s.flow()
        s.pass_time(SECOND)

    def held(group: int) -> list[int]:
        through = s.status(1, group)["chosen_through"]
        return [i for i in range(1, through + 1) if s.body(1, i, group) is not None]

    for _ in range(6):
        propose(0, 1)
        propose(1, 1)
    assert len(held(0)) == len(held(1)) == 6
    for n in s.nodes:
        s.engines[n].floor(0, 30)
        s.turn(n)
    assert (held(0), len(held(1))) == ([], 6)
    s.pass_time(5 * SECOND)
    propose(0, 1)
    (first,) = held(0)
    assert first == 30
    size = len(s.body(1, 30) or b"")
    room = 2000 // size - 7
    propose(1, room + 3)  # three of the six have to go, and nothing else
    assert held(0) == [30]
    assert held(1) == list(range(4, 6 + room + 3 + 1))


def test_a_leader_that_is_told_a_floor_above_what_it_knows_gives_up_and_goes_on_there() -> None:
    """It has proposed 2 to 6 again, and counts from what it knew when it began."""
    s = recovering()
    first = s.status(1)["ballot"]
    s.engines[1].floor(0, 5)
    s.turn(1)
    assert not s.status(1)["leading"]
    assert s.pick("2→1", "Accepted", ballot=first)  # too late
    s.pass_time(SECOND)
    s.engines[2].floor(0, 5)  # 2 has a checkpoint, too
    s.pass_time(5 * SECOND)
    leader = s.status(1)["leader"]
    assert s.status(leader)["ballot"] > first
    s.submit(leader, b"on")
    s.pass_time(2 * SECOND)
    assert s.status(1)["chosen_through"] == s.status(2)["chosen_through"] >= 7
    assert [s.body(1, i) == s.body(2, i) is not None for i in (5, 6, 7)] == [True] * 3
    assert [runs_of(s.body(1, i) or b"")[0].values for i in (5, 6)] == [[b"4"], [b"5"]]
