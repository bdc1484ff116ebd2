"""The kinds of clients that a workload has. A new kind is a row of CLIENTS."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CLIENTS", "ClientKind"]


class ClientKind(NamedTuple):
    """What a client is like.

    weight: how often it is drawn.
    lists: share of operations on lists (append, get), the others on registers.
    reads: share of gets.
    batch: values submitted at once, at most.
    large: share of values that are not small; `huge`: of those, of the largest size.
    timeout_us, think_us: at least and at most.
    verify: it reads the key after an unknown outcome.
    """

    weight: float
    lists: float = 0.35
    reads: float = 0.3
    batch: int = 1
    large: float = 0.04
    huge: float = 0.1
    timeout_us: tuple[int, int] = (300_000, 4_000_000)
    think_us: tuple[int, int] = (50_000, 700_000)
    verify: bool = True


CLIENTS: dict[str, ClientKind] = {
    "session": ClientKind(4),
    "batcher": ClientKind(3, batch=12, think_us=(100_000, 1_500_000)),
    "impatient": ClientKind(1.5, timeout_us=(1_000, 200_000), verify=False),
    "appender": ClientKind(2, lists=1.0, reads=0.2, batch=3),
    "bulky": ClientKind(0.7, large=0.5, think_us=(200_000, 900_000)),
    "hasty": ClientKind(1, think_us=(1, 150_000)),
}
"""Kinds of clients, by name."""
