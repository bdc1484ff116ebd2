"""Groups of a driver that come and go while it runs."""

import threading
from typing import Any

import pytest
from driver_lab import US, Lab, Member

from phx._core.codec import allocations_live, blocks_live
from phx._core.driver import ERROR_OPTION, ERROR_UNKNOWN_GROUP, Driver, DriverError
from phx._core.group_table import END_NOT_LEADING, END_UNDER_WAY, GroupTable
from phx.sim.wire_text import value
from phx.testing.trace import check

UNSETTLED = {"settle_idle_us": 60 * US}
HIGHEST = 1_048_575
FAILED, ENDED_REJECTED = 1, 10


def add(member: Member, group: int, generation: int = 1, **said: Any) -> GroupTable:
    table = GroupTable(member.driver)
    for kept in (member.values, member.instances):
        kept[group] = []
    member.own[group] = set()
    table.add(group, generation=generation, **said)
    return table


def drop(member: Member, group: int) -> None:
    GroupTable(member.driver).drop(group)


def everywhere(lab: Lab, group: int, generation: int = 1) -> None:
    for member in lab.running():
        add(member, group, generation)
    lab.until(lambda: lab.led(group) in lab.up)


def refused(wanted: int, act: Any, *said: Any, **more: Any) -> None:
    with pytest.raises(DriverError) as raised:
        act(*said, **more)
    assert raised.value.code == wanted


@pytest.mark.parametrize("group", [1, 300, HIGHEST])
def test_a_group_comes_and_goes_and_comes_again(lab, group):
    three = lab(3)
    three.start()
    three.wait_led()
    everywhere(three, group)
    three.commit([b"a", b"b"], 2, group)
    for member in three.running():
        drop(member, group)
        refused(ERROR_UNKNOWN_GROUP, member.submit, [b"late"], group)
        refused(ERROR_UNKNOWN_GROUP, member.driver.group_status, group)
        refused(ERROR_UNKNOWN_GROUP, drop, member, group)
        assert GroupTable(member.driver).groups() == [0]
    everywhere(three, group, 2)
    assert three.members[1].driver.group_status(group)["generation"] == 2
    three.commit([b"c"], 3, group)
    for member in three.running():
        assert member.values[group] == [b"c"]
        assert member.own[group] <= {1}, "sequences begin anew"
        assert not [line for line in member.lines if f"group {group}" in line]
    three.commit([b"and group 0"], 1)


def test_what_cannot_be_changes_nothing(lab):
    one = lab(1)
    one.start()
    one.wait_led()
    member = one.members[1]
    add(member, 5, 3)
    refused(ERROR_OPTION, GroupTable(member.driver).add, 5, generation=4)
    refused(ERROR_OPTION, GroupTable(member.driver).add, 0, generation=1)
    drop(member, 5)
    refused(ERROR_OPTION, GroupTable(member.driver).add, 5, generation=3)
    refused(ERROR_OPTION, GroupTable(member.driver).add, HIGHEST + 1, generation=1)
    refused(ERROR_OPTION, GroupTable(member.driver).add, 6, generation=65_536)
    with pytest.raises(DriverError, match="its lowest"):
        GroupTable(member.driver).add(6, generation=1, settled=2, floor=9)
    assert GroupTable(member.driver).groups() == [0]
    add(member, 5, 4)
    add(member, 6, 1)
    one.commit([b"x"], 1, 6)


def test_a_thousand_groups_come_and_go_and_nothing_is_left(lab):
    one = lab(1, cache_bytes_max=1, journal_bytes_max=64 << 20, **UNSETTLED)
    one.start()
    one.wait_led()
    member = one.members[1]

    def cycle(number: int) -> None:
        group = (7, 20, 21, HIGHEST)[number % 4]
        add(member, group, number)
        if number % 3:
            member.submit([b"v" * (number % 700)], group)
        if number % 5 == 0:
            one.until(lambda: len(member.values[group]) == 1 or number % 3 == 0)
        elif number % 5 == 1:  # some of it lies in the outbox, or is still on its way
            member.driver.group_status(group)
        drop(member, group)

    def quiet() -> None:
        one.commit([b"z"], 1)
        one.until(lambda: member.driver.group_status(0)["applied_through"] == len(log()))
        member.driver.settle_now()
        one.until(lambda: not member.driver.status()["settle"]["pending"])
        one.pause(0.1)

    def log() -> list[bytes]:
        return member.bodies()

    for number in range(1, 25):
        cycle(number)
    quiet()
    before = blocks_live(), allocations_live()
    for number in range(25, 1025):
        cycle(number)
    quiet()
    assert (blocks_live(), allocations_live()) == before
    assert member.driver.status()["queues"]["handed_bytes"] == 0
    assert member.driver.status()["queues"]["backlog_groups"] == 0
    assert GroupTable(member.driver).groups() == [0]


