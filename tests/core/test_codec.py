"""Frames and records: their bytes to the bit, and that nothing unsound is taken for sound."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phx._core import codec

U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
BODIES = st.binary(max_size=200)

# Written by hand from the tables in codec.pxd; only the crc was computed, by crc32c_by_bits.
# fmt: off
RECORD = bytes.fromhex(
    "799eebe4"          # crc
    "05000000"          # body_bytes
    "02" "00" "0000"    # kind ACCEPT, flags, space
    "07000000"          # group
    "0900000000000000"  # index
    "0b00000000000000"  # ballot
    "68656c6c6f"        # hello
    "000000"            # to a multiple of eight
)
FRAME = bytes.fromhex(
    "50485831"          # magic: PHX1
    "0500" "0200"       # version, kind ENGINE
    "05000000"          # payload_bytes
    "29c08208"          # crc
    "01000000"          # source
    "02000000"          # dest
    "6300000000000000"  # cluster 99
    "68656c6c6f"        # hello
)
# fmt: on
CRC_AT_RECORD, CRC_AT_FRAME = slice(0, 4), slice(12, 16)


def crc32c_by_bits(data: bytes) -> int:
    """CRC-32C as its definition says it, one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def flips(data: bytes):
    """Every version of ``data`` with one bit the other way round."""
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        yield bit, bytes(flipped)


def check(frame: bytes, **expected: int) -> str:
    known = {"cluster": 99, "self_node": 2, "expected_source": 1, "payload_bytes_max": 1 << 20}
    return codec.check_frame(frame, **(known | expected))


# --- CRC-32C


@pytest.mark.parametrize("crc32c", [codec.crc32c, codec.crc32c_table, crc32c_by_bits])
@pytest.mark.parametrize(
    ("data", "crc"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(b"123456789", 0xE3069283, id="the usual check"),
        pytest.param(bytes(32), 0x8A9136AA, id="RFC 3720, zeros"),
        pytest.param(b"\xff" * 32, 0x62A8AB43, id="RFC 3720, ones"),
        pytest.param(bytes(range(32)), 0x46DD794E, id="RFC 3720, incrementing"),
        pytest.param(bytes(range(31, -1, -1)), 0x113FDB5C, id="RFC 3720, decrementing"),
        pytest.param(
            bytes.fromhex(
                "01c00000000000000000000000000000"
                "14000000000004000000001400000018"
                "28000000000000000200000000000000"
            ),
            0xD9963A56,
            id="RFC 3720, iSCSI read",
        ),
    ],
)
def test_crc32c_of_known_data(crc32c, data, crc):
    assert crc32c(data) == crc


def test_crc32c_of_this_machine_is_that_of_the_table_at_every_length_and_alignment():
    data = random.Random(1).randbytes(5000)
    lengths = [*range(300), *range(760, 800), *range(1530, 1550), 2304, 2311, 4000]
    for length in lengths:
        for start in range(9):
            part = memoryview(data)[start : start + length]
            assert codec.crc32c(part) == codec.crc32c_table(part), (start, length)


@given(st.binary(max_size=2000), st.data())
def test_crc32c_goes_on_from_any_point(data, draw):
    cut = draw.draw(st.integers(0, len(data)))
    for crc32c in (codec.crc32c, codec.crc32c_table):
        assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


