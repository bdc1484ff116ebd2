"""Members of a group change, in fair weather, by hand."""

from member_lab import (
    ACTIVE,
    BUSY,
    CONFLICT,
    HELD,
    LEFT,
    NO_SLOT,
    NOT_CAUGHT_UP,
    NOT_LEADING,
    UNDER_WAY,
    UNSOUND,
    Changing,
    roster,
)  # fmt: skip

from phx.sim.wire_text import Message


def test_a_learner_is_added_and_learns() -> None:
    s = Changing()
    s.elect(1)
    s.submit(1, b"a")
    s.flow()
    assert s.change(1, (1, 2, 3), (4,)) == UNDER_WAY
    s.pass_time(1_000_000)
    leader = s.leader()
    assert s.versions() == {1: 2, 2: 2, 3: 2, 4: 2, 5: 1}
    assert s.status(4)["chosen_through"] == s.status(leader)["chosen_through"] >= 3
    assert all(s.membership(n)["active"] for n in (1, 2, 3, 4))
    assert s.engines[4].status(0)["promised"] >= s.membership(4)["floor"]
    assert not s.said("4→1"), "a learner answers neither Prepare nor Accept"
    s.lines.clear()
    s.submit(leader, b"b")
    s.pass_time(500_000)
    assert [b"b"] in s.values(4)
    assert [line for line in s.said("Accepted", "Promise") if line.startswith("4→")] == []


def test_one_member_takes_the_place_of_another() -> None:
    s = Changing()
    s.elect(1)
    s.learners(1, 4)
    before = s.status(s.leader())["ballot"]
    assert s.change(s.leader(), (1, 2, 4)) == UNDER_WAY
    s.pass_time(2_000_000)
    leader = s.leader()
    assert leader in (1, 2, 4)
    assert s.status(leader)["ballot"] > before
    assert s.versions() == {1: 3, 2: 3, 3: 3, 4: 3, 5: 1}
    assert s.removed(3)
    assert not any(s.removed(n) for n in (1, 2, 4))
    s.disconnect(leader, 3)
    s.submit(leader, b"x")
    s.pass_time(500_000)
    assert [b"x"] in s.values(4)
    s.logs_agree()


def test_all_members_change_at_once() -> None:
    s = Changing(6)
    s.elect(1)
    s.submit(1, b"a")
    s.learners(1, 4, 5, 6)
    assert s.change(s.leader(), (4, 5, 6)) == UNDER_WAY
    s.pass_time(100_000)  # no election has to be waited for
    leader = s.leader()
    assert leader in (4, 5, 6)
    s.pass_time(1_000_000)
    assert [s.removed(n) for n in range(1, 7)] == [True] * 3 + [False] * 3
    s.submit(leader, b"z")
    s.pass_time(500_000)
    assert [b"z"] in s.values(4)
    assert [b"z"] in s.values(5)
    s.logs_agree()


def test_whoever_applies_hears_of_members_when_they_are_and_when_they_are_active() -> None:
    s = Changing()
    s.elect(1)
    s.learners(1, 4)
    (first, at, flags), (again, same, then) = s.told(2)
    assert (first, again) == (2, 2)
    assert at == same == s.membership(2)["instance"]
    assert flags == HELD
    assert then == HELD | ACTIVE
    s.change(s.leader(), (1, 2, 4))
    s.pass_time(2_000_000)
    assert [flags for version, _, flags in s.told(3) if version == 3] == [
        HELD | LEFT, HELD | LEFT | ACTIVE,
    ]  # fmt: skip


def test_what_cannot_be_is_refused_with_a_reason() -> None:
    s = Changing()
    assert s.change(1, (1, 2)) == NOT_LEADING
    s.elect(1)
    assert s.change(2, (1, 2)) == NOT_LEADING
    assert s.change(1, (1, 2), version=3) == CONFLICT
    assert s.change(1, (1, 2, 7)) == NO_SLOT
    assert s.change(1, (1, 4, 5)) == NOT_CAUGHT_UP
    assert s.engines[1].change_members(0, b"nonsense") == UNSOUND
    assert s.change(1, (1, 2)) == UNDER_WAY
    assert s.change(1, (1, 3)) == BUSY
    s.deliver("1→2", "Accept")
    s.deliver("2→1", "Accepted")
    assert s.version(1) == 2
    assert s.change(1, (1,)) == NOT_LEADING, "it prepares"
    s.pass_time(1_000_000)
    assert s.change(s.leader(), (1, 2, 3), version=2) == CONFLICT
    assert s.change(1, (1,)) == UNDER_WAY
    s.pass_time(1_000_000)
    assert s.versions()[1] == 3
    assert s.removed(2)


