"""``phx node`` and ``phx init``: one node in the foreground, and the files to configure three."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import phx

DEFAULT_MACHINE = "phx.machines.kv:KeyValue"


class BadMachine(ValueError):
    """``module:factory`` does not name something that can be called with a group id."""


def load_factory(name: str) -> Callable[[int], Any]:
    """The machine factory that ``module:factory`` names. Raises BadMachine.

    A class that takes no argument does as well as a function of the group id.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise BadMachine(f"{name!r} is not of the form module:factory")
    sys.path.insert(0, "")  # a module beside the configuration, as with python -m
    try:
        made = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise BadMachine(f"{name!r}: {error}") from error
    if isinstance(made, type):
        return lambda group: made()
    if not callable(made):
        raise BadMachine(f"{name!r} cannot be called")
    return made  # type: ignore[no-any-return]


async def run(
    config: phx.Config, factory: Callable[[int], Any], bootstrap: bool, as_json: bool
) -> None:
    """Run the node until SIGTERM or SIGINT, then close it cleanly."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("phx").setLevel(logging.INFO)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    node = phx.Node(config, factory, bootstrap=bootstrap)
    # (One that joins may wait for long.)
    opening, waiting = asyncio.ensure_future(node.open()), asyncio.ensure_future(ended.wait())
    await asyncio.wait({opening, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await opening
        return
    await opening
    try:
        status = node.status()
        print(
            f"node {status.node} of {status.cluster!r} at port {status.port}: "
            f"{status.groups} groups",
            file=sys.stderr,
        )
        if as_json:
            report(
                {
                    "event": "ready",
                    "node": status.node,
                    "port": status.port,
                    "incarnation": status.incarnation,
                    "groups": status.groups,
                }
            )
        await ended.wait()
        print(f"node {status.node} is closing", file=sys.stderr)
    finally:
        await node.close()
    if as_json:
        report({"event": "closed", "node": status.node})


def report(event: dict[str, Any]) -> None:
    """One JSON object, on a line of its own."""
    print(json.dumps(event), flush=True)


def write_configs(folder: Path, nodes: int, groups: int, port: int, cluster: str) -> list[Path]:
    """Write node1.toml, node2.toml, … for a cluster on loopback. Raises FileExistsError."""
    folder.mkdir(parents=True, exist_ok=True)
    members = "".join(f'{node} = "127.0.0.1:{port + node - 1}"\n' for node in range(1, nodes + 1))
    paths = []
    for node in range(1, nodes + 1):
        path = folder / f"node{node}.toml"
        with open(path, "x", encoding="utf-8") as file:
            file.write(
                f"cluster = {quoted(cluster)}\nnode = {node}\n"
                f'dir = "node{node}"\ngroups = {groups}\n\n[members]\n{members}'
            )
        paths.append(path)
    return paths


def quoted(text: str) -> str:
    """`text` as a basic string of TOML (JSON's escapes are among TOML's)."""
    return json.dumps(text, ensure_ascii=True)
