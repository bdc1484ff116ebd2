"""The bytes of a change of members: what is written is read, and nothing that is not sound."""

import struct

import pytest

from phx._core import batch, members

VOTER, WITNESS, LEARNER = 1, 2, 3
TWO = [(1, VOTER, b"10.0.0.1:7000"), (70_000, LEARNER, b"b:1")]
# By the tables of batch.pxd and members.pxd: kind 2, version 1, two members, no values, P, time.
HEAD = struct.pack("<BBHIQQ", 2, 1, 2, 0, 0x300001, 99)
GOLDEN = (
    HEAD
    + struct.pack("<Q", 7)
    + struct.pack("<IBBH", 1, VOTER, 0, 13) + b"10.0.0.1:7000"
    + struct.pack("<IBBH", 70_000, LEARNER, 0, 3) + b"b:1"
)  # fmt: skip


def sound(rows: list[tuple[int, int, bytes]], version: int = 2, ballot: int = 1) -> bool:
    return members.read(members.write(version, ballot, 0, rows)) is not None


def test_the_bytes_are_those_of_the_table() -> None:
    assert members.write(7, 0x300001, 99, TWO) == GOLDEN
    assert members.read(GOLDEN) == (7, 0x300001, 99, TWO)


def test_no_part_of_it_is_sound_and_nothing_may_follow() -> None:
    for length in range(len(GOLDEN)):
        assert members.read(GOLDEN[:length]) is None
    assert members.read(GOLDEN + b"\0") is None


def test_it_is_a_value_of_an_instance_and_has_no_runs() -> None:
    assert batch.check_body(GOLDEN)
    assert batch.unpack_body(GOLDEN) == (2, 0x300001, 99, [])
    for length in range(len(GOLDEN)):
        assert not batch.check_body(GOLDEN[:length])
    assert not batch.check_body(GOLDEN + b"\0")


def test_a_version_fits_into_a_message() -> None:
    row = [(1, VOTER, b"a:1")]
    assert sound(row, version=(1 << 32) - 1)
    assert not sound(row, version=1 << 32)


def test_any_changed_byte_is_another_value_or_none() -> None:
    for at in range(len(GOLDEN)):
        for flip in (0x01, 0x80, 0xFF):
            other = bytearray(GOLDEN)
            other[at] ^= flip
            read = members.read(bytes(other))
            assert read is None or members.write(*read) == bytes(other)


@pytest.mark.parametrize(
    "rows",
    [
        [(1, WITNESS, b"a:1"), (2, LEARNER, b"b:1")],  # nobody who votes and has a machine
        [(2, VOTER, b"a:1"), (1, VOTER, b"b:1")],
        [(1, VOTER, b"a:1"), (1, VOTER, b"b:1")],
        [(0, VOTER, b"a:1")],
        [(1 << 20, VOTER, b"a:1")],
        [(1, 0, b"a:1"), (2, VOTER, b"b:1")],
        [(1, 4, b"a:1"), (2, VOTER, b"b:1")],
        [(1, VOTER, b"")],
        [(1, VOTER, b"a b:1")],
        [(1, VOTER, b"a\x7f:1")],
        [(1, VOTER, b"\xc3\xa4:1")],
        [(1, VOTER, b"a" * 262)],
    ],
)
def test_members_that_cannot_be_are_not_read(rows: list[tuple[int, int, bytes]]) -> None:
    assert not sound(rows)


def test_limits_are_inclusive() -> None:
    assert sound([((1 << 20) - 1, VOTER, b"a" * 261)])
    assert sound([(n, VOTER, b"a:1") for n in range(1, 16)])
    with pytest.raises(ValueError, match="15 members"):
        members.write(2, 1, 0, [(n, VOTER, b"a:1") for n in range(1, 17)])
    sixteen = members.write(2, 1, 0, [(n, VOTER, b"a:1") for n in range(1, 16)])
    more = bytearray(sixteen + struct.pack("<IBBH", 16, VOTER, 0, 3) + b"a:1")
    more[2] = 16
    assert members.read(bytes(more)) is None


def test_a_first_version_and_a_ballot_of_nobody_are_none() -> None:
    row = [(1, VOTER, b"a:1")]
    assert sound(row)
    assert not sound(row, version=1)
    assert not sound(row, ballot=0)


def test_the_last_value_of_a_group_has_no_members_and_is_one_of_the_same_kind() -> None:
    last = members.write(3, 9, 1, [])
    assert last == struct.pack("<BBHIQQ", 2, 1, 0, 0, 9, 1) + struct.pack("<Q", 3)
    assert members.read(last) == (3, 9, 1, [])
    assert batch.check_body(last)
    assert batch.unpack_body(last) == (2, 9, 1, [])
    assert members.read(last + b"\0") is None
    assert not sound([], ballot=0)
    assert not sound([], version=1)
