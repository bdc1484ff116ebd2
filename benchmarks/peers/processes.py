"""Processes that are bounded in time and do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1


class Failed(Exception):
    """A process of a peer did not do what it should; the run has no figure."""


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def running(
    command: Sequence[str], log: Path, pipes: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """The command as a process group of its own, killed at the end; its stderr goes to `log`."""
    with open(log, "ab") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else stderr,
            stderr=stderr,
            text=True,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def output(command: Sequence[str], timeout_s: float, log: Path, codes: Sequence[int] = (0,)) -> str:
    """What the command prints. Raises Failed if it takes too long or ends with another code."""
    with running(command, log, pipes=True) as process:
        try:
            printed, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{command[0]}: not done in {timeout_s:g} s") from None
        if process.returncode not in codes:
            tail = log.read_text(errors="replace")[-2000:]
            raise Failed(f"{command[0]} ended with {process.returncode}\n{tail}")
    return printed
