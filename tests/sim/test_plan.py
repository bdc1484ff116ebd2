"""Plans: decided by seed and profile, within what a profile promises, readable and replayable."""

import os
import subprocess
import sys

import pytest

from phx.sim.acts import ACTS, BEYOND_THE_BOUND, DRIFT_PPM, RIGHT_PPM
from phx.sim.plan import SECOND, Act, Plan
from phx.sim.profiles import MIX, PROFILES, plan_of
from phx.sim.world import LIMITS

SEEDS = range(1, 200)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_plan_is_decided_by_its_seed(profile):
    assert plan_of(7, profile) == plan_of(7, profile)
    if PROFILES[profile].weights:
        assert len({plan_of(seed, profile).acts for seed in range(20)}) == 20


def test_a_plan_is_the_same_in_another_process_with_other_hashes():
    code = "from phx.sim.profiles import plan_of; print(plan_of(11).to_json(), end='')"
    command = [sys.executable, "-P", "-c", code]  # the phx that is tested, wherever this runs
    environment = {"PYTHONHASHSEED": "123", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    made = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert made.stdout == plan_of(11).to_json()


def test_a_default_seed_is_as_large_as_promised():
    for seed in SEEDS:
        plan = plan_of(seed)
        assert plan.nodes >= 5
        assert plan.groups >= 8
        assert plan.duration_us >= 60 * SECOND
        assert len(plan.acts) >= 20
        assert plan.drift


@pytest.mark.parametrize("profile", PROFILES)
def test_acts_keep_to_the_time_of_faults_and_settings_have_names(profile):
    for seed in range(1, 30):
        plan = plan_of(seed, profile)
        assert list(plan.acts) == sorted(plan.acts)
        assert set(dict(plan.limits)) <= set(LIMITS)
        for act in plan.acts:
            assert 0 < act.at_us <= act.until_us <= plan.faults_end_us
            assert act.kind in PROFILES[profile].weights


def test_disks_of_a_minority_only_are_damaged():
    damaging = 0
    for profile in ("default", "sizes", "damage"):
        for seed in SEEDS:
            plan = plan_of(seed, profile)
            spoilt = {
                act.node
                for act in plan.acts
                if act.kind in ("flip-journal", "flip-store")  # of a checkpoint all is in the log
            }
            assert len(spoilt) <= (plan.nodes - 1) // 2
            damaging += bool(spoilt)
    assert damaging > 20


def test_clocks_of_the_default_profile_stay_within_the_bound_of_leases():
    assert not BEYOND_THE_BOUND & set(MIX)
    rates = [act.rate_ppm for seed in SEEDS for act in plan_of(seed).acts if act.kind == "drift"]
    assert rates
    fastest, slowest = max(*rates, RIGHT_PPM), min(*rates, RIGHT_PPM)
    assert fastest <= RIGHT_PPM + DRIFT_PPM
    assert fastest / slowest < 1.125


def test_every_kind_of_act_is_mixed_or_has_a_profile_and_happens():
    used = {kind for profile in PROFILES.values() for kind in profile.weights}
    assert used == set(ACTS)
    happened = {act.kind for seed in SEEDS for act in plan_of(seed).acts}
    assert happened == set(MIX)


def test_every_size_of_cluster_occurs():
    assert {plan_of(seed, "sizes").nodes for seed in SEEDS} == {1, 3, 4, 5, 7}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_plan_survives_its_file(profile):
    plan = plan_of(3, profile)
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seed": 1}', "{]"])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ValueError):
        Plan.from_json(text)


def test_an_act_is_one_line_and_knows_its_arguments():
    act = Act(1_500_000, 2_250_000, "crash", (("node", 3), ("power", 1)))
    assert str(act).split() == ["1.500000", "..", "2.250000", "crash", "node=3", "power=1"]
    assert (act.node, act.power) == (3, 1)
    with pytest.raises(AttributeError):
        _ = act.group


def test_leaving_an_act_out_leaves_the_others_as_they_are():
    plan = plan_of(5)
    assert plan.with_acts(plan.acts[1:]).acts == plan.acts[1:]
