"""What groups that nobody uses cost those that are used: load on a part of the groups of a cluster.

Three processes on loopback. The same load on the same number of groups, once alone and once among
many idle ones, in turn; CPU per value is the figure that noise on the machine leaves alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from phx.testing.processes import Cluster, now_us

TIMEOUT_S = 120.0
WARMUP_S = 1.0


async def measure(
    groups: int, loaded: int, inflight: int, batch: int, seconds: float
) -> dict[str, Any]:
    """One cluster of `groups` groups with load on `loaded` of them."""
    async with Cluster(3, groups, "tally", "phx.bench.worker") as cluster:
        await cluster.start()
        led = await cluster.led(TIMEOUT_S)
        stride = groups // loaded
        callers = max(1, inflight // batch // loaded)
        begin_us = now_us() + int(WARMUP_S * 1e6)
        measure_us = (begin_us, begin_us + int(seconds * 1e6))
        for node, own in led.items():
            wanted = {str(group): callers for group in own if group % stride == 0}
            await cluster[node].call(
                "load",
                callers=wanted,
                value_bytes=100,
                batch=batch,
                timeout_s=30.0,
                measure_us=measure_us,
            )
        await asyncio.sleep((measure_us[1] - now_us()) / 1e6 + 0.2)
        results = await cluster.call("stop_load", TIMEOUT_S)
        await cluster.close()
    grown: dict[str, int] = {}
    for result in results.values():
        for name, count in result["counters"].items():
            grown[name] = grown.get(name, 0) + count
    measured = sum(sum(result["measured"].values()) for result in results.values())
    cpu = sum(result["cpu_ns"] for result in results.values())
    each = max(measured, 1)
    return {
        "groups": groups,
        "loaded": loaded,
        "values_per_s": round(measured / seconds),
        "cpu_ns_per_value": round(cpu / each),
        "poll_ns_per_value": round(grown.get("cpu_ns.poll", 0) / each),
        "journal_ns_per_value": round(grown.get("cpu_ns.journal", 0) / each),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loaded", type=int, default=100, help="groups with load")
    parser.add_argument("--groups", type=int, default=10_000, help="groups of the larger cluster")
    parser.add_argument("--inflight", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=50, help="values per propose_many")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ratio-max", type=float, default=1.1, help="of CPU per value")
    parser.add_argument("--json", type=Path, help="write everything there")
    arguments = parser.parse_args()
    rows: dict[int, list[dict[str, Any]]] = {arguments.loaded: [], arguments.groups: []}
    for _ in range(arguments.rounds):
        for groups, found in rows.items():
            row = asyncio.run(
                measure(
                    groups,
                    arguments.loaded,
                    arguments.inflight,
                    arguments.batch,
                    arguments.seconds,
                )
            )
            found.append(row)
            print(
                f"{row['loaded']} of {row['groups']:6} groups: {row['values_per_s']:9,} values/s, "
                f"CPU {row['cpu_ns_per_value']:,} ns/value (poll {row['poll_ns_per_value']:,}, "
                f"journal {row['journal_ns_per_value']:,})",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    alone, among = (
        statistics.median(row["cpu_ns_per_value"] for row in found) for found in rows.values()
    )
    ratio = among / alone
    print(f"CPU per value, medians: {among:,.0f} / {alone:,.0f} = {ratio:.3f}", file=sys.stderr)
    return 0 if ratio <= arguments.ratio_max else 1


if __name__ == "__main__":
    sys.exit(main())
