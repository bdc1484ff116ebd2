"""How a simulated node lets go of its log: floors, and the store's own trimming, as events.

When a checkpoint was taken and older ones dropped, the store's row is raised, then the engine is
told, then the store trims: each step by itself, so that a crash may come between any two.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from phx.sim.hosted import hosts

if TYPE_CHECKING:
    from phx.sim.host import Host

__all__ = ["Trimming"]

STEP_US_MAX = 15_000
RETRY_US = 400_000


class Trimming:
    """The floors of one node, over all its lives.

    Args:
        hold: so many instances stay below the cover.

    Attributes:
        counts: over all lives; `World.counters` has each under its name.
    """

    def __init__(self, host: Host, hold: int, seed: int) -> None:
        self.host = host
        self.counts = dict.fromkeys(("floors", "trims"), 0)
        self._hold = hold
        self._chance = Random(f"trimming {seed}")
        self._trimming = False

    def crash(self) -> None:
        self._trimming = False

    def taken(self, group: int) -> None:
        """A checkpoint was taken, and what was beyond `keep` is gone."""
        self.host.soon(1 + self._chance.randrange(STEP_US_MAX), lambda: self._raise(group))

    def _raise(self, group: int) -> None:
        host = self.host
        if not hosts(host, group) or host.odd(group) or host.marked(group):
            return  # dropped; or nobody right might have what it gave up (`straying`)
        facts = host.facts(group)
        cover = host.keeping.cover(group, facts["floor"])
        # (What is chosen is not known at once after a start: engine and machine begin apart.)
        floor = min(cover - self._hold, facts["chosen_through"]) + 1
        if floor <= facts["floor"]:
            return
        if not host.raise_floor(group, floor, floor - 1):
            host.soon(RETRY_US, lambda: self._raise(group))
            return
        self.counts["floors"] += 1
        host.soon(1 + self._chance.randrange(STEP_US_MAX), lambda: self._told(group))

    def _told(self, group: int) -> None:
        if hosts(self.host, group):
            self.host.tell_floor(group)
        if not self._trimming:
            self._trimming = True
            self._trim_soon()

    def _trim_soon(self) -> None:
        self.host.soon(1 + self._chance.randrange(STEP_US_MAX), self._trim)

    def _trim(self) -> None:
        trimmed = self.host.trim()
        self.counts["trims"] += trimmed
        self._trimming = trimmed
        if trimmed:
            self._trim_soon()
