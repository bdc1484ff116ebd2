"""One node: values in, entries out, restarts, limits, the end."""

import ctypes
import os
import resource
import subprocess
import sys
import threading
import time

import pytest
from driver_lab import US, Lab, entries

from phx._core.driver import (
    ERROR_BIND,
    ERROR_CLOSED,
    ERROR_FORKED,
    ERROR_JOURNAL,
    ERROR_OPTION,
    ERROR_OVERLOADED,
    ERROR_TIMED_OUT,
    ERROR_TOO_LARGE,
    ERROR_UNKNOWN_GROUP,
    EVENT_FAILED,
    EVENT_POISONED,
    EVENT_PRESSED,
    Driver,
    DriverError,
)


@pytest.fixture
def alone(lab) -> Lab:
    one = lab(1, groups=3)
    one.start()
    one.wait_led([0, 1, 2])
    return one


def driver(tmp_path, **changes) -> Driver:
    given = {
        "cluster": 1, "node": 1, "store_id": b"s" * 16, "members": [(1, "127.0.0.1", 0)],
        "bind": None, "groups": [0], "settled": {}, "journal_dir": str(tmp_path / "journal"),
        "create": True, "options": {},
    }  # fmt: skip
    return Driver(**{**given, **changes})


def error(code: int):
    return pytest.raises(DriverError, check=lambda raised: raised.code == code)


# --- values


def test_values_come_back_in_order_and_once(alone):
    values = [b"value %d" % number for number in range(5_000)]
    member = alone.members[1]
    first = member.submit(values[:1])
    assert first == 1
    assert member.submit(values[1:4_000]) == 2
    assert member.submit(values[4_000:]) == 4_001
    alone.until(lambda: len(member.values[0]) == 5_000)
    assert member.values[0] == values
    assert member.own[0] == set(range(1, 5_001))
    assert member.instances[0] == sorted(member.instances[0])


def test_groups_have_sequences_and_logs_of_their_own(alone):
    member = alone.members[1]
    for group in (0, 1, 2):
        assert member.submit([b"to group %d" % group], group) == 1
    alone.until(lambda: all(len(member.values[group]) == 1 for group in (0, 1, 2)))
    assert [member.values[group] for group in (0, 1, 2)] == [
        [b"to group 0"], [b"to group 1"], [b"to group 2"],
    ]  # fmt: skip


def test_values_of_all_sizes_survive_the_blocks_they_are_packed_in(alone):
    sizes = [0, 1, 7, 100, 4_000, 16_383, 16_384, 60_000, 65_528, 65_536, 200_000, 262_144]
    values = [os.urandom(size) for size in sizes for _ in range(3)]
    member = alone.members[1]
    for value in values[::-1]:
        member.submit([value])
    member.submit(values)
    alone.until(lambda: len(member.values[0]) == 2 * len(values))
    assert member.values[0] == values[::-1] + values


def test_an_empty_submission_takes_no_sequence(alone):
    member = alone.members[1]
    assert member.submit([]) == 1
    assert member.submit([b"x"]) == 1
    assert member.submit([b"x"]) == 2


def test_a_restart_delivers_the_whole_log_again_under_a_new_incarnation(alone):
    member = alone.members[1]
    values = [b"%d" % number for number in range(300)]
    alone.commit(values, 1)
    assert member.driver.incarnation == 1
    for incarnation in (2, 3):
        alone.stop()
        alone.start()
        assert member.driver.incarnation == incarnation
        alone.wait_led()
        alone.commit([b"of incarnation %d" % incarnation], 1)
        values.append(b"of incarnation %d" % incarnation)
        assert member.values[0] == values
        assert len(member.own[0]) == 1, "older incarnations are nobody's callers"


def test_read_tells_body_not_chosen_settled_and_unknown_group(alone):
    member = alone.members[1]
    alone.commit([b"the value"], 1)
    body = member.driver.read(0, 1)
    assert isinstance(body, bytes)
    assert b"the value" in body
    assert member.driver.read(0, 2) == 0
    assert member.driver.read(99, 1) == 2
    member.driver.settle_now()
    alone.until(lambda: not member.driver.status()["settle"]["pending"])
    assert member.driver.read(0, 1) == 1
    assert member.kept[0] == [body]


