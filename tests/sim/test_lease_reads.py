"""Reads under a lease in the simulator: U14, and that they are asked, answered and judged."""

from collections.abc import Callable

import pytest

from phx.sim.history import Operation
from phx.sim.profiles import plan_of
from phx.sim.run import SimLoad, run_seed
from phx.sim.wire_text import ballot
from phx.sim.world import World

from .watch_lab import History

NEVER = (1 << 63) - 1


def leads(history: History, **fields: int) -> None:
    """Node 1 leads group 0 under a lease, and has chosen up to 3."""
    history.watch.spoil(1, 0, promised=ballot(5, 1), chosen_through=3, **fields)
    history.watch.spoil_lead(1, 0, ballot(5, 1), NEVER)


def a_read_point_below_what_was_announced(h: History, bad: bool) -> None:
    h.watch.announced(0, 7)
    known = h.watch.read_began(0)
    h.watch.announced(0, 9)  # since then: it need not be covered
    h.watch.read_point(1, 0, known, 6 if bad else 7)


def published_as_led_and_it_is_not(h: History, bad: bool) -> None:
    leads(h)
    h.watch.publish(1, 0, True)
    h.watch.spoil(1, 0, promised=ballot(6, 2))
    h.watch.publish(1, 0, not bad)


def published_with_an_older_instance(h: History, bad: bool) -> None:
    leads(h)
    h.watch.publish(1, 0, True)
    h.watch.spoil(1, 0, chosen_through=4)
    h.watch.publish(1, 0, not bad)


@pytest.mark.parametrize(
    "history",
    [
        a_read_point_below_what_was_announced,
        published_as_led_and_it_is_not,
        published_with_an_older_instance,
    ],
)
def test_a_bad_read_point_is_rejected(history: Callable[[History, bool], None]) -> None:
    good = History()
    history(good, False)
    assert good.watch.failure() is None
    bad = History()
    history(bad, True)
    failure = bad.watch.failure()
    assert failure is not None
    assert failure[0] == "U14"


def test_the_clock_judges_what_was_looked_at_before_it() -> None:
    h = History()
    leads(h)
    h.watch.publish(1, 0, True)
    # With the clock first the answer would be 4: a pause behind it, and a lease that has run out
    # since is judged by a time at which it ran.
    assert h.watch.point_while_chosen(1, 0, 4) == 3
    assert h.watch.point_while_chosen(1, 0, 5) == 4
    h.watch.spoil_lead(1, 0, ballot(5, 1), 1)  # to the very time of that clock
    h.watch.publish(1, 0, True)
    assert h.watch.point_while_chosen(1, 0, 5) is None


def test_a_read_does_not_wait_for_whoever_publishes() -> None:
    """It may hold the GIL, and the poll thread be without a processor."""
    h = History()
    leads(h)
    h.watch.publish(1, 0, True)
    h.watch.writing()
    assert h.watch.point_while_chosen(1, 0, 4) is None
    h.watch.writing()
    assert h.watch.point_while_chosen(1, 0, 4) == 3


def test_a_read_that_missed_a_complete_write_stands_in_the_history() -> None:
    plan = plan_of(1, "calm")
    world = World(plan.seed, plan.nodes, plan.groups, machines=lambda node, group: None)
    load = SimLoad(world, plan)
    load.operations.history += [
        Operation(1, 5, "put", b"a", None, 10, 20),
        Operation(1, 5, "put", b"b", None, 30, 40),
    ]
    load.reads = [Operation(-1, 5, "get", None, b"b", 50, 60)]
    assert load.broken({}) is None
    load.reads = [Operation(-1, 5, "get", None, b"a", 35, 36)]  # the second may come after it
    assert load.broken({}) is None
    load.reads = [Operation(-1, 5, "get", None, b"a", 50, 60)]
    found = load.broken({})
    assert found is not None
    assert found[0] == "linearizable"
    world.close()


@pytest.mark.parametrize("profile", ["calm", "drift", "pause", "transfers", "clocks"])
def test_lease_reads_are_asked_and_answered(profile: str) -> None:
    outcome = run_seed(1, profile)
    assert outcome.violation is None
    asked, answered = outcome.counters["lease_reads_asked"], outcome.counters["lease_reads"]
    assert asked > 100
    # (Beyond the bounds of clocks nothing is claimed, and nothing asked.)
    assert (0 if profile == "clocks" else asked // 2) < answered <= asked
