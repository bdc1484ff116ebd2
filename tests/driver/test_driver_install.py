"""A checkpoint of another node in the place of what a driver had: delivery, questions, callers."""

import threading
from typing import Any

import pytest
from driver_lab import Lab, Member
from test_driver_floors import belows, trim
from test_starts import UNSETTLED, driver, error, fill, linger, settle

from phx._core.driver import ERROR_CLOSED, ERROR_START, ERROR_UNKNOWN_GROUP, Driver
from phx.testing.trace import Finding, check
from phx.testing.trace_file import Kind, event, read


def behind(lab: Lab, **options: int) -> tuple[Lab, Member, Member, int]:
    """Three nodes; 3 is below the floors of the others, which have `through` instances."""
    three = lab(3, **{**UNSETTLED, **options})
    three.start()
    three.wait_led()
    fill(three, 3)
    settle(three, three.members[3])
    three.stop(3)
    for number in range(5):
        three.commit_at([1, 2], [b"missed %d" % number])
    provider = three.members[1]
    through = int(provider.driver.group_status(0)["chosen_through"])
    for node in (1, 2):
        trim(three, three.members[node], through + 1)
    return three, provider, three.members[3], through


def install(lab: Lab, member: Member, provider: Member, through: int) -> None:
    """Machine, table and row first, then the driver (design, section 8)."""
    bodies = provider.kept[0][:through]
    other = type(member.driver.sessions)(99, [0])
    for batch in other.offer(0, 1, bodies):
        assert batch.error is None
        member.values[0] = [] if batch.first == 1 else member.values[0]
        member.values[0] += [entry.value for entry in batch.entries]
    member.kept[0] = list(bodies)
    member.driver.sessions.load(other.table(0))
    member.driver.install(0, through, int(provider.driver.group_status(0)["promised"]))
    member.floors[0] = member.store.floors[0] = through + 1


def test_a_node_below_all_floors_goes_on_from_a_checkpoint(lab):
    three, provider, lost, through = behind(lab)
    three.start(3)
    three.until(lambda: belows(lost) != [])
    install(three, lost, provider, through)
    three.until(lambda: lost.driver.group_status(0)["chosen_through"] == through)
    status = lost.driver.group_status(0)
    assert (status["floor"], status["settled_through"]) == (through + 1, through)
    assert (status["applied_through"], status["handed_through"]) == (through, through)
    three.commit([b"and on"], 1)
    assert lost.values[0] == three.members[1].values[0] == three.members[2].values[0]
    assert lost.instances[0][-1] == through + 1
    three.commit([b"from there"], 3)
    settle(three, lost)
    assert len(lost.kept[0]) == through + 2
    three.stop(3)
    lost.starts = {0: through}
    three.start(3)
    lost.prime(0, lost.kept[0][:through])
    lost.driver.resume(0)
    three.until(lambda: lost.values[0] == [b"and on", b"from there"])


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


@pytest.mark.parametrize("waits", ["load", "handed"])
def test_what_was_on_its_way_below_the_frontier_is_passed_over(lab, waits):
    """The store's answer to a question of before comes late; or the applier took nothing so far."""
    three, provider, lost, through = behind(lab)
    if waits == "load":
        lost.of_store = Slow
    three.start(3)
    if waits == "load":
        slow = lost.store.driver
        assert slow.asked.wait(20)
    else:
        linger_others(three, lost, 0.5)  # 1 to 3 lie in the outbox
    install(three, lost, provider, through)
    three.until(lambda: lost.driver.group_status(0)["chosen_through"] == through)
    three.commit_at([1, 2], [b"and on"])
    if waits == "load":
        slow.go_on.set()
    three.until(lambda: b"and on" in lost.values[0])
    assert lost.instances[0][-1] == through + 1
    assert not [line for line in lost.lines if "gave no entry" in line]
    assert not [e for e in belows(lost) if e[1] == 0]
    three.commit([b"more"], 3)
    assert lost.values[0] == three.members[1].values[0]


def linger_others(lab: Lab, member: Member, seconds: float) -> None:
    lab.up.discard(member.node)
    linger(lab, seconds)
    lab.up.add(member.node)


