"""Real processes, one node each, and what a test does to them.

Guarantee: when ``Crew.end`` returns, no process that it started is left, nor any child of one.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from phx.testing.strace import Refused, Strace
from tests.ports import free_ports

WORKER = Path(__file__).with_name("worker.py")
RECORD_BYTES = 40  # of a ledger: worker.RECORD
MIB = 1 << 20
SMALL_JOURNAL = {
    "segment_bytes": 1 * MIB,
    "journal_bytes_max": 32 * MIB,
    "settle_bytes": 4 * MIB,
}
SMALL_VALUES = {"value_bytes_max": 64 << 10}

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


class Died(Exception):
    """A worker that should answer is gone, or answered with an error."""


def until(holds: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


class Worker:
    """A process with one node."""

    def __init__(self, node: int, spec: dict[str, Any], log: Path) -> None:
        self.node, self.log = node, log
        self._answers: dict[int, dict[str, Any]] = {}
        self._changed = threading.Condition()
        self._ended = False
        self._numbers = itertools.count(1)
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._write(spec)

    # --- talking

    def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Died(f"node {self.node} is gone\n{self.tail()}") from error

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            with self._changed:
                self._answers[message["id"]] = message
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def ask(self, do: str, **arguments: Any) -> int:
        """Begin something; its answer is had with `answer`."""
        number = next(self._numbers)
        self._write({"id": number, "do": do, **arguments})
        return number

    def answer(self, number: int, timeout_s: float = 30.0) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or self._ended, timeout_s)
            if number not in self._answers:
                how = "is gone" if self._ended else f"did not answer in {timeout_s} s"
                raise Died(f"node {self.node} {how}\n{self.tail()}")
            message = self._answers.pop(number)
        if "error" in message:
            raise Died(f"node {self.node}: {message['error']}\n{self.tail()}")
        return message["result"]

    def answered(self, number: int) -> bool:
        with self._changed:
            return number in self._answers or self._ended

    def call(self, do: str, timeout_s: float = 30.0, /, **arguments: Any) -> Any:
        return self.answer(self.ask(do, **arguments), timeout_s)

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.lines()[-lines:])

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    # --- ending

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL; it may not be gone yet when this returns."""
        if self.process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout_s: float = 20.0) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what was not written yet is for nobody
                pipe.close()
        return code

    def close(self, timeout_s: float = 30.0) -> None:
        """Close the node cleanly."""
        self.call("close", timeout_s)
        assert self.wait() == 0, self.tail()

    # --- looking at it from outside

    def status_file(self) -> dict[str, str]:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)

    def memory_bytes(self, name: str = "VmRSS") -> int:
        return int(self.status_file()[name].split()[0]) * 1024

    def threads(self) -> int:
        return int(self.status_file()["Threads"])

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Crew:
    """A cluster of workers, their folders and ports."""

    def __init__(
        self,
        folder: Path,
        nodes: int = 3,
        *,
        groups: int = 4,
        machine: str = "values",
        data: Path | None = None,
        cluster: str = "crash",
        **sections: Any,
    ) -> None:
        self.folder = folder
        self.data = data or folder  # where the nodes' folders are
        self.ids = list(range(1, nodes + 1))
        self.groups = groups
        self.workers: dict[int, Worker] = {}
        self.ledgers: list[str] = []
        self._machine, self._sections, self._cluster = machine, sections, cluster
        self.ports = dict(zip(self.ids, free_ports(nodes), strict=True))
        self._traces: list[Strace] = []
        self._born: list[Worker] = []

    def __getitem__(self, node: int) -> Worker:
        return self.workers[node]

    def config(self, node: int) -> dict[str, Any]:
        given = {
            "cluster": self._cluster,
            "node": node,
            "groups": self.groups,
            "dir": str(self.data / f"node{node}"),
            "members": {str(one): f"127.0.0.1:{port}" for one, port in self.ports.items()},
            "journal": SMALL_JOURNAL,
            "limits": SMALL_VALUES,
        }
        return given | self._sections

    def launch(self, node: int, *, bootstrap: bool = False) -> Worker:
        """Start the process; its node opens with `open`."""
        ledger = str(self.folder / f"ledger{node}.{len(self.ledgers)}")
        spec = {
            "config": self.config(node),
            "machine": self._machine,
            "bootstrap": bootstrap,
            "ledger": ledger if self._machine == "values" else None,
        }
        worker = self.workers[node] = Worker(node, spec, self.folder / f"node{node}.log")
        self._born.append(worker)
        if spec["ledger"]:
            Path(ledger).touch()
            self.ledgers.append(ledger)
        return worker

    def start(self, *nodes: int, bootstrap: bool = False, timeout_s: float = 60.0) -> None:
        """Start these nodes (default: all), and wait until they are open."""
        wanted = nodes or tuple(self.ids)
        for node in wanted:
            self.launch(node, bootstrap=bootstrap)
        self.each("open", timeout_s, nodes=wanted)

    def each(
        self,
        do: str,
        timeout_s: float = 30.0,
        /,
        nodes: Iterable[int] | None = None,
        **arguments: Any,
    ) -> dict[int, Any]:
        """Ask several nodes (default: all) the same at once; answers by node."""
        workers = [self.workers[node] for node in (nodes or self.workers)]
        asked = [(worker, worker.ask(do, **arguments)) for worker in workers]
        end = time.monotonic() + timeout_s
        return {
            worker.node: worker.answer(number, max(0.1, end - time.monotonic()))
            for worker, number in asked
        }

    def ready(self, timeout_s: float = 40.0, nodes: Iterable[int] | None = None) -> None:
        """Wait until every group has a leader, and what is chosen is applied."""
        self.each("ready", timeout_s + 5, nodes=nodes, timeout_s=timeout_s)

    def led(self, nodes: Sequence[int] | None = None, timeout_s: float = 30.0) -> dict[int, int]:
        """Leader of each group, once all nodes agree on all, nothing has moved for a second, and
        each of `nodes` (default: all) leads some.
        """
        wanted = set(nodes or self.ids)
        found: dict[int, int] = {}
        since = time.monotonic()
        end = since + timeout_s
        while time.monotonic() < end:
            views = list(self.each("leaders", nodes=nodes).values())
            now = dict(enumerate(views[0]))
            apart = any(view != views[0] for view in views) or set(views[0]) != wanted
            if apart or now != found:
                found, since = now, time.monotonic()
            elif time.monotonic() > since + 1.0:
                return found
            time.sleep(0.05)
        raise AssertionError(f"no stable leaders in {timeout_s} s: {views}")

    def converged(self, timeout_s: float = 30.0) -> None:
        """Wait until all nodes have applied the same instances, everything that was ever chosen
        among them (after a start nodes agree before they know that); their digests must be equal.
        """
        end = time.monotonic() + timeout_s
        first, *_ = self.workers.values()
        first.call("barrier", timeout_s + 5, timeout_s=timeout_s)
        while True:
            first, *rest = self.each("positions").values()
            places = [{group: one[:2] for group, one in view.items()} for view in (first, *rest)]
            if all(view == places[0] for view in places) and all(
                applied == chosen for applied, chosen in places[0].values()
            ):
                break
            assert time.monotonic() < end, f"nodes differ after {timeout_s} s: {places}"
            time.sleep(0.05)
        assert all(view == first for view in rest), "equal positions, different digests"

    def acknowledged(self) -> int:
        """Values in all ledgers."""
        return sum(os.path.getsize(path) for path in self.ledgers) // RECORD_BYTES

    def nothing_lost(self) -> int:
        """Every value that was ever acknowledged is on every node; how many that are."""
        wanted = self.acknowledged()
        for node, found in self.each("find", 120.0, ledgers=self.ledgers).items():
            assert found["checked"] == wanted
            assert found["lost"] == 0, f"node {node} lost {found['lost']}: {found['examples']}"
            assert found["twice"] == 0, f"node {node} applied {found['twice']} values twice"
        return wanted

    def kill(self, *nodes: int) -> None:
        """SIGKILL these (default: all) at once, and wait until they are gone."""
        wanted = nodes or tuple(self.workers)
        for node in wanted:
            self.workers[node].kill()
        for node in wanted:
            self.workers.pop(node).wait()

    def close(self) -> None:
        """Close every node cleanly."""
        asked = [(worker, worker.ask("close")) for worker in self.workers.values()]
        for worker, number in asked:
            worker.answer(number, 30)
        for worker, _ in asked:
            assert worker.wait() == 0, worker.tail()
        self.workers.clear()

    def trace(self, node: int, inject: str) -> Strace:
        try:
            one = Strace(self.workers[node].pid, inject)
        except Refused as error:
            pytest.skip(str(error))
        self._traces.append(one)
        return one

    def end(self) -> None:
        """Kill whatever is left."""
        for worker in self._born:
            worker.kill()
        for trace in self._traces:
            trace.end(kindly=False)
        for worker in self._born:
            worker.wait()
