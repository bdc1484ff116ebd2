"""One node in a process of its own, led by its parent over standard input and output.

Run as ``python worker.py``; see crew.py for the other end. The first line is the specification,
each further line ``{"id": 7, "do": "status", …}``, answered by ``{"id": 7, "result": …}`` or
``{"id": 7, "error": …}``. The process ends with its standard input, and the kernel kills it with
its parent.

A ledger is a file of RECORDs, one for every value that was acknowledged here, appended by one
write() before anybody else hears of it: the page cache keeps it when the process is killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import random
import signal
import struct
import sys
import time
from array import array
from collections import Counter
from typing import Any

import msgpack

import phx
from phx.errors import NoLongerKept
from phx.machine import CopyView

HEAD = struct.Struct("<IIQQ")  # group, writer, number, salt: first bytes of every value
RECORD = struct.Struct("<IIQQQI4x")  # the same, instance, size of the value
PR_SET_PDEATHSIG = 1
PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


def filler(salt: int, size: int) -> bytes:
    return random.Random(salt).randbytes(max(0, size - HEAD.size))


class Values(phx.StateMachine):
    """Keeps every value under its head, and counts those that it sees twice."""

    def __init__(self, group: int) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.twice = 0

    def apply(self, entry: phx.Entry) -> int:
        head = entry.value[: HEAD.size]
        self.twice += head in self.kept
        self.kept[head] = entry.value
        return len(self.kept)

    def freeze(self) -> CopyView:
        view = Values(0)
        view.kept, view.twice = self.kept.copy(), self.twice
        return CopyView(view)

    def snapshot(self, writer: Any) -> None:
        writer.write(msgpack.packb([self.twice, list(self.kept.values())]))

    def restore(self, reader: Any) -> None:
        data = b"".join(iter(lambda: reader.read(1 << 20), b""))
        self.twice, values = msgpack.unpackb(data)
        self.kept = {value[: HEAD.size]: value for value in values}


class Tally(phx.StateMachine):
    """Keeps nothing. Told to hold, it keeps the GIL for so many seconds at the next batch."""

    hold_s = 0.0
    held: tuple[float, float] | None = None

    def __init__(self, group: int) -> None:
        self.count = 0
        self.twice = 0

    def apply(self, entry: phx.Entry) -> int:
        self.count += 1
        return self.count

    def apply_batch(self, entries: Any) -> Any:
        if Tally.hold_s:
            seconds, Tally.hold_s = Tally.hold_s, 0.0
            began = time.monotonic()
            ctypes.PyDLL(None).usleep(int(seconds * 1e6))
            Tally.held = (began, time.monotonic())
        first = self.count + 1
        self.count += len(entries)
        return range(first, self.count + 1)


class Load:
    """Writers that propose as fast as they are answered, or at a given rate, in every group.

    Attributes:
        longest_s: per group, the longest time without an acknowledgement since `mark`.
        latencies: of calls, in seconds, since `mark`.
    """

    def __init__(
        self,
        worker: WorkerNode,
        *,
        writers: int = 1,
        run: int = 1,
        value_bytes: int = 64,
        timeout_s: float = 10.0,
        rate: float = 0.0,
    ) -> None:
        self.node, self.ledger = worker.node, worker.ledger
        self.salt = int.from_bytes(os.urandom(8), "little")
        self.tail = filler(self.salt, value_bytes)
        self.size = HEAD.size + len(self.tail)
        self.run, self.timeout_s = run, timeout_s
        self.acknowledged = 0
        self.errors: Counter[str] = Counter()
        self.by_group = dict.fromkeys(worker.groups, 0)
        self.mark()
        self.stopping = False
        slots = writers * len(worker.groups)
        self.pause_s = slots * run / rate if rate else 0.0
        self.tasks = [
            asyncio.create_task(self.write(group, writer))
            for group in worker.groups
            for writer in range(writers)
        ]

    def mark(self) -> None:
        now = time.monotonic()
        self.latest = dict.fromkeys(self.by_group, now)
        self.longest_s = dict.fromkeys(self.by_group, 0.0)
        self.latencies = array("d")

    async def write(self, group: int, writer: int) -> None:
        door, number = self.node.group(group), 0
        due = time.monotonic() + random.random() * self.pause_s
        while not self.stopping:
            if self.pause_s:
                due = max(due + self.pause_s, time.monotonic() - 0.1)
                await asyncio.sleep(due - time.monotonic())
            numbers = range(number, number + self.run)
            number += self.run
            values = [HEAD.pack(group, writer, one, self.salt) + self.tail for one in numbers]
            began = time.monotonic()
            try:
                if self.run == 1:
                    results = [await door.propose(values[0], timeout=self.timeout_s)]
                else:
                    results = await door.propose_many(values, timeout=self.timeout_s)
            except phx.errors.PartlyDone as error:
                self.errors["PartlyDone"] += 1
                results = error.results
            except (phx.errors.Closed, phx.errors.ClosedUnknown):
                return
            except phx.PhxError as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(0.01)
                continue
            self.acknowledge(group, writer, numbers, results, began)

    def acknowledge(
        self, group: int, writer: int, numbers: range, results: list[Any], began: float
    ) -> None:
        pack, now = RECORD.pack, time.monotonic()
        done = [
            (one, result.instance)
            for one, result in zip(numbers, results, strict=True)
            if not isinstance(result, Exception)
        ]
        if self.ledger >= 0:
            os.write(
                self.ledger,
                b"".join(
                    pack(group, writer, one, self.salt, instance, self.size)
                    for one, instance in done
                ),
            )
        self.acknowledged += len(done)
        self.by_group[group] += len(done)
        self.latencies.append(now - began)
        self.longest_s[group] = max(self.longest_s[group], now - self.latest[group])
        self.latest[group] = now

    def report(self) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "acknowledged": self.acknowledged,
            "by_group": self.by_group,
            "longest_s": {
                group: max(gap, now - self.latest[group]) for group, gap in self.longest_s.items()
            },
            "errors": self.errors,
            "value_bytes": self.size,
        }

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self.tasks)


class WorkerNode:
    """The node of this process, and what its parent may ask of it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.config = phx.Config.from_mapping(spec["config"])
        self.groups = list(self.config.group_ids)
        kind = {"values": Values, "tally": Tally}[spec["machine"]]
        self.ledger = -1
        if spec["ledger"]:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self.ledger = os.open(spec["ledger"], flags, 0o644)
        self.node = phx.Node(self.config, kind, bootstrap=spec["bootstrap"])
        self.load: Load | None = None
        self.closed = asyncio.Event()

    async def do_open(self) -> float:
        began = time.monotonic()
        await self.node.open()
        return time.monotonic() - began

    async def do_ready(self, timeout_s: float) -> None:
        await self.node.wait_ready(timeout=timeout_s)

    async def do_barrier(self, timeout_s: float) -> None:
        """Wait until all that was ever chosen is applied here."""
        doors = [self.node.group(group) for group in self.groups]
        await asyncio.gather(*(door.barrier(timeout=timeout_s) for door in doors))

    async def do_led(self) -> list[int]:
        return [group for group in self.groups if self.node.group(group).status().leading]

    async def do_leaders(self) -> list[int | None]:
        return [self.node.group(group).status().leader for group in self.groups]

    async def do_suspects(self) -> list[int]:
        """Groups in which this node does not vote, as it may have lost votes."""
        return [group for group in self.groups if self.node.group(group).status().suspect]

    async def do_positions(self) -> dict[int, tuple[int, int, int]]:
        """Per group: applied through, chosen through, digest of what was applied."""
        found = {}
        for group in self.groups:
            status = self.node.group(group).status()
            found[group] = (status.applied_through, status.chosen_through, status.digest)
        return found

    async def do_status(self) -> Any:
        return self.node.status()

    async def do_load(self, **options: Any) -> None:
        self.load = Load(self, **options)

    async def do_mark(self) -> None:
        assert self.load is not None
        self.load.mark()

    async def do_report(self) -> Any:
        assert self.load is not None
        return self.load.report()

    async def do_stop_load(self) -> Any:
        assert self.load is not None
        await self.load.stop()
        return self.load.report()

    async def do_propose(self, group: int, value: str, timeout_s: float) -> dict[str, Any]:
        """Propose one value: its instance or its error, and how long that took."""
        began = time.monotonic()
        found: dict[str, Any] = {"instance": None, "error": None, "outcome": "chosen"}
        try:
            future = self.node.group(group).propose(value.encode(), timeout=timeout_s)
            found["instance"] = (await future).instance
        except phx.PhxError as error:
            found |= {"error": type(error).__name__, "outcome": error.outcome}
        return found | {"seconds": time.monotonic() - began}

    async def do_log(self, group: int) -> list[str]:
        """Every value of a group, read back from the log."""
        door = self.node.group(group)
        found: list[str] = []
        for instance in range(1, door.status().chosen_through + 1):
            found += [entry.value.decode() for entry in await door.entry(instance)]
        return found

    async def do_find(self, ledgers: list[str]) -> dict[str, Any]:
        """Look for every value of these ledgers, in the machines and one by one in the log.

        What has been trimmed stands in a machine alone, and has to be there.
        """
        checked, lost = 0, []
        tails: dict[tuple[int, int], bytes] = {}
        logged: dict[tuple[int, int], set[bytes] | None] = {}
        # As they are now: a checkpoint of another node may have taken the place of the first ones.
        machines: dict[int, Any] = {
            group: self.node.group(group).machine() for group in self.groups
        }
        for path in ledgers:
            with open(path, "rb") as file:
                data = file.read()
            for group, writer, number, salt, instance, size in RECORD.iter_unpack(
                data[: len(data) // RECORD.size * RECORD.size]
            ):
                checked += 1
                if (salt, size) not in tails:
                    tails[salt, size] = filler(salt, size)
                head = HEAD.pack(group, writer, number, salt)
                value, place = head + tails[salt, size], (group, instance)
                if place not in logged:
                    logged[place] = await self._instance(group, instance)
                machine = machines[group]
                kept = isinstance(machine, Values) and machine.kept.get(head) == value
                applied = kept or not isinstance(machine, Values)
                there = logged[place]
                if not applied or not (kept if there is None else value in there):
                    lost.append(
                        {
                            "group": group,
                            "instance": instance,
                            "writer": writer,
                            "number": number,
                            "applied": applied,
                            "logged": there is not None and value in there,
                        }
                    )
        return {
            "checked": checked,
            "lost": len(lost),
            "examples": lost[:5],
            "twice": sum(machine.twice for machine in machines.values()),
        }

    async def _instance(self, group: int, instance: int) -> set[bytes] | None:
        """The values of an instance; None: it has been trimmed."""
        door = self.node.group(group)
        try:
            return {entry.value for entry in await door.entry(instance)}
        except phx.PhxError as error:
            if isinstance(error, NoLongerKept) and instance < door.status().floor:
                return None
            logging.error("group %d instance %d: %r", group, instance, error)
            return set()

    async def do_hold(self, seconds: float) -> None:
        Tally.hold_s = seconds

    async def do_held(self) -> tuple[float, float] | None:
        return Tally.held

    async def do_close(self) -> None:
        await self.node.close()
        self.closed.set()


def plain(value: Any) -> Any:
    """What JSON does not know."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, bytes):
        return value.hex()
    return dict(value) if hasattr(value, "keys") else str(value)


def send(message: dict[str, Any]) -> None:
    data = (json.dumps(message, default=plain) + "\n").encode()
    while data:
        data = data[os.write(1, data) :]


async def answer(worker: WorkerNode, message: dict[str, Any]) -> None:
    number = message.pop("id")
    try:
        action = getattr(worker, f"do_{message.pop('do')}")
        send({"id": number, "result": await action(**message)})
    except Exception as error:
        logging.exception("%s", message)
        send({"id": number, "error": repr(error)})


async def serve(spec: dict[str, Any]) -> None:
    worker = WorkerNode(spec)
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    tasks = set()
    closed = asyncio.create_task(worker.closed.wait())
    while not closed.done():
        line = asyncio.create_task(reader.readline())
        await asyncio.wait({line, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not line.done():
            line.cancel()
            break
        if not line.result():  # the parent is gone
            os._exit(2)
        task = asyncio.create_task(answer(worker, json.loads(line.result())))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if worker.load is not None:
        await worker.load.stop()
    await asyncio.gather(*tasks)


def first_line() -> bytes:
    """Unbuffered: what follows must be left in the pipe for the event loop."""
    line = b""
    while not line.endswith(b"\n"):
        one = os.read(0, 1)
        if not one:
            os._exit(2)
        line += one
    return line


def main() -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY)  # strace attaches later
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(serve(json.loads(first_line())))


if __name__ == "__main__":
    main()
