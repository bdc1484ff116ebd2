"""What is known of odd replicas from outside, for the claims: nobody of the cluster knows it.

That a majority of each group is right is what the comparison rests on; here it is seen to.
"""

from __future__ import annotations

from collections import Counter

from phx.checkpoint.digests import Known
from phx.checkpoint.manifest import Manifest

__all__ = ["Oddness", "missed", "settled"]

Taken = tuple[int, int, int, int]


class Oddness:
    """Which checkpoints of a world hold the state of an odd replica, and who may be odd.

    Args:
        members: of the cluster.
    """

    def __init__(self, members: int) -> None:
        self.members = members
        self._taken: set[Taken] = set()
        self._nodes: dict[int, set[int]] = {}

    def took(self, group: int, frontier: int, node: int, taken_us: int) -> None:
        """That node, which is odd, takes one."""
        self._taken.add((group, frontier, node, taken_us))

    def is_odd(self, one: Manifest) -> bool:
        """An odd node has taken it, whoever has it now."""
        return (one.group, one.frontier, one.taken_by, one.taken_us) in self._taken

    def allows(self, group: int, node: int) -> bool:
        """Whether all that may be odd in a group in this run are a minority, this node included."""
        nodes = self._nodes.get(group, set())
        return node in nodes or len(nodes) < (self.members - 1) // 2

    def joins(self, group: int, node: int) -> bool:
        """It may be odd from now on, if `allows` says so; whether it does."""
        allowed = self.allows(group, node)
        if allowed:
            self._nodes.setdefault(group, set()).add(node)
        return allowed


def missed(noted: list[int], since: int, right: dict[int, set[int]], members: int) -> int | None:
    """U9i: the first agreed instance at which a comparison must have seen that a replica is odd;
    None: there is none.

    Args:
        noted: the agreed instances that its node noted of the state that it has.
        since: it is odd from there on.
        right: who has told its node of an agreed instance, and was not odd there.
        members: how many the cluster has.
    """
    for at in noted:
        if at >= since and len(right.get(at, ())) > members // 2:
            return at
    return None


def settled(known: Known, at: int, members: int) -> bool:
    """Whether a majority of all members is known to be equal at an agreed instance: then it is
    known who is right there, too."""
    there = [one for ring in (known.mine, *known.others.values()) for one in ring]
    values = Counter((one.chain, one.state) for one in there if one.instance == at)
    return max(values.values(), default=0) > members // 2
