"""Callers by sequence: resolved at most once, within limits, whatever happens to the others."""

import asyncio
import gc
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phx._core.entries import Entry
from phx._core.waiters import IN_FLIGHT_MAX, Refusal, Result, Waiters
from phx.errors import Closed, NoQuorum, PartlyDone, ResultNotKept, TimedOutUnknown

GROUP = 3


class Waiter:
    """What a future is to the native loop."""

    def __init__(self):
        self.result = self.error = None
        self.resolved = 0
        self.cancelled = False

    def set_result(self, value):
        if self.cancelled:
            raise RuntimeError("cancelled")
        self.result = value
        self.resolved += 1

    def set_exception(self, error):
        if self.cancelled:
            raise RuntimeError("cancelled")
        self.error = error
        self.resolved += 1

    def done(self):
        return bool(self.resolved) or self.cancelled


def waiters(groups=(GROUP, 9), **limits):
    given = {
        "group_values_max": 1 << 20,
        "group_bytes_max": 1 << 30,
        "node_values_max": 1 << 30,
        "node_bytes_max": 1 << 30,
        "partly": PartlyDone,
    }
    return Waiters(groups, **(given | limits))


def entry(sequence, instance=1, group=GROUP):
    return Entry(group, instance, sequence=sequence)


def test_sequences_count_from_one_in_each_group():
    made = waiters()
    assert [made.add(GROUP, Waiter(), 0) for _ in range(3)] == [1, 2, 3]
    assert made.add(9, Waiter(), 0) == 1
    assert made.add_many(GROUP, Waiter(), [b"a", b"b"]) == 4
    assert made.add(GROUP, Waiter(), 0) == 6
    with pytest.raises(KeyError):
        made.add(4, Waiter(), 0)


def test_results_reach_their_callers_in_any_order():
    made, callers = waiters(), [Waiter() for _ in range(4)]
    for caller in callers:
        made.add(GROUP, caller, 10)
    assert made.waiting(GROUP) == (4, 40)
    entries = [entry(3, 7), entry(0, 7), entry(1, 8), entry(9, 8)]
    assert made.complete(GROUP, entries, ["c", "other node", "a", "unknown"]) == 2
    assert callers[2].result == Result(7, "c")
    assert callers[0].result == Result(8, "a")
    assert callers[1].resolved == callers[3].resolved == 0
    assert made.waiting(GROUP) == (2, 20)
    assert made.complete(GROUP, entries, ["again"] * 4) == 0
    assert callers[0].resolved == 1


def test_a_part_of_a_batch_is_resolved_from_where_it_starts():
    made, callers = waiters(), [Waiter() for _ in range(3)]
    entries = [entry(made.add(GROUP, caller, 0)) for caller in callers]
    assert made.complete(GROUP, entries, ["b"], 1) == 1
    assert [caller.resolved for caller in callers] == [0, 1, 0]
    with pytest.raises(ValueError, match="more results"):
        made.complete(GROUP, entries, ["b", "c"], 2)
    with pytest.raises(TypeError):
        made.complete(GROUP, ["no entry"], ["b"])


def test_a_refusal_becomes_an_exception():
    made, caller = waiters(), Waiter()
    made.add(GROUP, caller, 0)
    made.complete(GROUP, [entry(1)], [Refusal(error := NoQuorum("none"))])
    assert caller.error is error
    assert caller.result is None


def test_an_exception_that_a_machine_returns_is_a_result():
    made, caller = waiters(), Waiter()
    made.add(GROUP, caller, 0)
    made.complete(GROUP, [entry(1)], [returned := ValueError("expected")])
    assert caller.result.value is returned


