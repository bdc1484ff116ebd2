"""What a node is told of members, by whom it believes it, and what goes on around a change."""

import struct

import pytest
from member_lab import UNDER_WAY, Changing, roster
from read_lab import QUORUM

from phx._core.codec import encode_record
from phx._core.engine_door import Engine
from phx.sim.wire_text import GROUP, MEMBERS, Message, encode

MANY = 99


def told(s: Changing, source: int, dest: int, version: int = MANY, *, flags: int = 1,
         voters: tuple[int, ...] = (1, 3)) -> None:  # fmt: skip
    value = roster(version, voters)
    rest = value
    s.put(source, dest, encode(
        "Config", 0, 0, rest, flags=flags, config=version, instance=500, floor=1 << 21,
        nbytes=len(value),
    ))  # fmt: skip


def alone(s: Changing, n: int) -> None:
    """Nobody leads, as far as n hears."""
    for other in s.nodes:
        if other != n and (min(n, other), max(n, other)) not in s.cuts:
            s.disconnect(n, other)
    s.pass_time(2_000_000)
    assert s.status(n)["leader"] == 0


# --- whom to believe


def test_a_member_that_hears_its_leader_does_not_believe_that_it_is_removed() -> None:
    """One wrong answer would end the group here, durably."""
    s = Changing()
    s.elect(1)
    s.pass_time(500_000)
    for n in (1, 3, 4):
        if n != 1:
            told(s, n, 2)
            told(s, n, 2)  # it has asked meanwhile
    assert not s.removed(2)
    told(s, 2, 1, voters=(2, 3))
    told(s, 3, 1, voters=(2, 3))
    assert not s.removed(1), "and a leader not at all"
    s.drop()
    s.submit(1, b"x")
    s.pass_time(500_000)
    assert [b"x"] in s.values(2)
    assert s.versions() == dict.fromkeys(s.nodes, 1)


def test_what_one_node_says_unasked_is_not_believed() -> None:
    s = Changing()
    s.elect(1)
    alone(s, 2)
    s.connect(2, 5)
    told(s, 5, 2)
    assert not s.removed(2)
    assert s.pick("2→5", "ConfigAsk"), "it asks, rather"
    s.drop()
    told(s, 5, 2)
    assert s.removed(2), "and believes what it is answered"


def test_what_two_members_say_alike_is_believed() -> None:
    s = Changing()
    s.elect(1)
    alone(s, 2)
    for n in (1, 3, 4):
        s.engines[2].connected(n, s.engines[n].incarnation, bytes([n]) * 16)
    s.turn(2)
    told(s, 1, 2)
    told(s, 4, 2)
    assert not s.removed(2), "4 is no member"
    told(s, 3, 2)
    assert s.removed(2)


def test_one_that_returns_after_long_is_told_by_anybody_who_knows() -> None:
    """Also by a tombstone."""
    s = Changing(4)
    s.elect(1)
    s.learners(1, 4)
    for n in (1, 2, 4):
        s.disconnect(3, n)
    s.change(1, (1, 2, 4))
    s.pass_time(2_000_000)
    assert s.change(s.leader(), (2, 4)) == UNDER_WAY
    s.pass_time(3_000_000)
    assert s.removed(1)
    assert s.version(3) == 2
    s.restart(1)
    s.connect(3, 1)
    s.pass_time(8_000_000)
    assert s.removed(3)
    assert s.version(3) == s.version(1) == 4


def test_a_learner_that_was_away_hears_that_it_is_removed() -> None:
    s = Changing(4)
    s.elect(1)
    s.learners(1, 4)
    for n in (1, 2, 3):
        s.disconnect(4, n)
    assert s.change(s.leader(), (1, 2, 3)) == UNDER_WAY
    s.pass_time(2_000_000)
    assert not s.removed(4)
    s.connect(4, 2)
    s.pass_time(5_000_000)
    assert s.removed(4)


