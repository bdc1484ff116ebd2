"""Members as callers write and read them."""

import copy
import pickle

import pytest

from phx._core.members import read, write
from phx.types import ADDRESS_MAX, Members, Role, learner, voter, witness
from tests.checkpoint.checkpoint_lab import membership

THREE = {4: voter("10.0.0.4:7000"), 2: witness("b:1"), 9: learner("c.example:65535")}


def test_members_are_read_by_ascending_id():
    made = Members(3, False, THREE)
    assert list(made.by_id) == [2, 4, 9]
    assert made.by_id[2] == (Role.WITNESS, "b:1")
    assert [one.role for one in made.by_id.values()] == [2, 1, 3]


def test_they_never_change():
    given = dict(THREE)
    made = Members(3, False, given)
    given.clear()
    assert len(made.by_id) == 3
    with pytest.raises(TypeError):
        made.by_id[4] = voter("x:1")
    with pytest.raises(AttributeError):
        made.version = 4


def test_they_can_be_copied_and_pickled():
    made = Members(3, True, THREE)
    assert copy.copy(made) == made
    assert pickle.loads(pickle.dumps(made)) == made


BAD = [
    (0, THREE),
    (True, THREE),
    (1 << 64, THREE),
    (1, {}),
    (1, {node: voter("a:1") for node in range(1, 17)}),
    (1, {0: voter("a:1")}),
    (1, {1 << 20: voter("a:1")}),
    (1, {"1": voter("a:1")}),
    (1, {1: voter("")}),
    (1, {1: voter("a b:1")}),
    (1, {1: voter("ä:1")}),
    (1, {1: voter("a" * (ADDRESS_MAX + 1))}),
    (1, {1: witness("a:1"), 2: learner("b:1")}),
    (1, {1: (4, "a:1"), 2: voter("b:1")}),
]


@pytest.mark.parametrize(("version", "by_id"), BAD, ids=range(len(BAD)))
def test_what_no_members_can_be(version, by_id):
    with pytest.raises(ValueError):
        Members(version, False, by_id)


@pytest.mark.parametrize(
    "by_id",
    [THREE, {1: voter("a" * ADDRESS_MAX)}, {(1 << 20) - 1: voter("!~")}],
    ids=["three", "long", "odd"],
)
def test_what_members_can_be_can_stand_in_the_log(by_id):
    """Their rules are those of the value that says them."""
    made = Members(2, False, by_id)
    rows = [(node, one.role, one.address.encode()) for node, one in made.by_id.items()]
    assert read(write(2, 1, 1, rows)) == (2, 1, 1, [(node, int(r), a) for node, r, a in rows])


def test_what_the_disk_says_is_what_a_caller_sees():
    shown = membership(40, 3, (1, 4), active=True).members()
    assert shown == Members(3, True, {1: voter("10.0.0.1:7000"), 4: voter("10.0.0.4:7000")})
