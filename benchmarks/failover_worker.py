"""A node's process of failover.py and replace.py: callers, whose waits it notes. ``python -m`` runs
it."""

from __future__ import annotations

import asyncio
from typing import Any

from phx.errors import PhxError
from phx.machine import StateMachine
from phx.machines import Counter
from phx.testing.node_worker import NodeWorker, run_worker
from phx.testing.processes import now_us

Wait = tuple[int, int]  # when it was proposed, when it was acknowledged


class Callers(NodeWorker):
    """A node with one caller to each of some groups."""

    def __init__(self, spec: dict[str, Any]):
        super().__init__(spec)
        self.waits: dict[int, list[Wait]] = {}
        self.failed: list[str] = []
        self.calling = False
        self.callers: list[asyncio.Task[None]] = []

    def machine_of(self, name: str) -> StateMachine:
        return Counter()

    async def _propose(self, group: int, timeout_s: float) -> Wait | None:
        since_us = now_us()
        try:
            await self.node.group(group).propose(b"1", timeout=timeout_s)
        except PhxError as error:
            self.failed.append(f"group {group}: {type(error).__name__}: {error}")
            return None
        return since_us, now_us()

    async def _call(self, group: int, after_s: float, pause_s: float, timeout_s: float) -> None:
        await asyncio.sleep(after_s)
        while self.calling:
            if (wait := await self._propose(group, timeout_s)) is not None:
                self.waits.setdefault(group, []).append(wait)
            await asyncio.sleep(pause_s)

    async def do_call(self, groups: list[int], pause_s: float, timeout_s: float) -> None:
        """One caller to each of these groups from now on, with a pause after each answer."""
        self.calling = True
        for at, group in enumerate(groups):
            after_s = pause_s * at / len(groups)
            self.callers.append(asyncio.create_task(self._call(group, after_s, pause_s, timeout_s)))

    async def do_stop(self) -> dict[str, Any]:
        """The waits of all callers by group, and what failed."""
        self.calling = False
        await asyncio.gather(*self.callers)
        self.callers.clear()
        found = {"waits": self.waits, "failed": self.failed}
        self.waits, self.failed = {}, []
        return found

    async def do_probe(self, groups: list[int], timeout_s: float) -> dict[int, Wait]:
        """A value to each of these groups at once: when they were proposed and acknowledged."""
        waits = await asyncio.gather(*(self._propose(group, timeout_s) for group in groups))
        return {group: wait for group, wait in zip(groups, waits, strict=True) if wait}

    async def do_counters(self) -> dict[str, int]:
        status = self.node.status()
        return {**status.counters, "syncs": status.journal["syncs"]}

    async def do_replace(
        self, old: int, new: int, address: str, timeout_s: float
    ) -> dict[str, Any]:
        """In all groups; why not, by group."""
        made = await self.node.replace_member(old, new, address, timeout=timeout_s)
        return {"failed": {group: str(why) for group, why in made.failed.items()}}

    async def do_drain(self) -> dict[str, Any]:
        since_us = now_us()
        found = await self.node.resign_all()
        return {
            "since_us": since_us,
            "until_us": now_us(),
            "moved": len(found.moved),
            "failed": found.failed,
        }


if __name__ == "__main__":
    run_worker(Callers)