def test_a_quorum_of_the_new_members_has_to_be_near() -> None:
    """M5. {1} → {1, 2} with 2 misspelt would be a group that is dead."""
    s = Changing(2, (1,), window=16)
    s.elect(1)
    assert s.change(1, (1, 2)) == NOT_CAUGHT_UP
    s.learners(1, 2)
    s.disconnect(1, 2)
    for i in range(5):
        s.submit(1, b"%d" % i)
        s.flow()
    assert s.change(1, (1, 2)) == NOT_CAUGHT_UP
    s.connect(1, 2)
    s.pass_time(1_000_000)
    assert s.change(1, (1, 2)) == UNDER_WAY


def test_a_learner_that_was_never_there_is_not_near_however_short_the_log() -> None:
    """A quarter of the window is all of a young log."""
    s = Changing(4, (1,), window=1024)
    s.elect(1)
    s.disconnect(1, 4)
    s.submit(1, b"a")
    s.flow()
    assert s.change(1, (1,), (2, 4)) == UNDER_WAY
    s.pass_time(1_000_000)
    assert s.change(1, (1, 4)) == NOT_CAUGHT_UP
    assert s.change(1, (4,)) == NOT_CAUGHT_UP
    s.connect(1, 4)
    s.pass_time(1_000_000)
    s.disconnect(1, 4)
    assert s.change(1, (1, 4)) == NOT_CAUGHT_UP, "it was there, and is not any more"
    assert s.change(1, (1, 2)) == UNDER_WAY


def test_values_wait_for_a_change_and_go_on_after_it() -> None:
    s = Changing()
    s.elect(1)
    s.submit(1, b"a")
    assert s.change(1, (1, 2)) == UNDER_WAY
    s.submit(1, b"b")
    s.pass_time(1_000_000)
    values = s.values(1)
    assert [b"a"] in values
    assert [b"b"] in values
    at = s.membership(1)["instance"]
    assert values.index([b"a"]) + 1 < at < values.index([b"b"]) + 1
    assert s.removed(3)


def test_a_node_that_is_removed_takes_no_more_and_says_so() -> None:
    s = Changing()
    s.elect(1)
    s.change(1, (1, 2))
    s.pass_time(1_000_000)
    assert s.removed(3)
    assert s.submit(3, b"x") == 5  # stopped, rejected
    s.turn(3)
    s.lines.clear()
    s.pass_time(3_000_000)
    assert not [line for line in s.said() if line.startswith("3→")], "it asks for nothing"
    s.restart(3)
    s.pass_time(1_000_000)
    assert s.removed(3)
    assert not [line for line in s.said("PreVote", "Prepare") if line.startswith("3→")]


def test_a_message_of_no_version_is_none() -> None:
    s = Changing()
    s.elect(1)
    value = roster(2, (1, 2))
    assert s.engines[4].change_known(0, 3, value, 5, 1, True) == -1, "another version"
    assert s.engines[4].change_known(0, 2, value[:-1], 5, 1, True) == -1
    assert s.engines[4].change_known(0, 2, value, 5, 0, True) == -1, "below its packer's ballot"
    assert s.engines[4].change_known(9, 2, value, 5, 1, True) == -1, "no such group"


def test_a_learner_that_lost_the_leader_asks_one_member_after_the_other() -> None:
    """It has heard how far the others are, and no more, when it is cut off from the leader alone.
    Whom it asks then does not answer: it turns to the one that is left."""
    s = Changing(4)
    s.elect(1)
    s.learners(1, 4)
    for k in range(5):
        s.submit(1, b"%d" % k)
    s.flow(lambda m: m.name == "LearnAsk" or (m.dest == 4 and m.name != "Chosen"))
    through = s.status(1)["chosen_through"]
    assert s.status(4)["chosen_through"] == through - 5
    s.disconnect(1, 4)
    s.lines.clear()
    silent: list[int] = []

    def lost(m: Message) -> bool:
        if m.name == "LearnAsk" and not silent:
            silent.append(m.dest)
        return m.name == "LearnAsk" and m.dest in silent

    s.pass_time(5_000_000, lost)
    (answered,) = {2, 3} - set(silent)
    assert s.status(4)["chosen_through"] == through
    assert [values for values in s.values(4) if values in s.values(1)[-5:]] == s.values(1)[-5:]
    assert {line.split()[0] for line in s.said("Learn")} == {f"{answered}→4"}
    assert s.leader() == 1
