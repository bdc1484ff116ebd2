"""What a process gains by several nodes in it (shards), each with its own threads and journal.

Groups are spread over the shards of a process, and all shards share its event loop. Each setting is
measured `--rounds` times in turns. `--processes 1` is a cluster of one member, which has all
processors to itself and so shows what shards do where there are more of them; 3 is a cluster whose
members compete for the processors of this machine.

Shown of each: values a second, and the CPU of a value by thread. The native threads (poll, journal,
store) exist once in each shard; all others share the GIL of the process, however many shards there
are. For one process, the last lines say what each kind of thread could do if it were alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from children import Child, add_options, command

import phx
from phx.bench.machines import MACHINES
from phx.bench.values import Values

WARM_S = 2.0
NATIVE = ("phx-poll", "phx-journal", "phx-store")  # threads that need the GIL seldom or never


def config_of(options: argparse.Namespace, shard: int) -> phx.Config:
    ports = json.loads(options.ports)
    members = {
        node: f"127.0.0.1:{ports[(node - 1) * options.most + shard]}"
        for node in range(1, options.processes + 1)
    }
    return phx.Config(
        cluster=f"shards-{shard}",
        node=options.node,
        members=members,
        dir=Path(options.folder) / f"node{options.node}-{shard}",
        groups=options.groups // options.shards,
        checkpoints=phx.config.Checkpoints(interval_us=0, interval_bytes=0),
    )


def thread_cpu_s() -> Counter[str]:
    """CPU time of each thread of this process, by its name."""
    found: Counter[str] = Counter()
    main = str(os.getpid())
    for task in Path("/proc/self/task").iterdir():
        name = "loop" if task.name == main else (task / "comm").read_text().strip()
        ran_ns = int((task / "schedstat").read_text().split()[0])
        found[f"{name}/{task.name}"] = ran_ns / 1e9
    return found


class Clients:
    """In each group that is led here one caller of `propose_many` after another."""

    def __init__(self, nodes: list[phx.Node], options: argparse.Namespace):
        self.values = Values(options.size, int.from_bytes(os.urandom(7), "big"))
        self.options, self.count, self.stopping = options, 0, False
        doors = [group for node in nodes for group in node.groups if group.is_leader]
        self.tasks = [asyncio.ensure_future(self.call(door)) for door in doors]
        self.led = len(doors)

    async def call(self, door: Any) -> None:
        batch = self.options.inflight // self.options.groups
        while not self.stopping:
            _, values = self.values.take(batch)
            await door.propose_many(values, timeout=60)
            self.count += batch

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self.tasks)


async def child(options: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                phx.Node(config_of(options, shard), lambda g: MACHINES["tally"](), bootstrap=True)
            )
            for shard in range(options.shards)
        ]
        for node in nodes:
            await node.wait_ready()
        print(json.dumps("ready"), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        clients = Clients(nodes, options)
        await asyncio.sleep(WARM_S)
        count, cpu, began_s = clients.count, thread_cpu_s(), time.monotonic()
        await asyncio.sleep(options.seconds)
        took_s = time.monotonic() - began_s
        count, cpu = clients.count - count, thread_cpu_s() - cpu
        await clients.stop()
        said = {"values": count, "took_s": took_s, "cpu_s": dict(cpu), "led": clients.led}
        print(json.dumps(said), flush=True)


def measure(options: argparse.Namespace, shards: int) -> dict[str, Any]:
    """One run: values a second of the cluster, and microseconds of CPU a value by thread."""
    with command("shards", options.processes * options.most, options.dir) as (stack, common):
        common += ["--processes", str(options.processes), "--shards", str(shards)]
        children = [Child(stack, common, node) for node in range(1, options.processes + 1)]
        for one in children:
            one.hear()
        time.sleep(WARM_S)  # leaderships settle
        for one in children:
            one.tell("go")
        said = [one.hear() for one in children]
    values = sum(one["values"] for one in said)
    if sum(one["led"] for one in said) != options.groups // shards * shards:
        print(f"some groups were led nowhere or twice: {[one['led'] for one in said]}")
    busiest: dict[str, float] = defaultdict(float)
    total: Counter[str] = Counter()
    for one in said:
        for thread, cpu_s in one["cpu_s"].items():
            name = thread.partition("/")[0]
            total[name] += cpu_s
            busiest[name] = max(busiest[name], cpu_s / one["took_s"])
    return {
        "per_s": sum(one["values"] / one["took_s"] for one in said),
        "cpu_us": {name: cpu_s / values * 1e6 for name, cpu_s in total.most_common()},
        "busy": dict(busiest),
    }


def report(options: argparse.Namespace, shards: int, runs: list[dict[str, Any]]) -> None:
    rates = [run["per_s"] for run in runs]
    names = sorted({name for run in runs for name in run["cpu_us"]})
    middle = {n: statistics.median(run["cpu_us"].get(n, 0.0) for run in runs) for n in names}
    native = {name: us for name, us in middle.items() if name in NATIVE}
    python = sum(middle.values()) - sum(native.values())
    single = ", ".join(f"{rate:,.0f}" for rate in rates)
    print(
        f"{options.processes} process(es), {shards} shard(s): {statistics.median(rates):,.0f} "
        f"values/s ({single}); {sum(middle.values()):.2f} us CPU a value, python {python:.2f}"
    )
    for name, us in sorted(middle.items(), key=lambda one: -one[1]):
        if us >= 0.01:
            print(f"    {name:16} {us:6.3f} us a value")
    if native and options.processes == 1:
        slowest = max(native, key=lambda name: native[name])
        print(
            f"    alone, {slowest} could do {1e6 / native[slowest] * shards:,.0f} values/s in "
            f"{shards} shard(s), all that holds the GIL {1e6 / python:,.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=1, help="members of the cluster")
    parser.add_argument("--compare", default="1,2", help="numbers of shards")
    parser.add_argument("--groups", type=int, default=100, help="of all shards together")
    parser.add_argument("--inflight", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=1, help=argparse.SUPPRESS)
    add_options(parser)
    options = parser.parse_args()
    compared = [int(one) for one in options.compare.split(",")]
    options.most = max(compared)
    if options.node:
        uvloop.run(child(options))
        return
    found: dict[int, list[dict[str, Any]]] = {shards: [] for shards in compared}
    for _ in range(options.rounds):
        for shards in compared:
            found[shards].append(measure(options, shards))
    for shards, runs in found.items():
        report(options, shards, runs)
    base = statistics.median(run["per_s"] for run in found[compared[0]])
    for shards in compared[1:]:
        share = statistics.median(run["per_s"] for run in found[shards]) / base
        print(f"{shards} shards / {compared[0]}: {share:.2f}")


if __name__ == "__main__":
    main()
