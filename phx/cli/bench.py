"""``phx bench`` and ``phx bench compare``: options, what is printed, exit codes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from phx._version import __version__
from phx.bench.case import CASES, MATRICES, Case, problem, rows_of
from phx.cli.options import GROUPS_MAX, LOOP, SETTINGS, check_loop, command, fail, numbers

__all__ = ["bench"]

LISTS = ("groups", "value_bytes", "inflight", "rate")  # a row for each

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def option(*words: str, help: str | None = None, **settings: Any) -> Decorator:
    """An option that shows its default."""
    return click.option(*words, help=help, show_default=True, **settings)


def choice(word: str, values: Iterable[str], default: str, help: str) -> Decorator:
    return option(word, type=click.Choice(list(values)), default=default, help=help)


SETTING_OPTIONS: list[Decorator] = [
    option(
        "--groups",
        callback=numbers(1, GROUPS_MAX),
        metavar="N,N,…",
        default="1,20,50,100",
        help="A row for each number.",
    ),
    option(
        "--value-bytes",
        callback=numbers(16, 1 << 20),
        metavar="N,N,…",
        default="100",
        help="Size of the values; a row for each.",
    ),
    choice(
        "--mode",
        ["propose", "propose_many"],
        "propose",
        "One awaited call per value, or per batch of values.",
    ),
    choice(
        "--reads",
        ["", "stale", "lease", "linearizable"],
        "",
        "Reads of this consistency instead of values: one awaited read each, or with "
        "--mode propose_many in calls of read_many.",
    ),
    option(
        "--inflight",
        callback=numbers(1, 1_000_000),
        metavar="N,N,…",
        default="1000",
        help="Values in flight, over all groups and processes; a row for each.",
    ),
    option(
        "--seconds",
        type=click.FloatRange(0.5, 3600),
        default=10,
        help="Measured time; the warm-up is left out.",
    ),
    option("--nodes", type=click.IntRange(1, 15), default=3),
    option(
        "--warmup",
        type=click.FloatRange(0, 600),
        default=2,
        help="Seconds of load before the measured time.",
    ),
    option(
        "--batch",
        type=click.IntRange(0, 10_000),
        default=0,
        help="Values per propose_many; 0: half of what a group has in flight.",
    ),
    option(
        "--rate",
        callback=numbers(0, 100_000_000),
        metavar="N,N,…",
        default="0",
        help="Values a second that are offered over all clients; 0: as many as go through. "
        "A row for each.",
    ),
    choice(
        "--at",
        ["leader", "follower", "any"],
        "leader",
        "Where the clients of a group run: at the node that leads it, at the others, or at all.",
    ),
    choice("--leaders", ["spread", "one"], "spread", "Leaders on all nodes, or all on the first."),
    option(
        "--load-groups",
        type=click.IntRange(0, GROUPS_MAX),
        default=0,
        help="Load on so many of the groups only; 0: on all.",
    ),
    choice("--skew", ["even", "zipf"], "even", "Load of the groups: equal, or 1/k for the k-th."),
    choice(
        "--machine",
        ["tally", "dict", "slow"],
        "tally",
        "What the groups run: counting only, putting into a dictionary, 20 us per value.",
    ),
    option(
        "--large-groups",
        type=click.IntRange(0, GROUPS_MAX),
        default=0,
        help="So many further groups with large values and no other load.",
    ),
    option("--large-bytes", type=click.IntRange(16, 1 << 20), default=102_400, help="Their size."),
    option(
        "--large-rate",
        type=click.FloatRange(0, 1_000_000),
        default=0,
        help="Large values a second, over all those groups.",
    ),
    option(
        "--gil-s",
        type=click.IntRange(0, 3600),
        default=0,
        help="The last node holds its GIL so many seconds in the middle, and has no clients.",
    ),
    option(
        "--checkpoint-s",
        type=click.FloatRange(0, 3600),
        default=0,
        help="A checkpoint of each group every so many seconds, in every other eighth of the time; "
        "0: as a node does it by itself.",
    ),
    LOOP,
]

RUN_OPTIONS: list[Decorator] = [
    option(
        "--case",
        "cases",
        type=click.Choice(list(CASES)),
        multiple=True,
        help="A named case; options that are given change it. May be repeated.",
    ),
    option(
        "--matrix",
        "matrices",
        type=click.Choice(list(MATRICES)),
        multiple=True,
        help="A set of rows; likewise.",
    ),
    option("--list-cases", is_flag=True, help="Say what the named cases and sets are."),
    option(
        "--limit",
        is_flag=True,
        help="Measure what this machine does without a protocol, too; rows as shares of it.",
    ),
    option(
        "--dir",
        "folder",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Where the nodes keep their data. Default: a temporary folder.",
    ),
    option(
        "--json",
        "json_path",
        metavar="FILE",
        type=click.Path(dir_okay=False, allow_dash=True),
        help="Write everything measured to FILE as JSON; - for stdout, without the table.",
    ),
    option(
        "--plot",
        "plot_path",
        metavar="FILE.svg",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Draw throughput against groups, and latency against load.",
    ),
]


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    for decorate in reversed(SETTING_OPTIONS + RUN_OPTIONS):
        function = decorate(function)
    return function


@click.group("bench", context_settings=SETTINGS, invoke_without_command=True)
@click.version_option(__version__, prog_name="phx bench")
@with_options
@click.pass_context
def bench(
    context: click.Context,
    /,
    cases: tuple[str, ...],
    matrices: tuple[str, ...],
    list_cases: bool,
    limit: bool,
    folder: Path | None,
    json_path: str | None,
    plot_path: Path | None,
    **settings: Any,
) -> None:
    """Measure throughput and latency of real clusters on this machine.

    Exits with 1 if an acknowledged value is not on every node.
    """
    if context.invoked_subcommand is not None:
        return
    if list_cases:
        print_cases(json_path)
        return
    wanted = {
        name: value
        for name, value in settings.items()
        if not (cases or matrices)
        or context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    rows = changed(rows_of(cases, matrices) or [Case()], wanted)
    for row in rows:
        check_loop(row.loop)
        if why := problem(row):
            raise click.UsageError(why)
    result = measured(rows, folder, limit, plot_path)
    report(result, json_path, plot_path)


def changed(rows: list[Case], settings: dict[str, Any]) -> list[Case]:
    """The rows with these settings; one for each combination of those that are lists."""
    settings = dict(settings)
    if not settings.get("large_groups"):
        settings.pop("large_bytes", None)
    lists = {name: settings.pop(name) for name in LISTS if name in settings}
    made = [
        replace(row, **settings, **dict(zip(lists, values, strict=True)))
        for row in rows
        for values in itertools.product(*lists.values())
    ]
    return list(dict.fromkeys(made))


def measured(
    rows: list[Case], folder: Path | None, limit: bool, plot_path: Path | None
) -> dict[str, Any]:
    from phx.bench import run
    from phx.bench.limit_of import LimitMissing
    from phx.cli.report import Progress

    if plot_path is not None:
        check_plots()
    try:
        with Progress() as progress:
            return run.run(run.Options(rows, folder, limit), progress)
    except (run.WorkerFailed, run.DiskFull, LimitMissing, OSError) as error:
        fail(str(error))


def check_plots() -> None:
    """Rather now than after the rows."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install 'phx-paxos[plot]'")