def test_what_waits_of_it_goes_and_what_is_of_others_stays(lab):
    one = lab(1, groups=2, **UNSETTLED)
    one.start()
    one.wait_led((0, 1))
    member = one.members[1]
    add(member, 9)
    one.until(lambda: one.led(9) == 1)
    one.up.discard(1)  # nobody takes anything meanwhile
    for group in (0, 9, 1, 9):
        member.submit([b"to %d" % group], group)
    one.up.add(1)
    deadline = threading.Event()
    for _ in range(500):
        chosen = [member.driver.group_status(group)["chosen_through"] for group in (0, 1, 9)]
        if min(chosen) >= 2:
            break
        deadline.wait(0.01)
    member.events.clear()
    drop(member, 9)
    one.until(lambda: member.values[0] == [b"to 0"] and member.values[1] == [b"to 1"])
    assert member.values[9] == []
    assert not [event for event in member.events if event[2] == 9]
    add(member, 9, 2)
    one.commit([b"of the next"], 1, 9)
    assert member.values[9] == [b"of the next"]


def test_read_points_of_as_many_as_come_are_published(lab):
    """More than the first two pieces hold (published.pxd), and of each its own."""
    one = lab(1, **UNSETTLED)
    one.start()
    one.wait_led()
    member = one.members[1]
    points = member.driver.points
    groups = range(1, 201)
    for group in groups:
        add(member, group)
    one.until(lambda: all(one.led(group) == 1 for group in (1, 64, 65, 192, 193, 200)))
    for group in (1, 64, 65, 192, 193, 200):
        for number in range(group % 7):
            one.commit([b"%d" % number], 1, group)
        chosen = member.driver.group_status(group)["chosen_through"]
        assert points.known(group) == chosen
        assert points.leased(group) == chosen
    drop(member, 65)
    with pytest.raises(KeyError):
        points.leased(65)
    add(member, 65, 2)
    assert points.known(65) == 0, "nothing of the one before"
    one.until(lambda: points.leased(65) == 0)


