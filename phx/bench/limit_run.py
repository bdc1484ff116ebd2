"""What this machine can do without a protocol: syncs, appends, round trips, and a bare cluster.

The bare cluster journals, sends, syncs and acknowledges as phx does, and nothing else (limit.pxd).
It is the upper bound that phx is compared with, measured in the same run on the same disk.

    python -m phx.bench.limit_run --groups 100 --inflight 10000 --seconds 3
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from phx.bench.limit_door import File, ping

ROOT = str(Path(__file__).resolve().parents[2])
MIB = 1 << 20
FILE_BYTES = 64 * MIB
WARMUP_S = 0.3
SYNC_BYTES = 4096
BARE_S = 1.0  # at most so long for each of the bare figures
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
NODES_MAX = 8
LOOPS = ("asyncio", "uvloop")

Progress = Callable[[str], None]


class LimitFailed(Exception):
    """A process of the bare cluster failed, died or did not answer: nothing was measured."""


class Worker:
    """One process of limit_worker.py. It is gone when `end` returns."""

    def __init__(self, spec: dict[str, Any]):
        path = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "phx.bench.limit_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
        )
        self._heard = b""
        self.say(**spec)

    def say(self, **what: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise LimitFailed("a process of the bare cluster died") from error

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """The next answer."""
        assert self._process.stdout is not None
        until_s = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._heard:
                if not selector.select(max(0.0, until_s - time.monotonic())):
                    raise LimitFailed("a process of the bare cluster does not answer")
                more = os.read(self._process.stdout.fileno(), MIB)
                if not more:
                    raise LimitFailed("a process of the bare cluster died")
                self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LimitFailed(answer["error"])
        return answer

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with suppress(BrokenPipeError):
            self._process.stdin.close()


class Workers:
    """Processes that end with the block."""

    def __init__(self, specs: list[dict[str, Any]]):
        self._all: list[Worker] = []
        try:
            for spec in specs:
                self._all.append(Worker(spec))
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> list[Worker]:
        return self._all

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._all:
            worker.end()


def shares(nodes: int, groups: int, inflight: int, leaders: str) -> list[dict[int, int]]:
    """For each node the groups whose values it takes, and how many it keeps in flight in each.

    Args:
        leaders: "spread": group g is led by node g modulo nodes; "one": by the first node.
    """
    used = min(groups, inflight)
    each: list[dict[int, int]] = [{} for _ in range(nodes)]
    for group in range(used):
        node = group % nodes if leaders == "spread" else 0
        each[node][group] = inflight // used + (group < inflight % used)
    return each


def run_cluster(
    folder: Path,
    *,
    nodes: int,
    groups: int,
    inflight: int,
    value_bytes: int,
    seconds: float,
    warmup: float = WARMUP_S,
    leaders: str = "",
    loop: str = "",
    file_bytes: int = FILE_BYTES,
) -> list[dict[str, Any]]:
    """Run a bare cluster with journals in `folder`; what each node measured, all values done.

    Args:
        leaders: see shares; "": spread if every node would lead a group.
        loop: "asyncio" or "uvloop": values come from coroutines there; "": from native code.

    Raises:
        LimitFailed: nothing was measured.
    """
    if not 1 <= nodes <= NODES_MAX or groups < 1 or inflight < 1 or seconds <= 0:
        raise ValueError(f"nodes is 1 to {NODES_MAX}; groups, inflight and seconds are above 0")
    folder.mkdir(parents=True, exist_ok=True)
    leaders = leaders or ("spread" if groups >= nodes else "one")
    specs = [
        {
            "folder": str(folder / f"node{node}"),
            "file_bytes": file_bytes,
            "me": node,
            "nodes": nodes,
            "groups": groups,
            "value_bytes": value_bytes,
            "share": share,
            "loop": loop,
        }
        for node, share in enumerate(shares(nodes, groups, inflight, leaders))
    ]
    with Workers(specs) as workers:
        ports = [worker.hear(START_TIMEOUT_S)["port"] for worker in workers]
        for step in ("ready", "drained"):
            begin_ns = time.monotonic_ns() + int((warmup + 0.05) * 1e9)
            for worker in workers:
                if step == "ready":
                    worker.say(ports=ports)
                else:
                    worker.say(begin_ns=begin_ns, end_ns=begin_ns + int(seconds * 1e9))
            for worker in workers:
                worker.hear(warmup + seconds + START_TIMEOUT_S)
        for worker in workers:
            worker.say()
        return [worker.hear(STOP_TIMEOUT_S) for worker in workers]


def quantile(counted: list[tuple[int, int]], q: float) -> float:
    """The q-quantile of (value, count); 0 when there are none."""
    left = q * sum(count for _, count in counted)
    for value, count in sorted(counted):
        left -= count
        if left <= 0:
            return value
    return 0.0


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of what all nodes measured."""
    counted = [(ns, count) for one in results for ns, count in one["histogram_ns"]]
    counted += [(ns, 1) for one in results for ns in one["latencies_ns"]]
    values = sum(one["values"] for one in results)
    return {
        "values_per_s": round(sum(one["values"] / one["seconds"] for one in results), 1),
        "p50_us": round(quantile(counted, 0.5) / 1000, 1),
        "p99_us": round(quantile(counted, 0.99) / 1000, 1),
        "syncs": sum(one["syncs"] for one in results),
        "values": values,
        "seconds": round(max(one["seconds"] for one in results), 3),
        "cpu_ns_per_value": round(sum(one["cpu_ns"] for one in results) / max(values, 1), 1),
    }


