"""What small values wait for large ones of other groups: p99 alone, and beside a large load.

Three processes on loopback, one node each. In the small groups one caller each proposes one value
after the other at the group's leader. First alone; then the leaders of the large groups propose
large values at a fixed rate, whatever comes of them. The disk is measured first, with a sync
after each MiB: three journals share it here, so a load of L MB/s costs it 3 L, and once more what
the stores settle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from phx.cli.loops import run_in_loop

import phx
from phx.testing.processes import free_ports

NODES = (1, 2, 3)
WARM_S = 1.0
DISK_S = 1.0
DISK_WRITE_BYTES = 1 << 20
DISK_FILE_BYTES = 64 << 20
LINK_BUFFER_BYTES = 65536
OPEN_MAX = 256  # large values in flight per process; beyond, the load is short and says so


class SlowLink:
    """Forwards one address at a fixed rate, from threads that end with the process."""

    def __init__(self, port: int, bytes_per_s: float):
        self._target = port
        self._rate = bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LINK_BUFFER_BYTES)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.socket()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LINK_BUFFER_BYTES)
            try:
                far.connect(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            for source, dest in ((near, far), (far, near)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, dest), daemon=True).start()

    def _pump(self, source: socket.socket, dest: socket.socket) -> None:
        free_at = 0.0  # when the line has carried what was put on it
        try:
            while data := source.recv(16384):
                free_at = max(free_at, time.monotonic()) + len(data) / self._rate
                if (wait := free_at - time.monotonic()) > 0.0005:
                    time.sleep(wait)
                dest.sendall(data)
        except OSError:
            pass
        finally:
            for one in (source, dest):
                one.close()


class Nothing(phx.StateMachine):
    """A machine that keeps nothing: what is measured is the way there."""

    def apply(self, entry: phx.Entry) -> None:
        return None


def disk_rate(folder: Path) -> float:
    """Bytes a second that one writer gets to the disk, with a sync after each DISK_WRITE_BYTES."""
    data = os.urandom(DISK_WRITE_BYTES)
    file = os.open(folder / "rate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(DISK_FILE_BYTES >> 20):
            os.write(file, bytes(1 << 20))
        os.fsync(file)
        at = written = 0
        began = time.perf_counter()
        while time.perf_counter() < began + DISK_S:
            at = at if at + len(data) <= DISK_FILE_BYTES else 0
            os.pwrite(file, data, at)
            getattr(os, "fdatasync", os.fsync)(file)
            at += len(data)
            written += len(data)
        return written / (time.perf_counter() - began)
    finally:
        os.close(file)
        (folder / "rate").unlink()


class Child:
    """The node of this process, and the load that its parent asks for."""

    def __init__(self, node: Any):
        self._node = node
        self._open = 0
        self._taken = self._short = 0

    async def _small(self, group: int, value: bytes, begin: float, end: float) -> list[int]:
        door = self._node.group(group)
        times = []
        while (now := time.monotonic()) < end:
            await door.propose(value, timeout=60.0)
            if now >= begin:
                times.append(int((time.monotonic() - now) * 1e6))
        return times

    async def _one(self, group: int, value: bytes) -> None:
        self._open += 1
        try:
            await self._node.group(group).propose(value, timeout=60.0)
            self._taken += 1
        except phx.PhxError:
            self._short += 1
        finally:
            self._open -= 1

    async def _large(
        self, groups: list[int], value: bytes, per_s: float, burst: int, end: float
    ) -> None:
        tasks: set[asyncio.Task[None]] = set()
        at = time.monotonic()
        sent = 0
        while groups and per_s and at < end:
            if self._open < OPEN_MAX:
                task = asyncio.create_task(self._one(groups[sent % len(groups)], value))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                self._short += 1
            sent += 1
            at += 1 / per_s
            if sent % burst:
                continue
            await asyncio.sleep(max(0.0, at - time.monotonic()))
        await asyncio.gather(*tasks)

    async def run(self, ask: dict[str, Any]) -> dict[str, Any]:
        led = [one.id for one in self._node.groups if one.status().leading]
        begin = time.monotonic() + WARM_S
        end = begin + ask["seconds"]
        large = [group for group in led if group in ask["large"]]
        per_s = ask["bytes_per_s"] / ask["value_bytes"] * len(large) / len(ask["large"])
        before = self._node.status()
        self._taken = self._short = 0
        small = bytes(ask["small_bytes"])
        _, *times = await asyncio.gather(
            self._large(large, os.urandom(ask["value_bytes"]), per_s, ask["burst"], end),
            *(self._small(group, small, begin, end) for group in led if group in ask["small"]),
        )
        after = self._node.status()
        return {
            "times": [one for part in times for one in part],
            "taken": self._taken,
            "short": self._short,
            "journal": grown(before.journal, after.journal),
            "sync_max_us": int(after.journal["sync_max_ns"]) // 1000,
        }


def grown(before: Any, after: Any) -> dict[str, int]:
    """What the counters of the journal have grown by."""
    return {name: last - before[name] for name, last in after.items() if isinstance(last, int)}


async def child(node: int, ports: list[int], folder: str, groups: int) -> None:
    """A process of its own: a line of JSON in, one out; ends with stdin."""
    config = phx.Config(
        cluster="mixed",
        node=node,
        members={one: f"127.0.0.1:{port}" for one, port in zip(NODES, ports, strict=True)},
        dir=Path(folder, f"node{node}"),
        groups=groups,
    )
    async with phx.Node(config, lambda group: Nothing(), bootstrap=True) as one:
        await one.wait_ready()
        print("ready", flush=True)
        door = Child(one)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await door.run(json.loads(line))), flush=True)


def ports_of(node: int, own: list[int], to: list[int]) -> list[str]:
    """Where this node listens, and where it finds the others."""
    return [str(own[i] if one == node else to[i]) for i, one in enumerate(NODES)]


def ask_all(children: list[subprocess.Popen[str]], ask: dict[str, Any]) -> list[dict[str, Any]]:
    for one in children:
        pipe(one.stdin).write(json.dumps(ask) + "\n")
        pipe(one.stdin).flush()
    return [json.loads(pipe(one.stdout).readline()) for one in children]


def pipe(one: IO[str] | None) -> IO[str]:
    assert one is not None
    return one


def quantile(times: list[int], q: float) -> int:
    return sorted(times)[min(len(times) - 1, int(len(times) * q))] if times else 0


def rounds(
    children: list[subprocess.Popen[str]], options: argparse.Namespace, load: float
) -> list[dict[str, Any]]:
    """Alone and loaded, in turns, so that a noisy neighbour meets both."""
    rows = []
    small = list(range(options.small))
    large = list(range(options.small, options.small + options.large))
    for _ in range(options.rounds):
        row: dict[str, Any] = {}
        for name, rate in (("alone", 0.0), ("loaded", load)):
            found = ask_all(
                children,
                {
                    "seconds": options.seconds,
                    "small": small,
                    "large": large,
                    "bytes_per_s": rate,
                    "value_bytes": options.value_bytes,
                    "burst": options.burst,
                    "small_bytes": options.small_bytes,
                },
            )
            times = [time for one in found for time in one["times"]]
            row[name] = {
                "count": len(times),
                "p50_us": quantile(times, 0.5),
                "p99_us": quantile(times, 0.99),
                "max_us": max(times, default=0),
                "taken_mb_s": sum(one["taken"] for one in found)
                * options.value_bytes
                / 1e6
                / (WARM_S + options.seconds),
                "short": sum(one["short"] for one in found),
                "journal": [one["journal"] for one in found],
                "sync_max_us": [one["sync_max_us"] for one in found],
            }
        row["ratio"] = row["loaded"]["p99_us"] / max(1, row["alone"]["p99_us"])
        rows.append(row)
    return rows


def show(name: str, row: dict[str, Any]) -> None:
    print(
        f"  {name:6}: p50 {row['p50_us']} us, p99 {row['p99_us']} us, max {row['max_us']} us, "
        f"{row['count']} values; large {row['taken_mb_s']:.1f} MB/s, {row['short']} not taken"
    )
    for one in row["journal"]:
        syncs = max(1, one.get("syncs", 0))
        print(
            f"          journal: {syncs} syncs of {one.get('sync_sum_ns', 0) // syncs // 1000} us, "
            f"{one.get('bytes_written', 0) // syncs} B each, "
            f"{one.get('segments_made', 0)} segments made"
        )
    print(f"          longest syncs so far: {row['sync_max_us']} us")


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        node, *ports, folder, groups = sys.argv[2:]
        run_in_loop(child(int(node), [int(port) for port in ports], folder, int(groups)), "auto")
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=6, help="groups with small values")
    parser.add_argument("--large", type=int, default=6, help="groups with large values")
    parser.add_argument("--small-bytes", type=int, default=100)
    parser.add_argument("--value-bytes", type=int, default=100_000)
    parser.add_argument("--mb-s", type=float, default=0.0, help="large values; 0: from --share")
    parser.add_argument("--share", type=float, default=0.3, help="of the disk, by three journals")
    parser.add_argument("--burst", type=int, default=1, help="large values proposed at once")
    parser.add_argument("--link-mb-s", type=float, default=0.0, help="0: the bare loopback")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--json", type=Path, help="write everything there")
    options = parser.parse_args()
    own = free_ports(len(NODES))
    to = own
    if options.link_mb_s:
        to = [SlowLink(port, options.link_mb_s * 1e6).port for port in own]
    groups = str(options.small + options.large)
    environment = dict(os.environ, PYTHONPATH=str(Path(phx.__file__).parent.parent))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rate = disk_rate(Path(folder))
        load = options.mb_s * 1e6 or rate * options.share / len(NODES)
        print(f"disk: {rate / 1e6:.0f} MB/s synced; large load: {load / 1e6:.1f} MB/s")
        children = [
            subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    "--child",
                    str(node),
                    *ports_of(node, own, to),
                    folder,
                    groups,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
            for node in NODES
        ]
        try:
            if any(pipe(one.stdout).readline() != "ready\n" for one in children):
                raise SystemExit("a node did not start")
            rows = rounds(children, options, load)
        finally:
            for one in children:
                one.communicate(timeout=60)
    for row in rows:
        show("alone", row["alone"])
        show("loaded", row["loaded"])
        print(f"  p99 ratio {row['ratio']:.1f}")
    ratio = statistics.median(row["ratio"] for row in rows)
    print(f"median ratio of the p99s: {ratio:.1f}")
    if options.json:
        options.json.write_text(json.dumps({"disk_bytes_per_s": rate, "rounds": rows}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
