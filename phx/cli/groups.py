"""``phx groups``: groups that are created, moved, stopped and deleted while their cluster runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from phx._version import __version__
from phx.cli.checkpoint import AS_JSON
from phx.cli.member import NODE, TARGET, TIMEOUT, asked
from phx.cli.member import show as show_members
from phx.cli.options import SETTINGS, printable
from phx.types import GROUP_ID_MAX

__all__ = ["groups"]

GROUP = click.argument("group", type=click.IntRange(0, GROUP_ID_MAX))


@click.group("groups", context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx groups")
def groups() -> None:
    """Show, create, move, stop and delete groups, through the node that runs in DIR.

    Any node of the cluster will do, if its configuration says `directory = true`, as that of every
    node must. A command that failed may be given again: what is so already is not done twice.
    Through the socket `control` in DIR, so for the node's own user. Exits with 1 if it was not
    done, or if no node runs there.
    """


@groups.command("list")
@TARGET
@AS_JSON
def listed(folder: Path, as_json: bool) -> None:
    """The groups that were created, as the node has heard: a line for each."""
    show(asked(folder, {"do": "groups"}), as_json)


@groups.command("create")
@TARGET
@GROUP
@click.argument("nodes", metavar="[NODE…]", type=NODE, nargs=-1)
@TIMEOUT
@AS_JSON
def create(folder: Path, group: int, nodes: tuple[int, ...], timeout: float, as_json: bool) -> None:
    """A group more, on these nodes; on all, if none are named. An id of a group that is gone may be
    used again: the two have nothing in common."""
    members = list(nodes) if nodes else None
    said = {"do": "create", "group": group, "members": members, "timeout": timeout}
    show(asked(folder, said), as_json)


@groups.command("move")
@TARGET
@GROUP
@click.argument("nodes", metavar="NODE…", type=NODE, nargs=-1, required=True)
@TIMEOUT
@AS_JSON
def move(folder: Path, group: int, nodes: tuple[int, ...], timeout: float, as_json: bool) -> None:
    """Have a group on exactly these nodes. In DIR a member of it runs.

    It takes values all the while. When it returns, those that left may be switched off: they drop
    all that they have of it.
    """
    said = {"do": "change", "group": group, "how": "move", "nodes": list(nodes), "timeout": timeout}
    show_members(asked(folder, said), as_json)


@groups.command("stop")
@TARGET
@GROUP
@TIMEOUT
@AS_JSON
def stop(folder: Path, group: int, timeout: float, as_json: bool) -> None:
    """Have its members keep all of it, and take no values."""
    show(asked(folder, {"do": "stop", "group": group, "timeout": timeout}), as_json)


@groups.command("resume")
@TARGET
@GROUP
@TIMEOUT
@AS_JSON
def resume(folder: Path, group: int, timeout: float, as_json: bool) -> None:
    """Have a stopped group take values again."""
    show(asked(folder, {"do": "resume", "group": group, "timeout": timeout}), as_json)


@groups.command("delete")
@TARGET
@GROUP
@click.option("--yes", is_flag=True, help="Do not ask.")
@TIMEOUT
@AS_JSON
def delete(folder: Path, group: int, yes: bool, timeout: float, as_json: bool) -> None:
    """End a group, with all that is in it, on all of its members.

    Its machines, its log and its checkpoints are deleted: nothing brings them back. It needs most
    of the group's members.
    """
    if not yes:
        click.confirm(f"delete group {group}, with all that is in it?", abort=True)
    show(asked(folder, {"do": "delete", "group": group, "timeout": timeout}), as_json)


def show(answer: dict[str, Any], as_json: bool) -> None:
    from phx.cli.report import print_json

    if as_json:
        print_json(answer)
        return
    for one in answer["groups"]:
        who = ", ".join(f"{each['node']} at {each['address']}" for each in one["members"])
        here = f"; here not yet: {one['why']}" if one["why"] else ""
        text = f"group {one['group']}, generation {one['generation']}: {one['phase']}"
        click.echo(printable(f"{text}{', ' + who if who else ''}{here}"))
