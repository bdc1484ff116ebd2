"""Digests at agreed instances: which replica is odd, since when, and who may say so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phx._core.batch import pack_noop
from phx._core.delivery import Sessions
from phx.checkpoint import digests
from phx.checkpoint.digests import Agreed, Ring, by_views, compare, doubtful, hash_of, state_of
from phx.machines import Counter, KeyValue, Leases
from phx.transfer.messages import Chain
from phx.types import AGREED_EVERY as AGREE
from tests.api.cluster import Journal


def right(at):
    return Agreed(at * AGREE, 1000 + at, b"right%03d" % at)


def ring(last=6, first=1, *, log=(), state=(), unknown=(), who=1):
    """What a node noted at the agreed instances first .. last; wrong from `log` or `state` on."""
    made = []
    for at in range(first, last + 1):
        one = right(at)
        if log and at >= log:
            one = one._replace(chain=one.chain + 100 * who, state=b"wrong%03d" % who)
        if state and at >= state:
            one = one._replace(state=b"wrong%03d" % who)
        if at in unknown:
            one = one._replace(state=b"")
        made.append(one)
    return made


def test_replicas_that_are_equal_are_left_alone():
    assert compare(ring(), {2: ring(), 3: ring(4)}, 3).kind == "equal"
    assert compare(ring(), {}, 3).kind == "equal"
    assert compare([], {2: ring(), 3: ring()}, 3).kind == "equal"
    assert compare(ring(2), {2: ring(9, 5), 3: ring(9, 5)}, 3).kind == "equal"


def test_the_one_that_differs_from_a_majority_is_odd():
    verdict = compare(ring(state=3), {2: ring(), 3: ring()}, 3)
    assert verdict == ("odd", "state", 2 * AGREE, 3 * AGREE, (2, 3))
    assert str(verdict) == "diverged between 8192 and 12288 (state; log equal)"
    verdict = compare(ring(log=4), {2: ring(), 3: ring()}, 3)
    assert verdict == ("odd", "log", 3 * AGREE, 4 * AGREE, (2, 3))
    assert str(verdict) == "diverged between 12288 and 16384 (log)"
    assert compare(
        ring(log=3), {2: ring(), 3: ring(), 4: ring(), 5: ring(log=3, who=5)}, 5
    ).kind == ("odd")


def test_those_who_are_right_say_since_when_it_differs():
    # Node 3 was away at first: only later do both say so.
    verdict = compare(ring(state=2), {2: ring(), 3: ring(6, 5)}, 3)
    assert verdict == ("odd", "state", AGREE, 2 * AGREE, (2, 3))
    # All that is known differs.
    verdict = compare(ring(state=1), {2: ring(6, 4), 3: ring(6, 4)}, 3)
    assert verdict[2:4] == (0, 4 * AGREE)
    assert str(verdict) == "diverged at or before 16384 (state; log equal)"
    # The state differed before the log did.
    assert compare(ring(state=2, log=4), {2: ring(), 3: ring()}, 3)[:4] == (
        "odd", "state", AGREE, 2 * AGREE,
    )  # fmt: skip


def test_another_ones_log_does_not_hide_what_this_ones_state_is():
    others = {2: ring(log=3, who=2), 3: ring(), 4: ring(), 5: ring()}
    assert compare(ring(state=3), others, 5) == ("odd", "state", 2 * AGREE, 3 * AGREE, (3, 4, 5))


def test_what_a_peer_noted_before_it_was_made_anew_says_nothing_of_others():
    """It was odd itself at 2 and 3, and this node heard of it; it is one of the majority since."""
    before = [right(1), *ring(3, 2, state=1, who=2), *ring(6, 4)]
    others = {2: before, 3: ring(), 4: ring(), 5: ring()}
    verdict = compare(ring(state=5), others, 5)
    assert verdict == ("odd", "state", 4 * AGREE, 5 * AGREE, (2, 3, 4, 5))
    before = [right(1), *ring(3, 2, log=1, who=2), *ring(6, 4)]
    verdict = compare(ring(log=5), {**others, 2: before}, 5)
    assert verdict == ("odd", "log", 4 * AGREE, 5 * AGREE, (2, 3, 4, 5))


def test_a_majority_that_this_node_belongs_to_stays():
    verdict = compare(ring(), {2: ring(state=5, who=2), 3: ring()}, 3)
    assert verdict == ("others", "state", 4 * AGREE, 5 * AGREE, (2,))
    assert compare(ring(), {2: ring(log=1, who=2), 3: ring(3)}, 3).kind == "others"


@pytest.mark.parametrize(
    ("members", "others"),
    [
        (2, {2: ring()}),
        (3, {2: ring()}),  # nobody heard of 3
        (3, {2: ring(), 3: ring(state=1, who=3)}),  # all three differ
        (4, {2: ring(), 3: ring()}),
        (5, {2: ring(), 3: ring(), 4: ring(state=1)}),
        (3, {2: ring(), 3: ring(6, 1, unknown=range(9))}),  # its state is not known
    ],
)
def test_without_a_majority_nobody_is_odd(members, others):
    verdict = compare(ring(state=1), others, members)
    assert (verdict.kind, verdict.what) == ("split", "state")
    assert verdict.differs == AGREE


def test_what_is_not_known_differs_from_nothing():
    others = {2: ring(), 3: ring()}
    assert compare(ring(state=1, unknown=range(9)), others, 3).kind == "equal"
    assert compare(ring(log=2, unknown=range(9)), others, 3)[:4] == ("odd", "log", AGREE, 2 * AGREE)


@given(
    members=st.integers(2, 7),
    wrong=st.dictionaries(st.integers(2, 7), st.integers(1, 6)),
    spans=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=7, max_size=7),
    me=st.integers(0, 6),
)
def test_odd_is_who_differs_from_more_than_half_at_one_instance(members, wrong, spans, me):
    """Whatever is known of whom; those who are wrong are so in different ways."""
    others = {
        node: ring(max(spans[node - 1]), min(spans[node - 1]), state=wrong.get(node, 0), who=node)
        for node in range(2, members + 1)
    }
    verdict = compare(ring(state=me), others, members)
    outvoted = [
        at
        for at in range(1, 7)
        if me and at >= me and sum(right(at) in one for one in others.values()) > members // 2
    ]
    assert (verdict.kind == "odd") == bool(outvoted)
    if outvoted:
        assert verdict.what == "state"
        assert verdict.equal < me * AGREE <= verdict.differs <= min(outvoted) * AGREE


def test_a_state_that_differs_from_a_majority_is_taken_over_by_nobody():
    assert doubtful({}, 3) == doubtful({2: [], 3: []}, 3) == set()
    assert doubtful({2: ring(), 3: ring()}, 3) == set()
    assert doubtful({2: ring(), 3: ring(6, 5), 4: []}, 5) == set()
    assert doubtful({2: ring(), 3: ring(state=6, who=3)}, 3) == {2, 3}  # who is right?
    assert doubtful({2: ring(log=6), 3: ring()}, 3) == {2, 3}
    assert doubtful({2: ring(), 3: ring(), 4: ring(), 5: ring(state=2)}, 5) == {5}
    assert doubtful({2: ring(), 3: ring(), 4: ring(), 5: ring(log=2)}, 5) == {5}
    assert doubtful({2: ring(), 3: ring(), 4: ring(state=3), 5: ring(state=2)}, 5) == {2, 3, 4, 5}
    assert doubtful({2: ring(), 3: ring(6, 1, unknown=range(9))}, 3) == set()


def test_the_last_ones_are_kept():
    kept = Ring()
    assert (kept.last, kept.above(0)) == (0, [])
    for at in range(1, 101):
        kept.note(right(at))
    assert kept.above(0) == [right(at) for at in range(37, 101)]
    assert kept.above(98 * AGREE) == [right(99), right(100)]
    kept.note(right(99))  # another state was installed, and goes on from before
    assert (kept.last, kept.above(97 * AGREE)) == (99 * AGREE, [right(98), right(99)])
    # What goes over the wire is the same.
    assert Agreed(*Chain(*right(3))) == right(3)


def test_the_state_is_that_of_the_machines_whose_digest_is_cheap():
    one, other, dear = Counter(), Counter(), KeyValue()
    assert not dear.digest_cheap
    assert state_of({0: dear}) == b"" == state_of({0: Journal()})
    assert state_of({0: one, 1: dear}) == state_of({0: one}) != b""
    assert state_of({0: one}) == state_of({0: other}) != state_of({1: other})
    other.total = 1
    assert state_of({0: one}) != state_of({0: other})
    assert state_of({0: one, 1: other}) != state_of({0: other, 1: one})
    assert state_of({0: one, 1: other}) == hash_of({1: other.digest(), 0: one.digest()})


def test_for_the_state_of_a_machine_with_a_dear_digest_a_view_is_needed():
    assert not by_views({0: Counter(), 1: Journal()})
    assert by_views({0: Counter(), 1: KeyValue()})
    assert by_views({0: Leases()})


def test_a_state_that_is_not_known_is_not_called_equal():
    """It went astray somewhere behind 1, and nobody looked before 4."""
    blind = range(2, 4)
    others = {2: ring(unknown=blind), 3: ring(unknown=blind)}
    verdict = compare(ring(state=4), others, 3)
    assert verdict == ("odd", "state", AGREE, 4 * AGREE, (2, 3))
    verdict = compare(ring(state=4, unknown=blind), {2: ring(), 3: ring()}, 3)
    assert verdict == ("odd", "state", AGREE, 4 * AGREE, (2, 3))
    # Of the log everything is known.
    assert compare(ring(log=4, unknown=range(9)), others, 3)[2:4] == (3 * AGREE, 4 * AGREE)


def test_an_agreed_instance_is_where_batches_end():
    sessions = Sessions(1, [7])
    assert sessions.agreed(7) == []
    batches = sessions.offer(7, 1, [pack_noop(1, 2)] * (AGREE + 5))
    assert [batch.last for batch in batches] == [AGREE, AGREE + 5]


def test_since_when_is_looked_for_once(monkeypatch):
    """Of 64 instances that differ: it looks at all of them, while values are applied."""
    calls = []
    real = digests._interval
    monkeypatch.setattr(digests, "_interval", lambda *given: calls.append(1) or real(*given))
    mine = [Agreed(8 * number, number, b"right") for number in range(1, 65)]
    odd = [Agreed(8 * number, number + (number > 32), b"right") for number in range(1, 65)]
    assert compare(mine, {2: odd, 3: mine}, 3) == ("others", "log", 256, 264, (2,))
    assert len(calls) == 1
