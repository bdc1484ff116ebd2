"""Production code that yields between its effects on the disk, as events of a simulated host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING

from phx.sim.files import Crashed

if TYPE_CHECKING:
    from phx.sim.host import Host

__all__ = ["BUSY_US", "STEP_US_MAX", "run_steps"]

STEP_US_MAX = 12_000
BUSY_US = 30_000
"""A step that says "waits" is tried again within this."""


def run_steps(
    host: Host, chance: Random, steps: Iterator[str], done: Callable[[], None] = lambda: None
) -> None:
    """Take the steps one by one, from soon on, unless the process dies; then say that it is done.
    Whatever else a step raises is a mistake."""

    def step() -> None:
        try:
            said = next(steps)
        except StopIteration:
            done()
        except Crashed:
            host.keeping.dead = True
        else:
            host.soon(1 + chance.randrange(BUSY_US if said == "waits" else STEP_US_MAX), step)

    host.soon(1 + chance.randrange(STEP_US_MAX), step)
