"""Many seeds on several processes, started by spawn, each fed one seed at a time.

A seed that takes more than `HANG_S` of CPU time, or `STUCK_S` of wall time (a machine may have
other things to do), or whose process dies, is a finding, too, and the others go on. The order in
which seeds finish changes nothing in the result.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from phx.sim.acts_members import MEMBER_ACTS
from phx.sim.plan import Plan
from phx.sim.profiles import PROFILES, plan_of
from phx.sim.run import Outcome, run_seed
from phx.sim.shrink import shrink
from phx.sim.violation import Violation

__all__ = ["FAILED_MAX", "Failure", "Result", "run_fleet", "shrink_failure"]

HANG_S = 60.0
STUCK_S = 600.0
FAILED_MAX = 10
"""After so many failing seeds the rest is not run."""
SHRINK_S = 45.0
MASK = (1 << 64) - 1


@dataclass(slots=True)
class Failure:
    """A seed in which something did not hold.

    Attributes:
        plan: that fails, shrunk if that was asked for and possible.
        invariant: which; "error": an exception that is no violation; "hang"; "died": its process.
        message, at_us: as in `Violation`.
        trace: the last events of a run of `plan`.
        acts: how many the plan had before it was shrunk.
    """

    plan: Plan
    invariant: str
    message: str
    at_us: int
    acts: int
    trace: list[str] = field(default_factory=list)
    shrunk: bool = False


@dataclass(slots=True)
class Result:
    """What came of many seeds; sums over all of them.

    `seconds` is wall time, `cpu_s` that of the processes, their start left out.
    """

    profile: str
    first: int
    seeds: int = 0
    chosen_values: int = 0
    faults: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    steps: int = 0
    chosen_values_min: int = 0
    faults_min: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    failed: list[Failure] = field(default_factory=list)
    digests: dict[int, int] = field(default_factory=dict)

    @property
    def digest(self) -> int:
        """Of the digests of all runs, by seed."""
        made = 0
        for seed in sorted(self.digests):
            made = (made * 0x9E3779B97F4A7C15 + self.digests[seed] + seed) & MASK
        return made

    def add(self, outcome: Outcome) -> None:
        if not self.seeds or outcome.chosen_values < self.chosen_values_min:
            self.chosen_values_min = outcome.chosen_values
        if not self.seeds or outcome.faults < self.faults_min:
            self.faults_min = outcome.faults
        self.seeds += 1
        self.chosen_values += outcome.chosen_values
        self.faults += outcome.faults
        self.steps += outcome.steps
        self.cpu_s += outcome.cpu_s
        self.digests[outcome.plan.seed] = outcome.digest
        for name, value in outcome.counters.items():
            self.counters[name] = self.counters.get(name, 0) + value
        if outcome.violation is not None:
            self.fail(outcome.plan, outcome.violation)

    def fail(self, plan: Plan, violation: Violation) -> None:
        self.failed.append(
            Failure(plan, violation.invariant, violation.message, violation.at_us, len(plan.acts))
        )


# --- in the processes


def work(pipe: Connection) -> None:
    """Run what comes down the pipe until None does."""
    gc.set_threshold(200_000, 20, 20)  # a run keeps nearly all that it makes until its end
    # Then it goes: the next run begins with a collection (`play`), which passes over modules.
    gc.freeze()
    while (plan := pipe.recv()) is not None:
        pipe.send(outcome_of(plan))


def outcome_of(plan: Plan) -> Outcome:
    try:
        return run_seed(plan.seed, plan=plan)
    except Exception:
        outcome = Outcome(plan)
        outcome.violation = Violation("error", traceback.format_exc())
        return outcome


class Worker:
    """A process and what it runs."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.plan: Plan | None = None
        self.since = self.since_cpu = 0.0

    def give(self, plan: Plan) -> None:
        self.plan = plan
        self.since = time.monotonic()
        self.since_cpu = cpu_s(self.process.pid)
        self.pipe.send(plan)

    def stop(self) -> None:
        """At once; nothing of it is needed any more."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def take(self, now: float) -> Outcome | None:
        """What it has found; None: nothing yet. A violation says that it died or hangs."""
        plan = self.plan
        assert plan is not None
        outcome = Outcome(plan)
        try:
            if self.pipe.poll():
                found: Outcome = self.pipe.recv()
                return found
        except (EOFError, OSError):
            self.process.join()
            outcome.violation = Violation("died", f"exit code {self.process.exitcode}")
            return outcome
        if cpu_s(self.process.pid) - self.since_cpu > HANG_S:
            outcome.violation = Violation("hang", f"more than {HANG_S:g} s of CPU time")
        elif now - self.since > STUCK_S:
            outcome.violation = Violation("hang", f"more than {STUCK_S:g} s of wall time")
        return outcome if outcome.violation else None


def cpu_s(process: int | None) -> float:
    """What another process has used of CPU time so far; 0 where that cannot be asked."""
    if process is None or not sys.platform.startswith("linux"):
        return 0.0
    clock = (~process << 3) | 2  # as clock_getcpuclockid makes it: that of all threads, scheduled
    try:
        return time.clock_gettime(clock)
    except OSError:  # it has died: the pipe says so
        return 0.0


def run_fleet(
    profile: str,
    first: int,
    seeds: int,
    jobs: int,
    *,
    plan: Plan | None = None,
    failed_max: int = FAILED_MAX,
    progress: Callable[[Result], None] = lambda result: None,
) -> Result:
    """Run `seeds` seeds from `first` on `jobs` processes.

    Args:
        plan: run this one instead, once.
        failed_max: failing seeds after which no new ones are begun.
        progress: called after each seed.
    """
    start = time.monotonic()
    result = Result(profile, first)
    plans = iter([plan]) if plan else (plan_of(first + i, profile) for i in range(seeds))
    workers = [Worker() for _ in range(min(jobs, 1 if plan else seeds))]
    try:
        busy = [worker for worker in workers if feed(worker, plans)]
        while busy:
            wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in list(busy):
                outcome = worker.take(time.monotonic())
                if outcome is None:
                    continue
                result.add(outcome)
                result.seconds = time.monotonic() - start
                progress(result)
                busy.remove(worker)
                if outcome.violation and outcome.violation.invariant in ("died", "hang"):
                    worker.stop()
                    worker = Worker()
                    workers.append(worker)
                if len(result.failed) < failed_max and feed(worker, plans):
                    busy.append(worker)
    finally:
        for worker in workers:
            worker.stop()
    result.failed.sort(key=lambda failure: failure.plan.seed)
    result.seconds = time.monotonic() - start
    return result


def feed(worker: Worker, plans: Iterator[Plan]) -> bool:
    """Give it the next plan; False: there is none."""
    plan = next(plans, None)
    if plan is None:
        return False
    worker.give(plan)
    return True


# --- a failing seed


def shrink_failure(failure: Failure, seconds: float = SHRINK_S) -> None:
    """Replace the plan of a failure by a lesser one that breaks the same invariant."""
    if failure.invariant in ("died", "hang"):
        return

    def fails(plan: Plan) -> bool:
        violation = outcome_of(plan).violation
        return violation is not None and violation.invariant == failure.invariant

    failure.plan = shrink(failure.plan, fails, seconds=seconds)
    failure.shrunk = True


def trace_failure(failure: Failure) -> None:
    """Run it once more for its transcript, message and time."""
    if failure.invariant in ("died", "hang", "error"):
        return
    outcome = run_seed(failure.plan.seed, plan=failure.plan, tracing=True)
    if outcome.violation is not None:
        failure.message = outcome.violation.message
        failure.at_us = outcome.violation.at_us
    failure.trace = outcome.trace


def as_json(result: Result, replay: Callable[[Failure], str]) -> dict[str, Any]:
    """As the reference of the command line describes it."""
    return {
        "profile": result.profile,
        "first": result.first,
        "seeds": result.seeds,
        "failed": [
            {
                "seed": one.plan.seed,
                "invariant": one.invariant,
                "message": one.message,
                "at_us": one.at_us,
                "acts": [str(act) for act in one.plan.acts],
                "replay": replay(one),
            }
            for one in result.failed
        ],
        "coverage": coverage(result.counters),
        "chosen_values": result.chosen_values,
        "chosen_values_min": result.chosen_values_min,
        "faults": result.faults,
        "faults_min": result.faults_min,
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
        "cpu_s": round(result.cpu_s, 3),
        "seeds_per_s": round(result.seeds / max(result.seconds, 0.001), 3),
        "seeds_per_cpu_s": round(result.seeds / max(result.cpu_s, 0.001), 3),
        "digest": f"{result.digest:016x}",
    }


RARE = {
    "elections": "elections won",
    "prevotes": "pre-votes asked for",
    "step_downs": "leaders that stepped down",
    "re_prepares": "leaders that prepared again above a higher ballot",
    "transfers": "leaderships handed over",
    "refused_messages": "messages refused",
    "adopted_values": "values adopted in phase 1",
    "gap_fills": "gaps filled with no-ops",
    "noops_decided": "no-ops decided",
    "learned_values": "values learned from a peer",
    "late_decisions": "values decided of whom their leader never heard",
    "forwards": "values forwarded to a leader",
    "resends": "messages sent again",
    "duplicates": "values decided twice, applied once",
    "supplied": "answers to peers that lag",
    "hostile_messages": "hostile messages ignored",
    "lost_frames": "frames lost",
    "copied_frames": "frames that arrived twice",
    "late_frames": "frames overtaken",
    "bad_frames": "damaged frames refused",
    "dropped_frames": "frames dropped, the queue was full",
    "half_open": "connections of which one end knew nothing",
    "crashes": "crashes",
    "power_losses": "of which power losses",
    "torn_operations": "of which inside a disk operation",
    "torn_checkpoints": "of which inside a step of a checkpoint",
    "deaths_at_start": "of which while starting",
    "replayed": "records replayed",
    "torn_tails": "torn tails cut",
    "refused_starts": "starts refused: damage",
    "lost_journals": "journals lost",
    "lost_stores": "stores lost, or older ones put back",
    "old_rows": "rows of groups that the journal knew better",
    "lost_again": "of which: the new one, before it was whole",
    "rejoin_asks": "leaders asked for a rejoin",
    "rejoins": "groups rejoined",
    "ceilings": "ceilings of promises raised",
    "written_acks": "acknowledgements of relaxed groups that a write released",
    "written_votes": "own votes that a write released",
    "interval_syncs": "syncs because a group's interval was over",
    "written_lost": "acceptances that were only written when the power failed",
    "doubtful_groups": "groups that were suspect after that",
    "switched": "changes of how durable a group is",
    "switches_failed": "of which failed: the store, or the journal",
    "doubts": "journals that failed, and made what was only written doubtful",
    "damaged_reads": "damaged entries found when read",
    "ailing": "chunks of stores found damaged",
    "holes": "instances that waited to be fetched from peers",
    "mended": "of which fetched, and whole again",
    "mends_in_vain": "asked of every peer in vain",
    "poisoned": "journals poisoned",
    "full": "writes that found the journal full",
    "pressures": "journals nearly full",
    "rolls": "new segments begun",
    "recycled_segments": "segments used again",
    "settles": "settles committed",
    "retires": "settled log given up",
    "stopped_groups": "machines that failed",
    "checkpoints_taken": "checkpoints taken",
    "checkpoints_dropped": "older ones dropped",
    "checkpoints_abandoned": "checkpoints cut short by a crash",
    "checkpoints_failed": "for which there was no room",
    "checkpoints_restored": "machines restored from one",
    "checkpoints_fell_back": "damaged ones put aside",
    "checkpoints_unreadable": "manifests that cannot be read",
    "floors": "floors raised",
    "trims": "transactions that trimmed",
    "below": "groups that no log brings on",
    "offers": "rounds in which peers were asked for checkpoints",
    "fetches": "checkpoints that were begun to be fetched",
    "fetches_resumed": "of which some was there",
    "fetches_cut": "transfers that were cut",
    "fetches_refused": "transfers that were given up",
    "fetches_spoilt": "checkpoints that were not sound when they had come",
    "installs": "machines replaced",
    "installs_passed": "installs behind what was applied by then",
    "installs_own": "installs of a node's own checkpoint",
    "installs_abandoned": "installs cut short by a crash",
    "odd_machines": "replicas that were made odd",
    "odd_found": "of which found, and stopped",
    "odd_others": "comparisons that found another one odd",
    "odd_split": "comparisons without a majority",
    "odd_asked": "after which somebody had the odd one made anew",
    "marks": "groups marked, to be made anew",
    "made_anew": "of which made anew",
    "members_changes": "changes of members decided",
    "members_adopted": "of which by another leader than the one that packed it",
    "members_disjoint": "of which to others altogether",
    "members_promoted": "of which made voters of learners",
    "members_leaders_left": "of which by a leader that is no voter after it",
    "members_active": "changes active",
    "members_removed": "members removed",
    "members_ended": "replicas that ended, for they are none any more",
    "members_told_late": "of which had not passed the change",
    "members_tombstones": "answers of who ended",
    "members_wiped": "nodes deleted when their last change was active",
    "change_under_way": "changes of members that a leader took",
    "change_conflict": "changes refused: another version",
    "change_busy": "changes refused: one is under way, or not active yet",
    "change_not_caught_up": "changes refused: no quorum of the new voters is near",
    "change_not_leading": "changes asked of who does not lead",
    "change_killed": "leaders killed at some stage of a change",
    "groups_hosted": "created groups that a node began to host",
    "groups_ends": "times that whoever led was to propose a last value",
    "groups_dropped": "created groups that a node dropped",
    "groups_cut": "deaths behind a step of hosting or dropping",
    "groups_cleaned": "groups that a start swept away",
    "settled_calls": "callers told by an install",
    "lease_reads": "reads answered under a lease",
}
"""What should happen now and then, by counter: a row that stays zero was never tested."""

OF_ODD_MACHINES = frozenset(
    ["odd_machines", "odd_found", "odd_others", "odd_split", "odd_asked", "marks", "made_anew"]
)
"""Rows that only a profile with the act `odd-machine` can bring about."""

OF_RELAXED = frozenset(
    ["written_acks", "written_votes", "interval_syncs", "written_lost", "doubtful_groups"]
) | {"switched", "switches_failed", "doubts"}
"""Rows that only a profile with the act `switch-durability` can bring about."""

OF_MEMBERS = frozenset(name for name in RARE if name.startswith(("members_", "change_")))
"""Rows that only a profile in which members of groups change can bring about."""

OF_CREATED = frozenset(name for name in RARE if name.startswith("groups_"))
"""Rows that only a profile with the act `create-group` can bring about."""


def rare_events(profile: str) -> dict[str, str]:
    """What should happen now and then in runs of that profile: counter and text."""
    weights = PROFILES[profile].weights if profile in PROFILES else {}
    none: frozenset[str] = frozenset()
    left = none if "odd-machine" in weights else OF_ODD_MACHINES
    left |= none if "switch-durability" in weights else OF_RELAXED
    left |= none if MEMBER_ACTS.keys() & weights.keys() else OF_MEMBERS
    left |= none if "create-group" in weights else OF_CREATED
    return {name: text for name, text in RARE.items() if name not in left}


def coverage(counters: dict[str, int]) -> dict[str, int]:
    """The rare events among the counters."""
    return {name: counters.get(name, 0) for name in RARE}
