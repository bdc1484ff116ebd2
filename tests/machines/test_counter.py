"""The counter."""

from hypothesis import given
from hypothesis import strategies as st

from phx.machines.counter import Counter, encode_add
from phx.types import Entry


@given(st.lists(st.integers()))
def test_it_adds(amounts):
    counter = Counter()
    results = counter.apply_batch([Entry(value=encode_add(amount)) for amount in amounts])
    assert counter.total == sum(amounts)
    assert results == [sum(amounts[: at + 1]) for at in range(len(amounts))]
    assert counter.digest() == b"%d" % sum(amounts)


@given(st.binary(max_size=20))
def test_anything_else_changes_nothing(value):
    counter = Counter()
    result = counter.apply(Entry(value=value))
    assert result == counter.total or (result is None and counter.total == 0)


def test_one_is_the_default():
    assert encode_add() == b"1"