class Slow:
    """A driver whose store answers late."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def loaded(self, group: int, first: int, entries: bytes) -> None:
        self.asked.set()
        assert self.go_on.wait(20)
        self._driver.loaded(group, first, entries)


def test_what_the_store_gives_late_is_of_the_group_that_asked(lab):
    """Ten times over, so that what was asked for in vain does not count for ever."""
    one = lab(1, **UNSETTLED)
    member = one.members[1]
    member.of_store = Slow
    one.start()
    one.wait_led()
    slow = member.store.driver
    for generation in range(1, 21, 2):
        slow.asked.clear()
        slow.go_on.clear()
        member.kept[9] = [value(b"old %d" % n, 5, n) for n in (1, 2)]
        add(member, 9, generation, settled=2)
        assert slow.asked.wait(20)
        drop(member, 9)
        add(member, 9, generation + 1, settled=2)
        member.kept[9] = [value(b"new %d" % n, 5, n) for n in (1, 2)]
        slow.go_on.set()
        one.until(lambda: len(member.values[9]) == 2)
        assert member.values[9] == [b"new 1", b"new 2"]
        drop(member, 9)
    assert member.driver.status()["queues"]["backlog_groups"] == 0


def test_a_plan_of_the_store_says_nothing_of_the_next_group_of_that_id(lab):
    one = lab(1, **UNSETTLED)
    one.start()
    one.wait_led()
    member = one.members[1]
    add(member, 9)
    one.until(lambda: one.led(9) == 1)
    one.commit([b"a", b"b"], 1, 9)
    member.store.hold.clear()
    member.driver.settle_now()
    one.until(lambda: bool(member.store.work))
    drop(member, 9)
    add(member, 9, 2)
    one.until(lambda: one.led(9) == 1)
    one.commit([b"c"], 1, 9)
    settled = member.driver.group_status(9)["settled_through"]
    member.store.kept.pop(9, None)
    member.store.problem = None
    assert settled == 0
    member.store.hold.set()
    one.pause(0.2)
    assert member.driver.group_status(9)["settled_through"] == 0
    member.store.problem = None  # (it could not read what is no more)


def test_after_a_restart_it_is_what_the_list_of_groups_says(lab):
    one = lab(1, **UNSETTLED)
    one.start()
    one.wait_led()
    member = one.members[1]
    add(member, 9)
    one.commit([b"old"], 1, 9)
    drop(member, 9)
    add(member, 9, 2)
    one.commit([b"new"], 1, 9)
    one.stop(1)
    arguments: dict[str, Any] = {
        "cluster": member.cluster, "node": 1, "store_id": member.store_id,
        "members": [(1, "127.0.0.1", 0)], "bind": ("127.0.0.1", 0), "settled": {},
        "journal_dir": str(member.folder / "node1"), "create": False, "options": member.options,
    }  # fmt: skip
    with pytest.raises(DriverError, match="votes of group 9"):
        Driver(groups=[0], **arguments).start()
    with pytest.raises(DriverError, match="votes of group 9"):
        Driver(groups=[0], gone={9: 1}, **arguments).start()
    again = Driver(groups=[0, 9], generations={9: 2}, **arguments)
    again.start()
    try:
        assert again.group_status(9)["accepted_last"] >= 1
    finally:
        again.stop(10 * US)
    for gone in ({9: 2}, {9: 3}):
        without = Driver(groups=[0], gone=gone, **arguments)
        without.start()
        try:
            assert [row["group"] for row in without.group_statuses()] == [0]
            refused(ERROR_OPTION, GroupTable(without).add, 9, generation=2)
        finally:
            without.stop(10 * US)


def test_a_group_gets_its_last_value_and_the_next_of_that_id_knows_nothing_of_it(lab):
    three = lab(3)
    three.start()
    three.wait_led()
    everywhere(three, 9)
    three.commit([b"a"], 2, 9)
    leader = three.led(9)
    for member in three.running():
        if member.node != leader:
            assert GroupTable(member.driver).end(9) == END_NOT_LEADING
    assert GroupTable(three.members[leader].driver).end(9) == END_UNDER_WAY
    three.until(lambda: all(one.driver.group_status(9)["ended"] for one in three.running()))
    last = {one.driver.group_status(9)["chosen_through"] for one in three.running()}
    assert len(last) == 1
    for member in three.running():
        member.events.clear()
        member.submit([b"late"], 9)
    three.until(
        lambda: all(
            [e[1] for e in one.events if e[0] == FAILED and e[2] == 9] == [ENDED_REJECTED]
            for one in three.running()
        )
    )
    three.until(
        lambda: {one.driver.group_status(9)["applied_through"] for one in three.running()} == last
    )
    assert all(one.values[9] == [b"a"] for one in three.running())
    for member in three.running():
        drop(member, 9)
    everywhere(three, 9, 2)
    three.commit([b"b"], 1, 9)
    assert all(one.values[9] == [b"b"] for one in three.running())


def test_a_trace_of_it_replays(lab, tmp_path):
    one = lab(1, **UNSETTLED)
    member = one.members[1]
    member.trace_path = str(tmp_path / "trace")
    one.start()
    one.wait_led()
    for generation in (1, 2, 3):
        add(member, 9, generation)
        one.commit([b"x"], 1, 9)
        assert GroupTable(member.driver).end(9) == END_UNDER_WAY
        one.until(lambda: bool(member.driver.group_status(9)["ended"]))
        drop(member, 9)
    one.stop(1)
    report = check(tmp_path / "trace")
    assert report.inputs > 0
