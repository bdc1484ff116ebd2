"""What callers notice while the members of their group are replaced, one after the other.

Three nodes in processes of their own, and one caller to each group, with a short pause after each
answer, at a node that stays. Each replacement: a new process is started and has its imports behind
it; then `replace_member`, of all groups in one call, puts it in the place of the member that has
been there for longest, which leads a third of them. When the call has returned the old process is
killed, and its folder deleted.

Shown, of each group and replacement: the longest time between two acknowledgements, beginning with
the last before the call and ending with the first after it; and the longest in the second before,
for comparison. `over` is how many were longer than an election timeout: the lease, and twice the
back-off between two attempts.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import time
from typing import Any

from failover import summary

from phx.config import Timing
from phx.testing.processes import Cluster, Worker, now_us

BEFORE_S = 1.0
AROUND_S = 0.3
CALL_S = 60.0
IMPORTED_S = 2.0


def longest(answered_us: list[int], since_us: int, until_us: int) -> float:
    """Milliseconds between two answers, of those one of which at least is in the span."""
    gaps = itertools.pairwise(answered_us)
    return max((b - a for a, b in gaps if b >= since_us and a <= until_us), default=0) / 1000


async def join(cluster: Cluster) -> tuple[int, asyncio.Task[None]]:
    """A new node that waits to become a member."""
    new = await cluster.admit()
    joining = asyncio.create_task(cluster.start(new))
    await asyncio.sleep(IMPORTED_S)
    return new, joining


async def replace(cluster: Cluster, options: argparse.Namespace) -> dict[str, Any]:
    new, joining = await join(cluster)
    old, *rest = (node for node in cluster.ids if node != new)
    led = await cluster[old].call("led")
    caller: Worker = cluster[rest[0]]
    await caller.call("call", groups=cluster.groups, pause_s=options.pause_s, timeout_s=CALL_S)
    await asyncio.sleep(BEFORE_S + AROUND_S)
    began_us = now_us()
    made = await caller.call(
        "replace", CALL_S, old=old, new=new, address=cluster.address(new), timeout_s=CALL_S
    )
    ended_us = now_us()
    await asyncio.wait_for(joining, CALL_S)
    if made["failed"]:
        raise SystemExit(f"not replaced: {made['failed']}")
    cluster[old].kill()
    await cluster.workers.pop(old).wait()
    await cluster.forget(old)
    await asyncio.sleep(AROUND_S)
    said = await caller.call("stop", CALL_S)
    answered = {
        int(group): sorted(until for _, until in waits) for group, waits in said["waits"].items()
    }
    return {
        "led": len(led),
        "change_ms": (ended_us - began_us) / 1000,
        "failed": said["failed"],
        "before": [
            longest(times, began_us - int(BEFORE_S * 1e6), began_us) for times in answered.values()
        ],
        "pauses": [longest(times, began_us, ended_us) for times in answered.values()],
        "of_led": [longest(answered[group], began_us, ended_us) for group in led],
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    timing = Timing()
    timeout_ms = (timing.lease_us + 2 * timing.election_us) / 1000
    rows = []
    async with Cluster(
        3,
        options.groups,
        "counter",
        "benchmarks.failover_worker",
        options={"checkpoints": {"interval_us": 0}},
    ) as cluster:
        await cluster.start()
        for number in range(options.replacements):
            await cluster.led()  # and none has moved for a while
            rows.append(await replace(cluster, options))
            if not options.json:
                row = rows[-1]
                print(
                    f"{number + 1:4}: change {row['change_ms']:7.1f} ms, longest pause "
                    f"{max(row['pauses']):7.1f} ms (before: {max(row['before']):.1f})",
                    flush=True,
                )
    pauses = [pause for row in rows for pause in row["pauses"]]
    return {
        "groups": options.groups,
        "replacements": len(rows),
        "failed": sum(len(row["failed"]) for row in rows),
        "change_ms": summary([row["change_ms"] for row in rows]),
        "before_ms": summary([pause for row in rows for pause in row["before"]]),
        "pause_ms": summary(pauses),
        "of_led_ms": summary([pause for row in rows for pause in row["of_led"]]),
        "timeout_ms": timeout_ms,
        "over": sum(pause > timeout_ms for pause in pauses),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=30)
    parser.add_argument("--replacements", type=int, default=20)
    parser.add_argument("--pause-s", type=float, default=0.02, help="of each caller")
    parser.add_argument("--json", action="store_true", help="the result alone")
    options = parser.parse_args()
    began = time.monotonic()
    found = asyncio.run(run(options))
    found["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