# --- limits


def test_wrong_values_and_groups_are_refused_and_take_nothing(alone):
    member = alone.members[1]
    with error(ERROR_UNKNOWN_GROUP):
        member.submit([b"x"], group=7)
    with error(ERROR_TOO_LARGE):
        member.submit([b"x", bytes((1 << 18) + 1)])
    with pytest.raises(TypeError):
        member.submit([bytearray(b"x")])
    assert member.submit([b"first"]) == 1
    alone.until(lambda: member.values[0] == [b"first"])


def test_a_full_submission_queue_refuses(lab):
    one = lab(1, pending_bytes_max=1 << 20)
    one.start()
    one.wait_led()
    member = one.members[1]
    taken, refused = [], 0
    for number in range(400):
        values = [b"%d/%d" % (number, part) + bytes(40_000) for part in range(20)]
        try:
            member.submit(values)
            taken += values
        except DriverError as problem:
            refused += problem.code == ERROR_OVERLOADED
        if refused > 5:
            break
    assert refused
    failed = set()

    def settled() -> bool:
        failed.update(
            seq for kind, _, _, first, count, _ in member.events if kind == EVENT_FAILED
            for seq in range(first, first + count)
        )  # fmt: skip
        return len(member.own[0]) + len(failed) >= len(taken)

    one.until(settled, 30)
    assert member.values[0] == [v for s, v in enumerate(taken, 1) if s not in failed]


def test_what_is_not_taken_is_bounded_and_read_again_from_the_journal(lab):
    one = lab(1, delivery_bytes_max=100_000, cache_bytes_max=100_000, settle_idle_us=60 * US)
    one.start()
    one.wait_led()
    member = one.members[1]
    values = [b"%d " % number + os.urandom(1_000) for number in range(2_000)]
    for at in range(0, 2_000, 100):
        member.submit(values[at : at + 100])
    end = time.monotonic() + 10
    while member.driver.group_status(0)["waiting_values"] and time.monotonic() < end:
        assert member.driver.status()["queues"]["handed_bytes"] <= 100_000 + (1 << 18)
        time.sleep(0.005)
    status = member.driver.group_status(0)
    assert status["waiting_values"] == 0
    assert status["handed_through"] < status["chosen_through"]
    member.pump(bytes_max=30_000)
    one.until(lambda: len(member.values[0]) == 2_000)
    assert member.values[0] == values


def test_consensus_goes_on_while_python_holds_the_gil(alone):
    member = alone.members[1]
    values = [b"%d" % number for number in range(20_000)]
    for at in range(0, len(values), 500):
        member.submit(values[at : at + 500])
    ctypes.PyDLL(None).usleep(1_000_000)
    assert member.driver.group_status(0)["waiting_values"] == 0
    alone.until(lambda: len(member.values[0]) == len(values))
    assert member.values[0] == values


def test_threads_are_two_whatever_the_number_of_groups(lab):
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = threads()
    one = lab(1, groups=200)
    one.start()
    one.wait_led(range(200))
    names = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as comm:
            names.add(comm.read().strip())
    assert threads() - before == 2 + 1  # and the store thread of this test
    assert {"phx-poll", "phx-journal"} <= names


def test_an_idle_node_sleeps(alone):
    member = alone.members[1]
    alone.commit([b"x"], 1)
    alone.until(lambda: bool(member.kept))  # the idle settle is over
    time.sleep(0.3)
    before = member.driver.status()
    time.sleep(1)
    after = member.driver.status()
    assert after["turns"] - before["turns"] < 40
    assert after["cpu_ns"]["poll"] - before["cpu_ns"]["poll"] < 20_000_000


# --- the store


