"""What happens to a simulated cluster, decided beforehand: from a seed and a profile alone.

A plan can be printed, kept, read back and cut down: taking an act away leaves all others as they
are. That is what shrinking needs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

__all__ = ["Act", "Plan"]

SECOND = 1_000_000
DRAIN_US = 6 * SECOND
"""Before the end: clients begin nothing new any more, and everything under way must end."""
QUIET_US = 10 * SECOND
"""Before the end: no fault is left; clients still work until the drain begins."""
STILL_US = 2 * SECOND
"""Before the end: nothing is under way any more, and nothing must happen but heartbeats."""


class Act(NamedTuple):
    """One thing that happens to the cluster. Acts are ordered by time.

    `kind` names a row of `phx.sim.acts.ACTS`, which says what the arguments mean.
    """

    at_us: int
    until_us: int
    kind: str
    args: tuple[tuple[str, int], ...] = ()

    def __getattr__(self, name: str) -> int:
        for key, value in self.args:
            if key == name:
                return value
        raise AttributeError(name)

    def __str__(self) -> str:
        """One line: "12.345678 .. 14.000000 crash node=2 power=1"."""
        words = [f"{self.at_us / SECOND:10.6f} .. {self.until_us / SECOND:10.6f} {self.kind}"]
        return " ".join(words + [f"{name}={value}" for name, value in self.args])


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, whole.

    Attributes:
        seed: of everything inside the world, and of the clients.
        profile: by which it was made.
        nodes, groups: how many.
        duration_us: simulated.
        clients: for each group.
        limits: of every node, by the names of `phx.sim.world.LIMITS`.
        pace: how long things take, as `World.pace` wants it; of every node unless an act says else.
        link: the same for `World.link`.
        drift: clocks keep within the bound that leases are built on.
        acts: by time.
    """

    seed: int
    profile: str
    nodes: int
    groups: int
    duration_us: int
    clients: int
    limits: tuple[tuple[str, int], ...] = ()
    pace: tuple[tuple[str, int], ...] = ()
    link: tuple[tuple[str, int], ...] = ()
    drift: bool = True
    acts: tuple[Act, ...] = ()

    @property
    def faults_end_us(self) -> int:
        return self.duration_us - QUIET_US

    @property
    def clients_end_us(self) -> int:
        return self.duration_us - DRAIN_US

    def with_acts(self, acts: tuple[Act, ...]) -> Plan:
        return replace(self, acts=acts)

    def lines(self) -> list[str]:
        """For a reader."""
        head = (
            f"seed {self.seed}, profile {self.profile}: {self.nodes} nodes, {self.groups} groups, "
            f"{self.duration_us / SECOND:g} s, {self.clients} clients a group, "
            f"{len(self.acts)} acts"
        )
        settings = [
            f"{what}: " + " ".join(f"{name}={value}" for name, value in pairs)
            for what, pairs in [("limits", self.limits), ("pace", self.pace), ("link", self.link)]
        ]
        return [head, *settings, *map(str, self.acts)]

    def to_json(self) -> str:
        """As `from_json` reads it, an act a line."""
        head = {
            name: dict(value) if isinstance(value, tuple) else value
            for name in self.__slots__
            if name != "acts"
            for value in [getattr(self, name)]
        }
        acts = [json.dumps([a.at_us, a.until_us, a.kind, dict(a.args)]) for a in self.acts]
        return json.dumps(head)[:-1] + ', "acts": [\n' + ",\n".join(acts) + "\n]}\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises ValueError for what is no plan."""
        try:
            read: dict[str, Any] = json.loads(text)
            for name in ("limits", "pace", "link"):
                read[name] = tuple((key, int(value)) for key, value in read[name].items())
            read["acts"] = tuple(
                Act(at, until, kind, tuple((key, int(value)) for key, value in args.items()))
                for at, until, kind, args in read["acts"]
            )
            return cls(**read)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a plan: {error!r}") from error
