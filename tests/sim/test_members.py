"""Runs in which members of groups change, and what is judged at their end."""

from collections import Counter
from dataclasses import replace

from phx.sim import verdicts
from phx.sim.act_kind import Shape
from phx.sim.acts_members import MEMBER_ACTS
from phx.sim.fleet import OF_MEMBERS, rare_events
from phx.sim.operating import STAGES
from phx.sim.profiles import plan_of
from phx.sim.run import run_seed
from phx.sim.verdicts import Standing

WELL = Standing(
    4, 1, version=3, decided=3, active=True, member=True, believes=True, ended=False, heard=True
)


def test_seeds_of_the_profile_change_members_in_every_way_and_nothing_breaks() -> None:
    seen: Counter[str] = Counter()
    for seed in range(1, 25):
        outcome = run_seed(seed, "members")
        assert outcome.violation is None, (seed, outcome.violation)
        seen.update(outcome.counters)
    assert seen["members_changes"] > 100
    assert {name for name in OF_MEMBERS if not seen[name]} == set()
    assert seen["members_active"] <= seen["members_changes"]


def test_a_run_is_the_same_with_and_without_a_transcript() -> None:
    plain, traced = run_seed(5, "members"), run_seed(5, "members", tracing=True)
    assert plain.digest == traced.digest
    assert plain.counters == traced.counters


def test_members_change_in_other_profiles_where_a_limit_says_so() -> None:
    plan, with_members = plan_of(3, "checkpoints"), plan_of(3, "members")
    acts = [act for act in with_members.acts if act.kind in MEMBER_ACTS]
    acts = [act for act in acts if act.until_us <= plan.faults_end_us]
    mixed = replace(
        plan,
        nodes=8,
        limits=(*plan.limits, ("members", 3)),
        acts=tuple(sorted([*plan.acts, *acts])),
    )
    outcome = run_seed(mixed.seed, plan=mixed)
    assert outcome.violation is None, outcome.violation
    assert outcome.counters["members_changes"] > 0
    still = replace(mixed, limits=plan.limits)
    outcome = run_seed(still.seed, plan=still)
    assert outcome.violation is None, outcome.violation
    assert outcome.counters["members_changes"] == 0


def test_leaders_are_killed_at_each_stage() -> None:
    stages = {act.at for seed in range(1, 40) for act in plan_of(seed, "members").acts
              if act.kind == "cut-change"}  # fmt: skip
    assert stages == set(range(len(STAGES)))


def test_rows_of_members_are_shown_where_they_change() -> None:
    assert rare_events("members").keys() >= OF_MEMBERS
    assert not rare_events("default").keys() & OF_MEMBERS


def test_every_act_is_made_in_the_smallest_cluster() -> None:
    from random import Random

    for kind in MEMBER_ACTS.values():
        assert kind.make(Random(1), Shape(1, 1, (), ())) is not None


def test_what_members_and_others_know_at_the_end_is_judged() -> None:
    assert verdicts.changed([WELL]) is None
    gone = WELL._replace(member=False, believes=False, ended=True)
    assert verdicts.changed([gone]) is None
    for bad, what in (
        (WELL._replace(ended=True), "U10"),
        (WELL._replace(version=2), "liveness"),
        (WELL._replace(active=False), "liveness"),
        (gone._replace(believes=True, ended=False), "liveness"),
    ):
        broken = verdicts.changed([WELL, bad])
        assert broken is not None
        assert broken[0] == what
    # Nobody exists any more whom it could ask.
    assert verdicts.changed([gone._replace(believes=True, ended=False, heard=False)]) is None
