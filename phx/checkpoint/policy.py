"""When the groups of a node are due for a checkpoint. Knows no clock: it is told the time.

A group is due `interval_instances` or `interval_bytes` of log after its last checkpoint, or
`interval_us` after it if anything was applied since, whichever comes first; after one that failed
it is tried again, less and less often. The first interval of a group is shortened by its share, so
that a thousand groups do not begin together, nor do the members of one of them.

Positions in a group's log are a pair: an instance, and the bytes of the instances up to it since
some beginning that is the same as long as the node runs.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple
from zlib import crc32

from phx.types import NEVER

__all__ = ["ASK_NEVER", "At", "Policy"]

RETRY_S, RETRY_MAX_S = 10.0, 600.0
FIRST_S_MIN = 1.0


class At(NamedTuple):
    """Where to ask again: when the group has come to this instance, or to so many bytes."""

    instance: int
    log_bytes: int


ASK_NEVER = At(NEVER, NEVER)


@dataclass(slots=True)
class Record:
    """What is known of a group that has checkpoints, or will have."""

    last: int = 0  # frontier of the newest one; 0: none
    last_bytes: int = 0  # and where that is; 0: at the beginning
    first: bool = True  # nothing was taken or restored yet
    taken_s: float = -math.inf  # when it was taken, in this life
    failures: int = 0  # since then
    rings_s: float = math.inf  # the entry of the heap that counts


class Policy:
    """Says when. One thread at a time; times in seconds of one monotonic clock.

    Args:
        interval_instances, interval_bytes, interval_us: 0: not for that.
        cluster, node, members: what spreads the groups.
    """

    def __init__(
        self,
        *,
        interval_instances: int,
        interval_bytes: int,
        interval_us: int,
        cluster: int,
        node: int,
        members: Collection[int],
    ) -> None:
        self._every = interval_instances
        self._every_bytes = interval_bytes
        self._every_s = interval_us / 1e6
        self._cluster = cluster
        self._rank = sorted(members).index(node) / len(members)
        self._records: dict[int, Record] = {}
        self._heap: list[tuple[float, int]] = []

    def share(self, group: int) -> float:
        """Where in its interval the group stands at first, 0 .. 1."""
        return (crc32(b"%d %d" % (self._cluster, group)) / 2**32 + self._rank) % 1.0

    def last(self, group: int) -> int:
        """Frontier of the group's newest checkpoint; 0: it has none."""
        record = self._records.get(group)
        return record.last if record else 0

    def begins(self, group: int, frontier: int) -> At:
        """The group goes on from a checkpoint, 0: from none. Its bytes count from there. Where to
        ask again."""
        if frontier:
            record = self._of(group)
            record.last, record.first = frontier, False
        return At(frontier + 1, NEVER)  # whatever is applied first sets the timer

    def reached(self, group: int, applied: int, log_bytes: int, now_s: float) -> tuple[bool, At]:
        """The group has come to where `begins`, `taken` or this said to ask again: whether it is
        due, and where to ask next."""
        record = self._of(group)
        at = self._due_at(group, record)
        if applied >= at.instance or log_bytes >= at.log_bytes:
            return True, ASK_NEVER
        if self._every_s:
            wait_s = self._every_s
            if record.taken_s == -math.inf:
                wait_s = max(FIRST_S_MIN, wait_s * self.share(group))
            self._ring(group, record, now_s + wait_s)
        return False, at

    def taken(self, group: int, frontier: int, log_bytes: int, now_s: float) -> At:
        """A checkpoint is there, of this position. Where to ask again."""
        record = self._of(group)
        record.last, record.last_bytes, record.first = frontier, log_bytes, False
        record.taken_s, record.failures = now_s, 0
        return At(frontier + 1, NEVER)

    def failed(self, group: int, now_s: float) -> None:
        """It could not be taken: the group rings again."""
        record = self._of(group)
        record.failures += 1
        wait_s = min(RETRY_S * 2 ** (record.failures - 1), RETRY_MAX_S)
        self._ring(group, record, now_s + wait_s)

    def forget(self, group: int) -> None:
        """It is gone."""
        self._records.pop(group, None)
        self._heap = [one for one in self._heap if one[1] != group]
        heapify(self._heap)

    def next_s(self) -> float:
        """When the next group may ring; infinity: none will."""
        return self._heap[0][0] if self._heap else math.inf

    def ringing(self, now_s: float) -> list[int]:
        """The groups whose time has come. Whether anything was applied since is for the caller."""
        found = []
        while self._heap and self._heap[0][0] <= now_s:
            at_s, group = heappop(self._heap)
            record = self._records[group]
            if record.rings_s != at_s:
                continue  # an earlier one took its place
            record.rings_s = math.inf
            due_s = record.taken_s + self._every_s
            if now_s < due_s and not record.failures:
                self._ring(group, record, due_s)  # one was taken meanwhile
            else:
                found.append(group)
        return found

    def _of(self, group: int) -> Record:
        return self._records.setdefault(group, Record())

    def _due_at(self, group: int, record: Record) -> At:
        share = self.share(group) if record.first else 1.0

        def after(last: int, every: int) -> int:
            return last + max(1, int(every * share)) if every else NEVER

        return At(after(record.last, self._every), after(record.last_bytes, self._every_bytes))

    def _ring(self, group: int, record: Record, at_s: float) -> None:
        if at_s < record.rings_s:
            record.rings_s = at_s
            heappush(self._heap, (at_s, group))
