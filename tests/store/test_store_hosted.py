"""The rows of created groups."""

import pytest

from phx import store_hosted, store_members
from phx._core.codec import crc32c
from phx.membership import Membership, roster_of
from phx.store_hosted import HostedRow, base_of, first_members
from phx.store_members import MembersRow
from phx.types import learner, voter

FIRST = first_members(2, {1: "a:1", 2: "b:1"}).roster
LATER = roster_of(5, {2: voter("b:1"), 4: learner("d:1")})


def joined(instance):
    return MembersRow(Membership(LATER, instance, 77, active=True), left=(1,))


@pytest.mark.parametrize(
    "row",
    [
        HostedRow(2, FIRST),
        HostedRow(2, FIRST, gone=True),
        HostedRow(2, FIRST, stopped=True),
        HostedRow(2, FIRST, joined=joined(base_of(2) + 9)),
        HostedRow(2, FIRST, gone=True, joined=joined(base_of(2) + 9)),
    ],
)
def test_a_row_is_what_was_written(row):
    packed = store_hosted.pack(7, row)
    group, found = store_hosted.unpack(packed)
    assert (group, found) == (7, row)
    assert found.first.nodes == (1, 2)
    assert found.membership.nodes == ((1, 2) if row.joined is None else (2, 4))
    if row.joined is not None:
        assert found.joined.left == (1,)
    assert packed[:8] == (b"PHXHOST1" if row.joined is None else b"PHXHOST2")
    for at in range(len(packed)):
        wrong = bytearray(packed)
        wrong[at] ^= 1
        with pytest.raises(ValueError, match="row"):
            store_hosted.unpack(bytes(wrong))


@pytest.mark.parametrize("instance", [base_of(2), base_of(3), base_of(1) + 9])
def test_members_of_another_generation_are_none_of_it(instance):
    with pytest.raises(ValueError, match="another group"):
        store_hosted.unpack(store_hosted.pack(7, HostedRow(2, FIRST, joined=joined(instance))))


def test_members_of_another_group_are_none_of_it():
    row = HostedRow(2, FIRST, joined=joined(base_of(2) + 9))
    body = store_hosted.pack(7, row)[:-4].replace(
        store_members.pack(7, row.joined), store_members.pack(8, row.joined)
    )
    with pytest.raises(ValueError, match="row"):
        store_hosted.unpack(body + crc32c(body).to_bytes(4, "little"))
