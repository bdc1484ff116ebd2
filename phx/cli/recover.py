"""``phx recover``: a new cluster from what is left of one that lost its majority."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phx._version import __version__
from phx.cli.checkpoint import AS_JSON, failing
from phx.cli.options import SETTINGS, printable

if TYPE_CHECKING:
    from phx.recovery.choice import Choice
    from phx.recovery.making import Making

__all__ = ["recover"]

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

CONSEQUENCES = """\
If you go on, node {node} in {dir} is the first and only one of a new cluster, {cluster!r}:
- What was acknowledged by members that are not here, and by none that are, is lost, and nobody can
  say what that was. If a majority is only away, bring it back instead: then nothing is lost.
- A survivor that lost its journal once counts for no majority ("of them here"), and in a relaxed
  group neither does one that was not closed, or is suspect: what it lacks is lost, too, if nobody
  else has it. With every voter here that is all there is to be had.
- What survivors accepted and do not know to be chosen is taken: it may have been chosen, and it may
  also be something that nobody was told was done. "older": so many of these stand below something
  that was accepted later; where others chose another value in their place, that one is lost, and
  what came after it is there all the same. (0 makes that unlikely, and does not exclude it.)
- No node of the old cluster may go on, or be started again, from here on. They are refused by the
  new one; but a majority of them that runs would go on by itself, and the two are two clusters.
  Keep the old folders for people to look at.
- Ids of the old cluster's nodes are never used again. Other nodes join the new one with new ids.
- Ballots and fencing tokens go on far above all that survivors know of. Sessions of callers at old
  nodes end: what they wait for is Unknown, and a retry of theirs may be done twice."""


@click.command("recover", context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx recover")
@click.argument("folders", metavar="SURVIVOR…", type=FOLDER, nargs=-1, required=True)
@click.option(
    "--config",
    "config_path",
    type=FILE,
    required=True,
    help="Of the first node of the new cluster.",
)
@click.option(
    "--i-know-data-may-be-lost", "sure", is_flag=True, help="Do it, and not only say what it means."
)
@AS_JSON
def recover(folders: tuple[Path, ...], config_path: Path, sure: bool, as_json: bool) -> None:
    """Make the first node of a new cluster out of the folders of nodes that are left of an old one,
    whose majority is lost for good.

    Says what each group's survivors have, and what that means. Without --i-know-data-may-be-lost
    nothing is written. The survivors' folders are not changed at all; `dir` of the configuration
    must be empty or not there yet, and is complete afterwards, or as it was.

    Exits with 1, and makes nothing, if the survivors are damaged or cannot be taken together.
    """
    from phx.cli.report import print_json
    from phx.config import Config
    from phx.errors import ConfigError
    from phx.recovery.making import make_folder, plan
    from phx.recovery.seen import survivors

    try:
        config = Config.from_toml(config_path)
    except ConfigError as error:
        raise click.UsageError(f"{config_path}: {error}") from error
    with failing(config_path), survivors(folders) as found:
        making = plan(config, found, time.time_ns() // 1000)
        if not as_json:
            show(making)
        if sure:
            for _ in make_folder(making):
                pass
    if as_json:
        print_json(told(making, sure))
    elif sure:
        click.echo(
            f"{config.dir} is made. Start it with this configuration and without --bootstrap; "
            "then have others join it"
        )
    else:
        click.echo("Nothing was written. With --i-know-data-may-be-lost this is done.")


COLUMNS = ("groups", "from node", "kept from", "chosen through", "checkpoint", "machines at",
           "accepted above", "older", "not taken", "lost", "voters", "of them here")  # fmt: skip


def show(making: Making) -> None:
    from phx.cli.report import print_table

    for node, one in sorted(making.survivors.items()):
        click.echo(printable(f"node {node}: {one.folder}"))
        for what in one.left_out:
            click.echo(printable(f"  left out: {what}"))
    rows = [[str(group), *row(choice)] for group, choice in making.choices.items()]
    print_table("What survivors have", list(COLUMNS), rows)
    whole = [group for group, choice in making.choices.items() if choice.majority]
    if whole:
        click.echo(
            f"Of {len(whole)} groups, the first of them group {whole[0]}, a majority of the voters "
            "is here: they lose nothing, and need no recovery. Start those nodes instead."
        )
    click.echo(
        CONSEQUENCES.format(
            node=making.config.node, dir=making.config.dir, cluster=making.config.cluster
        )
    )


def row(choice: Choice) -> list[str]:
    lost = choice.known_through - choice.through
    machines = ", ".join(str(applied) for _, applied in sorted(choice.machines.items()))
    frontier = str(choice.checkpoints[0].frontier) if choice.checkpoints else "-"
    return [
        str(choice.source),
        str(choice.kept_from),
        str(choice.chosen_through),
        frontier,
        machines or "-",
        str(choice.adopted),
        str(choice.older),
        str(choice.beyond),
        str(max(lost, 0)),
        ", ".join(map(str, choice.voters)) or "not known",
        ", ".join(map(str, choice.here)) or "none",
    ]


def told(making: Making, made: bool) -> dict[str, Any]:
    return {
        "cluster": making.config.cluster,
        "node": making.config.node,
        "dir": str(making.config.dir),
        "made": made,
        "survivors": [
            {"node": node, "folder": str(one.folder), "left_out": list(one.left_out)}
            for node, one in sorted(making.survivors.items())
        ],
        "groups": [
            {
                "group": group,
                "from": choice.source,
                "kept_from": choice.kept_from,
                "chosen_through": choice.chosen_through,
                "checkpoint": choice.checkpoints[0].frontier if choice.checkpoints else None,
                "machines": choice.machines,
                "accepted_above": choice.adopted,
                "older": choice.older,
                "not_taken": choice.beyond,
                "lost": max(choice.known_through - choice.through, 0),
                "version": choice.version,
                "members": list(choice.members),
                "voters": list(choice.voters),
                "here": list(choice.here),
                "majority": choice.majority,
            }
            for group, choice in making.choices.items()
        ],
    }