def measure_syncs(folder: Path, seconds: float) -> dict[str, float]:
    """A small overwrite of a file of zeros and its sync, one after the other."""
    file = File(str(folder / "sync"), 4 * MIB)
    try:
        times = file.overwrite(SYNC_BYTES, seconds)
    finally:
        file.close()
    counted = [(ns, 1) for ns in times]
    return {
        "p50": round(quantile(counted, 0.5) / 1000, 1),
        "p99": round(quantile(counted, 0.99) / 1000, 1),
        "rate_per_s": round(len(times) * 1e9 / sum(times), 1),
    }


def measure_appends(folder: Path, write_bytes: int, files: int, seconds: float) -> float:
    """Bytes a second that synced overwrites of that size bring to disk, in all files at once."""
    with ExitStack() as stack:
        opened = []
        for number in range(files):
            opened.append(File(str(folder / f"append{files}-{number}"), FILE_BYTES))
            stack.callback(opened[-1].close)
        with ThreadPoolExecutor(files) as pool:
            runs = list(pool.map(lambda file: file.overwrite(write_bytes, seconds), opened))
    rate: float = sum(len(times) * write_bytes * 1e9 / sum(times) for times in runs)
    return round(rate, 1)


def measure_round_trip(seconds: float) -> dict[str, float]:
    """One byte to another process over loopback TCP, and back."""
    with Workers([{"echo": True}]) as (worker,):
        port = worker.hear(START_TIMEOUT_S)["port"]
        with socket.create_connection(("127.0.0.1", port), START_TIMEOUT_S) as there:
            there.settimeout(None)
            there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            times = ping(there.fileno(), seconds)
    return {"p50": round(quantile([(ns, 1) for ns in times], 0.5) / 1000, 1)}


def loops_found() -> list[str]:
    return [name for name in LOOPS if name == "asyncio" or importlib.util.find_spec(name)]


def measure(
    folder: Path | None,
    *,
    nodes: int = 3,
    groups: int,
    inflight: int,
    value_bytes: int,
    seconds: float,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """What the machine can do without a protocol. Files are made below `folder` and removed.

    Args:
        folder: on the disk that matters; None: the system's folder for temporary files.
        nodes: processes of the bare cluster (1 to 8).
        groups, inflight: streams of values, and values in flight over all of them.
        value_bytes: of each value (1 to 65536).
        seconds: of each run of the cluster; bare figures take at most one second each.
        progress: told what is being measured.

    Raises:
        LimitFailed: a process failed. OSError: as the operating system says.
    """
    bare_s = min(seconds, BARE_S)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="phx-limit-", dir=folder) as made:
        below = Path(made)

        def cluster(name: str, open_values: int, loop: str = "") -> list[dict[str, Any]]:
            progress(f"bare cluster, {open_values:,} in flight{', ' if loop else ''}{loop}")
            return run_cluster(
                below / name,
                nodes=nodes,
                groups=groups,
                inflight=open_values,
                value_bytes=value_bytes,
                seconds=seconds,
                loop=loop,
            )

        progress("bare syncs")
        result: dict[str, Any] = {"sync_us": measure_syncs(below, bare_s)}
        progress("round trips")
        result["round_trip_us"] = measure_round_trip(bare_s)
        loaded = cluster("many", inflight)
        result["cluster"] = summary(loaded)
        result["cluster_one"] = summary(cluster("one", 1))
        result["cluster_futures"] = {
            loop: summary(cluster(loop, inflight, loop)) for loop in loops_found()
        }
        mean = sum(one["written_bytes"] for one in loaded) / max(result["cluster"]["syncs"], 1)
        write_bytes = min(MIB, max(SYNC_BYTES, -int(-mean // SYNC_BYTES) * SYNC_BYTES))
        progress(f"synced appends of {write_bytes:,} bytes")
        result["append_bytes_per_s"] = {
            "write_bytes": write_bytes,
            "one_file": measure_appends(below, write_bytes, 1, bare_s),
            "three_files": measure_appends(below, write_bytes, 3, bare_s),
        }
    return result


def lines(result: dict[str, Any], name: str = "") -> list[str]:
    """The result, one figure a line."""
    found = []
    for key, value in result.items():
        path = f"{name}.{key}" if name else key
        if isinstance(value, dict):
            found += lines(value, path)
        else:
            found.append(f"{path:<44} {value:>18,}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m phx.bench.limit_run", description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--inflight", type=int, default=1000)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3.0)
    asked = vars(parser.parse_args())
    folder = asked.pop("folder")
    result = measure(folder, progress=lambda text: print(f"… {text}", file=sys.stderr), **asked)
    print("\n".join(lines(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
