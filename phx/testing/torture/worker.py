"""A process that is to be tortured: one node, and operations on it for clients elsewhere.

Run as ``python -m phx.testing.torture.worker``; processes.py is its parent's end.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from phx.config import Config
from phx.errors import PhxError
from phx.machines.kv import KeyValue, encode_cas, encode_delete, encode_get, encode_set
from phx.node import Node
from phx.testing.processes import now_us
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
from phx.types import Changed, Role, voter


class TorturedNode:
    """The node of this process, and what its parent may ask of it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.config = Config.from_mapping(spec["config"])
        self.groups = self.config.group_ids
        machines = {KEY_VALUE: KeyValue, APPENDS: Appends}
        self.node = Node(self.config, machines, bootstrap=spec["bootstrap"])
        self.closed = asyncio.Event()

    async def do_ready(self) -> None:
        """Answered when the node is open, as everything is."""

    async def do_operate(
        self, group: int, kind: str, key: str, argument: Any, timeout_s: float
    ) -> dict[str, Any]:
        """One operation of a client: what became of it, its result, and when it ran.

        kind     argument               result
        get      -                      [token, version], or None
        put      token, size            version
        cas      version, token, size   the new version, or None
        delete   -                      was it there?
        append   token, or "" to read   the whole string, or None if it is empty
        """
        machine, command = encode(kind, key, argument)
        found: dict[str, Any] = {"called_us": now_us(), "error": ""}
        try:
            future = self.node.group(group).propose(command, timeout=timeout_s, machine=machine)
            result = (await future).value
            found["returned_us"] = now_us()
        except PhxError as error:
            return found | {"outcome": error.outcome, "error": type(error).__name__}
        try:
            return found | {"outcome": "acknowledged", "result": decode(kind, result)}
        except (Damaged, ValueError, TypeError) as error:
            return found | {"outcome": "damaged", "error": f"{kind} of {key!r}: {error!r}"}

    async def do_led(self) -> list[int]:
        return [group for group in self.groups if self.node.group(group).status().leading]

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

    async def do_removed(self) -> list[int]:
        """Groups that this node says it is no member of any more."""
        return list(self.node.status().removed)

    async def do_floors(self) -> dict[int, int]:
        """Per group: the lowest instance that is kept."""
        return {group: self.node.group(group).status().floor for group in self.groups}

    async def do_state(self) -> dict[int, dict[str, Any]]:
        """Per group: how far it is, its digests, and everything in its machines."""
        found = {}
        for group in self.groups:
            door = self.node.group(group)
            status = door.status()
            values: Any = door.machine(KEY_VALUE)
            appends: Any = door.machine(APPENDS)
            found[group] = {
                "applied": status.applied_through,
                "digest": f"{status.digest:x} at {status.digest_at}",
                "machines": values.digest().decode() + appends.digest().hex(),
                "broken": [name for name in ("stopped", "halted") if getattr(status, name)],
                "values": {key: token_of(value) for key, value in values.items()},
                "appends": {key: value.decode() for key, value in appends.kept.items()},
            }
            await asyncio.sleep(0)
        return found

    async def do_health(self) -> dict[str, Any]:
        """What the node says of itself."""
        status = self.node.status()
        groups = [self.node.group(group).status() for group in self.groups]
        return {
            "poisoned": status.poisoned,
            "store_error": status.store_error,
            "pressure": status.journal["pressure"],
            "syncs": status.journal["syncs"],
            "settled": status.settle["entries"],
            "damage": status.damage["found"],
            "broken": [
                one.group for one in groups if one.halted or (one.stopped and not one.removed)
            ],
            "suspect": [one.group for one in groups if one.suspect],
            "holes": status.damage["holes"],
            "fetched": status.transfers["fetched"],
        }

    async def do_incomplete(self) -> list[int]:
        """Groups whose machines are not there."""
        found = [self.node.group(group).status() for group in self.groups]
        return [one.group for one in found if one.restoring or one.stopped]

    async def do_status(self) -> Any:
        return jsonable(self.node.status())

    async def do_close(self) -> None:
        await self.node.close()
        self.closed.set()


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
