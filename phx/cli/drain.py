"""``phx drain``: a running node gives its leaderships away, before its machine is looked after."""

from __future__ import annotations

from pathlib import Path

import click

from phx._version import __version__
from phx.cli.checkpoint import AS_JSON, FOLDER, failing
from phx.cli.options import SETTINGS, fail
from phx.types import NODE_ID_MAX

__all__ = ["drain"]


@click.command("drain", context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx drain")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option(
    "--to",
    type=click.IntRange(1, NODE_ID_MAX),
    default=None,
    help="The node that is to have them all. Default: for each group the one that comes next.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.001, 3600),
    default=10,
    show_default=True,
    help="Seconds; what has not moved by then is a finding.",
)
@click.option("--back", is_flag=True, help="It leads again as its configuration says.")
@AS_JSON
def drain(folder: Path, to: int | None, timeout: float, back: bool, as_json: bool) -> None:
    """Have the node that runs in DIR lead nothing any more that another node can lead.

    It goes on to vote and to apply. Nothing that is proposed meanwhile fails. It stays that way
    until --back, or until it is started again. Through the socket `control` in DIR, so for the
    node's own user. Exits with 1 if something could not be moved, or if no node runs there.
    """
    from phx.cli.report import print_json
    from phx.node.control import ask

    if back and to is not None:
        raise click.UsageError("--back and --to exclude each other")
    request = {"do": "undrain"} if back else {"do": "drain", "to": to, "timeout": timeout}
    with failing(folder):
        answer = ask(folder, request)
    if "error" in answer:
        fail(f"{folder}: {answer['error']}")
    if as_json:
        print_json(answer)
    elif back:
        click.echo(f"its priority is {answer['priority']} again")
    else:
        nodes = sorted({one["node"] for one in answer["moved"]})
        for node in nodes:
            count = sum(one["node"] == node for one in answer["moved"])
            click.echo(f"{count} groups are led by node {node} now")
        if not nodes:
            click.echo("it led nothing")
    if answer.get("failed"):
        fail("\n".join(f"group {one['group']}: {one['why']}" for one in answer["failed"]))
