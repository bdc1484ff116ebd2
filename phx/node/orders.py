"""What is asked for in the control socket that concerns members and groups: understood, answered.

{"do": "members", "group": 7}          or "group": null, for all
{"groups": [{"group": 7, "version": 3, "active": true,
             "members": [{"node": 1, "role": "voter", "address": …}]}]}

{"do": "change", "group": null, "how": "add", "node": 4, "address": …, "role": "voter",
 "timeout": 60.0}
{"do": "change", "group": null, "how": "remove", "node": 1, "timeout": 60.0}
{"do": "change", "group": null, "how": "replace", "node": 1, "by": 4, "address": …,
 "timeout": 60.0}
{"do": "change", "group": null, "how": "set", "members": [[4, "voter", …], …], "timeout": 60.0}
{"do": "change", "group": 7, "how": "move", "nodes": [4, 5], "timeout": 60.0}: of a created group
{"groups": as above, "failed": [{"group": 8, "why": …}]}

{"do": "groups"}, {"do": "create", "group": 7, "members": [1, 2], "timeout": 60.0}
(or "members": null), and {"do": "stop" | "resume" | "delete", "group": 7, "timeout": 60.0}
{"groups": [{"group": 7, "generation": 1, "phase": "live",
             "members": [{"node": 1, "address": …}], "why": ""}]}

{"do": "repair", "groups": [7, 8]}
{"repaired": [7], "failed": [{"group": 8, "why": …}]}, once all of them are, or cannot be

{"do": "decommission", "timeout": 60.0}
the same, and "priority": 0: this node leads nothing, and is removed from all its groups; where that
fails it goes on to lead nothing, until {"do": "undrain"}
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from phx.applier import GroupState
from phx.door import Door
from phx.errors import NotInCluster, PhxError
from phx.node.changes import Changes
from phx.node.goals import Goal, adding, exactly, removing, replacing
from phx.node.groups import Groups
from phx.node.moves import Moves
from phx.types import Changed, CreatedGroup, Member, Members, Role

__all__ = ["ROLES", "TIMEOUT_S_MAX", "Orders"]

TIMEOUT_S_MAX = 86_400.0
ROLES = {"voter": Role.VOTER, "witness": Role.WITNESS, "learner": Role.LEARNER}

KEYS = {
    "add": {"node", "address", "role"},
    "remove": {"node"},
    "replace": {"node", "by", "address"},
    "set": {"members"},
    "move": {"nodes"},
}


class Orders:
    """Args:
    changes: of members; raises what a call on a node gets that is not open.
    door: of this node.
    groups: the calls that create and delete them; raises that there is no directory, too.
    """

    def __init__(
        self,
        changes: Callable[[], Changes],
        moves: Moves,
        door: Door,
        groups: Callable[[], Groups],
    ) -> None:
        self._changes = changes
        self._groups = groups
        self._moves = moves
        self._door = door

    def members(self, group: object) -> dict[str, Any]:
        """The answer. Raises ValueError, PhxError."""
        found = self._changes().members(None if group is None else number(group, "a group"))
        return {"groups": [row(group, one) for group, one in sorted(found.items())]}

    def change(self, asked: Mapping[str, Any]) -> Future[Changed]:
        """Begin it. Raises ValueError, PhxError."""
        how = asked.get("how")
        if type(how) is not str or how not in KEYS:
            raise ValueError(f"how the members are changed is one of {', '.join(KEYS)}")
        if asked.keys() != KEYS[how] | {"do", "how", "group", "timeout"}:
            raise ValueError(f"a change by {how!r} says: {', '.join(sorted(KEYS[how]))}")
        group = None if asked["group"] is None else number(asked["group"], "a group")
        goal = self._goal_of_move(asked) if how == "move" else goal_of(how, asked)
        return self._changes().all_to(goal, seconds(asked["timeout"]), group)

    def _goal_of_move(self, asked: Mapping[str, Any]) -> Goal:
        if asked["group"] is None:
            raise ValueError("one group is moved at a time")
        group, nodes = number(asked["group"], "a group"), numbers(asked["nodes"])
        return self._groups().destination(group, nodes)

    def groups(self) -> dict[str, Any]:
        """The answer. Raises PhxError."""
        found = self._groups()
        return {"groups": [created_row(one, found.why(one.group)) for one in found.all()]}

    def turn_group(self, asked: Mapping[str, Any]) -> Future[CreatedGroup]:
        """Begin to create, stop, resume or delete one. Raises ValueError, PhxError."""
        how, members = asked["do"], asked.get("members")
        if asked.keys() - {"members"} != {"do", "group", "timeout"} or (
            ("members" in asked) != (how == "create")
        ):
            raise ValueError(f"what {how!r} says: group, timeout; of a new one: members")
        group, within = number(asked["group"], "a group"), seconds(asked["timeout"])
        if how != "create":
            calls = {"stop": Groups.stop, "resume": Groups.resume, "delete": Groups.delete}
            return calls[how](self._groups(), group, within)
        nodes = None if members is None else numbers(members)
        return self._groups().create(group, nodes, within)

    def repair(self, groups: object) -> dict[int, Future[None]]:
        """Begin to make these anew, all at once; for each, when it goes on. Raises ValueError,
        PhxError: nothing is begun."""
        wanted = sorted(set(numbers(groups, "groups", "a group")))
        if not wanted:
            raise ValueError("which groups are to be made anew?")
        self._door.open_driver()
        if unknown := [group for group in wanted if group not in self._door.states]:
            raise NotInCluster(f"group {unknown[0]} is not hosted by this node")
        begun = [(self._door.states[group], Future[None]()) for group in wanted]

        def begin() -> None:  # each is noted on the disk first, and paused
            for state, future in begun:
                self._make_anew(state, future)

        threading.Thread(target=begin, name="phx-repair", daemon=True).start()
        return {state.group: future for state, future in begun}

    def _make_anew(self, state: GroupState, future: Future[None]) -> None:
        try:
            inner = self._door.make_anew(state)
        except BaseException as error:
            future.set_exception(error)
            return

        def done(of: Future[None]) -> None:
            if (error := of.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(None)

        inner.add_done_callback(done)

    def decommission(self, timeout: object) -> Future[Changed]:
        """Begin it: who leads here goes on elsewhere, as far as that is so quickly; the rest is
        given away by the change. Raises ValueError, PhxError: all is as it was."""
        changes, within, before = self._changes(), seconds(timeout), self._moves.priority
        self._moves.drain(None, within)
        try:
            return changes.all_to(removing(self._door.node), within)
        except PhxError:
            self._moves.set_priority(before)
            raise


def goal_of(how: str, asked: Mapping[str, Any]) -> Goal:
    if how == "set":
        return exactly(all_of(asked["members"]))
    node = number(asked["node"], "a node")
    if how == "remove":
        return removing(node)
    if type(asked["address"]) is not str:
        raise ValueError("an address is a text: host:port")
    if how == "add":
        return adding(node, asked["address"], role(asked["role"]))
    return replacing(node, number(asked["by"], "a node"), asked["address"])


def all_of(said: object) -> dict[int, Member]:
    if type(said) is not list:
        raise ValueError("members are a list of [node, role, address]")
    found: dict[int, Member] = {}
    for node, one in map(member, said):
        if node in found:
            raise ValueError(f"node {node} stands there twice")
        found[node] = one
    return found


def member(said: object) -> tuple[int, Member]:
    match said:
        case [node, kind, str(address)]:
            return number(node, "a node"), Member(role(kind), address)
    raise ValueError("a member is [node, role, address]")


def role(said: object) -> Role:
    if type(said) is not str or said not in ROLES:
        raise ValueError(f"a role is one of {', '.join(ROLES)}")
    return ROLES[said]


def number(said: object, what: str) -> int:
    if type(said) is not int:
        raise ValueError(f"{what} is a number")
    return said


def numbers(said: object, whose: str = "nodes", one_of: str = "a node") -> list[int]:
    if type(said) is not list:
        raise ValueError(f"{whose} are a list of their ids")
    return [number(one, one_of) for one in said]


def seconds(said: object) -> float:
    if type(said) not in (int, float) or not 0 < said <= TIMEOUT_S_MAX:  # type: ignore[operator]
        raise ValueError(f"a timeout is above 0 and at most {TIMEOUT_S_MAX:.0f} s")
    assert isinstance(said, int | float)
    return float(said)


def row(group: int, found: Members) -> dict[str, Any]:
    members = [
        {"node": node, "role": one.role.name.lower(), "address": one.address}
        for node, one in found.by_id.items()
    ]
    return {"group": group, "version": found.version, "active": found.active, "members": members}


def created_row(one: CreatedGroup, why: str = "") -> dict[str, Any]:
    members = [{"node": node, "address": at} for node, at in one.members.items()]
    return {
        "group": one.group, "generation": one.generation, "phase": one.phase, "members": members,
        "why": why,
    }  # fmt: skip


def turned(future: Future[CreatedGroup]) -> dict[str, Any]:
    """The answer."""
    error = future.exception()
    if error is not None:
        return {"error": str(error)}
    return {"groups": [created_row(future.result())]}


def changed(future: Future[Changed]) -> dict[str, Any]:
    """The answer."""
    error = future.exception()
    if error is not None:
        return {"error": str(error)}
    found = future.result()
    failed = [{"group": group, "why": why} for group, why in sorted(found.failed.items())]
    return {"groups": [row(g, one) for g, one in sorted(found.done.items())], "failed": failed}