@pytest.mark.parametrize("wrong", ["version", "instance", "floor", "cut"])
def test_news_that_cannot_be_is_none(wrong: str) -> None:
    s = Changing()
    alone(s, 2)
    s.connect(2, 1)
    value = roster(MANY, (1, 3), ballot=1 << 20)
    fields = {"instance": 500, "floor": 1 << 21, "nbytes": len(value)}
    version = MANY
    if wrong == "version":
        version = MANY + 1
    elif wrong == "cut":
        value = value[:-1]
        fields["nbytes"] -= 1
    else:
        fields[wrong] = 0
    for _ in range(2):
        s.put(1, 2, encode("Config", 0, 0, value, flags=1, config=version, **fields))
    assert not s.removed(2)
    assert s.engines[2].counters()["hostile_messages"] >= 1


# --- reads, leases, sizes, journals


def test_quorum_reads_that_wait_are_asked_again_of_the_new_members() -> None:
    """What 1 and 2 have said, a majority then, says nothing of what {1, 2, 3, 4, 5} have chosen."""
    s = Changing(6)
    s.elect(1)
    s.learners(1, 4, 5, 6)
    assert s.leader() == 1
    assert s.engines[3].read(0, 7, s.now + 60_000_000, QUORUM) == 0
    s.turn(3)
    old = s.pick("3→", "ReadAsk")[0].fixed["round"]
    s.drop("ReadAsk")
    assert s.change(1, (1, 2, 3, 4, 5)) == UNDER_WAY
    s.flow(lambda m: m.name in ("ReadAsk", "ReadPoint"))
    assert s.version(3) == 3
    at = s.status(3)["chosen_through"]
    for n in (1, 2):
        point = struct.pack("<IIQQ", 0, 1, at, 0)
        s.put(n, 3, encode("ReadPoint", 0, 0, point, flags=1, round=old, count=1))
    assert s.points[3] == [], "with its own, these were three of five"
    s.pass_time(200_000, lambda m: m.name == "ReadPoint")
    assert {m.source for m in s.pick("→3", "ReadPoint")} == {1, 2, 4, 5}
    s.pass_time(1_000_000)
    ((_, verdict, ticket, point_told),) = s.points[3]
    assert (verdict, ticket) == (0, 7)
    assert point_told >= at


def test_no_read_is_answered_under_a_lease_while_a_change_is_open() -> None:
    s = Changing()
    s.elect(1)
    s.pass_time(500_000)
    assert s.change(1, (1, 2)) == UNDER_WAY
    assert s.engines[1].read(0, 1, s.now + 60_000_000, 0) == 0
    s.turn(1)
    assert s.points[1] == []
    s.pass_time(2_000_000)
    assert [p[1:3] for p in s.points[1]] == [(0, 1)]


def test_who_leads_is_told_to_the_new_members_and_no_more_to_who_left() -> None:
    s = Changing(5)
    s.elect(1)
    s.learners(1, 4)
    s.change(1, (1, 2, 4))
    s.pass_time(2_000_000)
    leader = s.leader()
    assert s.leaders() == {1: leader, 2: leader, 4: leader, 3: 0, 5: 0}
    assert [c[3] for c in s.engines[leader].configs() if c[4]] == [1]


def test_a_witness_leads_only_if_nobody_else_does() -> None:
    s = Changing(3)
    s.elect(1)
    assert s.change(1, (2, 3), witnesses=(1,)) == UNDER_WAY
    s.pass_time(3_000_000)
    assert s.leader() in (2, 3)
    s.submit(s.leader(), b"x")
    s.pass_time(500_000)
    assert s.status(1)["chosen_through"] == s.status(s.leader())["chosen_through"]


def test_arrays_by_slot_are_made_anew_for_members_of_higher_slots() -> None:
    """A group of low slots gets members of high ones, and the other way round."""
    s = Changing(12, (1, 2))
    s.elect(1)
    s.submit(2, b"forwarded")
    s.flow()
    s.learners(1, 11, 12)
    s.change(s.leader(), (11, 12))
    s.pass_time(2_000_000)
    leader = s.leader()
    assert leader in (11, 12)
    for n in (11, 12):
        s.submit(n, b"%d" % n)
    s.pass_time(500_000)
    assert {v for values in s.values(11) for v in values if len(v) == 2 and values != "no-op"} == {
        b"11", b"12",
    }  # fmt: skip
    s.logs_agree()


