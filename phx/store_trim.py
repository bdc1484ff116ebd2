"""What a store forgets: floors of groups, and the chunks that lie below them.

Guarantees. A floor never goes back, and it is durable before anything below it is removed: a crash
leaves chunks that nobody asks for, and `next_step` finds them again. What lies at or above the
floor is not touched. Every step is one transaction of bounded size, so whoever has other work for
the store does it between two of them.

LMDB uses the pages that a transaction has freed again, two transactions later and as long as no
reader holds an older snapshot; its file does not shrink, and does not grow beyond what was kept at
once. A read of this package holds a snapshot for one call only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from phx._core.chunk_index import ChunkIndex
from phx._core.settler import Merger

__all__ = ["Floor", "TrimStats", "TrimStep", "joined", "next_step", "stage_floors", "trim_stats"]

DEAD_CHUNKS_MAX = 8
"""Removed in one transaction: at most 64 MiB, whose pages make a list of 128 KiB, but for single
large values."""
THIN_CHUNKS_MAX = 4
"""Joined in one transaction: LMDB reads all of them, at most 32 MiB but for single large values."""


@dataclass(frozen=True, slots=True)
class Floor:
    """Where a group's settled log begins and ends.

    Attributes:
        kept_from: lowest instance that is kept, from 1 on; settled_through + 1 when none is.
        settled_through: last instance that the store answers for: it is here, or was.
    """

    kept_from: int
    settled_through: int


@dataclass(frozen=True, slots=True)
class TrimStats:
    """What raising floors did.

    Attributes:
        groups: whose floor is higher now.
        entries: that were kept before and are not now.
        passed: instances that count as settled now, though the store never had them.
        dead_chunks, dead_bytes: of which nothing is kept, waiting to be removed.
        seconds: the whole call.
    """

    groups: int
    entries: int
    passed: int
    dead_chunks: int
    dead_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TrimStep:
    """One transaction's worth of trimming: ids of chunks to remove, or to join in a new one."""

    dead: list[int]
    thin: list[int]


def stage_floors(index: ChunkIndex, floors: Mapping[int, Floor]) -> int:
    """Stage the greater of what is and what is wanted; how many groups that changes.

    Raises ValueError, with some of it staged: see `ChunkIndex.stage_floor`.
    """
    return sum(
        index.stage_floor(group, floor.kept_from, floor.settled_through)
        for group, floor in floors.items()
    )


def next_step(index: ChunkIndex) -> TrimStep | None:
    """The next transaction that frees room; None: nothing is worth one.

    Chunks of which nothing is kept go first: that costs next to nothing.
    """
    if dead := index.dead_chunks(DEAD_CHUNKS_MAX):
        return TrimStep(dead, [])
    if thin := index.thin_chunks(THIN_CHUNKS_MAX):
        return TrimStep([], thin)
    return None


def joined(
    index: ChunkIndex, chunks: list[int], value_of: Callable[[int], bytes | memoryview]
) -> tuple[Merger, tuple[int, memoryview, memoryview]]:
    """One chunk with all that is kept of these; good as long as the merger. Raises ChunkDamage."""
    merger = Merger(index)
    for chunk in chunks:
        merger.add(chunk, value_of(chunk))
    return merger, merger.merged()


def trim_stats(
    groups: int, before: Mapping[int, tuple[int, int]], index: ChunkIndex, seconds: float
) -> TrimStats:
    """Reckon what became of `before`: bounds of the groups whose floors were to be raised."""
    entries = passed = 0
    for group, (old_from, old_through) in before.items():
        kept_from, through = index.bounds(group)
        entries += min(kept_from, old_through + 1) - old_from
        passed += through - old_through
    dead_bytes = [chunk[1] for chunk in index.chunk_list() if not chunk[4]]
    return TrimStats(groups, entries, passed, len(dead_bytes), sum(dead_bytes), seconds)
