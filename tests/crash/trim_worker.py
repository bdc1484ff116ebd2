"""A node that trims, and kills itself at the n-th time that it comes to some step of that.

    python trim_worker.py FOLDER STEP N

Group 0 has a machine in memory, group 1 a durable one, group 2 both. Values go to all of them for
ever, each the number of those before it; checkpoints are taken all the time. Each value that was
acknowledged is said ("1 0 17": group, machine, how many by now) before the next is proposed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack

import phx
from phx.checkpoint.catalog import Catalog
from phx.checkpoint.files import OsFiles
from phx.durable.lmdb import LmdbMachine
from phx.machine import CopyView, StateMachine
from phx.node import floors
from phx.node.floors import Floors
from phx.store import Store

sys.path.append(str(Path(__file__).resolve().parent))  # not there by itself under -P

from dying import ALONE, arm

PLACES = ((0, 0), (1, 0), (2, 0), (2, 1))  # group, machine
HELD = 5
LIFE_S = 20.0
"""Of a node that never comes to the step."""


class Memory(StateMachine):
    """How many values there were, and whether each was the number of those before it."""

    def __init__(self) -> None:
        self.count = 0
        self.odd = 0

    def apply(self, entry: phx.Entry) -> int:
        self.odd += int(entry.value.split()[0]) != self.count
        self.count += 1
        return self.count

    def digest(self) -> bytes:
        return b"%d %d" % (self.count, self.odd)

    def freeze(self) -> CopyView:
        view = Memory()
        view.count, view.odd = self.count, self.odd
        return CopyView(view)

    def snapshot(self, writer: Any) -> None:
        writer.write(msgpack.packb([self.count, self.odd]))

    def restore(self, reader: Any) -> None:
        self.count, self.odd = msgpack.unpackb(reader.read(1 << 20))


class Durable(LmdbMachine):
    """The same in files."""

    def apply(self, entry: phx.Entry) -> int:
        count, odd = self.counts()
        odd += int(entry.value.split()[0]) != count
        self.txn.put(b"counts", b"%d %d" % (count + 1, odd))
        return count + 1

    def counts(self) -> tuple[int, int]:
        count, odd = (self.txn.get(b"counts") or b"0 0").split()
        return int(count), int(odd)

    def digest(self) -> bytes:
        return b"%d %d" % self.counts()


def machines(group: int) -> dict[int, StateMachine]:
    return {0: {0: Memory()}, 1: {0: Durable()}, 2: {0: Memory(), 1: Durable()}}[group]


def config_of(folder: Path) -> phx.Config:
    return phx.Config(
        cluster="kill",
        node=1,
        members={1: "127.0.0.1:0"},
        dir=folder,
        groups=3,
        timing=ALONE,
        limits=phx.config.Limits(value_bytes_max=64 << 10),
        journal=phx.config.Journal(
            segment_bytes=1 << 20, journal_bytes_max=32 << 20, settle_bytes=1 << 20
        ),
        checkpoints=phx.config.Checkpoints(
            interval_instances=10,
            interval_us=0,
            machine_commit_us=20_000,
            keep=2,
            trim=True,
            hold_instances=HELD,
        ),
    )


async def load(node: phx.Node) -> None:
    digests = {(g, m): node.group(g).machine(m).digest() for g, m in PLACES}
    counts = {place: int(digest.split()[0]) for place, digest in digests.items()}
    filler = bytes(20_000)
    for turn in itertools.count():
        for (group, machine), count in counts.items():
            # Some of the log is settled before it is trimmed, and some is not.
            value = b"%d " % count + (filler if group == 0 else b"")
            await node.group(group).propose(value, machine=machine)
            counts[group, machine] += 1
            os.write(1, b"%d %d %d\n" % (group, machine, counts[group, machine]))
        if turn % 8 == 7:
            node._room.driver.settle_now()
        await asyncio.sleep(0)


OWNERS: dict[str, Any] = {
    "rename": OsFiles, "sync": OsFiles, "remove": OsFiles, "_victim": Catalog,
    "add": Catalog, "covered": Floors, "_raise": Floors, "_tell": Floors, "_put_floors": Store,
    "settle": Store, "trim": Store, "_delete_chunks": Store,
}  # fmt: skip


async def main(folder: Path, step: str, times: int) -> None:
    arm(OWNERS[step.partition("-")[2]], step, times)
    floors.PAUSE_S = 0.0  # so that there are many steps in a second
    async with phx.Node(config_of(folder), machines, bootstrap=True) as node:
        await node.wait_ready()
        with suppress(TimeoutError):
            await asyncio.wait_for(load(node), LIFE_S)


def begin(words: list[str]) -> None:
    asyncio.run(main(Path(words[0]), words[1], int(words[2])))


if __name__ == "__main__":
    begin(sys.argv[1:])
