"""The journal thread: batches, order, fullness, failure, the way round it."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from journal_lab import FIRST_LSN, SEGMENT, accept, floor, replayed

from phx._core.journal_door import Journal, JournalFailure, Writer
from phx._core.memdisk import MemoryDisk

pytestmark = pytest.mark.usefixtures("no_leaks")

BIG = b"\x77" * 1500
SLOW_US = 20_000


def wait_for(what: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.001)


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


@pytest.fixture
def journal(disk: MemoryDisk) -> Journal:
    return Journal(disk, create=True, journal_bytes_max=4 * SEGMENT)


@pytest.fixture
def writer(journal: Journal) -> Iterator[Writer]:
    writer = Writer(journal)
    yield writer
    writer.stop()


def test_what_is_pushed_becomes_durable_and_is_told(disk, journal, writer) -> None:
    assert writer.durable_lsn == FIRST_LSN
    end = writer.push(FIRST_LSN, accept(1))
    wait_for(lambda: writer.durable_lsn == end)
    wait_for(lambda: writer.notices == 1)
    assert writer.queued_bytes == 0
    writer.stop()
    disk.power_loss(1)
    assert [lsn for lsn, _ in replayed(Journal(disk))] == [FIRST_LSN]


def test_blocks_collect_while_a_sync_is_in_flight(disk, journal, writer) -> None:
    disk.set_sync_us(SLOW_US)
    before = disk.syncs
    lsn = writer.push(FIRST_LSN, accept(0))
    wait_for(lambda: not writer.idle)
    for index in range(1, 50):
        lsn = writer.push(lsn, accept(index))
    wait_for(lambda: writer.durable_lsn == lsn)
    assert disk.syncs - before <= 3
    assert writer.notices == disk.syncs - before
    assert [journal.read(FIRST_LSN + 32 * index)[2] for index in range(50)] == list(range(50))


def test_durable_is_never_told_before_the_sync_has_returned(disk, journal, writer) -> None:
    disk.set_sync_us(SLOW_US)
    for index in range(5):
        start = time.monotonic()
        end = writer.push(journal.next_lsn, accept(index))
        wait_for(lambda end=end: writer.durable_lsn == end)
        assert time.monotonic() - start >= SLOW_US / 1e6
        copy = disk.copy()
        copy.power_loss(index)
        assert len(replayed(Journal(copy))) == index + 1


def test_a_lazy_block_is_written_and_waits_for_the_next_sync(disk, journal, writer) -> None:
    before = disk.syncs
    lazy = writer.push(FIRST_LSN, accept(1), sync=False)
    wait_for(lambda: writer.idle)
    assert journal.read(FIRST_LSN)[2] == 1
    assert (disk.syncs, writer.durable_lsn, writer.notices) == (before, FIRST_LSN, 0)
    end = writer.push(lazy, accept(2))
    wait_for(lambda: writer.durable_lsn == end)
    assert disk.syncs == before + 1


def test_what_was_only_written_is_synced_at_a_stop(disk, journal, writer) -> None:
    before = disk.syncs
    end = writer.push(FIRST_LSN, accept(1), sync=False, write=True)
    wait_for(lambda: writer.notices == 1)
    assert (disk.syncs, writer.durable_lsn) == (before, FIRST_LSN)
    writer.stop()
    assert (disk.syncs, writer.durable_lsn, writer.error) == (before + 1, end, None)
    disk.power_loss(1)
    assert [lsn for lsn, _ in replayed(Journal(disk))] == [FIRST_LSN]


def test_an_idle_writer_lets_the_caller_do_it(disk, journal, writer) -> None:
    assert writer.push(FIRST_LSN, accept(1), inline=True) is True
    assert writer.durable_lsn == journal.next_lsn
    assert (writer.inlined, writer.notices) == (1, 0)
    end = writer.push(journal.next_lsn, accept(2))
    wait_for(lambda: writer.durable_lsn == end)
    wait_for(lambda: writer.idle)
    assert writer.push(end, accept(3), inline=True) is True
    assert len(journal.read_span(FIRST_LSN, 1000)) == 96


def test_a_busy_writer_does_not(disk, journal, writer) -> None:
    disk.set_sync_us(SLOW_US)
    end = writer.push(FIRST_LSN, accept(1))
    wait_for(lambda: not writer.idle)
    assert writer.push(end, accept(2), inline=True) is False
    assert writer.inlined == 0
    last = writer.push(end, accept(2))
    wait_for(lambda: writer.durable_lsn == last)


def test_many_blocks_by_both_ways_stay_in_order(disk, journal) -> None:
    journal.close()
    journal = Journal(disk)
    writer = Writer(journal)
    lsn = journal.next_lsn
    for index in range(3000):
        record = accept(index, index.to_bytes(4, "little") * (index % 7))
        if index % 5 or not writer.push(lsn, record, inline=True):
            writer.push(lsn, record, sync=index % 3 == 0)
        lsn += len(record)
    writer.push(lsn, accept(3000))
    writer.stop()
    assert [index for *_, index, _, _ in Journal(disk.copy()).replayed] == list(range(3001))
    assert writer.durable_lsn == lsn + 32
    del writer


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("kind", ["write", "sync"])
def test_a_failure_ends_it_for_ever(disk, journal, writer, kind, inline) -> None:
    good = writer.push(FIRST_LSN, accept(1))
    wait_for(lambda: writer.durable_lsn == good)
    wait_for(lambda: writer.idle)
    notices = writer.notices
    disk.fail(kind)
    if inline:
        with pytest.raises(JournalFailure, match="io"):
            writer.push(good, accept(2), inline=True)
        with pytest.raises(JournalFailure, match="io"):
            writer.push(good, accept(2), inline=True)
    else:
        writer.push(good, accept(2))
        wait_for(lambda: writer.error is not None)
        wait_for(lambda: writer.notices == notices + 1)
    operations = disk.operations
    writer.push(good, accept(2))
    writer.push(good + 32, accept(3))
    writer.stop()
    assert writer.error == "io"
    assert journal.poisoned
    assert writer.durable_lsn == good
    assert writer.queued_bytes == 0
    assert disk.operations == operations


def push_big(writer: Writer, lsn: int, count: int) -> int:
    for index in range(count):
        lsn = writer.push(lsn, accept(index, BIG))
    return lsn


def test_a_full_journal_holds_the_blocks_until_there_is_room(disk, journal, writer) -> None:
    lsn = push_big(writer, FIRST_LSN, 6)
    wait_for(lambda: writer.durable_lsn == lsn)
    assert not writer.full
    more = push_big(writer, lsn, 2)
    wait_for(lambda: writer.full)
    wait_for(lambda: writer.queued_bytes != 0 and writer.durable_lsn == lsn)
    assert writer.error is None
    assert not writer.idle
    notices = writer.notices
    assert writer.push(more, accept(9), inline=True) is False
    writer.retry()  # nothing has changed
    time.sleep(0.02)
    assert writer.full
    assert writer.notices == notices
    # What stands before an urgent block is as urgent as it is: all of it uses the reserve.
    end = writer.push(more, floor(journal.segments()[2][2]), urgent=True)
    wait_for(lambda: writer.durable_lsn == end)
    assert not writer.full
    blocked = push_big(writer, end, 1)
    wait_for(lambda: writer.full)
    assert journal.recycle(end) == 2
    writer.retry()
    wait_for(lambda: writer.durable_lsn == blocked)
    assert not writer.full


def test_what_needs_a_new_segment_is_not_for_the_caller(disk, journal, writer) -> None:
    lsn = FIRST_LSN
    for index in range(2):
        assert writer.push(lsn, accept(index, BIG), inline=True) is True
        lsn += len(accept(index, BIG))
    operations = disk.operations
    assert writer.push(lsn, accept(2, BIG), inline=True) is False
    assert disk.operations == operations
    assert writer.push(lsn, accept(2), inline=True) is True


def test_nor_is_the_first_block_after_an_open(disk, journal) -> None:
    journal.close()
    again = Journal(disk)
    writer = Writer(again)
    assert writer.push(again.next_lsn, accept(1), inline=True) is False
    writer.stop()
    del writer


def test_a_full_disk_that_is_cleared_is_found_out_by_and_by(disk, journal, writer) -> None:
    disk.set_bytes_max(SEGMENT)
    lsn = push_big(writer, FIRST_LSN, 3)
    wait_for(lambda: writer.full)
    disk.set_bytes_max(0)
    wait_for(lambda: writer.durable_lsn == lsn)
    assert not writer.full


def test_stop_writes_what_is_queued(disk, journal) -> None:
    disk.set_sync_us(SLOW_US)
    writer = Writer(journal)
    lsn = FIRST_LSN
    for index in range(50):
        lsn = writer.push(lsn, accept(index))
    writer.stop()
    writer.stop()
    assert writer.durable_lsn == lsn
    writer.push(lsn, accept(99))  # too late: dropped
    assert writer.queued_bytes == 0
    assert journal.next_lsn == lsn
    del writer


def test_stop_gives_up_what_finds_the_journal_full(disk, journal) -> None:
    writer = Writer(journal)
    lsn = push_big(writer, FIRST_LSN, 9)
    wait_for(lambda: writer.full)
    writer.stop()
    assert writer.queued_bytes == 0
    assert writer.durable_lsn < lsn


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")
def test_all_signals_are_blocked_in_the_journal_thread_and_in_no_other(journal) -> None:
    def blocked() -> dict[str, int]:
        masks = {}
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/status") as status:
                line = next(line for line in status if line.startswith("SigBlk"))
            masks[task] = int(line.split()[1], 16)
        return masks

    before = blocked()
    writer = Writer(journal)
    end = writer.push(FIRST_LSN, accept(1))
    wait_for(lambda: writer.durable_lsn == end)  # a thread that begins blocks all for a moment
    after = blocked()
    writer.stop()
    (made,) = set(after) - set(before)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD):
        assert after[made] & (1 << (number - 1)), number
    assert {task: after[task] for task in before} == before


def test_the_thread_needs_no_gil(disk, journal, writer) -> None:
    """Everything is durable by the time a call that holds the GIL returns."""
    import ctypes

    lsn = FIRST_LSN
    for index in range(100):
        lsn = writer.push(lsn, accept(index))
    ctypes.PyDLL(None).usleep(300_000)
    assert writer.durable_lsn == lsn


def test_timing_helpers_measure_real_work_and_leave_a_sound_journal(tmp_path) -> None:
    journal = Journal(tmp_path / "journal", create=True, segment_bytes=1 << 16)
    syncs, ns = journal.time_appends(0.1, 100, 100, 2)
    assert syncs > 0
    assert ns >= 100_000_000
    writer = Writer(journal)
    for inline in (False, True):
        done, ns = writer.time_round_trips(0.05, 100, inline)
        assert done > 0
    writer.stop()
    del writer
    journal.close()
    Journal(tmp_path / "journal", segment_bytes=1 << 16).close()
