"""Clients of ``phx bench --reads``: they read what the groups' machines answer, and write nothing.

A read counts when its answer is there. Nothing of it stands in a log, so there is nothing to read
back: what is counted for the check of a row is zero, and every log is to hold no more than before.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from phx import errors
from phx.bench.load import Load, Tallies

__all__ = ["ReadLoad"]


class ReadLoad(Load):
    """Clients that read, with `batch` queries per call.

    Args:
        consistency: of every read.
        batch: 0: one awaited `read` per query; otherwise `read_many` of that many.
    """

    def __init__(self, node: Any, consistency: str, batch: int, timeout_s: float):
        super().__init__(node, 16, batch, timeout_s)
        self._how = {"consistency": consistency, "timeout": timeout_s}

    async def result(self) -> dict[str, Any]:
        found = await super().result()
        return {**found, "count": dict.fromkeys(found["count"], 0)}

    async def _single(self, group: int, tally: Tallies) -> None:
        read, how = self._node.group(group).read, self._how
        clock, latency = time.perf_counter_ns, self._latencies.append
        while not self._stopping:
            began = clock()
            try:
                await read(None, **how)
            except errors.PhxError as error:
                await self._missed(error, 1)
                continue
            latency(clock() - began)
            tally.count += 1

    async def _many(self, group: int, tally: Tallies) -> None:
        read_many, how, batch = self._node.group(group).read_many, self._how, self._batch
        clock, latency, queries = time.perf_counter_ns, self._latencies.append, [None] * batch
        while not self._stopping:
            began = clock()
            try:
                await read_many(queries, **how)
            except errors.PhxError as error:
                await self._missed(error, batch)
                continue
            latency(clock() - began)
            tally.count += batch

    async def _missed(self, error: errors.PhxError, count: int) -> None:
        self.last_error = repr(error)
        self.rejected += count
        await asyncio.sleep(0.01)
