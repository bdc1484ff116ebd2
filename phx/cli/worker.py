"""A worker process: one node, led by its parent over standard input and output.

See phx/testing/processes.py for the protocol. Run as ``python -m phx.cli.worker``.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import phx
from phx.cli.ledger import ACKNOWLEDGED, Ledger, LedgerReader, key_of, value_of
from phx.cli.load import Load, Tally, read_back
from phx.cli.loops import run_in_loop
from phx.cli.writers import Writers
from phx.machines.kv import KeyValue, encode_set
from phx.testing.worker import begin, jsonable, send, serve

PROGRESS_S = 0.2


class WorkerNode:
    """The node of this process and what its parent may ask of it."""

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec
        self.config = phx.Config.from_mapping(spec["config"])
        self.groups = self.config.group_ids
        self.machines: dict[int, Any] = {}
        self.ledger: Ledger | None = None
        self.writers: Writers | None = None
        self.load: Load | None = None
        self.closed = asyncio.Event()
        self.node: Any = None

    def _machine(self, group: int) -> Any:
        machine = Tally() if self.spec["machine"] == "tally" else KeyValue()
        self.machines[group] = machine
        return machine

    async def start(self) -> None:
        self.node = phx.Node(self.config, self._machine, bootstrap=self.spec["bootstrap"])
        await self.node.__aenter__()

    # --- what the parent may ask: one method per word, arguments from the message

    async def do_ready(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "loop": type(asyncio.get_running_loop()).__module__}

    async def do_led(self) -> list[int]:
        return [group for group in self.groups if self.node.group(group).status().leading]

    async def do_positions(self) -> dict[int, tuple[int, int]]:
        positions = {}
        for group in self.groups:
            status = self.node.group(group).status()
            positions[group] = (status.applied_through, status.chosen_through)
        return positions

    async def do_digests(self) -> dict[int, tuple[int, int, str]]:
        """Per group: instance, chained digest of the log up to it, digest of the machine."""
        digests = {}
        for group in self.groups:
            status = self.node.group(group).status()
            machine = self.machines[group]
            digests[group] = (status.digest_at, status.digest, machine.digest().hex())
        return digests

    async def do_tallies(self, first: dict[str, int]) -> dict[int, tuple[int, int, int]]:
        """Per group: values in the log from `first` on, sum of hashes, values ever applied."""
        tallies = {}
        for group in self.groups:
            door = self.node.group(group)
            count, total = await read_back(door, first[str(group)], door.status().chosen_through)
            tallies[group] = (count, total, self.machines[group].count)
        return tallies

    async def do_status(self) -> Any:
        return jsonable(self.node.status())

    async def do_write(self, ledger: str, bytes_max: int, per_group: int, timeout_s: float) -> None:
        slots = len(self.groups) * per_group
        self.ledger = Ledger(Path(ledger), self.config.node, slots, per_group, bytes_max)
        groups = [self.node.group(group) for group in self.groups]
        self.writers = Writers(groups, per_group, self.ledger, encode_set, timeout_s)
        self.writers.start()

    async def do_stop_writing(self) -> str:
        if self.writers is None:
            return ""
        await self.writers.stop()
        return self.writers.last_error

    async def do_check(self, ledgers: list[str]) -> dict[str, Any]:
        """Look for every acknowledged value of these ledgers in the machines of this node."""
        checked, lost = 0, 0
        examples: list[str] = []
        for path in ledgers:
            reader = LedgerReader(Path(path))
            for one in reader.outcomes():
                if one.outcome != ACKNOWLEDGED:
                    continue
                checked += 1
                if checked % 20_000 == 0:
                    await asyncio.sleep(0)
                group = self.groups[reader.group_index(one.slot)]
                key = key_of(reader.salt, one.slot, one.number)
                if self.machines[group].get(key) != value_of(reader.salt, one.slot, one.number):
                    lost += 1
                    if len(examples) < 5:
                        examples.append(f"group {group} key {key}")
        return {"checked": checked, "lost": lost, "examples": examples}

    async def do_load(
        self,
        callers: dict[str, int],
        value_bytes: int,
        batch: int,
        timeout_s: float,
        measure_us: tuple[int, int],
    ) -> None:
        self.load = Load(self.node, value_bytes, batch, timeout_s)
        by_group = {int(group): count for group, count in callers.items()}
        self.load.start(by_group, measure_us)

    async def do_stop_load(self) -> Any:
        assert self.load is not None
        await self.load.stop()
        return await self.load.result()

    async def do_close(self) -> None:
        await self.node.close()
        self.closed.set()

    def progress(self) -> dict[str, Any]:
        done = self.writers.acknowledged if self.writers else 0
        if self.load is not None:
            done = self.load.acknowledged
        journal = self.node.status().journal
        return {"acknowledged": done, "syncs": journal["syncs"]}


async def report_progress(worker: WorkerNode) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        if worker.writers is not None or worker.load is not None:
            send({"progress": worker.progress()})


async def run(spec: dict[str, Any]) -> None:
    worker = WorkerNode(spec)
    await worker.start()
    progress = asyncio.create_task(report_progress(worker))
    try:
        await serve(worker)
    finally:
        progress.cancel()
        if not worker.closed.is_set():
            await worker.node.close()


def main() -> None:
    spec = begin()
    run_in_loop(run(spec), spec["loop"])


if __name__ == "__main__":
    main()
