"""Runs: one seed is one run, default seeds are as large as promised, and nothing breaks."""

import gc
from dataclasses import replace

import pytest

from phx._core.codec import blocks_live
from phx._core.engine_door import Engine
from phx.sim import verdicts
from phx.sim.fleet import RARE, run_fleet
from phx.sim.machine import SimMachine
from phx.sim.plan import SECOND, Act
from phx.sim.profiles import PROFILES, plan_of
from phx.sim.run import Run, SimLoad, play, run_seed

SMALL = replace(plan_of(3, "sizes"), nodes=3, duration_us=20 * SECOND, acts=())


def with_acts(*acts):
    return SMALL.with_acts(tuple(sorted(acts)))


def act(at_s, until_s, kind, **args):
    return Act(int(at_s * SECOND), int(until_s * SECOND), kind, tuple(args.items()))


def test_the_same_seed_is_the_same_run():
    first, again = run_seed(4), run_seed(4)
    assert first.violation is None
    assert first.digest == again.digest
    assert first.counters == again.counters
    assert run_seed(5).digest != first.digest


def test_tracing_changes_nothing():
    plan = plan_of(6, "power")
    plain, traced = run_seed(6, plan=plan), run_seed(6, plan=plan, tracing=True)
    assert plain.digest == traced.digest


class Ring:
    """An engine with native memory that only Python's collector gives back."""

    def __init__(self):
        self.engine = Engine(1, [1, 2, 3], [0])
        self.engine.start(512, 1)
        self.me = self


def test_what_others_left_to_the_collector_is_not_taken_for_memory_of_the_run():
    gc.collect()
    before = blocks_live()
    for _ in range(3):
        Ring()
    assert blocks_live() > before
    assert play(SMALL).violation is None


def test_a_world_that_nobody_closed_is_collected():
    plan = plan_of(1, "checkpoints")
    before = blocks_live()
    for _ in range(3):
        run = Run(plan, lambda node, group: SimMachine(), SimLoad, False)
        run.stage.open()
        run.load.open()
        run.world.run(3 * SECOND)
        del run
        gc.collect()
    assert blocks_live() == before


@pytest.mark.processes
def test_the_same_seeds_are_the_same_runs_in_other_processes_and_orders():
    here = {seed: run_seed(seed, "sizes").digest for seed in (1, 2, 3, 4)}
    one = run_fleet("sizes", 1, 4, 1)
    two = run_fleet("sizes", 1, 4, 2)
    assert one.digests == two.digests == here
    assert one.digest == two.digest
    assert not one.failed


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_default_seeds_are_as_large_as_promised_and_nothing_breaks():
    for seed in range(1000, 1020):
        outcome = run_seed(seed)
        assert outcome.violation is None, (seed, outcome.violation)
        assert outcome.chosen_values >= 2000, seed
        assert outcome.faults >= 20, seed


@pytest.mark.slow
@pytest.mark.parametrize("profile", sorted(set(PROFILES) - {"default"}))
def test_each_fault_alone_breaks_nothing(profile):
    for seed in range(1, 4):
        outcome = run_seed(seed, profile)
        assert outcome.violation is None, (profile, seed, outcome.violation)
        assert outcome.chosen_values > 100


def test_counters_of_rare_events_exist():
    assert set(RARE) <= set(run_seed(1, "sizes").counters)


# --- what must be found


class Forgetful(SimMachine):
    """Loses one append in seven, on every node alike."""

    def apply_batch(self, entries):
        results = super().apply_batch(entries)
        for entry in entries:
            if entry.value[:1] == b"a" and entry.instance % 7 == 0:
                self.items.pop(int.from_bytes(entry.value[1:5], "little"), None)
        return results


class Diverging(SimMachine):
    """Another one on another node."""

    def __init__(self, node):
        super().__init__()
        self.chain = node


class Stale(SimMachine):
    """Answers a get by the value before the last."""

    def __init__(self):
        super().__init__()
        self.before = {}

    def apply_batch(self, entries):
        results = []
        for entry in entries:
            key = int.from_bytes(entry.value[1:5], "little")
            if entry.value[:1] == b"g":
                results.append(self.before.get(key))
            else:
                self.before[key] = self.items.get(key)
                results += super().apply_batch([entry])
        return results


class Reset(SimMachine):
    """Leaves one register out when it is restored."""

    def restore(self, reader):
        super().restore(reader)
        if self.items:
            self.items.popitem()


class Viewless(SimMachine):
    """Offers no checkpoints."""

    def freeze(self):
        return None


KEEPING = replace(SMALL, limits=(*SMALL.limits, ("checkpoint_us", SECOND)))
CHECKPOINTS = KEEPING.with_acts((act(8, 9, "crash", node=2, power=0),))


