"""Appending, syncing, rolling, reading, fullness, failures."""

import errno
import gc
import operator
import threading
import time
from pathlib import Path

import pytest
from journal_lab import (
    FIRST_LSN,
    SEGMENT,
    accept,
    expect,
    floor,
    mark,
    open_code,
    replayed,
    split,
)

from phx._core.codec import allocations_live
from phx._core.journal_door import Journal, JournalFailure
from phx._core.memdisk import MemoryDisk

pytestmark = pytest.mark.usefixtures("no_leaks")

BIG = b"\x77" * 1500  # two such records fill a segment
STRIDE = len(accept(0, BIG))


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


@pytest.fixture
def journal(disk: MemoryDisk) -> Journal:
    return Journal(disk, create=True)


def code_of(failure: pytest.ExceptionInfo[JournalFailure]) -> str:
    return failure.value.code


def commit(journal: Journal, records: bytes) -> None:
    journal.append(records)
    journal.sync()


# --- create and open


def test_what_was_appended_is_replayed_in_order_with_its_positions(disk, journal) -> None:
    records = [accept(index, bytes([index]) * (index * 7)) for index in range(200)]
    positions = [journal.append(record) for record in records]
    assert positions[0] == FIRST_LSN
    assert positions[1:] == [p + len(r) for p, r in zip(positions[:-1], records[:-1], strict=True)]
    journal.close()
    disk.process_crash()
    again = Journal(disk)
    assert replayed(again) == list(zip(positions, records, strict=True))
    assert again.counters()["replayed_records"] == 200


def test_positions_go_on_above_everything_seen_and_in_a_new_segment(disk, journal) -> None:
    journal.append(accept(1))
    journal.close()
    again = Journal(disk)
    assert again.next_lsn == FIRST_LSN + SEGMENT - 4096
    first = again.append(accept(2))
    assert [segment[1] for segment in again.segments()] == [1, 2]
    again.close()
    third = Journal(disk)
    assert [lsn for lsn, *_ in third.replayed] == [FIRST_LSN, first]
    assert third.next_lsn == first + SEGMENT - 4096


def test_opening_without_appending_uses_nothing_up(disk, journal) -> None:
    journal.append(accept(1))
    journal.close()
    for _ in range(5):
        again = Journal(disk)
        assert (again.next_lsn, len(again.replayed)) == (FIRST_LSN + SEGMENT - 4096, 1)
        again.close()
    assert len(disk.names()) == 1


def test_create_refuses_a_journal_and_open_refuses_nothing(disk, journal, tmp_path) -> None:
    journal.close()
    assert open_code(disk, create=True) == "exists"
    assert open_code(MemoryDisk()) == "missing"
    with pytest.raises(JournalFailure, match="missing"):
        Journal(tmp_path)


def test_create_again_after_a_create_that_was_cut_short() -> None:
    for operation in range(1, 9):
        disk = MemoryDisk()
        disk.crash_at(operation)
        try:
            Journal(disk, create=True).close()
            break
        except JournalFailure:
            disk.power_loss(operation)
        if open_code(disk) == "missing":
            Journal(disk, create=True).close()
        assert open_code(disk) == ""
    else:
        pytest.fail("a create takes fewer operations")


def test_files_with_other_names_are_left_alone(disk, journal) -> None:
    journal.close()
    others = ["00000001.segmenT", "0000000g.segment", "LOCK", "1.segment", "00000001.segment.old"]
    for name in others:
        disk.put(name, b"mine")
    Journal(disk).close()
    assert disk.names() == sorted(["00000001.segment", *others])


def test_impossible_sizes_are_refused() -> None:
    for options in (
        {"segment_bytes": 4096},
        {"segment_bytes": 8191},
        {"segment_bytes": 8192, "body_bytes_max": 4096},
        {"segment_bytes": 8192, "journal_bytes_max": 3 * 8192 - 1},
        {"segment_bytes": 1 << 40, "journal_bytes_max": 1 << 50},
    ):
        assert open_code(MemoryDisk(), create=True, **options) == "invalid", options


def test_another_segment_size_is_taken_for_new_segments_only(disk, journal) -> None:
    first = journal.append(accept(1, BIG))
    journal.prepare_spare()
    journal.close()
    again = Journal(disk, segment_bytes=16384)
    assert again.free_numbers() == [], "a spare of the old size would be overrun"
    second = again.append(accept(2, BIG) + accept(3, BIG) + accept(4, BIG))
    assert len(again.segments()) == 2
    assert [again.read(lsn)[2] for lsn in (first, second, second + STRIDE)] == [1, 2, 3]
    again.close()
    third = Journal(disk, segment_bytes=16384)
    assert len(third.replayed) == 4
    assert third.pressure()[0] == 8192 + 16384


