"""What is a torn tail, what is damage, and what must never come back.

A tail is what nobody can have relied on: it is cut. Damage is what somebody may have relied on:
the journal is not opened.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_lab import (
    ACCEPT,
    FIRST_LSN,
    HEADER,
    SEGMENT,
    Log,
    accept,
    expect,
    flip,
    floor,
    headers,
    mark,
    newest,
    open_code,
    replayed,
)

from phx._core import codec, segment
from phx._core.journal_door import Journal, JournalFailure
from phx._core.memdisk import MemoryDisk

pytestmark = pytest.mark.usefixtures("no_leaks")

BIG = b"\x77" * 1500
FILE = "00000001.segment"


def written(*records: bytes) -> tuple[MemoryDisk, list[int]]:
    """A disk with these records in its journal, and their positions."""
    disk = MemoryDisk()
    journal = Journal(disk, create=True)
    lsns = [journal.append(record) for record in records]
    journal.sync()
    journal.close()
    return disk, lsns


def at(lsn: int) -> int:
    return HEADER + lsn - FIRST_LSN


def kept(disk: MemoryDisk) -> list[int]:
    """Instances of the accepts that are replayed."""
    journal = Journal(disk)
    found = [index for _, kind, _, index, _, _ in journal.replayed if kind == ACCEPT]
    journal.close()
    return found


def damage(disk: MemoryDisk) -> str:
    with pytest.raises(JournalFailure) as failure:
        Journal(disk)
    assert failure.value.code == "damaged"
    return failure.value.text


# --- the tail


def test_cut_at_every_byte_of_the_last_record() -> None:
    last = accept(2, b"the last record, not a multiple of eight")
    disk, (_, lsn) = written(accept(1, b"kept"), last)
    whole = disk.content(FILE)
    end = at(lsn) + codec.record_fields(last)[1] + 32  # beyond are padding and zeros anyway
    for cut in range(at(lsn), at(lsn) + len(last) + 1):
        for rest in (b"", bytes(SEGMENT - cut), b"\xa5" * (SEGMENT - cut)):
            # Nothing, zeros, or what a reused file may hold, behind the cut.
            disk.put(FILE, whole[:cut] + rest)
            complete = cut >= end and (cut == at(lsn) + len(last) or rest[:1] != b"\xa5")
            assert kept(disk.copy()) == ([1, 2] if complete else [1]), cut
            again = Journal(disk)
            assert again.next_lsn == FIRST_LSN + SEGMENT - HEADER
            later = again.append(accept(3))
            again.close()
            assert kept(disk) == ([1, 2, 3] if complete else [1, 3])
            assert headers(disk)[newest(disk)]["previous_end_lsn"] <= lsn + len(last)
            assert later == FIRST_LSN + SEGMENT - HEADER
            disk.delete(newest(disk))


def test_a_never_written_segment_is_an_empty_tail() -> None:
    disk, _ = written()
    assert kept(disk) == []
    journal = Journal(disk)
    assert journal.counters()["cut_bytes"] == 0


def test_how_much_was_cut_is_counted() -> None:
    disk, (_, lsn) = written(accept(1), accept(2, b"x" * 64))
    flip(disk, FILE, at(lsn))
    journal = Journal(disk)
    assert journal.counters()["cut_bytes"] == 96


def test_every_flipped_bit_above_what_is_known_durable_is_a_tail() -> None:
    disk, (_, lsn, after) = written(accept(1), accept(2, b"hello world, twelve."), accept(3))
    whole = bytes(disk.content(FILE))
    for byte in range(at(lsn), at(after)):
        for bit in range(8):
            disk.put(FILE, whole)
            flip(disk, FILE, byte, bit)
            # Valid records follow; they are cut too.
            assert kept(disk) == [1], (byte, bit)


@pytest.mark.parametrize("where", ["next", "far", "later segment"])
def test_every_flipped_bit_below_a_mark_is_damage(where: str) -> None:
    first, second = accept(1), accept(2, b"hello world, twelve.")
    end = FIRST_LSN + len(first) + len(second)
    follow = {
        "next": [mark(end)],
        "far": [accept(3, bytes(200)), accept(4), mark(end)],
        "later segment": [accept(3, BIG), accept(4, BIG), accept(5, BIG)],
    }[where]
    disk, (_, lsn, after, *_) = written(first, second, *follow)
    assert len(disk.names()) == (2 if where == "later segment" else 1)
    whole = bytes(disk.content(FILE))
    for byte in range(at(lsn), at(after)):
        for bit in range(8):
            disk.put(FILE, whole)
            flip(disk, FILE, byte, bit)
            text = damage(disk)
            assert text.startswith(f"{FILE}, position {lsn}: "), text
    disk.put(FILE, whole)
    assert open_code(disk) == ""


def test_a_mark_vouches_for_what_is_below_it_and_no_more() -> None:
    records = [accept(index, b"12345678") for index in range(4)]
    stride = len(records[0])
    for vouched in range(5):
        disk, lsns = written(*records, mark(FIRST_LSN + vouched * stride))
        flip(disk, FILE, at(lsns[2]))
        if vouched > 2:
            assert damage(disk).startswith(f"{FILE}, position {lsns[2]}: ")
        else:
            assert kept(disk) == [0, 1]


def test_a_mark_that_speaks_of_what_comes_after_it_is_not_believed() -> None:
    disk, lsns = written(accept(1), accept(2), mark(FIRST_LSN + 1000))
    flip(disk, FILE, at(lsns[1]))
    assert kept(disk) == [1]


def test_a_mark_of_another_generation_is_not_believed() -> None:
    # It stands in the stale bytes of a reused segment.
    disk, lsns = written(accept(1), accept(2))
    stale = bytearray(mark(FIRST_LSN + 64))
    crc = int.from_bytes(stale[:4], "little") ^ codec.salt(7)
    stale[:4] = crc.to_bytes(4, "little")
    content = bytearray(disk.content(FILE))
    content[at(lsns[1]) + 64 : at(lsns[1]) + 96] = stale
    disk.put(FILE, bytes(content))
    flip(disk, FILE, at(lsns[1]))
    assert kept(disk) == [1]


def test_a_damaged_mark_vouches_for_nothing() -> None:
    disk, lsns = written(accept(1), accept(2), mark(FIRST_LSN + 64))
    flip(disk, FILE, at(lsns[1]))
    flip(disk, FILE, at(lsns[2]), 3)
    assert kept(disk) == [1]


def test_a_length_that_was_flipped_does_not_hide_the_mark_behind_it() -> None:
    second = accept(2, bytes(100))
    disk, lsns = written(accept(1), second, accept(3), mark(FIRST_LSN + 32 + len(second)))
    flip(disk, FILE, at(lsns[1]) + 5, 3)  # 100 becomes 2148 bytes, beyond the mark
    assert damage(disk).startswith(f"{FILE}, position {lsns[1]}: ")


def test_the_search_for_marks_is_quick_whatever_the_bytes_are() -> None:
    # Every eighth byte looks like a record with a long body: a search that believed that would
    # compute a checksum of megabytes a million times.
    size = 8 << 20
    disk = MemoryDisk()
    Journal(disk, create=True, segment_bytes=size, journal_bytes_max=4 * size).close()
    bait = (size // 2).to_bytes(4, "little") + bytes([2, 0, 0, 0])
    disk.put(FILE, disk.content(FILE)[:HEADER] + bait * ((size - HEADER) // 8))
    journal = Journal(disk, segment_bytes=size, journal_bytes_max=4 * size)  # or the time is up
    assert journal.replayed == []


def test_after_a_cut_nothing_of_the_cut_bytes_ever_comes_back() -> None:
    disk, lsns = written(accept(1), accept(2, BIG), accept(3))
    content = bytearray(disk.content(FILE))
    good = bytes(content)
    content[at(lsns[1])] ^= 1
    disk.put(FILE, bytes(content))
    journal = Journal(disk)
    journal.append(accept(4))
    journal.sync()
    journal.close()
    disk.put(FILE, good)  # the bytes are whole again, as after one more unlucky reading
    assert kept(disk) == [1, 4]


def test_a_record_the_engine_refuses_is_damage() -> None:
    disk, lsns = written(accept(1), accept(2), accept(3))
    with pytest.raises(JournalFailure) as failure:
        Journal(disk, refuse_after=1)
    assert failure.value.code == "damaged"
    assert failure.value.text == f"{FILE}, position {lsns[1]}: a record that cannot be"


# --- earlier segments, headers, identity


def long_journal() -> tuple[MemoryDisk, list[int]]:
    """Five segments with two big records each."""
    disk, lsns = written(*(accept(index, BIG) for index in range(10)))
    assert len(disk.names()) == 5
    return disk, lsns


def test_damage_in_any_earlier_segment_is_told_where_it_is() -> None:
    good, lsns = long_journal()
    for index in range(8):
        disk = good.copy()
        name = disk.names()[index // 2]
        base = headers(disk)[name]["base_lsn"]
        flip(disk, name, HEADER + lsns[index] - base + 700)
        assert damage(disk).startswith(f"{name}, position {lsns[index]}: bad bytes")


def test_damage_in_what_is_not_live_any_more_is_nobodys_business() -> None:
    disk, _ = long_journal()
    journal = Journal(disk)
    lsn = journal.next_lsn
    journal.append(floor(lsn))
    journal.close()
    for name in disk.names()[:5]:
        flip(disk, name, HEADER + 10)
    assert kept(disk) == []
    for name in disk.names()[:5]:
        disk.delete(name)
    assert kept(disk) == []


@pytest.mark.parametrize("index", range(5))
def test_a_missing_segment_is_damage(index: int) -> None:
    disk, _ = long_journal()
    name = disk.names()[index]
    disk.delete(name)
    if index < 4:
        after = disk.names()[index]
        assert damage(disk).startswith(f"{after}, position ")
        assert "missing" in damage(disk)
    else:
        # Without the newest one it is a shorter journal. Nothing can tell, except the store.
        assert kept(disk) == list(range(8))


@pytest.mark.parametrize("index", range(5))
def test_a_bad_header_of_a_live_segment_is_damage(index: int) -> None:
    for byte in (0, 8, 40, 48, 88):
        disk, _ = long_journal()
        flip(disk, disk.names()[index], byte)
        text = damage(disk)
        assert ("bad header" if index == 4 else "missing") in text


def test_the_only_header_bad_is_damage_and_no_reason_to_begin_anew() -> None:
    disk, _ = written(accept(1))
    flip(disk, FILE, 50)
    assert "no header is good" in damage(disk)
    assert open_code(disk, create=True) == "exists"


def test_a_file_cut_short_is_damage_if_records_are_lost_with_it() -> None:
    good, _ = long_journal()
    for name in good.names():
        disk = good.copy()
        disk.put(name, disk.content(name)[:5000])
        if name == good.names()[-1]:
            assert kept(disk) == list(range(8)), "the newest one, above all marks: a tail"
        else:
            assert "bad bytes" in damage(disk)


def test_a_generation_that_exists_twice_is_damage() -> None:
    disk, _ = long_journal()
    disk.put("000000ff.segment", disk.content(disk.names()[2]))
    assert "twice" in damage(disk)


@pytest.mark.parametrize(
    "identity", [{"cluster": 2}, {"node": 2}, {"store_id": b"another store id"}]
)
def test_another_identity_is_foreign(identity: dict[str, object]) -> None:
    disk, _ = long_journal()
    assert open_code(disk, **identity) == "foreign"
    with pytest.raises(JournalFailure, match=r"0000000\d.segment: belongs to another"):
        Journal(disk, **identity)  # type: ignore[arg-type]
    spare = disk.copy()
    journal = Journal(spare)
    journal.prepare_spare()
    journal.close()
    for name in spare.names()[:5]:
        spare.delete(name)
    assert open_code(spare, **identity) == "foreign"


def test_another_version_is_told_as_such() -> None:
    disk, _ = long_journal()
    content = bytearray(disk.content(FILE))
    content[8] = 2
    content[88:92] = codec.crc32c(bytes(content[:88])).to_bytes(4, "little")
    disk.put(FILE, bytes(content))
    assert open_code(disk) == "version"


def test_impossible_numbers_in_a_header_are_damage() -> None:
    good, _ = long_journal()
    last = good.names()[-1]
    sizes = ((72, 4096), (72, 5000), (72, 1 << 60))
    positions = ((64, 1 << 60), (64, 1), (48, 4100), (48, (1 << 64) - 32), (40, 1 << 63))
    for field, value in sizes + positions:
        disk = good.copy()
        content = bytearray(disk.content(last))
        content[field : field + 8] = value.to_bytes(8, "little")
        content[88:92] = codec.crc32c(bytes(content[:88])).to_bytes(4, "little")
        disk.put(last, bytes(content))
        assert segment.parse_header(disk.content(last)) is not None
        assert damage(disk)


# --- reused segments


def reused() -> tuple[MemoryDisk, str, dict[str, int]]:
    """A journal that goes on in a segment used before; the file's name and its old header."""
    disk = MemoryDisk()
    journal = Journal(disk, create=True)
    for index in range(10):
        journal.append(accept(index, BIG, ballot=7))
    old = headers(disk)
    journal.sync()
    journal.append(floor(journal.segments()[-1][2]), urgent=True)
    journal.sync()
    assert journal.recycle(journal.next_lsn) == 4
    journal.append(accept(100, b"\x33" * 1500), urgent=True)
    journal.append(accept(101, bytes(72)), urgent=True)
    journal.sync()
    journal.close()
    name = newest(disk)
    assert name in old
    return disk, name, old[name]