def test_a_frontier_that_delivery_has_passed_raises_the_floor_only(lab):
    one = lab(1, **UNSETTLED)
    one.start()
    one.wait_led()
    fill(one, 6)
    member = one.members[1]
    settle(one, member)
    member.driver.install(0, 2, 1)
    member.store.floors[0] = 3
    one.until(lambda: member.driver.group_status(0)["floor"] == 3)
    assert member.driver.group_status(0)["leading"]
    one.commit([b"on"], 1)
    assert member.instances[0] == sorted(set(member.instances[0]))


def test_a_paused_group_may_be_installed_and_resumed_behind_it(lab):
    three, provider, lost, through = behind(lab)
    lost.starts = {0: 0}
    three.start(3)
    lost.store.floors[0] = lost.floors[0] = through + 1
    lost.driver.install(0, through, 0)
    three.until(lambda: lost.driver.group_status(0)["chosen_through"] == through)
    status = lost.driver.group_status(0)
    assert (status["restoring"], status["applied_through"]) == (True, 0)
    with error(ERROR_START):
        lost.driver.resume(0)  # a machine that holds nothing cannot go on any more
    lost.prime(0, provider.kept[0][:through])
    lost.kept[0] = list(provider.kept[0][:through])
    lost.driver.resume(0, through)
    three.commit_at([1, 2], [b"and on"])
    three.until(lambda: lost.values[0] == [b"and on"])


def test_values_that_the_checkpoint_holds_are_given_up_in_the_driver_and_others_are_tried(lab):
    three, provider, lost, through = behind(lab)
    three.start(3)
    first = lost.submit([b"applied", b"still to come"], timeout_s=30)
    lost.driver.done(0, first, 1)
    three.until(lambda: lost.driver.group_status(0)["waiting_values"] <= 1)
    install(three, lost, provider, through)
    three.until(lambda: b"still to come" in lost.values[0])
    three.until(lambda: lost.driver.group_status(0)["waiting_values"] == 0)
    assert [e for e in lost.events if e[0] == 1] == []


def test_numbers_that_cannot_be_are_refused(no_leaks, tmp_path):
    one = driver(tmp_path)
    with error(ERROR_CLOSED):
        one.install(3, 21, 0)
    with error(ERROR_CLOSED):
        one.done(3, 1, 1)
    one.start()
    for frontier, ballot in ((0, 0), (1 << 62, 0), (21.0, 0), (21, -1), (21, 1 << 64), (21, None)):
        with error(ERROR_START):
            one.install(3, frontier, ballot)
    for group in (1, 4):
        with error(ERROR_UNKNOWN_GROUP):
            one.install(group, 21, 0)
        with error(ERROR_UNKNOWN_GROUP):
            one.done(group, 1, 1)
    one.install(3, 25, 0)
    assert one.group_status(3)["chosen_through"] == 25
    one.stop(10_000_000)


def test_traces_with_installs_replay(lab, tmp_path):
    three, provider, lost, through = behind(lab)
    lost.trace_path = str(tmp_path / "node3.trace")
    for node in (1, 2):
        three.stop(node)
    three.start(3)
    first = lost.submit([b"applied"], timeout_s=30)
    lost.driver.done(0, first, 1)  # before there is anybody that it could be forwarded to
    three.until(lambda: lost.driver.group_status(0)["waiting_values"] == 0)
    for member in (three.members[1], three.members[2]):
        member.starts = {0: through}
        three.start(member.node)
        member.prime(0, member.kept[0][:through])
        member.driver.resume(0)
    three.wait_led()
    install(three, lost, provider, through)
    three.commit_at([1, 2], [b"and on"])
    three.until(lambda: b"and on" in lost.values[0])
    three.stop()
    report = check(lost.trace_path)
    assert report.closed
    for kind in (Kind.INSTALL, Kind.DONE):
        left_out = [one for one in read(lost.trace_path) if one.kind != kind]
        assert len(left_out) < report.events
        short = tmp_path / f"without {kind.name}.trace"
        short.write_bytes(b"".join(event(one.kind, one.data, one.thread) for one in left_out))
        with pytest.raises(Finding, match="replay"):
            check(short)
