"""How long callers wait when the leader of their group is gone, or is moved away.

Three nodes in processes of their own, many groups, callers at all of them. Then, in each run:

    kill    SIGKILL of a node that leads a third of the groups
    stop    SIGSTOP
    drop    everything from and to it is silently dropped
    drain   all its leaderships are moved off it in one call, under load

kill, stop, drop: of each group that it led, the time from the fault until a value that was proposed
after it, at a node that is left, is acknowledged. drain: how long the values waited that were
proposed while leaderships moved, the longest of each group; and before, for comparison.

`--aggressive`: with the quick times of docs/howto/move-leaders.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from phx.testing.processes import Cluster, now_us

Waits = dict[int, list[tuple[int, int]]]

QUICK = {
    "heartbeat_us": 20_000,
    "lease_us": 150_000,
    "election_us": 20_000,
    "resend_us": 100_000,
}
FAULTS = ("kill", "stop", "drop")
PROBE_S = 30.0
BEFORE_S = 2.0
AROUND_S = 0.5


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def summary(values: list[float]) -> dict[str, float]:
    return {
        "p50": round(percentile(values, 0.5), 1),
        "p99": round(percentile(values, 0.99), 1),
        "max": round(max(values, default=0.0), 1),
    }


def fault(cluster: Cluster, kind: str, victim: int) -> int:
    """When it began."""
    at_us = now_us()
    if kind == "kill":
        cluster[victim].kill()  # (Its end is not waited for: it takes a while on a busy machine.)
    elif kind == "stop":
        cluster[victim].pause()
    else:
        assert cluster.mesh is not None
        cluster.mesh.isolate(victim)
    return at_us


async def fail_over(cluster: Cluster, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    led = await cluster.led()
    victim = max(led, key=lambda node: len(led[node]))
    for node in cluster.ids:
        await cluster[node].call(
            "call", groups=cluster.groups, pause_s=options.pause_s, timeout_s=PROBE_S
        )
    await asyncio.sleep(BEFORE_S)
    rest = [node for node in cluster.ids if node != victim]
    before = [await cluster[node].call("counters") for node in rest]
    at_us = fault(cluster, kind, victim)
    probes = await asyncio.gather(
        *(
            cluster[node].call("probe", PROBE_S + 5, groups=led[victim], timeout_s=PROBE_S)
            for node in rest
        )
    )
    after = [await cluster[node].call("counters") for node in rest]
    failed = sum([len((await cluster[node].call("stop", PROBE_S + 5))["failed"]) for node in rest])
    back = [
        min((found[str(group)][1] for found in probes if str(group) in found), default=0)
        for group in led[victim]
    ]
    return {
        "led": len(back),
        "lost": back.count(0),
        "failed": failed,
        "again_ms": summary([(at - at_us) / 1000 for at in back if at]),
        "counters": {
            name: sum(new[name] - old[name] for new, old in zip(after, before, strict=True))
            for name in ("elections", "prevotes", "step_downs", "resends", "syncs")
        },
    }


def longest(found: list[Waits], since_us: int, until_us: int) -> list[float]:
    """Of each group: the longest wait of a value that waited at some time in between."""
    by_group: dict[int, float] = {}
    for waits in found:
        for group, those in waits.items():
            for began, ended in those:
                if began <= until_us and ended >= since_us:
                    by_group[group] = max(by_group.get(group, 0.0), (ended - began) / 1000)
    return list(by_group.values())


async def drain(cluster: Cluster, options: argparse.Namespace) -> dict[str, Any]:
    led = await cluster.led()
    victim = max(led, key=lambda node: len(led[node]))
    for node in cluster.ids:
        await cluster[node].call(
            "call", groups=led[victim], pause_s=options.drain_pause_s, timeout_s=PROBE_S
        )
    await asyncio.sleep(BEFORE_S)
    moved = await cluster[victim].call("drain", PROBE_S)
    await asyncio.sleep(AROUND_S)
    answers = await cluster.call("stop", PROBE_S + 5)
    found = [answer["waits"] for answer in answers.values()]
    since, until = moved["since_us"], moved["until_us"]
    return {
        "led": len(led[victim]),
        "moved": moved["moved"],
        "not_moved": moved["failed"],
        "took_ms": round((until - since) / 1000, 1),
        "failed": sum(len(answer["failed"]) for answer in answers.values()),
        "values": sum(len(those) for waits in found for those in waits.values()),
        "before_ms": summary(longest(found, since - 1_000_000, since)),
        "waits_ms": summary(longest(found, since, until + 100_000)),
    }


async def one_run(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    timing = QUICK if options.aggressive else {}
    async with Cluster(
        3,
        options.groups,
        "counter",
        "benchmarks.failover_worker",
        folder=options.dir,
        proxies=kind == "drop",
        options={"timing": timing, "checkpoints": {"interval_us": 0}},
    ) as cluster:
        await cluster.start()
        if kind == "drain":
            return await drain(cluster, options)
        return await fail_over(cluster, kind, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*FAULTS, "drain"])
    parser.add_argument("--groups", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--aggressive", action="store_true")
    parser.add_argument("--pause-s", type=float, default=2.0, help="of each caller, with a fault")
    parser.add_argument("--drain-pause-s", type=float, default=0.2, help="and while draining")
    parser.add_argument("--dir", type=Path, default=None)
    options = parser.parse_args()
    for kind in options.kinds:
        found = []
        for _ in range(options.runs):
            began, busy = time.monotonic(), os.getloadavg()[0]
            row = {"kind": kind, **asyncio.run(one_run(kind, options))}
            row["load"], row["seconds"] = round(busy, 1), round(time.monotonic() - began, 1)
            print(json.dumps(row), flush=True)
            found.append(row)
        name = "waits_ms" if kind == "drain" else "again_ms"
        middle = {
            one: statistics.median(row[name][one] for row in found) for one in ("p50", "p99", "max")
        }
        print(f"{kind}, median of {len(found)}: {middle}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
