"""What the log of a group is, by what survivors have of it: tables, no folders."""

from __future__ import annotations

import pytest

from phx.checkpoint.manifest import DURABLE, MachineEntry, Manifest
from phx.errors import StoreError
from phx.membership import Membership, roster_of
from phx.recovery.choice import Choice, choose
from phx.recovery.seen import GroupSeen
from phx.store_members import MembersRow
from phx.types import learner, voter
from tests.checkpoint.checkpoint_lab import table


def of(group: dict[int, GroupSeen], first: tuple[int, ...] | None = (1, 2, 3)) -> Choice:
    found = choose(7, group, first)
    assert found is not None
    return found


def log(choice: Choice) -> dict[int, bytes]:
    return dict(choice.bodies)


def change(version: int, *nodes: int) -> bytes:
    return roster_of(version, {node: voter("a:1") for node in nodes})


def row(instance: int, version: int, *nodes: int, floor: int = 100, **more: object) -> MembersRow:
    told = Membership(change(version, *nodes), instance, floor)
    return MembersRow(told, **more)  # type: ignore[arg-type]


def frontier(at: int) -> tuple[Manifest, ...]:
    """A checkpoint there."""
    machines = (MachineEntry(0, DURABLE, -1),)
    return (
        Manifest(
            cluster=1, group=7, frontier=at, epoch=1, config=0, members=(1, 2, 3),
            sessions=table(7, at, 2, 1), chain=2, machines=machines, files=(),
        ),
    )  # fmt: skip


def test_nothing_is_a_log_that_begins() -> None:
    found = of({1: GroupSeen()})
    assert (found.kept_from, found.through, found.chosen_through, log(found)) == (1, 0, 0, {})
    assert (found.version, found.voters, found.here) == (1, (1, 2, 3), (1,))
    assert not found.majority
    assert of({1: GroupSeen(), 3: GroupSeen()}).majority
    assert of({1: GroupSeen()}, None).voters == ()


def test_the_furthest_is_the_source_and_others_add_what_they_accepted() -> None:
    found = of(
        {
            1: GroupSeen(settled_through=10, accepted={11: (5, b"a"), 12: (5, b"old")}),
            2: GroupSeen(settled_through=8, learned={9: b"x", 10: b"y", 11: b"a"}),
            3: GroupSeen(settled_through=9, accepted={12: (6, b"new"), 13: (6, b"more")}),
        }
    )
    assert (found.source, found.settled_through, found.chosen_through) == (2, 8, 11)
    assert log(found) == {9: b"x", 10: b"y", 11: b"a", 12: b"new", 13: b"more"}
    assert (found.through, found.adopted, found.beyond) == (13, 2, 0)


def test_of_equals_it_is_the_one_who_has_more_and_then_the_lower_id() -> None:
    one = GroupSeen(settled_through=5)
    more = GroupSeen(settled_through=5, accepted={6: (1, b"a")})
    assert of({2: one, 1: one}).source == 1
    assert of({1: one, 2: more}).source == 2


def test_what_is_chosen_beats_any_ballot() -> None:
    found = of(
        {
            1: GroupSeen(accepted={1: (9, b"never"), 2: (9, b"two")}),
            2: GroupSeen(learned={1: b"chosen"}),
        }
    )
    assert log(found) == {1: b"chosen", 2: b"two"}
    assert (found.chosen_through, found.adopted) == (1, 1)


def test_the_log_ends_before_a_gap() -> None:
    """Nothing behind it can be chosen unless what is in it was, too: and that is lost."""
    found = of(
        {
            1: GroupSeen(settled_through=4, accepted={5: (1, b"a"), 7: (1, b"c"), 8: (1, b"d")}),
            2: GroupSeen(learned={7: b"c"}),
        }
    )
    assert log(found) == {5: b"a"}
    assert (found.through, found.adopted, found.beyond) == (5, 1, 2)


def test_what_was_accepted_below_a_checkpoint_is_not_believed() -> None:
    """Another value may have been chosen there, which is in the checkpoint."""
    found = of(
        {
            1: GroupSeen(
                settled_through=3,
                checkpoints=frontier(6),
                learned={5: b"five"},
                accepted={4: (1, b"?"), 6: (1, b"?"), 7: (1, b"seven")},
            )
        }
    )
    assert (found.kept_from, found.through, found.chosen_through) == (7, 7, 6)
    assert log(found) == {7: b"seven"}
    whole = of({1: GroupSeen(settled_through=4, checkpoints=frontier(5), learned={5: b"five"})})
    assert (whole.kept_from, log(whole)) == (1, {5: b"five"})


