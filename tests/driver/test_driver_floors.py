"""Floors over sockets: what peers are told, who is stranded, what a restart makes of it."""

import pytest
from driver_lab import Lab, Member
from test_starts import UNSETTLED, driver, error, fill, linger, settle

from phx._core.driver import (
    ERROR_CLOSED,
    ERROR_START,
    ERROR_UNKNOWN_GROUP,
    EVENT_BELOW,
)
from phx.testing.trace import Finding, check
from phx.testing.trace_file import Kind, event, read


def trim(lab: Lab, member: Member, floor: int) -> None:
    """Everything is settled, and what is below `floor` stands in a checkpoint only."""
    settle(lab, member)
    member.floors[0] = member.store.floors[0] = floor
    member.driver.floored(0, floor, len(member.kept[0]))
    lab.until(lambda: member.driver.group_status(0)["floor"] == floor)


def belows(member: Member) -> list[tuple[int, int, int]]:
    """Of each EVENT_BELOW: group, who has trimmed least, its lowest instance."""
    return [(e[2], e[5], e[3]) for e in member.events if e[0] == EVENT_BELOW]


def test_a_node_below_all_floors_is_told_and_one_that_has_the_log_helps_it(lab):
    three = lab(3, cache_bytes_max=0, **UNSETTLED)
    three.start()
    three.wait_led()
    fill(three, 5)
    settle(three, three.members[3])  # or it would know nothing of it after its restart
    three.stop(3)
    three.commit_at([1, 2], [b"one more"])
    chosen = int(three.members[1].driver.group_status(0)["chosen_through"])
    trim(three, three.members[1], 4)
    trim(three, three.members[2], chosen + 1)
    lost = three.members[3]
    three.start(3)
    three.until(lambda: b"one more" in lost.values[0])
    early = belows(lost)  # before 1, whose log has 4 and on, was connected
    assert set(early) <= {(0, 2, chosen + 1)}
    settle(three, lost)
    three.stop(3)
    three.commit_at([1, 2], [b"two more"])
    trim(three, three.members[1], chosen + 2)
    trim(three, three.members[2], chosen + 2)
    three.start(3)
    three.until(lambda: len(belows(lost)) >= len(early) + 2)
    assert {found[0::2] for found in belows(lost)[len(early) :]} == {(0, chosen + 2)}
    status = lost.driver.group_status(0)
    assert status["chosen_through"] <= chosen
    assert not status["leading"]
    assert b"two more" not in lost.values[0]


def test_floors_of_the_store_are_told_from_the_first_message_on(lab):
    two = lab(2, **UNSETTLED)
    two.start()
    two.wait_led()
    fill(two, 6)
    one = two.members[1]
    settle(two, one)
    bodies = one.bodies()
    two.stop()
    one.floors = {0: 4}
    one.starts = {0: 5}
    two.start()
    assert one.driver.group_status(0)["floor"] == 4
    one.prime(0, bodies[:5])
    one.driver.resume(0)
    two.wait_led()
    two.commit_at([1], [b"and on"])


def test_numbers_that_leave_a_gap_are_refused_and_a_floor_never_falls(no_leaks, tmp_path):
    one = driver(tmp_path, starts={3: 20}, floors={3: 11})
    with error(ERROR_CLOSED):
        one.floored(3, 12, 20)
    one.start()
    for floor, settled in ((0, 20), (22, 20), (12.0, 20), (12, None), (1, 1 << 62)):
        with error(ERROR_START):
            one.floored(3, floor, settled)
    with error(ERROR_UNKNOWN_GROUP):
        one.floored(4, 1, 1)
    one.floored(3, 15, 20)
    one.floored(3, 13, 20)
    status = one.group_status(3)
    assert (status["floor"], status["settled_through"], status["chosen_through"]) == (15, 20, 20)
    with error(ERROR_START):
        one.resume(3, 13)  # the log cannot follow it any more
    one.stop(10_000_000)


def test_a_machine_that_waits_for_what_its_own_node_has_trimmed_is_told_of(lab):
    """It must not be (what is trimmed is in a checkpoint that the machine was made of)."""
    one = lab(1, **UNSETTLED)
    one.start()
    one.wait_led()
    fill(one, 5)
    member = one.members[1]
    settle(one, member)
    one.stop()
    member.starts = {0: 2}
    one.start()
    member.prime(0, member.kept[0][:2])
    member.driver.resume(0)
    member.driver.floored(0, 5, len(member.kept[0]))
    member.store.floors[0] = 5
    one.until(lambda: belows(member) != [])
    assert set(belows(member)) == {(0, 0, 5)}
    assert any("gave no entry at instance 3" in line for line in member.lines)


def test_one_event_waits_for_each_group_however_long_nobody_takes_it(lab):
    three = lab(3, resend_us=20_000, **UNSETTLED)
    three.start()
    three.wait_led()
    fill(three, 3)
    three.stop(3)
    three.commit_at([1, 2], [b"one more"])
    chosen = int(three.members[1].driver.group_status(0)["chosen_through"])
    for node in (1, 2):
        trim(three, three.members[node], chosen + 1)
    three.start(3)
    lost = three.members.pop(3)
    three.up.discard(3)
    linger(three, 1.0)
    three.members[3] = lost
    three.up.add(3)
    told = [e for e in lost.driver.events() if e[0] == EVENT_BELOW]
    assert len(told) == 1
    three.until(lambda: belows(lost) != [])


def test_traces_with_floors_replay(lab, tmp_path):
    two = lab(2, **UNSETTLED)
    two.members[1].trace_path = str(tmp_path / "node1.trace")
    two.start()
    two.wait_led()
    fill(two, 4)
    trim(two, two.members[1], 3)
    two.commit([b"more"], 1)
    settle(two, two.members[1])  # its journal is told the floor
    two.stop()
    trace = two.members[1].trace_path
    report = check(trace)
    assert report.closed
    assert report.turns
    told = [one for one in read(trace) if one.kind == Kind.FLOOR]
    assert len(told) == 1
    left_out = [one for one in read(trace) if one.kind != Kind.FLOOR]
    short = tmp_path / "short.trace"
    short.write_bytes(b"".join(event(one.kind, one.data, one.thread) for one in left_out))
    with pytest.raises(Finding, match="replay"):
        check(short)
