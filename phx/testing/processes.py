"""Worker processes: a real node in a process of its own, led over a pipe. worker.py is its end.

Guarantee: no worker outlives the process that started it. A worker ends when its standard input
does, and on Linux the kernel kills it with its parent.

Protocol: one JSON object per line. To the worker: first the specification, then
``{"id": 7, "do": "positions", …}``. From it: ``{"id": 7, "result": …}`` or ``{"id": 7, "error":
…}``, and ``{"progress": {…}}`` at any time. Its standard error goes to a file.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from phx.testing.proxy import Mesh
from phx.testing.worker import LINE_BYTES_MAX

START_TIMEOUT_S = 60.0
STILL_S = 1.2
ROOT = str(Path(__file__).resolve().parents[2])


class WorkerFailed(Exception):
    """A worker answered with an error, or died."""


@dataclass(frozen=True)
class Spec:
    """All that a worker needs to know to run its node."""

    node: int
    config: dict[str, Any]  # what phx.Config.from_mapping takes
    machine: str  # a name that the worker knows
    bootstrap: bool
    loop: str = "auto"  # "uvloop", "asyncio", "auto"
    boot: str = ""  # of the machine that it runs on: a UUID; "": this one's


def now_us() -> int:
    """CLOCK_MONOTONIC in microseconds: the same clock in every process of the machine."""
    return time.monotonic_ns() // 1000


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, below the kernel's range for outgoing connections.

    A node that redials a dead neighbour at a port inside that range ends up, sooner or later,
    connected to itself; and any outgoing connection may take the port while the node is down.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


class Worker:
    """One running worker, seen from its parent."""

    def __init__(self, spec: Spec, process: asyncio.subprocess.Process, log: Path):
        self.spec = spec
        self.progress: dict[str, Any] = {}
        self.stopped = False
        self._process = process
        self._log = log
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next_id = 1
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, spec: Spec, log: Path, module: str) -> Worker:
        """Start a worker, ``python -m module``, or the file of that name if it ends in ``.py``;
        returns before its node runs, see `ready`."""
        # The same phx as here, whatever stands in the current folder; the same hash of bytes.
        environment = dict(os.environ, PYTHONPATH=ROOT, PYTHONSAFEPATH="1", PYTHONHASHSEED="0")
        with open(log, "ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *([module] if module.endswith(".py") else ["-m", module]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                limit=LINE_BYTES_MAX,
                start_new_session=True,  # Ctrl-C is for the parent to handle
            )
        worker = cls(spec, process, log)
        worker._send(asdict(spec))
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        """Wait until the node runs (journal replayed, port bound)."""
        await self.call("ready", START_TIMEOUT_S)

    async def call(self, do: str, timeout_s: float = 30.0, /, **arguments: Any) -> Any:
        """Have the worker do something; its result. Raises WorkerFailed, TimeoutError."""
        try:
            return await asyncio.wait_for(self.ask(do, **arguments), timeout_s)
        except TimeoutError:
            raise WorkerFailed(
                f"node {self.spec.node}: no answer to {do} in {timeout_s} s"
            ) from None

    def ask(self, do: str, /, **arguments: Any) -> asyncio.Future[Any]:
        """Have the worker do something; a future for its result, however long it takes.

        It fails with WorkerFailed, as late as when the process ends. WorkerFailed at once: the
        process is gone, and nothing was sent.
        """
        if self._reader.done():
            raise WorkerFailed(f"node {self.spec.node}: process is gone\n{self._tail()}")
        number, self._next_id = self._next_id, self._next_id + 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._send({"id": number, "do": do, **arguments})
        return future

    def kill(self) -> None:
        """SIGKILL, as from outside."""
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        self.stopped = True
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.stopped = False
        self._signal(signal.SIGCONT)

    async def wait(self) -> int:
        """Wait until the process has ended; its return code."""
        await asyncio.wait({self._reader})  # which goes on if this is given up
        return await self._process.wait()

    async def close(self, timeout_s: float = 30.0) -> None:
        """Close the node cleanly and end the process; kill it if that takes too long."""
        if self._process.returncode is None and not self._reader.done():
            try:
                await self.call("close", timeout_s)
            except (WorkerFailed, OSError):
                self.kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self.wait(), 10.0)
        except TimeoutError:
            self.kill()
            await self.wait()

    def _signal(self, number: int) -> None:
        # Not send_signal: it looks whether the process has ended, and then the code is lost.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                self._received(json.loads(line))
        finally:
            failure = WorkerFailed(f"node {self.spec.node}: process ended\n{self._tail()}")
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(failure)

    def _received(self, message: dict[str, Any]) -> None:
        if "progress" in message:
            self.progress = message["progress"]
            return
        future = self._waiting.pop(message["id"], None)
        if future is None or future.done():
            return
        if "error" in message:
            future.set_exception(WorkerFailed(f"node {self.spec.node}: {message['error']}"))
        else:
            future.set_result(message["result"])

    def _tail(self, lines: int = 15) -> str:
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class Cluster:
    """Workers 1 … `nodes`, their folders and ports; nothing of it is left when the block ends.
    Others may come (`admit`), and any may go (`forget`).

    `groups` is how many (ids from 0), or their ids. `worker` is the module that the processes run;
    `machine` and `options` are for it to understand.
    `folder` given: node folders are made in it and stay. Not given: a temporary folder.
    """

    def __init__(
        self,
        nodes: int,
        groups: int | Sequence[int],
        machine: str,
        worker: str,
        *,
        folder: Path | None = None,
        loop: str = "auto",
        proxies: bool = False,
        options: dict[str, Any] | None = None,
    ):
        self.ids = list(range(1, nodes + 1))
        self.joining: set[int] = set()
        self.groups = list(range(groups)) if isinstance(groups, int) else list(groups)
        self.workers: dict[int, Worker] = {}
        self.mesh: Mesh | None = None
        self._machine, self._loop, self._options = machine, loop, options or {}
        self._module = worker
        self._born: set[int] = set()
        self._boots: dict[int, str] = {}
        self._want_proxies = proxies
        self.scratch = Path(tempfile.mkdtemp(prefix="phx-"))
        self.folder = folder if folder is not None else self.scratch
        self._ports = dict(zip(self.ids, free_ports(nodes), strict=True))
        self._at: dict[int, str] = {}
        self._first = tuple(self.ids)
        self._joins: dict[int, list[str]] = {}

    async def __aenter__(self) -> Cluster:
        if self._want_proxies:
            self.mesh = Mesh(self._ports)
            await self.mesh.start()
        for node in self.ids:
            self._locate(node)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for worker in self.workers.values():
            worker.kill()
        for worker in self.workers.values():
            await worker.wait()
        if self.mesh is not None:
            await self.mesh.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __getitem__(self, node: int) -> Worker:
        return self.workers[node]

    async def start(self, *nodes: int) -> None:
        """Start these nodes (all, when none is named) and wait until they run."""
        wanted = nodes or tuple(self.ids)
        for node in wanted:
            log = self.scratch / f"node{node}.log"
            self.workers[node] = await Worker.start(self._spec(node), log, self._module)
        await asyncio.gather(*(self.workers[node].ready() for node in wanted))
        self._born.update(wanted)
        self.joining.difference_update(wanted)

    async def admit(self) -> int:
        """Another node, with an id that was never used, which joins those that there are: nothing
        of it runs yet. Its first start lasts until it is a member of every group."""
        node = max(self._ports) + 1
        (self._ports[node],) = free_ports(1)
        if self.mesh is not None:
            await self.mesh.add(node, self._ports[node])
        self._joins[node] = [self._at[other] for other in self.ids]
        self._locate(node)
        self.ids.append(node)
        self.joining.add(node)
        return node

    async def forget(self, node: int) -> None:
        """Its process has ended, and its machine goes, with the folder."""
        self.ids.remove(node)
        self.joining.discard(node)
        if self.mesh is not None:
            await self.mesh.remove(node)
        await asyncio.to_thread(shutil.rmtree, self.folder / f"node{node}", ignore_errors=True)

    def reboot(self, node: int) -> None:
        """Its machine fails: the next process of the node runs on one that was started anew."""
        self._boots[node] = str(uuid.uuid4())

    def address(self, node: int) -> str:
        """Where the others find it."""
        return self._at[node]

    def _locate(self, node: int) -> None:
        port = self._ports[node] if self.mesh is None else self.mesh.port(node)
        self._at[node] = f"127.0.0.1:{port}"

    async def close(self) -> None:
        """Close every node cleanly."""
        await asyncio.gather(*(worker.close() for worker in self.workers.values()))

    async def call(self, do: str, timeout_s: float = 30.0, /, **arguments: Any) -> dict[int, Any]:
        """Ask every node the same; results by node."""
        answers = await asyncio.gather(
            *(worker.call(do, timeout_s, **arguments) for worker in self.workers.values())
        )
        return dict(zip(self.workers, answers, strict=True))

    async def led(self, timeout_s: float = 60.0) -> dict[int, list[int]]:
        """Groups by the node that leads them, once all are led and none has moved for a while.

        (Nodes look for misplaced leaderships twice a second.) Raises WorkerFailed.
        """
        began = since = time.monotonic()
        before: dict[int, list[int]] = {}
        while (now := time.monotonic()) < began + timeout_s:
            led: dict[int, list[int]] = await self.call("led")
            if led != before or sum(map(len, led.values())) != len(self.groups):
                before, since = led, now
            elif now > since + STILL_S:
                return led
            await asyncio.sleep(0.1)
        raise WorkerFailed(f"not every group has a leader after {timeout_s} s")

    async def converged(self, timeout_s: float) -> bool:
        """Wait until every node has applied the same instances in every group.

        After a start of them all they do before a leader has found out what was chosen: read, or
        write, each group first.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            positions = list((await self.call("positions")).values())
            if all(one == positions[0] for one in positions) and all(
                applied == chosen for applied, chosen in positions[0].values()
            ):
                return True
            await asyncio.sleep(0.1)
        return False

    def _spec(self, node: int) -> Spec:
        folder = self.folder / f"node{node}"
        folder.mkdir(parents=True, exist_ok=True)
        joins = self._joins.get(node)
        known = self._first if joins is None else (node,)
        config = {
            "cluster": "phx on loopback",
            "node": node,
            "members": {str(other): self._at[other] for other in known},
            "bind": f"127.0.0.1:{self._ports[node]}",
            "dir": str(folder),
            "groups": self.groups,
            **({} if joins is None else {"join": joins}),
            **self._options,
        }
        # A node that has run here before and finds nothing has lost its disk: it must say so. One
        # whose first start was cut short, while it waited to be a member, begins again.
        new = joins is not None or not any(folder.iterdir())
        bootstrap, boot = node not in self._born and new, self._boots.get(node, "")
        return Spec(node, config, self._machine, bootstrap, self._loop, boot)
