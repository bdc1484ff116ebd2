"""Crashes of the process and of the power, at every operation on the disk and in any order.

The promise: all that was acknowledged, and is not below a floor, is there again, byte by byte,
once; nothing is there that was not appended; and no crash ever looks like damage.
"""

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_lab import FIRST_LSN, SEGMENT, Log, accept, expect

from phx._core.journal_door import JournalFailure
from phx._core.memdisk import MemoryDisk

pytestmark = pytest.mark.usefixtures("no_leaks")

OPTIONS = {"journal_bytes_max": 6 * SEGMENT, "free_segments_max": 2}


def story(log: Log) -> None:
    """A little of everything: rolls, spares, floors, reuse, removal, an unsynced end."""
    log.open(create=True)
    assert log.journal is not None
    log.append([8, 1200])
    log.sync()
    log.journal.prepare_spare()
    log.append([1500, 1500, 800])  # over a segment's end
    log.sync()
    log.append([1000])
    log.retire(log.journal.segments()[-1][2])
    log.append([1500, 1500])
    log.append([1500])
    log.sync()
    log.retire(log.journal.next_lsn)
    while log.journal.prepare_spare():
        pass
    log.append([1400, 1400, 700], urgent=True)  # in a used segment again
    log.sync()
    log.append([300])


def run_until_crash(log: Log, steps: Callable[[Log], None]) -> bool:
    """Whether the crash that was planned cut the steps short."""
    try:
        steps(log)
    except JournalFailure as failure:
        expect(failure, "io", "poisoned", "full")
        return log.disk.dead
    return log.disk.dead


def crash(log: Log, seed: int | None) -> None:
    log.close()
    if seed is None:
        log.disk.process_crash()
    else:
        log.disk.power_loss(seed)


def go_on(log: Log) -> None:
    """Life after a crash: appending works, and is kept."""
    assert log.journal is not None
    log.append([100, 1500], urgent=True)
    log.sync()
    log.close()
    log.disk.power_loss(77)
    log.reopen()


SEEDS = [None, 1, 2, 3]
IDS = ["process", "power1", "power2", "power3"]


@pytest.mark.parametrize("atom", [512, 8])
@pytest.mark.parametrize("seed", SEEDS, ids=IDS)
def test_a_crash_at_every_operation(seed: int | None, atom: int) -> None:
    operation = 0
    while True:
        operation += 1
        log = Log(MemoryDisk(atom=atom, seed=operation), OPTIONS)
        log.disk.crash_at(operation)
        if not run_until_crash(log, story):
            break
        crash(log, seed)
        log.reopen()
        go_on(log)
        log.close()
    assert operation > 50, "the story is too short"


@pytest.mark.parametrize("second", SEEDS, ids=IDS)
@pytest.mark.parametrize("first", SEEDS, ids=IDS)
def test_a_crash_at_every_operation_of_the_start_after_a_crash(
    first: int | None, second: int | None
) -> None:
    def start(log: Log) -> None:
        log.reopen()
        log.append([200], urgent=True)
        log.sync()
        assert log.journal is not None
        log.retire(log.journal.segments()[-1][2])

    deepest = 0
    for operation in range(3, 200, 3):
        once = Log(MemoryDisk(seed=operation), OPTIONS)
        once.disk.crash_at(operation)
        if not run_until_crash(once, story):
            break
        crash(once, first)
        later = 0
        while True:
            later += 1
            log = Log(once.disk.copy(), OPTIONS)
            log.records, log.durable, log.highest = list(once.records), once.durable, once.highest
            log.made, log.count = once.made, once.count
            log.disk.crash_at(later)
            if not run_until_crash(log, start):
                log.close()
                break
            crash(log, second)
            log.reopen()
            go_on(log)
            log.close()
        deepest = max(deepest, later)
    assert deepest > 10


@pytest.mark.parametrize("kind", ["write", "sync", "make", "remove", "sync_folder"])
def test_a_failure_at_every_operation_then_a_crash(kind: str) -> None:
    after, seen = 0, 0
    while True:
        after += 1
        log = Log(MemoryDisk(seed=after), OPTIONS)
        log.disk.fail(kind, after=after)
        try:
            story(log)
            failed = False
        except JournalFailure as failure:
            failed = True
            expect(failure, "io", "full")
        if not failed and after > 40:
            break
        seen += failed
        crash(log, after if after % 3 else None)
        log.reopen()
        crash(log, after)  # what was handed on after a failed sync has to be durable
        log.reopen()
        go_on(log)
        log.close()
    assert seen > 0 or kind in ("remove",)


