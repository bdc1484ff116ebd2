"""``phx checkpoint``: what checkpoints a node's folder has, and carrying one elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phx._version import __version__
from phx.cli.options import SETTINGS, command, fail, printable
from phx.errors import PhxError
from phx.types import GROUP_ID_MAX, NEVER

if TYPE_CHECKING:
    from phx.checkpoint.catalog import Finding
    from phx.checkpoint.manifest import Manifest
    from phx.store_folder import StoreIdentity
    from phx.store_trim import Floor

__all__ = ["checkpoint"]

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Report on stdout as JSON.")


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx checkpoint")
def checkpoint() -> None:
    """Have checkpoints taken, look at those in a node's folder, verify them, carry one elsewhere.

    DIR is the folder of a node: `dir` of its configuration. Every command can answer with --json.
    """


@command(checkpoint, "list")
@click.argument("folder", metavar="DIR", type=FOLDER)
@AS_JSON
def list_command(folder: Path, as_json: bool) -> None:
    """Show the checkpoints of every group. Also beside a running node.

    Exits with 1 if there is anything that is no readable checkpoint.
    """
    from phx.checkpoint.catalog import ROOT, look
    from phx.checkpoint.files import OsFiles
    from phx.cli.report import print_json, print_table

    with failing(folder):
        survey = look(OsFiles(folder), ROOT)
    found = [one for group in sorted(survey.groups) for one in survey.groups[group]]
    if as_json:
        print_json(
            {"checkpoints": [facts(one) for one in found], "findings": listed(survey.findings)}
        )
    else:
        rows = [[str(value) for value in facts(one).values()] for one in found]
        print_table(f"Checkpoints in {folder}", list(COLUMNS), rows)
    if survey.findings:
        fail("\n".join(line(one) for one in survey.findings))


@command(checkpoint, "verify")
@click.argument("folder", metavar="DIR", type=FOLDER)
@AS_JSON
def verify_command(folder: Path, as_json: bool) -> None:
    """Read every byte of every checkpoint; one line a finding. Also beside a running node.

    Exits with 1 if anything is not what was written.
    """
    from phx.checkpoint.catalog import ROOT, look, path_of, verify
    from phx.checkpoint.files import OsFiles, exists
    from phx.cli.report import print_json

    files = OsFiles(folder)
    checked = size_bytes = 0
    with failing(folder):
        survey = look(files, ROOT)
        findings = list(survey.findings)
        for group in sorted(survey.groups):
            for one in survey.groups[group]:
                path = path_of(ROOT, one)
                found = verify(files, path)
                if found and not exists(files, path):
                    continue  # a running node has dropped it meanwhile
                findings += found
                checked += 1
                size_bytes += one.size_bytes
    if as_json:
        print_json({"checkpoints": checked, "bytes": size_bytes, "findings": listed(findings)})
    else:
        for one_finding in findings:
            click.echo(line(one_finding))
        click.echo(f"{checked} checkpoints with {size_bytes:,} bytes; {len(findings)} findings")
    if findings:
        fail(f"{len(findings)} findings")


@command(checkpoint, "take")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option(
    "--group",
    type=click.IntRange(0, GROUP_ID_MAX),
    default=None,
    help="Of this group. Default: of every group that has applied anything.",
)
@AS_JSON
def take_command(folder: Path, group: int | None, as_json: bool) -> None:
    """Have the node that runs in DIR take checkpoints now, with the state of every machine in them.

    Through the socket `control` in DIR, so for the node's own user. Exits with 1 if one could not
    be taken, or if no node runs there.
    """
    from phx.cli.report import print_json
    from phx.node.control import ask

    with failing(folder):
        answer = ask(folder, {"do": "checkpoint", "group": group})
    if "error" in answer:
        fail(f"{folder}: {answer['error']}")
    if as_json:
        print_json(answer)
    else:
        for one in answer["taken"]:
            click.echo(
                f"group {one['group']}, frontier {one['frontier']}, {one['bytes']:,} bytes in "
                f"{one['seconds']:.2f} s: {one['path']}"
            )
    if answer["failed"]:
        fail("\n".join(f"group {one['group']}: {one['why']}" for one in answer["failed"]))


@command(checkpoint, "export")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("group", metavar="GROUP", type=click.IntRange(0, GROUP_ID_MAX))
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--frontier",
    type=click.IntRange(1, NEVER - 1),
    default=None,
    help="The checkpoint of this instance. Default: the newest one.",
)
@AS_JSON
def export_command(
    folder: Path, group: int, target: Path, frontier: int | None, as_json: bool
) -> None:
    """Write a checkpoint of a group to one file, verified on the way. Never overwrites.

    Also beside a running node, which may drop the checkpoint meanwhile: then this exits with 1.
    """
    from phx.checkpoint.bundle import export
    from phx.checkpoint.catalog import ROOT, look, path_of
    from phx.checkpoint.files import OsFiles
    from phx.store_folder import sync_folder

    if target.exists():
        fail(f"{target} exists")
    files = OsFiles(folder)
    part = target.with_name(target.name + ".part")
    with failing(folder):
        found = [
            one
            for one in look(files, ROOT).groups.get(group, ())
            if frontier is None or one.frontier == frontier
        ]
        # A light one has no state in it; of equal frontiers there may be a full one, too.
        best = next((one for one in found if not one.light), found[0] if found else None)
        if best is None:
            fail(f"{folder} has no such checkpoint of group {group}")
        with part.open("xb") as output:
            try:
                export(files, path_of(ROOT, best), output.write)
                output.flush()
                os.fsync(output.fileno())
            except BaseException:
                part.unlink()
                raise
        part.rename(target)
        sync_folder(target.parent)
    report(best, as_json)


@command(checkpoint, "import")
@click.argument(
    "source", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--new", is_flag=True, help="Also for a group of which the folder holds nothing.")
@AS_JSON
def import_command(source: Path, folder: Path, new: bool, as_json: bool) -> None:
    """Put an exported checkpoint into the folder of a node that is not running.

    It is there as a whole, every byte verified, or not at all. Refused: the checkpoint of another
    cluster, or of an instance below what the folder's log begins with.
    """
    from phx.checkpoint.bundle import import_
    from phx.checkpoint.catalog import ROOT
    from phx.checkpoint.files import OsFiles
    from phx.checkpoint.taking import run
    from phx.errors import Foreign, StoreError

    with failing(source), at_rest(folder) as (store, owner, held):

        def accept(manifest: Manifest) -> None:
            if manifest.cluster != owner.cluster:
                raise Foreign(
                    f"it is of cluster {manifest.cluster:#x}, and {folder} of cluster "
                    f"{owner.cluster:#x}"
                )
            if manifest.group not in held and not new:
                raise StoreError(f"{folder} holds nothing of group {manifest.group}; see --new")
            floor = held[manifest.group].kept_from if manifest.group in held else 1
            if manifest.frontier + 1 < floor:
                raise StoreError(
                    f"it ends at instance {manifest.frontier}, and the log in {folder} begins "
                    f"with {floor}: what is between them would be missing"
                )

        with source.open("rb") as opened:
            made = run(import_(OsFiles(folder), ROOT, opened, accept=accept))
        here = held.get(made.group)
        if here is None or (new and here.kept_from > here.settled_through):
            begin_behind(store, owner, made)
        # (Else the manifest says who the members are, and the next start takes them from there.)
    report(made, as_json)


def begin_behind(folder: Path, owner: StoreIdentity, manifest: Manifest) -> None:
    """The log of a group of which the store has nothing begins behind its checkpoint.

    What is in a checkpoint of this cluster was chosen, so the node may say so; if it did not, and
    no other member had the log either, the group would begin again with instance 1, and values at
    instances that the checkpoint covers would never be answered. After the checkpoint is durable,
    so that nothing is passed over that is nowhere. The members that the checkpoint says go into the
    store in the same transaction: who settles through its frontier is judged by them.
    """
    from phx.checkpoint.manifest import members_of
    from phx.store import Store
    from phx.store_trim import Floor

    store = Store.open(folder, cluster=owner.cluster, node=owner.node)
    try:
        floors = {manifest.group: Floor(manifest.frontier + 1, manifest.frontier)}
        store.raise_floors(floors, members_of([manifest]))
    finally:
        store.close()


# --- what they share


@contextmanager
def failing(subject: Path) -> Iterator[None]:
    """What goes wrong with it is a finding."""
    try:
        yield
    except PhxError as error:
        fail(f"{subject}: {type(error).__name__}: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{subject}: {where}{error.strerror or error}")


@contextmanager
def at_rest(folder: Path) -> Iterator[tuple[Path, StoreIdentity, dict[int, Floor]]]:
    """Keep a node's folder for this command: nobody opens it meanwhile.

    Its store's folder; whose it is; and the floor of each group of which it holds anything. Raises
    what opening them does; without a store it is a finding.
    """
    from phx.node.folder import Folder
    from phx.store import MAP_BYTES, Store
    from phx.store_folder import read_identity

    place = Folder(folder)
    if not place.store.is_dir():
        fail(f"{folder} is not the folder of a node: there is no store in it")
    place.lock(create=False)
    try:
        owner = read_identity(place.store, MAP_BYTES)
        store = Store.open(place.store, cluster=owner.cluster, node=owner.node)
        try:
            held = store.floors()
        finally:
            store.close()
        yield place.store, owner, held
    finally:
        place.unlock()


COLUMNS = ("group", "frontier", "bytes", "machines", "light", "taken_by", "taken", "ident")


def facts(one: Manifest) -> dict[str, Any]:
    """A checkpoint as it is shown, by the names of COLUMNS."""
    try:
        taken = datetime.fromtimestamp(one.taken_us // 1_000_000, UTC).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        )
    except (OverflowError, ValueError, OSError):
        taken = "?"
    values = (
        one.group, one.frontier, one.size_bytes, len(one.machines), one.light, one.taken_by, taken,
        one.ident[:16],
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def report(one: Manifest, as_json: bool) -> None:
    from phx.cli.report import print_json

    if as_json:
        print_json(facts(one))
    else:
        click.echo(f"group {one.group}, frontier {one.frontier}, {one.size_bytes:,} bytes")


def line(finding: Finding) -> str:
    return printable(f"{finding.path}: {finding.what}")


def listed(findings: list[Finding]) -> list[dict[str, str]]:
    return [one._asdict() for one in findings]
