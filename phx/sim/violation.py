"""What a run ends with when something that must hold does not."""

from __future__ import annotations


class Violation(Exception):
    """An invariant, a checker's claim or the liveness of a run is broken.

    Attributes:
        invariant: which: U1 to U13, "linearizable", "exactly-once", "liveness", "bounded", …
        message: what was seen, with node, group and instance.
        at_us: simulated time.
    """

    def __init__(self, invariant: str, message: str, at_us: int = 0) -> None:
        super().__init__(f"{invariant}: {message}")
        self.invariant = invariant
        self.message = message
        self.at_us = at_us

    def __reduce__(self) -> tuple[type[Violation], tuple[str, str, int]]:
        """It crosses processes."""
        return Violation, (self.invariant, self.message, self.at_us)