# --- appending


def test_what_is_not_whole_records_at_the_next_position_is_refused(disk, journal) -> None:
    whole = accept(1, b"12345678")
    for records, lsn in (
        (b"", FIRST_LSN),
        (whole[:-1], FIRST_LSN),
        (whole, FIRST_LSN + 8),
        (whole, FIRST_LSN - 8),
    ):
        with pytest.raises(JournalFailure) as failure:
            journal.append(records, lsn=lsn)
        assert code_of(failure) == "invalid"
    assert not journal.poisoned
    with pytest.raises(JournalFailure) as failure:
        journal.append(whole + whole[:-8])  # the stream has a hole now, whatever comes next
    assert code_of(failure) == "invalid"
    assert journal.poisoned


def test_a_body_over_the_limit_is_not_taken(disk) -> None:
    journal = Journal(disk, create=True, body_bytes_max=16)
    journal.append(accept(1, bytes(16)))
    with pytest.raises(JournalFailure) as failure:
        journal.append(accept(2, bytes(17)))
    assert code_of(failure) == "invalid"


def test_a_limit_that_shrinks_does_not_turn_old_records_into_damage(disk, journal) -> None:
    journal.append(accept(1, BIG))
    journal.close()
    assert len(Journal(disk, body_bytes_max=16).replayed) == 1


def test_a_block_that_others_hold_is_not_changed(disk, journal) -> None:
    records = [accept(index, BIG) for index in range(9)]
    lsn = journal.append(b"".join(records[:1]), shared=True)
    journal.append(b"".join(records[1:]), shared=True)  # over several segments
    assert [journal.read(lsn + at * STRIDE)[2] for at in range(9)] == list(range(9))
    journal.close()
    assert [record for _, record in replayed(Journal(disk))] == records


def test_a_block_is_split_at_records_over_as_many_segments_as_it_takes(disk, journal) -> None:
    journal.append(accept(0, bytes(1000)))
    lsn = journal.append(b"".join(accept(index, BIG) for index in range(1, 10)))
    assert len(journal.segments()) == 5  # one of the big ones, then two each
    journal.sync()
    journal.close()
    disk.power_loss(1)
    again = Journal(disk)
    assert [index for _, _, _, index, _, _ in again.replayed] == list(range(10))
    assert again.replayed[1][0] == lsn, "a position has no gap where a segment begins"


def test_a_record_that_fills_a_segment_to_its_last_byte(disk, journal) -> None:
    half = accept(1, bytes(2048 - 32))
    journal.append(half + half)
    assert len(journal.segments()) == 1
    lsn = journal.append(half)
    assert len(journal.segments()) == 2
    assert journal.read(lsn)[4] == bytes(2016)
    journal.close()
    assert len(Journal(disk).replayed) == 3


# --- syncing


def test_the_number_of_syncs_is_the_number_of_real_ones(disk, journal) -> None:
    made = disk.syncs - journal.counters()["syncs"]  # the spare's own, off the commit path
    for index in range(10):
        journal.append(accept(index, BIG))
        journal.sync()
        journal.sync()  # nothing to do
    counters = journal.counters()
    assert counters["segments_made"] == 5
    assert counters["syncs"] == disk.syncs - made - 4  # each of four more spares was synced once
    # A roll between two batches finds nothing unsynced: its header is the only thing to sync.
    assert counters["syncs"] == 10 + counters["rolls"]
    assert counters["sync_sum_ns"] >= counters["sync_max_ns"] >= counters["sync_last_ns"] > 0


def test_unsynced_records_may_go_with_the_power_synced_ones_stay(disk, journal) -> None:
    journal.append(accept(1, b"kept"))
    assert journal.sync() == journal.next_lsn == journal.durable_lsn
    journal.append(accept(2, BIG))
    assert journal.durable_lsn < journal.next_lsn
    lost = set()
    for seed in range(20):
        copy = disk.copy()
        copy.power_loss(seed)
        again = Journal(copy)
        assert again.replayed[0][5] == b"kept"
        lost.add(len(again.replayed) == 1)
    assert lost == {True, False}, "the simulated disk never lost anything, or always"


