"""A TCP proxy on loopback that can go silent: packets vanish, and nobody is told.

A killed process resets its connections at once, which is kinder than most failures. A `Link`
forwards one address; held, it forwards neither bytes nor the end of a connection, and new
connections are taken by the kernel but lead nowhere – what a dead switch looks like. Released, it
delivers what was held, as TCP's retransmission would. It can be held in one direction only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable


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
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)

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

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
                    self._pump(reader, back, self._onward), self._pump(onward, writer, self._back)
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
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        """One direction. The end of a connection, clean or not, ends both directions."""
        while True:
            data = await reader.read(1 << 16)
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
    """A link for every ordered pair of nodes, so that whoever dials goes through the proxy."""

    def __init__(self, ports: dict[int, int]):
        self._links = {
            (source, dest): Link(lambda dest=dest: ports[dest])  # type: ignore[misc]
            for source in ports
            for dest in ports
            if source != dest
        }

    async def start(self) -> None:
        for link in self._links.values():
            await link.start()

    def port(self, source: int, dest: int) -> int:
        """The port at which `source` finds `dest`."""
        return self._links[source, dest].port

    def links(self, node: int) -> Iterable[Link]:
        """Every link from or to `node`."""
        return [link for pair, link in self._links.items() if node in pair]

    def drop(self, source: int, dest: int) -> None:
        """Silently drop all from `source` to `dest`, whoever dialled; not what comes back."""
        self._links[source, dest].hold(back=False)
        self._links[dest, source].hold(onward=False)

    def delay(self, node: int, other: int, us: int) -> None:
        """Everything between two nodes takes so much longer, both ways; 0: no longer."""
        self._links[node, other].delay_us = self._links[other, node].delay_us = us

    def cut(self, node: int, other: int) -> None:
        """Reset every connection between two nodes."""
        self._links[node, other].cut()
        self._links[other, node].cut()

    def isolate(self, node: int) -> None:
        """Silently drop everything from and to `node`."""
        for link in self.links(node):
            link.hold()

    def heal(self, node: int) -> None:
        for link in self.links(node):
            link.release()

    def heal_all(self) -> None:
        """No link is held or slow any more; what was held is delivered."""
        for link in self._links.values():
            link.release()
            link.delay_us = 0

    async def close(self) -> None:
        for link in self._links.values():
            await link.close()
