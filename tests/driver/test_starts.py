"""Groups that begin behind a checkpoint, and paused: what is delivered, when, and what never is."""

import time

import pytest
from driver_lab import US, Lab, Member

from phx._core.driver import (
    ERROR_CLOSED,
    ERROR_START,
    ERROR_UNKNOWN_GROUP,
    Driver,
    DriverError,
)
from phx.testing.trace import Finding, check, check_all
from phx.testing.trace_file import Kind, event, read

UNSETTLED = {"settle_idle_us": 60 * US}


def error(code: int):
    return pytest.raises(DriverError, check=lambda raised: raised.code == code)


def fill(lab: Lab, count: int, node: int = 1, group: int = 0) -> list[bytes]:
    """So many values, each of them an instance."""
    values = [b"g%d value %d" % (group, number) for number in range(count)]
    for value in values:
        lab.commit([value], node, group)
    return values


def settle(lab: Lab, member: Member) -> None:
    member.driver.settle_now()
    lab.until(lambda: not member.driver.status()["settle"]["pending"])


def linger(lab: Lab, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for member in lab.running():
            member.pump(0.01)


# --- where delivery begins


@pytest.mark.parametrize("settled", [False, True], ids=["journal", "store"])
@pytest.mark.parametrize("start", [0, 1, 17, 30])
def test_delivery_begins_behind_the_start(lab, start, settled):
    one = lab(1, **({"settle_idle_us": 20_000} if settled else UNSETTLED))
    one.start()
    one.wait_led()
    member = one.members[1]
    fill(one, 30)
    if settled:
        settle(one, member)
        assert len(member.kept[0]) == member.driver.group_status(0)["chosen_through"]
    bodies, log = member.bodies(), list(zip(member.instances[0], member.values[0], strict=True))
    one.stop()
    member.starts = {0: start}
    one.start()
    assert member.driver.group_status(0)["handed_through"] == start
    member.prime(0, bodies[:start])
    member.driver.resume(0)
    one.wait_led()
    one.commit([b"and on"], 1)
    got = list(zip(member.instances[0], member.values[0], strict=True))
    assert got[:-1] == [(i, value) for i, value in log if i > start]
    assert got[-1][1] == b"and on"
    assert ("load" in member.store.work) == (settled and start < len(bodies))
    one.until(lambda: not member.driver.busy_groups())


def test_another_start_may_be_given_with_the_machine_that_was_restored_in_its_place(lab):
    """The newest checkpoint was damaged: the one before it, or a newer one of a peer."""
    one = lab(1, groups=2, **UNSETTLED)
    one.start()
    one.wait_led([0, 1])
    member = one.members[1]
    values = {group: fill(one, 10, group=group) for group in (0, 1)}
    bodies = {group: member.bodies(group) for group in (0, 1)}
    at = dict(enumerate(member.instances.values()))
    one.stop()
    member.starts = {0: 8, 1: 2}
    one.start()
    for group, start in ((0, 3), (1, 6)):
        member.prime(group, bodies[group][:start])
        member.driver.resume(group, start)
        expected = [v for i, v in zip(at[group], values[group], strict=True) if i > start]
        one.until(lambda g=group, e=expected: len(member.values[g]) >= len(e))
        assert member.values[group] == expected


# --- paused groups


def test_a_paused_group_gets_nothing_and_is_not_led_until_it_is_resumed(lab):
    one = lab(1, groups=3, **UNSETTLED)
    one.start()
    one.wait_led(range(3))
    member = one.members[1]
    values = {group: fill(one, 5, group=group) for group in range(3)}
    bodies = member.bodies(1)
    one.stop()
    member.starts = {0: 0, 1: len(bodies)}
    one.start()
    one.wait_led([2])
    member.submit([b"waits"], 1, timeout_s=60)
    one.commit([b"goes on"], 1, 2)
    linger(one, 0.5)
    assert member.values == {0: [], 1: [], 2: [*values[2], b"goes on"]}
    for group in (0, 1):
        status = member.driver.group_status(group)
        assert status["restoring"]
        assert status["leader"] == status["chosen_through"] == 0
    assert not member.driver.group_status(2)["restoring"]
    assert {row[0] for row in member.driver.busy_groups()} == {0, 1}
    member.prime(1, bodies)
    member.driver.resume(1)
    one.until(lambda: member.values[1] == [b"waits"])
    assert member.values[0] == []
    assert {row[0] for row in member.driver.busy_groups()} >= {0}
    member.driver.resume(0)
    one.until(lambda: member.values[0] == values[0])
    one.until(lambda: not member.driver.busy_groups())
    assert member.driver.status()["leading"] == 3


def test_a_paused_group_votes_learns_and_forwards_and_others_lead_it(lab):
    """Node 3 is gone: without the vote of node 1, which restores, nothing is chosen."""
    three = lab(3, groups=3, **UNSETTLED)
    three.start()
    three.wait_led(range(3))
    fill(three, 6)
    member = three.members[1]
    bodies = member.bodies()
    before = list(member.values[0])
    three.stop(1, 3)
    member.starts = {0: len(bodies)}
    three.start(1)
    three.wait_led(range(3))
    assert three.led(0) == 2
    three.commit_at([2], [b"from node 2", b"too"])
    seq = member.submit([b"from node 1"])
    three.until(lambda: b"from node 1" in three.members[2].values[0])
    three.commit([b"another group"], 1, 1)
    linger(three, 0.3)
    assert member.values[0] == []
    assert member.driver.group_status(0)["chosen_through"] >= len(bodies) + 2
    member.prime(0, bodies)
    member.driver.resume(0)
    three.until(lambda: b"from node 1" in member.values[0])
    assert before + member.values[0] == three.members[2].values[0]
    assert member.own[0] == {seq}
    three.start(3)
    three.stop(2)
    three.wait_led(range(3))
    three.commit_at([1, 3], [b"node 1 may lead again, or follow"])


def test_a_paused_group_does_not_stand_in_the_way_of_others(lab):
    one = lab(1, groups=2, settle_idle_us=50_000, delivery_bytes_max=20_000)
    one.start()
    one.wait_led([0, 1])
    member = one.members[1]
    first = [b"%d " % number + bytes(2_000) for number in range(100)]
    one.commit(first, 1, 0)
    settle(one, member)
    one.stop()
    member.starts = {0: 0}
    one.start()
    one.wait_led([1])
    one.commit(first, 1, 1)
    settle(one, member)
    status = member.driver.status()
    assert status["queues"]["handed_bytes"] == status["queues"]["backlog_groups"] == 0
    assert member.values[0] == []
    member.driver.resume(0)
    one.until(lambda: len(member.values[0]) == len(first))
    assert member.values[0] == member.values[1] == first


def test_a_hundred_groups_are_resumed_one_by_one_each_exactly_once(lab):
    groups = range(100)
    one = lab(1, groups=100, **UNSETTLED)
    one.start()
    one.wait_led(groups)
    member = one.members[1]
    for _ in range(3):
        for group in groups:
            member.submit([b"%d" % group], group)
    one.until(lambda: all(len(member.values[group]) == 3 for group in groups))
    bodies = {group: member.bodies(group) for group in groups}
    one.stop()
    member.starts = {group: group % 2 for group in groups}
    one.start()
    resumed: set[int] = set()
    for group in sorted(groups, key=lambda g: g * 37 % 100):
        member.prime(group, bodies[group][: group % 2])
        member.driver.resume(group)
        resumed.add(group)
        one.commit([b"new in %d" % group], 1, group)
        assert not any(member.values[other] for other in set(groups) - resumed)
    for group in groups:
        at, values = member.instances[group], member.values[group]
        assert at == sorted(at)
        assert at[0] > group % 2
        assert values[-1] == b"new in %d" % group
        assert values.count(b"new in %d" % group) == 1


# --- a start beyond what is known to be chosen


def test_what_is_accepted_is_not_delivered_before_it_is_chosen_again(lab):
    """After a restart without a quorum everything unsettled is accepted, and no more than that."""
    three = lab(3, **UNSETTLED)
    three.start()
    three.wait_led()
    values = fill(three, 10)
    member = three.members[1]
    bodies, at = member.bodies(), list(member.instances[0])
    three.stop()
    start = at[4]
    member.starts = {0: start}
    three.start(1)
    member.prime(0, bodies[:start])
    member.driver.resume(0)
    linger(three, 1.0)
    status = member.driver.group_status(0)
    assert (status["chosen_through"], status["settled_through"]) == (0, 0)
    assert status["accepted_last"] >= at[-1] > start
    assert member.values[0] == []
    assert member.driver.read(0, start) == member.driver.read(0, start + 1) == 0
    settle(three, member)
    assert member.kept == {}, "accepted at or below the start, and settled as if it were chosen"
    three.start(2)
    three.until(lambda: len(member.values[0]) == 5 and len(three.members[2].values[0]) == 10)
    assert member.values[0] == values[5:]
    assert three.members[2].values[0] == values
    three.until(lambda: member.driver.group_status(0)["chosen_through"] >= at[-1])
    settle(three, member)
    assert member.kept[0][: len(bodies)] == bodies


def test_a_start_beyond_all_that_the_node_has_waits_until_it_has_learned_so_far(lab):
    """A checkpoint came from a peer, and the node crashed before its log knew of it."""
    three = lab(3, **UNSETTLED)
    three.start()
    three.wait_led()
    fill(three, 3)
    three.stop(3)
    member = three.members[3]
    for number in range(7):
        three.commit_at([1, 2], [b"%d, without node 3" % number])
    bodies = three.members[1].bodies()
    member.starts = {0: len(bodies)}
    three.stop()
    three.start(3)
    member.prime(0, bodies)
    member.driver.resume(0)
    linger(three, 0.5)
    assert member.values[0] == []
    three.start(1, 2)
    three.wait_led()
    three.until(lambda: len(three.members[1].values[0]) == 10)
    linger(three, 0.3)
    assert member.values[0] == []
    three.commit_at([1, 2, 3], [b"news"])
    assert member.values[0] == [b"news"]
    assert member.instances[0][0] > len(bodies)
    assert [member.driver.read(0, i) for i in range(1, len(bodies) + 1)] == bodies


def test_a_crash_of_the_machine_ahead_of_the_log_repeats_nothing(lab):
    """The machine holds everything, and the engine makes all of it chosen again below it."""
    one = lab(1, **UNSETTLED)
    one.start()
    one.wait_led()
    member = one.members[1]
    fill(one, 12)
    bodies = member.bodies()
    for _ in range(3):
        one.stop()
        member.starts = {0: len(bodies)}
        one.start()
        member.prime(0, bodies)
        member.driver.resume(0)
        one.wait_led()
        one.commit([b"once"], 1)
        assert member.values[0] == [b"once"]
        bodies = member.bodies()


# --- refusals


def driver(tmp_path, **changes) -> Driver:
    given = {
        "cluster": 1, "node": 1, "store_id": b"s" * 16, "members": [(1, "127.0.0.1", 0)],
        "bind": None, "groups": [0, 3], "settled": {3: 20}, "journal_dir": str(tmp_path / "j"),
        "create": True, "options": {},
    }  # fmt: skip
    return Driver(**{**given, **changes})


@pytest.mark.parametrize(
    ("starts", "floors"),
    [
        ({3: 7}, {3: 9}),  # the log begins behind the instance that the machine needs
        ({}, {3: 9}),  # a machine that holds nothing needs instance 1
        ({3: 30}, {3: 22}),  # between what is settled and the floor there is a gap
        ({0: 5}, {0: 2}),
        ({3: 30}, {3: 0}),
        ({3: -1}, {}),
        ({3: 1 << 62}, {}),
        ({3: 1.0}, {}),
        ({3: None}, {}),
    ],
    ids=str,
)
def test_a_start_that_the_log_cannot_follow_is_refused_before_anything_is_opened(
    tmp_path, starts, floors
):
    with error(ERROR_START):
        driver(tmp_path, starts=starts, floors=floors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("starts", "floors"),
    [({3: 8}, {3: 9}), ({3: 20}, {3: 21}), ({3: 50}, {3: 21}), ({0: 7}, {}), ({3: 4}, {})],
    ids=str,
)
def test_a_start_that_the_log_can_follow_is_taken(tmp_path, starts, floors):
    driver(tmp_path, starts=starts, floors=floors)


def test_a_start_of_a_group_that_is_not_hosted_is_refused(tmp_path):
    with error(ERROR_UNKNOWN_GROUP):
        driver(tmp_path, starts={4: 0})


def test_a_resume_that_cannot_be_leaves_the_group_paused(lab, tmp_path):
    one = lab(1, groups=2, **UNSETTLED)
    one.start()
    one.wait_led([0, 1])
    member = one.members[1]
    fill(one, 4)
    bodies = member.bodies()
    one.stop()
    member.starts = {0: 3}
    one.start()
    resume = member.driver.resume
    with error(ERROR_UNKNOWN_GROUP):
        resume(7)
    with error(ERROR_START):
        resume(1)  # it never was paused
    with error(ERROR_START):
        resume(0)  # the session table stands at the beginning
    member.prime(0, bodies[:3])
    for wrong in (0, 2, 4, -1, 1 << 62, 3.0):
        with error(ERROR_START):
            resume(0, wrong)
    linger(one, 0.1)
    assert member.driver.group_status(0)["restoring"]
    resume(0)
    with error(ERROR_START):
        resume(0)  # once
    one.until(lambda: not member.driver.group_status(0)["restoring"])
    one.wait_led([0, 1])
    one.commit([b"x"], 1)
    stopped = member.driver
    one.stop()
    with error(ERROR_CLOSED):
        stopped.resume(0)


def test_a_resume_below_the_floor_is_refused(no_leaks, tmp_path):
    one = driver(tmp_path, starts={3: 12}, floors={3: 11})
    one.start()
    with error(ERROR_START):
        one.resume(3, 9)
    one.stop(5 * US)


def test_a_driver_with_paused_groups_stops_like_any_other(no_leaks, tmp_path):
    one = driver(tmp_path, starts={0: 0, 3: 20})
    with error(ERROR_CLOSED):
        one.resume(0)
    one.start()
    one.submit(0, 0, [b"nobody leads"] * 10, Driver.now_us() + 60 * US)
    one.stop(5 * US)


# --- the trace


def test_traces_of_paused_groups_replay(lab, tmp_path):
    two = lab(2, groups=2, **UNSETTLED)
    two.start()
    two.wait_led([0, 1])
    fill(two, 5)
    member = two.members[1]
    bodies = member.bodies()
    two.stop()
    for node, one in two.members.items():
        one.trace_path = str(tmp_path / f"node{node}.trace")
    member.starts = {0: len(bodies)}
    two.start()
    two.wait_led([0, 1])
    assert two.led(0) == 2
    two.commit_at([2], [b"while node 1 restores"])
    member.prime(0, bodies)
    member.driver.resume(0)
    two.until(lambda: member.values[0] == [b"while node 1 restores"])
    two.commit_at([1, 2], [b"afterwards"])
    two.stop()
    traces = [str(tmp_path / f"node{node}.trace") for node in (1, 2)]
    reports = check_all(traces)
    assert all(one.closed and one.turns for one in reports)
    told = [one for one in read(traces[0]) if one.kind == Kind.RESTORING]
    assert len(told) == 2
    left_out = [one for one in read(traces[0]) if one.kind != Kind.RESTORING]
    short = tmp_path / "short.trace"
    short.write_bytes(b"".join(event(one.kind, one.data, one.thread) for one in left_out))
    with pytest.raises(Finding, match="replay"):
        check(short)


# --- paused while it runs


@pytest.mark.parametrize("settled", [False, True], ids=["journal", "store"])
def test_a_group_may_be_paused_and_resumed_where_its_machine_is_made_anew(lab, settled):
    """It had stopped: what was delivered since went nowhere. Others go on meanwhile."""
    one = lab(1, groups=2, **UNSETTLED)
    one.start()
    one.wait_led([0, 1])
    member = one.members[1]
    fill(one, 10)
    bodies, values = member.bodies(), list(member.values[0])
    at = list(member.instances[0])
    member.driver.stop_group(0)
    if settled:
        settle(one, member)
    member.driver.pause(0)
    member.driver.pause(0)
    assert member.driver.group_status(0)["restoring"]
    while taken := member.driver.take(1 << 20):
        assert {batch.group for batch in taken} <= {1}
    one.commit([b"goes on"], 1, 1)
    assert member.driver.group_status(0)["stopped"]
    start = at[4]
    other = type(member.driver.sessions)(99, [0])
    other.offer(0, 1, bodies[:start])
    member.driver.sessions.load(other.table(0))
    member.values[0], member.instances[0] = [], []
    member.driver.resume(0, start)
    one.until(lambda: len(member.values[0]) == 5)
    assert (member.values[0], member.instances[0]) == (values[5:], at[5:])
    one.wait_led([0])
    one.commit([b"more"], 1)
    assert member.values[0][-1] == b"more"
    assert not member.driver.group_status(0)["stopped"]
    with error(ERROR_UNKNOWN_GROUP):
        member.driver.pause(7)


def test_nothing_is_delivered_of_a_paused_group_though_it_waited_in_line(lab):
    one = lab(1, groups=1, **UNSETTLED)
    one.start()
    one.wait_led()
    member = one.members[1]
    fill(one, 3)
    bodies = member.bodies()
    member.driver.pause(0)
    handed = member.driver.group_status(0)["handed_through"]
    member.submit([b"waits"], 0, timeout_s=60)
    linger(one, 0.3)
    assert member.driver.group_status(0)["handed_through"] == handed == len(bodies)
    member.driver.resume(0, handed)
    one.until(lambda: member.values[0][-1] == b"waits")
