"""What workers share that kill themselves at a step, and the tests that run them.

python dying.py WORKER      (lives of it, for Lives)
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from phx.config import Timing
from phx.verify import examine

Place = tuple[int, int]  # group, machine

ALONE = Timing(heartbeat_us=20_000, lease_us=100_000, election_us=20_000)
"""Of a node that has nobody else to wait for: these waits would be most of every start."""


def arm(owner: Any, step: str, times: int) -> None:
    """Have the process killed at the `times`-th step of this name.

    Args:
        owner: of the function that is the step.
        step: "before-NAME" or "after-NAME" of it.
    """
    when, _, what = step.partition("-")
    original = getattr(owner, what)
    numbers = itertools.count(1)

    def hooked(*given: Any, **named: Any) -> Any:
        number = next(numbers)  # of this call, whichever thread it comes from
        if when == "before" and number == times:
            os.kill(os.getpid(), signal.SIGKILL)
        found = original(*given, **named)
        if when == "after" and number == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, what, hooked)


def told_of(output: str, places: Iterable[Place]) -> dict[Place, int]:
    """How many values of each place a worker said were acknowledged."""
    told = dict.fromkeys(places, 0)
    for line in output[: output.rfind("\n") + 1].splitlines():
        group, machine, count = map(int, line.split())
        told[group, machine] = count
    return told


async def recovered(node: Any, groups: Iterable[int]) -> None:
    """Everything that was ever acknowledged is applied here. A node is *ready* a second after it
    has a leader, also where a slow disk keeps that leader from finding out what was chosen."""
    await node.wait_ready(timeout=20)
    for group in groups:
        await node.group(group).barrier(timeout=20)


def breed(worker: Path) -> None:
    """A life of the worker for each line of its arguments, one after the other.

    Says "pid N" when one begins, and "ended CODE" behind all that it said.
    """
    spec = importlib.util.spec_from_file_location(worker.stem, worker)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        if not (child := os.fork()):
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            module.begin(json.loads(line))
            return
        os.write(1, b"pid %d\n" % child)
        _, status = os.waitpid(child, 0)
        os.write(1, b"ended %d\n" % os.waitstatus_to_exitcode(status))


class Lives:
    """Lives of a worker, one after the other. Each is a process with threads and locks of its own.

    On Linux they are forks of one process, without threads, that has imported all they need, which
    takes longer than many a life. Elsewhere a fork is not safe: each imports anew.

    Args:
        worker: a script with `begin(words)` for its arguments; it says lines on its descriptor 1.
    """

    def __init__(self, worker: Path) -> None:
        self._worker = worker
        self._forks = sys.platform == "linux"
        self._errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 (until close)
        self._process: subprocess.Popen[str] | None = None
        self._pid = 0

    def begin(self, *arguments: object) -> None:
        words = [str(word) for word in arguments]
        assert not self._pid, "one at a time"
        if not self._forks:
            self._process = self._start(self._worker, *words)
            self._pid = self._process.pid
            return
        if self._process is None:
            self._process = self._start(__file__, self._worker)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        what, _, number = self.line().partition(" ")
        assert what == "pid", (what, self.errors())
        self._pid = int(number)

    def _start(self, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, *map(str, words)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def line(self) -> str:
        """The next line that the life says; waits for it."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self._pid, signal.SIGKILL)

    def end(self) -> tuple[int, str]:
        """Its exit code (-9: it was killed), and what else it said; waits for it."""
        assert self._process is not None
        said = ""
        while (line := self.line()) and not line.startswith("ended "):
            said += line
        self._pid = 0
        if self._forks:
            assert line, self.errors()
            return int(line.split()[1]), said
        return self._wait(), said

    def _wait(self) -> int:
        assert self._process is not None
        with self._process:
            self._process, process = None, self._process
        return process.returncode

    def errors(self) -> str:
        """What lives wrote on stderr."""
        self._errors.seek(0)
        return self._errors.read()

    def close(self) -> None:
        if self._pid:
            self.kill()
        if self._process is not None:
            self._process.kill()
            self._wait()
        self._errors.close()


class Promises:
    """What a node has promised by group, as its journal says between two lives: it only grows."""

    def __init__(self) -> None:
        self._highest: dict[int, int] = {}

    def look(self, folder: Path) -> None:
        """Of a node that does not run."""
        journal = examine(folder, whole=False).journal
        assert journal is not None
        found = {group: ballot for group, ballot, *_ in journal.groups}
        for group, ballot in self._highest.items():
            assert found.get(group, 0) >= ballot, (group, ballot, found)
        self._highest = found

    def of(self, group: int) -> int:
        return self._highest.get(group, 0)


def killed(lives: Lives, places: Iterable[Place], *arguments: object) -> dict[Place, int]:
    """Let a worker run into its step; how many values were acknowledged before that."""
    lives.begin(*arguments)
    code, said = lives.end()
    assert code == -9, (*arguments, code, lives.errors())
    return told_of(said, places)


if __name__ == "__main__":
    breed(Path(sys.argv[1]))