def test_a_log_that_begins_late_needs_a_state() -> None:
    trimmed = GroupSeen(kept_from=5, settled_through=9)
    with pytest.raises(StoreError, match="the log of node 1 begins with 5"):
        of({1: trimmed})
    late = GroupSeen(kept_from=5, settled_through=9, checkpoints=frontier(4))
    assert of({1: late}).kept_from == 5
    assert of({1: GroupSeen(5, 9, machines={0: 9, 1: 6})}).kept_from == 5
    with pytest.raises(StoreError, match="no whole checkpoint"):
        of({1: GroupSeen(5, 9, machines={0: 9, 1: 3})})


def test_machines_that_are_ahead_of_every_log_are_refused() -> None:
    with pytest.raises(StoreError, match="have applied more than instance 6"):
        of({1: GroupSeen(settled_through=5, machines={0: 7}, accepted={6: (1, b"a")})})
    found = of({1: GroupSeen(settled_through=5, machines={0: 6}, accepted={6: (1, b"a")})})
    assert (found.chosen_through, found.through, found.adopted) == (6, 6, 0)


def test_what_machines_have_applied_is_not_replaced_by_a_higher_ballot() -> None:
    """It was chosen; another survivor may have accepted something else before, in a ballot that
    was higher than that in which the source accepted it."""
    applied = GroupSeen(settled_through=5, machines={0: 7}, accepted={6: (1, b"a"), 7: (1, b"b")})
    with pytest.raises(StoreError, match="machines of node 1 have applied instance 7, and which"):
        of({1: applied, 2: GroupSeen(accepted={7: (2, b"other")})})
    same = of({1: applied, 2: GroupSeen(accepted={7: (2, b"b"), 8: (2, b"c")})})
    assert log(same) == {6: b"a", 7: b"b", 8: b"c"}
    told = of({1: applied, 2: GroupSeen(learned={6: b"x"}, accepted={7: (1, b"b")})})
    assert log(told) == {6: b"x", 7: b"b"}
    # It has nothing itself: power was lost, and took the journal's end and not the machine's.
    with pytest.raises(StoreError, match="machines of node 1 have applied instance 6, and which"):
        of({1: GroupSeen(5, 5, machines={0: 6}), 2: GroupSeen(accepted={6: (9, b"?")})})


def test_values_below_one_of_a_higher_ballot_are_counted() -> None:
    """Another may have been chosen in their place, by those that are lost."""
    votes = {1: (2, b"a"), 2: (1, b"b"), 3: (2, b"c"), 4: (3, b"d")}
    found = of({1: GroupSeen(accepted=votes)})
    assert (found.adopted, found.older) == (4, 3)
    assert of({1: GroupSeen(accepted=votes | {4: (1, b"d")})}).older == 1
    chosen = of(
        {1: GroupSeen(accepted={1: (9, b"a")}), 2: GroupSeen(learned={2: b"b"})}, (1, 2, 3, 4)
    )
    assert (log(chosen), chosen.adopted, chosen.older) == ({1: b"a", 2: b"b"}, 1, 1)
    # A majority has what was chosen in the highest ballot of all.
    assert of({1: GroupSeen(accepted=votes), 2: GroupSeen()}).older == 0


def test_a_count_of_none_does_not_say_that_the_log_is_what_it_was() -> None:
    """Of five. Ballot 0: 5 accepts y at 5. Ballot 1, without 5: 1 accepts x at 5 and z at 6, 3
    only z. Ballot 2, with the promises of 3, 4 and 5: y and z are proposed again, and chosen by
    these three. 1 alone is left: nothing that it has shows that x was not chosen."""
    five = (1, 2, 3, 4, 5)
    left = GroupSeen(settled_through=4, accepted={5: (1, b"x"), 6: (1, b"z")})
    alone = of({1: left}, five)
    assert (log(alone), alone.older, alone.majority) == ({5: b"x", 6: b"z"}, 0, False)
    chose = GroupSeen(settled_through=4, accepted={5: (2, b"y"), 6: (2, b"z")})
    most = of({1: left, 3: chose, 4: chose}, five)
    assert (log(most), most.majority) == ({5: b"y", 6: b"z"}, True)


def test_who_may_have_forgotten_is_none_of_a_majority() -> None:
    found = of({1: GroupSeen(), 2: GroupSeen(forgot=True)})
    assert (found.here, found.majority) == ((1,), False)


