"""A replicated counter: the smallest machine that is of use."""

from __future__ import annotations

from collections.abc import Sequence

from phx.machine import StateMachine
from phx.types import Entry

__all__ = ["Counter", "encode_add"]


def encode_add(amount: int = 1) -> bytes:
    """The command that adds `amount`, which may be negative. Result: the total afterwards."""
    return b"%d" % amount


class Counter(StateMachine):
    """Adds whole numbers of any size. A command that is no number changes nothing; result: None."""

    def __init__(self, group: int = 0) -> None:
        self.total = 0

    def apply(self, entry: Entry) -> int | None:
        try:
            self.total += int(entry.value)
        except ValueError:
            return None
        return self.total

    def apply_batch(self, entries: Sequence[Entry]) -> list[int | None]:
        apply = self.apply
        return [apply(entry) for entry in entries]

    def digest(self) -> bytes:
        return b"%d" % self.total
