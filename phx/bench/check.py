"""Is everything that was acknowledged in every node's log, once, unchanged?"""

from __future__ import annotations

import asyncio
from typing import Any

from phx.bench.values import SUM_MASK

__all__ = ["check", "read_back"]

SUBSET_MAX = 12  # unknown outcomes whose every combination is tried
BREATHE_EVERY = 5000  # values between two turns of the event loop


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
