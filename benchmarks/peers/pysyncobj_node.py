"""One PySyncObj node in a process of its own, with its callers. Led over a pipe, a line at a time.

From the parent: the specification, questions who leads, the load, then "finish", each a JSON
object. To it: who leads, what was measured, and that the files are written. The process ends when
its standard input does. Callers are chains of callbacks: the answer to one value proposes the next.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pysyncobj.syncobj
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.journal import FileJournal

ID_BYTES = 16
DRAIN_S, STILL_S, SETTLE_S = 10.0, 1.0, 15.0

applied: list[bytes] = []  # outside of the object, which PySyncObj pickles when it compacts


class Log(SyncObj):
    """A machine that keeps what it applies, as the first bytes of each value."""

    @replicated
    def put(self, value: bytes) -> None:
        applied.append(value[:ID_BYTES])


class SyncedJournal(FileJournal):
    """PySyncObj's journal, synced when `settle` is called and something was added."""

    def __init__(self, path: str):
        self.unsynced = False
        super().__init__(path)

    def add(self, command: bytes, idx: int, term: int) -> None:
        super().add(command, idx, term)
        self.unsynced = True

    def settle(self) -> None:
        if self.unsynced:
            self.flush()  # msync of the whole map
            self.unsynced = False


def sync_before_voting() -> None:
    """Make PySyncObj sync: a follower before it answers, a leader before it counts its own vote.

    This is not in PySyncObj: it has no option for it, and never syncs. One sync covers all that a
    turn of its loop, or a message, has added.
    """
    journals: list[SyncedJournal] = []

    def create(path: str) -> SyncedJournal:
        journals.append(SyncedJournal(path))
        return journals[0]

    answer = SyncObj._SyncObj__sendNextNodeIdx
    turn = SyncObj._onTick

    def synced_answer(self: SyncObj, *arguments: Any, **named: Any) -> None:
        journals[0].settle()
        answer(self, *arguments, **named)

    def synced_turn(self: SyncObj, *arguments: Any) -> None:
        journals[0].settle()
        turn(self, *arguments)

    pysyncobj.syncobj.createJournal = create
    SyncObj._SyncObj__sendNextNodeIdx = synced_answer
    SyncObj._onTick = synced_turn


class Callers:
    """So many open calls; all but the first ones are made in PySyncObj's own thread."""

    def __init__(self, log: Log, size: int, begin_ns: int, end_ns: int):
        self._log, self._size = log, size
        self._begin_ns, self._end_ns = begin_ns, end_ns
        self.open = 0
        self.failed = 0
        self.acknowledged: list[bytes] = []
        self.latencies_us: list[float] = []

    def propose(self) -> None:
        value, started = os.urandom(self._size), time.monotonic_ns()

        def answered(_: None, error: int) -> None:
            at = time.monotonic_ns()
            if error:
                self.failed += 1
            else:
                self.acknowledged.append(value[:ID_BYTES])
                if self._begin_ns <= at < self._end_ns:
                    self.latencies_us.append((at - started) / 1000)
            if at < self._end_ns:
                self.propose()
            else:
                self.open -= 1

        self._log.put(value, callback=answered)

    def run(self, count: int) -> None:
        """Until the end, and then until the open calls are answered, or DRAIN_S have passed."""
        self.open = count
        for _ in range(count):
            self.propose()
        until = self._end_ns + int(DRAIN_S * 1e9)
        while time.monotonic_ns() < self._end_ns or (self.open and time.monotonic_ns() < until):
            time.sleep(0.02)


def wait_until_still() -> None:
    """Until nothing was applied for a while: the node has what it will get."""
    count, since = -1, time.monotonic()
    until = since + SETTLE_S
    while time.monotonic() < min(since + STILL_S, until):
        if len(applied) != count:
            count, since = len(applied), time.monotonic()
        time.sleep(0.02)


def tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def told() -> dict[str, Any]:
    line = sys.stdin.readline()
    if not line:
        os._exit(1)  # the parent is gone
    message: dict[str, Any] = json.loads(line)
    return message


def main() -> None:
    spec = told()
    if spec["synced"]:
        sync_before_voting()
    log = Log(spec["address"], spec["others"], SyncObjConf(**spec["conf"]))
    while "callers" not in (load := told()):
        tell({"leader": str(log._getLeader()) if log.isReady() else ""})
    callers = Callers(log, spec["value_bytes"], load["begin_ns"], load["end_ns"])
    callers.run(load["callers"])
    tell(
        {
            "latencies_us": callers.latencies_us,
            "acknowledged": len(callers.acknowledged),
            "failed": callers.failed + callers.open,
        }
    )
    told()
    wait_until_still()
    folder = Path(spec["folder"])
    (folder / "acknowledged").write_bytes(b"".join(callers.acknowledged))
    (folder / "applied").write_bytes(b"".join(applied))
    tell({"written": True})
    sys.stdin.read()
    os._exit(0)  # its thread would want to be stopped first


if __name__ == "__main__":
    threading.stack_size(1 << 20)
    main()
