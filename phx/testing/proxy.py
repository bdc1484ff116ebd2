"""A TCP proxy on loopback that can go silent: packets vanish, and nobody is told.

A killed process resets its connections at once, which is kinder than most failures. A `Link`
forwards one address; held, it forwards neither bytes nor the end of a connection, and new
connections are taken by the kernel but lead nowhere – what a dead switch looks like. Released, it
delivers what was held, as TCP's retransmission would. It can be held in one direction only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

HEADER_BYTES = 32
SOURCE = slice(16, 20)
"""Of a frame's header: the node that sends it."""


class Link:
    """Forwards connections to ``127.0.0.1:port`` of `target` (looked up anew per connection)."""

    def __init__(self, target: Callable[[], int]):
        self._target = target
        self._server: asyncio.Server | None = None
        self._onward, self._back = asyncio.Event(), asyncio.Event()
        self._onward.set()
        self._back.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.delay_us = 0
        self.bytes_forwarded = 0

    @property
    def port(self) -> int:
        """The port to connect to; known once started."""
        assert self._server is not None, "not started"
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        self._server = await asyncio.start_server(self.forward, "127.0.0.1", 0)

    def hold(self, *, onward: bool = True, back: bool = True) -> None:
        """From now on nothing gets through, in either direction, and nobody notices.

        Args:
            onward: hold what goes to the target, and new connections.
            back: hold what comes from it.
        """
        if onward:
            self._onward.clear()
        if back:
            self._back.clear()

    def release(self) -> None:
        """Deliver what was held and go on."""
        self._onward.set()
        self._back.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports close their sockets in the next turn

    async def forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = b""
    ) -> None:
        """A connection that was taken, of which so much was read already, until it ends."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._onward.wait()
            onward, back = await asyncio.open_connection("127.0.0.1", self._target())
            self._writers.add(back)
            try:
                await asyncio.gather(
                    self._pump(reader, back, self._onward, said),
                    self._pump(onward, writer, self._back),
                )
            finally:
                self._writers.discard(back)
                back.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: asyncio.Event,
        said: bytes = b"",
    ) -> None:
        """One direction. The end of a connection, clean or not, ends both directions."""
        while True:
            data, said = said or await reader.read(1 << 16), b""
            await gate.wait()
            if self.delay_us:
                await asyncio.sleep(self.delay_us / 1e6)
                await gate.wait()
            if not data:
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
            self.bytes_forwarded += len(data)


class Mesh:
    """A door for every node, and behind it a link for each node that comes in.

    Whoever dials a node dials its door, so all can be told one address. Who it is says the header
    of the first frame (docs/design/wire.md). Nodes may come and go.

    Args:
        ports: where each node listens, by node.
    """

    def __init__(self, ports: Mapping[int, int]):
        self._targets: dict[int, int] = {}
        self._links: dict[tuple[int, int], Link] = {}
        self._doors: dict[int, asyncio.Server] = {}
        self._isolated: set[int] = set()
        self._callers: set[asyncio.Task[None]] = set()  # who have not said who they are
        for node, port in ports.items():
            self._connect(node, port)

    def _connect(self, node: int, port: int) -> None:
        for other, where in self._targets.items():
            self._links[node, other] = Link(lambda where=where: where)  # type: ignore[misc]
            self._links[other, node] = Link(lambda: port)
            if other in self._isolated:
                self._links[node, other].hold()
                self._links[other, node].hold()
        self._targets[node] = port

    async def start(self) -> None:
        for node in self._targets:
            await self._open(node)

    async def _open(self, node: int) -> None:
        async def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._came(node, reader, writer)

        self._doors[node] = await asyncio.start_server(come, "127.0.0.1", 0)

    async def add(self, node: int, port: int) -> None:
        """Another node listens there. What is said of isolated nodes holds for it, too."""
        self._connect(node, port)
        await self._open(node)

    async def remove(self, node: int) -> None:
        """Nobody is there any more, and nothing comes from it. Idempotent."""
        self._targets.pop(node, None)
        self._isolated.discard(node)
        if door := self._doors.pop(node, None):
            door.close()
        for pair in [pair for pair in self._links if node in pair]:
            await self._links.pop(pair).close()

    def port(self, node: int) -> int:
        """The door of a node; known once started."""
        return int(self._doors[node].sockets[0].getsockname()[1])

    def links(self, node: int) -> Iterable[Link]:
        """Every link from or to `node`."""
        return [link for pair, link in self._links.items() if node in pair]

    def between(self, source: int, dest: int) -> Iterable[tuple[Link, Link]]:
        """The link on which `source` dials `dest`, with the one the other way; none: one of them
        is not there any more."""
        if (source, dest) in self._links:
            yield self._links[source, dest], self._links[dest, source]

    def drop(self, source: int, dest: int) -> None:
        """Silently drop all from `source` to `dest`, whoever dialled; not what comes back."""
        for link, other in self.between(source, dest):
            link.hold(back=False)
            other.hold(onward=False)

    def delay(self, node: int, other: int, us: int) -> None:
        """Everything between two nodes takes so much longer, both ways; 0: no longer."""
        for pair in self.between(node, other):
            for link in pair:
                link.delay_us = us

    def cut(self, node: int, other: int) -> None:
        """Reset every connection between two nodes."""
        for pair in self.between(node, other):
            for link in pair:
                link.cut()

    def isolate(self, node: int) -> None:
        """Nothing from and to `node` gets through, and nobody is told. It is held, as TCP sends
        again what a network drops; a `cut` loses it."""
        self._isolated.add(node)
        for link in self.links(node):
            link.hold()

    def heal(self, node: int) -> None:
        """What was held from and to `node` is delivered, but for nodes that are isolated still."""
        self._isolated.discard(node)
        for pair, link in self._links.items():
            if node in pair and not self._isolated & set(pair):
                link.release()

    def heal_all(self) -> None:
        """No link is held or slow any more; what was held is delivered."""
        self._isolated.clear()
        for link in self._links.values():
            link.release()
            link.delay_us = 0

    async def close(self) -> None:
        for task in list(self._callers):
            task.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)
        for node in list(self._targets):
            await self.remove(node)

    async def _came(
        self, dest: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """To the link of whoever it is."""
        task = asyncio.current_task()
        assert task is not None
        self._callers.add(task)
        try:
            said = await reader.readexactly(HEADER_BYTES)
        except (OSError, EOFError, asyncio.CancelledError):
            writer.transport.abort()
            return
        finally:
            self._callers.discard(task)
        link = self._links.get((int.from_bytes(said[SOURCE], "little"), dest))
        if link is None:
            writer.transport.abort()
            return
        await link.forward(reader, writer, said)