def test_a_run_is_resolved_when_all_of_it_is():
    made, caller = waiters(), Waiter()
    first = made.add_many(GROUP, caller, [b"a", b"bb", b"ccc"])
    assert made.waiting(GROUP) == (3, 6)
    made.complete(GROUP, [entry(first + 2, 5), entry(first, 4)], ["c", "a"])
    assert caller.resolved == 0
    made.complete(GROUP, [entry(first + 1, 6)], ["b"])
    assert caller.result == [Result(4, "a"), Result(6, "b"), Result(5, "c")]
    assert caller.resolved == 1


def test_a_run_that_failed_in_part_has_every_outcome():
    made, caller = waiters(), Waiter()
    made.add_many(GROUP, caller, [b"a", b"b", b"c"])
    made.complete(GROUP, [entry(2, 5)], ["b"])
    made.fail(GROUP, 1, 3, lambda: TimedOutUnknown("late"))
    assert isinstance(caller.error, PartlyDone)
    assert [type(one) for one in caller.error.results] == [TimedOutUnknown, Result, TimedOutUnknown]


def test_failing_touches_only_what_is_named():
    made, callers = waiters(), [Waiter() for _ in range(5)]
    for caller in callers:
        made.add(GROUP, caller, 1)
    assert made.fail(GROUP, 2, 2, lambda: NoQuorum("none")) == 2
    assert [caller.resolved for caller in callers] == [0, 1, 1, 0, 0]
    assert callers[1].error is not callers[2].error
    assert made.fail(GROUP, 2, 2, lambda: NoQuorum("again")) == 0
    assert made.fail(GROUP, 5, 1 << 63, lambda: NoQuorum("far")) == 1
    assert made.fail(GROUP, 1 << 63, 5, lambda: NoQuorum("far")) == 0
    assert made.fail_group(GROUP, lambda: Closed("closed")) == 2
    assert made.count == made.held_bytes == 0


def test_everything_is_failed_at_the_end():
    made, callers = waiters(), [Waiter() for _ in range(4)]
    made.add(GROUP, callers[0], 0)
    made.add(9, callers[1], 0)
    made.add_many(9, callers[2], [b"", b""])
    assert made.fail_all(lambda: Closed("closed")) == 4
    assert [type(caller.error) for caller in callers[:3]] == [Closed, Closed, PartlyDone]


@pytest.mark.parametrize(
    ("limits", "adds"),
    [
        ({"group_values_max": 3}, [(GROUP, 0)] * 3),
        ({"group_bytes_max": 10}, [(GROUP, 5)] * 2),
        ({"node_values_max": 3}, [(GROUP, 0), (9, 0), (9, 0)]),
        ({"node_bytes_max": 10}, [(GROUP, 4), (9, 6)]),
    ],
)
def test_a_limit_is_exact_and_frees_up(limits, adds):
    made = waiters(**limits)
    caller = Waiter()
    assert all(made.add(group, caller, nbytes) for group, nbytes in adds)
    assert made.add(GROUP, caller, 1) == 0
    assert made.add_many(GROUP, caller, [b"1"]) == 0
    group, nbytes = adds[0]
    made.complete(group, [entry(1, group=group)], [None])
    assert made.add(GROUP, caller, min(nbytes, 1))


def test_the_lowest_unresolved_sequence_bounds_the_highest():
    """The replicated table tells 65,536 sequences apart: no more are on their way, gaps and all."""
    made, caller = waiters(), Waiter()
    assert made.add_many(GROUP, caller, [b""] * IN_FLIGHT_MAX) == 1
    made.complete(GROUP, [entry(2)], [None])
    assert made.add(GROUP, caller, 0) == 0
    made.complete(GROUP, [entry(1)], [None])
    assert made.add(GROUP, caller, 0) == IN_FLIGHT_MAX + 1
    assert made.add(GROUP, caller, 0) == IN_FLIGHT_MAX + 2
    assert made.add(GROUP, caller, 0) == 0
    assert made.add_many(GROUP, caller, [b""] * (IN_FLIGHT_MAX + 1)) == 0


