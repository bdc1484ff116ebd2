"""From whom a checkpoint is fetched."""

from __future__ import annotations

from collections.abc import Mapping

from phx.transfer.messages import Offer

__all__ = ["FAILED_US", "Providers"]

FAILED_US = 30_000_000
"""Who failed comes last for so long."""
FAILURES_MAX = 3
"""So many failures, each within FAILED_US of the one before, and what only this peer has is given
up for something else."""


class Providers:
    """The peers of a node, as providers of checkpoints. One thread."""

    def __init__(self) -> None:
        self._failed: dict[int, tuple[int, int]] = {}

    def failed(self, node: int, now_us: int) -> None:
        """A transfer from it was cut, declined, or found to be wrong."""
        self._failed[node] = now_us, self._failures(node, now_us) + 1

    def choose(
        self, offers: Mapping[int, Offer], *, applied: int, now_us: int, staged: bytes = b""
    ) -> int | None:
        """Who of those that answered is to be asked; None: nobody has what would help.

        A checkpoint helps if it is beyond what is applied here, and if somebody can still supply
        the first value above it. What was received in part is gone on with as long as anybody has
        it who does not fail every time. Who leads the group has other things to do, and comes
        after the others; then fewest transfers under way, greatest frontier, lowest id.

        Args:
            offers: by node; what each of the peers that answered has.
            applied: through which instance all is applied here.
            staged: ident of what was received in part; b"": nothing.
        """
        floor = min((one.floor for one in offers.values()), default=0)
        helps = {
            node: one
            for node, one in offers.items()
            if one.frontier > applied and one.frontier + 1 >= floor
        }
        same = [
            node
            for node, one in helps.items()
            if staged and one.ident == staged and self._failures(node, now_us) < FAILURES_MAX
        ]

        def order(node: int) -> tuple[bool, bool, int, int, int]:
            one = helps[node]
            failed = self._failures(node, now_us) > 0
            return failed, one.leading, one.busy, -one.frontier, node

        return min(same or helps, key=order, default=None)

    def _failures(self, node: int, now_us: int) -> int:
        at_us, times = self._failed.get(node, (now_us, 0))
        return times if now_us - at_us < FAILED_US else 0
