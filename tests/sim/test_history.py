"""The checker of histories: what it must reject, what it must accept, and what brute force says."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phx.sim.history import (
    IMPOSSIBLE,
    UNSEEN,
    KeyValueModel,
    Operation,
    check_history,
)


def history(*rows):
    """Operations on one key: (kind, argument, result, called, returned), each of its own client."""
    return [
        Operation(client, "k", kind, argument, result, called, returned)
        for client, (kind, argument, result, called, returned) in enumerate(rows)
    ]


BAD = {
    "stale read": [
        ("put", b"a", None, 0, 1),
        ("put", b"b", None, 2, 3),
        ("get", None, b"a", 4, 5),
    ],
    "read goes back": [
        ("put", b"a", None, 0, 1),
        ("put", b"b", None, 2, 9),
        ("get", None, b"b", 3, 4),
        ("get", None, b"a", 5, 6),
    ],
    "lost update": [
        ("put", b"a", None, 0, 1),
        ("get", None, None, 2, 3),
    ],
    "lost append": [
        ("append", b"1", b"1", 0, 1),
        ("append", b"2", b"2", 2, 3),
    ],
    "append applied twice": [
        ("append", b"1", b"1", 0, 1),
        ("get", None, b"11", 2, 3),
    ],
    "append of unknown outcome applied twice": [
        ("append", b"1", None, 0, None),
        ("get", None, b"11", 2, 3),
    ],
    "read of a value that was never written": [
        ("put", b"a", None, 0, 1),
        ("get", None, b"x", 2, 3),
    ],
    "both of two compare-and-set succeed": [
        ("put", b"a", None, 0, 1),
        ("cas", (b"a", b"b"), True, 2, 5),
        ("cas", (b"a", b"c"), True, 3, 4),
    ],
    "compare-and-set fails for no reason": [
        ("put", b"a", None, 0, 1),
        ("cas", (b"a", b"b"), False, 2, 3),
    ],
    "an unknown effect appears and disappears": [
        ("put", b"a", None, 0, 1),
        ("put", b"b", None, 2, None),
        ("get", None, b"b", 3, 4),
        ("get", None, b"a", 5, 6),
    ],
    "an unknown effect comes twice": [
        ("put", b"b", None, 0, None),
        ("get", None, b"b", 1, 2),
        ("put", b"a", None, 3, 4),
        ("get", None, b"b", 5, 6),
    ],
    "an effect before its call": [
        ("get", None, b"a", 0, 1),
        ("put", b"a", None, 2, 3),
    ],
    "an unknown effect before its call": [
        ("get", None, b"a", 0, 1),
        ("put", b"a", None, 2, None),
    ],
    "an effect that was lost on its way back is missing": [
        ("put", b"a", UNSEEN, 0, 1),
        ("get", None, None, 2, 3),
    ],
    "a key deleted twice": [
        ("put", b"a", None, 0, 1),
        ("delete", None, True, 2, 3),
        ("delete", None, True, 4, 5),
    ],
    "two readers see two orders": [
        ("put", b"a", None, 0, 9),
        ("put", b"b", None, 0, 9),
        ("get", None, b"a", 1, 2),
        ("get", None, b"b", 3, 4),
        ("get", None, b"a", 5, 6),
    ],
}

GOOD = {
    "nothing": [],
    "one after the other": [
        ("put", b"a", None, 0, 1),
        ("get", None, b"a", 2, 3),
        ("cas", (b"a", b"b"), True, 4, 5),
        ("append", b"c", b"bc", 6, 7),
        ("delete", None, True, 8, 9),
        ("get", None, None, 10, 11),
    ],
    "a write seen before it returns": [
        ("put", b"a", None, 0, 9),
        ("get", None, b"a", 1, 2),
    ],
    "concurrent writes in either order": [
        ("put", b"a", None, 0, 5),
        ("put", b"b", None, 0, 5),
        ("get", None, b"a", 6, 7),
    ],
    "an unknown write never seen": [
        ("put", b"a", None, 0, 1),
        ("put", b"b", None, 2, None),
        ("get", None, b"a", 3, 4),
    ],
    "an unknown write seen late": [
        ("put", b"b", None, 0, None),
        ("put", b"a", None, 1, 2),
        ("get", None, b"a", 3, 4),
        ("get", None, b"b", 5, 6),
    ],
    "an unknown write seen through a failure only": [
        ("put", b"a", None, 0, 1),
        ("put", b"b", None, 2, None),
        ("cas", (b"a", b"c"), False, 3, 4),
    ],
    "an unknown chain": [
        ("cas", (None, b"a"), None, 0, None),
        ("cas", (b"a", b"b"), None, 0, None),
        ("get", None, b"b", 1, 2),
    ],
    "unknown appends": [
        ("append", b"1", None, 0, None),
        ("append", b"2", None, 0, None),
        ("append", b"3", None, 0, None),
        ("get", None, b"31", 1, 2),
        ("append", b"4", b"3124", 3, 4),
    ],
    "an unknown write before an append whose result was lost": [
        ("put", b"b", None, 0, None),
        ("append", b"a", UNSEEN, 0, 0),
        ("get", None, b"ba", 1, 1),
    ],
    "a call and a return at one time are concurrent": [
        ("put", b"a", None, 0, 2),
        ("get", None, None, 2, 3),
        ("get", None, b"a", 3, 4),
    ],
    "a result that was not kept": [
        ("append", b"1", UNSEEN, 0, 1),
        ("get", None, UNSEEN, 1, 2),
        ("append", b"2", b"12", 2, 3),
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_rejects(name):
    found = check_history(history(*BAD[name]))
    assert found is not None
    assert found.kind == "linearizable"
    assert found.key == "k"
    assert found.window


@pytest.mark.parametrize("name", GOOD)
def test_accepts(name):
    assert check_history(history(*GOOD[name])) is None


def test_keys_do_not_touch_each_other():
    operations = [
        Operation(1, "a", "put", b"1", None, 0, 1),
        Operation(2, "b", "get", None, None, 2, 3),
        Operation(3, "b", "get", None, b"1", 4, 5),
    ]
    found = check_history(operations)
    assert found is not None
    assert found.key == "b"


def test_a_finding_names_the_operation_and_shows_who_wrote_what_it_saw():
    rows = [("put", b"old", None, 0, 1)]
    rows += [("put", b"%d" % i, None, 2 * i + 2, 2 * i + 3) for i in range(100)]
    rows.append(("get", None, b"old", 1000, 1001))
    found = check_history(history(*rows))
    assert found is not None
    text = str(found)
    assert "get(" in text
    assert "returned at 1001: b'old'" in text
    assert "put(b'old')" in text
    assert "the value was b'99'" in text
    assert len(found.window) < 10


def test_what_is_too_much_is_undecided_and_not_a_success():
    rows = [("append", b"%d," % i, None, 0, None) for i in range(12)]
    rows.append(("cas", (b"never", b"x"), True, 1, 2))
    found = check_history(history(*rows), steps_max=2000)
    assert found is not None
    assert found.kind == "undecided"
    assert "2000 steps" in found.message


def test_a_violation_comes_before_what_is_undecided():
    operations = [Operation(i, "a", "append", b"%d," % i, None, 0, None) for i in range(12)]
    operations.append(Operation(13, "a", "cas", (b"never", b"x"), True, 1, 2))
    operations.append(Operation(14, "b", "get", None, b"x", 1, 2))
    found = check_history(operations, steps_max=2000)
    assert found is not None
    assert (found.kind, found.key) == ("linearizable", "b")


def test_an_operation_that_returns_before_its_call_is_an_error_of_the_caller():
    with pytest.raises(ValueError):
        check_history([Operation(1, "k", "put", b"a", None, 5, 4)])


def test_many_unknown_writes_do_not_double_the_work_each():
    rows = []
    for i in range(60):
        rows.append(("put", b"u%d" % i, None, 10 * i, None))
        rows.append(("put", b"w%d" % i, None, 10 * i + 1, 10 * i + 2))
        rows.append(("get", None, b"u%d" % i if i % 3 else b"w%d" % i, 10 * i + 3, 10 * i + 4))
    assert check_history(history(*rows)) is None
    rows.append(("get", None, b"u1", 1000, 1001))
    assert check_history(history(*rows)) is not None


def long_history(count, clients=4):
    """Clients, each in a loop, over a register that is right: every operation at its middle."""
    state = None
    operations = []
    for i in range(count):
        at = 10 * i
        client = i % clients
        called, returned = at - 4 * clients, at + 4 * clients
        if i % 3 == 0:
            state = b"%d" % i
            operations.append(Operation(client, "k", "put", state, None, called, returned))
        elif i % 3 == 1:
            operations.append(Operation(client, "k", "get", None, state, called, returned))
        else:
            expected = state if i % 2 else b"other"
            if expected == state:
                state = b"c%d" % i
            new = b"c%d" % i
            operations.append(
                Operation(client, "k", "cas", (expected, new), i % 2 == 1, called, returned)
            )
    return operations


def test_a_long_history_takes_time_in_proportion():
    operations = long_history(30_000)
    start = time.process_time()
    assert check_history(operations, steps_max=10_000_000) is None
    assert time.process_time() - start < 20
    operations[20_001].result = b"never"
    operations[20_001].kind = "get"
    assert check_history(operations, steps_max=10_000_000) is not None


# --- against brute force


def explained(operations, model):
    """Is there an order? All of them are tried, over all subsets of the unknown ones."""
    known = [one for one in operations if one.returned_us is not None]
    unknown = [one for one in operations if one.returned_us is None]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            for order in itertools.permutations(known + list(some)):
                if in_real_time(order) and runs(order, model):
                    return True
    return False


def in_real_time(order):
    return all(
        later.returned_us is None or later.returned_us >= earlier.called_us
        for earlier, later in itertools.combinations(order, 2)
    )


def runs(order, model):
    state = model.initial
    for operation in order:
        state = model.step(state, operation)
        if state is IMPOSSIBLE:
            return False
    return True


VALUES = [b"a", b"b"]
SEEN = [None, b"a", b"b", b"ab", b"ba"]


@st.composite
def operations(draw):
    kind = draw(st.sampled_from(["get", "put", "cas", "append", "delete"]))
    argument, result = None, None
    if kind == "get":
        result = draw(st.sampled_from(SEEN))
    elif kind == "put":
        argument = draw(st.sampled_from(VALUES))
    elif kind == "append":
        argument = draw(st.sampled_from(VALUES))
        result = draw(st.sampled_from([b"a", b"b", b"ab", b"ba", b"aa"]))
    elif kind == "cas":
        argument = draw(st.tuples(st.sampled_from([None, *VALUES]), st.sampled_from(VALUES)))
        result = draw(st.booleans())
    else:
        result = draw(st.booleans())
    called = draw(st.integers(0, 8))
    how = draw(st.sampled_from(["known", "known", "known", "unknown", "unseen"]))
    returned = None if how == "unknown" else called + draw(st.integers(0, 5))
    if how == "unseen":
        result = UNSEEN
    return Operation(0, "k", kind, argument, result, called, returned)


@settings(max_examples=400, deadline=None)
@given(st.lists(operations(), max_size=5))
def test_agrees_with_brute_force(drawn):
    expected = explained(drawn, KeyValueModel())
    assert (check_history(drawn) is None) == expected
