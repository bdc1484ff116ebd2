"""Groups that say what is only written: power fails, and nothing that was acknowledged is lost."""

from phx.sim.fleet import OF_RELAXED, rare_events
from phx.sim.plan import SECOND, Act, Plan
from phx.sim.profiles import plan_of
from phx.sim.run import run_seed

SLOW_DISK = {"sync_us_min": 30_000, "sync_us_max": 90_000}


def relaxed(nodes: int, *acts: Act, percent: int = 100) -> Plan:
    """No other fault; syncs that take long."""
    usual = plan_of(1, "relaxed")
    return Plan(
        seed=1, profile="relaxed", nodes=nodes, groups=2, duration_us=24 * SECOND, clients=2,
        limits=(("value_bytes_max", 16384), ("rejoin", 1), ("relaxed", percent)),
        pace=tuple({**dict(usual.pace), **SLOW_DISK}.items()), link=usual.link, acts=acts,
    )  # fmt: skip


def act(at_s: float, kind: str, lasts_s: float = 0.5, **args: int) -> Act:
    at_us = int(at_s * SECOND)
    return Act(at_us, at_us + int(lasts_s * SECOND), kind, tuple(args.items()))


def test_the_failure_of_a_machine_makes_all_its_relaxed_groups_suspect_and_they_rejoin() -> None:
    outcome = run_seed(1, plan=relaxed(3, act(4, "power", node=2, power=1)))
    assert outcome.violation is None, outcome.violation
    found = outcome.counters
    assert found["written_acks"] > 50
    assert found["written_lost"] > 0
    assert (found["doubtful_groups"], found["rejoins"]) == (2, 2)


def test_the_failure_of_a_process_does_not() -> None:
    outcome = run_seed(1, plan=relaxed(3, act(4, "crash", node=2, power=0)))
    assert outcome.violation is None, outcome.violation
    found = outcome.counters
    assert (found["crashes"], found["doubtful_groups"], found["rejoins"]) == (1, 0, 0)


def test_never_so_many_machines_fail_that_no_majority_has_all_its_votes() -> None:
    for nodes, most in ((3, 1), (4, 1), (5, 2)):
        outcome = run_seed(1, plan=relaxed(nodes, act(4, "blackout", power=1)))
        assert outcome.violation is None, (nodes, outcome.violation)
        assert outcome.counters["power_losses"] == most
        assert outcome.counters["crashes"] == nodes


def test_a_disk_that_fails_makes_them_doubtful_although_the_machine_goes_on() -> None:
    outcome = run_seed(1, plan=relaxed(3, act(4, "fail-sync", node=3, after=1)))
    assert outcome.violation is None, outcome.violation
    found = outcome.counters
    assert (found["poisoned"], found["doubts"]) == (1, 1)
    assert (found["doubtful_groups"], found["rejoins"]) == (2, 2)


def test_a_group_that_syncs_again_is_whole_after_the_failure_of_its_machine() -> None:
    """By an act that has group and mode from its `order`: many times, so that both have been."""
    switching = act(3, "switch-durability", lasts_s=6.0, node=2, times=30, order=5)
    outcome = run_seed(1, plan=relaxed(3, switching, act(10, "power", node=2, power=1)))
    assert outcome.violation is None, outcome.violation
    found = outcome.counters
    assert found["switched"] == 30
    assert found["rejoins"] == found["doubtful_groups"] < 2


def test_where_no_group_is_relaxed_nothing_of_it_happens() -> None:
    switching = act(3, "switch-durability", lasts_s=6.0, node=2, times=30, order=5)
    outcome = run_seed(1, plan=relaxed(3, switching, act(10, "power", node=2, power=1), percent=0))
    assert outcome.violation is None, outcome.violation
    assert not {name for name in OF_RELAXED if outcome.counters[name]}


def test_whatever_else_happens_meanwhile() -> None:
    total = dict.fromkeys(OF_RELAXED, 0)
    for seed in range(1, 13):
        outcome = run_seed(seed, "relaxed")
        assert outcome.violation is None, (seed, outcome.violation)
        for name in OF_RELAXED:
            total[name] += outcome.counters[name]
    assert all(total.values()), total
    assert rare_events("relaxed").keys() >= OF_RELAXED
    assert not rare_events("default").keys() & OF_RELAXED
