"""Replicas diverge, are found, stop, and are made anew; the others go on."""

from phx.sim.plan import SECOND, Act
from phx.sim.profiles import plan_of
from phx.sim.run import run_seed

COUNTED = ("odd_machines", "odd_found", "odd_others", "marks", "made_anew")


def test_nothing_breaks_and_each_of_it_happens() -> None:
    total = dict.fromkeys(COUNTED, 0)
    for seed in range(1, 9):
        outcome = run_seed(seed, "divergence")
        assert outcome.violation is None, (seed, outcome.violation)
        for name in COUNTED:
            total[name] += outcome.counters[name]
    assert all(total.values()), total


def test_a_machine_and_a_checksum_are_found_without_any_other_fault() -> None:
    for log in (0, 1):
        plan = plan_of(3, "divergence")
        act = Act(
            5 * SECOND, 5 * SECOND, "odd-machine",
            (("node", 2), ("group", 1), ("log", log), ("how", 7)),
        )  # fmt: skip
        outcome = run_seed(3, plan=plan.with_acts((act,)))
        assert outcome.violation is None, outcome.violation
        counters = outcome.counters
        assert counters["odd_machines"] == counters["odd_found"] == counters["made_anew"] == 1
        assert counters["stopped_groups"] == 1


def test_where_nobody_compares_nothing_goes_astray() -> None:
    plan = plan_of(3, "calm")
    act = Act(
        5 * SECOND, 5 * SECOND, "odd-machine",
        (("node", 2), ("group", 1), ("log", 0), ("how", 7)),
    )  # fmt: skip
    outcome = run_seed(3, plan=plan.with_acts((act,)))
    assert outcome.violation is None
    assert outcome.counters["odd_machines"] == 0


def test_the_same_seed_is_the_same_run() -> None:
    assert run_seed(2, "divergence").digest == run_seed(2, "divergence", tracing=True).digest