def test_stale_records_of_a_reused_segment_never_replay() -> None:
    disk, name, old = reused()
    # The very bytes that were there before still stand behind the new records ...
    stale = disk.content(name)[HEADER + len(accept(0, BIG)) + 104 :]
    assert any(stale)
    assert kept(disk) == [8, 9, 100, 101]
    # ... and cut anywhere, even exactly where an old record begins, they do not come back.
    base = headers(disk)[name]["base_lsn"]
    content = disk.content(name)
    old_records = b"".join(accept(index, BIG, ballot=7) for index in range(2))
    for length in range(0, len(accept(0, BIG)) + 8, 8):
        before = content[: HEADER + length] + old_records[length:]
        crc = bytearray(before)
        for start in (0, len(accept(0, BIG))):
            if start >= length:
                salted = int.from_bytes(old_records[start : start + 4], "little")
                salted ^= codec.salt(old["generation"])
                crc[HEADER + start : HEADER + start + 4] = salted.to_bytes(4, "little")
        copy = disk.copy()
        copy.put(name, bytes(crc) + bytes(SEGMENT - len(crc)))
        found = [index for index in kept(copy) if index >= 100]
        assert found == ([100] if length >= len(accept(0, BIG)) else []), length
    assert base > old["base_lsn"]


def test_a_torn_write_inside_a_reused_segment() -> None:
    disk, _, _ = reused()
    log_records = [accept(200 + index, bytes(600)) for index in range(3)]
    for seed in range(200):
        copy = disk.copy()
        again = Journal(copy)
        again.append(accept(199), urgent=True)
        again.sync()
        again.append(b"".join(log_records), urgent=True)
        again.close()
        copy.power_loss(seed)
        found = kept(copy)
        assert found[:5] == [8, 9, 100, 101, 199]
        assert found[5:] in ([], [200], [200, 201], [200, 201, 202])


