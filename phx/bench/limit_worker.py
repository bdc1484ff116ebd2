"""A process of the bare cluster, led over a pipe by limit_run.py; ends when its input does.

One JSON object per line. In: the specification, then the ports, then the times, then ``{}`` to
stop. Out: ``{"port": …}``, ``{"ready": true}``, ``{"drained": true}``, the result; or ``{"error":
…}``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import queue
import select
import socket
import sys
import threading
import time
from typing import Any

from phx.bench.limit_door import File, Node, echo

CONNECT_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 20.0
TIMED_EVERY = 16  # one in so many coroutines measures how long its values take


class Leader:
    """The other end of the pipe. The process ends with it, whatever it is doing."""

    def __init__(self) -> None:
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(json.loads(line))
        os._exit(1)

    def hear(self) -> dict[str, Any]:
        return self._lines.get()

    def say(self, **what: Any) -> None:
        # Not print: where standard output is unbuffered it loses what one write does not take.
        line = memoryview(json.dumps(what).encode() + b"\n")
        while line:
            try:
                line = line[os.write(1, line) :]
            except BlockingIOError:
                select.select([], [1], [])


def connect(
    listener: socket.socket, me: int, ports: list[int]
) -> tuple[dict[int, socket.socket], dict[int, socket.socket]]:
    """Sockets to every other node and from every other node, by its index."""
    out: dict[int, socket.socket] = {}
    back: dict[int, socket.socket] = {}
    for peer, port in enumerate(ports):
        if peer != me:
            out[peer] = socket.create_connection(("127.0.0.1", port), CONNECT_TIMEOUT_S)
            out[peer].sendall(bytes([me]))
    listener.settimeout(CONNECT_TIMEOUT_S)
    while len(back) < len(ports) - 1:
        accepted, _ = listener.accept()
        accepted.settimeout(CONNECT_TIMEOUT_S)
        back[accepted.recv(1)[0]] = accepted
    for one in (*out.values(), *back.values()):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setblocking(False)
    return out, back


def healthy(node: Node, until_s: float) -> None:
    if node.error:
        raise OSError(node.error, os.strerror(node.error))
    if time.monotonic() > until_s:
        raise TimeoutError("values are still in flight")


def make_values(node: Node, spec: dict[str, Any], begin_ns: int, end_ns: int) -> list[int]:
    """Native code opens the values."""
    node.start(begin_ns, end_ns, [(int(group), count) for group, count in spec["share"].items()])
    until_s = end_ns / 1e9 + DRAIN_TIMEOUT_S
    while not node.drained:
        healthy(node, until_s)
        time.sleep(0.01)
    return []


async def await_values(node: Node, spec: dict[str, Any], begin_ns: int, end_ns: int) -> list[int]:
    """A coroutine per value in flight, a future per value. Latencies of some, in nanoseconds."""
    loop = asyncio.get_running_loop()
    value = bytes(spec["value_bytes"])
    taking = True
    latencies: list[int] = []
    take = node.take

    async def client(group: int) -> None:
        while taking:
            await take(group, value)

    async def timed_client(group: int) -> None:
        while taking:
            began = time.monotonic_ns()
            await take(group, value)
            ended = time.monotonic_ns()
            if begin_ns <= ended < end_ns:
                latencies.append(ended - began)

    node.attach(loop)
    node.start(begin_ns, end_ns)
    callers = [int(group) for group, count in spec["share"].items() for _ in range(count)]
    tasks = {
        asyncio.ensure_future((client if number % TIMED_EVERY else timed_client)(group))
        for number, group in enumerate(callers)
    }
    gc.collect()
    gc.freeze()
    try:
        await asyncio.sleep(max(0.0, (end_ns - time.monotonic_ns()) / 1e9))
        taking = False
        until_s = time.monotonic() + DRAIN_TIMEOUT_S
        while tasks:
            done, tasks = await asyncio.wait(tasks, timeout=0.1)
            for task in done:
                task.result()
            healthy(node, until_s)
    finally:
        for task in tasks:
            task.cancel()
        node.detach()
    node.quiet()
    return latencies


def run_loop(node: Node, spec: dict[str, Any], begin_ns: int, end_ns: int) -> list[int]:
    factory = None
    if spec["loop"] == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    gc.set_threshold(100_000, 50, 50)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(await_values(node, spec, begin_ns, end_ns))


def serve_node(leader: Leader, spec: dict[str, Any], listener: socket.socket) -> None:
    file = File(spec["folder"], spec["file_bytes"])
    inflight = max(spec["share"].values(), default=1) if spec["loop"] else 0
    node = Node(
        file, spec["me"], spec["nodes"], spec["groups"], spec["value_bytes"], inflight=inflight
    )
    out: dict[int, socket.socket] = {}
    back: dict[int, socket.socket] = {}
    try:
        leader.say(port=listener.getsockname()[1])
        out, back = connect(listener, spec["me"], leader.hear()["ports"])
        for peer, socket_out in out.items():
            node.connect(socket_out.fileno(), back[peer].fileno())
        leader.say(ready=True)
        times = leader.hear()
        run = run_loop if spec["loop"] else make_values
        latencies = run(node, spec, times["begin_ns"], times["end_ns"])
        leader.say(drained=True)
        leader.hear()
        node.stop()
        leader.say(latencies_ns=latencies, **node.result())
    finally:
        node.stop()
        file.close()
        for one in (*out.values(), *back.values()):
            one.close()


def serve_echo(leader: Leader, listener: socket.socket) -> None:
    leader.say(port=listener.getsockname()[1])
    listener.settimeout(CONNECT_TIMEOUT_S)
    accepted, _ = listener.accept()
    with accepted:
        accepted.settimeout(None)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        echo(accepted.fileno())


def main() -> int:
    leader = Leader()
    spec = leader.hear()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            if spec.get("echo"):
                serve_echo(leader, listener)
            else:
                serve_node(leader, spec, listener)
    except Exception as error:
        leader.say(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    # The reading thread still holds standard input, which the interpreter's end would wait for.
    os._exit(main())
