"""The clients of ``phx bench``, as they run inside a measured process, and how they are checked.

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
import math
import random
import resource
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import phx
from phx import errors
from phx.testing.processes import now_us

SUM_MASK = (1 << 64) - 1
BLOCK_BYTES = 1 << 24
GC_THRESHOLD = (50_000, 20, 100)  # thousands of values in flight are no garbage
BUCKETS_PER_E = 200  # latency histogram: half a per cent wide
STREAM_CHUNK = 1024
BREATHE_EVERY = 5000  # values between two turns of the event loop, after the run


class Tally(phx.StateMachine):
    """A machine that counts what it applies, no more: so the figures are phx's own."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, entry: phx.Entry) -> None:
        self.count += 1

    def apply_batch(self, entries: Sequence[phx.Entry]) -> list[None]:
        self.count += len(entries)
        return [None] * len(entries)

    def digest(self) -> bytes:
        return b"%d" % self.count


class Values:
    """Distinct random values of `size` bytes, by serial number: slices of random blocks.

    A pass goes through a block in steps of size + 1; the next pass begins one byte further; when
    all shifts are used up there is a new block. Serial numbers of a call never straddle a pass.
    """

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._stride = size + 1
        self._per_pass = (BLOCK_BYTES - size) // self._stride
        self._block_number = -1
        self._block = b""
        self.next = 0

    def take(self, count: int) -> tuple[int, list[bytes]]:
        """The next `count` values, at most a pass of them, and the serial number of the first."""
        left = self._per_pass - self.next % self._per_pass
        if count > left:
            self.next += left
        serial = self.next
        self.next += count
        return serial, self.values(serial, count)

    def stream(self) -> Iterator[tuple[int, bytes]]:
        """One value after another, each with its serial number."""
        while True:
            serial, values = self.take(min(STREAM_CHUNK, self._per_pass))
            yield from enumerate(values, serial)

    def values(self, serial: int, count: int) -> list[bytes]:
        """Values serial … serial + count - 1, which must be of one pass."""
        size, stride = self._size, self._stride
        number, step = divmod(serial, self._per_pass)
        block_number, shift = divmod(number, stride)
        if block_number != self._block_number:
            self._block = random.Random(self._seed + block_number).randbytes(BLOCK_BYTES)
            self._block_number = block_number
        block, at = self._block, step * stride + shift
        return [block[at : at + size] for at in range(at, at + count * stride, stride)]


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

    batch 0: one awaited `propose` per value; otherwise `propose_many` of that many values.
    """

    def __init__(self, node: Any, value_bytes: int, batch: int, timeout_s: float):
        self._node = node
        self._values = Values(value_bytes, random.SystemRandom().getrandbits(60))
        self._stream = self._values.stream()
        self._batch = batch
        self._timeout_s = timeout_s
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._latencies = array("Q")
        self._frozen = array("Q")
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
        gc.freeze()  # what is there stays: the collector need not walk over it again and again
        gc.set_threshold(*GC_THRESHOLD)
        for group, count in callers.items():
            tally = self.tallies[group] = Tallies()
            for _ in range(count):
                client = self._many(group, tally) if self._batch else self._single(group, tally)
                self._tasks.append(asyncio.create_task(client))
        begin, end = ((at - now_us()) / 1e6 for at in measure_us)
        loop.call_later(begin, self._begin)
        loop.call_later(end, self._end)

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
            "latency_ns": histogram(self._frozen),
            "cpu_ns": self._cpu_ns,
            "counters": self._counters,
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

    # --- the measured time

    def _begin(self) -> None:
        for tally in self.tallies.values():
            tally.measured_from = tally.count
        del self._latencies[:]
        self._counters = counters(self._node)
        self._cpu_ns = cpu_ns()

    def _end(self) -> None:
        self._cpu_ns = cpu_ns() - self._cpu_ns
        now = counters(self._node)
        self._counters = {name: now[name] - self._counters.get(name, 0) for name in now}
        for tally in self.tallies.values():
            tally.measured = tally.count - tally.measured_from
        self._frozen = self._latencies[:]


async def read_back(group: Any, first: int, last: int) -> tuple[int, int]:
    """Number, and sum of hashes, of the distinct values in a group's log."""
    seen: set[int] = set()
    since = 0
    for instance in range(first, last + 1):
        entries = await group.entry(instance)
        seen.update(hash(entry.value) for entry in entries)
        since += len(entries)
        if since > BREATHE_EVERY:
            since = 0
            await asyncio.sleep(0)
    return len(seen), sum(seen) & SUM_MASK


def counters(node: Any) -> dict[str, int]:
    """Every number that only grows in the node's status, by a dotted name."""
    return dict(numbers(node.status()))


def numbers(status: Any) -> Iterator[tuple[str, int]]:
    sent = sum(int(peer.detail.get("bytes_sent", 0)) for peer in status.peers.values())
    yield "wire.bytes_sent", sent
    for part in ("cpu_ns", "counters", "journal", "applier", "settle"):
        for name, value in getattr(status, part, {}).items():
            if isinstance(value, int) and not isinstance(value, bool):
                yield f"{part}.{name}", value


def cpu_ns() -> int:
    """CPU time of this process, all threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


def histogram(latencies_ns: Sequence[int]) -> dict[int, int]:
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
