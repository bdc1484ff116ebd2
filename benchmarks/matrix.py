"""The usual rows of ``phx bench`` in one session, each with its ratio to the floor."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from floor import measure

from phx.cli import bench

# groups, mode, values in flight, values per propose_many (0: half of a group's share)
ROWS = [
    (1, "propose", 1, 0),
    (1, "propose", 1000, 0),
    (1, "propose_many", 10_000, 0),
    (100, "propose", 100, 0),
    (100, "propose", 1000, 0),
    (100, "propose", 10_000, 0),
    (100, "propose_many", 10_000, 0),
]


def options(row: tuple[int, str, int, int], arguments: argparse.Namespace) -> bench.Options:
    groups, mode, inflight, batch = row
    return bench.Options(
        groups=[groups],
        value_bytes=arguments.value_bytes,
        mode=mode,
        inflight=inflight,
        seconds=arguments.seconds,
        nodes=3,
        warmup=1.0,
        batch=batch,
        at="leader",
        folder=None,
        loop="auto",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of a row")
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--json", type=Path, help="write everything there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        floor = measure(Path(folder), 1.0, arguments.value_bytes)
    rows: list[dict[str, Any]] = []
    for row in ROWS:
        result = bench.run(options(row, arguments))
        measured = result["rows"][0]
        if measured["inflight"] == 1:
            measured["p50_to_floor"] = measured["p50_us"] / floor["replicated_p50_us_1"]
        limit = floor["replicated_values_per_s_1000"]
        measured["values_per_s_to_floor"] = measured["values_per_s"] / limit
        rows.append(measured)
        bench.print_result(result)
    if arguments.json:
        arguments.json.write_text(json.dumps({"floor": floor, "rows": rows}, indent=2) + "\n")
    if not all(row["verified"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
