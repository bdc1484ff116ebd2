"""What workers share that kill themselves at a step, and the tests that run them."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Place = tuple[int, int]  # group, machine


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


def killed(worker: Path, places: Iterable[Place], *arguments: object) -> dict[Place, int]:
    """Let a worker run into its step; how many values were acknowledged before that."""
    command = [sys.executable, str(worker), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, (*arguments, done.returncode, done.stderr)
    return told_of(done.stdout, places)
