"""Shrinking: planted predicates, bounded time, a result that always fails."""

import itertools
from dataclasses import replace

from phx.sim.plan import QUIET_US, SECOND
from phx.sim.profiles import plan_of
from phx.sim.shrink import clipped, shrink


def test_finds_the_two_acts_that_matter_among_many():
    plan = plan_of(1)
    wanted = {plan.acts[3], plan.acts[17]}
    tried = []

    def fails(candidate):
        tried.append(candidate)
        return {act[2:] for act in wanted} <= {act[2:] for act in candidate.acts}

    least = shrink(plan, fails)
    assert {act[2:] for act in least.acts} == {act[2:] for act in wanted}
    assert least.clients == 1
    assert fails(least)
    assert len(tried) < 200


def test_a_failure_that_needs_no_fault_at_all_ends_as_a_short_calm_run():
    least = shrink(plan_of(1), lambda plan: True)
    assert least.acts == ()
    assert least.duration_us <= QUIET_US + 13 * SECOND


def test_what_cannot_be_shrunk_stays_as_it_is():
    plan = plan_of(1)
    assert shrink(plan, lambda candidate: candidate == plan) == plan


def test_stops_in_time_with_the_best_so_far():
    plan = plan_of(1)
    ticks = itertools.count()
    tried = []

    def fails(candidate):
        tried.append(candidate)
        return True

    least = shrink(plan, fails, seconds=5, clock=lambda: float(next(ticks)))
    assert 1 <= len(tried) <= 6
    assert least == tried[-1]


def test_acts_are_clipped_to_a_shorter_run():
    plan = plan_of(2)
    acts = clipped(plan.acts, 20 * SECOND)
    assert acts
    assert all(act.at_us < 20 * SECOND >= act.until_us for act in acts)
    shorter = replace(plan, acts=acts, duration_us=20 * SECOND + QUIET_US)
    assert shorter.faults_end_us == 20 * SECOND
