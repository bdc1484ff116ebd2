"""What many groups cost when nothing happens: time to start, CPU, threads and memory per process.

Three processes on loopback, each with nothing but a node in it. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import phx
from phx.machines import Counter
from phx.testing.processes import free_ports

NODES = (1, 2, 3)
SETTLED_S = 5.0  # leaderships are spread, and what was written at the start is settled


async def child(node: int, ports: list[int], folder: str, groups: int) -> None:
    """A process of its own: say when the node is open and when it is ready; end with stdin."""
    config = phx.Config(
        cluster="idle",
        node=node,
        members={one: f"127.0.0.1:{port}" for one, port in zip(NODES, ports, strict=True)},
        dir=Path(folder, f"node{node}"),
        groups=groups,
    )
    async with phx.Node(config, Counter, bootstrap=True) as one:
        print("open", flush=True)
        await one.wait_ready()
        print("ready", flush=True)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, ended.set)
        await ended.wait()


def look(pid: int) -> dict[str, Any]:
    """CPU seconds so far, threads and memory of a process."""
    proc = Path("/proc", str(pid))
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    status = dict(
        line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
    )
    return {
        "cpu_s": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        "threads": int(status["Threads"]),
        "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
    }


def measure(groups: int, seconds: float) -> dict[str, Any]:
    """Three processes with so many groups each: started, led, then left alone."""
    ports = [str(port) for port in free_ports(len(NODES))]
    environment = dict(os.environ, PYTHONPATH=str(Path(phx.__file__).parent.parent))
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        children = [
            subprocess.Popen(
                [sys.executable, __file__, "--child", str(node), *ports, folder, str(groups)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            for node in NODES
        ]
        try:
            marks = []
            for word in (b"open\n", b"ready\n"):
                for one in children:
                    assert one.stdout is not None
                    if one.stdout.readline() != word:
                        raise SystemExit("a node did not start")
                marks.append(time.monotonic() - began)
            time.sleep(SETTLED_S)
            before = [look(one.pid) for one in children]
            time.sleep(seconds)
            after = [look(one.pid) for one in children]
        finally:
            for one in children:
                one.communicate(timeout=30)
    spent = [later["cpu_s"] - first["cpu_s"] for first, later in zip(before, after, strict=True)]
    return {
        "groups": groups,
        "open_s": round(marks[0], 2),
        "ready_s": round(marks[1], 2),
        "idle_cpu_percent": [round(100 * one / seconds, 2) for one in spent],
        "threads": [one["threads"] for one in after],
        "rss_mib": [round(one["rss_mib"], 1) for one in after],
    }


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        node, *ports, folder, groups = sys.argv[2:]
        asyncio.run(child(int(node), [int(port) for port in ports], folder, int(groups)))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", default="10,1000", help="numbers of groups, with commas")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to look")
    parser.add_argument("--cpu-percent-max", type=float, default=2.0, help="of one core, a process")
    parser.add_argument("--ready-s-max", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="write everything there")
    arguments = parser.parse_args()
    rows = [measure(int(one), arguments.seconds) for one in arguments.groups.split(",")]
    for row in rows:
        print(
            f"{row['groups']:6} groups: open {row['open_s']} s, all ready {row['ready_s']} s, "
            f"idle CPU {row['idle_cpu_percent']} % of a core, threads {row['threads']}, "
            f"memory {row['rss_mib']} MiB"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    good = (
        all(max(row["idle_cpu_percent"]) < arguments.cpu_percent_max for row in rows)
        and all(row["ready_s"] < arguments.ready_s_max for row in rows)
        and all(row["threads"] == rows[0]["threads"] for row in rows)
    )
    print("within the limits" if good else "above a limit", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
