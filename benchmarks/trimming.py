"""What a node's disk comes to under constant load when its log is trimmed, and what callers notice.

Three nodes in processes of their own; calls of `propose_many` at a constant rate; checkpoints every
few seconds. With `--phase` the log is pinned and let go in turns, on all nodes at once: while it is
let go, all that a pinned phase has left is purged beside the same load. The two kinds of phases
alternate in one run, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from children import Child, add_options, command, percentile

import phx
from phx.bench.meter import memory_bytes
from phx.machines import KeyValue
from phx.machines.kv import encode_set

NODES = 3
SETTLED_S = 3.0  # of the beginning of a phase: what comes then still feels the one before
KIB, MIB = 1 << 10, 1 << 20


def config_of(folder: Path, node: int, ports: list[int], options: argparse.Namespace) -> phx.Config:
    return phx.Config(
        cluster="trimming",
        node=node,
        members={n: f"127.0.0.1:{port}" for n, port in enumerate(ports, 1)},
        dir=folder / f"node{node}",
        groups=options.groups,
        journal=phx.config.Journal()
        if options.large
        else phx.config.Journal(
            segment_bytes=4 * MIB, journal_bytes_max=256 * MIB, settle_bytes=16 * MIB
        ),
        checkpoints=phx.config.Checkpoints(
            interval_instances=0,
            interval_bytes=0,
            interval_us=int(options.interval * 1e6),
            trim=not options.no_trim,
            hold_instances=1000,
            hold_bytes=16 * MIB if options.large else 256 * KIB,
        ),
    )


def used_bytes(folder: Path) -> int:
    """Blocks on the disk of all that is in the folder."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a checkpoint that was just dropped
                total += os.stat(os.path.join(root, name)).st_blocks * 512
    return total


@dataclass
class Sample:
    """One look at a node."""

    at_s: float
    memory_bytes: int
    bytes: dict[str, int]
    store: dict[str, Any]
    checkpoints: dict[str, int]


async def calls(
    node: phx.Node, group: int, options: argparse.Namespace, start_s: float
) -> array[float]:
    """Calls at a constant rate, each not before the one before is done: of each when it
    began, from the start, and how long it took."""
    every_s = options.groups * options.batch / options.rate if options.rate else 0.0
    commands = [encode_set(b"%d" % key, os.urandom(options.size)) for key in range(options.keys)]
    found = array("f")  # 8 bytes a call: what is measured is the node's memory
    due_s = start_s + every_s * (group / options.groups)
    number = 0
    while due_s < start_s + options.seconds:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        values = [commands[(number + one) % options.keys] for one in range(options.batch)]
        number += options.batch
        began_s = time.monotonic()
        await node.group(group).propose_many(values, timeout=60)
        ended_s = time.monotonic()
        found.extend((began_s - start_s, ended_s - began_s))
        due_s = max(due_s + every_s, ended_s - 0.5)
    return found


async def phases(node: phx.Node, options: argparse.Namespace, began_s: float) -> None:
    """Pin everything in every other phase."""
    floors = node._room.floors
    with ExitStack() as pins:
        for phase in range(1 << 30):
            pins.close()
            if phase % 2 == 0:
                for group in range(options.groups):
                    pins.enter_context(floors.pin(group, node.group(group).status().floor))
            await asyncio.sleep(began_s + (phase + 1) * options.phase - time.monotonic())


async def look(node: phx.Node, folder: Path) -> Sample:
    loop = asyncio.get_running_loop()
    names = ("journal", "store", "checkpoints")
    used = {name: await loop.run_in_executor(None, used_bytes, folder / name) for name in names}
    status = node.status()
    return Sample(
        time.monotonic(), memory_bytes()[1], used, dict(status.store), dict(status.checkpoints)
    )


