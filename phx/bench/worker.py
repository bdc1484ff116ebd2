"""A measured process: one node, its clients, what it notes; led by its parent.

See phx/testing/processes.py for the protocol. Run as ``python -m phx.bench.worker``.
"""

from __future__ import annotations

import asyncio
import ctypes
from typing import Any

from phx.bench.check import read_back
from phx.bench.load import Load
from phx.bench.machines import MACHINES
from phx.bench.meter import Meter, memory_bytes
from phx.bench.reads import ReadLoad
from phx.machine import StateMachine
from phx.testing.node_worker import NodeWorker, run_worker
from phx.testing.processes import now_us


class BenchNode(NodeWorker):
    """A node, and its clients while it is measured."""

    def __init__(self, spec: dict[str, Any]):
        super().__init__(spec)
        self.loads: list[Load] = []
        self.meter: Meter | None = None
        self.ended = asyncio.Event()
        self.bare_bytes = memory_bytes()[1]  # without a node

    def machine_of(self, name: str) -> StateMachine:
        return MACHINES[name]()

    def progress(self) -> dict[str, Any] | None:
        return {"acknowledged": self.acknowledged} if self.loads else None

    @property
    def acknowledged(self) -> int:
        return sum(load.acknowledged for load in self.loads)

    async def do_memory(self) -> dict[str, int]:
        """Bytes of memory without mapped files: before the node was made, and now."""
        return {"bare": self.bare_bytes, "now": memory_bytes()[1]}

    async def do_load(
        self, loads: list[dict[str, Any]], timeout_s: float, measure_us: tuple[int, int]
    ) -> None:
        """Start clients; each of `loads` says callers (by group), value_bytes, batch, every_s."""
        for one in loads:
            if how := one.get("reads"):
                load: Load = ReadLoad(self.node, how, one["batch"], timeout_s)
            else:
                load = Load(self.node, one["value_bytes"], one["batch"], timeout_s, one["every_s"])
            load.start({int(group): count for group, count in one["callers"].items()})
            self.loads.append(load)
        self.meter = Meter(
            self.node,
            lambda: self.acknowledged,
            lambda: sum(load.notes_bytes for load in self.loads),
            self._begin,
            self._end,
        )
        self.meter.start(*measure_us)

    def _begin(self) -> None:
        for load in self.loads:
            load.begin()

    def _end(self) -> None:
        for load in self.loads:
            load.end()
        self.ended.set()

    async def do_hold_gil(self, at_us: int, seconds: int) -> None:
        """Keep the GIL from then on, asleep: whoever needs it waits, no processor is used."""
        sleep = ctypes.PyDLL(None).sleep  # PyDLL does not release the GIL around the call
        asyncio.get_running_loop().call_later((at_us - now_us()) / 1e6, sleep, seconds)

    async def do_alternate(self, begin_us: int, end_us: int, every_s: float) -> None:
        """No checkpoints from now on; from `begin_us` on none for `every_s`, then some, and so on,
        until `end_us`."""
        node, loop = self.node, asyncio.get_running_loop()
        node.pause_checkpoints()
        at_us, paused = begin_us + int(every_s * 1e6), False
        while at_us < end_us:
            turn = node.pause_checkpoints if paused else node.resume_checkpoints
            loop.call_later((at_us - now_us()) / 1e6, turn)
            at_us, paused = at_us + int(every_s * 1e6), not paused
        loop.call_later((end_us - now_us()) / 1e6, node.pause_checkpoints)

    async def do_stop_load(self) -> Any:
        assert self.meter is not None
        await self.ended.wait()
        await asyncio.gather(*(load.stop() for load in self.loads))
        return {"loads": [await load.result() for load in self.loads], **self.meter.result()}

    async def do_tallies(self, first: dict[str, int]) -> dict[int, tuple[int, int, int]]:
        """Per group: values in the log from `first` on, sum of hashes, values ever applied."""
        tallies = {}
        for group in self.groups:
            door = self.node.group(group)
            count, total = await read_back(door, first[str(group)], door.status().chosen_through)
            tallies[group] = (count, total, self.machines[group].count)
        return tallies


if __name__ == "__main__":
    run_worker(BenchNode)
