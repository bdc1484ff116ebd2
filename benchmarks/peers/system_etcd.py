"""etcd as Debian packages it: three members on loopback, durable as it is by default."""

from __future__ import annotations

import base64
import json
import secrets
import shlex
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from processes import Failed, output, running
from table import Run, quantile

from phx.testing.processes import free_ports

DURABILITY = "synced on a majority before the acknowledgement (default)"
CLIENT_SOURCE = Path(__file__).with_name("etcd_put.c")
BEST_CALLERS, BEST_CONNECTIONS = 1000, 20
CONNECTIONS_MAX = 20
START_S, DRAIN_S = 30.0, 12.0
RECORD_HEAD = struct.Struct("<8sQQ")


def missing() -> str:
    """What has to be installed first; "" if nothing."""
    needed = [name for name in ("etcd", "etcdctl", "cc") if shutil.which(name) is None]
    if (
        not needed
        and subprocess.run(
            ["cc", "-E", "-"],
            input="#include <nghttp2/nghttp2.h>\n",
            capture_output=True,
            text=True,
        ).returncode
    ):
        needed.append("nghttp2/nghttp2.h")
    return ", ".join(needed)


def version() -> str:
    said = subprocess.run(["etcd", "--version"], capture_output=True, text=True, timeout=10)
    return said.stdout.splitlines()[0].replace("Version: ", "")


def build_client(folder: Path) -> Path:
    """The native client, compiled into `folder`."""
    program = folder / "etcd_put"
    if not program.exists():
        command = ["cc", "-O2", "-o", str(program), str(CLIENT_SOURCE), "-lnghttp2"]
        output(command, 60.0, folder / "cc.log")
    return program


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[list[int], list[str]]]:
    """Three members; their client ports, the leader's first, and the command of one of them."""
    ports = free_ports(6)
    names = [f"m{number}" for number in range(3)]
    peers = [f"http://127.0.0.1:{port}" for port in ports[3:]]
    everyone = ",".join(f"{name}={url}" for name, url in zip(names, peers, strict=True))
    with ExitStack() as stack:
        for number, name in enumerate(names):
            client = f"http://127.0.0.1:{ports[number]}"
            command = ["etcd", "--name", name, "--data-dir", str(folder / name)]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client]
            command += ["--listen-peer-urls", peers[number]]
            command += ["--initial-advertise-peer-urls", peers[number]]
            command += ["--initial-cluster", everyone, "--initial-cluster-state", "new"]
            command += ["--log-level", "error", "--logger", "zap"]
            stack.enter_context(running(command, folder / f"{name}.log"))
        leader = _leader(ports[:3], folder)
        yield [leader, *(port for port in ports[:3] if port != leader)], command


def _ctl(port: int, words: list[str], timeout_s: float, folder: Path) -> str:
    command = ["etcdctl", f"--endpoints=127.0.0.1:{port}", f"--command-timeout={timeout_s:g}s"]
    return output(["env", "ETCDCTL_API=3", *command, *words], timeout_s + 5, folder / "ctl.log")


def _leader(ports: list[int], folder: Path) -> int:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        for port in ports:
            try:
                (one,) = json.loads(_ctl(port, ["endpoint", "status", "-w", "json"], 2, folder))
            except Failed:
                continue
            status = one["Status"]
            if status.get("leader") and status["leader"] == status["header"]["member_id"]:
                return port
        time.sleep(0.1)
    raise Failed(f"etcd: no leader in {START_S:g} s")


def measure(
    case: str, callers: int, turn: int, seconds: float, warmup: float, size: int, folder: Path
) -> Run:
    """`callers` open calls, at the leader; 0: the best mode."""
    width = min(callers, CONNECTIONS_MAX) or BEST_CONNECTIONS
    callers = callers or BEST_CALLERS
    program = build_client(folder)
    acknowledged = folder / "acknowledged"
    with cluster(folder) as (ports, member):
        begin = time.monotonic_ns() + int(warmup * 1e9)
        end = begin + int(seconds * 1e9)
        shape = [str(width), str(callers), str(size)]
        words = [str(ports[0]), *shape, str(begin), str(end), str(secrets.randbits(63))]
        command = [str(program), *words, str(acknowledged)]
        printed = output(command, seconds + warmup + DRAIN_S + 5, folder / "put.log")
        _, failed, still_open = (int(word) for word in printed.split())
        records = acknowledged.read_bytes()
        values, latencies = _parse(records, size, begin, end)
        check, ok = _check(values, ports, folder)
    return Run(
        case=case,
        system="etcd",
        durability=DURABILITY,
        round=turn,
        values_per_s=len(latencies) / seconds,
        p50_us=quantile(latencies, 0.5),
        p99_us=quantile(latencies, 0.99),
        acknowledged=len(values),
        failed=failed + still_open,
        check=check,
        ok=ok,
        command=[shlex.join(member), f"etcd_put PORT {' '.join(shape)} BEGIN END SEED FILE"],
    )


def _parse(
    records: bytes, size: int, begin: int, end: int
) -> tuple[dict[bytes, bytes], list[float]]:
    """Acknowledged values by key; sorted latencies, in us, of those answered in [begin, end)."""
    values: dict[bytes, bytes] = {}
    latencies: list[float] = []
    step = RECORD_HEAD.size + size
    for at in range(0, len(records), step):
        key, started, answered = RECORD_HEAD.unpack_from(records, at)
        values[key] = records[at + RECORD_HEAD.size : at + step]
        if begin <= answered < end:
            latencies.append((answered - started) / 1000)
    return values, sorted(latencies)


def _check(values: dict[bytes, bytes], ports: list[int], folder: Path) -> tuple[str, bool]:
    """Is every acknowledged value what each member answers a linearizable read with?"""
    for port in ports:
        words = ["get", "", "--prefix", "-w", "json"]
        found = json.loads(_ctl(port, words, 60.0, folder)).get("kvs", [])
        have = {base64.b64decode(one["key"]): base64.b64decode(one["value"]) for one in found}
        wrong = sum(have.get(key) != value for key, value in values.items())
        if wrong:
            return f"{wrong:,} of {len(values):,} acknowledged values missing or changed", False
    return "every acknowledged value read back through every member (linearizable)", True
