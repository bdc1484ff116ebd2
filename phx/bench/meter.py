"""What a measured process notes about itself: counters, CPU time, memory, a sample a second."""

from __future__ import annotations

import asyncio
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from phx.testing.processes import now_us

__all__ = ["Meter", "histogram", "memory_bytes", "quantile_us"]

BUCKETS_PER_E = 200  # latency histogram: half a per cent wide
SAMPLE_S = 1.0
MANY_GROUPS = 1000  # with more, the status is asked for less often: it looks at every group
MANY_GROUPS_EVERY = 5
# of the store's figures, and those of checkpoints, those that only grow
CHECKPOINTS = ("taken", "failed", "bytes", "write_us")
STORE = ("commits", "settled_entries", "settled_bytes", "merges", "reads")


class Meter:
    """Measures between two times (now_us), in the thread of the event loop.

    Args:
        acknowledged: how many values were acknowledged up to now.
        notes_bytes: memory of the clients' notes, which grow and are not phx's.
        begin, end: called at these times.
    """

    def __init__(
        self,
        node: Any,
        acknowledged: Callable[[], int],
        notes_bytes: Callable[[], int],
        begin: Callable[[], None],
        end: Callable[[], None],
    ):
        self._node = node
        self._acknowledged, self._notes_bytes = acknowledged, notes_bytes
        self._on_begin, self._on_end = begin, end
        self._begin_us = self._end_us = 0
        self._cpu: dict[str, int] = {}
        self._counters: dict[str, int] = {}
        self._samples: list[tuple[float, int, int, int, int, int]] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self, begin_us: int, end_us: int) -> None:
        self._begin_us, self._end_us = begin_us, end_us
        self._at(begin_us, self._begin)
        self._at(end_us, self._end)

    def result(self) -> dict[str, Any]:
        """As JSON can carry it; samples in the order of row.Sample."""
        return {
            "cpu_ns": self._cpu["process"],
            "loop_cpu_ns": self._cpu["loop"],
            "counters": self._counters,
            "samples": self._samples,
        }

    def _at(self, at_us: int, action: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later((at_us - now_us()) / 1e6, action)

    def _begin(self) -> None:
        self._on_begin()
        self._counters = counters(self._node)
        self._cpu = {"process": cpu_ns(), "loop": time.thread_time_ns()}
        self._sample()

    def _end(self) -> None:
        self._on_end()
        if self._timer is not None:
            self._timer.cancel()
        self._note(whole=True)
        now = {"process": cpu_ns(), "loop": time.thread_time_ns()}
        self._cpu = {name: now[name] - self._cpu[name] for name in now}
        grown = counters(self._node)
        self._counters = {name: grown[name] - self._counters.get(name, 0) for name in grown}

    def _sample(self) -> None:
        self._note(whole=len(self._samples) % self._every() == 0)
        behind = (now_us() - self._begin_us) % int(SAMPLE_S * 1e6)
        self._timer = self._at(now_us() - behind + int(SAMPLE_S * 1e6), self._sample)

    def _every(self) -> int:
        return MANY_GROUPS_EVERY if len(self._node.groups) > MANY_GROUPS else 1

    def _note(self, whole: bool) -> None:
        at_s = (now_us() - self._begin_us) / 1e6
        done = self._acknowledged()
        lag = unsettled_bytes(self._node) if whole else self._samples[-1][4]
        resident, anonymous = memory_bytes()
        self._samples.append((at_s, done, resident, anonymous, lag, self._notes_bytes()))


def unsettled_bytes(node: Any) -> int:
    """Bytes of the journal that the store does not hold yet."""
    journal = node.status().journal
    return max(0, int(journal["written_lsn"]) - int(journal["floor_lsn"]))


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
    for name in CHECKPOINTS:
        yield f"checkpoints.{name}", int(status.checkpoints.get(name, 0))
    for name in STORE:
        yield f"store.{name}", int(status.store[name])


def cpu_ns() -> int:
    """CPU time of this process, all threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return int((usage.ru_utime + usage.ru_stime) * 1e9)


def memory_bytes() -> tuple[int, int]:
    """Resident memory of this process now, and what of it is no mapped file (as the store's is).

    Where neither can be had: twice the most that it has been.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            _, resident, files, *_ = (int(one) for one in file.read().split())
        page = os.sysconf("SC_PAGE_SIZE")
        return resident * page, (resident - files) * page
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return most, most


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