def test_a_header_torn_while_a_segment_is_reused_leaves_the_journal_before_it() -> None:
    for seed in range(30):
        disk = MemoryDisk(atom=8)  # not even sectors land whole
        journal = Journal(disk, create=True)
        for index in range(10):
            journal.append(accept(index, BIG))
        journal.append(floor(journal.segments()[-1][2]), urgent=True)
        journal.sync()
        journal.recycle(journal.next_lsn)
        disk.fail("sync")  # of the header, which is what a roll syncs here
        with pytest.raises(JournalFailure):
            journal.append(accept(100, BIG), urgent=True)
        journal.close()
        disk.process_crash()
        torn = bytearray(disk.content(newest(disk)))
        for byte in range(0, 96, 8):
            if (seed * 2654435761 >> (byte // 8)) & 1:
                torn[byte : byte + 8] = bytes(8)
        disk.put(newest(disk), bytes(torn))
        assert kept(disk) == [8, 9]
        again = Journal(disk)
        again.append(accept(101))
        again.sync()
        again.close()
        assert kept(disk) == [8, 9, 101]


def test_a_spare_that_was_being_made_is_thrown_away() -> None:
    disk, _ = written(accept(1))
    for content in (b"", bytes(100), bytes(5000), bytes(SEGMENT)):
        disk.put("00000009.segment", content)
        assert kept(disk) == [1]
        assert disk.names() == [FILE]


def test_a_spare_that_is_whole_is_used() -> None:
    disk, _ = written(accept(1))
    journal = Journal(disk)
    journal.prepare_spare()
    journal.close()
    journal = Journal(disk)
    assert journal.free_numbers() == [2]
    journal.append(accept(2))
    assert journal.counters()["segments_made"] == 0


# --- any bytes


@pytest.mark.parametrize("byte", [0, 1, 8, 20])
def test_a_newest_segment_whose_header_and_first_record_are_damaged_is_not_taken_for_a_spare(
    byte: int,
) -> None:
    """Else the one before it would be the newest, and bad bytes in there its tail."""
    disk, _ = long_journal()
    before, last = disk.names()[-2:]
    for name, offset in ((last, 0), (last, HEADER + byte), (before, HEADER)):
        content = bytearray(disk.content(name))
        content[offset] ^= 0xFF
        disk.put(name, bytes(content))
    with pytest.raises(JournalFailure) as caught:
        Journal(disk)
    expect(caught.value, "damaged")


def unrecognizable(disk: MemoryDisk, names: list[str]) -> int:
    """How many segments from the newest back look like files that nothing was written to: neither
    their header is what it was, nor the header of their first record, whose length leads on."""
    good, _ = long_journal()
    count = 0
    for name in reversed(names):
        was, now = good.content(name), disk.content(name)
        if was[:96] == now[:96] or was[HEADER : HEADER + 32] == now[HEADER : HEADER + 32]:
            break
        count += 1
    return count


@settings(max_examples=300)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, SEGMENT - 1), st.binary(min_size=1)),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_the_bytes_are_it_is_a_prefix_or_a_typed_refusal(
    changes: list[tuple[int, int, bytes]],
) -> None:
    disk, lsns = long_journal()
    names = disk.names()
    for which, offset, data in changes:
        content = bytearray(disk.content(names[which]))
        content[offset : offset + len(data)] = data[: SEGMENT - offset]
        disk.put(names[which], bytes(content))
    try:
        journal = Journal(disk)
    except JournalFailure as failure:
        expect(failure, "damaged", "foreign", "version", "missing")
    else:
        records = [accept(index, BIG) for index in range(10)]
        found = replayed(journal)
        assert len(found) >= 2 * (4 - unrecognizable(disk, names)), "only the newest has a tail"
        assert found == list(zip(lsns, records, strict=True))[: len(found)]
        journal.close()


# --- the lab itself


def test_the_lab_sees_a_loss_a_change_and_a_ghost() -> None:
    """The checks that the crash tests lean on do fail when they should."""
    log = Log(MemoryDisk())
    log.open(create=True)
    log.append([8, 16])
    log.sync()
    log.close()
    log.records[1] = (log.records[1][0], accept(1, b"other"))
    with pytest.raises(AssertionError):
        log.reopen()
    log.close()
    ghost = Log(log.disk, durable=FIRST_LSN)
    ghost.made = True
    with pytest.raises(AssertionError):
        ghost.reopen()
    ghost.close()
    flip(log.disk, FILE, HEADER)
    with pytest.raises(AssertionError, match="lost"):
        log.reopen()
    assert log.journal is not None
    assert replayed(log.journal) == []
