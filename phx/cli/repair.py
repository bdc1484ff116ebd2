"""``phx repair``: what a node that does not run is to make anew when it starts."""

from __future__ import annotations

from pathlib import Path

import click

from phx._version import __version__
from phx.cli.checkpoint import AS_JSON, FOLDER, at_rest, failing
from phx.cli.options import SETTINGS, fail
from phx.types import GROUP_ID_MAX

__all__ = ["repair"]


@click.command("repair", context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx repair")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option(
    "--group",
    "groups",
    type=click.IntRange(0, GROUP_ID_MAX),
    required=True,
    multiple=True,
    help="A group to make anew; more than once for several.",
)
@AS_JSON
def repair(folder: Path, groups: tuple[int, ...], as_json: bool) -> None:
    """Have groups of a node made anew from checkpoints of other nodes, at its next start.

    DIR is the folder of a node that is not running. Nothing is fetched now, and nothing is lost:
    what the node has of these groups' state goes to quarantine once another state is in its place.
    """
    from phx.checkpoint.catalog import ROOT
    from phx.checkpoint.files import OsFiles
    from phx.checkpoint.rebuild import mark
    from phx.cli.report import print_json

    files = OsFiles(folder)
    with failing(folder), at_rest(folder) as (_, _, held):
        if unknown := sorted(set(groups) - held.keys()):
            fail(f"{folder} holds nothing of group {unknown[0]}")
        for group in groups:
            for _ in mark(files, ROOT, group):
                pass
    if as_json:
        print_json({"marked": list(groups)})
    else:
        for group in groups:
            click.echo(f"group {group} is made anew at the next start")