def test_an_idle_node_settles_and_a_restart_loads_from_the_store(lab):
    one = lab(1, groups=2, settle_idle_us=100_000)
    one.start()
    one.wait_led([0, 1])
    member = one.members[1]
    values = [b"%d" % number for number in range(3_000)]
    for at in range(0, 3_000, 50):
        member.submit(values[at : at + 50], 0)
        member.submit(values[at : at + 50], 1)
    one.until(lambda: len(member.values[0]) == len(member.values[1]) == 3_000)
    chosen = member.driver.group_status(0)["chosen_through"]
    one.until(lambda: member.driver.group_status(0)["settled_through"] == chosen)
    one.until(lambda: not member.driver.status()["settle"]["pending"])
    one.stop()
    one.start()
    one.until(lambda: len(member.values[0]) == len(member.values[1]) == 3_000)
    assert member.values[0] == member.values[1] == values
    assert "load" in member.store.work
    one.wait_led([0, 1])
    one.commit([b"and on"], 1)
    assert member.values[0] == [*values, b"and on"]


def test_a_few_values_do_not_make_an_idle_node_write_every_promise_again(lab):
    one = lab(1, groups=1_000, settle_idle_us=50_000)
    one.start()
    one.wait_led(range(1_000))
    member = one.members[1]

    def settle(number: int) -> int:
        """A value, chosen and settled: the bytes of journal that this took."""
        before = member.driver.status()["journal"]["written_lsn"]
        one.commit([b"%d" % number], 1, 7)
        chosen = member.driver.group_status(7)["chosen_through"]
        one.until(lambda: member.driver.group_status(7)["settled_through"] == chosen)
        one.until(lambda: not member.driver.status()["settle"]["pending"])
        return member.driver.status()["journal"]["written_lsn"] - before

    settle(0)
    floor = member.driver.status()["journal"]["floor_lsn"]
    assert settle(1) < 2_000
    assert member.driver.status()["journal"]["floor_lsn"] == floor
    member.driver.settle_now()
    one.until(lambda: member.driver.status()["journal"]["floor_lsn"] > floor)
    assert settle(2) < 2_000
    one.stop()
    one.start()
    one.wait_led(range(1_000))
    one.until(lambda: len(member.values[7]) == 3)
    one.commit([b"3"], 1, 7)
    assert member.values[7] == [b"0", b"1", b"2", b"3"]


def test_busy_groups_are_those_with_something_left_to_do(lab):
    three = lab(3, groups=3)
    three.start(1)
    member = three.members[1]
    assert [row[:2] for row in member.driver.busy_groups()] == [(0, 0), (1, 0), (2, 0)]
    assert member.driver.status()["leading"] == 0
    three.start(2, 3)
    three.wait_led(range(3))
    three.until(lambda: not any(one.driver.busy_groups() for one in three.running()))
    three.until(lambda: sum(one.driver.status()["leading"] for one in three.running()) == 3)
    member.submit([b"x"], 2)
    end = time.monotonic() + 10
    while member.driver.group_status(2)["chosen_through"] == 0:  # and nobody applies it
        assert time.monotonic() < end
    ((group, leader, chosen_through, accepted_last),) = member.driver.busy_groups()
    assert (group, leader) == (2, three.led(2))
    assert chosen_through == accepted_last == 1
    three.until(lambda: not member.driver.busy_groups())


def test_the_journal_stays_short_while_values_are_settled(lab):
    one = lab(1, settle_idle_us=60 * US)
    one.start()
    one.wait_led()
    member = one.members[1]
    sent = 0
    for _ in range(60):
        values = [os.urandom(20_000) for _ in range(40)]
        member.submit(values)
        sent += len(values)
        one.until(lambda sent=sent: len(member.values[0]) == sent)
    journal = member.driver.status()["journal"]
    assert journal["bytes_written"] > 40 << 20
    assert journal["segments_live"] <= 12, (journal, member.driver.status()["settle"], member.lines)
    assert len(member.kept[0]) > 20
    assert member.driver.status()["journal"]["pressure"] == 0


