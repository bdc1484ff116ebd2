"""What no replicated log can beat on this machine: bare syncs, a round trip, both together.

The third is a log without a protocol: a leader sends a batch to one follower in another process,
both write and sync it, the follower answers; with three nodes that is a majority. Python's part in
it is a few microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SEGMENT_BYTES = 8 << 20


class Log:
    """A file that was filled once and is overwritten from the start, as a segment is."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(8):
            os.write(self._file, bytes(SEGMENT_BYTES // 8))
        os.fsync(self._file)
        self._at = 0

    def append(self, data: bytes) -> None:
        if self._at + len(data) > SEGMENT_BYTES:
            self._at = 0
        os.pwrite(self._file, data, self._at)
        getattr(os, "fdatasync", os.fsync)(self._file)
        self._at += len(data)


def follow(connection: socket.socket, path: Path) -> None:
    """The other process: append what comes, answer when it is synced."""
    log = Log(path)
    connection.sendall(b".")
    while head := connection.recv(4, socket.MSG_WAITALL):
        data = connection.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL)
        if data:
            log.append(data)
        connection.sendall(b".")


def p50_us(action: Callable[[], None], seconds: float) -> tuple[float, float]:
    """Median time of an action in microseconds, and how often it was done per second."""
    times = []
    until = time.perf_counter() + seconds
    began = time.perf_counter()
    while time.perf_counter() < until:
        at = time.perf_counter_ns()
        action()
        times.append(time.perf_counter_ns() - at)
    return statistics.median(times) / 1000, len(times) / (time.perf_counter() - began)


def measure(folder: Path, seconds: float, value_bytes: int) -> dict[str, float]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if child == 0:
            connection = socket.create_connection(server.getsockname())
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            follow(connection, folder / "follower")
            os._exit(0)
        connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    log = Log(folder / "leader")
    connection.recv(1)

    def replicate(data: bytes) -> None:
        connection.sendall(len(data).to_bytes(4, "little") + data)
        if data:
            log.append(data)
        connection.recv(1)

    record = os.urandom(value_bytes + 32)
    found: dict[str, float] = {}
    found["fdatasync_p50_us"], _ = p50_us(lambda: log.append(record), seconds)
    found["round_trip_p50_us"], _ = p50_us(lambda: replicate(b""), seconds)
    for values in (1, 100, 1000):
        batch = record * values
        took, rate = p50_us(lambda batch=batch: replicate(batch), seconds)  # type: ignore[misc]
        found[f"replicated_p50_us_{values}"] = took
        found[f"replicated_values_per_s_{values}"] = rate * values
    connection.close()
    os.waitpid(child, 0)
    return {name: round(value, 1) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each of five measurements")
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--dir", type=Path, help="where the nodes would keep their data")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        found = measure(Path(folder), options.seconds, options.value_bytes)
    json.dump(found, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
