"""From keys to groups: which of many groups a key belongs to.

    group = node.group(phx.group_of(key, config.group_ids))

The function never changes: what is stored under it stays where it is. In other languages it is
three lines around a BLAKE2b; docs/reference/keys.md has it in words, with test vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from phx.types import GROUP_ID_MAX

__all__ = ["group_of"]

_WORD = (1 << 64) - 1
_LCG = 2862933555777941757


def group_of(key: str | bytes, groups: int | Sequence[int]) -> int:
    """The group of a key.

    Guarantee: depends on nothing but its arguments, on every machine and in every version of phx.
    Keys spread evenly. With one more group at the end, 1 of n + 1 keys moves, to the new group, and
    no other does.

    Args:
        key: text is taken as its UTF-8 bytes, so "a" and b"a" belong together.
        groups: how many (ids from 0), or their ids, in an order that must be the same for all who
            ask: ``Config.group_ids`` is. New ones go at the end, and none is taken away.

    Raises:
        ValueError: no groups, or more than there are ids; text that is no Unicode.

    Source: Lamping, Veach, A Fast, Minimal Memory, Consistent Hash Algorithm (2014), in integers.
    """
    count = groups if isinstance(groups, int) else len(groups)
    if not 1 <= count <= GROUP_ID_MAX + 1:
        raise ValueError(f"groups are 1 .. {GROUP_ID_MAX + 1}, not {count}")
    raw = key.encode() if isinstance(key, str) else key
    state = int.from_bytes(blake2b(raw, digest_size=8).digest(), "little")
    at, following = 0, 0
    while following < count:
        at = following
        state = (state * _LCG + 1) & _WORD
        following = ((at + 1) << 31) // ((state >> 33) + 1)
    return at if isinstance(groups, int) else groups[at]
