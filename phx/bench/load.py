"""The clients of ``phx bench``, as they run inside a measured process.

While it is measured a client keeps the serial numbers of the values that were acknowledged, nothing
else. After the run the values are made again from their numbers, and for every group the number and
the sum of the hashes of what was acknowledged is compared with what every node reads back from its
log (journal and store), duplicates left out, and with the number of values that its machine
applied; the chained checksums of the replicas are compared, too. (`hash` of bytes is a keyed 64-bit
hash; the parent fixes its key for all processes by PYTHONHASHSEED.)
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

from phx import errors
from phx.bench.meter import histogram
from phx.bench.values import SUM_MASK, Values

__all__ = ["Load", "Tallies"]

GC_THRESHOLD = (50_000, 20, 100)  # thousands of values in flight are no garbage
STOP_WITHIN_S = 0.5
BREATHE_EVERY = 5000  # values between two turns of the event loop, after the run


@dataclass
class Tallies:
    """What the clients of one group know."""

    count: int = 0  # acknowledged values
    serials: array[int] = field(default_factory=lambda: array("Q"))  # of acknowledged calls
    single: array[int] = field(default_factory=lambda: array("Q"))  # of values of failed calls
    unknown: list[int] = field(default_factory=list)  # hashes
    measured_from: int = 0  # count when the measurement began
    measured: int = 0


class Load:
    """Clients for some groups, with `batch` values per call.

    Args:
        batch: 0: one awaited `propose` per value; otherwise `propose_many` of that many values.
        every_s: between two calls of a client; 0: the next when one is done. Latency then counts
            from when a call was due, if the client was late for it.
    """

    def __init__(
        self, node: Any, value_bytes: int, batch: int, timeout_s: float, every_s: float = 0
    ):
        self._node = node
        self._values = Values(value_bytes, random.SystemRandom().getrandbits(60))
        self._stream = self._values.stream()
        self._batch = batch
        self._timeout_s = timeout_s
        self._every_ns = int(every_s * 1e9)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._latencies = array("Q")
        self._calls = 0  # of these, within the measured time
        self.tallies: dict[int, Tallies] = {}
        self.rejected = 0
        self.last_error = ""

    @property
    def acknowledged(self) -> int:
        return sum(tally.count for tally in self.tallies.values())

    @property
    def notes_bytes(self) -> int:
        """Memory of what the clients keep about their values."""
        arrays = [self._latencies]
        for tally in self.tallies.values():
            arrays += [tally.serials, tally.single]
        return sum(len(one) * one.itemsize for one in arrays)

    def start(self, callers: dict[int, int]) -> None:
        """Run `callers[group]` clients in each group."""
        gc.freeze()  # what is there stays: the collector need not walk over it again and again
        gc.set_threshold(*GC_THRESHOLD)
        for group, count in callers.items():
            tally = self.tallies[group] = Tallies()
            for _ in range(count):
                if self._every_ns:
                    client = self._paced(group, tally)
                elif self._batch:
                    client = self._many(group, tally)
                else:
                    client = self._single(group, tally)
                self._tasks.append(asyncio.create_task(client))

    def begin(self) -> None:
        """The measured time begins."""
        for tally in self.tallies.values():
            tally.measured_from = tally.count
        del self._latencies[:]

    def end(self) -> None:
        """The measured time is over."""
        for tally in self.tallies.values():
            tally.measured = tally.count - tally.measured_from
        self._calls = len(self._latencies)

    async def stop(self) -> None:
        """Propose nothing more, and wait for what is in flight."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def result(self) -> dict[str, Any]:
        """What was measured, and what was acknowledged, as JSON can carry it."""
        return {
            "measured": {group: tally.measured for group, tally in self.tallies.items()},
            "count": {group: tally.count for group, tally in self.tallies.items()},
            "sum": {group: await self._sum(tally) for group, tally in self.tallies.items()},
            "unknown": {group: tally.unknown for group, tally in self.tallies.items()},
            "rejected": self.rejected,
            "last_error": self.last_error,
            "latency_ns": histogram(self._latencies[: self._calls]),
        }

    async def _sum(self, tally: Tallies) -> int:
        """Sum of the hashes of everything that was acknowledged."""
        total = since = 0
        for serials, count in ((tally.serials, self._batch or 1), (tally.single, 1)):
            for serial in serials:
                total += sum(map(hash, self._values.values(serial, count)))
                since += count
                if since > BREATHE_EVERY:
                    since = 0
                    await asyncio.sleep(0)
        return total & SUM_MASK

    # --- clients

    async def _single(self, group: int, tally: Tallies) -> None:
        propose, stream, timeout_s = self._node.group(group).propose, self._stream, self._timeout_s
        clock, note, latency = time.perf_counter_ns, tally.serials.append, self._latencies.append
        while not self._stopping:
            serial, value = next(stream)
            began = clock()
            try:
                await propose(value, timeout=timeout_s)
            except errors.PhxError as error:
                await self._failed(error, tally, serial, [value])
                continue
            latency(clock() - began)
            note(serial)
            tally.count += 1

    async def _many(self, group: int, tally: Tallies) -> None:
        propose_many, take = self._node.group(group).propose_many, self._values.take
        clock, batch, timeout_s = time.perf_counter_ns, self._batch, self._timeout_s
        note, latency = tally.serials.append, self._latencies.append
        while not self._stopping:
            serial, values = take(batch)
            began = clock()
            try:
                await propose_many(values, timeout=timeout_s)
            except errors.PhxError as error:
                await self._failed(error, tally, serial, values)
                continue
            latency(clock() - began)
            note(serial)
            tally.count += batch

    async def _paced(self, group: int, tally: Tallies) -> None:
        """A call every so often, the first after a part of that; behind time, one after another."""
        door, batch, every_ns = self._node.group(group), self._batch, self._every_ns
        clock, timeout_s = time.perf_counter_ns, self._timeout_s
        due = clock() + int(every_ns * random.random())
        while not self._stopping:
            began = due
            while (early := due - clock()) > 0 and not self._stopping:
                await asyncio.sleep(min(early / 1e9, STOP_WITHIN_S))
                began = clock()  # how late a timer is says nothing about phx
            due += every_ns
            serial, values = self._values.take(batch or 1)
            try:
                if batch:
                    await door.propose_many(values, timeout=timeout_s)
                else:
                    await door.propose(values[0], timeout=timeout_s)
            except errors.PhxError as error:
                await self._failed(error, tally, serial, values)
                continue
            self._latencies.append(clock() - began)
            tally.serials.append(serial)
            tally.count += len(values)

    async def _failed(
        self, error: errors.PhxError, tally: Tallies, serial: int, values: list[bytes]
    ) -> None:
        """A call failed: note what is known of each of its values, and pause."""
        self.last_error = repr(error)
        partly = isinstance(error, errors.PartlyDone)
        results = error.results if isinstance(error, errors.PartlyDone) else [error] * len(values)
        for offset, (value, result) in enumerate(zip(values, results, strict=True)):
            if partly and not isinstance(result, errors.PhxError):
                tally.single.append(serial + offset)
                tally.count += 1
            elif isinstance(result, errors.Rejected):
                self.rejected += 1
            else:
                tally.unknown.append(hash(value))
        await asyncio.sleep(0.01)
