"""Members of groups, through running drivers: asked for, told, heard of, and in the trace."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from driver_lab import US, Lab, Member

from phx._core import members
from phx._core.driver import ERROR_CLOSED, ERROR_START, ERROR_UNKNOWN_GROUP, DriverError
from phx._core.member_table import (
    CHANGE_BUSY,
    CHANGE_CONFLICT,
    CHANGE_NO_SLOT,
    CHANGE_NOT_LEADING,
    CHANGE_UNDER_WAY,
    CHANGE_UNSOUND,
)
from phx.testing.trace import check
from phx.testing.trace_file import Kind, read

VOTER, LEARNER = 1, 3


def roster(version: int, voters: tuple[int, ...], learners: tuple[int, ...] = ()) -> bytes:
    roles = {**dict.fromkeys(voters, VOTER), **dict.fromkeys(learners, LEARNER)}
    return members.write(version, 1, 0, [(n, roles[n], b"node%d:7000" % n) for n in sorted(roles)])


def version(member: Member) -> int:
    said = member.table.of(0)
    return 1 if said is None else members.read(said[0])[0]  # type: ignore[index]


def active(member: Member) -> int:
    """The version, if its members are known to be active."""
    said = member.table.of(0)
    return version(member) if said is None or said[3] else 0


def roster_is(note: tuple[int, bytes, int, int, bool, bool], of: int) -> bool:
    said = members.read(note[1])
    return said is not None and said[0] == of


def change(lab: Lab, *who: tuple[int, ...]) -> int:
    """Ask for the next version of whoever leads, until it is under way; the version."""
    lab.wait_led()
    wanted = version(lab.members[lab.led()]) + 1

    def asked() -> bool:
        leader = lab.led()
        if not leader:
            return False
        return lab.members[leader].table.change(0, roster(wanted, *who)) == CHANGE_UNDER_WAY

    lab.until(asked)
    return wanted


def meet(lab: Lab, node: int) -> None:
    new = lab.members[node]
    for one in lab.running():
        if one.node != node:
            one.peers.add(node, "127.0.0.1", new.port)
            new.peers.add(one.node, "127.0.0.1", one.port)


def heard_in_time(member: Member, instance: int) -> None:
    """Whatever it was given above `instance` came behind the note of that change."""
    above = [told for _, last, told in member.told_at if last > instance]
    assert above
    assert min(above) >= instance


def test_a_change_is_heard_of_everywhere_before_what_follows_it(lab: Callable[..., Lab]) -> None:
    made = lab(3)
    made.start()
    made.commit([b"one"], 1)
    assert all(one.table.of(0) is None for one in made.running())
    assert all(one.table.told() == 0 for one in made.running())
    made.wait_led()
    leader = made.led()
    stays = tuple(sorted({leader, leader % 3 + 1}))
    (gone,) = {1, 2, 3} - set(stays)
    # Values are on their way all the time.
    for one in made.running():
        one.submit([b"%d of %d" % (n, one.node) for n in range(200)])
    change(made, stays)
    for node in stays:
        made.members[node].submit([b"%d of %d, later" % (n, node) for n in range(200)])
    staying = [made.members[node] for node in stays]
    made.until(lambda: all(active(one) == 2 for one in staying))
    made.until(lambda: version(made.members[gone]) == 2)
    made.commit_at(list(stays), [b"last"])
    found = {one.table.of(0)[1] for one in staying}  # type: ignore[index]
    (instance,) = found
    for one in staying:
        heard_in_time(one, instance)
        group, said, at, floor, _, left = one.notes[0]
        read_back = members.read(said)
        assert read_back is not None
        assert (group, at, left, read_back[0]) == (0, instance, False, 2)
        assert [node for node, _, _ in read_back[3]] == list(stays)
        assert floor >= read_back[1]
        assert one.notes[-1][4]  # active
        assert one.table.told() == len(one.notes)
    assert made.members[gone].notes[-1][5]
    # What came before the last one may be chosen after it: they forwarded it to who led then.
    made.until(lambda: staying[0].values[0] == staying[1].values[0])


def test_of_changes_that_come_at_once_each_is_told(lab: Callable[..., Lab]) -> None:
    """Who catches up passes several in one turn; who left, each of them says."""
    made = lab(3)
    made.start()
    made.commit([b"one"], 1)
    made.stop(3)
    for _ in range(3):
        newest = change(made, (1, 2, 3))
        made.until(lambda at=newest: all(active(one) == at for one in made.running()))
    made.start(3)
    three = made.members[3]
    made.until(lambda: any(roster_is(note, newest) and note[4] for note in three.notes))
    told: dict[int, tuple[int, bool, int]] = {}
    for _, said, at, floor, is_active, left in three.notes:
        read_back = members.read(said)
        assert read_back is not None
        assert not left
        assert floor >= read_back[1]
        told[read_back[0]] = (at, is_active, floor)
    assert list(told) == [2, 3, 4]  # in this order, at first
    assert all(is_active for _, is_active, _ in told.values())
    ats = [at for at, _, _ in told.values()]
    assert ats == sorted(set(ats))


def test_a_node_is_replaced_under_load(lab: Callable[..., Lab], tmp_path: Path) -> None:
    made = lab(3)
    made.start()
    made.commit([b"before %d" % n for n in range(50)], 1)
    # The new one has to be known before it is named, and is a learner first.
    guest = made.members[4] = Member(4, tmp_path, [4])
    for one in made.running():
        one.peers.add(4, "", 0)
    change(made, (1, 2, 3), (4,))
    made.until(lambda: all(active(one) == 2 for one in made.running()))
    said = made.members[1].table.of(0)
    assert said is not None
    guest.others, guest.known = (1, 2, 3), [(0, 2, *said[:4])]
    guest.start()
    made.up.add(4)
    meet(made, 4)
    made.until(lambda: {b"before %d" % n for n in range(50)} <= set(guest.values[0]))
    going = made.led() or 3
    staying = [node for node in (1, 2, 3) if node != going]
    for node in staying:
        made.members[node].submit([b"%d of %d" % (n, node) for n in range(200)])
    change(made, (*staying, 4))
    kept = [made.members[node] for node in (*staying, 4)]
    made.until(lambda: all(active(one) == 3 for one in kept))
    made.until(lambda: made.members[going].notes[-1][5])  # and it knows that it is out
    made.stop(going)  # for good
    made.commit_at([*staying, 4], [b"after %d" % n for n in range(50)])
    made.commit_at([4, *staying], [b"of the new one"])
    made.until(made.same)
    assert len(guest.values[0]) >= 501
    instance = guest.table.of(0)[1]  # type: ignore[index]
    for one in kept:
        heard_in_time(one, instance)


def test_what_the_store_says_is_known_before_anybody_votes_and_replays(
    lab: Callable[..., Lab], tmp_path: Path
) -> None:
    made = lab(3)
    made.start()
    made.wait_led()
    made.commit([b"one"], 1)
    one, two, three = (made.members[n] for n in (1, 2, 3))
    change(made, (1, 2))
    made.until(lambda: active(one) == active(two) == 2)
    said = one.table.of(0)
    assert said is not None
    made.stop()
    # A journal that knows nothing of it, at a node that holds no vote any more.
    made.members[3] = three = Member(3, tmp_path / "anew", [1, 2, 3])
    three.folder.mkdir()
    three.known = [(0, 2, *said[:4])]
    one.known = [(0, 2, *said[:4])]
    one.trace_path, three.trace_path = str(tmp_path / "one.trace"), str(tmp_path / "three.trace")
    made.start(3)
    made.until(lambda: version(three) == 2)
    made.until(lambda: bool(three.notes))
    assert three.notes[0][5]  # it is none of them
    made.start(1, 2)
    made.commit_at([1, 2], [b"two"])
    assert made.led() in (0, 1, 2)
    assert version(one) == 2
    one.table.known(0, 2, *said[:4])  # again, while it runs: nothing new
    assert one.table.change(0, roster(2, (1, 2, 3))) in (CHANGE_CONFLICT, CHANGE_NOT_LEADING)
    made.stop()
    for path, known in ((one.trace_path, 2), (three.trace_path, 1)):
        assert check(path).closed
        kinds = [event.kind for event in read(path)]
        assert kinds.count(Kind.CHANGE_KNOWN) == known
        assert kinds.index(Kind.CHANGE_KNOWN) < kinds.index(Kind.START)


def test_a_change_is_in_the_trace_and_replays(lab: Callable[..., Lab], tmp_path: Path) -> None:
    made = lab(3)
    for one in made.members.values():
        one.trace_path = str(tmp_path / f"{one.node}.trace")
    made.start()
    made.wait_led()
    made.commit([b"one"], 1)
    leader = made.members[made.led()]
    other = made.members[leader.node % 3 + 1]
    table = leader.table
    assert other.table.change(0, roster(2, (1, 2))) == CHANGE_NOT_LEADING
    assert table.change(0, roster(3, (1, 2))) == CHANGE_CONFLICT
    assert table.change(0, roster(2, (1, 2, 9))) == CHANGE_NO_SLOT
    assert table.change(0, roster(2, (1, 2))[:-1]) == CHANGE_UNSOUND
    assert table.change(0, b"") == CHANGE_UNSOUND
    change(made, (1, 2, 3))
    assert table.change(0, roster(2, (1, 2))) in (CHANGE_BUSY, CHANGE_CONFLICT, CHANGE_NOT_LEADING)
    made.until(lambda: all(active(one) == 2 for one in made.running()))
    made.commit([b"two"], other.node)
    made.stop()
    for one in made.members.values():
        assert one.trace_path is not None
        assert check(one.trace_path).closed
    kinds = [event.kind for event in read(str(leader.trace_path))]
    assert kinds.count(Kind.CHANGE_MEMBERS) >= 6


def test_members_that_cannot_be(lab: Callable[..., Lab]) -> None:
    made = lab(1)
    one = made.members[1]
    good = roster(2, (1,))
    one.known = [(0, 2, good, 1, 0, True)]  # a floor below the ballot of its packer
    with pytest.raises(DriverError, match="group 0: its members of version 2 cannot be") as caught:
        one.start()
    assert caught.value.code == ERROR_START
    one.driver.stop(10 * US)
    one.known = []
    one.created = False
    made.start()
    table = one.table
    for group, told, code in (
        (0, (3, good, 1, 1, True), ERROR_START),
        (0, (2, good[:-1], 1, 1, True), ERROR_START),
        (0, (2, good, 1, 0, True), ERROR_START),
        (9, (2, good, 1, 1, True), ERROR_UNKNOWN_GROUP),
    ):
        with pytest.raises(DriverError) as caught:
            table.known(group, *told)
        assert caught.value.code == code
    with pytest.raises(DriverError, match="no group 9"):
        table.of(9)
    with pytest.raises(DriverError, match="no group 9"):
        table.change(9, good)
    assert table.of(0) is None
    made.stop()
    for act in (
        lambda: table.known(0, 2, good, 1, 1, True),
        lambda: table.change(0, good),
        lambda: table.of(0),
    ):
        with pytest.raises(DriverError) as caught:
            act()
        assert caught.value.code == ERROR_CLOSED
    assert table.take() == []
    assert table.told() == 0


def test_what_nobody_took_is_given_back(lab: Callable[..., Lab]) -> None:
    """(`no_leaks` counts blocks.)"""
    made = lab(1)
    made.start()
    made.wait_led()
    change(made, (1,))
    one = made.members[1]
    made.until(lambda: active(one) == 2)
    told = one.table.told()
    until = time.monotonic() + 15
    while one.table.told() == told:  # (nobody takes)
        assert time.monotonic() < until
        one.table.change(0, roster(3, (1,)))
        time.sleep(0.005)
    made.stop()
    never = Member(1, one.folder, [1])
    never.known = [(0, 2, roster(2, (1,)), 1, 1, True)] * 2
    del never
