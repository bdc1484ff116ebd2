"""Histories made by hand, for the tests of the invariants: what a watch is told of its nodes."""

import struct
from collections.abc import Callable

from phx.sim.watch_door import WatchDoor
from phx.sim.wire_text import (
    ACCEPT,
    PROMISE,
    RECORD_HEADER,
    Run,
    align8,
    ballot,
    batch,
    encode,
)  # fmt: skip

B1, B2, B3 = ballot(1, 1), ballot(1, 2), ballot(2, 3)


def record(kind: int, group: int, index: int, number: int, body: bytes = b"") -> bytes:
    head = RECORD_HEADER.pack(0, len(body), kind, 0, 0, group, index, number)
    return (head + body).ljust(align8(len(head) + len(body)), b"\0")


def promise(number: int, group: int = 0) -> bytes:
    return record(PROMISE, group, 0, number)


def accept(instance: int, number: int, body: bytes, group: int = 0) -> bytes:
    return record(ACCEPT, group, instance, number, body)


def accept_message(instance: int, number: int, body: bytes, watermark: int = 0) -> bytes:
    return encode(
        "Accept", 0, number, body, instance=instance, first=1, watermark=watermark,
        nbytes=len(body),
    )  # fmt: skip


def reported(instance: int, number: int, body: bytes, flags: int = 0) -> bytes:
    head = struct.pack("<QQII", instance, number, len(body), flags)
    return (head + body).ljust(align8(len(head) + len(body)), b"\0")


class History:
    """Three nodes, two groups; every node is up and has written nothing."""

    def __init__(self) -> None:
        self.watch = WatchDoor(3, 2)
        self.at = {1: 1 << 20, 2: 1 << 20, 3: 1 << 20}
        self.log: dict[int, list[tuple[int, bytes]]] = {1: [], 2: [], 3: []}
        for node in (1, 2, 3):
            self.watch.start(node)
        self.promised: dict[tuple[int, int], int] = {}
        self.sequence = 0

    def body(self, text: bytes = b"x", node: int = 1, group: int = 0, epoch: int = 7) -> bytes:
        self.sequence += 1
        self.value = self.watch.propose(node, group, self.sequence, text)
        return batch([Run(node, 1, 1, self.sequence, [self.value])], epoch, 99)

    def write(self, node: int, *records: bytes, sync: bool = True) -> None:
        for one in records:
            _, _, kind, _, _, group, _, number = RECORD_HEADER.unpack_from(one)
            if kind in (PROMISE, ACCEPT) and number > self.promised.get((node, group), 0):
                self.promised[node, group] = number
                self.watch.spoil(node, group, promised=number)
            self.log[node].append((self.at[node], one))
            self.at[node] = self.watch.emit(node, self.at[node], one)
        if sync:
            self.watch.durable(node, self.at[node])

    def decide(self, instance: int, body: bytes, number: int = B1, by: tuple[int, ...] = (1, 2)):
        for node in by:
            self.write(node, accept(instance, number, body))

    def restart(self, node: int, keep: Callable[[bytes], bool] = lambda _: True) -> None:
        self.watch.die(node)
        self.watch.start(node, [(lsn, one) for lsn, one in self.log[node] if keep(one)])


def lead(h: History, node: int, number: int, until_us: int) -> None:
    h.watch.spoil(node, 0, promised=number)
    h.watch.spoil_lead(node, 0, number, until_us)


Case = tuple[str, Callable[..., None]]
"""An invariant, and what happens: when all is well, and (`bad`) what breaks it."""


def check(invariant: str, history: Callable[..., None]) -> None:
    """The history is taken as it should be, and rejected as it should not."""
    kind = history.__annotations__["h"]
    good = kind()
    history(good, False)
    good.watch.full()
    assert good.watch.failure() is None
    bad = kind()
    history(bad, True)
    failure = bad.watch.failure()
    assert failure is not None, "nothing was noticed"
    assert failure[0] == invariant, failure
