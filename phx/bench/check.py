"""Is everything that was acknowledged in every node's log, once, unchanged?"""

from __future__ import annotations

import asyncio
from typing import Any

from phx.bench.values import SUM_MASK

__all__ = ["check", "read_back"]

SUBSET_MAX = 12  # unknown outcomes whose every combination is tried


async def read_back(group: Any, first: int, last: int) -> tuple[int, int]:
    """Number, and sum of hashes, of the distinct values in a group's log. In one go on another
    thread: a call of `entry` for each instance would be a change of threads for each."""

    def read() -> tuple[int, int]:
        seen: set[int] = set()
        for instance in range(first, last + 1):
            seen.update(hash(entry.value) for entry in group._door.entry(group.id, instance))
        return len(seen), sum(seen) & SUM_MASK

    return await asyncio.get_running_loop().run_in_executor(None, read)


def check(results: dict[int, Any], logs: dict[int, Any]) -> str:
    """Is each acknowledged value in every node's log, once, unchanged? "", or what is wrong.

    Values whose outcome is unknown may be there or not: the sums must fit for some choice of them.
    """
    wanted: dict[str, tuple[int, int]] = {}
    unknown: dict[str, list[int]] = {}
    for result in results.values():
        for group, count in result["count"].items():
            had_count, had_sum = wanted.get(group, (0, 0))
            wanted[group] = (had_count + count, had_sum + result["sum"][group])
            unknown.setdefault(group, []).extend(result["unknown"][group])
    for node, groups in logs.items():
        for group, (count, total) in groups.items():
            want_count, want_sum = wanted.get(group, (0, 0))
            extra = (count - want_count, (total - want_sum) & SUM_MASK)
            if not _explained(extra, unknown.get(group, [])):
                return f"node {node}, group {group}: the log does not hold what was acknowledged"
    return ""


def _explained(extra: tuple[int, int], unknown: list[int]) -> bool:
    """Is `extra` (count, sum of hashes) made of some of the unknown ones?"""
    if extra == (0, 0):
        return True
    if not 0 < extra[0] <= len(unknown):
        return False
    if extra == (len(unknown), sum(unknown) & SUM_MASK):
        return True
    reached = {(0, 0)}
    for one in unknown[:SUBSET_MAX]:
        reached |= {(count + 1, (total + one) & SUM_MASK) for count, total in reached}
    return extra in reached
