"""The bytes of a segment's header, and of records in it."""

import pytest
from journal_lab import FIRST_LSN, HEADER, SEGMENT, accept, headers, mark

from phx._core import codec, segment
from phx._core.journal_door import Journal
from phx._core.memdisk import MemoryDisk

pytestmark = pytest.mark.usefixtures("no_leaks")

# Written by hand from the table in segment.pxd; only the crc was computed, by codec.crc32c.
# fmt: off
GOLDEN = bytes.fromhex(
    "5048583153454700"                  # magic: PHX1SEG and a zero
    "01000000" "07000000"               # version, node
    "0900000000000000"                  # cluster
    "000102030405060708090a0b0c0d0e0f"  # store_id
    "0100000000000000"                  # generation
    "0010000000000000"                  # base_lsn
    "0000000000000000"                  # previous_generation
    "0000000000000000"                  # previous_end_lsn
    "0020000000000000"                  # segment_bytes
    "0000000000000000"                  # zero
)
# fmt: on
GOLDEN += codec.crc32c(GOLDEN).to_bytes(4, "little") + bytes(4)
OPTIONS = {"node": 7, "cluster": 9, "store_id": bytes(range(16)), "segment_bytes": SEGMENT}


def first_segment() -> bytes:
    disk = MemoryDisk()
    Journal(disk, create=True, **OPTIONS).close()
    return disk.content("00000001.segment")


def test_a_new_segment_is_its_golden_header_and_zeros() -> None:
    assert first_segment() == GOLDEN + bytes(SEGMENT - len(GOLDEN))


def test_the_header_is_read_back() -> None:
    assert segment.parse_header(GOLDEN + bytes(HEADER)) == {
        "node": 7,
        "cluster": 9,
        "store_id": bytes(range(16)),
        "generation": 1,
        "base_lsn": FIRST_LSN,
        "previous_generation": 0,
        "previous_end_lsn": 0,
        "segment_bytes": SEGMENT,
    }


def test_every_flipped_bit_of_a_header_is_seen() -> None:
    for byte in range(92):
        for bit in range(8):
            bad = bytearray(GOLDEN)
            bad[byte] ^= 1 << bit
            assert segment.parse_header(bytes(bad) + bytes(HEADER)) is None, (byte, bit)


@pytest.mark.parametrize("length", [0, 1, 95])
def test_a_header_cut_short_is_none(length: int) -> None:
    assert segment.parse_header(GOLDEN[:length]) is None


def test_a_record_lies_where_its_position_says_and_carries_its_generation() -> None:
    disk = MemoryDisk()
    journal = Journal(disk, create=True, **OPTIONS)
    record = accept(1, b"hello")
    journal.append(mark(FIRST_LSN))
    lsn = journal.append(record)
    journal.close()
    at = HEADER + lsn - FIRST_LSN
    stored = disk.content("00000001.segment")[at : at + len(record)]
    crc = int.from_bytes(record[:4], "little") ^ codec.salt(1)
    assert stored == crc.to_bytes(4, "little") + record[4:]
    assert codec.check_record(stored, codec.salt(1)) == len(record)
    assert codec.check_record(stored, codec.salt(2)) == 0


def test_the_chain_of_headers() -> None:
    disk = MemoryDisk()
    journal = Journal(disk, create=True, **OPTIONS)
    for index in range(5):
        journal.append(accept(index, bytes(1500)))
    journal.close()
    chain = sorted(headers(disk).values(), key=lambda header: header["generation"])
    assert [header["generation"] for header in chain] == [1, 2, 3]
    assert [header["previous_generation"] for header in chain] == [0, 1, 2]
    stride = len(accept(0, bytes(1500)))
    assert [header["base_lsn"] for header in chain] == [
        FIRST_LSN,
        FIRST_LSN + 2 * stride,
        FIRST_LSN + 4 * stride,
    ]
    assert [header["previous_end_lsn"] for header in chain[1:]] == [
        header["base_lsn"] for header in chain[1:]
    ]
