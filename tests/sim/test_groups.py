"""Runs in which groups are created and deleted, and what is judged at their end."""

from collections import Counter
from random import Random

from phx.sim import verdicts
from phx.sim.act_kind import Shape
from phx.sim.acts_groups import GROUP_ACTS
from phx.sim.fleet import OF_CREATED, rare_events
from phx.sim.profiles import plan_of
from phx.sim.run import run_seed
from phx.sim.verdicts import Hosting

LIVE = Hosting(2, 9, "live", member=True, hosts=True, left=True)
GONE = Hosting(2, 9, "gone", member=True, hosts=False, left=False)


def test_groups_come_and_go_in_every_way_and_nothing_breaks() -> None:
    seen: Counter[str] = Counter()
    for seed in range(1, 17):
        outcome = run_seed(seed, "groups")
        assert outcome.violation is None, (seed, outcome.violation)
        seen.update(outcome.counters)
    assert {name for name in OF_CREATED if not seen[name]} == set()
    assert seen["groups_hosted"] > 200
    assert seen["groups_dropped"] > 50


def test_a_run_is_the_same_with_and_without_a_transcript() -> None:
    plain, traced = run_seed(3, "groups"), run_seed(3, "groups", tracing=True)
    assert plain.digest == traced.digest
    assert plain.counters == traced.counters


def test_values_of_created_groups_are_decided_and_checked() -> None:
    """What clients of a created group append is in its lists at the end; else it would be a
    finding."""
    plan = plan_of(3, "groups")
    without = plan.with_acts(tuple(act for act in plan.acts if act.kind not in GROUP_ACTS))
    outcome, less = run_seed(3, plan=plan), run_seed(3, plan=without)
    assert outcome.violation is None
    assert less.violation is None
    assert less.counters["groups_hosted"] == 0
    assert outcome.chosen_values > less.chosen_values + 100


def test_rows_of_created_groups_are_shown_where_they_are_created() -> None:
    assert rare_events("groups").keys() >= OF_CREATED
    assert not rare_events("default").keys() & OF_CREATED


def test_every_act_is_made_in_the_smallest_cluster() -> None:
    for kind in GROUP_ACTS.values():
        assert kind.make(Random(1), Shape(1, 1, (), ())) is not None


def test_acts_do_nothing_where_no_groups_are_created() -> None:
    plan, groups = plan_of(5, "drift"), plan_of(5, "groups")
    acts = [act for act in groups.acts if act.kind in GROUP_ACTS]
    acts = [act for act in acts if act.until_us <= plan.faults_end_us]
    mixed = plan.with_acts(tuple(sorted([*plan.acts, *acts])))
    assert len(mixed.acts) > len(plan.acts)
    outcome = run_seed(5, plan=mixed)
    assert outcome.violation is None, outcome.violation
    assert outcome.counters["groups_hosted"] == 0


def test_what_is_hosted_at_the_end_is_judged() -> None:
    assert verdicts.hosted([LIVE, GONE]) is None
    elsewhere = LIVE._replace(member=False, hosts=False, left=False)
    assert verdicts.hosted([elsewhere]) is None
    for bad, what in (
        (LIVE._replace(hosts=False), "liveness"),
        (LIVE._replace(phase="ending"), "liveness"),
        (LIVE._replace(member=False), "U15"),
        (GONE._replace(hosts=True), "liveness"),
        (GONE._replace(left=True), "liveness"),
    ):
        broken = verdicts.hosted([LIVE, bad])
        assert broken is not None, bad
        assert broken[0] == what, bad
