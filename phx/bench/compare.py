"""Two results side by side: the ratio of every figure, row by row."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from phx.bench.row import settings_of
from phx.bench.table import Table, settings_shown

__all__ = ["Comparison", "Pair", "as_json", "compare", "fallen", "table"]

FIGURES = {
    "values_per_s": "values/s",
    "p50_us": "p50",
    "p99_us": "p99",
    "p999_us": "p99.9",
    "values_per_sync": "values/sync",
    "cpu_ns_per_value": "CPU/value",
    "journal_bytes_per_value": "journal B",
    "store_bytes_per_value": "store B",
    "wire_bytes_per_value": "wire B",
    "memory_bytes_per_group": "memory/group",
}
# Not what makes two rows different: how long they were measured.
LENGTHS = {"seconds", "warmup"}


@dataclass
class Pair:
    """Rows of equal settings, and the second's figures as multiples of the first's."""

    before: dict[str, Any]
    after: dict[str, Any]
    ratios: dict[str, float]


@dataclass
class Comparison:
    pairs: list[Pair]
    only_before: list[dict[str, Any]]
    only_after: list[dict[str, Any]]


def compare(before: dict[str, Any], after: dict[str, Any]) -> Comparison:
    """Match rows by their settings; several of equal settings are matched in their order."""
    left: dict[Hashable, list[dict[str, Any]]] = {}
    for row in before["rows"]:
        left.setdefault(key_of(row), []).append(row)
    pairs, only_after = [], []
    for row in after["rows"]:
        same = left.get(key_of(row))
        if same:
            first = same.pop(0)
            pairs.append(Pair(first, row, ratios(first, row)))
        else:
            only_after.append(row)
    return Comparison(pairs, [row for rows in left.values() for row in rows], only_after)


def key_of(row: dict[str, Any]) -> Hashable:
    settings = settings_of(row)
    return tuple((name, value) for name, value in settings.items() if name not in LENGTHS)


def ratios(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """The figures that both have and the first does not have as 0."""
    return {
        name: round(after[name] / before[name], 4)
        for name in FIGURES
        if before.get(name) and after.get(name) is not None
    }


def fallen(found: Comparison, below: float) -> list[str]:
    """What is wrong if no throughput may be less than `below` of what it was."""
    if not found.pairs:
        return ["no row of one result has the settings of a row of the other"]
    return [
        f"{pair.after['groups']} groups, {pair.after['mode']}: "
        f"{pair.ratios.get('values_per_s', 0):.3f} of the values/s before"
        for pair in found.pairs
        if pair.ratios.get("values_per_s", 0) < below
    ]


def table(found: Comparison, before: dict[str, Any], after: dict[str, Any]) -> Table:
    """Ratios of all pairs; the title says what the disk did in both."""
    title, heads, cells = settings_shown([pair.after for pair in found.pairs])
    syncs = [one["environment"]["fdatasync_p50_us"] for one in (before, after)]
    title += f"; second / first; bare fdatasync {syncs[0]:g} and {syncs[1]:g} us"
    columns = [*heads, "values/s before", "after", *FIGURES.values()]
    rows = [
        [
            *line,
            f"{pair.before['values_per_s']:,.0f}",
            f"{pair.after['values_per_s']:,.0f}",
            *(f"{pair.ratios[name]:.2f}" if name in pair.ratios else "-" for name in FIGURES),
        ]
        for line, pair in zip(cells, found.pairs, strict=True)
    ]
    return Table(title, columns, rows)


def as_json(found: Comparison) -> dict[str, Any]:
    """Settings and ratios of every pair, and how many rows had no counterpart."""
    return {
        "pairs": [
            {"settings": settings_of(pair.after), "ratios": pair.ratios} for pair in found.pairs
        ],
        "only_before": len(found.only_before),
        "only_after": len(found.only_after),
    }
