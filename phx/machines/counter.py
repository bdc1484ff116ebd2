"""A replicated counter: the smallest machine that is of use."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import ClassVar

from phx.errors import Damaged
from phx.machine import CopyView, Reader, StateMachine, Writer
from phx.types import Entry

__all__ = ["Counter", "encode_add"]

HEAD = b"phx counter 1 "


def encode_add(amount: int = 1) -> bytes:
    """The command that adds `amount`, which may be negative. Result: the total afterwards."""
    return b"%d" % amount


class Counter(StateMachine):
    """Adds whole numbers of any size. A command that is no number changes nothing; result: None."""

    digest_cheap: ClassVar[bool] = True

    def __init__(self, group: int = 0) -> None:
        self.total = 0

    def apply(self, entry: Entry) -> int | None:
        try:
            self.total += int(entry.value)
        except ValueError:
            return None
        return self.total

    def query(self, query: object = None) -> int:
        """The total, whatever is asked."""
        return self.total

    def apply_batch(self, entries: Sequence[Entry]) -> list[int | None]:
        apply = self.apply
        return [apply(entry) for entry in entries]

    def digest(self) -> bytes:
        return b"%d" % self.total

    def freeze(self) -> CopyView:
        return CopyView(copy(self))

    def snapshot(self, writer: Writer) -> None:
        # Hexadecimal: Python limits how long a decimal number may be.
        writer.write(HEAD + b"%x\n" % self.total)

    def restore(self, reader: Reader) -> None:
        """Raises Damaged for what is no snapshot of a counter."""
        text = b"".join(iter(lambda: reader.read(1 << 16), b""))
        try:
            total = int(text[len(HEAD) :], 16)
        except ValueError:
            raise Damaged("no snapshot of a counter") from None
        if text != HEAD + b"%x\n" % total:
            raise Damaged("no snapshot of a counter")
        self.total = total
