"""phx, by its own `phx bench`, which reads every acknowledged value back from every node."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from processes import output
from table import Run

import phx

DURABILITY = "synced on a majority before the acknowledgement"
BEST_GROUPS, BEST_INFLIGHT = 100, 10_000
SLACK_S = 240.0  # starting, converging, reading back


def version() -> str:
    return f"phx {phx.__version__}, Python {sys.version.split()[0]}"


def measure(
    case: str, callers: int, turn: int, seconds: float, warmup: float, size: int, folder: Path
) -> Run:
    """`callers` awaited proposals in one group; 0: the best mode."""
    shape = ["--groups", "1", "--mode", "propose", "--inflight", str(callers)]
    if not callers:
        shape = ["--groups", str(BEST_GROUPS), "--mode", "propose_many"]
        shape += ["--inflight", str(BEST_INFLIGHT)]
    command = [sys.executable, "-m", "phx.cli", "bench", *shape, "--value-bytes", str(size)]
    command += ["--seconds", f"{seconds:g}", "--warmup", f"{warmup:g}", "--json", "-"]
    command += ["--dir", str(folder)]
    log = folder / "phx.log"
    # 1: the row does not add up, and the JSON says why
    printed = output(command, seconds + warmup + SLACK_S, log, (0, 1))
    result = json.loads(printed)
    row = result["rows"][0]
    return Run(
        case=case,
        system="phx",
        durability=DURABILITY,
        round=turn,
        values_per_s=row["values_per_s"],
        p50_us=row["p50_us"],
        p99_us=row["p99_us"],
        acknowledged=row["acknowledged"],
        failed=row["rejected"] + row["unknown"],
        check=row["finding"] or "every acknowledged value read back, once, on every node",
        ok=row["verified"],
        command=command,
    )
