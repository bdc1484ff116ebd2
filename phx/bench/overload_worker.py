"""A measured process of ``phx bench overload``: a node, and callers that do not wait.

See phx/testing/processes.py for the protocol. Run as ``python -m phx.bench.overload_worker``.
"""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from functools import partial
from typing import Any

from phx import errors
from phx.bench.machines import MACHINES
from phx.bench.meter import BUCKETS_PER_E, memory_bytes
from phx.machine import StateMachine
from phx.testing.node_worker import NodeWorker, run_worker

TICK_S = 0.001
BURST_MAX = 256  # calls in one turn of the event loop
TIMEOUT_S = 30.0


class Histogram:
    """Counts by size, in an array of its own: it does not grow while it is measured."""

    def __init__(self) -> None:
        self.counts = array("Q", bytes(8 * 30 * BUCKETS_PER_E))

    def add(self, ns: int) -> None:
        self.counts[min(round(math.log(max(ns, 1)) * BUCKETS_PER_E), len(self.counts) - 1)] += 1

    def found(self) -> dict[int, int]:
        return {bucket: count for bucket, count in enumerate(self.counts) if count}


class OverloadNode(NodeWorker):
    """A node, and what its callers saw."""

    def machine_of(self, name: str) -> StateMachine:
        return MACHINES[name]()

    async def do_closed(self, inflight: int, value_bytes: int, seconds: float) -> float:
        """`inflight` callers that wait for their values, spread over the groups led here; values a
        second."""
        led = await self.do_led()
        if not led:
            return 0.0
        done, until = 0, time.monotonic() + seconds

        async def caller(number: int) -> None:
            nonlocal done
            propose = self.node.group(led[number % len(led)]).propose
            while time.monotonic() < until:
                await propose(bytes(value_bytes), timeout=TIMEOUT_S)
                done += 1

        began = time.monotonic()
        await asyncio.gather(*(caller(number) for number in range(inflight)))
        return done / (time.monotonic() - began)

    async def do_offer(self, per_s: float, value_bytes: int, seconds: float) -> dict[str, Any]:
        """Propose so many values a second, whatever becomes of them; what did. Times count from
        when a value was due; `answers`, of those turned away, from the call."""
        led = await self.do_led()
        doors = [self.node.group(group).propose for group in led]
        stays, refusals, answers = Histogram(), Histogram(), Histogram()
        failed: dict[str, int] = {}
        open_values: set[Any] = set()
        memory = [memory_bytes()[1]]
        value, clock = bytes(value_bytes), time.perf_counter_ns

        def done(due: int, future: Any) -> None:
            open_values.discard(future)
            if (error := future.exception()) is None:
                stays.add(clock() - due)
            else:
                failed[type(error).__name__] = failed.get(type(error).__name__, 0) + 1

        offered = refused = 0
        every_ns = 1e9 / max(per_s, 1e-9)
        began = clock()
        until = began + int(seconds * 1e9)
        while doors and (now := clock()) < until:
            wanted = int((now - began) / every_ns)
            for _ in range(min(wanted - offered, BURST_MAX)):
                due = began + int(offered * every_ns)
                offered += 1
                asked = clock()
                try:
                    future = doors[offered % len(doors)](value, timeout=TIMEOUT_S)
                except errors.Overloaded:
                    told = clock()
                    refusals.add(told - due)
                    answers.add(told - asked)
                    refused += 1
                    continue
                open_values.add(future)
                future.add_done_callback(partial(done, due))
            await asyncio.sleep(0 if wanted > offered else TICK_S)
        memory.append(memory_bytes()[1])
        took_s = (clock() - began) / 1e9
        if open_values:
            await asyncio.wait(list(open_values))
        return {
            "offered": offered,
            "refused": refused,
            "failed": failed,
            "took_s": took_s,
            "stays": stays.found(),
            "refusals": refusals.found(),
            "answers": answers.found(),
            "memory": memory,
        }

    async def do_applied(self) -> int:
        """Values that the machines here have applied."""
        return sum(machine.count for machine in self.machines.values())


if __name__ == "__main__":
    run_worker(OverloadNode)