def test_a_stuck_store_stops_new_values_and_nothing_else(lab):
    one = lab(1, journal_bytes_max=8 << 20, settle_bytes=2 << 20, pending_bytes_max=1 << 20)
    one.start()
    one.wait_led()
    member = one.members[1]
    member.store.hold.clear()
    values = [b"%d " % number + os.urandom(20_000) for number in range(600)]
    sent = 0

    def offer() -> None:
        nonlocal sent
        if sent < 600 and sent < len(member.values[0]) + 20:
            member.submit(values[sent : sent + 20], timeout_s=60)
            sent += 20

    def pressure() -> bool:
        offer()
        return member.driver.status()["journal"]["pressure"] == 1

    one.until(pressure)
    journal = member.driver.status()["journal"]
    assert journal["segments_live"] + journal["segments_free"] <= 8
    one.until(lambda: any(event[0] == EVENT_PRESSED for event in member.events))
    why = [event[1:4] for event in member.events if event[0] == EVENT_PRESSED]
    assert why[0][:2] == (1, 0), "by its own limit, and no error"
    assert why[0][2] >= 2 << 20
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        offer()
        member.pump(0.01)
    assert len(member.values[0]) < 600
    assert member.driver.status()["journal"]["segments_live"] < 7, "room is kept for promises"
    member.store.hold.set()
    one.until(lambda: offer() or len(member.values[0]) == 600, 30)
    assert member.values[0] == values
    one.until(lambda: not pressure())
    one.until(lambda: [e[1] for e in member.events if e[0] == EVENT_PRESSED][-1] == 0)


def test_a_floor_is_not_moved_over_more_than_there_is_room_to_write_again(lab):
    """What is accepted and not chosen is carried over before a floor makes room for it: all of it
    at once would stand in a full journal for ever."""
    three = lab(
        3, journal_bytes_max=32 << 20, window_bytes=64 << 20, window=4096, settle_idle_us=60 * US,
        batch_bytes_max=1 << 17, frame_bytes_max=1 << 18, pending_bytes_max=1 << 20,
        lease_us=4 * US,
    )  # fmt: skip
    three.start()
    three.wait_led()
    member = three.members[three.led()]
    first = [b"%d " % number + os.urandom(20_000) for number in range(10)]
    three.commit(first, member.node)
    others = three.members.keys() - {member.node}
    more = [b"%d " % number + os.urandom(20_000) for number in range(1000)]
    three.stop(*others)

    def taken(some: list[bytes]) -> bool:
        """Not while its queue is full: its thread may be in a sync that takes its time."""
        try:
            member.submit(some, timeout_s=120)
        except DriverError as error:
            if error.code != ERROR_OVERLOADED:
                raise
            return False
        return True

    for at in range(0, len(more), 40):
        three.until(lambda at=at: taken(more[at : at + 40]))
        three.pause(0.02)

    def more_than_half() -> bool:
        journal = member.driver.status()["journal"]
        return journal["durable_lsn"] - journal["floor_lsn"] > 18 << 20

    three.until(more_than_half, 30)
    member.driver.settle_now()
    three.until(lambda: not member.driver.status()["settle"]["pending"])
    three.until(lambda: member.driver.status()["journal"]["queued_bytes"] == 0)
    three.start(*others)
    three.until(lambda: len(member.values[0]) == len(first) + len(more), 60)
    assert sorted(member.values[0]) == sorted(first + more)


def test_a_store_that_fails_is_asked_again(lab):
    one = lab(1, settle_idle_us=50_000)
    member = one.members[1]
    plans = []
    member.of_store = lambda real: Refusing(real, plans)
    one.start()
    one.wait_led()
    one.commit([b"x"], 1)
    one.until(lambda: len(plans) >= 1)
    one.until(lambda: bool(member.kept.get(0)))
    assert member.kept[0] == [member.kept[0][0]]


class Refusing:
    """A driver whose first plan fails."""

    def __init__(self, real: Driver, plans: list) -> None:
        self.real = real
        self.plans = plans

    def __getattr__(self, name):
        return getattr(self.real, name)

    def store_work(self, timeout_us):
        work = self.real.store_work(timeout_us)
        if work and work[0] == "settle" and not self.plans:
            self.plans.append(len(work[1]))
            self.real.settle_failed(work[1])
            return None
        return work


