"""``phx bench overload``: options, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from phx.cli.bench import bench, choice, option
from phx.cli.options import GROUPS_MAX, command, fail

__all__ = ["bench", "overload_command"]  # it has this command, too


@command(bench, "overload")
@option("--times", type=click.FloatRange(1, 100), default=5, help="The offer, in capacities.")
@option("--seconds", type=click.FloatRange(1, 3600), default=60, help="Of overload.")
@option("--normal", type=click.FloatRange(0.01, 1), default=0.5, help="The normal offer, likewise.")
@option("--groups", type=click.IntRange(1, GROUPS_MAX), default=20)
@option("--nodes", type=click.IntRange(1, 15), default=3)
@option("--value-bytes", type=click.IntRange(1, 1 << 20), default=100)
@choice(
    "--machine",
    ["tally", "dict", "slow", "waits"],
    "waits",
    "What the groups run; slow: computes for 20 us a value, waits: sleeps for 200 us.",
)
@option(
    "--inflight",
    type=click.IntRange(1, 100_000),
    default=1000,
    help="Of the callers that wait, by which capacity is found.",
)
@option(
    "--wait-us-max",
    type=click.IntRange(0, 600_000_000),
    default=0,
    help="limits.wait_us_max of the nodes; 0: three quarters of the p99 of the normal offer.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Where the nodes write. Default: a temporary folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Report on stdout as JSON.")
def overload_command(as_json: bool, **settings: Any) -> None:
    """Offer several times what a cluster can do: what is let in, how long it takes, who is told no.

    Callers do not wait for their values. First capacity is found, and what a normal offer takes
    without a bound; then the nodes start anew with one. Exits with 1 if a value was lost, or
    applied though it was refused.
    """
    from phx.bench.overload import Overload, measure
    from phx.bench.run import WorkerFailed
    from phx.cli.report import Progress, print_json, print_table

    try:
        with Progress() as progress:
            result = measure(Overload(**settings), progress)
    except (WorkerFailed, OSError) as error:
        fail(str(error))
    if as_json:
        print_json(result)
    else:
        print_table(*table(result))
    if result["finding"]:
        fail(result["finding"])


def table(result: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    verdict = result["verdict"]
    title = (
        f"capacity {result['capacity_per_s']:,.0f} values/s; under overload p99 is "
        f"{verdict['p99_to_normal']:g} times normal, {verdict['share_of_capacity']:.0%} of it used"
    )
    heads = ["offered", "s", "wait_us_max", "offered/s", "let in/s", "refused", "p50 us", "p99 us"]
    heads += ["refused p99 us", "of call", "MB begin", "MB end"]
    rows = [
        [
            f"{one['times']:g}x",
            f"{one['seconds']:g}",
            f"{one['wait_us_max']:,}",
            f"{one['offered_per_s']:,.0f}",
            f"{one['admitted_per_s']:,.0f}",
            f"{one['share_refused']:.2%}",
            f"{one['p50_us']:,.0f}",
            f"{one['p99_us']:,.0f}",
            f"{one['refused_p99_us']:,.0f}",
            f"{one['refused_call_p99_us']:,.0f}",
            f"{one['memory_begin_bytes'] / 1e6:,.0f}",
            f"{one['memory_end_bytes'] / 1e6:,.0f}",
        ]
        for one in result["phases"]
    ]
    return title, heads, rows