def test_what_was_handed_on_at_open_is_durable_though_nobody_ever_synced_it(disk, journal) -> None:
    journal.append(mark(FIRST_LSN) + accept(1, BIG))
    journal.close()
    disk.process_crash()
    assert len(Journal(disk).replayed) == 2
    for seed in range(20):
        copy = disk.copy()
        copy.power_loss(seed)
        assert len(Journal(copy).replayed) == 2


def test_and_that_holds_after_a_failed_sync_that_the_kernel_forgot(disk, journal) -> None:
    journal.append(accept(1))
    journal.sync()
    journal.append(mark(journal.durable_lsn) + accept(2, BIG))
    disk.fail("sync")
    with pytest.raises(JournalFailure):
        journal.sync()
    journal.close()
    disk.process_crash()  # readers still see what the medium will never get
    copy = disk.copy()
    copy.power_loss(1)
    assert len(Journal(copy).replayed) == 1
    assert len(Journal(disk).replayed) == 3
    disk.power_loss(1)
    assert len(Journal(disk).replayed) == 3


# --- failures


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("kind", ["write", "sync"])
def test_a_failed_write_or_sync_poisons_for_ever(disk, journal, kind, error) -> None:
    journal.append(accept(1))
    journal.sync()
    durable = journal.durable_lsn
    disk.fail(kind, error=error)
    with pytest.raises(JournalFailure) as failure:
        commit(journal, accept(2))
    assert code_of(failure) == "io"
    assert journal.poisoned
    assert journal.errno == error
    assert "failed" in journal.text
    assert "00000001.segment, position" in journal.text
    operations = disk.operations
    for call in (lambda: journal.append(accept(3)), journal.sync, journal.prepare_spare):
        with pytest.raises(JournalFailure) as failure:
            call()
        assert code_of(failure) == "poisoned"
    assert disk.operations == operations, "a poisoned journal touched the disk"
    assert journal.durable_lsn == durable
    assert journal.read(FIRST_LSN)[2] == 1, "what is there can still be read"


def test_a_sync_that_fails_while_rolling_poisons(disk, journal) -> None:
    journal.prepare_spare()
    journal.append(accept(1, BIG) + accept(2, BIG))
    for after in (1, 2):  # of the old segment, of the new header
        copy = disk.copy()
        again = Journal(copy)
        again.append(accept(1, BIG) + accept(2, BIG))
        again.prepare_spare()
        again.prepare_spare()
        copy.fail("sync", after=after)
        with pytest.raises(JournalFailure) as failure:
            again.append(accept(3, BIG))
        assert code_of(failure) == "io"
        assert again.poisoned


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_a_roll_that_fails_keeps_hold_of_its_segment(kind) -> None:
    # It was in no list any more: its memory and its descriptor were there until the process ended.
    before = allocations_live()
    disk = MemoryDisk()
    journal = Journal(disk, create=True)
    journal.append(accept(1, BIG) + accept(2, BIG))
    journal.sync()
    journal.prepare_spare()
    journal.prepare_spare()
    disk.fail(kind)
    with pytest.raises(JournalFailure) as failure:
        journal.append(accept(3, BIG))
    assert code_of(failure) == "io"
    journal.close()
    del journal, disk, failure
    gc.collect()
    assert allocations_live() == before


def test_a_spare_that_cannot_be_made_harms_nothing(disk, journal) -> None:
    for error, code in ((errno.EIO, "io"), (errno.ENOSPC, "full")):
        for kind in ("make", "write", "sync", "sync_folder"):
            disk.fail(kind, error=error)
            with pytest.raises(JournalFailure) as failure:
                journal.prepare_spare()
            assert code_of(failure) == code
            assert not journal.poisoned
            assert len(disk.names()) == 1, "half a segment was left"
    assert journal.wants_spare()
    journal.append(accept(1))
    journal.sync()


# --- full


def fill(journal: Journal, *, urgent: bool = False) -> int:
    """Appends big records until the journal is full; how many went in."""
    done = 0
    while True:
        try:
            journal.append(accept(done, BIG), urgent=urgent)
        except JournalFailure as failure:
            expect(failure, "full")
            return done
        done += 1
        assert done < 100


