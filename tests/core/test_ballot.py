"""Packed ballots are ordered as (counter, node), and end instead of wrapping."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phx._core import ballot

COUNTER_MAX, NODE_MAX = (1 << 44) - 1, (1 << 20) - 1
COUNTERS = st.integers(0, COUNTER_MAX) | st.sampled_from([0, 1, COUNTER_MAX - 1, COUNTER_MAX])
NODES = st.integers(1, NODE_MAX) | st.sampled_from([1, 2, NODE_MAX])


@pytest.mark.parametrize(
    ("counter", "node", "word"),
    [
        (0, 0, 0x0000000000000000),
        (0, 1, 0x0000000000000001),
        (1, 0, 0x0000000000100000),
        (1, 3, 0x0000000000100003),
        (0xABC, 0xDEF12, 0x00000000ABCDEF12),
        (COUNTER_MAX, NODE_MAX, 0xFFFFFFFFFFFFFFFF),
    ],
)
def test_golden_words(counter, node, word):
    assert ballot.make(counter, node) == word
    assert ballot.counter_of(word) == counter
    assert ballot.node_of(word) == node


@given(COUNTERS, NODES, COUNTERS, NODES)
def test_order_is_that_of_counter_then_node(counter1, node1, counter2, node2):
    word1, word2 = ballot.make(counter1, node1), ballot.make(counter2, node2)
    assert (word1 < word2) == ((counter1, node1) < (counter2, node2))
    assert (word1 == word2) == ((counter1, node1) == (counter2, node2))


@given(COUNTERS, NODES)
def test_round_trip(counter, node):
    word = ballot.make(counter, node)
    assert (ballot.counter_of(word), ballot.node_of(word)) == (counter, node)


@given(COUNTERS, NODES, NODES)
@example(COUNTER_MAX, 1, 2)
@example(COUNTER_MAX, 2, 1)
@example(COUNTER_MAX - 1, 1, 1)
@example(0, 1, NODE_MAX)
def test_next_is_the_lowest_with_a_higher_counter_and_none_at_the_top(counter, other, node):
    above = ballot.make(counter, other)
    after = ballot.next_after(above, node)
    if counter == COUNTER_MAX:
        assert after == 0
    else:
        assert after > above
        assert (ballot.counter_of(after), ballot.node_of(after)) == (counter + 1, node)


@pytest.mark.parametrize("node", [0, NODE_MAX + 1, 0xFFFFFFFF])
def test_there_is_no_next_ballot_of_a_node_that_cannot_be(node):
    assert ballot.next_after(ballot.make(5, 1), node) == 0


@pytest.mark.parametrize(("counter", "node"), [(COUNTER_MAX + 1, 1), (1, NODE_MAX + 1)])
def test_what_does_not_fit_is_refused(counter, node):
    with pytest.raises(ValueError):
        ballot.make(counter, node)


@pytest.mark.parametrize(("counter", "node"), [(-1, 1), (1 << 64, 1), (1, -1), (1, 1 << 32)])
def test_what_is_no_word_is_refused(counter, node):
    with pytest.raises(OverflowError):
        ballot.make(counter, node)


@pytest.mark.parametrize("known", [0, 1, 77, 1 << 43])
def test_a_counter_is_hostile_from_two_to_the_32_above_the_highest_known(known):
    highest = ballot.make(known, 9)
    for node in (1, NODE_MAX):
        assert not ballot.is_hostile(ballot.make(known, node), highest)
        assert not ballot.is_hostile(ballot.make(known + (1 << 32), node), highest)
        assert ballot.is_hostile(ballot.make(known + (1 << 32) + 1, node), highest)
        assert ballot.is_hostile(ballot.make(COUNTER_MAX, node), highest)


def test_nothing_is_hostile_to_one_who_knows_the_highest():
    top = ballot.make(COUNTER_MAX, NODE_MAX)
    assert not ballot.is_hostile(top, top)
    assert not ballot.is_hostile(0, top)
