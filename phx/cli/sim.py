"""``phx sim``: whole clusters under simulated time, network and disk, seed after seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from phx.cli import report
from phx.sim.fleet import (
    Failure,
    Result,
    coverage,
    rare_events,
    run_fleet,
    shrink_failure,
    trace_failure,
)
from phx.sim.plan import Plan

SHRUNK_MAX = 3
"""Failures that are shrunk and shown in full; of the others, seed and invariant."""
TRACE_LINES = 60


@dataclass(frozen=True, slots=True)
class Options:
    """What the command was asked for."""

    profile: str
    first: int
    seeds: int
    jobs: int
    shrink: bool
    trace: bool
    stop_after: int
    plan: Plan | None
    keep: Path | None


def run(options: Options) -> Result:
    """All seeds, then what failed: shrunk, and run once more for its transcript."""
    told = 0
    with report.Progress() as progress:

        def note(result: Result) -> None:
            nonlocal told
            for failure in result.failed[told:]:
                progress.note(f"seed {failure.plan.seed} broke {failure.invariant}")
            told = len(result.failed)
            speed = result.seeds / max(result.seconds, 0.001)
            progress.update(
                f"{result.seeds} of {options.seeds} seeds, {speed:.1f} a second, "
                f"{len(result.failed)} failed"
            )

        result = run_fleet(
            options.profile,
            options.first,
            options.seeds,
            options.jobs,
            plan=options.plan,
            failed_max=options.stop_after,
            progress=note,
        )
        for failure in result.failed[:SHRUNK_MAX]:
            if options.shrink:
                progress.note(f"seed {failure.plan.seed} broke {failure.invariant}: shrinking")
                shrink_failure(failure)
            trace_failure(failure)
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        for failure in result.failed:
            path_of(options.keep, failure).write_text(failure.plan.to_json())
    return result


def path_of(folder: Path, failure: Failure) -> Path:
    return folder / f"{failure.plan.profile}-{failure.plan.seed}.json"


def replay(options: Options, failure: Failure) -> str:
    """The command that runs a failure again: the plan that was kept, or the seed's own."""
    if options.keep is not None:
        return f"phx sim --plan {path_of(options.keep, failure)} --trace"
    if options.plan is not None:
        return "phx sim --plan FILE --trace"
    plan = failure.plan
    return f"phx sim --seeds 1 --from {plan.seed} --profile {plan.profile} --trace"


def print_result(result: Result, options: Options) -> None:
    """What was run, what never happened, and what failed."""
    found, events = coverage(result.counters), rare_events(result.profile)
    rows = [[text, name, report.number(found[name])] for name, text in events.items()]
    report.print_table("Rare events", ["event", "counter", "times"], mark_zeros(rows))
    speed = result.seeds / max(result.seconds, 0.001)
    core = result.seeds / max(result.cpu_s, 0.001)
    click.echo(
        f"{result.seeds} seeds of profile {result.profile} from {result.first}: "
        f"{report.number(result.chosen_values)} values chosen "
        f"(at least {report.number(result.chosen_values_min)} a seed), "
        f"{report.number(result.faults)} faults (at least {result.faults_min} a seed), "
        f"{report.number(result.steps)} steps, {result.seconds:.1f} s, {speed:.1f} seeds a second "
        f"({core:.1f} a second of CPU time), digest {result.digest:016x}"
    )
    for number, failure in enumerate(result.failed):
        print_failure(failure, options, number < SHRUNK_MAX)
    if not result.failed:
        click.echo("nothing broke")


def mark_zeros(rows: Sequence[list[str]]) -> list[list[str]]:
    return [[text, name, "0  <- never" if times == "0" else times] for text, name, times in rows]


def print_failure(failure: Failure, options: Options, whole: bool) -> None:
    click.echo(f"\nseed {failure.plan.seed} broke {failure.invariant} at {failure.at_us} us")
    click.echo(failure.message)
    if whole:
        lines = failure.trace if options.trace else failure.trace[-TRACE_LINES:]
        if lines:
            click.echo(f"the last {len(lines)} events:")
            click.echo("\n".join(lines))
        if failure.shrunk:
            click.echo(f"shrunk from {failure.acts} acts to {len(failure.plan.acts)}:")
        click.echo("\n".join(failure.plan.lines()))
    click.echo(f"to run it again: {replay(options, failure)}")