def test_full_is_told_before_anything_is_written_and_a_reserve_stays(disk) -> None:
    journal = Journal(disk, create=True, journal_bytes_max=4 * SEGMENT)
    assert fill(journal) == 6  # three segments of four
    assert journal.pressure() == (3 * SEGMENT, 4 * SEGMENT)
    before = (disk.operations, journal.next_lsn, journal.counters())
    with pytest.raises(JournalFailure):
        journal.append(accept(1, BIG))
    assert (disk.operations, journal.next_lsn, journal.counters()) == before
    journal.append(accept(7, bytes(500)))  # what still fits in the segment is taken
    assert fill(journal, urgent=True) == 2
    assert not journal.poisoned
    journal.sync()
    journal.close()
    assert len(Journal(disk, journal_bytes_max=4 * SEGMENT).replayed) == 9


def test_a_block_that_needs_more_segments_than_there_are_is_refused_whole(disk) -> None:
    journal = Journal(disk, create=True, journal_bytes_max=4 * SEGMENT)
    block = b"".join(accept(index, BIG) for index in range(8))
    with pytest.raises(JournalFailure) as failure:
        journal.append(block)
    assert code_of(failure) == "full"
    assert journal.next_lsn == FIRST_LSN
    assert (len(journal.segments()), len(journal.free_numbers())) == (1, 2)
    journal.append(block[: STRIDE * 6])
    assert len(journal.segments()) == 3


def test_room_after_a_recycle(disk) -> None:
    journal = Journal(disk, create=True, journal_bytes_max=4 * SEGMENT)
    fill(journal)
    lsn = journal.segments()[2][2]
    journal.append(floor(lsn), urgent=True)
    journal.sync()
    assert journal.recycle(lsn) == 2
    assert fill(journal) == 4  # two segments, and again one is left in reserve
    assert len(disk.names()) <= 4


def test_a_full_disk_is_a_full_journal_and_the_reserve_is_real_bytes(disk) -> None:
    journal = Journal(disk, create=True)
    journal.prepare_spare()
    journal.prepare_spare()
    disk.set_bytes_max(3 * SEGMENT)
    assert fill(journal) == 4  # the last free segment is not for these
    assert not journal.poisoned
    assert journal.errno == errno.ENOSPC
    assert fill(journal, urgent=True) == 2
    disk.set_bytes_max(0)
    assert journal.prepare_spare()
    journal.append(accept(1, BIG))


def test_a_broken_device_poisons_even_if_it_breaks_while_a_segment_is_made(disk, journal) -> None:
    journal.append(accept(1, BIG) + accept(2, BIG))
    disk.fail("make")
    with pytest.raises(JournalFailure) as failure:
        journal.append(accept(3, BIG))
    assert code_of(failure) == "io"
    assert journal.poisoned


def test_a_full_journal_can_be_opened_and_written_to(disk) -> None:
    journal = Journal(disk, create=True, journal_bytes_max=4 * SEGMENT)
    fill(journal)
    fill(journal, urgent=True)
    journal.close()
    for _ in range(3):
        journal = Journal(disk, journal_bytes_max=4 * SEGMENT)
        journal.append(accept(1))  # what a start writes, and dies
        journal.close()
    journal = Journal(disk, journal_bytes_max=4 * SEGMENT)
    lsn = journal.next_lsn
    for index in range(8):  # all that was live, again
        journal.append(accept(index, BIG))
    journal.append(floor(lsn))
    journal.sync()
    journal.recycle(lsn)
    assert journal.pressure()[0] == 4 * SEGMENT
    with pytest.raises(JournalFailure) as failure:
        journal.append(accept(1, BIG), urgent=True)
    assert code_of(failure) == "full", "the start is over"


def test_starts_that_never_get_anywhere_do_not_grow_the_journal_without_end(disk) -> None:
    Journal(disk, create=True, journal_bytes_max=3 * SEGMENT).close()
    for _ in range(2 * 3 + 8 - 1):
        journal = Journal(disk, journal_bytes_max=3 * SEGMENT)
        journal.append(accept(1), urgent=True)
        journal.close()
    journal = Journal(disk, journal_bytes_max=3 * SEGMENT)
    with pytest.raises(JournalFailure) as failure:
        journal.append(accept(1), urgent=True)
    assert code_of(failure) == "full"


# --- recycling


