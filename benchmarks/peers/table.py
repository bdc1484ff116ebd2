"""From single runs to the table: medians over rounds, and phx's ratio to each peer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Run:
    """One run of one system in one case."""

    case: str
    system: str
    durability: str
    round: int
    values_per_s: float  # acknowledged within the measured time
    p50_us: float
    p99_us: float
    acknowledged: int  # warm-up included
    failed: int  # refused, or of unknown outcome
    check: str  # what was looked for after the run, and found
    ok: bool  # nothing acknowledged is missing
    command: list[str] = field(default_factory=list)
    load: float = 0.0  # the machine's load average just before
    ran: bool = True  # False: the system did not come to a figure; `check` says why


COLUMNS = ("system", "durability", "values/s", "lowest–highest", "p50 ms", "p99 ms", "phx / it")


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for every case and system, in the order of their first runs.

    `ratio` is phx's median values/s over this system's; None without phx, or without a value. The
    check is that of the first run that failed it, else of the last one. Runs that came to no figure
    are left out of the medians, and of `rounds`.
    """
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.case, run.system), []).append(run)
    cases = list(dict.fromkeys(case for case, _ in grouped))
    rows = []
    for case in cases:
        for (of, system), some in grouped.items():
            if of == case:
                rows.append(_row(case, system, some))
    phx = {row["case"]: row["values_per_s"] for row in rows if row["system"] == "phx"}
    for row in rows:
        rate, of_phx = row["values_per_s"], phx.get(row["case"])
        row["ratio"] = of_phx / rate if of_phx and rate else None
    return rows


def _row(case: str, system: str, runs: Sequence[Run]) -> dict[str, Any]:
    ran = [run for run in runs if run.ran] or runs
    rates = [run.values_per_s for run in ran]
    shown = next((run for run in runs if not run.ok), runs[-1])
    return {
        "case": case,
        "system": system,
        "durability": ran[0].durability,
        "rounds": sum(run.ran for run in runs),
        "values_per_s": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "p50_us": statistics.median(run.p50_us for run in ran),
        "p99_us": statistics.median(run.p99_us for run in ran),
        "acknowledged": sum(run.acknowledged for run in runs),
        "failed": sum(run.failed for run in runs),
        "ok": all(run.ok for run in runs),
        "check": shown.check,
        "command": ran[0].command,
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as one Markdown table for each case, and below it what the checks found."""
    lines: list[str] = []
    for case in dict.fromkeys(row["case"] for row in rows):
        lines += [f"### {case}", "", "| " + " | ".join(COLUMNS) + " |"]
        lines.append("|---|---|" + "---:|" * (len(COLUMNS) - 2))
        some = [row for row in rows if row["case"] == case]
        for row in some:
            cells = [
                row["system"],
                row["durability"],
                _number(row["values_per_s"]),
                f"{_number(row['lowest'])}–{_number(row['highest'])}",
                _number(row["p50_us"] / 1000),
                _number(row["p99_us"] / 1000),
                "–" if row["ratio"] is None else f"{_number(row['ratio'])}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
        for row in some:
            verdict = "ok" if row["ok"] else "NOT OK"
            lines.append(
                f"- {row['system']}: {row['acknowledged']:,} acknowledged, {row['failed']:,} "
                f"failed in {row['rounds']} runs; check {verdict}: {row['check']}"
            )
            lines += [f"  - `{word}`" for word in _commands(row["command"])]
        lines.append("")
    return "\n".join(lines)


def _commands(command: Sequence[str]) -> list[str]:
    """One line for each program; a command of single words is one program."""
    return list(command) if any(" " in word for word in command) else [" ".join(command)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def quantile(sorted_values: Sequence[float], part: float) -> float:
    """The value below which `part` of them lie; 0 of none."""
    if not sorted_values:
        return 0.0
    return sorted_values[min(len(sorted_values) - 1, int(part * len(sorted_values)))]
