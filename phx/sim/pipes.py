"""Connections of their own, over which checkpoints are fetched: streams of bytes that can be cut.

They go over the links of the world, as TCP would: in order, late where frames are lost, standing
still while a link swallows everything, cut when both ends know that they are apart, when a process
dies, or when an act says so. A flipped bit arrives: TCP's own checksum is weak.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from phx.sim.host import Host

__all__ = ["End", "Net", "Pipe", "Wires"]

PIECE_BYTES_MAX = 4096
STILL_US = 100_000
"""A link that swallows everything is looked at again."""
CUT_US = 500
"""What tells an end that the other one is gone takes so long."""


class Wires(Protocol):
    """What is needed of the world: its links."""

    def wire(self, source: int, dest: int, nbytes: int) -> int:
        """How long so many bytes take, in microseconds; WIRE_STILL: nothing goes through now,
        WIRE_CUT: they are apart, or one of them is down. Negative otherwise: so long, less
        WIRE_FLIPPED, and a bit flips."""


WIRE_CUT, WIRE_STILL, WIRE_FLIPPED = -1, -2, -1_000_000_000


class End(Protocol):
    """What stands at an end of a pipe."""

    def came(self, data: bytes) -> None:
        """The next bytes."""

    def over(self) -> None:
        """Nothing comes any more: the other end is gone, or has said all."""


class Pipe:
    """One connection, between the node that fetches and the one that provides.

    Attributes:
        nodes: of this side (0: that fetches) and of the other one.
        open: neither end has closed it.
    """

    def __init__(self, net: Net, number: int, hosts: tuple[Host, Host]) -> None:
        self.net = net
        self.number = number
        self.hosts = hosts
        self.nodes = (hosts[0].node, hosts[1].node)
        self.open = True
        self.ends: list[End | None] = [None, None]
        self._lives = (hosts[0].life, hosts[1].life)
        self._queues: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self._pumping = [False, False]
        self._free_us = [0, 0]

    def hold_until(self, at_us: int) -> None:
        """Nothing of what is sent arrives before that."""
        self._free_us = [at_us, at_us]

    def send(self, side: int, data: bytes) -> None:
        """From that side to the other one, in pieces of any size."""
        at = 0
        while at < len(data):
            size = 1 + self.net.chance.randrange(PIECE_BYTES_MAX)
            self._queues[side].append(data[at : at + size])
            at += size
        self._pump(side)

    def finish(self, side: int) -> None:
        """That side has said all: the other one hears of it behind the last byte."""
        self._queues[side].append(b"")
        self._pump(side)

    def cut(self) -> None:
        """It breaks. Both ends hear of it that are still there."""
        if self.open:
            self.open = False
            self.net.pipes.pop(self.number, None)
            for side in (0, 1):
                if self._alive(side):
                    self.hosts[side].soon(CUT_US, self._over(side))

    def _over(self, side: int) -> Callable[[], None]:
        def tell() -> None:
            end, self.ends[side] = self.ends[side], None
            if end is not None:
                end.over()

        return tell

    def _alive(self, side: int) -> bool:
        host = self.hosts[side]
        return host.up and host.life == self._lives[side]

    def _pump(self, side: int) -> None:
        queue = self._queues[side]
        while queue and self.open and not self._pumping[side]:
            host, other = self.hosts[side], self.hosts[1 - side]
            data = queue[0]
            took_us = self.net.wires.wire(host.node, other.node, len(data))
            if took_us == WIRE_CUT or not self._alive(1 - side):
                self.cut()
                return
            if took_us == WIRE_STILL:
                self._pumping[side] = True
                host.soon(STILL_US, lambda: self._again(side))
                return
            queue.popleft()
            if took_us < 0:
                took_us -= WIRE_FLIPPED
                data = self._flipped(data)
            now_us = host.now_us
            at_us = max(self._free_us[side], now_us + took_us)
            self._free_us[side] = at_us
            other.soon(at_us - now_us, self._arrival(1 - side, data))

    def _again(self, side: int) -> None:
        self._pumping[side] = False
        self._pump(side)

    def _flipped(self, data: bytes) -> bytes:
        if not data:
            return data
        spoilt = bytearray(data)
        spoilt[self.net.chance.randrange(len(data))] ^= 1 << self.net.chance.randrange(8)
        return bytes(spoilt)

    def _arrival(self, side: int, data: bytes) -> Callable[[], None]:
        def arrive() -> None:
            end = self.ends[side]
            if not self.open or end is None:
                return
            if data:
                end.came(data)
            else:
                self.cut()

        return arrive


class Net:
    """All such connections of a world.

    Attributes:
        pipes: that are open.
    """

    def __init__(self, wires: Wires, seed: int) -> None:
        self.wires = wires
        self.chance = Random(f"pipes {seed}")
        self.pipes: dict[int, Pipe] = {}
        self._number = 0

    def dial(self, fetcher: Host, provider: Host, end: End) -> Pipe:
        """A new connection; `end` is told when there is none after all."""
        self._number += 1
        pipe = Pipe(self, self._number, (fetcher, provider))
        pipe.ends[0] = end
        self.pipes[pipe.number] = pipe
        took_us = self.wires.wire(fetcher.node, provider.node, 0)
        if took_us in (WIRE_CUT, WIRE_STILL):
            pipe.cut()
        else:
            if took_us < 0:
                took_us -= WIRE_FLIPPED
            pipe.hold_until(fetcher.now_us + took_us)
            provider.soon(took_us, lambda: self._reached(pipe))
        return pipe

    def _reached(self, pipe: Pipe) -> None:
        if pipe.open:
            pipe.hosts[1].provider.accept(pipe)

    def died(self, node: int) -> None:
        """Its process is gone."""
        for pipe in list(self.pipes.values()):
            if node in pipe.nodes:
                pipe.cut()

    def cut(self, a: int, b: int) -> None:
        """Whatever is open between two nodes breaks."""
        for pipe in list(self.pipes.values()):
            if set(pipe.nodes) == {a, b}:
                pipe.cut()
