"""``phx repair``: what a node is to make anew, now or at its next start, or to do without then."""

from __future__ import annotations

from pathlib import Path

import click

from phx._version import __version__
from phx.cli.checkpoint import AS_JSON, FOLDER, at_rest, failing
from phx.cli.options import SETTINGS, fail, printable
from phx.errors import Locked, SystemFailure
from phx.types import GROUP_ID_MAX

__all__ = ["repair"]


@click.command("repair", context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx repair")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option(
    "--group",
    "groups",
    type=click.IntRange(0, GROUP_ID_MAX),
    multiple=True,
    help="A group to make anew; more than once for several.",
)
@click.option(
    "--rejoin",
    is_flag=True,
    help="The journal is damaged or gone: let the node start without it, once.",
)
@click.option("--yes", is_flag=True, help="With --rejoin: do it, and not only say what it means.")
@AS_JSON
def repair(folder: Path, groups: tuple[int, ...], rejoin: bool, yes: bool, as_json: bool) -> None:
    """Have groups of a node made anew, or let it start without its journal. One of:

    --group: these groups are made anew from checkpoints of other nodes. Nothing is lost: what the
    node has of their state goes to quarantine once another state is in its place. If a node runs in
    DIR it does that now, and the command waits until it is done, however long another node takes to
    be there that has the state; who stops waiting (Ctrl-C) stops nothing. If none runs, the next
    start does it, and nothing is fetched now. Exits with 1 if one of them cannot be made anew.

    --rejoin: the node does not run, and its journal is damaged or gone. Says what that means; with
    --yes the journal is put aside, and the next start goes on without it, whatever `journal_damage`
    of the configuration says of other losses. Exits with 1, and changes nothing, if the journal is
    whole or the node cannot rejoin.
    """
    if rejoin == bool(groups):
        raise click.UsageError("give either --group or --rejoin")
    if yes and not rejoin:
        raise click.UsageError("--yes goes with --rejoin")
    if rejoin:
        allow_rejoin(folder, yes, as_json)
    else:
        mark_groups(folder, groups, as_json)


def mark_groups(folder: Path, groups: tuple[int, ...], as_json: bool) -> None:
    from phx.checkpoint.catalog import ROOT
    from phx.checkpoint.files import OsFiles
    from phx.checkpoint.rebuild import mark
    from phx.cli.report import print_json

    files = OsFiles(folder)
    with failing(folder):
        try:
            with at_rest(folder) as (_, _, held):
                if unknown := sorted(set(groups) - held.keys()):
                    fail(f"{folder} holds nothing of group {unknown[0]}")
                for group in groups:
                    for _ in mark(files, ROOT, group):
                        pass
        except Locked as locked:
            make_anew(folder, groups, locked, as_json)
            return
    if as_json:
        print_json({"marked": list(groups)})
    else:
        for group in groups:
            click.echo(f"group {group} is made anew at the next start")


def make_anew(folder: Path, groups: tuple[int, ...], locked: Locked, as_json: bool) -> None:
    """By the node that runs there. Raises `locked`: none does, and yet somebody has the folder."""
    from phx.cli.report import print_json
    from phx.node.control import ask

    try:
        answer = ask(folder, {"do": "repair", "groups": list(groups)})
    except SystemFailure as error:
        raise Locked(f"{locked}; {error}") from None
    if "error" in answer:
        fail(f"{folder}: {answer['error']}")
    if as_json:
        print_json(answer)
    else:
        for group in answer["repaired"]:
            click.echo(f"group {group} was made anew from a checkpoint of another node")
    if answer["failed"]:
        fail("\n".join(f"group {one['group']}: {one['why']}" for one in answer["failed"]))


CONSEQUENCES = """\
What the node promised and accepted since its entries were settled may be lost with that journal.
If you go on:
- The node keeps its id, its settled log, its checkpoints and its machines' files.
- It votes in no group, and grants no lease, until it has led that group once, above everything that
  it can have promised, with promises of {others}.
- Meanwhile its vote is missing, as if it were down: groups go on while a majority of the others is
  there. If too few members kept their journals, those groups stand still, also for ever.
- What {quarantine} holds of the old journal is never used again. If the journal is only not there
  for now (a disk that is not mounted), bring it back instead.
- A copy of this folder from before must never be started again.
- The only member of a cluster refuses to start all the same: nobody else knows what was chosen."""


def allow_rejoin(folder: Path, yes: bool, as_json: bool) -> None:
    from phx.cli.report import print_json
    from phx.node.rejoining import Loss, allow, examine

    with failing(folder), at_rest(folder) as (_, owner, _):
        loss = examine(folder, owner)
        if not isinstance(loss, Loss):
            fail(f"{folder}: {loss}")
        aside = allow(folder, loss) if yes else None
    if as_json:
        print_json(
            {
                "journal": loss.why,
                "groups": list(loss.facts.groups),
                "allowed": yes,
                "put_aside": aside,
            }
        )
        return
    click.echo(printable(f"the journal: {loss.why}"))
    others = "all other members (of five or more: of enough that every majority has one of them)"
    click.echo(CONSEQUENCES.format(others=others, quarantine=folder / "quarantine"))
    if not yes:
        click.echo("Nothing was changed. With --yes this is done.")
        return
    if aside is not None:
        click.echo(f"what was left of the journal is now {aside}")
    click.echo(
        f"the next start goes on without it: {len(loss.facts.groups)} groups rejoin. It is allowed "
        "once; if that start fails before its new journal is there, the next one may try again"
    )
