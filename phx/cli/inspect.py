"""``phx inspect``: what stands in the folder of a node, without a change to anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from phx._version import __version__
from phx.cli.options import SETTINGS, fail
from phx.errors import PhxError

__all__ = ["inspect"]

COLUMNS = ("group", "kept_from", "settled_through", "checkpoints")


@click.command(context_settings=SETTINGS)
@click.argument(
    "folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--json", "as_json", is_flag=True, help="Report on stdout as JSON.")
@click.version_option(__version__, prog_name="phx inspect")
def inspect(folder: Path, as_json: bool) -> None:
    """Show where the log of every group begins and ends, and its checkpoints.

    DIR is the folder of a node: `dir` of its configuration. Also beside a running node; nothing is
    opened for writing. Exits with 1 if something cannot be read: the rest is shown.
    """
    from phx.cli.report import print_json, print_table

    found, findings = look_at(folder)
    if as_json:
        print_json(found | {"findings": findings})
    else:
        if found["store"]:
            click.echo("store: " + ", ".join(f"{k} {v}" for k, v in found["store"].items()))
        rows = [[shown(group[name]) for name in COLUMNS] for group in found["groups"]]
        print_table(f"Groups in {folder}", list(COLUMNS), rows)
    if findings:
        fail("\n".join(findings))


def look_at(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What there is, and what cannot be read."""
    from phx.checkpoint.catalog import ROOT, look
    from phx.checkpoint.files import OsFiles
    from phx.store_look import look as look_at_store

    findings: list[str] = []
    store: dict[str, Any] = {}
    groups: dict[int, dict[str, Any]] = {}

    def of(group: int) -> dict[str, Any]:
        empty = dict.fromkeys(COLUMNS) | {"group": group, "checkpoints": []}
        return groups.setdefault(group, empty)

    try:
        stands = look_at_store(folder / "store")
        store = {
            "cluster": stands.identity.cluster,
            "node": stands.identity.node,
            "store_id": stands.identity.store_id.hex(),
            "chunks": stands.chunks,
            "file_bytes": stands.file_bytes,
        }
        for group, floor in stands.floors.items():
            of(group).update(kept_from=floor.kept_from, settled_through=floor.settled_through)
    except PhxError as error:
        findings.append(f"{type(error).__name__}: {error}")
    try:
        survey = look(OsFiles(folder), ROOT)
        for group, manifests in survey.groups.items():
            of(group)["checkpoints"] = [one.frontier for one in manifests]
        findings += [f"{one.path}: {one.what}" for one in survey.findings]
    except (PhxError, OSError) as error:
        findings.append(f"{folder / ROOT}: {type(error).__name__}: {error}")
    return {"store": store, "groups": [groups[group] for group in sorted(groups)]}, findings


def shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
