"""phx beside PySyncObj and etcd: the same values, one machine, one session, interleaved rounds.

    python benchmarks/peers/run.py --seconds 5 --rounds 3 --json peers.json

What is compared, and how, stands in benchmarks/peers/README.md. A peer that is not installed is
left out, and named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE.parent.parent))  # an installed phx comes first

import system_etcd  # noqa: E402
import system_phx  # noqa: E402
import system_pysyncobj  # noqa: E402
from processes import Failed  # noqa: E402
from table import Run, markdown, summary  # noqa: E402

from phx.bench.run import sync_floor_us  # noqa: E402

Measure = Callable[..., Run]
BEST = "best mode of each"


def case_name(callers: int) -> str:
    if not callers:
        return BEST
    return f"{callers} caller{'s' if callers > 1 else ''}, one awaited value each"


def systems(wanted: list[str]) -> tuple[dict[str, Measure], list[str], list[str]]:
    """What can be measured here, the versions, and what is left out."""
    found: dict[str, Measure] = {}
    versions, absent = [], []
    if "phx" in wanted:
        found["phx"] = system_phx.measure
        versions.append(system_phx.version())
    if "pysyncobj" in wanted:
        if lacks := system_pysyncobj.missing():
            absent.append(f"PySyncObj (not found: {lacks})")
        else:
            versions.append(system_pysyncobj.version())
            for variant in system_pysyncobj.VARIANTS:
                found[variant.name] = _of(variant)
    if "etcd" in wanted:
        if lacks := system_etcd.missing():
            absent.append(f"etcd (not found: {lacks})")
        else:
            versions.append(system_etcd.version())
            found["etcd"] = system_etcd.measure
    return found, versions, absent


def _of(variant: system_pysyncobj.Variant) -> Measure:
    return lambda *words: system_pysyncobj.measure(variant, *words)


def measure_all(arguments: argparse.Namespace, found: dict[str, Measure]) -> list[Run]:
    """Every case of every system, round by round; a run that fails is a row without a figure."""
    runs = []
    for turn in range(arguments.rounds):
        for callers in arguments.callers:
            for name, measure in found.items():
                with tempfile.TemporaryDirectory(prefix="peers-", dir=arguments.dir) as folder:
                    case = case_name(callers)
                    words = (turn, arguments.seconds, arguments.warmup, arguments.value_bytes)
                    load = os.getloadavg()[0]
                    try:
                        run = measure(case, callers, *words, Path(folder))
                    except Failed as failure:
                        none = (0.0, 0.0, 0.0, 0, 0)
                        run = Run(case, name, "–", turn, *none, str(failure), False, ran=False)
                run.load = round(load, 2)
                runs.append(run)
                print(
                    f"round {turn + 1}, {case}, {name}: {run.values_per_s:,.0f} values/s"
                    + ("" if run.ok else f"; {run.check}"),
                    file=sys.stderr,
                    flush=True,
                )
    return runs


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of a run")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds of load before it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument(
        "--callers",
        type=lambda text: [int(one) for one in text.split(",")],
        default=[1, 100, 500, 0],
        help="a case for each number; 0: the best mode of each system (default 1,100,500,0)",
    )
    parser.add_argument(
        "--systems",
        type=lambda text: text.split(","),
        default=["phx", "pysyncobj", "etcd"],
        help="default phx,pysyncobj,etcd",
    )
    parser.add_argument("--dir", type=Path, help="where the data goes; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="write everything there; -: to stdout, no table")
    return parser.parse_args(words)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes are ended
    arguments = arguments_of()
    found, versions, absent = systems(arguments.systems)
    began = time.strftime("%Y-%m-%d %H:%M")
    load = os.getloadavg()[0]
    environment: dict[str, Any] = {
        "versions": versions,
        "left_out": absent,
        "began": began,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "fdatasync_p50_us": round(sync_floor_us(arguments.dir), 1),
        "load_before": round(load, 2),
    }
    runs = measure_all(arguments, found)
    environment["load_after"] = round(os.getloadavg()[0], 2)
    rows = summary(runs)
    whole = {"environment": environment, "rows": rows, "runs": [asdict(run) for run in runs]}
    text = json.dumps(whole, indent=2) + "\n"
    if arguments.json and str(arguments.json) == "-":
        sys.stdout.write(text)
    else:
        if arguments.json:
            arguments.json.write_text(text)
        print("; ".join(versions))
        for one in absent:
            print(f"left out: {one}")
        print(
            f"{environment['cpus']} CPUs, bare fdatasync {environment['fdatasync_p50_us']:g} us, "
            f"load {environment['load_before']:g} before, {environment['load_after']:g} after\n"
        )
        print(markdown(rows))
    if not all(run.ok for run in runs if run.system == "phx"):
        sys.exit(1)


if __name__ == "__main__":
    main()