# --- any order

SIZES = st.lists(st.integers(0, 2000), max_size=4)
CALLS = st.one_of(
    st.tuples(st.just("append"), SIZES),
    st.tuples(st.just("append"), SIZES),
    st.tuples(st.just("sync")),
    st.tuples(st.just("sync")),
    st.tuples(st.just("retire"), st.floats(0, 1)),
    st.tuples(st.just("spare")),
    st.tuples(st.just("fail"), st.sampled_from(["write", "sync"]), st.integers(1, 5)),
    st.tuples(st.just("crash at"), st.integers(1, 12)),
    st.tuples(st.just("process crash")),
    st.tuples(st.just("power loss"), st.integers(0, 2**32)),
    st.tuples(st.just("reopen")),
)


def carry_out(log: Log, call: tuple[object, ...]) -> None:
    assert log.journal is not None
    match call:
        case ("append", list(sizes)):
            log.append(sizes)
        case ("sync",):
            log.sync()
        case ("retire", float(part)):
            low = log.records[0][0] if log.records else FIRST_LSN
            wanted = low + int((log.durable - low) * part) // 8 * 8
            log.retire(max(wanted, low))
        case ("spare",):
            log.journal.prepare_spare()
        case ("fail", str(kind), int(after)):
            log.disk.fail(kind, after=after)
        case ("crash at", int(operation)):
            log.disk.crash_at(operation)


@settings(max_examples=400)
@given(
    calls=st.lists(CALLS, max_size=40),
    atom=st.sampled_from([8, 512, 4096]),
    seed=st.integers(0, 2**32),
)
def test_whatever_happens_what_was_acknowledged_is_there(
    calls: list[tuple[object, ...]], atom: int, seed: int
) -> None:
    log = Log(MemoryDisk(atom=atom, seed=seed), OPTIONS)
    log.open(create=True)
    for call in [*calls, ("power loss", seed), ("reopen",)]:
        try:
            carry_out(log, call)
        except JournalFailure as failure:
            expect(failure, "io", "poisoned", "full")
        match call:
            case ("process crash",):
                crash(log, None)
            case ("power loss", int(dice)):
                crash(log, dice)
            case ("reopen",):
                log.close()
                if log.disk.dead:  # a planned crash is a crash of the machine
                    log.disk.power_loss(seed)
            case _:
                continue
        try:
            log.reopen()
        except JournalFailure as failure:
            expect(failure, "io")  # a fault that was planned hit the opening
            log.disk.process_crash()
            log.reopen()
    log.close()


@settings(max_examples=100)
@given(calls=st.lists(CALLS, max_size=25), seed=st.integers(0, 2**32))
def test_the_same_calls_write_the_same_bytes(calls: list[tuple[object, ...]], seed: int) -> None:
    def run() -> tuple[dict[str, bytes], int]:
        log = Log(MemoryDisk(seed=seed), OPTIONS)
        log.open(create=True)
        for call in calls:
            with contextlib.suppress(JournalFailure):
                carry_out(log, call)
        log.close()
        return {name: log.disk.content(name) for name in log.disk.names()}, log.disk.operations

    assert run() == run()


def test_positions_of_records_survive_everything() -> None:
    """A position stays the address of the same record for as long as it is kept."""
    log = Log(MemoryDisk(), OPTIONS)
    log.open(create=True)
    for dice in range(30):
        log.append([100, 700, 0])
        log.sync()
        assert log.journal is not None
        if dice % 4 == 3:
            log.retire(log.journal.segments()[-1][2])
        low = log.journal.floor_lsn
        for lsn, record in log.records:
            if lsn >= low:
                kind, group, index, ballot, body = log.journal.read(lsn)
                if kind == 2:
                    assert accept(index, body, group=group, ballot=ballot) == record
        crash(log, dice)
        log.reopen()
    log.close()
