"""What a simulated node knows of the members of its groups, in one life: as `phx.node.memberships`,
without its threads."""

from __future__ import annotations

from phx.membership import Membership, newer

__all__ = ["Memberships"]

FIRST = 2


class Memberships:
    """By group, from which instance on who they are."""

    def __init__(self) -> None:
        self._known: dict[int, list[Membership]] = {}

    def learn(self, group: int, told: Membership) -> Membership:
        """What is known of that instance then. Raises ValueError for a contradiction."""
        known = {one.instance: one for one in self._known.get(group, [])}
        both = newer(known.get(told.instance), told)
        assert both is not None
        known[told.instance] = both
        self._known[group] = [known[instance] for instance in sorted(known)]
        return both

    def forget(self, group: int) -> None:
        """It is hosted no more."""
        self._known.pop(group, None)

    def newest(self, group: int) -> Membership | None:
        known = self._known.get(group)
        return known[-1] if known else None

    def at(self, group: int, frontier: int) -> tuple[bool, Membership | None]:
        """Those that hold above `frontier`; None: the first. (False, None): nobody here knows,
        until the newest change is applied."""
        known = self._known.get(group, [])
        before = [one for one in known if one.instance <= frontier]
        after = known[len(before) :]
        version = before[-1].version if before else FIRST - 1
        if after and after[0].version != version + 1:
            return False, None
        return True, before[-1] if before else None