def test_a_segment_is_reused_after_its_floor_is_durable_and_not_before(disk, journal) -> None:
    journal.append(b"".join(accept(index, BIG) for index in range(6)))
    last = journal.segments()[-1][2]
    assert journal.recycle(last) == 0, "there is no floor at all"
    journal.append(floor(last))
    assert journal.recycle(last) == 0, "the floor is not durable"
    journal.sync()
    assert journal.recycle(last - 8) == 1, "the second segment ends at last"
    assert journal.recycle(last + 1000) == 1
    assert journal.floor_lsn == last
    names = disk.names()
    journal.append(b"".join(accept(index, BIG) for index in range(6, 8)))
    assert disk.names() == names, "a free segment was left unused"


def test_a_floor_cannot_speak_of_what_comes_after_it(disk, journal) -> None:
    journal.append(accept(1, BIG) + floor(1 << 40) + accept(2, BIG) + accept(3, BIG))
    journal.sync()
    assert journal.recycle(1 << 40) == 0
    journal.close()
    again = Journal(disk)
    assert len(again.replayed) == 4
    assert again.floor_lsn == 0


def test_what_is_below_the_floor_is_gone_and_not_replayed(disk, journal) -> None:
    journal.append(b"".join(accept(index, BIG) for index in range(4)))
    journal.append(floor(FIRST_LSN + STRIDE))  # in the middle of the first segment
    journal.sync()
    assert journal.recycle(FIRST_LSN + STRIDE) == 0
    with pytest.raises(JournalFailure) as failure:
        journal.read(FIRST_LSN)
    assert code_of(failure) == "gone"
    assert journal.read(FIRST_LSN + STRIDE)[2] == 1
    journal.close()
    again = Journal(disk)
    assert [lsn for lsn, *_ in again.replayed][:2] == [FIRST_LSN + STRIDE, FIRST_LSN + 2 * STRIDE]
    assert again.floor_lsn == FIRST_LSN + STRIDE


def test_a_segment_with_a_reader_inside_is_neither_reused_nor_removed(disk) -> None:
    journal = Journal(disk, create=True, free_segments_max=2)
    journal.append(b"".join(accept(index, BIG) for index in range(12)))
    held, _, lsn, _ = journal.segments()[4]  # the one that would be taken first
    journal.pin(lsn, 1)
    last = journal.segments()[-1][2]
    journal.append(floor(last))
    journal.sync()
    assert journal.recycle(last) == 5
    while journal.prepare_spare():
        pass
    assert len(journal.free_numbers()) == 2
    assert held in journal.free_numbers()
    for _ in range(3):
        journal.append(accept(1, BIG) + accept(2, BIG))
    assert held in journal.free_numbers()
    journal.pin(lsn, -1)
    for _ in range(3):
        journal.append(accept(1, BIG) + accept(2, BIG), urgent=True)
    assert held not in journal.free_numbers()


def test_free_segments_beyond_the_limit_are_removed(disk) -> None:
    journal = Journal(disk, create=True, free_segments_max=3)
    journal.append(b"".join(accept(index, BIG) for index in range(20)))
    last = journal.segments()[-1][2]
    journal.append(floor(last), urgent=True)
    journal.sync()
    assert journal.recycle(last) == 9
    assert journal.wants_spare()
    while journal.prepare_spare():
        pass
    assert len(journal.free_numbers()) == 3
    assert len(disk.names()) == 4
    assert journal.counters()["segments_removed"] == 6
    assert not journal.wants_spare()


# --- reading


def test_reading_by_position(disk, journal) -> None:
    bodies = [bytes([index]) * (index * 40) for index in range(50)]
    lsns = [journal.append(accept(i, body, group=i, ballot=9)) for i, body in enumerate(bodies)]
    for index, lsn in enumerate(lsns):
        assert journal.read(lsn) == (2, index, index, 9, bodies[index])
    for lsn, code in (
        (journal.next_lsn, "not yet"),
        (journal.next_lsn + (1 << 40), "not yet"),
        (0, "gone"),
        (FIRST_LSN - 8, "gone"),
        (FIRST_LSN + 4, "gone"),
        (lsns[20] + 8, "damaged"),  # the middle of a record
    ):
        with pytest.raises(JournalFailure) as failure:
            journal.read(lsn)
        assert code_of(failure) == code, lsn


