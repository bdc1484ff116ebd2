"""The directory: which groups a cluster has."""

import io

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phx.errors import Damaged
from phx.machines import directory
from phx.machines.directory import Answer, Directory, GroupRow
from phx.machines.objects import read_objects
from phx.types import DIRECTORY_GROUP, Entry, created_version


def told(machine: Directory, command: bytes) -> Answer:
    return machine.apply(Entry(value=command))


def at(*nodes: int) -> dict[int, str]:
    return {node: f"host{node}:7000" for node in nodes}


def create(machine: Directory, group: int, *nodes: int) -> Answer:
    return told(machine, directory.encode_create(group, at(*nodes)))


def row(generation: int, phase: directory.GroupPhase, *nodes: int) -> GroupRow:
    return GroupRow(generation, phase, tuple(at(*nodes).items()))


def test_a_group_lives_ends_when_one_says_so_and_comes_again_in_another_generation() -> None:
    one = Directory()
    assert create(one, 7, 2, 1) == Answer(True, row(1, "live", 1, 2))
    assert told(one, directory.encode_ended(7, 1)).done is False, "nobody wants it to end"
    assert told(one, directory.encode_delete(7, 1)) == Answer(True, row(1, "ending", 1, 2))
    assert create(one, 7, 1, 2).done is False, "not before it is gone"
    assert told(one, directory.encode_ended(7, 1)).row == row(1, "gone")
    assert create(one, 7, 3).row == row(2, "live", 3)
    for command in (
        directory.encode_delete(7, 1),
        directory.encode_ended(7, 1),
        directory.encode_stop(7, 1),
    ):
        assert told(one, command) == Answer(False, row(2, "live", 3))


