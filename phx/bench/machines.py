"""What the groups of a bench run: machines that do nothing, little, or much."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import copy

from phx.machine import CopyView, Reader, StateMachine, Writer
from phx.types import Entry

__all__ = ["MACHINES", "Put", "Slow", "Tally", "Waits"]

SOME = 256  # entries written at once
KEYS = 1024  # of a dictionary, so that its size has an end
SLOW_NS = 20_000
WAITS_S = 0.000_2


class Tally(StateMachine):
    """A machine that counts what it applies, no more: so the figures are phx's own."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, entry: Entry) -> None:
        self.count += 1

    def query(self, query: object) -> int:
        return self.count

    def apply_batch(self, entries: Sequence[Entry]) -> list[None]:
        self.count += len(entries)
        return [None] * len(entries)

    def digest(self) -> bytes:
        return b"%d" % self.count

    def freeze(self) -> CopyView:
        return CopyView(copy(self))

    def snapshot(self, writer: Writer) -> None:
        writer.write(b"%d\n" % self.count)

    def restore(self, reader: Reader) -> None:
        raise NotImplementedError("no measured node is opened again")


class Put(Tally):
    """Puts every value into a dictionary, under one of 1,024 keys that its first bytes say."""

    def __init__(self) -> None:
        super().__init__()
        self.items: dict[int, bytes] = {}

    def apply(self, entry: Entry) -> None:
        value = entry.value
        self.items[(value[0] | value[1] << 8) % KEYS] = value
        self.count += 1

    def apply_batch(self, entries: Sequence[Entry]) -> list[None]:
        items = self.items
        for entry in entries:
            value = entry.value
            items[(value[0] | value[1] << 8) % KEYS] = value
        self.count += len(entries)
        return [None] * len(entries)

    def freeze(self) -> CopyView:
        frozen = copy(self)
        frozen.items = dict(self.items)
        return CopyView(frozen)

    def snapshot(self, writer: Writer) -> None:
        # As phx.machines.KeyValue does it.
        super().snapshot(writer)
        lines: list[bytes] = []
        for number, key in enumerate(sorted(self.items), 1):
            value = self.items[key]
            lines.append(b"%d %d\n%b" % (key, len(value), value))
            if number % SOME == 0:
                writer.write(b"".join(lines))
                lines.clear()
        writer.write(b"".join(lines))

    def digest(self) -> bytes:
        return b"%d %x" % (self.count, hash(tuple(sorted(self.items.items()))) & (1 << 64) - 1)


class Slow(Tally):
    """Computes for 20 microseconds per value, one value after another, with the GIL."""

    def apply(self, entry: Entry) -> None:
        until = time.perf_counter_ns() + SLOW_NS
        while time.perf_counter_ns() < until:
            pass
        self.count += 1

    apply_batch = StateMachine.apply_batch  # type: ignore[assignment]


class Waits(Tally):
    """Sleeps for 200 microseconds per value: slow, and leaves the processor to others."""

    def apply_batch(self, entries: Sequence[Entry]) -> list[None]:
        time.sleep(WAITS_S * len(entries))
        return super().apply_batch(entries)


MACHINES: dict[str, Callable[[], Tally]] = {
    "tally": Tally,
    "dict": Put,
    "slow": Slow,
    "waits": Waits,
}
