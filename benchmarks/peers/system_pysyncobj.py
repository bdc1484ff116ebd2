"""PySyncObj: in memory, with its journal file as it is, and with that file synced by a patch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Failed, running
from table import Run, quantile

from phx.testing.processes import free_ports

NODE = Path(__file__).with_name("pysyncobj_node.py")
ID_BYTES = 16  # as in pysyncobj_node.py, which imports pysyncobj
BEST_INFLIGHT = 10_000  # over all nodes
START_S, ANSWER_S = 30.0, 60.0

# No compaction: a node that is sent a snapshot would not apply, and we count, what is in it.
# Longer election timeouts than its defaults (0.4 to 1.4 s): busy nodes would lose their leader.
COMMON: dict[str, Any] = {"logCompactionMinEntries": 1 << 30, "logCompactionMinTime": 1 << 30}
COMMON |= {"raftMinTimeout": 1.0, "raftMaxTimeout": 3.0}
# What was fastest for it in each case, of what was tried.
SINGLE: dict[str, Any] = {"appendEntriesUseBatch": False}
MANY: dict[str, Any] = {"appendEntriesPeriod": 0.002, "autoTickPeriod": 0.002}
BEST: dict[str, Any] = {"appendEntriesPeriod": 0.02, "autoTickPeriod": 0.02}


@dataclass(frozen=True)
class Variant:
    """One way to run it."""

    name: str
    durability: str
    journal: bool
    synced: bool


VARIANTS = [
    Variant("PySyncObj, memory", "none: in memory", False, False),
    Variant("PySyncObj, journal", "survives a process, not the machine: never synced", True, False),
    Variant("PySyncObj, journal patched", "synced on a majority (by a patch of ours)", True, True),
]


def missing() -> str:
    """What has to be installed first; "" if nothing."""
    return "" if importlib.util.find_spec("pysyncobj") else "pysyncobj"


def version() -> str:
    return f"PySyncObj {importlib.metadata.version('pysyncobj')}"


def measure(
    variant: Variant,
    case: str,
    callers: int,
    turn: int,
    seconds: float,
    warmup: float,
    size: int,
    folder: Path,
) -> Run:
    """`callers` open calls at the leader; 0: the best mode, from all nodes."""
    conf = COMMON | {0: BEST, 1: SINGLE}.get(callers, MANY)
    names = [f"127.0.0.1:{port}" for port in free_ports(3)]
    with ExitStack() as stack:
        nodes = {}
        for name in names:
            home = folder / name.replace(":", "-")
            home.mkdir()
            node = stack.enter_context(running([sys.executable, str(NODE)], home / "log", True))
            nodes[name] = node
            if variant.journal:
                conf["journalFile"] = str(home / "journal")
            spec: dict[str, Any] = {
                "address": name,
                "others": [one for one in names if one != name],
            }
            spec |= {"conf": conf, "synced": variant.synced, "value_bytes": size}
            _say(node, spec | {"folder": str(home)})
        leader = _leader(nodes)
        begin = time.monotonic_ns() + int(warmup * 1e9)
        end = begin + int(seconds * 1e9)
        for name, node in nodes.items():
            count = callers if name == leader else 0
            count = count if callers else BEST_INFLIGHT // len(nodes)
            _say(node, {"callers": count, "begin_ns": begin, "end_ns": end})
        results = [_hear(node, seconds + warmup + ANSWER_S) for node in nodes.values()]
        for node in nodes.values():
            _say(node, {"finish": True})
        for node in nodes.values():
            _hear(node, ANSWER_S)
    check, ok = _check([folder / name.replace(":", "-") for name in names])
    latencies = sorted(one for result in results for one in result["latencies_us"])
    where = f"{callers} callers at the leader" if callers else f"{BEST_INFLIGHT} over all nodes"
    return Run(
        case=case,
        system=variant.name,
        durability=variant.durability,
        round=turn,
        values_per_s=len(latencies) / seconds,
        p50_us=quantile(latencies, 0.5),
        p99_us=quantile(latencies, 0.99),
        acknowledged=sum(result["acknowledged"] for result in results),
        failed=sum(result["failed"] for result in results),
        check=check,
        ok=ok,
        command=["python pysyncobj_node.py, three times", f"SyncObjConf(**{conf})", where],
    )


def _leader(nodes: dict[str, subprocess.Popen[str]]) -> str:
    """Who leads, when all nodes have said the same for a while."""
    until, agreed = time.monotonic() + START_S, 0
    while time.monotonic() < until:
        for node in nodes.values():
            _say(node, {"who": "leads"})
        leaders = {_hear(node, ANSWER_S)["leader"] for node in nodes.values()}
        agreed = agreed + 1 if len(leaders) == 1 and leaders <= set(nodes) else 0
        if agreed == 5:
            return str(leaders.pop())
        time.sleep(0.1)
    raise Failed(f"PySyncObj: no leader that all agree on in {START_S:g} s")


def _say(node: subprocess.Popen[str], message: dict[str, Any]) -> None:
    assert node.stdin is not None
    try:
        node.stdin.write(json.dumps(message) + "\n")
        node.stdin.flush()
    except BrokenPipeError:
        raise Failed("PySyncObj: a node ended") from None


def _hear(node: subprocess.Popen[str], timeout_s: float) -> dict[str, Any]:
    """The node's next line. It keeps its own time; past `timeout_s` the node is taken for stuck."""
    assert node.stdout is not None

    def late(*_: object) -> None:
        raise Failed(f"PySyncObj: a node said nothing for {timeout_s:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        line = node.stdout.readline()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if not line:
        raise Failed("PySyncObj: a node ended")
    message: dict[str, Any] = json.loads(line)
    return message


def _ids(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return [data[at : at + ID_BYTES] for at in range(0, len(data), ID_BYTES)]


def _check(homes: list[Path]) -> tuple[str, bool]:
    """Has every node applied every acknowledged value, once, and in one order?"""
    acknowledged = {one for home in homes for one in _ids(home / "acknowledged")}
    logs = [_ids(home / "applied") for home in homes]
    missing = [len(acknowledged - set(log)) for log in logs]
    twice = [len(log) - len(set(log)) for log in logs]
    noted = [(home / "log").read_text(errors="replace") for home in homes]
    found = []
    if any(missing):
        found.append(f"acknowledged values missing at the nodes: {missing}")
    if any(twice):
        found.append(f"values applied twice at the nodes: {twice}")
    if not any(missing) and any(log != logs[0] for log in logs):
        found.append("the nodes applied in different orders, or not the same values")
    ok = not found
    if ok:
        found.append("every acknowledged value applied, once, in one order, on every node")
    truncated = sum(text.count("truncating already-applied") for text in noted)
    if truncated:
        found.append(f"it logged {truncated:,} times that it truncates entries already applied")
    return "; ".join(found), ok
