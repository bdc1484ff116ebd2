"""A node of durable machines that kills itself at the n-th time that it comes to some step.

    python durable_worker.py FOLDER KIND STEP N

Group 0 has a durable machine, group 1 one beside a machine in memory. So many values go to all of
them, however long that takes; then it is closed, which has steps, too. Light and full checkpoints
are taken on the way. Each value that was acknowledged is said ("1 0 17": group, machine, how many
by now) before the next is proposed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

import phx
from phx.durable.generations import Generations
from phx.machine import CopyView, StateMachine

sys.path.append(str(Path(__file__).resolve().parents[1] / "durable"))
sys.path.append(str(Path(__file__).resolve().parent))  # not there by itself under -P

from durable_lab import LmdbSums, SqliteSums, digest_of
from dying import ALONE, arm

TURNS, FULL_TURNS = 160, 20
"""Of load; and between two full checkpoints."""


class Memory(StateMachine):
    """The sums of durable_lab, in memory."""

    def __init__(self, group: int = 0) -> None:
        self.sums: dict[int, int] = {}

    def apply(self, entry: phx.Entry) -> int:
        key, amount = map(int, entry.value.split())
        self.sums[key] = self.sums.get(key, 0) + amount
        return self.sums[key]

    def digest(self) -> bytes:
        return digest_of(self.sums)

    def freeze(self) -> CopyView:
        view = Memory()
        view.sums = self.sums.copy()
        return CopyView(view)

    def snapshot(self, writer: Any) -> None:
        writer.write(msgpack.packb(sorted(self.sums.items())))

    def restore(self, reader: Any) -> None:
        self.sums = dict(msgpack.unpackb(b"".join(iter(lambda: reader.read(1 << 20), b""))))


class Lmdb(LmdbSums):
    def __init__(self, group: int = 0) -> None:
        super().__init__()


class Sqlite(SqliteSums):
    def __init__(self, group: int = 0) -> None:
        super().__init__()


KINDS: dict[str, type[StateMachine]] = {"lmdb": Lmdb, "sqlite": Sqlite, "memory": Memory}
PLACES = ((0, 0), (1, 0), (1, 1))  # group, machine


def machines(kind: str) -> Callable[[int], dict[int, StateMachine]]:
    return lambda group: {0: KINDS[kind]()} | ({1: Memory()} if group else {})


def config_of(folder: Path, **checkpoints: int) -> phx.Config:
    quiet = {"interval_instances": 0, "interval_us": 0, "machine_commit_us": 2_000}
    return phx.Config(
        cluster="kill",
        node=1,
        members={1: "127.0.0.1:0"},
        dir=folder,
        groups=2,
        timing=ALONE,
        checkpoints=phx.config.Checkpoints(**(quiet | checkpoints)),
    )


def value_of(number: int) -> bytes:
    return b"%d %d" % (number * 31 % 97, number)


async def load(node: phx.Node) -> None:
    counts = dict.fromkeys(PLACES, 0)
    for turn in range(TURNS):
        for (group, machine), count in counts.items():
            door = node.group(group)
            values = [value_of(count + at) for at in range(1 + turn % 7)]
            counts[group, machine] += len(await door.propose_many(values, machine=machine))
            os.write(1, b"%d %d %d\n" % (group, machine, counts[group, machine]))
        if turn % FULL_TURNS == FULL_TURNS - 1:
            await node.group(turn // FULL_TURNS % 2).checkpoint()


OWNERS: dict[str, Any] = {
    "rename": os, "fsync": os, "begin": Generations, "switch": Generations, "sweep": Generations,
}  # fmt: skip


async def main(folder: Path, kind: str, step: str, times: int) -> None:
    arm(OWNERS.get(step.partition("-")[2], KINDS[kind]), step, times)
    config = config_of(folder, interval_instances=30)
    async with phx.Node(config, machines(kind), bootstrap=True) as node:
        await node.wait_ready()
        await load(node)


def begin(words: list[str]) -> None:
    asyncio.run(main(Path(words[0]), words[1], words[2], int(words[3])))


if __name__ == "__main__":
    begin(sys.argv[1:])
