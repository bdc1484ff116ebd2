"""Which groups there are in a simulated cluster: a list of facts, which is always right.

The directory of a real cluster is a group itself (`phx.machines.directory`), so what it says is in
one order, and every node hears all of it in that order, later or sooner. That is all that is kept
of it here: how a group is agreed upon is tested by every other group. Each node hears the facts by
itself (`hosting`), and all of them again in each life.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from phx.store_hosted import HostedRow, first_members

if TYPE_CHECKING:
    from phx.sim.world import World

__all__ = ["ENDING", "GONE", "LIVE", "Directory", "Fact"]

LIVE, ENDING, GONE = "live", "ending", "gone"
GENERATION = 1


class Fact(NamedTuple):
    """A group has come to another phase; `nodes`: its first members."""

    group: int
    phase: str
    nodes: tuple[int, ...]


class Directory:
    """Args:
    ids: of the groups that may be created, each once.
    """

    def __init__(self, world: World, ids: Iterable[int]) -> None:
        self._world = world
        self._ids = list(ids)
        self.facts: list[Fact] = []
        self._latest: dict[int, Fact] = {}

    def create(self, nodes: tuple[int, ...]) -> bool:
        """One more group, of these members; False: all ids have been used."""
        if not self._ids:
            return False
        group = self._ids.pop(0)
        self._world.group_created(group, row_of(nodes).roster)
        self._say(Fact(group, LIVE, nodes))
        return True

    def delete(self, group: int) -> None:
        """A live one."""
        self._say(Fact(group, ENDING, self._latest[group].nodes))

    def over(self, group: int, node: int) -> None:
        """That node knows, durably, that the last value is chosen."""
        if self._latest[group].phase == ENDING:
            self._world.group_over(group, node)
            self._say(Fact(group, GONE, self._latest[group].nodes))

    def _say(self, fact: Fact) -> None:
        self.facts.append(fact)
        self._latest[fact.group] = fact
        for node in fact.nodes:
            host = self._world.host(node)
            if host.up:
                host.hosting.wake()

    def latest(self, group: int) -> Fact | None:
        return self._latest.get(group)

    def newest(self) -> list[Fact]:
        """Of each group."""
        return list(self._latest.values())

    def needs(self, node: int) -> bool:
        """It is a member of a group that is not gone."""
        return any(f.phase != GONE and node in f.nodes for f in self._latest.values())

    def those(self, phase: str) -> list[int]:
        """Groups that have come so far, and no further."""
        return [group for group, fact in self._latest.items() if fact.phase == phase]


def row_of(nodes: Iterable[int], gone: bool = False) -> HostedRow:
    """As a node's store has it."""
    first = first_members(GENERATION, {node: f"node{node}:7000" for node in nodes})
    return HostedRow(GENERATION, first.roster, gone=gone)
