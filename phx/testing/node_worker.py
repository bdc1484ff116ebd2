"""What every worker process with a node offers to its parent, see processes.py."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from phx.config import Config
from phx.machine import StateMachine
from phx.node import Node
from phx.testing.loops import run_in_loop
from phx.testing.worker import begin, jsonable, send, serve

__all__ = ["NodeWorker", "run_worker"]

PROGRESS_S = 0.2


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

    def progress(self) -> dict[str, Any] | None:
        """What the parent is told five times a second; None: nothing yet."""
        return None

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


async def _report(worker: NodeWorker) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        if (progress := worker.progress()) is not None:
            send({"progress": progress})


async def _run(worker: NodeWorker) -> None:
    await worker.start()
    reporting = asyncio.create_task(_report(worker))
    try:
        await serve(worker)
    finally:
        reporting.cancel()
        if not worker.closed.is_set():
            await worker.node.close()


def run_worker(kind: type[NodeWorker]) -> None:
    """The whole life of a worker process, until its parent has had enough of it."""
    spec = begin()
    run_in_loop(_run(kind(spec)), spec["loop"])
