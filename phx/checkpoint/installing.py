"""In which order a checkpoint takes the place of what a node has of a group.

    step          a crash behind it leaves
    ------------  ------------------------------------------------------------------------
    restored      the old state; beside it a checkpoint that nobody needs yet
    floored       the new one: the store's row says that the log goes on behind the checkpoint
    swapped       the same: only this process has learned of it
    known         the same; perhaps the journal has the members, too
    told          the same
    dropped       the same, without the older checkpoints

Before it the checkpoint is made durable (`phx.transfer.staging.Staged.publish`). From then on a
start finds it: below "floored" it goes on from it too, and with the log that it had.

The machines are swapped before the engine is told. While values up to the frontier are still on
their way from there, they are passed over; the other way round there would be a gap.

The members that the checkpoint says come with the floor into the store, and before "told" to the
engine: once it goes on behind the checkpoint it votes there, and those it knew before may be no
members there any more (docs/design/membership.md, section 4: "a checkpoint without members").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

__all__ = ["Place", "install"]


class Place(Protocol):
    """A group of a node, and the one checkpoint that is to be installed in it."""

    def passed(self) -> bool:
        """Whether all that the checkpoint holds is applied here already."""
        ...

    def restore(self) -> None:
        """New machines, made of the checkpoint. Nobody sees them yet."""
        ...

    def floor(self) -> None:
        """Durably: the log begins behind the checkpoint, and is settled up to it, under its
        members."""
        ...

    def swap(self) -> None:
        """The new machines, session table and applied instance are the group's; unless it has
        passed the checkpoint meanwhile."""
        ...

    def know(self) -> None:
        """The engine knows the members that the checkpoint says."""
        ...

    def tell(self) -> None:
        """The engine goes on behind the checkpoint; what was durable before may be told."""
        ...

    def drop(self) -> None:
        """The older checkpoints go: the log does not reach down to them any more."""
        ...

    def abandon(self) -> None:
        """What was restored and not swapped goes. Must not raise."""
        ...


def install(place: Place) -> Iterator[str]:
    """Install it. Yields a step's name after each effect: a crash may come anywhere.

    Whatever a step raises is raised; what was restored is given back then. It may be begun again.
    """
    try:
        if not place.passed():
            place.restore()
            yield "restored"
        place.floor()
        yield "floored"
        place.swap()
        yield "swapped"
        place.know()
        yield "known"
        place.tell()
        yield "told"
    finally:
        place.abandon()
    place.drop()
    yield "dropped"