def test_a_group_that_never_changed_remembers_nothing_of_members() -> None:
    s = Changing()
    s.elect(1)
    s.submit(1, b"a")
    s.pass_time(2_000_000)
    s.restart(2)
    s.pass_time(500_000)
    assert all(r.kind not in (GROUP, MEMBERS) for n in s.nodes for r in s.journal[n])
    assert all(m.config == 1 for m in s.waiting)
    assert s.told(1) == []


def test_members_are_carried_over_like_a_promise() -> None:
    s = Changing(4)
    s.elect(1)
    s.learners(1, 4)
    s.change(1, (1, 2, 4))
    s.pass_time(2_000_000)
    n = next(x for x in (1, 2, 4) if x != s.leader())
    through = s.status(n)["chosen_through"]
    s.settled[n][0] = [body for i in range(1, through + 1) if (body := s.find(n, 0, i))]
    assert len(s.settled[n][0]) == through
    s.engines[n].settled(0, through)
    assert s.engines[n].retire(s.end[n]) == 0
    top = s.end[n]
    s.turn(n)
    s.crash(n)
    s.journal[n] = [r for r in s.journal[n] if r.lsn >= top]
    assert [r for r in s.journal[n] if r.kind == MEMBERS]
    s.restart(n)
    assert s.version(n) == 3
    assert s.membership(n)["active"]
    s.pass_time(2_000_000)
    s.logs_agree()


def test_an_old_record_of_members_is_read() -> None:
    body = b"".join(n.to_bytes(4, "little") for n in (1, 2, 4))
    engine = Engine(1, [1, 2, 3, 4], [0])
    engine.replay(encode_record(GROUP, 0, 5, 0, body), 0)
    engine.start(4096, 0)
    assert engine.membership(0)["version"] == 5
    assert [c[0] for c in engine.configs()] == [0b1011]
    for wrong in (b"", body[:-1], body[4:] + body[:4], body * 6):
        with pytest.raises(ValueError, match="damaged"):
            Engine(1, [1, 2, 3, 4], [0]).replay(encode_record(GROUP, 0, 5, 0, wrong), 0)


@pytest.mark.parametrize("wrong", ["flags", "instance", "floor", "cut", "more", "empty"])
def test_a_record_of_members_that_cannot_be_is_damage(wrong: str) -> None:
    value = roster(2, (1, 2), ballot=1 << 20)
    flags, instance, floor = 3, 5, 1 << 20
    body = flags.to_bytes(4, "little") + bytes(4) + value
    engine = Engine(1, [1, 2, 3], [0])
    engine.replay(encode_record(MEMBERS, 0, instance, floor, body), 0)
    if wrong == "flags":
        body = (8).to_bytes(4, "little") + bytes(4) + value
    elif wrong == "instance":
        instance = 0
    elif wrong == "floor":
        floor -= 1
    elif wrong == "cut":
        body = body[:-1]
    elif wrong == "more":
        body += b"\0"
    else:
        body = b""
    with pytest.raises(ValueError, match="damaged"):
        engine.replay(encode_record(MEMBERS, 0, instance, floor, body), 0)


def test_a_peer_that_a_change_counts_is_not_let_go_of() -> None:
    s = Changing(6)
    s.elect(1)
    s.learners(1, 4, 5, 6)
    s.change(1, (4, 5, 6))
    s.flow(lambda m: m.dest > 3)
    assert s.engines[2].drop_peer(3) == 2, "an old member, while the new ones are not active"
    s.drop()
    s.pass_time(5_000_000)
    assert s.engines[4].drop_peer(3) == 0
    assert s.engines[4].drop_peer(5) == 2


