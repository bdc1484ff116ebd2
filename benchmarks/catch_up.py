"""What a node's callers notice while checkpoints are fetched and installed.

Three nodes in processes of their own, with callers: at the third in `--others` groups, and at the
first in `--busy` of `--groups` more. The third goes away; the others take checkpoints of these and
let the log below go. Then the third comes back, which has to fetch them, and so do its callers.
Said: how long the restoring took, and what callers and the third's event loop waited before (all
three there, the same callers), without the third, during the restoring, and after it. With `--lost`
the third is not behind when it goes, but comes back without its settled log and checkpoints: its
journal, promises and store id are all that it has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from children import Child, add_options, command, percentile

import phx
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.store import Floor

NODES = 3
MIB = 1 << 20
PAUSE_S = 0.001


def config_of(folder: Path, node: int, ports: list[int], options: argparse.Namespace) -> phx.Config:
    return phx.Config(
        cluster="catch-up",
        node=node,
        members={n: f"127.0.0.1:{port}" for n, port in enumerate(ports, 1)},
        dir=folder / f"node{node}",
        groups=options.groups + options.others,
        checkpoints=phx.config.Checkpoints(
            interval_instances=0,
            interval_bytes=0,
            interval_us=0,
            transfer_bytes_per_s=int(options.rate * MIB),
            fetches_max=options.fetches,
            reserve_bytes=0,
        ),
    )


async def fill(node: phx.Node, group: int, options: argparse.Namespace, share: float) -> None:
    for first in range(0, int(options.keys * share), 100):
        values = [
            encode_set(b"%d" % number, os.urandom(options.size))
            for number in range(first, min(first + 100, int(options.keys * share)))
        ]
        await node.group(group).propose_many(values, timeout=120)


async def trim(node: phx.Node, group: int) -> None:
    frontier = (await node.group(group).checkpoint()).frontier
    floor = Floor(frontier + 1, frontier)
    asked = node._room._keeper.ask(lambda store: store.raise_floors({group: floor}))
    await asyncio.wrap_future(asked)
    node._room.driver.floored(group, frontier + 1, frontier)


def others_of(options: argparse.Namespace) -> range:
    return range(options.groups, options.groups + options.others)


class Calls:
    """One caller after the other in each of some groups, for ever: (when, how long)."""

    def __init__(self, node: phx.Node, groups: range, every_s: float) -> None:
        self.found: list[tuple[float, float]] = []
        self.gaps: list[tuple[float, float]] = []
        self._tasks = [asyncio.ensure_future(self._call(node, one, every_s)) for one in groups]
        self._tasks.append(asyncio.ensure_future(self._watch()))

    async def _call(self, node: phx.Node, group: int, every_s: float) -> None:
        value = encode_set(b"call", bytes(100))
        while True:
            began_s = time.monotonic()
            await node.group(group).propose(value, timeout=60)
            took_s = time.monotonic() - began_s
            self.found.append((began_s, took_s))
            await asyncio.sleep(max(0.0, every_s - took_s))

    async def _watch(self) -> None:
        last_s = time.monotonic()
        while True:
            await asyncio.sleep(PAUSE_S)
            now_s = time.monotonic()
            self.gaps.append((last_s, now_s - last_s - PAUSE_S))
            last_s = now_s

    def stop(self) -> dict[str, Any]:
        for task in self._tasks:
            task.cancel()
        return {"calls": self.found, "gaps": self.gaps}


def say(what: str, **more: Any) -> None:
    print(
        json.dumps({"what": what, "pid": os.getpid(), "at": time.monotonic(), **more}), flush=True
    )


async def heard() -> str:
    return (await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)).strip()


async def first(node: phx.Node, options: argparse.Namespace) -> None:
    """Nodes 1 and 2, and 3 in its first life, while they are told what to do."""
    calls = None
    groups = range(options.groups)
    called = range(options.busy) if options.node == 1 else others_of(options)
    while word := await heard():
        if word.startswith("fill") and options.node == 1:
            share = float(word.split()[1])
            everything = range(options.groups + options.others)
            for at in range(0, len(everything), 10):
                await asyncio.gather(
                    *(fill(node, group, options, share) for group in everything[at : at + 10])
                )
        elif word == "trim":
            for group in groups:
                await trim(node, group)
        elif word == "call":
            calls = Calls(node, called, options.every)
        elif word == "stop":
            assert calls is not None
            say("calls", **calls.stop())
            continue
        elif word == "quit":
            return
        say("done")


async def third(node: phx.Node, options: argparse.Namespace) -> None:
    """Node 3 in its second life."""
    began_s = time.monotonic()
    others = others_of(options)
    await node.wait_ready(others, timeout=60)
    calls = Calls(node, others, options.every)
    for _ in iter(lambda: node.status().transfers["installed"] < options.groups, False):
        await asyncio.sleep(0.02)
    installed_s = time.monotonic()
    await asyncio.sleep(options.after)
    found = calls.stop()
    transfers = dict(node.status().transfers)
    say("calls", **found, began=began_s, installed=installed_s, transfers=transfers)
    await heard()


async def child(options: argparse.Namespace) -> None:
    folder, ports = Path(options.folder), json.loads(options.ports)
    config = config_of(folder, options.node, ports, options)
    async with phx.Node(config, KeyValue, bootstrap=True) as node:
        if options.again:
            say("ready")
            await third(node, options)
            return
        await node.wait_ready(timeout=60)
        say("ready")
        await first(node, options)


def report(
    name: str, found: list[tuple[float, float]], spans: dict[str, tuple[float, float]]
) -> None:
    for span, (first_s, last_s) in spans.items():
        took = [took_s * 1e3 for at_s, took_s in found if first_s <= at_s < last_s]
        figures = "  ".join(
            f"p{share * 100:g} {percentile(took, share):7.1f}" for share in (0.5, 0.99)
        )
        longest = max(took, default=0.0)
        print(f"{name:22} {span:7} {len(took):7,}  {figures}  longest {longest:7.1f} ms")


def together(children: list[Child], word: str) -> None:
    for one in children:
        one.tell(word)
    for one in children:
        one.hear()


def prepare(children: list[Child], options: argparse.Namespace) -> list[dict[str, Any]]:
    """What callers found while all three were there. The third is gone behind it, and what it
    would have to have is trimmed at the others."""
    one, two, three = children
    together([one], f"fill {1.0 if options.lost else 0.1}")
    together([one, three], "call")
    time.sleep(options.after)
    found = [asked(child, "stop") for child in (one, three)]
    three.tell("quit")
    three.process.wait(60)
    if not options.lost:
        together([one], "fill 1.0")
    together([one, two], "trim")
    return found


def asked(child: Child, word: str) -> dict[str, Any]:
    child.tell(word)
    return dict(child.hear())


def run(stack: ExitStack, common: list[str], options: argparse.Namespace) -> None:
    children = [Child(stack, common, node) for node in range(1, NODES + 1)]
    for child in children:
        child.hear()
    one = children[0]
    whole, others = prepare(children, options)
    left_s = time.monotonic()
    together([one], "call")
    time.sleep(options.after)
    if options.lost:
        folder = Path(common[common.index("--folder") + 1]) / "node3"
        shutil.rmtree(folder / "store")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # it may have taken none
    began_s = time.monotonic()
    three = Child(stack, common, 3, "--again")
    three.hear()
    found = three.hear()
    ended_s = time.monotonic()
    callers = asked(one, "stop")
    size = found["transfers"]["fetched_bytes"] / MIB
    took_s = found["installed"] - found["began"]
    print(
        f"{options.groups} groups, {size:.1f} MiB fetched and installed in {took_s:.2f} s, "
        f"one process ({found['pid']}); at most: "
        f"restore {found['transfers']['restore_us_max'] / 1e3:.1f} ms, "
        f"swap {found['transfers']['swap_us_max'] / 1e3:.1f} ms"
    )
    spans = {
        "before": (0.0, left_s),
        "during": (found["began"], found["installed"]),
        "after": (found["installed"], ended_s),
    }
    report("node 3, other groups", others["calls"] + found["calls"], spans)
    report("node 3, event loop", others["gaps"] + found["gaps"], spans)
    spans = {"before": (0.0, left_s), "without": (left_s, began_s), **spans}
    report("node 1, those groups", whole["calls"] + callers["calls"], spans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=100, help="that are fetched")
    parser.add_argument("--others", type=int, default=10)
    parser.add_argument("--busy", type=int, default=10)
    parser.add_argument("--keys", type=int, default=2000, help="of each group's machine")
    parser.add_argument("--size", type=int, default=200, help="bytes of a value")
    parser.add_argument("--rate", type=float, default=64, help="MiB/s of a provider")
    parser.add_argument("--fetches", type=int, default=4, help="at a time")
    parser.add_argument("--every", type=float, default=0.02, help="seconds between two calls")
    parser.add_argument("--after", type=float, default=5, help="seconds before and after it")
    parser.add_argument("--lost", action="store_true", help="its store and its checkpoints, too")
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)
    add_options(parser)
    options = parser.parse_args()
    if options.node:
        asyncio.run(child(options))
        return
    with command("catch-up", NODES, options.dir) as (stack, common):
        run(stack, common, options)


if __name__ == "__main__":
    main()