@pytest.mark.parametrize("crc32c", [codec.crc32c, codec.crc32c_table])
@given(st.binary(max_size=2000), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_crc32c_of_other_beginnings_needs_no_second_look_at_the_data(crc32c, data, a, b):
    """What lets a checked record's crc become the crc of the same body elsewhere."""
    assert crc32c(data, a) ^ crc32c(data, b) == codec.crc32c_moved(a ^ b, len(data))


def test_crc32c_way_is_one_of_those_that_are_built():
    assert codec.crc32c_way() in {"sse4.2", "armv8", "table"}


# --- records


def test_record_golden_bytes():
    assert codec.encode_record(2, 7, 9, 11, b"hello") == RECORD
    assert crc32c_by_bits(RECORD[4:37]) == int.from_bytes(RECORD[CRC_AT_RECORD], "little")
    assert codec.check_record(RECORD) == 40
    assert codec.record_fields(RECORD)[1:] == (5, 2, 0, 0, 7, 9, 11)


@given(st.integers(1, 255), U32, U64, U64, BODIES, U64)
def test_record_round_trip(kind, group, index, ballot, body, generation):
    salt = codec.salt(generation)
    record = codec.encode_record(kind, group, index, ballot, body)
    stored = (int.from_bytes(record[:4], "little") ^ salt).to_bytes(4, "little") + record[4:]
    assert len(record) % 8 == 0
    assert len(record) - 32 - len(body) in range(8)
    assert codec.check_record(stored + b"what follows", salt) == len(record)
    assert codec.record_fields(stored)[1:] == (len(body), kind, 0, 0, group, index, ballot)
    assert stored[32 : 32 + len(body)] == body


@pytest.mark.parametrize("body_bytes", [0, 1, 5, 8, 31, 100])
@pytest.mark.parametrize("salt", [0, codec.salt(12345)])
def test_every_flipped_bit_of_a_record_is_detected(body_bytes, salt):
    record = codec.encode_record(2, 7, 9, 11, b"\xa5" * body_bytes)
    stored = (int.from_bytes(record[:4], "little") ^ salt).to_bytes(4, "little") + record[4:]
    assert codec.check_record(stored, salt) == len(stored)
    for bit, flipped in flips(stored):
        assert codec.check_record(flipped + bytes(300), salt) == 0, bit


def test_truncated_record_is_no_record():
    for length in range(len(RECORD)):
        assert codec.check_record(RECORD[:length]) == 0, length


def test_record_body_is_limited_to_the_byte():
    assert codec.check_record(RECORD, 0, 4) == 0
    assert codec.check_record(RECORD, 0, 5) == len(RECORD)


def test_record_whose_length_wraps_is_no_record():
    for body_bytes in (0xFFFFFFFF, 0xFFFFFFF8, 0xFFFFFFE0, 0x80000000):
        hostile = RECORD[:4] + body_bytes.to_bytes(4, "little") + RECORD[8:]
        assert codec.check_record(hostile) == 0


def test_zeros_are_no_record_under_any_salt():
    # The salt under which 28 zero bytes would have the crc that is stored as zero.
    salt = crc32c_by_bits(bytes(28))
    assert codec.check_record(bytes(64), salt) == 0
    assert codec.check_record(bytes(64), 0) == 0


def test_record_of_another_generation_is_no_record():
    salts = [codec.salt(generation) for generation in range(1000)]
    assert len(set(salts)) == 1000
    assert codec.salt(5) == crc32c_by_bits((5).to_bytes(8, "little"))
    stored = (int.from_bytes(RECORD[:4], "little") ^ salts[5]).to_bytes(4, "little") + RECORD[4:]
    assert [i for i, salt in enumerate(salts) if codec.check_record(stored, salt)] == [5]


# --- frames


def test_frame_golden_bytes():
    assert codec.encode_frame(2, 1, 2, 99, b"hello") == FRAME
    unsealed = FRAME[:12] + bytes(4) + FRAME[16:]
    assert crc32c_by_bits(unsealed) == int.from_bytes(FRAME[CRC_AT_FRAME], "little")
    assert check(FRAME) == "ok"
    fields = codec.frame_fields(FRAME)
    assert fields[:4] == (0x31584850, 5, 2, 5)
    assert fields[5:] == (1, 2, 99)


@given(U16, U32, U32, U64, BODIES)
@example(0, 0, 0, 0, b"")
@example(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, (1 << 64) - 1, b"\xff")
def test_frame_round_trip(kind, source, dest, cluster, payload):
    frame = codec.encode_frame(kind, source, dest, cluster, payload)
    expected = {"cluster": cluster, "self_node": dest, "expected_source": source}
    assert frame[32:] == payload
    assert check(frame, **expected) == "ok"
    assert check(frame + b"and the next one", **expected) == "ok"
    assert codec.frame_fields(frame)[1:4] == (5, kind, len(payload))


@pytest.mark.parametrize("payload_bytes", [0, 1, 5, 33, 100])
def test_every_flipped_bit_of_a_frame_is_detected(payload_bytes):
    frame = codec.encode_frame(2, 1, 2, 99, b"\x5a" * payload_bytes)
    for bit, flipped in flips(frame):
        assert check(flipped) != "ok", bit
        assert check(flipped + bytes(200), payload_bytes_max=100) not in ("ok", "short"), bit


def test_truncated_frame_is_waited_for():
    for length in range(len(FRAME)):
        assert check(FRAME[:length]) == "short", length


def test_frame_payload_is_limited_to_the_byte_and_before_it_arrives():
    assert check(FRAME, payload_bytes_max=5) == "ok"
    assert check(FRAME, payload_bytes_max=4) == "too large"
    assert check(FRAME[:32], payload_bytes_max=4) == "too large"
    longest = FRAME[:8] + b"\xff" * 4 + FRAME[12:]
    assert check(longest) == "too large"
    assert check(longest, payload_bytes_max=0xFFFFFFFF) == "short"


@pytest.mark.parametrize(
    ("at", "byte", "verdict"),
    [
        pytest.param(0, 0x51, "bad magic", id="magic"),
        pytest.param(4, 6, "bad version", id="newer version"),
        pytest.param(4, 4, "bad version", id="older version"),
        pytest.param(4, 0, "bad version", id="version 0"),
        pytest.param(32, 0x69, "bad crc", id="payload"),
        pytest.param(6, 3, "bad crc", id="kind"),
        pytest.param(24, 98, "bad crc", id="cluster, not by its sender"),
    ],
)
def test_verdict_on_a_changed_frame(at, byte, verdict):
    changed = bytearray(FRAME)
    changed[at] = byte
    assert check(bytes(changed)) == verdict


def test_frame_from_elsewhere_is_refused_by_name():
    assert check(FRAME, cluster=98) == "bad cluster"
    assert check(FRAME, cluster=99 + (1 << 63)) == "bad cluster"
    assert check(FRAME, self_node=3) == "bad node"
    assert check(FRAME, expected_source=3) == "bad node"
    assert check(FRAME, expected_source=0) == "ok"


def test_frame_to_nobody_in_particular_is_for_everybody():
    frame = codec.encode_frame(1, 1, 0, 99, b"")
    assert check(frame, self_node=2) == "ok"
    assert check(frame, self_node=3) == "ok"


# --- hostile bytes


@given(st.binary(max_size=300), U32, U32)
def test_random_bytes_are_neither_frame_nor_record(data, salt, limit):
    assert codec.check_record(data, salt, limit) == 0
    assert check(data, payload_bytes_max=limit) != "ok"


@given(st.binary(min_size=32, max_size=120))
def test_random_bytes_behind_a_good_magic_and_version_are_no_frame(data):
    assert check(FRAME[:8] + data[8:]) in {"short", "too large", "bad crc"}


def test_blocks_are_given_back(no_leaks):
    for _ in range(100):
        codec.encode_record(1, 1, 1, 1, b"")
        codec.encode_frame(1, 1, 1, 1, b"x" * 1000)


# --- speed


@pytest.mark.parametrize("body_bytes", [0, 100, 1000])
def test_time_of_encoding_a_thousand_records(benchmark, body_bytes):
    assert benchmark(codec.time_record_encode, 1000, bytes(body_bytes)) > 0


@pytest.mark.parametrize("crc32c", [codec.crc32c, codec.crc32c_table])
def test_time_of_the_crc_of_64_kib(benchmark, crc32c):
    assert benchmark(crc32c, bytes(65536)) == crc32c(bytes(65536))
