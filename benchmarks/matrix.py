"""The usual rows of ``phx bench`` in one session, each with its ratio to the floor."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from floor import measure

from phx.bench import run
from phx.bench.case import Case
from phx.bench.table import tables
from phx.cli.report import Progress, print_table

# groups, mode, values in flight
ROWS = [
    (1, "propose", 1),
    (1, "propose", 1000),
    (1, "propose_many", 10_000),
    (100, "propose", 100),
    (100, "propose", 1000),
    (100, "propose", 10_000),
    (100, "propose_many", 10_000),
]


def cases(arguments: argparse.Namespace) -> list[Case]:
    return [
        Case(
            groups=groups,
            value_bytes=arguments.value_bytes,
            mode=mode,
            inflight=inflight,
            seconds=arguments.seconds,
            warmup=1.0,
        )
        for groups, mode, inflight in ROWS
    ]


def against(row: dict[str, Any], floor: dict[str, float]) -> None:
    """The row's ratios to the floor."""
    if row["inflight"] == 1:
        row["p50_to_floor"] = row["p50_us"] / floor["replicated_p50_us_1"]
    row["values_per_s_to_floor"] = row["values_per_s"] / floor["replicated_values_per_s_1000"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of a row")
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write everything there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        floor = measure(Path(folder), 1.0, arguments.value_bytes)
    with Progress() as progress:
        result = run.run(run.Options(cases(arguments)), progress)
    for row in result["rows"]:
        against(row, floor)
    if arguments.json:
        found = {"floor": floor, "rows": result["rows"]}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    for table in tables(result):
        print_table(*table)
    if not all(row["verified"] for row in result["rows"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
