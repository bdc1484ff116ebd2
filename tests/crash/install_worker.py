"""Node 3, which lies below all floors; it kills itself at the n-th step on its way back.

    python install_worker.py FOLDER PORTS TARGET STEP [WHEN]

PORTS: of the three nodes, with commas between. TARGET: the instance where the others are. STEP: 0:
it lives. It says "steps N" and "state APPLIED PROMISED DIGEST ..." when it is there, too.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import phx
from phx.applier import Applier
from phx.checkpoint import files as checkpoint_files
from phx.checkpoint.catalog import Catalog
from phx.checkpoint.files import OsFiles
from phx.durable.generations import Generations
from phx.machine import StateMachine
from phx.node import installer
from phx.store import Store
from phx.transfer.receiver import Receiver

sys.path.append(str(Path(__file__).resolve().parent))  # not there by itself under -P

from trim_worker import Durable, Memory

WAIT_S = 40.0

HOOKED: list[tuple[Any, list[str]]] = [
    (OsFiles, ["make_folder", "create", "extend", "rename", "sync", "remove", "remove_folder"]),
    (checkpoint_files._OsOutput, ["write", "sync"]),
    (Generations, ["begin", "switch", "sweep"]),
    (Catalog, ["add", "_victim"]),
    (Store, ["raise_floors"]),
    (Applier, ["replace"]),
    (installer._Place, ["restore", "floor", "swap", "know", "tell", "drop"]),
]


class Steps:
    """Counts what it is told to, from the first byte of a transfer on."""

    def __init__(self, last: int, when: str) -> None:
        self.numbers = itertools.count(1)
        self.count = 0
        self.last = last
        self.when = when
        self.begun = False

    def hook(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def hooked(*given: Any, **named: Any) -> Any:
            number = next(self.numbers) if self.begun else -1
            self.count = max(self.count, number)
            if number == self.last and self.when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            found = original(*given, **named)
            if number == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        setattr(owner, name, hooked)

    def arm(self) -> None:
        for owner, names in HOOKED:
            for name in names:
                self.hook(owner, name)
        hello = Receiver.hello

        def begins(receiver: Receiver, greeting: Any) -> bytes:
            self.begun = True
            return hello(receiver, greeting)

        Receiver.hello = begins  # type: ignore[method-assign]


def machines(group: int) -> dict[int, StateMachine]:
    return {0: Memory(), 1: Durable()}


def config_of(folder: Path, node: int, ports: list[int]) -> phx.Config:
    return phx.Config(
        cluster="install",
        node=node,
        members={at: f"127.0.0.1:{port}" for at, port in enumerate(ports, 1)},
        dir=folder,
        timing=phx.config.Timing(heartbeat_us=50_000, lease_us=400_000, election_us=50_000),
        limits=phx.config.Limits(value_bytes_max=64 << 10),
        journal=phx.config.Journal(
            segment_bytes=1 << 20, journal_bytes_max=32 << 20, settle_bytes=1 << 20
        ),
        checkpoints=phx.config.Checkpoints(
            interval_instances=0, interval_bytes=0, interval_us=0, machine_commit_us=20_000
        ),
    )


async def main(folder: Path, ports: list[int], target: int, last: int, when: str) -> None:
    steps = Steps(last, when)
    steps.arm()
    async with phx.Node(config_of(folder, 3, ports), machines, bootstrap=True) as node:
        group = node.group(0)
        snapshots, until_s = node._room._snapshots, time.monotonic() + WAIT_S
        assert snapshots is not None

        def there() -> bool:
            status = group.status()
            return status.applied_through >= target and not status.restoring

        for done in (there, lambda: not snapshots._between):
            for _ in iter(done, True):
                assert time.monotonic() < until_s, (group.status(), node.status().transfers)
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        status = group.status()
        digests = [group.machine(one).digest().decode().replace(" ", "/") for one in (0, 1)]
        print("steps", steps.count)
        print("state", status.applied_through, status.promised, *digests)


def begin(words: list[str]) -> None:
    folder, ports, target, last, *when = words
    logging.basicConfig(level=logging.INFO)
    numbers = [int(port) for port in ports.split(",")]
    asyncio.run(main(Path(folder), numbers, int(target), int(last), *when or ["before"]))


if __name__ == "__main__":
    begin(sys.argv[1:])
