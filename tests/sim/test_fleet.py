"""Many seeds in processes: what goes wrong there is a finding, and the rest goes on."""

import os
import signal
import subprocess
import sys

import pytest

from phx.sim import fleet
from phx.sim.fleet import Failure, Result, run_fleet, shrink_failure
from phx.sim.plan import SECOND, Act
from phx.sim.profiles import plan_of
from phx.sim.run import Outcome
from phx.sim.violation import Violation

pytestmark = pytest.mark.processes
UNKNOWN = plan_of(1, "calm").with_acts((Act(SECOND, SECOND, "no such act"),))


def test_an_exception_is_a_finding_and_no_violation():
    result = run_fleet("calm", 1, 1, 1, plan=UNKNOWN)
    (failure,) = result.failed
    assert failure.invariant == "error"
    assert "no such act" in failure.message


def test_a_seed_whose_process_dies_is_a_finding_and_the_rest_goes_on(monkeypatch):
    class Doomed(fleet.Worker):
        def give(self, plan):
            super().give(plan)
            if plan.seed == 2:
                os.kill(self.process.pid, signal.SIGKILL)

    monkeypatch.setattr(fleet, "Worker", Doomed)
    result = run_fleet("calm", 1, 4, 1)
    assert [(one.plan.seed, one.invariant) for one in result.failed] == [(2, "died")]
    assert result.seeds == 4


def test_a_seed_that_hangs_is_a_finding_and_the_rest_goes_on(monkeypatch):
    class Stopped(fleet.Worker):
        def give(self, plan):
            super().give(plan)
            if plan.seed == 1:
                os.kill(self.process.pid, signal.SIGSTOP)

    monkeypatch.setattr(fleet, "Worker", Stopped)
    monkeypatch.setattr(fleet, "STUCK_S", 15.0)
    result = run_fleet("calm", 1, 3, 1)
    assert [(one.plan.seed, one.invariant) for one in result.failed] == [(1, "hang")]
    assert "wall time" in result.failed[0].message
    assert result.seeds == 3


def test_a_seed_that_computes_for_ever_is_a_finding_and_one_that_waits_its_turn_is_none(
    monkeypatch,
):
    used = 0.0
    monkeypatch.setattr(fleet, "cpu_s", lambda process: used)
    worker = fleet.Worker()
    try:
        worker.plan = plan_of(1, "calm")
        assert worker.take(worker.since + 599) is None
        used = 61.0
        found = worker.take(worker.since + 61)
    finally:
        worker.stop()
    assert found is not None
    assert found.violation is not None
    assert (found.violation.invariant, "CPU time" in found.violation.message) == ("hang", True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks for another's CPU time")
def test_the_cpu_time_of_another_process_is_what_it_used():
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used = fleet.cpu_s(process.pid)
        process.communicate(b"\n")
    assert 0.5 <= used < 5.0
    assert fleet.cpu_s(process.pid) == 0.0


def test_after_enough_failures_no_new_seed_is_begun():
    result = Result("calm", 1)
    for seed in range(3):
        outcome = Outcome(plan_of(seed, "calm"))
        outcome.violation = Violation("U1", "planted", 7)
        result.add(outcome)
    assert len(result.failed) == 3
    assert run_fleet("calm", 1, 50, 1, failed_max=0).seeds == 1


def test_the_digest_of_all_seeds_depends_on_each_and_not_on_their_order():
    def of(pairs):
        result = Result("calm", 1)
        result.digests = dict(pairs)
        return result.digest

    assert of([(1, 5), (2, 6)]) == of([(2, 6), (1, 5)])
    assert of([(1, 5), (2, 6)]) != of([(1, 6), (2, 5)])
    assert of([(1, 5), (2, 6)]) != of([(1, 5), (2, 7)])


def test_shrinking_keeps_the_same_invariant(monkeypatch):
    plan = plan_of(1)
    guilty = plan.acts[4]

    def outcome_of(candidate):
        outcome = Outcome(candidate)
        kinds = {act[2:] for act in candidate.acts}
        if guilty[2:] in kinds:
            outcome.violation = Violation("U1", "planted", 7)
        elif not candidate.acts:
            outcome.violation = Violation("U2", "another", 7)
        return outcome

    monkeypatch.setattr(fleet, "outcome_of", outcome_of)
    failure = Failure(plan, "U1", "planted", 7, len(plan.acts))
    shrink_failure(failure)
    assert failure.shrunk
    assert [act[2:] for act in failure.plan.acts] == [guilty[2:]]


def test_a_violation_crosses_processes_whole():
    import pickle

    violation = pickle.loads(pickle.dumps(Violation("U5", "early", 12)))
    assert (violation.invariant, violation.message, violation.at_us) == ("U5", "early", 12)