@pytest.mark.parametrize("length", [0, 1, 4063, 4064, 4065, 20_000])
def test_reading_bodies_around_the_size_of_the_first_read(length) -> None:
    journal = Journal(MemoryDisk(), create=True, segment_bytes=32768, body_bytes_max=20_000)
    body = bytes(range(256)) * (length // 256) + bytes(length % 256)
    lsn = journal.append(accept(1, body))
    assert journal.read(lsn)[4] == body
    assert journal.read_span(lsn, 1) == accept(1, body)


def test_positions_between_a_cut_segment_and_the_next_are_gone(disk, journal) -> None:
    lsn = journal.append(accept(1))
    journal.close()
    again = Journal(disk)
    hole = lsn + len(accept(1))
    for position in (hole, again.next_lsn - 8):
        with pytest.raises(JournalFailure) as failure:
            again.read(position)
        assert code_of(failure) == "gone"
    again.append(accept(2))
    with pytest.raises(JournalFailure) as failure:
        again.read(hole)
    assert code_of(failure) == "gone"


def test_a_record_that_rots_is_told_when_it_is_read(disk, journal) -> None:
    lsn = journal.append(accept(1, b"12345678"))
    journal.close()
    journal = Journal(disk)
    content = bytearray(disk.content("00000001.segment"))
    content[4096 + 32] ^= 1
    disk.put("00000001.segment", bytes(content))
    for call in (lambda: journal.read(lsn), lambda: journal.read_span(lsn, 100)):
        with pytest.raises(JournalFailure) as failure:
            call()
        assert code_of(failure) == "damaged"


def test_spans_are_whole_records_as_they_were_appended(disk, journal) -> None:
    records = [accept(index, bytes(index * 30)) for index in range(40)]
    start = journal.append(b"".join(records))
    for bytes_max in (0, 1, 32, 100, 3000, 1 << 30):
        lsn, found = start, []
        while lsn < journal.next_lsn:
            span = journal.read_span(lsn, bytes_max)
            assert len(span) <= max(bytes_max, len(split(span)[0]))
            found += split(span)
            lsn += len(span)
        assert found == records
    with pytest.raises(JournalFailure) as failure:
        journal.read_span(journal.next_lsn, 100)
    assert code_of(failure) == "not yet"


@pytest.mark.parametrize("real", [False, True], ids=["memory", "folder"])
def test_reading_while_another_thread_appends_rolls_and_recycles(real, tmp_path: Path) -> None:
    journal = Journal(
        tmp_path / "journal" if real else MemoryDisk(), create=True, free_segments_max=2
    )
    written = [FIRST_LSN]  # what the appending thread has told
    seen = [0, 0]
    failures: list[str] = []
    stop = threading.Event()

    def wait_for_readers() -> None:
        before, until = list(seen), time.monotonic() + 1
        while time.monotonic() < until and not all(map(operator.gt, seen, before)):
            time.sleep(0.0002)

    def append() -> None:
        try:
            for index in range(1500):
                journal.append(accept(index, index.to_bytes(8, "little") * (index % 150)))
                written[0] = journal.next_lsn
                if index % 100 == 99:
                    wait_for_readers()
                    journal.sync()
                    low = journal.segments()[-4][2] if len(journal.segments()) > 4 else 0
                    if low:
                        journal.append(floor(low), urgent=True)
                        journal.sync()
                        journal.recycle(low)
                        journal.prepare_spare()
        finally:
            stop.set()

    def read(reader: int) -> None:
        lsn, last = FIRST_LSN, -1
        while not stop.is_set() or lsn < written[0]:
            known = written[0]
            try:
                kind, _, index, _, body = journal.read(lsn)
            except JournalFailure as failure:
                if failure.code == "gone":
                    lsn = journal.segments()[0][2]  # overtaken: go on with the oldest
                elif failure.code != "not yet" or lsn < known:
                    failures.append(f"{failure.code} at {lsn} of {known}")
                    return
                continue
            if kind == 2:
                if body != index.to_bytes(8, "little") * (index % 150) or index <= last - 1000:
                    failures.append(f"wrong bytes at {lsn}")
                    return
                last = index
            lsn += len(accept(index, body))
            seen[reader] += 1

    threads = [threading.Thread(target=read, args=(reader,)) for reader in range(2)]
    threads.append(threading.Thread(target=append))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert min(seen) > 50
    journal.close()


def test_a_new_segment_is_synced_piece_by_piece():
    """A sync of the log stands behind everything that the device was given before it."""
    disk = MemoryDisk()
    journal = Journal(disk, create=True, segment_bytes=16 << 20, journal_bytes_max=64 << 20)
    before = disk.syncs
    assert journal.prepare_spare() in (0, 1)
    assert disk.syncs - before >= 4
    journal.close()
