"""The clients of ``phx bench``, as they run inside a measured process, and what they check.

Values are distinct slices of a block of random bytes. Clients keep, for every group, the number and
the sum of the hashes of the values that were acknowledged; the machine keeps the same over the
values that it applied. Both sums are equal on every node, or something was lost, doubled or
changed. (`hash` of bytes is a keyed 64-bit hash over all of them; the parent fixes its key for all
processes by PYTHONHASHSEED.)
"""

from __future__ import annotations

import asyncio
import math
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import phx
from phx import errors
from phx.cli.processes import now_us

SUM_MASK = (1 << 64) - 1
BLOCK_BYTES = 1 << 24
BUCKETS_PER_E = 200  # latency histogram: half a per cent wide


class Tally(phx.StateMachine):
    """A machine that keeps the number of applied values and the sum of their hashes, no more."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0

    def apply(self, entry: phx.Entry) -> None:
        self.apply_batch([entry])

    def apply_batch(self, entries: Sequence[phx.Entry]) -> list[None]:
        self.count += len(entries)
        self.sum += sum([hash(entry.value) for entry in entries])
        return [None] * len(entries)

    def digest(self) -> bytes:
        return b"%d %016x" % (self.count, self.sum & SUM_MASK)


class Values:
    """Distinct random values of `size` bytes: slices of a random block, never the same slice."""

    def __init__(self, size: int):
        self._size = size
        self._stride = size + 1
        self._pass = 0
        self._at = 0
        self._block = os.urandom(BLOCK_BYTES)

    def take(self, count: int) -> list[bytes]:
        """The next `count` values; count * (size + 1) must fit in a block."""
        end = self._at + count * self._stride
        if end > BLOCK_BYTES:
            self._next_pass()
            end = self._at + count * self._stride
        size, block = self._size, self._block
        values = [block[at : at + size] for at in range(self._at, end, self._stride)]
        self._at = end
        return values

    def one(self) -> bytes:
        at = self._at
        if at + self._stride > BLOCK_BYTES:
            self._next_pass()
            at = self._at
        self._at = at + self._stride
        return self._block[at : at + self._size]

    def _next_pass(self) -> None:
        """Shift by one byte; after a stride's worth of shifts take a new block."""
        self._pass += 1
        if self._pass >= self._stride:
            self._pass = 0
            self._block = os.urandom(BLOCK_BYTES)
        self._at = self._pass


@dataclass
class Tallies:
    """What the clients of one group know."""

    count: int = 0
    sum: int = 0
    unknown: list[int] = field(default_factory=list)
    measured_from: int = 0  # count when the measurement began
    measured: int = 0