def test_nonsense_from_the_store_is_not_believed(alone):
    member = alone.members[1]
    member.driver.loaded(0, 1, b"")
    member.driver.loaded(0, 5, entries(5, [b"never asked for"]))
    member.driver.supply(0, 1, 1, b"nonsense")
    member.driver.supply(9, 9, 1, entries(1, [b"x"]))
    alone.commit([b"still here"], 1)
    assert member.values[0] == [b"still here"]


def test_store_work_waits_no_longer_than_it_is_told(alone):
    started = time.monotonic()
    assert alone.members[1].driver.store_work(50_000) is None
    assert 0.04 < time.monotonic() - started < 2


def test_a_failed_write_poisons_the_node_loudly_and_loses_nothing(lab):
    one = lab(1)
    one.start()
    one.wait_led()
    member = one.members[1]
    one.commit([b"safe"], 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # EFBIG: the disk fails
    try:
        member.submit([b"too late"], timeout_s=1)
        one.until(lambda: any(event[0] == EVENT_POISONED for event in member.events))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert any("the journal failed" in line for line in member.lines)
    assert member.driver.status()["journal"]["poisoned"]
    member.submit([b"refused"], timeout_s=1)
    failed: set[int] = set()

    def told() -> bool:
        for kind, _, _, first, count, _ in member.events:
            failed.update(range(first, first + count) if kind == EVENT_FAILED else ())
        return {2, 3} <= failed

    one.until(told)
    assert member.values[0] == [b"safe"]
    one.stop()
    one.start()
    one.wait_led()
    one.commit([b"well again"], 1)
    assert member.values[0][0] == b"safe"
    assert member.values[0][-1] == b"well again"


# --- life


def test_stop_is_idempotent_and_everything_says_closed_afterwards(alone):
    member = alone.members[1]
    alone.commit([b"x"], 1)
    taken = member.driver
    alone.stop()
    taken.stop(US)
    for call in (
        lambda: taken.submit(0, 0, [b"x"], 0), taken.fileno, taken.events, taken.status,
        lambda: taken.take(1), lambda: taken.read(0, 1), taken.resign, taken.settle_now,
        lambda: taken.applied(0, 1), lambda: taken.group_status(0), taken.start,
    ):  # fmt: skip
        with error(ERROR_CLOSED):
            call()
    assert taken.store_work(0) == ("closing",)
    assert taken.messages() is not None


def stopped_at_once(one: Driver) -> DriverError | None:
    try:
        one.stop(0)
    except DriverError as error:
        return error
    return None


def test_a_stop_that_takes_too_long_can_be_repeated(no_leaks, tmp_path):
    for attempt in range(50):  # it may be quick all the same
        one = driver(tmp_path, journal_dir=str(tmp_path / f"journal{attempt}"))
        one.start()
        raised = stopped_at_once(one)
        if raised is not None:
            break
    assert raised is not None
    assert raised.code == ERROR_TIMED_OUT
    with error(ERROR_CLOSED):
        while True:  # the poll thread closes the door at the end of its turn
            one.submit(0, 0, [b"x"], 0)
    one.stop(5 * US)
    one.stop(5 * US)


@pytest.mark.processes
def test_leaving_the_interpreter_without_stop_does_no_harm(tmp_path):
    program = (
        "import sys, threading\n"
        "from phx._core.driver import Driver\n"
        "one = Driver(cluster=1, node=1, store_id=b's' * 16, members=[(1, '127.0.0.1', 0)],\n"
        "             bind=None, groups=[0], settled={}, journal_dir=sys.argv[1], create=True,\n"
        "             options={})\n"
        "one.start()\n"
        "one.submit(0, 0, [b'x'] * 100, Driver.now_us() + 1_000_000)\n"
        "threading.Thread(target=one.store_work, args=(60_000_000,), daemon=True).start()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "journal")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_stop_frees_what_nobody_took(alone):
    member = alone.members[1]
    member.submit([os.urandom(1000) for _ in range(1_000)])
    end = time.monotonic() + 5
    while member.driver.group_status(0)["waiting_values"]:
        assert time.monotonic() < end
    # Not taken; no_leaks sees that the bodies are gone.


def test_a_stop_wakes_whoever_waits_for_store_work(no_leaks, tmp_path):
    one = driver(tmp_path)
    one.start()
    found = []
    waiter = threading.Thread(target=lambda: found.append(one.store_work(60 * US)))
    waiter.start()
    time.sleep(0.05)
    one.stop(5 * US)
    waiter.join(5)
    assert found == [("closing",)]


def test_drivers_that_were_never_started_or_never_stopped_are_freed(no_leaks, tmp_path):
    never = driver(tmp_path)
    never.stop(US)
    del never
    also = driver(tmp_path)
    del also
    running = driver(tmp_path)
    running.start()
    running.submit(0, 0, [b"x"] * 100, Driver.now_us() + US)
    del running


def test_a_failed_start_leaves_nothing_behind(no_leaks, tmp_path):
    first = driver(tmp_path)
    first.start()
    try:
        second = driver(tmp_path)
        with error(ERROR_JOURNAL + 1):  # the folder is in use
            second.start()
        with error(ERROR_BIND):
            driver(
                tmp_path, journal_dir=str(tmp_path / "b"), bind=("127.0.0.1", first.port)
            ).start()
    finally:
        first.stop(5 * US)
    with error(ERROR_JOURNAL + 8):  # there is a journal already
        driver(tmp_path).start()
    with error(ERROR_JOURNAL + 9):  # there is none
        driver(tmp_path, journal_dir=str(tmp_path / "none"), create=False).start()
    with error(ERROR_JOURNAL + 3):  # of another node
        driver(tmp_path, node=2, members=[(2, "127.0.0.1", 0)], create=False).start()
    again = driver(tmp_path, create=False)
    again.start()
    assert again.incarnation == 2
    again.stop(5 * US)


@pytest.mark.parametrize(
    "wrong",
    [
        {"options": {"no_such_option": 1}},
        {"options": {"window": -1}},
        {"options": {"window": "many"}},
        {"members": []},
        {"members": [(2, "127.0.0.1", 0)]},
        {"members": [(1, "127.0.0.1", 0), (1, "127.0.0.1", 1)]},
        {"members": [(1, "localhost", 0)]},
        {"members": [(1, "127.0.0.1", 70_000)]},
        {"members": [(1, "", 0)]},
        {"store_id": b"short"},
    ],
    ids=str,
)
def test_impossible_arguments_are_refused_before_anything_is_opened(tmp_path, wrong):
    with error(ERROR_OPTION):
        driver(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_it_listens_on_ipv6_too(no_leaks, tmp_path):
    one = driver(tmp_path, bind=("::1", 0))
    try:
        one.start()
    except DriverError as problem:
        pytest.skip(f"no IPv6 here: {problem.message}")
    assert one.port
    one.stop(5 * US)


def test_a_forked_child_has_no_driver_and_does_no_harm(alone):
    member = alone.members[1]
    alone.commit([b"before"], 1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            member.driver.after_fork_in_child()
            try:
                member.driver.submit(0, 0, [b"x"], 0)
            except DriverError as problem:
                code = 0 if problem.code == ERROR_FORKED else 2
            member.driver.stop(US)
            if member.driver.store_work(US) != ("closing",):
                code = 3
            del member.driver, member.store
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    alone.commit([b"after"], 1)
    assert member.values[0] == [b"before", b"after"]


def test_signals_reach_python_only(alone):
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/status") as status:
            fields = dict(line.split(":", 1) for line in status if ":" in line)
        if fields["Name"].strip() == "phx-poll":
            assert int(fields["SigBlk"], 16) & 0x7FFF == 0x7FFF & ~(1 << 8) & ~(1 << 18)
            return
    raise AssertionError("no poll thread")
