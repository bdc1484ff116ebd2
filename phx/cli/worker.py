"""A worker process: one node, led by its parent over standard input and output.

See processes.py for the protocol. Run as ``python -m phx.cli.worker``.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import phx
from phx.cli.ledger import ACKNOWLEDGED, Ledger, LedgerReader, key_of, value_of
from phx.cli.load import Load, Tally, read_back
from phx.cli.loops import run_in_loop
from phx.cli.writers import Writers
from phx.machines.kv import KeyValue, encode_set

PR_SET_PDEATHSIG = 1
PROGRESS_S = 0.2


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (Linux; elsewhere EOF must do)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(1)


def jsonable(value: Any) -> Any:
    """Anything a status holds, as JSON can carry it."""
    if isinstance(value, dict):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "__dataclass_fields__"):
        return {name: jsonable(getattr(value, name)) for name in value.__dataclass_fields__}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


class WorkerNode:
    """The node of this process and what its parent may ask of it."""

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec
        self.config = phx.Config.from_mapping(spec["config"])
        self.groups = self.config.group_ids
        self.machines: dict[int, Any] = {}
        self.ledger: Ledger | None = None
        self.writers: Writers | None = None
        self.load: Load | None = None
        self.closed = asyncio.Event()
        self.node: Any = None

    def _machine(self, group: int) -> Any:
        machine = Tally() if self.spec["machine"] == "tally" else KeyValue()
        self.machines[group] = machine
        return machine

    async def start(self) -> None:
        self.node = phx.Node(self.config, self._machine, bootstrap=self.spec["bootstrap"])
        await self.node.__aenter__()

    # --- what the parent may ask: one method per word, arguments from the message

    async def do_ready(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "loop": type(asyncio.get_running_loop()).__module__}

    async def do_led(self) -> list[int]:
        return [group for group in self.groups if self.node.group(group).status().leading]

    async def do_positions(self) -> dict[int, tuple[int, int]]:
        positions = {}
        for group in self.groups:
            status = self.node.group(group).status()
            positions[group] = (status.applied_through, status.chosen_through)
        return positions

    async def do_digests(self) -> dict[int, tuple[int, int, str]]:
        """Per group: instance, chained digest of the log up to it, digest of the machine."""
        digests = {}
        for group in self.groups:
            status = self.node.group(group).status()
            machine = self.machines[group]
            digests[group] = (status.digest_at, status.digest, machine.digest().hex())
        return digests

    async def do_tallies(self, first: dict[str, int]) -> dict[int, tuple[int, int, int]]:
        """Per group: values in the log from `first` on, sum of hashes, values ever applied."""
        tallies = {}
        for group in self.groups:
            door = self.node.group(group)
            count, total = await read_back(door, first[str(group)], door.status().chosen_through)
            tallies[group] = (count, total, self.machines[group].count)
        return tallies

    async def do_status(self) -> Any:
        return jsonable(self.node.status())

    async def do_write(self, ledger: str, bytes_max: int, per_group: int, timeout_s: float) -> None:
        slots = len(self.groups) * per_group
        self.ledger = Ledger(Path(ledger), self.config.node, slots, per_group, bytes_max)
        groups = [self.node.group(group) for group in self.groups]
        self.writers = Writers(groups, per_group, self.ledger, encode_set, timeout_s)
        self.writers.start()

    async def do_stop_writing(self) -> str:
        if self.writers is None:
            return ""
        await self.writers.stop()
        return self.writers.last_error

    async def do_check(self, ledgers: list[str]) -> dict[str, Any]:
        """Look for every acknowledged value of these ledgers in the machines of this node."""
        checked, lost = 0, 0
        examples: list[str] = []
        for path in ledgers:
            reader = LedgerReader(Path(path))
            for one in reader.outcomes():
                if one.outcome != ACKNOWLEDGED:
                    continue
                checked += 1
                if checked % 20_000 == 0:
                    await asyncio.sleep(0)
                group = self.groups[reader.group_index(one.slot)]
                key = key_of(reader.salt, one.slot, one.number)
                if self.machines[group].get(key) != value_of(reader.salt, one.slot, one.number):
                    lost += 1
                    if len(examples) < 5:
                        examples.append(f"group {group} key {key}")
        return {"checked": checked, "lost": lost, "examples": examples}

    async def do_load(
        self,
        callers: dict[str, int],
        value_bytes: int,
        batch: int,
        timeout_s: float,
        measure_us: tuple[int, int],
    ) -> None:
        self.load = Load(self.node, value_bytes, batch, timeout_s)
        by_group = {int(group): count for group, count in callers.items()}
        self.load.start(by_group, measure_us)

    async def do_stop_load(self) -> Any:
        assert self.load is not None
        await self.load.stop()
        return await self.load.result()

    async def do_close(self) -> None:
        await self.node.close()
        self.closed.set()

    def progress(self) -> dict[str, Any]:
        done = self.writers.acknowledged if self.writers else 0
        if self.load is not None:
            done = self.load.acknowledged
        journal = self.node.status().journal
        return {"acknowledged": done, "syncs": journal["syncs"]}


async def serve(worker: WorkerNode) -> None:
    """Read commands until the input ends or the node is closed; answer as they finish."""
    reader = asyncio.StreamReader(limit=1 << 26)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    answering: set[asyncio.Task[None]] = set()
    closed = asyncio.create_task(worker.closed.wait())
    while not closed.done():
        line = asyncio.create_task(reader.readline())
        await asyncio.wait({line, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not line.done() or not line.result():
            line.cancel()
            break
        message = json.loads(line.result())
        action = getattr(worker, f"do_{message.pop('do')}")
        task = asyncio.create_task(answer(message.pop("id"), action(**message)))
        answering.add(task)
        task.add_done_callback(answering.discard)
    closed.cancel()
    if worker.closed.is_set():
        await asyncio.gather(*answering)


async def answer(number: int, action: Coroutine[Any, Any, Any]) -> None:
    try:
        send({"id": number, "result": await action})
    except Exception as error:
        send({"id": number, "error": repr(error)})


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message, default=jsonable) + "\n")
    sys.stdout.flush()


async def report_progress(worker: WorkerNode) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        if worker.writers is not None or worker.load is not None:
            send({"progress": worker.progress()})


async def run(spec: dict[str, Any]) -> None:
    worker = WorkerNode(spec)
    await worker.start()
    progress = asyncio.create_task(report_progress(worker))
    try:
        await serve(worker)
    finally:
        progress.cancel()
        if not worker.closed.is_set():
            await worker.node.close()


def main() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Unbuffered: what follows the first line must be left in the pipe for the event loop.
    spec = json.loads(first_line(0))
    run_in_loop(run(spec), spec["loop"])


def first_line(descriptor: int) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        one = os.read(descriptor, 1)
        if not one:
            sys.exit(0)
        line += one
    return bytes(line)


if __name__ == "__main__":
    main()
