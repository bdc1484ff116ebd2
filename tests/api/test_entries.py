"""Entries: a sequence over the log's own memory that makes each entry when it is looked at."""

from collections.abc import Sequence

import pytest

from phx._core.entries import Entries, Entry
from phx._core.waiters import Waiters
from phx.errors import PartlyDone
from tests.api.test_sessions import GROUP, INCARNATION, ME, Log
from tests.api.test_waiters import Waiter


def places(entries):
    return [(entry.instance, entry.index, entry.node, entry.sequence) for entry in entries]


@pytest.fixture
def entries():
    """Five values in two instances; one in the middle is a duplicate and left out."""
    log = Log()
    log.offer((2, 1, 1, 2, 1))
    return log.offer((ME, INCARNATION, 1, 1, 2), (2, 1, 1, 1, 3)).entries


def test_an_entry_has_its_place_whatever_was_left_out_before_it(entries):
    assert places(entries) == [(2, 0, ME, 1), (2, 1, ME, 2), (2, 2, 2, 0), (2, 4, 2, 0)]
    assert [int(entry.value) for entry in entries] == [1, 2, 1, 3]
    assert {entry.group for entry in entries} == {GROUP}


def test_it_is_a_sequence(entries):
    assert isinstance(entries, Sequence)
    assert len(entries) == 4
    assert places([entries[i] for i in range(-4, 4)]) == places(list(entries) * 2)
    assert places(reversed(entries)) == places(entries)[::-1]
    for beyond in (4, -5):
        with pytest.raises(IndexError):
            entries[beyond]


@pytest.mark.parametrize("start", range(-5, 6))
@pytest.mark.parametrize("stop", range(-5, 6))
def test_a_slice_is_what_a_list_would_give(entries, start, stop):
    part = entries[start:stop]
    assert isinstance(part, Entries)
    assert places(part) == places(list(entries)[start:stop])
    assert len(part) == len(list(entries)[start:stop])
    assert places(part[1:]) == places(part)[1:]
    assert places(entries[start:stop:-2]) == places(list(entries)[start:stop:-2])


def test_entries_outlive_their_batch(entries):
    kept, later = entries[2:], iter(entries)
    first = next(later)
    del entries
    assert [int(entry.value) for entry in kept] == [1, 3]
    assert (first.sequence, len(list(later))) == (1, 3)


def test_there_may_be_none():
    log = Log()
    log.offer((2, 1, 1, 1, 1))
    empty = log.offer((2, 1, 1, 1, 1)).entries
    assert (len(empty), list(empty), list(empty[0:3])) == (0, [], [])
    with pytest.raises(IndexError):
        empty[0]


def test_an_entry_can_be_made_by_hand():
    assert Entry(3, 4, b"value", index=5).value == b"value"


@pytest.mark.parametrize("start", range(6))
@pytest.mark.parametrize("count", range(4))
def test_callers_are_found_from_any_place_on(start, count):
    most = {"group_values_max": 99, "group_bytes_max": 99}
    waiters = Waiters([GROUP], node_values_max=99, node_bytes_max=99, partly=PartlyDone, **most)
    callers = [Waiter() for _ in range(4)]
    for caller in callers:
        waiters.add(GROUP, caller, 1)
    runs = [(ME, INCARNATION, 1, 1, 2), (2, 1, 1, 1, 2), (ME, INCARNATION, 1, 3, 2)]
    entries = Log().offer(*runs).entries
    sequences = [entry.sequence for entry in entries]
    assert sequences == [1, 2, 0, 0, 3, 4]
    if start + count > len(entries):
        with pytest.raises(ValueError, match="more results"):
            waiters.complete(GROUP, entries, [0] * count, start)
        return
    asked = sequences[start : start + count]
    mine = [sequence for sequence in asked if sequence]
    assert waiters.complete(GROUP, entries, [f"of {s}" for s in asked], start) == len(mine)
    for sequence, caller in enumerate(callers, 1):
        assert (caller.result and caller.result.value) == (
            f"of {sequence}" if sequence in mine else None
        )
    rest = entries[start:]
    assert waiters.complete(GROUP, rest, [0] * len(rest)) == sum(
        map(bool, sequences[start:])
    ) - len(mine)
