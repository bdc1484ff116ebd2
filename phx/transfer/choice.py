"""Whether a group needs a checkpoint, which one is offered to it, and from whom it is fetched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import Enum, auto

from phx.checkpoint.digests import Rings, doubtful
from phx.checkpoint.manifest import Manifest
from phx.transfer.messages import Offer

__all__ = [
    "FAILED_US",
    "Log",
    "Providers",
    "believed",
    "log_there",
    "lowest_floor",
    "offered",
    "own_to_install",
]

FAILED_US = 30_000_000
"""Who failed comes last for so long."""
FAILURES_MAX = 3
"""So many failures, each within FAILED_US of the one before, and what only this peer has is given
up for something else."""


class Log(Enum):
    """Whether any peer has the log that a group needs next."""

    GONE = auto()
    """Nobody: only a checkpoint helps."""
    PERHAPS = auto()
    """Somebody says that he has trimmed nothing that is needed. Ask once more, a little later."""
    CAME = auto()
    """Somebody: more is known to be chosen than when it was PERHAPS."""
    NOBODY_AHEAD = auto()
    """Nobody knows of more than is known here."""


def log_there(offers: Mapping[int, Offer], *, chosen: int, before: int | None) -> Log:
    """What the answers of a round say of the log behind `chosen`.

    A floor at or below it says little: who has the whole log says so, and who knows no more than
    the asker, too. The engine has asked all of them already. So one round more is waited for, and
    then it counts whether anything became known to be chosen.

    Args:
        offers: by node, at least one.
        chosen: through which instance all is known to be chosen here.
        before: the same in the round that ended with PERHAPS; None: there was none yet.
    """
    trimmed = [one for one in offers.values() if one.floor > chosen + 1]
    if len(trimmed) == len(offers):
        return Log.GONE
    if before is None:
        return Log.PERHAPS
    if chosen > before:
        return Log.CAME
    return Log.GONE if trimmed else Log.NOBODY_AHEAD


def lowest_floor(offers: Mapping[int, Offer], chosen: int) -> int:
    """The lowest instance that those have who have trimmed what comes behind `chosen`; 1: nobody
    has trimmed that."""
    return min((one.floor for one in offers.values() if one.floor > chosen + 1), default=1)


def own_to_install(
    found: Iterable[Manifest], *, applied: int, chosen: int, floor: int
) -> Manifest | None:
    """Of the checkpoints that are here already, newest first, the one that would do: it is beyond
    `chosen`, and the log goes on from it that begins at `floor`. It may be what is `applied`, and
    what the engine does not know to be chosen; a light one has to be."""
    for one in found:
        here = not one.light or one.frontier <= applied
        if one.frontier > chosen and one.frontier + 1 >= floor and here:
            return one
    return None


def offered(found: Iterable[Manifest], *, floor: int, ident: bytes) -> Manifest | None:
    """Of the checkpoints that are here, newest first, the one that is offered to who asks: the
    newest that the log here goes on from, or the one that he has a part of.

    Args:
        found: those with all states in them.
        floor: where the log here begins.
        ident: of what was received in part; b"": nothing.
    """
    usable = [one for one in found if one.frontier + 1 >= floor]
    same = [one for one in usable if one.content == ident]
    return next(iter(same or usable), None)


def believed(
    offers: Mapping[int, Offer], said: Mapping[int, Rings], members: int, *, anew: bool
) -> dict[int, Offer]:
    """The offers, without the checkpoints of those whose state is in doubt.

    Args:
        offers: by node.
        said: what nodes noted at agreed instances, by node; of this one, too, unless it is to be
            made anew.
        members: how many the cluster has.
        anew: the group is made anew: what a node in doubt says of the log is of no use either.
    """
    doubted = doubtful(said, members)
    found: dict[int, Offer] = {}
    for node, one in offers.items():
        if node not in doubted:
            found[node] = one
        elif not anew:
            found[node] = replace(one, frontier=0, ident=b"")
    return found


class Providers:
    """The peers of a node, as providers of checkpoints of one group. One thread."""

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

    def helps(
        self, found: Iterable[Manifest], offers: Mapping[int, Offer], *, applied: int, now_us: int
    ) -> bool:
        """Whether there is a checkpoint that would do, among those here (`found`) or there."""
        if any(one.frontier > applied and not one.light for one in found):
            return True
        return self.choose(offers, applied=applied, now_us=now_us) is not None

    def _failures(self, node: int, now_us: int) -> int:
        at_us, times = self._failed.get(node, (now_us, 0))
        return times if now_us - at_us < FAILED_US else 0