def test_what_was_not_submitted_is_taken_back():
    made, caller = waiters(), Waiter()
    made.add(GROUP, caller, 3)
    made.revoke(GROUP, 1)
    assert made.waiting(GROUP) == (0, 0)
    assert made.add(GROUP, caller, 3) == 1
    first = made.add_many(GROUP, caller, [b"a"] * 5)
    made.revoke(GROUP, first)
    assert made.add(GROUP, caller, 0) == first
    assert caller.resolved == 0


def test_a_cancelled_caller_disturbs_nobody():
    made, callers = waiters(), [Waiter() for _ in range(3)]
    entries = [entry(made.add(GROUP, caller, 0)) for caller in callers]
    callers[1].cancelled = True
    made.complete(GROUP, entries, ["a", "b", "c"])
    assert [caller.resolved for caller in callers] == [1, 0, 1]
    callers[1].cancelled = True
    made.add_many(GROUP, callers[1], [b"x"])
    assert made.fail_all(lambda: Closed("closed")) == 1


def test_a_caller_that_cannot_be_resolved_is_reported():
    class Broken(Waiter):
        def set_result(self, value):
            raise OSError("broken")

    made = waiters()
    made.add(GROUP, Broken(), 0)
    with pytest.raises(OSError, match="broken"):
        made.complete(GROUP, [entry(1)], ["a"])


def test_a_caller_may_propose_while_it_is_resolved():
    made = waiters()

    class Again(Waiter):
        def set_result(self, value):
            super().set_result(value)
            for _ in range(100):
                made.add(GROUP, Waiter(), 1)

    callers = [Again() for _ in range(20)]
    entries = [entry(made.add(GROUP, caller, 1)) for caller in callers]
    made.complete(GROUP, entries, [None] * 20)
    assert all(caller.resolved == 1 for caller in callers)
    assert made.waiting(GROUP) == (2000, 2000)


def test_no_reference_is_leaked_or_lost():
    caller, value = Waiter(), object()
    before = sys.getrefcount(caller), sys.getrefcount(value)
    made = waiters()
    for _ in range(50):
        made.add(GROUP, caller, 1)
    made.add_many(GROUP, caller, [b"a"] * 50)
    made.complete(GROUP, [entry(n) for n in range(1, 31)], [value] * 30)
    made.fail(GROUP, 31, 30, lambda: Closed("closed"))
    caller.result = caller.error = None
    made.revoke(GROUP, 95)
    del made
    gc.collect()
    assert (sys.getrefcount(caller), sys.getrefcount(value)) == before


@given(st.data())
def test_the_ring_agrees_with_a_dictionary(data):
    made = waiters(group_values_max=40)
    waiting, callers, next_sequence = {}, [], 1
    for _ in range(data.draw(st.integers(1, 60))):
        match data.draw(st.sampled_from(["add", "many", "complete", "fail"])):
            case "add":
                caller, nbytes = Waiter(), data.draw(st.integers(0, 9))
                if made.add(GROUP, caller, nbytes):
                    waiting[next_sequence] = (caller, nbytes)
                    callers.append(caller)
                    next_sequence += 1
                else:
                    assert len(waiting) == 40
            case "many":
                count = data.draw(st.integers(1, 20))
                caller = Waiter()
                if first := made.add_many(GROUP, caller, [b"xy"] * count):
                    assert first == next_sequence
                    for sequence in range(first, first + count):
                        waiting[sequence] = (caller, 2)
                    callers.append(caller)
                    next_sequence += count
                else:
                    assert len(waiting) + count > 40
            case "complete":
                picked = data.draw(st.lists(st.integers(1, next_sequence + 2), max_size=20))
                expected = len({sequence for sequence in picked if sequence in waiting})
                found = made.complete(GROUP, [entry(s) for s in picked], [None] * len(picked))
                assert found == expected
                for sequence in picked:
                    waiting.pop(sequence, None)
            case "fail":
                first, count = data.draw(st.integers(1, 99)), data.draw(st.integers(0, 99))
                gone = [s for s in waiting if first <= s < first + count]
                assert made.fail(GROUP, first, count, lambda: Closed("closed")) == len(gone)
                for sequence in gone:
                    del waiting[sequence]
        assert made.waiting(GROUP) == (len(waiting), sum(nbytes for _, nbytes in waiting.values()))
    assert made.fail_all(lambda: Closed("closed")) == len(waiting)
    assert all(caller.resolved == 1 for caller in callers)