def test_two_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="two values are chosen at instance 1"):
        of({1: GroupSeen(learned={1: b"a"}), 2: GroupSeen(learned={1: b"b"})})
    with pytest.raises(ValueError, match="two different rosters"):
        of({1: GroupSeen(row=row(3, 2, 1, 4)), 2: GroupSeen(row=row(3, 2, 2, 4))})


# --- members that changed


def test_who_was_removed_is_no_survivor() -> None:
    gone = GroupSeen(settled_through=9, row=row(9, 2, 4, 5, removed=True))
    assert choose(7, {1: gone}, None) is None
    found = of({1: gone, 4: GroupSeen(settled_through=9, row=row(9, 2, 4, 5))})
    assert (found.source, found.here, found.voters) == (4, (4,), (4, 5))


def test_what_a_removed_one_learned_is_believed_and_what_it_accepted_is_not() -> None:
    gone = GroupSeen(
        learned={1: b"1", 2: b"2"},
        accepted={3: (9, b"?")},
        row=row(3, 3, 4, 5, left=(6,), removed=True),
    )
    found = of({1: gone, 4: GroupSeen(accepted={3: (5, b"three")}, row=row(2, 2, 1, 4, 5))})
    assert log(found) == {1: b"1", 2: b"2", 3: b"three"}
    assert (found.source, found.known_through, found.version, found.beyond) == (4, 3, 3, 0)
    assert found.left == (1, 6)


def test_votes_count_up_to_the_first_change_that_their_member_does_not_know() -> None:
    found = of(
        {
            1: GroupSeen(accepted={3: (9, b"three"), 4: (300, b"never")}),
            4: GroupSeen(learned={1: b"1", 2: b"2"}, row=row(3, 2, 4, 5)),
            5: GroupSeen(row=row(6, 3, 5, 6)),
        }
    )
    assert log(found) == {1: b"1", 2: b"2", 3: b"three"}
    assert (found.through, found.beyond, found.known_through) == (3, 1, 6)


def test_above_a_change_only_those_count_who_know_of_it() -> None:
    """What the others accepted there was never chosen (Theorem U10)."""
    found = of(
        {
            1: GroupSeen(accepted={5: (200, b"never")}, settled_through=4),
            4: GroupSeen(accepted={5: (101, b"new")}, settled_through=4, row=row(4, 2, 4, 5, 6)),
        }
    )
    assert log(found) == {5: b"new"}
    assert (found.version, found.beyond, found.here) == (2, 1, (4,))
    assert set(found.left) == set()
    # Who does not know of it may have accepted what is below all the same.
    below = of(
        {
            1: GroupSeen(accepted={3: (9, b"three")}),
            4: GroupSeen(learned={1: b"1", 2: b"2"}, row=row(3, 2, 4, 5, 6)),
        }
    )
    assert log(below) == {1: b"1", 2: b"2", 3: b"three"}
    assert below.known_through == 3


def test_a_change_that_may_be_chosen_ends_the_log() -> None:
    """Whoever adopts one proposes nothing above it (M2)."""
    made = change(2, 4, 5)
    found = of({1: GroupSeen(accepted={1: (1, b"a"), 2: (2, made), 3: (1, b"dropped")})})
    assert log(found) == {1: b"a", 2: made}
    assert (found.through, found.version, found.members, found.beyond) == (2, 2, (4, 5), 1)
    assert (found.voters, found.here) == ((4, 5), ())
    # One that is known to be chosen does not.
    known = of({1: GroupSeen(learned={1: made}, accepted={2: (101, b"b")}, row=row(1, 2, 4, 5))})
    assert log(known) == {1: made, 2: b"b"}


def test_what_is_known_to_be_chosen_and_is_not_here_is_lost() -> None:
    found = of({1: GroupSeen(settled_through=4, row=row(9, 2, 1, 4))})
    assert (found.through, found.known_through, found.version) == (4, 9, 2)
    assert found.left == ()
    rows = GroupSeen(row=row(9, 3, 1, 4, left=(2, 3)))
    assert of({1: rows}).left == (2, 3)


def test_learners_have_no_vote() -> None:
    roster = roster_of(2, {1: voter("a:1"), 2: learner("a:1")})
    told = MembersRow(Membership(roster, 3, 100))
    found = of({2: GroupSeen(settled_through=3, row=told)})
    assert (found.members, found.voters, found.here) == ((1, 2), (1,), ())