def report(result: dict[str, Any], json_path: str | None, plot_path: Path | None) -> None:
    """Print, write and draw what was asked; exit with 1 if a row is a finding."""
    from phx.bench.plot import plot
    from phx.bench.table import tables
    from phx.cli.report import print_json, print_table

    # Files first: what was measured must not be lost with the reader of a pipe.
    if json_path is not None and json_path != "-":
        Path(json_path).write_text(json.dumps(result, indent=2) + "\n")
    if plot_path is not None:
        plot(result, plot_path)
    if json_path == "-":
        print_json(result)
    else:
        for table in tables(result):
            print_table(*table)
    findings = [row["finding"] for row in result["rows"] if row["finding"]]
    if result["failed"]:
        findings.append(result["failed"])
    if findings or not all(row["verified"] for row in result["rows"]):
        fail("; ".join(findings))


def print_cases(json_path: str | None) -> None:
    from phx.cli.report import print_json, print_table

    said = {name: one.says for name, one in CASES.items()}
    sets = {name: says for name, (says, _) in MATRICES.items()}
    if json_path == "-":
        print_json({"cases": said, "matrices": sets})
        return
    print_table("Cases", ["--case", "what is measured"], [[*one] for one in said.items()])
    print_table("Sets", ["--matrix", "what is measured"], [[*one] for one in sets.items()])


@command(bench, "compare")
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--fail-below",
    type=click.FloatRange(0),
    metavar="RATIO",
    help="Exit with 1 if the values/s of a row are less than so much of what they were.",
)
@click.option("--json", "as_json", is_flag=True, help="Report on stdout as JSON.")
def compare_command(before: Path, after: Path, fail_below: float | None, as_json: bool) -> None:
    """Ratios between two results of phx bench --json, for rows of equal settings."""
    from phx.bench import compare
    from phx.cli.report import print_json, print_table

    first, second = read(before), read(after)
    found = compare.compare(first, second)
    if as_json:
        print_json(compare.as_json(found))
    elif found.pairs:
        print_table(*compare.table(found, first, second))
    for path, rows in ((before, found.only_before), (after, found.only_after)):
        if rows:
            click.echo(f"in {path} only: {len(rows)}", err=True)
    if not found.pairs or (fail_below is not None and compare.fallen(found, fail_below)):
        fail("\n".join(compare.fallen(found, fail_below or 0)))


def read(path: Path) -> dict[str, Any]:
    """A result as --json wrote it."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise click.UsageError(f"{path}: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise click.UsageError(f"{path}: not a result of phx bench --json")
    return found