class Submit:
    """The driver's submit and clock."""

    def __init__(self):
        self.calls = []
        self.error = None
        self.skip = 0

    def __call__(self, group, machine, values, deadline_us):
        if self.error is not None:
            raise self.error
        self.calls.append((group, machine, values, deadline_us))
        return len(self.calls) + self.skip

    def now_us(self):
        return 1_000_000


def connected(**limits):
    made, submit = waiters(**limits), Submit()
    made.connect(submit, submit.now_us, 100)
    return made, submit


def test_the_short_way_adds_and_submits():
    made, submit = connected()
    caller = Waiter()
    assert made.propose(GROUP, 7, b"x" * 100, 2.5, caller) is True
    assert made.propose(GROUP, 0, b"", 3, caller) is True
    assert submit.calls == [(GROUP, 7, [b"x" * 100], 3_500_000), (GROUP, 0, [b""], 4_000_000)]
    assert made.waiting(GROUP) == (2, 100)
    made.complete(GROUP, [entry(1, 9)], ["a"])
    assert caller.result == Result(9, "a")


@pytest.mark.parametrize(
    ("value", "timeout"),
    [
        (b"x" * 101, 1.0),
        (bytearray(b"x"), 1.0),
        ("x", 1.0),
        (b"x", None),
        (b"x", 0),
        (b"x", -1.0),
        (b"x", float("nan")),
        (b"x", float("inf")),
        (b"x", "1"),
    ],
)
def test_anything_out_of_the_ordinary_goes_the_long_way(value, timeout):
    made, submit = connected()
    assert made.propose(GROUP, 0, value, timeout, Waiter()) is False
    assert not submit.calls
    assert made.waiting(GROUP) == (0, 0)


def test_the_short_way_takes_nothing_at_a_limit_or_after_an_error():
    made, submit = connected(group_values_max=1)
    submit.error = RuntimeError("closed")
    assert made.propose(GROUP, 0, b"x", 1.0, Waiter()) is False
    assert made.waiting(GROUP) == (0, 0)
    submit.error = None
    assert made.propose(GROUP, 0, b"x", 1.0, Waiter()) is True
    assert made.propose(GROUP, 0, b"x", 1.0, Waiter()) is False
    assert len(submit.calls) == 1
    made.complete(GROUP, [entry(1)], [None])
    submit.skip = 5
    with pytest.raises(AssertionError, match="sequence 7 was given for 2"):
        made.propose(GROUP, 0, b"x", 1.0, Waiter())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_futures_of_both_loops(loop):
    async def run():
        made = waiters()
        running = asyncio.get_running_loop()
        futures = [running.create_future() for _ in range(4)]
        entries = [entry(made.add(GROUP, future, 1), 2) for future in futures]
        futures[1].cancel()
        made.complete(GROUP, entries[:3], list("abc"))
        made.fail(GROUP, 4, 1, lambda: NoQuorum("none"))
        assert await futures[0] == Result(2, "a")
        assert await futures[2] == Result(2, "c")
        assert futures[1].cancelled()
        with pytest.raises(NoQuorum):
            await futures[3]

    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


def test_a_result_is_a_small_value():
    one = Result(3, [1])
    instance, value = one
    assert (instance, value) == (3, [1])
    assert one == Result(3, [1])
    assert one != Result(4, [1])
    assert one != (3, [1])
    assert hash(Result(3, 1)) == hash(Result(3, 1))
    assert repr(one) == "Result(instance=3, value=[1])"
    with pytest.raises(AttributeError):
        one.value = 2


