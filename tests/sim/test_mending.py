"""Stores with damaged entries: found, never served, and mended with what peers give."""

from dataclasses import replace

from phx.sim.fleet import RARE
from phx.sim.plan import SECOND, Act, Plan
from phx.sim.profiles import plan_of
from phx.sim.run import run_seed

COUNTED = ("ailing", "holes", "mended")
SEED = 7


def plan(*acts: Act) -> Plan:
    """No other fault, and no checkpoint: everybody keeps the whole log."""
    made = plan_of(SEED, "mending")
    limits = {**dict(made.limits), "checkpoint_us": 0}
    return replace(made, limits=tuple(limits.items()), acts=acts)


def flip(at_s: int, node: int, which: int = 5, bit: int = 1_000) -> Act:
    args = (("node", node), ("which", which), ("bit", bit))
    return Act(at_s * SECOND, at_s * SECOND + 400_000, "flip-store", args)


def settle(at_s: int, node: int) -> Act:
    return Act(at_s * SECOND, at_s * SECOND, "settle", (("node", node),))


def test_damage_is_found_by_the_scrubber_and_mended_by_a_peer() -> None:
    outcome = run_seed(SEED, plan=plan(settle(5, 1), flip(6, 1)))
    assert outcome.violation is None
    assert outcome.counters["ailing"] == 1
    assert outcome.counters["mended"] == outcome.counters["holes"] == 1


def test_damage_waits_while_no_peer_can_be_asked() -> None:
    apart = Act(6 * SECOND, 12 * SECOND, "apart", (("mask", 1),))
    outcome = run_seed(SEED, plan=plan(settle(5, 1), apart, flip(7, 1)))
    assert outcome.violation is None
    assert outcome.counters["mended"] == outcome.counters["holes"] == 1


def test_a_crash_behind_each_step_is_followed_by_mending() -> None:
    for after_us in range(0, 60_000, 6_000):
        at = 6 * SECOND + 400_000 + after_us
        crash = Act(at, at + 200_000, "crash", (("node", 1), ("power", 1)))
        outcome = run_seed(SEED, plan=plan(settle(5, 1), flip(6, 1), crash, flip(9, 1, which=0)))
        assert outcome.violation is None, after_us
        assert outcome.counters["mended"] >= 1


def test_nothing_breaks_and_each_of_it_happens() -> None:
    total = dict.fromkeys(COUNTED, 0)
    for seed in range(1, 13):
        outcome = run_seed(seed, "mending")
        assert outcome.violation is None, (seed, outcome.violation)
        for name in COUNTED:
            total[name] += outcome.counters[name]
    assert all(total.values()), total
    assert set(COUNTED) <= set(RARE)


def test_a_bit_that_flips_on_its_way_is_never_taken() -> None:
    """Nor one by one: each of these is asked for again until it comes whole."""
    flips = [flip(at, 1, which=at, bit=700 * at) for at in range(6, 18)]
    wild = Act(5 * SECOND, 19 * SECOND, "flip-frames", (("a", 0), ("b", 0), ("flip_ppm", 100_000)))
    mended = 0
    for seed in range(3):
        made = replace(plan(settle(4, 1), wild, *flips), seed=seed)
        outcome = run_seed(seed, plan=made)
        assert outcome.violation is None, outcome.violation
        mended += outcome.counters["mended"]
    assert mended