class Load:
    """Clients for some groups: `callers` of them in each, with `batch` values per call.

    batch 0: one awaited `propose` per value; otherwise `propose_many` of that many values.
    """

    def __init__(self, node: Any, value_bytes: int, batch: int, timeout_s: float):
        self._node = node
        self._values = Values(value_bytes)
        self._batch = batch
        self._timeout_s = timeout_s
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._latencies: list[int] = []
        self._frozen: list[int] = []
        self._cpu_ns = 0
        self._counters: dict[str, int] = {}
        self.tallies: dict[int, Tallies] = {}
        self.rejected = 0
        self.last_error = ""

    @property
    def acknowledged(self) -> int:
        return sum(tally.count for tally in self.tallies.values())

    def start(self, callers: dict[int, int], measure_us: tuple[int, int]) -> None:
        """Run `callers[group]` clients in each group; measure between two times (now_us)."""
        loop = asyncio.get_running_loop()
        for group, count in callers.items():
            tally = self.tallies[group] = Tallies()
            for _ in range(count):
                client = self._many(group, tally) if self._batch else self._single(group, tally)
                self._tasks.append(asyncio.create_task(client))
        begin, end = ((at - now_us()) / 1e6 for at in measure_us)
        loop.call_later(begin, self._begin)
        loop.call_later(end, self._end)

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    def result(self) -> dict[str, Any]:
        """What was measured, as JSON can carry it."""
        return {
            "measured": {group: tally.measured for group, tally in self.tallies.items()},
            "count": {group: tally.count for group, tally in self.tallies.items()},
            "sum": {group: tally.sum & SUM_MASK for group, tally in self.tallies.items()},
            "unknown": {group: tally.unknown for group, tally in self.tallies.items()},
            "rejected": self.rejected,
            "last_error": self.last_error,
            "latency_ns": histogram(self._frozen),
            "cpu_ns": self._cpu_ns,
            "counters": self._counters,
        }

    async def _single(self, group: int, tally: Tallies) -> None:
        propose, one, timeout_s = self._node.group(group).propose, self._values.one, self._timeout_s
        clock = time.perf_counter_ns
        while not self._stopping:
            value = one()
            began = clock()
            try:
                await propose(value, timeout=timeout_s)
            except errors.PhxError as error:
                await self._failed(error, tally, [value])
                continue
            self._latencies.append(clock() - began)
            tally.count += 1
            tally.sum += hash(value)

    async def _many(self, group: int, tally: Tallies) -> None:
        propose_many, take = self._node.group(group).propose_many, self._values.take
        clock, batch, timeout_s = time.perf_counter_ns, self._batch, self._timeout_s
        while not self._stopping:
            values = take(batch)
            began = clock()
            try:
                await propose_many(values, timeout=timeout_s)
            except errors.PartlyDone as error:
                await self._partly(error, tally, values)
                continue
            except errors.PhxError as error:
                await self._failed(error, tally, values)
                continue
            self._latencies.append(clock() - began)
            tally.count += batch
            tally.sum += sum([hash(value) for value in values])

    async def _partly(self, error: errors.PartlyDone, tally: Tallies, values: list[bytes]) -> None:
        for value, result in zip(values, error.results, strict=True):
            if isinstance(result, errors.PhxError):
                await self._failed(result, tally, [value])
            else:
                tally.count += 1
                tally.sum += hash(value)

    async def _failed(self, error: errors.PhxError, tally: Tallies, values: list[bytes]) -> None:
        self.last_error = repr(error)
        if isinstance(error, errors.Rejected):
            self.rejected += len(values)
        else:
            tally.unknown += [hash(value) for value in values]
        await asyncio.sleep(0.01)

    def _begin(self) -> None:
        for tally in self.tallies.values():
            tally.measured_from = tally.count
        self._latencies.clear()
        self._counters = counters(self._node)
        self._cpu_ns = cpu_ns()

    def _end(self) -> None:
        self._cpu_ns = cpu_ns() - self._cpu_ns
        now = counters(self._node)
        self._counters = {name: now[name] - self._counters.get(name, 0) for name in now}
        for tally in self.tallies.values():
            tally.measured = tally.count - tally.measured_from
        self._frozen, self._latencies = self._latencies, []


def counters(node: Any) -> dict[str, int]:
    """Every number that only grows in the node's status, by a dotted name."""
    status = node.status()
    return {
        f"{part}.{name}": value
        for part in ("cpu_ns", "counters", "journal", "applier")
        for name, value in getattr(status, part).items()
        if isinstance(value, int)
    }


def cpu_ns() -> int:
    """CPU time of this process, all threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


def histogram(latencies_ns: list[int]) -> dict[int, int]:
    """Count per bucket; bucket b holds latencies around exp(b / BUCKETS_PER_E) ns."""
    buckets: dict[int, int] = {}
    for one in latencies_ns:
        bucket = round(math.log(max(one, 1)) * BUCKETS_PER_E)
        buckets[bucket] = buckets.get(bucket, 0) + 1
    return buckets


def quantile_us(buckets: dict[int, int], q: float) -> float:
    """The q-quantile of a histogram, in microseconds; 0 when it is empty."""
    left = q * sum(buckets.values())
    for bucket in sorted(buckets):
        left -= buckets[bucket]
        if left <= 0:
            return math.exp(bucket / BUCKETS_PER_E) / 1000
    return 0.0
