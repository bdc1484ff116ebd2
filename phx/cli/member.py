"""``phx member``: who the members of groups are, and changes of them; ``phx decommission``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from phx._version import __version__
from phx.cli.checkpoint import AS_JSON, FOLDER, failing
from phx.cli.options import SETTINGS, fail, printable
from phx.types import GROUP_ID_MAX, NODE_ID_MAX

__all__ = ["decommission", "member"]

NODE = click.IntRange(1, NODE_ID_MAX)
GROUP = click.option(
    "--group",
    type=click.IntRange(0, GROUP_ID_MAX),
    default=None,
    help="This group. Default: all that the node is a member of.",
)
TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(0.001, 86_400),
    default=60,
    show_default=True,
    help="Seconds; new members have to start and catch up in that time.",
)
TARGET = click.argument("folder", metavar="DIR", type=FOLDER)


@click.group("member", context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx member")
def member() -> None:
    """Show and change who the members of groups are, through the node that runs in DIR.

    Any member will do: it asks whoever leads. A change returns when it is active: members that are
    none any more may then be switched off, and their folders deleted. Who is new is a learner until
    it has caught up: start it meanwhile (`join` in its configuration). What is so already is not
    changed, so a command that failed may be given again. Through the socket `control` in DIR, so
    for the node's own user. Exits with 1 if a group was not changed, or if no node runs there.
    """


@member.command("list")
@TARGET
@GROUP
@AS_JSON
def members(folder: Path, group: int | None, as_json: bool) -> None:
    """The members of groups, as the node knows them: a line for each set of members."""
    show(asked(folder, {"do": "members", "group": group}), as_json)


@member.command("add")
@TARGET
@click.argument("node", type=NODE)
@click.argument("address", metavar="HOST:PORT")
@click.option("--learner", is_flag=True, help="It has a machine, and never votes.")
@GROUP
@TIMEOUT
@AS_JSON
def add(
    folder: Path,
    node: int,
    address: str,
    learner: bool,
    group: int | None,
    timeout: float,
    as_json: bool,
) -> None:
    """One member more, with an id that was never used before."""
    role = "learner" if learner else "voter"
    said = {"how": "add", "node": node, "address": address, "role": role}
    show(change(folder, said, group, timeout), as_json)


@member.command("remove")
@TARGET
@click.argument("node", type=NODE)
@GROUP
@TIMEOUT
@AS_JSON
def remove(folder: Path, node: int, group: int | None, timeout: float, as_json: bool) -> None:
    """One member less."""
    show(change(folder, {"how": "remove", "node": node}, group, timeout), as_json)


@member.command("replace")
@TARGET
@click.argument("node", type=NODE)
@click.argument("by", type=NODE)
@click.argument("address", metavar="HOST:PORT")
@GROUP
@TIMEOUT
@AS_JSON
def replace(
    folder: Path,
    node: int,
    by: int,
    address: str,
    group: int | None,
    timeout: float,
    as_json: bool,
) -> None:
    """The node BY, at HOST:PORT, in the place of NODE, which may be dead."""
    said = {"how": "replace", "node": node, "by": by, "address": address}
    show(change(folder, said, group, timeout), as_json)


@member.command("set")
@TARGET
@click.argument("members", metavar="NODE=HOST:PORT…", nargs=-1, required=True)
@GROUP
@TIMEOUT
@AS_JSON
def set_members(
    folder: Path, members: tuple[str, ...], group: int | None, timeout: float, as_json: bool
) -> None:
    """Exactly these members, all of which vote: so a cluster moves to other machines."""
    rows = []
    for text in members:
        node, equals, address = text.partition("=")
        if not (equals and node.isascii() and node.isdigit()):
            raise click.UsageError(f"{text!r} is not NODE=HOST:PORT")
        rows.append([int(node), "voter", address])
    show(change(folder, {"how": "set", "members": rows}, group, timeout), as_json)


@click.command("decommission", context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx decommission")
@TARGET
@TIMEOUT
@AS_JSON
def decommission(folder: Path, timeout: float, as_json: bool) -> None:
    """Remove the node that runs in DIR from all its groups.

    It leads nothing any more, and is a member of nothing when this returns: it may be switched off,
    and DIR deleted. One member less votes in each group; to have another node in its place, see
    `phx member replace`. Through the socket `control` in DIR, so for the node's own user. Exits
    with 1 if it is a member of something still, or if no node runs there; it leads nothing then all
    the same, until `phx drain DIR --back`.
    """
    answer = asked(folder, {"do": "decommission", "timeout": timeout})
    if answer["failed"]:
        click.echo(f"it goes on to lead nothing, until: phx drain {folder} --back", err=True)
    show(answer, as_json)


def change(folder: Path, said: dict[str, Any], group: int | None, timeout: float) -> dict[str, Any]:
    return asked(folder, {"do": "change", "group": group, "timeout": timeout, **said})


def asked(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    from phx.node.control import ask

    with failing(folder):
        answer = ask(folder, request)
    if "error" in answer:
        fail(f"{folder}: {answer['error']}")
    return answer


def show(answer: dict[str, Any], as_json: bool) -> None:
    from phx.cli.report import print_json

    if as_json:
        print_json(answer)
    else:
        alike: dict[str, list[int]] = {}
        for one in answer["groups"]:
            alike.setdefault(said(one), []).append(one["group"])
        for text, groups in alike.items():
            click.echo(printable(f"{spans(groups)}: {text}"))
    if answer.get("failed"):
        fail("\n".join(f"group {one['group']}: {one['why']}" for one in answer["failed"]))


def said(one: dict[str, Any]) -> str:
    who = ", ".join(
        f"{each['node']} at {each['address']}"
        + ("" if each["role"] == "voter" else f" ({each['role']})")
        for each in one["members"]
    )
    return f"version {one['version']}{'' if one['active'] else ', not active yet'}: {who}"


def spans(groups: list[int]) -> str:
    """ "groups 0 to 3, 7"."""
    runs: list[list[int]] = []
    for group in sorted(groups):
        if runs and group == runs[-1][1] + 1:
            runs[-1][1] = group
        else:
            runs.append([group, group])
    texts = [str(low) if low == high else f"{low} to {high}" for low, high in runs]
    return f"group{'s' if len(groups) > 1 else ''} {', '.join(texts)}"
