"""Every error says what became of the value."""

import copy
import pickle
import re

import pytest

import phx
from phx import errors
from phx.errors import PhxError, Rejected, Unknown, all_errors
from phx.types import Members, voter

MADE = {
    errors.GroupStopped: (7, 12, 0, "apply raised"),
    errors.NotLeader: (7, 2),
    errors.ConfigError: (["node: missing"],),
    errors.NotReady: ([1, 2],),
    errors.VersionConflict: (7, Members(3, True, {1: voter("a:1")})),
    errors.ChangeUnderWay: (7,),
    errors.GroupExists: (7, "live"),
    errors.NotCaughtUp: (7, [4, 5]),
    errors.PartlyDone: ([errors.TimedOut("late")],),
}


def make(kind):
    return kind(*MADE.get(kind, ("why",)))


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_is_rejected_or_unknown_but_for_the_one_that_says_applied(kind):
    if kind is errors.ResultNotKept:
        assert kind.outcome == "applied"
        assert not issubclass(kind, Rejected | Unknown)
        return
    assert kind.outcome in ("rejected", "unknown")
    if kind not in (PhxError,):
        assert issubclass(kind, Rejected) != issubclass(kind, Unknown)
        assert (kind.outcome == "unknown") == issubclass(kind, Unknown)


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_is_documented(kind):
    assert kind.__doc__
    if kind in (PhxError, Rejected, Unknown):
        return
    outcomes = "rejected|unknown|applied"
    row = re.search(rf"^\s+{kind.__name__}\s+({outcomes})\s", errors.__doc__, re.MULTILINE)
    assert row, f"{kind.__name__} is not in the table"
    assert row[1] == kind.outcome


def test_the_table_names_no_error_that_is_not_there():
    table = errors.__doc__.split("-----\n", 1)[1]
    pattern = r"^\s+([A-Z]\w+)\s+(?:rejected|unknown|applied)\s"
    names = set(re.findall(pattern, table, re.MULTILINE))
    assert names == {kind.__name__ for kind in all_errors()} - {"PhxError", "Rejected", "Unknown"}


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_can_be_pickled_and_copied(kind):
    error = make(kind)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert twin.outcome == error.outcome


def test_timeouts_are_timeout_errors():
    for kind in (errors.TimedOut, errors.TimedOutUnknown, errors.NoQuorum, errors.NotReady):
        assert issubclass(kind, TimeoutError)


def test_a_stopped_group_names_group_instance_and_machine():
    error = make(errors.GroupStopped)
    assert (error.group, error.instance, error.machine) == (7, 12, 0)
    assert "group 7" in str(error)
    assert "instance 12" in str(error)
    assert "machine 0" in str(error)


def test_errors_of_a_change_of_members_say_what_there_is():
    conflict = make(errors.VersionConflict)
    assert (conflict.group, conflict.members.version) == (7, 3)
    assert pickle.loads(pickle.dumps(conflict)).members == conflict.members
    assert make(errors.ChangeUnderWay).group == 7
    assert make(errors.NotCaughtUp).nodes == [4, 5]


def test_the_package_hands_out_what_it_promises():
    for name in phx.__all__:
        assert getattr(phx, name) is not None
    assert set(dir(phx)) == set(phx.__all__)
    with pytest.raises(AttributeError):
        phx.no_such_thing  # noqa: B018
