"""``phx peers``: the other nodes, as a running node sees them; and where they have moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from phx._version import __version__
from phx.cli.checkpoint import AS_JSON, FOLDER, failing
from phx.cli.options import SETTINGS, fail, printable
from phx.types import NODE_ID_MAX

__all__ = ["peers"]


@click.command("peers", context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx peers")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option(
    "--move",
    metavar="NODE HOST:PORT",
    type=(click.IntRange(1, NODE_ID_MAX), str),
    default=None,
    help="That node is to be reached there from now on.",
)
@AS_JSON
def peers(folder: Path, move: tuple[int, str] | None, as_json: bool) -> None:
    """Show the other nodes as the node that runs in DIR sees them: one line each.

    With --move it reaches one of them elsewhere, from now on and after a restart, until its
    configuration says another address of that node. Tell both nodes: the one with the lower id
    dials. Through the socket `control` in DIR, so for the node's own user. Exits with 1 if that
    cannot be, or if no node runs there.
    """
    from phx.cli.report import print_json
    from phx.node.control import ask

    request: dict[str, Any] = {"do": "peers"}
    if move is not None:
        request = {"do": "move", "node": move[0], "address": move[1]}
    with failing(folder):
        answer = ask(folder, request)
    if "error" in answer:
        fail(f"{folder}: {answer['error']}")
    if as_json:
        print_json(answer)
        return
    for one in answer["peers"]:
        state = "connected" if one["connected"] else "away"
        if one["refused"] and not one["connected"]:
            state = f"refuses ({one['refused']})"
        at = one["address"] or "nobody knows where"
        click.echo(printable(f"node {one['node']} at {at}: {state} for {span(one)}"))


def span(one: dict[str, Any]) -> str:
    seconds = one["since_us_ago"] // 1_000_000
    return f"{seconds} s" if seconds < 600 else f"{seconds // 60} min"