# --- what an installed table says


def test_what_the_row_counts_as_done_is_applied_and_the_rest_waits_on():
    made = waiters()
    each = [Waiter() for _ in range(10)]
    for waiter in each:
        made.add(GROUP, waiter, 5)
    made.complete(GROUP, [entry(2)], ["two"])
    row = (1, 4, 5, [7, 8, 10, 99])  # base 5: 1 to 4 are done
    assert made.settle_applied(GROUP, row, ResultNotKept) == [(1, 1), (3, 2), (7, 2), (10, 1)]
    for number, waiter in enumerate(each, 1):
        if number == 2:
            assert waiter.result == Result(1, "two")
        elif number in (1, 3, 4, 7, 8, 10):
            assert type(waiter.error) is ResultNotKept
            assert waiter.error.outcome == "applied"
        else:
            assert not waiter.resolved
    assert made.waiting(GROUP) == (3, 15)
    assert made.settle_applied(GROUP, row, ResultNotKept) == []
    made.complete(GROUP, [entry(5), entry(6), entry(9)], ["five", "six", "nine"])
    assert [each[number - 1].result.value for number in (5, 6, 9)] == ["five", "six", "nine"]
    assert made.waiting(GROUP) == (0, 0)
    assert all(waiter.resolved == 1 for waiter in each)


def test_a_row_that_knows_of_nobody_resolves_nothing():
    made = waiters()
    waiter = Waiter()
    made.add(GROUP, waiter, 1)
    assert made.settle_applied(GROUP, (1, 4, 1, []), ResultNotKept) == []
    assert made.settle_applied(9, (1, 4, 7, [9]), ResultNotKept) == []
    assert not waiter.resolved
    with pytest.raises(KeyError):
        made.settle_applied(4, (1, 4, 7, [9]), ResultNotKept)


def test_one_value_of_a_run_that_is_applied_makes_the_run_partly_done():
    made = waiters()
    future = Waiter()
    made.add_many(GROUP, future, [b"a", b"b", b"c"])
    assert made.settle_applied(GROUP, (1, 4, 2, [3]), ResultNotKept) == [(1, 1), (3, 1)]
    assert not future.resolved
    made.complete(GROUP, [entry(2)], ["b"])
    first, second, third = future.error.results
    assert (type(first), second, type(third)) == (ResultNotKept, Result(1, "b"), ResultNotKept)


@given(st.data())
def test_rows_resolve_exactly_what_they_count_as_done(data):
    count = data.draw(st.integers(0, 40))
    gone = data.draw(st.sets(st.integers(1, max(count, 1))))
    base = data.draw(st.integers(1, count + 3))
    done = data.draw(st.sets(st.integers(base + 1, base + 50)))
    made = waiters()
    each = {number: Waiter() for number in range(1, count + 1)}
    for waiter in each.values():
        made.add(GROUP, waiter, 1)
    for number in sorted(gone & each.keys()):
        made.fail(GROUP, number, 1, TimedOutUnknown)
    found = made.settle_applied(GROUP, (1, 1, base, sorted(done)), ResultNotKept)
    told = [number for first, many in found for number in range(first, first + many)]
    expected = [n for n in each if n not in gone and (n < base or n in done)]
    assert told == expected
    assert all(found[i][0] + found[i][1] < found[i + 1][0] for i in range(len(found) - 1))
    for number, waiter in each.items():
        assert (type(waiter.error) is ResultNotKept) == (number in expected)


# --- gates (how they judge is in tests/core/test_gate.py)

BOUND_US = 50_000


