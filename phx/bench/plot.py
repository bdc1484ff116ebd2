"""A result as a picture: throughput against groups, latency against load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phx.bench.row import settings_of

__all__ = ["PlotMissing", "curves", "plot"]

Point = tuple[float, ...]
Curves = dict[str, list[Point]]


class PlotMissing(Exception):
    """matplotlib is not installed."""


def curves(result: dict[str, Any], against: str, figures: list[str]) -> Curves:
    """Per set of rows that differ in `against` alone: (its value, figures…), ascending.

    What is offered is one thing, whether by values in flight or by a rate.

    Labels name the settings in which the sets differ.
    """
    rows = result["rows"]
    left_out = {"name", "batch", "seconds", "warmup", against}
    left_out |= {"rate"} if against == "inflight" else set()
    settings = [
        {name: value for name, value in settings_of(row).items() if name not in left_out}
        for row in rows
    ]
    differing = [
        name for name in settings[0] if any(one[name] != settings[0][name] for one in settings)
    ]
    found: Curves = {}
    for row, one in zip(rows, settings, strict=True):
        label = ", ".join(f"{name} {one[name]}" for name in differing) or row["mode"]
        found.setdefault(label, []).append(
            (row[against], row.get("rate", 0), *(row[figure] for figure in figures))
        )
    return {
        label: [(one[0], *one[2:]) for one in sorted(points)] for label, points in found.items()
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Write the picture; the name's end says in which format (svg, png, pdf).

    Raises:
        PlotMissing: no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotMissing("plots need matplotlib: pip install 'phx-paxos[plot]'") from error
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, points in curves(result, "groups", ["values_per_s"]).items():
        left.plot([one[0] for one in points], [one[1] for one in points], "o-", label=label)
    left.set(xscale="log", xlabel="groups", ylabel="values/s", title="throughput against groups")
    left.set_ylim(bottom=0)
    latency = ["values_per_s", "p50_us", "p99_us"]
    for label, points in curves(result, "inflight", latency).items():
        load = [one[1] for one in points]
        (line,) = right.plot(load, [one[2] / 1000 for one in points], "o-", label=label)
        right.plot(load, [one[3] / 1000 for one in points], "^:", color=line.get_color())
    right.set(
        yscale="log", xlabel="values/s", ylabel="ms", title="latency against load: p50 -, p99 ··"
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    sync_us = result["environment"]["fdatasync_p50_us"]
    figure.suptitle(f"phx bench; bare fdatasync {sync_us:g} us", fontsize="small")
    figure.savefig(path)
