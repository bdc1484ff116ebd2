"""A node that takes a checkpoint, and kills itself at the n-th step of that.

    python take_worker.py FOLDER STEP [WHEN]

STEP: 0: it lives. Its group has a machine in memory and a durable one; each value is the number of
those before it. It says "had MEMORY DURABLE" when it is there (how many values each has, and how
many of them were odd), "at PROMISED FRONTIER APPLIED" when all that follows are steps of the
checkpoint, and "steps N" when that is taken, the older one dropped and the log trimmed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import phx
from phx.checkpoint import files as checkpoint_files
from phx.checkpoint.catalog import Catalog
from phx.checkpoint.files import OsFiles
from phx.machine import StateMachine
from phx.node import floors
from phx.node.floors import Floors
from phx.store import Store

sys.path.append(str(Path(__file__).resolve().parent))  # not there by itself under -P

from dying import ALONE, recovered
from install_worker import Steps
from trim_worker import Durable, Memory

WAIT_S = 40.0
VALUES = 10

HOOKED: list[tuple[Any, list[str]]] = [
    (OsFiles, ["make_folder", "create", "rename", "sync", "remove", "remove_folder"]),
    (checkpoint_files._OsOutput, ["write", "sync", "close"]),
    (Durable, ["commit"]),
    (Memory, ["freeze"]),
    (Catalog, ["add", "_victim"]),
    (Floors, ["covered"]),
    (Store, ["raise_floors", "_put_floors"]),
]


def machines(group: int) -> dict[int, StateMachine]:
    return {0: Memory(), 1: Durable()}


def config_of(folder: Path) -> phx.Config:
    return phx.Config(
        cluster="take",
        node=1,
        members={1: "127.0.0.1:0"},
        dir=folder,
        timing=ALONE,
        checkpoints=phx.config.Checkpoints(
            interval_instances=0,
            interval_bytes=0,
            interval_us=0,
            machine_commit_us=60_000_000,  # so it is done when it is captured
            keep=1,
            hold_instances=0,
        ),
    )


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def main(folder: Path, last: int, when: str) -> None:
    steps = Steps(last, when)
    for owner, names in HOOKED:
        for name in names:
            steps.hook(owner, name)
    floors.PAUSE_S = 0.0
    async with phx.Node(config_of(folder), machines, bootstrap=True) as node:
        await recovered(node, [0])
        group = node.group(0)
        digests = [group.machine(one).digest().decode() for one in (0, 1)]
        say("had", *digests)
        for machine, digest in enumerate(digests):
            count = int(digest.split()[0])
            for number in range(count, count + VALUES):
                await group.propose(b"%d" % number, machine=machine)
        status, until_s = group.status(), time.monotonic() + WAIT_S
        say("at", status.promised, status.frontier, status.applied_through)
        steps.begun = True
        frontier = (await group.checkpoint()).frontier
        while group.status().floor <= frontier:
            assert time.monotonic() < until_s, group.status()
            await asyncio.sleep(0.005)
        steps.begun = False
        say("steps", steps.count)


def begin(words: list[str]) -> None:
    folder, last, *when = words
    asyncio.run(main(Path(folder), int(last), *when or ["before"]))


if __name__ == "__main__":
    begin(sys.argv[1:])
