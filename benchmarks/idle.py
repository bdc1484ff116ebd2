"""What many groups cost when nothing happens: time to start, CPU, threads and memory per process.

Three processes on loopback, each with nothing but a node in it. Linux with glibc only. The slope of
memory between two numbers of groups is what a group costs; it is split by what took it: `malloc`
(native structs in use, and holes that the allocator keeps), Python's own arenas, file pages.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import phx
from phx._core.driver import GROUP_BYTES
from phx.testing.processes import free_ports

NODES = (1, 2, 3)
SETTLED_S = 5.0  # leaderships are spread, and what was written at the start is settled


class Nothing(phx.StateMachine):
    """One machine for all groups: what a machine costs is its user's affair."""

    def apply(self, entry: phx.Entry) -> None:
        pass


class MallInfo(ctypes.Structure):
    """struct mallinfo2 of glibc: sums over all arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "mapped",
            "usmblks",
            "fsmblks",
            "used",
            "free",
            "keepcost",
        )
    )


def own_memory() -> dict[str, int]:
    """Bytes of this process, by what took them."""
    function = ctypes.CDLL(None).mallinfo2
    function.restype = MallInfo
    native = function()
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    anonymous, files = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    used, free = native.used + native.mapped, native.free
    return {
        "native": used,
        "native, free": free,
        "Python and stacks": anonymous - used - free,
        "file pages": files,
        "Python, tracked objects": len(gc.get_objects()),
    }


async def child(node: int, ports: list[int], folder: str, groups: int, use: bool) -> None:
    """A process of its own: say when the node is open and when it is ready; end with stdin."""
    config = phx.Config(
        cluster="idle",
        node=node,
        members={one: f"127.0.0.1:{port}" for one, port in zip(NODES, ports, strict=True)},
        dir=Path(folder, f"node{node}"),
        groups=groups,
    )
    machine = Nothing()
    async with phx.Node(config, lambda group: machine, bootstrap=True) as one:
        print("open", flush=True)
        await one.wait_ready()
        print("ready", flush=True)
        if use:
            await asyncio.gather(*(group.propose(b"once") for group in one.groups))
        await asyncio.sleep(SETTLED_S)
        print(json.dumps(own_memory()), flush=True)
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


def measure(groups: int, seconds: float, use: bool) -> dict[str, Any]:
    """Three processes with so many groups each: started, led, then left alone."""
    ports = [str(port) for port in free_ports(len(NODES))]
    rest = [str(groups), "used"] if use else [str(groups)]
    environment = dict(os.environ, PYTHONPATH=str(Path(phx.__file__).parent.parent))
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        children = [
            subprocess.Popen(
                [sys.executable, __file__, "--child", str(node), *ports, folder, *rest],
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
                    if read_line(one) != word:
                        raise SystemExit("a node did not start")
                marks.append(time.monotonic() - began)
            memory = [json.loads(read_line(one)) for one in children]
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
        "memory": {name: statistics.mean(one[name] for one in memory) for name in memory[0]},
    }


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def print_slope(less: dict[str, Any], more: dict[str, Any]) -> float:
    """What each further group took; bytes, mean of the processes."""
    span = more["groups"] - less["groups"]
    slopes = {name: (more["memory"][name] - at) / span for name, at in less["memory"].items()}
    objects = slopes.pop("Python, tracked objects")
    rss = sum(statistics.mean(row["rss_mib"]) * sign for row, sign in ((more, 1), (less, -1)))
    total = rss * 2**20 / span
    parts = ", ".join(f"{name} {slope:,.0f}" for name, slope in slopes.items())
    print(f"each group from {less['groups']} to {more['groups']}: {total:,.0f} B resident")
    print(f"    {parts}; {objects:.1f} objects that Python's collector visits")
    return total


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        use = sys.argv[-1] == "used"
        node, *ports, folder, groups = sys.argv[2 : len(sys.argv) - use]
        asyncio.run(child(int(node), [int(port) for port in ports], folder, int(groups), use))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", default="1000,10000", help="numbers of groups, with commas")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to look")
    parser.add_argument("--cpu-percent-max", type=float, default=2.0, help="of one core, a process")
    parser.add_argument("--ready-s-max", type=float, default=10.0)
    parser.add_argument("--group-bytes-max", type=float, default=2000.0)
    parser.add_argument("--used", action="store_true", help="first one value in every group")
    parser.add_argument("--json", type=Path, help="write everything there")
    arguments = parser.parse_args()
    numbers = [int(one) for one in arguments.groups.split(",")]
    rows = [measure(groups, arguments.seconds, arguments.used) for groups in numbers]
    for row in rows:
        print(
            f"{row['groups']:6} groups: open {row['open_s']} s, all ready {row['ready_s']} s, "
            f"idle CPU {row['idle_cpu_percent']} % of a core, threads {row['threads']}, "
            f"memory {row['rss_mib']} MiB"
        )
    print("native structs, B:", ", ".join(f"{name} {size}" for name, size in GROUP_BYTES.items()))
    slopes = [print_slope(less, more) for less, more in pairwise(rows)]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    good = (
        all(max(row["idle_cpu_percent"]) < arguments.cpu_percent_max for row in rows)
        and all(row["ready_s"] < arguments.ready_s_max for row in rows)
        and all(slope < arguments.group_bytes_max for slope in slopes)
        and all(row["threads"] == rows[0]["threads"] for row in rows)
    )
    print("within the limits" if good else "above a limit", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