def test_who_ended_learns_nothing_more_and_stays_so() -> None:
    """It was told of two versions, and of the second that it is not active yet; it learned the log
    up to there, and was to leave once more (simulator, profile members, seed 69)."""
    s = Changing()
    s.elect(1)
    alone(s, 3)
    assert s.change(1, (1, 2)) == UNDER_WAY
    s.flow()
    s.pass_time(1_000_000)
    leader = s.leader()
    other = 3 - leader
    assert s.membership(other)["active"]
    # Of the next version the leader alone knows that it is chosen.
    assert s.change(leader, (1, 2), (4,)) == UNDER_WAY
    s.flow(lambda m: (m.source, m.dest) == (leader, other) and (m.config > 2 or m.name == "Chosen"))
    s.disconnect(1, 2)
    assert (s.version(leader), s.version(other)) == (3, 2)
    assert not s.membership(leader)["active"]
    for n in (1, 2):
        s.connect(3, n)
    had = s.status(3)["chosen_through"]
    s.pass_time(3_000_000, lambda m: (m.source, m.dest, m.name) == (leader, 3, "Config"))
    assert s.removed(3)
    s.flow()
    s.pass_time(3_000_000)
    assert s.removed(3)
    assert s.status(3)["chosen_through"] == had
    assert s.status(leader)["chosen_through"] > had


def test_a_new_voter_that_has_not_passed_the_change_vouches_for_nothing_below_it() -> None:
    """{1, 2, 3} → {3}, decided by 1 and 2: they have y, and 3 has heard of neither. It has a vote
    among the new members, and says what it knows; that is less than what was chosen before them,
    and 2 may have passed the change and not applied y yet (simulator, profile members, seed 138).
    """
    s = Changing()
    s.elect(1)
    s.pass_time(500_000)

    def held(m: Message) -> bool:
        return m.dest == 3 and m.name != "ReadAsk"

    s.submit(1, b"y")
    s.flow(held)
    assert s.change(1, (3,), (1, 2)) == UNDER_WAY
    s.flow(held)
    assert (s.version(2), s.version(3)) == (2, 1)
    at = s.membership(2)["instance"]
    assert s.status(3)["chosen_through"] < at - 1
    assert s.engines[2].read(0, 7, s.now + 60_000_000, QUORUM) == 0
    s.turn(2)
    s.pass_time(500_000, held)
    ((_, verdict, ticket, told_point),) = s.points[2]
    assert (verdict, ticket) == (0, 7)
    assert told_point >= at


def test_who_leaves_asks_learners_too() -> None:
    """All who voted when it left are gone, and nobody told it that it may end; a learner of then is
    all of the group now (simulator, profile members, seed 332)."""
    s = Changing()
    s.elect(1)
    s.learners(1, 4)
    assert s.change(s.leader(), (1, 2), (4,)) == UNDER_WAY
    s.flow(lambda m: m.dest == 3 and m.name == "Config")
    for n in (1, 2, 4, 5):
        s.disconnect(3, n)
    assert s.version(3) == 3
    assert not s.removed(3)
    s.pass_time(1_000_000)
    assert s.change(s.leader(), (4,)) == UNDER_WAY
    s.pass_time(2_000_000)
    assert s.leader() == 4
    assert s.membership(4)["active"]
    s.crash(1)
    s.crash(2)
    s.connect(3, 4)
    s.pass_time(3_000_000)
    assert s.removed(3)


def test_a_voter_that_hears_no_leader_asks_learners_who_the_members_are() -> None:
    """It asks for votes those alone who are gone by now; a learner of then is all of the group
    (simulator, profile members, seed 410)."""
    s = Changing()
    s.elect(1)
    s.learners(1, 4)
    s.pass_time(1_000_000)
    assert s.membership(3)["active"]
    for n in (1, 2, 4, 5):
        s.disconnect(3, n)
    assert s.change(s.leader(), (4,)) == UNDER_WAY
    s.pass_time(2_000_000)
    assert s.leader() == 4
    assert s.membership(4)["active"]
    s.crash(1)
    s.crash(2)
    s.connect(3, 4)
    s.pass_time(3_000_000)
    assert s.removed(3)
