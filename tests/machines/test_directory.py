"""The directory: which groups a cluster has."""

import io

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phx.errors import Damaged
from phx.machines import directory
from phx.machines.directory import Answer, Directory, GroupRow
from phx.types import Entry


def told(machine: Directory, command: bytes) -> Answer:
    return machine.apply(Entry(value=command))


def create(machine: Directory, group: int, *members: int, options: bytes = b"") -> Answer:
    return told(machine, directory.encode_create(group, members, options))


def test_a_group_lives_ends_when_all_have_left_and_comes_again_in_another_generation() -> None:
    one = Directory()
    row = GroupRow(1, "live", (1, 2), b"kv")
    assert create(one, 7, 2, 1, options=b"kv") == Answer(True, row)
    assert told(one, directory.encode_delete(7, 1)) == Answer(
        True, GroupRow(1, "ending", (1, 2), b"kv", (1, 2))
    )
    assert create(one, 7, 1, 2, options=b"kv").done is False, "not before it is gone"
    assert told(one, directory.encode_left(7, 1, 2)).row == GroupRow(
        1, "ending", (1, 2), b"kv", (1,)
    )
    assert told(one, directory.encode_left(7, 1, 1)).row == GroupRow(1, "gone", (1, 2))
    assert create(one, 7, 3).row == GroupRow(2, "live", (3,))
    for command in (
        directory.encode_delete(7, 1),
        directory.encode_left(7, 1, 3),
        directory.encode_stop(7, 1),
    ):
        assert told(one, command) == Answer(False, GroupRow(2, "live", (3,)))


def test_what_is_done_is_done_however_often_it_is_said() -> None:
    one = Directory()
    for command in (
        directory.encode_create(7, (1, 2)),
        directory.encode_stop(7, 1),
        directory.encode_resume(7, 1),
        directory.encode_delete(7, 1),
        directory.encode_left(7, 1, 1),
        directory.encode_left(7, 1, 2),
    ):
        first = told(one, command)
        assert first.done
        revision = one.revision
        assert told(one, command) == first
        assert one.revision == revision
    assert told(one, directory.encode_delete(7, 1)).done


def test_others_of_the_same_id_are_refused() -> None:
    one = Directory()
    create(one, 7, 1, 2)
    assert create(one, 7, 1, 3).done is False
    assert create(one, 7, 1, 2, options=b"x").done is False
    assert one.rows == {7: GroupRow(1, "live", (1, 2))}


def test_a_stopped_group_is_deleted_like_a_live_one() -> None:
    one = Directory()
    create(one, 7, 1)
    assert told(one, directory.encode_stop(7, 1)).row == GroupRow(1, "stopped", (1,))
    told(one, directory.encode_delete(7, 1))
    assert told(one, directory.encode_resume(7, 1)).done is False
    told(one, directory.encode_left(7, 1, 1))
    assert one.rows[7].state == "gone"


def test_nobody_waits_for_a_node_that_is_excused() -> None:
    one = Directory()
    for group in (3, 4, 5):
        create(one, group, 1, 2)
    for group in (3, 4):
        told(one, directory.encode_delete(group, 1))
    told(one, directory.encode_left(3, 1, 1))
    assert told(one, directory.encode_excuse(2)) == Answer(True, None)
    assert one.rows == {
        3: GroupRow(1, "gone", (1, 2)),
        4: GroupRow(1, "ending", (1, 2), b"", (1,)),
        5: GroupRow(1, "live", (1, 2)),
    }


@pytest.mark.parametrize(
    ("group", "members", "options"),
    [
        (-1, (1,), b""),
        (directory.DIRECTORY_GROUP, (1,), b""),
        (1, (), b""),
        (1, range(1, 17), b""),
        (1, (0,), b""),
        (1, (1 << 20,), b""),
        (1, (1,), bytes(65_537)),
    ],
)
def test_what_cannot_be_is_not_encoded_and_not_applied(group, members, options) -> None:
    with pytest.raises(ValueError, match="group"):
        directory.encode_create(group, members, options)
    one = Directory()
    assert told(one, msgpack.packb(["create", group, list(members), options])).done is False
    assert (one.rows, one.revision) == ({}, 0)


def test_the_last_generation_of_an_id_is_the_last() -> None:
    one = Directory()
    one.rows[7] = GroupRow(65_535, "gone", (1,))
    assert create(one, 7, 1) == Answer(False, GroupRow(65_535, "gone", (1,)))


@given(st.binary(max_size=40))
def test_anything_else_changes_nothing(value: bytes) -> None:
    one = Directory()
    create(one, 7, 1)
    assert isinstance(told(one, value), Answer)
    assert one.rows[7].generation == 1


COMMANDS = st.one_of(
    st.builds(
        directory.encode_create,
        st.integers(0, 3),
        st.sets(st.integers(1, 3), min_size=1),
        st.sampled_from([b"", b"x"]),
    ),
    st.builds(directory.encode_stop, st.integers(0, 3), st.integers(1, 2)),
    st.builds(directory.encode_resume, st.integers(0, 3), st.integers(1, 2)),
    st.builds(directory.encode_delete, st.integers(0, 3), st.integers(1, 2)),
    st.builds(directory.encode_left, st.integers(0, 3), st.integers(1, 2), st.integers(1, 3)),
    st.builds(directory.encode_excuse, st.integers(1, 3)),
)


@given(st.lists(COMMANDS, max_size=60))
def test_a_generation_never_comes_again_and_a_snapshot_is_all_of_it(commands) -> None:
    one, ended = Directory(), set()
    for command in commands:
        before = dict(one.rows)
        told(one, command)
        for group, row in one.rows.items():
            was = before.get(group)
            if was is not None:
                assert row.generation >= was.generation
                assert row.generation == was.generation or was.state == "gone"
            if row.state == "gone":
                ended.add((group, row.generation))
            else:
                assert (group, row.generation) not in ended
            assert bool(row.waits) == (row.state == "ending")
    written = io.BytesIO()
    one.snapshot(written)
    other = Directory()
    other.restore(io.BytesIO(written.getvalue()))
    assert (other.rows, other.revision, other.digest()) == (one.rows, one.revision, one.digest())


def test_what_is_no_snapshot_is_damage() -> None:
    one = Directory()
    create(one, 7, 1)
    written = io.BytesIO()
    one.snapshot(written)
    whole = written.getvalue()
    for piece in (b"", whole[:-5], whole[1:], b"\0" + whole):
        with pytest.raises(Damaged):
            Directory().restore(io.BytesIO(piece))
