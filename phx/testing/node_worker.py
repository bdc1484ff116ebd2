"""What every worker process with a node offers to its parent, see processes.py."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from phx.config import Config
from phx.machine import StateMachine
from phx.node import Node
from phx.testing.worker import jsonable

__all__ = ["NodeWorker"]


class NodeWorker:
    """The node of this process and what its parent may ask of it: a ``do_word`` for each word.

    Derive from it for further words; `machine_of` says what the groups run.
    """

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec
        self.config = Config.from_mapping(spec["config"])
        self.groups = self.config.group_ids
        self.machines: dict[int, Any] = {}
        self.closed = asyncio.Event()
        self.node: Any = None

    def machine_of(self, name: str) -> StateMachine:
        """A machine for one more group, by the name that the parent gave."""
        raise NotImplementedError

    def _machine(self, group: int) -> StateMachine:
        machine = self.machine_of(self.spec["machine"])
        self.machines[group] = machine
        return machine

    async def start(self) -> None:
        self.node = Node(self.config, self._machine, bootstrap=self.spec["bootstrap"])
        await self.node.__aenter__()

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

    async def do_status(self) -> Any:
        return jsonable(self.node.status())

    async def do_close(self) -> None:
        await self.node.close()
        self.closed.set()
