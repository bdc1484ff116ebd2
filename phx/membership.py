"""The members of a group, from one instance of its log on: what of it is kept and handed on.

They are said by a value of the log itself, the *roster* (`phx._core.members`): version, nodes,
roles, addresses, and the ballot of the leader that packed it. If it is chosen at instance i, the
instances above i belong to it. What the value cannot say comes beside it: i, and the *floor*, the
ballot in which a leader counted it as chosen, above which all ballots of these members are
(docs/design/membership.md, M4 and "Epochs").

A group whose members never changed has none of this: they are those of the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from phx._core.members import read, write
from phx.types import Member, Members, Role

__all__ = ["Membership", "newer", "nodes_of", "roster_of"]

INSTANCE_MAX = (1 << 62) - 1
U64_MAX = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Membership:
    """Who the members are above an instance. Raises ValueError for what cannot be.

    Attributes:
        roster: the value that says so, as it stands in the log.
        instance: i, where it was chosen; from 1 on.
        floor: no ballot of these members is at or below it; at least that of the packer.
        active: a quorum of their voters holds everything up to i, and something is chosen above it:
            those that are members no more may go. False: that is not known here.
        version: of the configuration, by the roster; at least 2.
        nodes: ids of all members, of whatever role, ascending.
    """

    roster: bytes = field(repr=False)
    instance: int
    floor: int
    active: bool = False
    version: int = field(init=False)
    nodes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        said = read(self.roster) if type(self.roster) is bytes else None
        if said is None:
            raise ValueError("that is no roster")
        version, ballot, _, members = said
        for what, value, low, high in (
            ("the instance of a roster", self.instance, 1, INSTANCE_MAX),
            ("the floor of a roster", self.floor, ballot, U64_MAX),
        ):
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{what} must be {low} .. {high}, not {value!r}")
        if type(self.active) is not bool:
            raise ValueError("active must be True or False")
        object.__setattr__(self, "version", version)
        object.__setattr__(self, "nodes", tuple(node for node, _, _ in members))

    def members(self) -> Members:
        """As a caller is shown them."""
        said = read(self.roster)
        assert said is not None, "it was sound"
        by_id = {node: Member(Role(role), where.decode()) for node, role, where in said[3]}
        return Members(self.version, self.active, by_id)


def roster_of(version: int, by_id: Mapping[int, Member]) -> bytes:
    """The value by which these are proposed; whoever leads puts its ballot and its time in. Raises
    ValueError for what cannot be."""
    made = Members(version, False, by_id)
    if not 2 <= version < 1 << 32:
        raise ValueError(f"a change makes a version from 2 to 2**32 - 1, not {version}")
    rows = [(node, int(one.role), one.address.encode()) for node, one in made.by_id.items()]
    return write(version, 1, 0, rows)


def nodes_of(roster: bytes) -> list[int]:
    """Whom it names, of whatever role; nobody, if it is not sound."""
    said = read(roster)
    return [node for node, _, _ in said[3]] if said is not None else []


def newer(one: Membership | None, other: Membership | None) -> Membership | None:
    """The one of the later instance; of the same one all that either says: the higher floor (a
    value may be counted in more than one ballot), and active if one of them is.

    Both must be of one group. Raises ValueError if they contradict each other: then two nodes, or
    two parts of one disk, do not agree on the log.
    """
    if one is None or other is None:
        return one or other
    low, high = sorted((one, other), key=lambda each: each.instance)
    if low.instance < high.instance:
        if low.version >= high.version:
            raise ValueError(
                f"version {low.version} from instance {low.instance} on, and version "
                f"{high.version} from {high.instance} on"
            )
        return high
    if low.roster != high.roster:
        raise ValueError(f"two different rosters at instance {low.instance}")
    return Membership(
        low.roster, low.instance, max(low.floor, high.floor), low.active or high.active
    )