class Line:
    """Values that come and leave on a clock that is told what time it is."""

    def __init__(self, *groups, bound_us=BOUND_US):
        self.made = waiters(groups, wait_us_max=bound_us)
        self.next = dict.fromkeys(groups, 1)
        self.first = dict.fromkeys(groups, 1)
        self.clock_us = 1_000_000
        self.behind_us, self.told = 0, []
        self.made.connect(
            self.submit, lambda: self.clock_us, 1 << 20, lambda: self.behind_us, self.told.append
        )

    def submit(self, group, machine, values, due_us):
        first = self.next[group]
        self.next[group] += len(values)
        return first

    def offer(self, group, count):
        """How many of so many calls were let in."""
        return sum(self.made.propose(group, 0, b"x", 60.0, Waiter()) for _ in range(count))

    def leave(self, group, count):
        first = self.first[group]
        count = min(count, self.next[group] - first)
        self.first[group] += count
        entries = [entry(first + at, group=group) for at in range(count)]
        assert self.made.complete(group, entries, [None] * count) == count

    def run(self, millis, come, leave):
        """A millisecond at a time; `come` and `leave`: values in each, by group. Who was let in."""
        let_in = dict.fromkeys(come, 0)
        for _ in range(millis):
            self.clock_us += 1_000
            for group, count in come.items():
                let_in[group] += self.offer(group, count)
            for group, count in leave.items():
                self.leave(group, count)
        return let_in

    def window(self, group):
        return self.made.gate_of_group(group)[1]


def test_who_is_turned_away_is_not_submitted_and_nobody_waits_for_it():
    line = Line(GROUP)
    line.run(500, {GROUP: 20}, {GROUP: 4})
    line.offer(GROUP, 20)
    made, submitted = line.made, line.next[GROUP]
    held = made.waiting(GROUP), made.count, made.held_bytes
    assert made.waiting(GROUP)[0] >= line.window(GROUP) > 0
    caller = Waiter()
    assert made.propose(GROUP, 0, b"x", 1.0, caller) is False
    assert made.propose_many(GROUP, 0, [b"x", b"y"], 1.0, caller) is False
    assert made.add(GROUP, caller, 1, line.clock_us) == 0
    assert made.add_many(GROUP, caller, [b"x"], line.clock_us) == 0
    assert line.next[GROUP] == submitted
    assert (made.waiting(GROUP), made.count, made.held_bytes) == held
    assert not caller.done()


def test_what_waits_is_what_leaves_within_the_bound():
    line = Line(GROUP)
    line.run(1_000, {GROUP: 20}, {GROUP: 4})
    assert line.window(GROUP) == pytest.approx(4 * BOUND_US / 1_000, rel=0.1)
    assert line.run(1_000, {GROUP: 20}, {GROUP: 4})[GROUP] == pytest.approx(4_000, rel=0.1)
    assert line.made.count <= line.window(GROUP)


def test_turned_away_is_counted_once_for_the_group_and_the_node():
    line = Line(GROUP, 9)
    assert line.made.turn_away(GROUP, 1) is None
    line.run(500, {GROUP: 20, 9: 1}, {GROUP: 4, 9: 1})
    line.offer(GROUP, 20)
    own, values, nbytes, window, window_bytes = line.made.turn_away(GROUP, 3)
    assert (own, values, nbytes) == (True, *line.made.waiting(GROUP))
    assert (window, window_bytes) == (line.window(GROUP), line.window(GROUP))
    assert line.made.gate_of_group(GROUP)[0] == line.made.turned_away == 3
    assert line.made.gate_of_group(9) == (0, 0)
    assert line.made.gates_now() == {
        "turned_away": 3,
        "window": 0,
        "rate_per_s": 0,
        "groups_shut": 1,
        "behind_us": 0,
    }