def test_a_node_goes_on_from_its_checkpoints():
    outcome = play(CHECKPOINTS)
    assert outcome.violation is None
    assert outcome.counters["checkpoints_taken"] > 2
    assert outcome.counters["checkpoints_restored"] >= 1
    without = play(CHECKPOINTS, machines=lambda node, group: Viewless())
    assert without.violation is None
    assert without.counters["checkpoints_taken"] == 0
    assert without.counters["applied"] > outcome.counters["applied"]


def test_a_machine_that_restores_another_state_is_found():
    violation = play(CHECKPOINTS, machines=lambda node, group: Reset()).violation
    assert violation is not None
    assert violation.invariant == "U9c"


def test_a_flipped_bit_makes_a_node_fall_back_and_breaks_nothing():
    flips = [
        act(5 + second, 6 + second, "flip-checkpoint", node=1, which=which, bit=which * 977)
        for second, which in enumerate(range(8))
    ]
    outcome = play(KEEPING.with_acts(tuple(flips)))
    assert outcome.violation is None
    found = outcome.counters["checkpoints_fell_back"] + outcome.counters["checkpoints_unreadable"]
    assert found >= 2


def test_a_crash_at_each_effect_of_a_checkpoint_breaks_nothing():
    for effect in range(1, 25):
        kind, power = ("power-keep", 1) if effect % 2 else ("crash-keep", 0)
        at = act(6, 8, kind, node=1, group=1, effect=effect, power=power, starting=0)
        outcome = play(replace(KEEPING, acts=(at,), duration_us=18 * SECOND))
        assert outcome.violation is None, effect
        assert outcome.counters["torn_checkpoints"] == 1, effect


def invariant_of(machines):
    violation = play(SMALL, machines=machines).violation
    assert violation is not None
    return violation.invariant


def test_a_machine_that_forgets_is_found_by_its_clients():
    assert invariant_of(lambda node, group: Forgetful()) in ("exactly-once", "linearizable")


def test_machines_that_differ_are_found():
    assert invariant_of(lambda node, group: Diverging(node)) == "U7"


def test_stale_reads_are_found():
    assert invariant_of(lambda node, group: Stale()) == "linearizable"


def test_a_cluster_that_stays_cut_in_two_is_found():
    class Cutting(SimLoad):
        """Cuts the cluster when all faults are over."""

        def open(self):
            super().open()
            self.world.call_at(self.plan.faults_end_us + 1, self.cut)

        def cut(self):
            for a, b in ((1, 2), (1, 3), (2, 3)):
                self.world.apart(a, b, True)

    violation = play(SMALL, load=Cutting).violation
    assert violation is not None
    assert violation.invariant == "liveness"


# --- acts


def test_acts_that_overlap_do_not_end_each_other():
    plan = with_acts(
        act(2, 8, "one-way", a=1, b=2, blocked=1),
        act(3, 4, "one-way", a=1, b=0, blocked=1),
        act(2, 6, "apart", mask=1),
        act(3, 5, "apart", mask=1),
    )
    states = {}

    class Looking(SimLoad):
        def open(self):
            super().open()
            for at_s in (3.5, 4.5, 5.5, 8.5):
                self.world.call_at(int(at_s * SECOND), lambda at_s=at_s: self.look(at_s))

        def look(self, at_s):
            states[at_s] = self.world.counters()["frames"]

    outcome = play(plan, load=Looking)
    assert outcome.violation is None
    assert len(states) == 4


@pytest.mark.parametrize(
    ("one", "counter"),
    [
        (act(2, 4, "crash", node=1, power=0), "crashes"),
        (act(2, 4, "power", node=1, power=1), "power_losses"),
        (act(2, 4, "power-operation", node=1, operation=2, power=1), "torn_operations"),
        (act(2, 4, "blackout", power=1), "power_losses"),
        (act(2, 2.2, "last-words", node=1, loss_ppm=600_000), "lost_frames"),
        (act(2, 4, "fail-sync", node=1, after=2), "poisoned"),
        (act(2, 4, "fail-write", node=1, after=2), "poisoned"),
        (act(2, 6, "loss", a=0, b=0, loss_ppm=100_000), "lost_frames"),
        (act(2, 6, "duplicate", a=0, b=0, twice_ppm=100_000), "copied_frames"),
        (act(2, 6, "reorder", a=0, b=0, late_ppm=100_000, late_us=20_000), "late_frames"),
        (act(2, 6, "flip-frames", a=0, b=0, flip_ppm=100_000), "bad_frames"),
        (act(2, 6, "raise", node=1, group=0, how=1), "stopped_groups"),
        (act(2, 2, "settle", node=1), "settles"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_an_act_does_what_it_says(one, counter):
    calm, outcome = play(SMALL), play(with_acts(one))
    assert outcome.violation is None
    assert outcome.faults == 1
    assert outcome.counters[counter] > (0 if counter != "settles" else calm.counters[counter] - 1)
    if counter != "settles":
        assert calm.counters[counter] == 0


def test_liveness_is_bounded_by_a_few_elections():
    assert verdicts.ELECTIONS_MAX * verdicts.election_time_us(800_000, 100_000, 1_000, 500) < (
        6 * SECOND
    )