def test_what_is_done_is_done_however_often_it_is_said() -> None:
    one = Directory()
    for command in (
        directory.encode_create(7, at(1, 2)),
        directory.encode_stop(7, 1),
        directory.encode_resume(7, 1),
        directory.encode_delete(7, 1),
        directory.encode_ended(7, 1),
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
    elsewhere = directory.encode_create(7, {1: "host1:7000", 2: "elsewhere:7000"})
    assert told(one, elsewhere).done is False
    assert one.rows == {7: row(1, "live", 1, 2)}


def test_a_stopped_group_is_resumed_or_deleted_and_not_created() -> None:
    one = Directory()
    create(one, 7, 1)
    assert told(one, directory.encode_stop(7, 1)).row == row(1, "stopped", 1)
    assert create(one, 7, 1).done is False
    assert told(one, directory.encode_delete(7, 1)).row == row(1, "ending", 1)
    assert told(one, directory.encode_resume(7, 1)).done is False
    assert told(one, directory.encode_stop(7, 1)).done is False


def test_whoever_looks_at_the_rows_is_told_of_each_change_and_of_nothing_else() -> None:
    seen = []
    one = Directory(lambda: seen.append(one.revision))
    create(one, 7, 1)
    create(one, 7, 1)
    create(one, 7, 2)
    told(one, directory.encode_delete(7, 1))
    assert seen == [1, 2]
    written = io.BytesIO()
    one.snapshot(written)
    other = Directory(lambda: seen.append(100 + other.revision))
    other.restore(io.BytesIO(written.getvalue()))
    assert seen == [1, 2, 102]


@pytest.mark.parametrize(
    ("group", "members"),
    [
        (-1, at(1)),
        (DIRECTORY_GROUP, at(1)),
        (1, {}),
        (1, at(*range(1, 17))),
        (1, at(0)),
        (1, at(1 << 20)),
        (1, {1: ""}),
        (1, {1: "a b:1"}),
    ],
)
def test_what_cannot_be_is_not_encoded_and_not_applied(group, members) -> None:
    with pytest.raises(ValueError, match=r"group|node"):
        directory.encode_create(group, members)
    one = Directory()
    packed = msgpack.packb(["create", group, sorted(members.items())])
    assert told(one, packed).done is False
    assert (one.rows, one.revision) == ({}, 0)


def test_the_last_generation_of_an_id_is_the_last() -> None:
    one = Directory()
    one.rows[7] = row(65_535, "gone")
    assert create(one, 7, 1) == Answer(False, row(65_535, "gone"))


@given(st.binary(max_size=40))
def test_anything_else_changes_nothing(value: bytes) -> None:
    one = Directory()
    create(one, 7, 1)
    assert isinstance(told(one, value), Answer)
    assert one.rows[7].generation == 1


@given(
    st.sampled_from(["create", "stop", "resume", "delete", "ended", "members"]),
    st.lists(st.one_of(st.integers(), st.text(max_size=3), st.none(), st.lists(st.none()))),
)
def test_a_command_of_another_shape_is_none(name: str, rest: list[object]) -> None:
    one = Directory()
    try:
        packed = msgpack.packb([name, *rest])
    except OverflowError:
        return
    assert told(one, packed) == Answer(False, None)
    assert one.rows == {}


GROUPS, GENERATIONS = st.integers(0, 3), st.integers(1, 2)


def moved(group: int, generation: int, change: int, nodes: set[int], active: bool) -> bytes:
    version = created_version(generation) + change
    return directory.encode_members(group, generation, version, at(*nodes), active=active)


COMMANDS = st.one_of(
    st.builds(
        directory.encode_create,
        GROUPS,
        st.sets(st.integers(1, 3), min_size=1).map(lambda nodes: at(*nodes)),
    ),
    st.builds(directory.encode_stop, GROUPS, GENERATIONS),
    st.builds(directory.encode_resume, GROUPS, GENERATIONS),
    st.builds(directory.encode_delete, GROUPS, GENERATIONS),
    st.builds(directory.encode_ended, GROUPS, GENERATIONS),
    st.builds(
        moved,
        GROUPS,
        GENERATIONS,
        st.integers(1, 4),
        st.sets(st.integers(1, 6), min_size=1),
        st.booleans(),
    ),
)


@given(st.lists(COMMANDS, max_size=60))
def test_a_generation_never_comes_again_and_a_snapshot_is_all_of_it(commands) -> None:
    one, ended = Directory(), set()
    for command in commands:
        before = dict(one.rows)
        told(one, command)
        for group, now in one.rows.items():
            was = before.get(group)
            if was is not None:
                assert now.generation >= was.generation
                assert now.generation == was.generation or was.phase == "gone"
                if now.generation == was.generation and now.phase != "gone":
                    assert now.first == was.first, "they are the first ones for ever"
                    assert (now.version, now.active) >= (was.version, was.active)
                    if now.nodes != was.nodes and not now.active:
                        assert {*was.nodes} <= {*now.nodes}, "nobody is let go of before"
            if now.phase == "gone":
                ended.add((group, now.generation))
            else:
                assert (group, now.generation) not in ended
            assert bool(now.members) == (now.phase != "gone")
    written = io.BytesIO()
    one.snapshot(written)
    other = Directory()
    other.restore(io.BytesIO(written.getvalue()))
    assert (other.rows, other.revision, other.digest()) == (one.rows, one.revision, one.digest())


def members(machine: Directory, version: int, *nodes: int, active: bool = True) -> Answer:
    return told(machine, directory.encode_members(7, 1, version, at(*nodes), active=active))


def test_members_of_before_host_a_group_until_the_newest_are_active() -> None:
    one = Directory()
    create(one, 7, 1, 2, 3)
    found = members(one, 3, 3, 4, 5, active=False).row
    assert found is not None
    assert ([node for node, _ in found.members], set(found.nodes)) == ([3, 4, 5], {1, 2, 3, 4, 5})
    assert not found.without(1, 2), "it may still be needed"
    found = members(one, 3, 3, 4, 5).row
    assert found is not None
    assert found.nodes == (3, 4, 5)
    assert found.first == row(1, "live", 1, 2, 3).members
    assert [found.without(node, 2) for node in (1, 2, 3)] == [True, True, False]
    assert not found.without(6, 3), "who was told of this version or a later one knows better"
    assert create(one, 7, 1, 2, 3).done, "to ask again is safe, whoever its members are by now"
    assert create(one, 7, 3, 4, 5).done is False


def test_news_of_members_that_is_old_or_of_another_group_changes_nothing() -> None:
    one = Directory()
    create(one, 7, 1, 2, 3)
    members(one, 4, 4, 5)
    found, revision = one.rows[7], one.revision
    for version, active in ((3, True), (4, False), (4, True)):
        assert members(one, version, 1, 2, active=active) == Answer(True, found)
    other = directory.encode_members(7, 2, created_version(2) + 3, at(1), active=True)
    assert told(one, other) == Answer(False, found)
    assert told(one, directory.encode_members(8, 1, 5, at(1), active=True)).row is None
    assert one.revision == revision
    told(one, directory.encode_stop(7, 1))
    assert one.rows[7].nodes == (4, 5), "stopped or not, they are its members"
    told(one, directory.encode_delete(7, 1))
    told(one, directory.encode_ended(7, 1))
    assert members(one, 5, 1) == Answer(False, row(1, "gone"))
    assert create(one, 7, 1).row == row(2, "live", 1)


@pytest.mark.parametrize("version", [-1, 0, 1, 2, created_version(2), 1 << 32, True, "3"])
def test_members_of_no_version_are_not_encoded(version) -> None:
    with pytest.raises(ValueError, match="version"):
        directory.encode_members(7, 1, version, at(1), active=True)


def test_a_snapshot_of_before_there_were_moves_is_read_and_its_like_written() -> None:
    """The bytes of one that an older version wrote, spelled out."""
    old = Directory()
    create(old, 7, 1, 2)
    written = io.BytesIO()
    old.snapshot(written)
    said = [
        ["phx directory 1", 1, 1],
        [7, 1, 0, [[1, "host1:7000"], [2, "host2:7000"]]],
    ]
    assert list(read_objects(io.BytesIO(written.getvalue()), "")) == said
    members(old, 3, 2, 3)
    written = io.BytesIO()
    old.snapshot(written)
    head, packed = read_objects(io.BytesIO(written.getvalue()), "")
    assert head[0] == "phx directory 2", "an older version says that it does not know it"
    assert packed[3:] == [
        [[2, "host2:7000"], [3, "host3:7000"]], 3, True, [[1, "host1:7000"], [2, "host2:7000"]], [],
    ]  # fmt: skip


def test_what_is_no_snapshot_is_damage() -> None:
    one = Directory()
    create(one, 7, 1)
    written = io.BytesIO()
    one.snapshot(written)
    whole = written.getvalue()
    for piece in (b"", whole[:-5], whole[1:], b"\0" + whole):
        with pytest.raises(Damaged):
            Directory().restore(io.BytesIO(piece))