@pytest.mark.parametrize("groups", [1, 2, 40])
def test_less_is_let_in_while_another_node_is_later(groups):
    """Whether the group's gates turn away or, where each has little, the node's."""
    line = Line(*range(groups))
    come = dict.fromkeys(range(groups), 200 // groups)
    leave = dict.fromkeys(range(groups), 40 // groups)
    line.run(1_000, come, leave)
    whole = line.made.count
    assert whole == pytest.approx(40 * BOUND_US / 1_000, rel=0.1)
    line.behind_us = BOUND_US // 2
    line.run(1_000, come, leave)
    assert line.made.count == pytest.approx(whole / 2, rel=0.1)
    assert line.made.gates_now()["behind_us"] == BOUND_US // 2
    line.behind_us = 20 * BOUND_US
    let_in = line.run(200, come, leave)
    assert line.made.count <= 4 * groups
    assert sum(let_in.values()) > 0  # a few, as always
    line.offer(0, 4)
    assert line.made.turn_away(0, 1)[3] == 4
    line.behind_us = 0
    line.run(1_000, come, leave)
    assert line.made.count == pytest.approx(whole, rel=0.1)


def test_it_is_told_whether_the_node_turns_callers_away():
    line = Line(GROUP, 9)
    come, leave = {GROUP: 10, 9: 10}, {GROUP: 2, 9: 2}
    line.run(100, {GROUP: 1}, {GROUP: 1})
    assert line.told == []
    line.run(500, come, leave)
    assert line.told == [True]
    line.run(1_000, {GROUP: 1, 9: 1}, leave)
    line.run(500, {GROUP: 1, 9: 1}, {GROUP: 1, 9: 1})
    assert line.told == [True, False]


def test_a_slow_group_is_turned_away_and_the_others_are_not():
    """Its values take long, and theirs do not: the node's own gate stays open."""
    line = Line(GROUP, 9)
    let_in = line.run(3_000, {GROUP: 5, 9: 5}, {GROUP: 1, 9: 5})
    assert let_in[9] == 5 * 3_000
    assert let_in[GROUP] < 1.2 * 3_000
    assert line.made.waiting(GROUP)[0] < 100
    assert line.made.gates_now()["groups_shut"] == 1


def test_a_group_of_which_nothing_leaves_does_not_have_others_turned_away():
    line = Line(GROUP, 9)
    let_in = line.run(3_000, {GROUP: 5, 9: 5}, {9: 5})
    assert let_in[9] == 5 * 3_000
    # And if the others have too much to do themselves, they are let in to their own shares.
    let_in = line.run(3_000, {GROUP: 5, 9: 20}, {9: 5})
    assert let_in[9] > 0.9 * 5 * 3_000


def test_who_asks_for_little_is_let_in_while_the_node_has_too_much_to_do():
    groups = range(100, 160)
    line = Line(*groups)
    busy, quiet = groups[:-1], groups[-1]
    quiet_in = quiet_offered = 0
    for turn in range(4_000):
        line.clock_us += 1_000
        for group in busy[turn % 4 :: 4]:
            line.offer(group, 1)
        if turn % 100 == 0:
            quiet_offered += 1
            quiet_in += line.offer(quiet, 1)
        # One of a group a millisecond: each group alone is far too slow to be judged.
        line.leave(groups[turn % 60], 1)
    # 50 leave within the bound, and each group may have one waiting.
    assert line.made.gates_now()["window"] == pytest.approx(50, rel=0.3)
    assert line.made.count <= 60 + 50
    assert quiet_in == quiet_offered


def test_a_gate_opens_when_nobody_waits_any_more():
    line = Line(GROUP)
    line.run(500, {GROUP: 20}, {GROUP: 4})
    assert line.window(GROUP)
    assert line.made.gates_now()["window"]
    line.made.fail_all(lambda: Closed("closed"))
    assert line.made.gates_now()["groups_shut"] == line.made.gates_now()["window"] == 0
    assert line.offer(GROUP, 5_000) == 5_000


def test_without_a_bound_nobody_is_turned_away():
    line = Line(GROUP, bound_us=0)
    assert line.run(500, {GROUP: 20}, {GROUP: 4})[GROUP] == 10_000
    assert line.made.gate_of_group(GROUP) == (0, 0)
    assert line.made.turn_away(GROUP, 1) is None
