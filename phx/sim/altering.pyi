from typing import Any

from phx.sim.world import World

VOTER: int
WITNESS: int
LEARNER: int
VERDICTS: tuple[str, ...]
"""What `change` may answer, by number."""

def can_change(world: World) -> bool:
    """Whether members of groups may change: the limit `members` is not 0."""

def change(world: World, node: int, group: int, version: int, roles: dict[int, int]) -> int:
    """Ask a node that runs for other members, compare-and-set on the version after this one; an
    index of VERDICTS."""

def members(world: World, group: int) -> dict[str, Any]:
    """By what is decided, whether anybody knows it or not: version, instance, roles (by node),
    active (somebody has found that they are), ever (all that were one, of any version)."""

def voters(roles: dict[int, int]) -> list[int]:
    """Those of them that vote, a witness, too."""

def known(world: World, node: int, group: int) -> dict[str, Any]:
    """As far as a node that runs knows: version, instance, active, left, roles (None: the first
    ones), proposed (it leads, and has proposed others: the instance, else 0)."""

def ended(world: World, node: int, group: int) -> bool:
    """Nothing but a tombstone is left of it at a node that runs."""

def tell(world: World, node: int, group: int, source: int) -> bool:
    """A node that is to join will know at its start what `source` knows now of the members. False:
    that does not run, knows of none, or of some without this node: then it starts with the first
    ones, and has to find out."""

def wipe(world: World, node: int) -> None:
    """It is switched off, and its folder deleted. It is a member of nothing, and never comes
    back."""

def counts(world: World) -> dict[str, int]:
    """For `World.counters`."""
