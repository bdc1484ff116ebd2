"""A process that is to be tortured: one node, and operations on it for clients elsewhere.

Run as ``python -m phx.testing.torture.worker``; processes.py is its parent's end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from phx.config import Config
from phx.errors import NotInCluster, PhxError, Rejected
from phx.group import Group
from phx.machines.directory import Directory
from phx.machines.kv import KeyValue, encode_cas, encode_delete, encode_get, encode_set
from phx.node import Node
from phx.node.lives import BOOT_ID
from phx.node.machine_files import FOLDER
from phx.store_hosted import generation_at
from phx.testing.processes import now_us
from phx.testing.torture.book import generation_of
from phx.testing.torture.machine import (
    APPENDS,
    KEY_VALUE,
    Appends,
    Damaged,
    encode_append,
    token_of,
    value_of,
)
from phx.testing.worker import begin, jsonable, serve
from phx.types import (
    DIRECTORY_GROUP,
    Changed,
    Consistency,
    DurabilityMode,
    GroupStatus,
    Members,
    Role,
    voter,
)


class TorturedNode:
    """The node of this process, and what its parent may ask of it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        if spec["boot"]:
            os.environ[BOOT_ID] = spec["boot"]
        self.config = Config.from_mapping(spec["config"])
        self.groups = self.config.hosted_ids  # of the configuration, with the directory
        machines = {KEY_VALUE: KeyValue, APPENDS: Appends}
        self.node = Node(self.config, machines, bootstrap=spec["bootstrap"])
        self.closed = asyncio.Event()
        self.closing = False

    async def do_ready(self) -> None:
        """Answered when the node is open, as everything is."""

    async def do_operate(
        self,
        group: int,
        kind: str,
        key: str,
        argument: Any,
        timeout_s: float,
        generation: int = 0,
        consistency: Consistency | None = None,
    ) -> dict[str, Any]:
        """One operation of a client: what became of it, its result, and when it ran.

        kind     argument               result
        get      -                      [token, version], or None
        put      token, size            version
        cas      version, token, size   the new version, or None
        delete   -                      was it there?
        append   token, or "" to read   the whole string, or None if it is empty

        `generation`: of a created group; it is sent to that one alone. `consistency`: of what only
        reads; it is read then, and not proposed.
        """
        found: dict[str, Any] = {"called_us": now_us(), "error": ""}
        try:
            door = self.node.group(group)
            if generation and (self._generation(door) != generation or
                               self.node.group(group) is not door):  # fmt: skip
                raise NotInCluster(f"generation {generation} of group {group} is not here")
            if consistency is None:
                machine, command = encode(kind, key, argument)
                done = await door.propose(command, timeout=timeout_s, machine=machine)
                result, at = done.value, done.instance
            else:
                machine, query = asked(kind, key)
                read = await door.read(
                    query, consistency=consistency, timeout=timeout_s, machine=machine
                )
                result, at = read.value, read.instance + 1  # (perhaps nothing is applied yet)
            found["returned_us"] = now_us()
        except PhxError as error:
            return found | {"outcome": error.outcome, "error": type(error).__name__}
        if generation and (other := generation_at(at)) != generation:
            why = f"{kind} of {key!r} was done by generation {other}, not {generation}"
            return found | {"outcome": "damaged", "error": why}
        try:
            return found | {"outcome": "acknowledged", "result": decode(kind, result)}
        except (Damaged, ValueError, TypeError) as error:
            return found | {"outcome": "damaged", "error": f"{kind} of {key!r}: {error!r}"}

    async def do_led(self) -> list[int]:
        return [one.group for one in self._statuses() if one.leading]

    async def do_positions(self) -> dict[int, tuple[int, int]]:
        """Per group: applied through, chosen through."""
        found = {}
        for group in self.groups:
            status = self.node.group(group).status()
            found[group] = (status.applied_through, status.chosen_through)
        return found

    async def do_change(
        self, how: str, arguments: list[Any], timeout_s: float, learner: bool = False
    ) -> dict[str, Any]:
        """Call a method of the node that changes the members of all its groups; the groups in which
        they are what they are to be, and why they are not in the others."""
        if how == "set_members":
            arguments = [{node: voter(address) for node, address in arguments[0]}]
        role = {"role": Role.LEARNER} if learner else {}
        try:
            made: Changed = await getattr(self.node, how)(*arguments, timeout=timeout_s, **role)
        except PhxError as error:
            return {"done": [], "failed": repr(error)}
        failed = "; ".join(f"group {group}: {why}" for group, why in sorted(made.failed.items()))
        return {"done": list(made.done), "failed": failed}

    async def do_durability(self, group: int, mode: DurabilityMode) -> str:
        """What this node says of its acceptances from now on; "", or why it does not."""
        try:
            await self.node.group(group).set_durability(mode)
        except PhxError as error:
            return repr(error)
        return ""

    async def do_removed(self) -> list[int]:
        """Groups that this node says it is no member of any more."""
        return list(self.node.status().removed)

    async def do_floors(self) -> dict[int, int]:
        """Per group: the lowest instance that is kept."""
        return {group: self.node.group(group).status().floor for group in self.groups}

    async def do_state(self) -> dict[int, dict[str, Any]]:
        """Per group: how far it is, its digests, and everything in its machines."""
        found = {}
        for door in self.node.groups:
            status = door.status()
            found[door.id] = {
                "generation": 0 if door.id in self.groups else self._generation(door),
                "applied": status.applied_through,
                "digest": f"{status.digest:x} at {status.digest_at}",
                "broken": [name for name in ("stopped", "halted") if getattr(status, name)],
                **(self._directory() if door.id == DIRECTORY_GROUP else contents(door)),
            }
            await asyncio.sleep(0)
        return found

    def _directory(self) -> dict[str, Any]:
        machine = self.node.group(DIRECTORY_GROUP).machine(0)
        assert isinstance(machine, Directory)
        return {"machines": machine.digest().hex(), "values": {}, "appends": {}}

    # --- created groups

    def _generation(self, door: Group) -> int:
        return generation_of(door.members().version)

    def _statuses(self) -> list[GroupStatus]:
        """Of all groups that are here. (One may be dropped at any time.)"""
        found = []
        for door in self.node.groups:
            with suppress(Rejected):
                found.append(door.status())
        return found

    def _hosted(self) -> dict[int, int]:
        """Generation of each created group that is here."""
        found = {}
        for door in self.node.groups:
            if door.id not in self.groups:
                with suppress(Rejected):
                    found[door.id] = self._generation(door)
        return found

    def _files(self, group: int) -> list[str]:
        """What the folder has of a group."""
        where = self.config.dir
        return [
            str(path.relative_to(where))
            for path in [where / "checkpoints" / str(group), *(where / FOLDER).glob(f"{group}.*")]
            if path.exists()
        ]

    async def do_group(
        self, how: str, group: int, members: list[int], timeout_s: float
    ) -> dict[str, Any]:
        """Call a method of the node that creates, moves, stops, resumes or deletes a group; what
        came of it, as Answer in groups.py has it."""
        node = self.node
        found: dict[str, Any] = {"members": [], "files": []}
        try:
            if how == "create":
                made = await node.create_group(group, members, timeout=timeout_s)
                found |= {"generation": made.generation, "members": sorted(made.members)}
            elif how == "move":
                there: Members = await node.move_group(group, members, timeout=timeout_s)
                found["members"] = sorted(there.by_id)
            else:
                made = await getattr(node, f"{how}_group")(group, timeout=timeout_s)
                found["generation"] = made.generation
        except PhxError as error:
            return found | {
                "outcome": error.outcome, "error": type(error).__name__, "text": str(error),
                "said_us": now_us(),
            }  # fmt: skip
        found["said_us"] = now_us()
        if self.closing:  # it hosts nothing any more
            return found | {"outcome": "acknowledged", "closing": True}
        found["hosted"] = self._hosted().get(group, 0)
        if how == "delete":
            found["files"] = self._files(group)
        if how == "stop" and found["hosted"]:
            said = await self.do_operate(group, "put", "_stopped", ["stopped", 0], 1.0)
            found["refused"] = said["error"]
        return found | {"outcome": "acknowledged"}

    async def do_created(self) -> dict[str, Any]:
        """Which created groups this node lists, hosts, and has something of; and its directory."""
        listed = {
            one.group: [one.generation, one.phase, sorted(one.members)]
            for one in self.node.created_groups()
        }
        hosted = self._hosted()
        return {
            "listed": listed,
            "hosted": hosted,
            "files": [name for one in listed if one not in hosted for name in self._files(one)],
            "digest": self._directory()["machines"],
            "failed": {one: why for one in listed if (why := self._why(one))},
        }

    def _why(self, group: int) -> str:
        """What is in the way of its being here as the directory says."""
        return self.node._room.groups.why(group)

    async def do_places(self) -> dict[int, tuple[int, int, int]]:
        """Of each created group here: generation, applied through, chosen through."""
        found = {}
        for group, generation in self._hosted().items():
            with suppress(Rejected):
                status = self.node.group(group).status()
                found[group] = generation, status.applied_through, status.chosen_through
        return found

    async def do_counts(self) -> dict[str, int]:
        """What this process has of the system."""
        return counts()

    # --- how it is

    async def do_health(self) -> dict[str, Any]:
        """What the node says of itself."""
        status = self.node.status()
        groups = self._statuses()
        return {
            "poisoned": status.poisoned,
            "store_error": status.store_error,
            "journal_error": status.journal_error,
            "pressure": status.journal["pressure"],
            "syncs": status.journal["syncs"],
            "settled": status.settle["entries"],
            "damage": status.damage["found"],
            "broken": sorted({*status.stopped, *(one.group for one in groups if one.halted)}),
            "suspect": [one.group for one in groups if one.suspect],
            "holes": status.damage["holes"],
            "fetched": status.transfers["fetched"],
        }

    async def do_incomplete(self) -> list[int]:
        """Groups whose machines are not there."""
        broken = self.node.status().stopped
        return [
            one.group
            for one in self._statuses()
            if one.restoring or one.removed or one.group in broken
        ]

    async def do_status(self) -> Any:
        return jsonable(self.node.status())

    async def do_close(self) -> None:
        self.closing = True
        await self.node.close()
        self.closed.set()


