"""A held link is silent: no bytes, no end, no refusal; released, nothing is missing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from phx.testing.proxy import Link, Mesh


@asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    writers = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while data := await reader.read(4096):
            writer.write(data)

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await close(*writers)


async def close(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0.01)


def through_a_link(body: Callable[[Link], Awaitable[None]]) -> None:
    async def run() -> None:
        async with echo_server() as port:
            link = Link(lambda: port)
            await link.start()
            try:
                async with asyncio.timeout(10):
                    await body(link)
            finally:
                await link.close()

    asyncio.run(run())


async def silent(reader: asyncio.StreamReader) -> bool:
    """Nothing arrives for a while, not even the end."""
    try:
        await asyncio.wait_for(reader.read(1), 0.2)
    except TimeoutError:
        return True
    return False


def test_forwards_both_ways() -> None:
    async def body(link: Link) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"x" * 100_000)
        assert await reader.readexactly(100_000) == b"x" * 100_000
        assert link.bytes_forwarded == 200_000
        await close(writer)

    through_a_link(body)


def test_held_it_is_silent_and_released_it_delivers_everything() -> None:
    async def body(link: Link) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        link.hold()
        writer.write(b"during")
        assert await silent(reader)
        late_reader, late_writer = await asyncio.open_connection("127.0.0.1", link.port)
        late_writer.write(b"late")
        assert await silent(late_reader)
        link.release()
        assert await reader.readexactly(6) == b"during"
        assert await late_reader.readexactly(4) == b"late"
        await close(writer, late_writer)

    through_a_link(body)


def test_the_end_of_a_connection_is_held_too() -> None:
    async def run() -> None:
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            ended.set()
            writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        link = Link(lambda: server.sockets[0].getsockname()[1])
        await link.start()
        _, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)
        link.hold()
        writer.transport.abort()
        await asyncio.sleep(0.2)
        assert not ended.is_set()
        link.release()
        async with asyncio.timeout(5):
            await ended.wait()
        await link.close()
        server.close()

    asyncio.run(run())


def test_cut_resets_and_the_next_connection_works() -> None:
    async def body(link: Link) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"a")
        await reader.readexactly(1)
        link.cut()
        with suppress(ConnectionError):
            assert await reader.read(1) == b""
        await close(writer)
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"
        await close(writer)

    through_a_link(body)


def test_delay_delays() -> None:
    async def body(link: Link) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        link.delay_us = 100_000
        began = asyncio.get_running_loop().time()
        writer.write(b"a")
        await reader.readexactly(1)
        assert asyncio.get_running_loop().time() - began >= 0.19  # both ways
        await close(writer)

    through_a_link(body)


def header(source: int) -> bytes:
    """As a frame's header has it, as far as the proxy looks."""
    return bytes(16) + source.to_bytes(4, "little") + bytes(12)


async def dial(
    mesh: Mesh, source: int, dest: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`source` dials the door of `dest`, and says who it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port(dest))
    writer.write(header(source))
    return reader, writer


def test_a_mesh_isolates_one_node_and_leaves_the_others() -> None:
    async def run() -> None:
        async with echo_server() as port:
            mesh = Mesh({1: port, 2: port, 3: port})
            await mesh.start()
            mesh.isolate(2)
            readers, writers = {}, []
            for pair in [(1, 2), (2, 1), (3, 2), (1, 3), (3, 1)]:
                reader, writer = await dial(mesh, *pair)
                readers[pair] = reader
                writers.append(writer)
            quiet = {pair for pair, reader in readers.items() if await silent(reader)}
            assert quiet == {(1, 2), (2, 1), (3, 2)}
            mesh.heal(1)
            assert await silent(readers[1, 2])  # the other one is cut off still
            mesh.heal(2)
            async with asyncio.timeout(5):
                for pair in quiet:
                    assert await readers[pair].readexactly(32) == header(pair[0])
            await close(*writers)
            await mesh.close()

    asyncio.run(run())


def test_a_mesh_drops_one_direction_whoever_dialled() -> None:
    async def run() -> None:
        async with echo_server() as port:
            mesh = Mesh({1: port, 2: port})
            await mesh.start()
            mesh.drop(1, 2)
            dialled = await dial(mesh, 1, 2)  # from 1 to 2: dropped, so there is no echo
            taken = await dial(mesh, 2, 1)  # from 2 to 1: arrives, the echo is dropped
            assert await silent(dialled[0])
            assert await silent(taken[0])
            assert mesh._links[1, 2].bytes_forwarded == 0
            assert mesh._links[2, 1].bytes_forwarded == 32
            mesh.heal_all()
            async with asyncio.timeout(5):
                assert await dialled[0].readexactly(32) == header(1)
                assert await taken[0].readexactly(32) == header(2)
            await close(dialled[1], taken[1])
            await mesh.close()

    asyncio.run(run())


def test_a_mesh_slows_and_cuts_what_is_between_two_nodes() -> None:
    async def run() -> None:
        async with echo_server() as port:
            mesh = Mesh({1: port, 2: port, 3: port})
            await mesh.start()
            mesh.delay(1, 2, 100_000)
            spent = []
            slow, quick = await dial(mesh, 2, 1), await dial(mesh, 1, 3)
            for reader, writer in (slow, quick):
                await reader.readexactly(32)
                began = asyncio.get_running_loop().time()
                writer.write(b"x")
                await reader.readexactly(1)
                spent.append(asyncio.get_running_loop().time() - began)
            assert spent[0] >= 0.19
            assert spent[1] < 0.19
            mesh.cut(1, 2)
            with suppress(ConnectionError):
                assert await slow[0].read(1) == b""
            quick[1].write(b"y")
            assert await quick[0].readexactly(1) == b"y"
            await close(slow[1], quick[1])
            await mesh.close()

    asyncio.run(run())


def test_nodes_come_to_a_mesh_and_go() -> None:
    async def run() -> None:
        async with echo_server() as port:
            mesh = Mesh({1: port, 2: port})
            await mesh.start()
            mesh.isolate(2)
            await mesh.add(3, port)
            one, two = await dial(mesh, 1, 3), await dial(mesh, 2, 3)
            assert await one[0].readexactly(32) == header(1)
            assert await silent(two[0])  # it is cut off from those who come later, too
            stranger = await dial(mesh, 4, 3)
            with suppress(ConnectionError):
                assert await stranger[0].read() == b""
            door = mesh.port(3)
            await mesh.remove(3)
            await mesh.remove(3)
            for reader, _ in (one, two):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
            with suppress(ConnectionError):
                reader, writer = await asyncio.open_connection("127.0.0.1", door)
                assert await reader.read() == b""
                await close(writer)
            gone = await dial(mesh, 3, 1)
            with suppress(ConnectionError):
                assert await gone[0].read() == b""
            mesh.drop(1, 3)  # nobody is there to be cut off
            mesh.delay(1, 3, 1)
            mesh.cut(1, 3)
            mesh.isolate(3)
            mesh.heal(3)
            await close(one[1], two[1], stranger[1], gone[1])
            await mesh.close()

    asyncio.run(run())