async def child(options: argparse.Namespace) -> None:
    folder, ports = Path(options.folder), json.loads(options.ports)
    config = config_of(folder, options.node, ports, options)
    async with phx.Node(config, lambda group: KeyValue(), bootstrap=True) as node:
        await node.wait_ready()
        print(json.dumps("ready"), flush=True)
        began_s = float(sys.stdin.readline())
        await asyncio.sleep(began_s - time.monotonic())
        until_s = began_s + options.seconds
        own = [group for group in range(options.groups) if group % NODES == options.node - 1]
        tasks = [asyncio.ensure_future(calls(node, group, options, began_s)) for group in own]
        switching = asyncio.ensure_future(phases(node, options, began_s)) if options.phase else None
        samples = []
        while time.monotonic() < until_s:
            await asyncio.sleep(1.0)
            samples.append(vars(await look(node, config.dir)))
        found = [number for task in tasks for number in await task]
        if switching is not None:
            switching.cancel()
        print(json.dumps({"calls": found, "samples": samples}), flush=True)


def pairs(numbers: list[float]) -> Iterator[tuple[float, float]]:
    return zip(numbers[::2], numbers[1::2], strict=True)


def report_bytes(nodes: list[dict[str, Any]], began_s: float, seconds: float, batch: int) -> None:
    print("disk, MiB (of one node, the fullest); memory, MiB, of the one with most")
    print(
        "   from s   values/s   memory   journal   store  checkpoints     all   entries kept   "
        "trimmed so far"
    )
    step = max(10.0, seconds / 12)
    for first in range(0, int(seconds), int(step)):
        rows = [
            sample
            for node in nodes
            for sample in node["samples"]
            if first <= sample["at_s"] - began_s < first + step
        ]
        if not rows:
            continue
        row = max(rows, key=lambda one: sum(one["bytes"].values()))
        used = {name: count / MIB for name, count in row["bytes"].items()}
        memory = max(one["memory_bytes"] for one in rows) / MIB
        done = sum(
            first <= at_s + took_s < first + step
            for node in nodes
            for at_s, took_s in pairs(node["calls"])
        )
        rate = done * batch / min(step, seconds - first)
        print(
            f"   {first:6} {rate:10,.0f} {memory:8.1f} {used['journal']:9.1f} {used['store']:7.1f} "
            f"{used['checkpoints']:12.1f} {sum(used.values()):7.1f} {row['store']['entries']:14,} "
            f"{row['checkpoints']['entries_trimmed']:16,}"
        )


def report_calls(nodes: list[dict[str, Any]], phase_s: float) -> None:
    kinds: dict[str, list[float]] = {"pinned": [], "purging": []}
    for node in nodes:
        for at_s, took_s in pairs(node["calls"]):
            phase, into_s = divmod(at_s, phase_s) if phase_s else (1, SETTLED_S)
            # The first phases fill caches, and the journal for the first time.
            if into_s >= (SETTLED_S if phase % 2 == 0 else 0) and (phase >= 2 or not phase_s):
                kinds["pinned" if phase % 2 == 0 else "purging"].append(took_s * 1e3)
    for kind, took in kinds.items():
        if took:
            figures = "  ".join(
                f"p{share * 100:g} {percentile(took, share):.1f}"
                for share in (0.5, 0.9, 0.99, 0.999)
            )
            print(f"calls, ms, {kind:8} {len(took):8,}  {figures}")
    if kinds["pinned"]:
        ratio = percentile(kinds["purging"], 0.99) / percentile(kinds["pinned"], 0.99)
        print(f"p99 while purging / p99 while pinned: {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument(
        "--rate",
        type=float,
        default=6000,
        help="values a second, all together; 0: one call after the other in each group",
    )
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--keys", type=int, default=200, help="of each group's machine")
    parser.add_argument("--interval", type=float, default=5, help="seconds between checkpoints")
    parser.add_argument("--phase", type=float, default=0, help="seconds; 0: never pinned")
    parser.add_argument("--large", action="store_true", help="journal and hold as by default")
    parser.add_argument("--no-trim", action="store_true")
    add_options(parser)
    options = parser.parse_args()
    if options.node:
        asyncio.run(child(options))
        return
    with command("trimming", NODES, options.dir) as (stack, common):
        children = [Child(stack, common, node) for node in range(1, NODES + 1)]
        for one in children:
            one.hear()
        began_s = time.monotonic() + 1.0
        for one in children:
            one.tell(str(began_s))
        nodes = [one.hear() for one in children]
    report_bytes(nodes, began_s, options.seconds, options.batch)
    report_calls(nodes, options.phase)


if __name__ == "__main__":
    main()
