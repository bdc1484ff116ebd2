"""A worker process of the demo: one node, led by its parent over standard input and output.

See phx/testing/processes.py for the protocol. Run as ``python -m phx.cli.worker``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from phx.cli.ledger import ACKNOWLEDGED, Ledger, LedgerReader, key_of, value_of
from phx.cli.writers import Writers
from phx.machine import StateMachine
from phx.machines.kv import KeyValue, encode_set
from phx.testing.node_worker import NodeWorker, run_worker


class WorkerNode(NodeWorker):
    """A node with the demo's writers."""

    def __init__(self, spec: dict[str, Any]):
        super().__init__(spec)
        self.ledger: Ledger | None = None
        self.writers: Writers | None = None

    def machine_of(self, name: str) -> StateMachine:
        return KeyValue()

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

    def progress(self) -> dict[str, Any] | None:
        if self.writers is None:
            return None
        journal = self.node.status().journal
        return {"acknowledged": self.writers.acknowledged, "syncs": journal["syncs"]}


if __name__ == "__main__":
    run_worker(WorkerNode)