def contents(door: Group) -> dict[str, Any]:
    """All that the machines of a group hold."""
    values: Any = door.machine(KEY_VALUE)
    appends: Any = door.machine(APPENDS)
    return {
        "machines": values.digest().decode() + appends.digest().hex(),
        "values": {key: token_of(value) for key, value in values.items()},
        "appends": {key: value.decode() for key, value in appends.kept.items()},
    }


def counts() -> dict[str, int]:
    """Threads and descriptors of this process, where the kernel says."""
    own = Path("/proc/self")
    names = {"threads": "task", "descriptors": "fd"} if own.exists() else {}
    return {what: len(list((own / name).iterdir())) for what, name in names.items()}


def encode(kind: str, key: str, argument: Any) -> tuple[int, bytes]:
    """Machine and command of an operation."""
    match kind:
        case "get":
            return KEY_VALUE, encode_get(key)
        case "put":
            return KEY_VALUE, encode_set(key, value_of(*argument))
        case "cas":
            version, token, size = argument
            return KEY_VALUE, encode_cas(key, version, value_of(token, size))
        case "delete":
            return KEY_VALUE, encode_delete(key)
        case "append":
            return APPENDS, encode_append(key, argument)
    raise ValueError(kind)


def asked(kind: str, key: str) -> tuple[int, Any]:
    """Machine and query of a "get", and of an "append" that only reads."""
    return (APPENDS, key) if kind == "append" else (KEY_VALUE, ("version", key))


def decode(kind: str, result: Any) -> Any:
    """What a machine returned, as the parent is told."""
    if kind == "get":
        return None if result is None else [token_of(result[0]), int(result[1])]
    if kind == "append":
        return result.decode() or None
    return bool(result) if kind == "delete" else None if result is None else int(result)


async def run(spec: dict[str, Any]) -> None:
    tortured = TorturedNode(spec)
    await tortured.node.open()
    try:
        await serve(tortured)
    finally:
        if not tortured.closed.is_set():
            await tortured.node.close()


def main() -> None:
    spec = begin()
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form)
    asyncio.run(run(spec))


if __name__ == "__main__":
    main()
