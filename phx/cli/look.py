"""``phx verify`` and ``phx inspect``: the folder of a node that does not run, from outside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from phx._version import __version__
from phx.cli.options import SETTINGS, fail, printable
from phx.errors import PhxError
from phx.types import GROUP_ID_MAX

if TYPE_CHECKING:
    from phx.verify import GroupReport, Report

__all__ = ["inspect", "verify"]

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Report on stdout as JSON.")
GROUPS_SHOWN = 50
SEGMENT = ("name", "generation", "base_lsn", "end_lsn", "bytes")


@click.command("verify", context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx verify")
@click.argument("folder", metavar="DIR", type=FOLDER)
@AS_JSON
def verify(folder: Path, as_json: bool) -> None:
    """Read all that counts in a node's folder; one line a finding.

    DIR is the folder of a node that is not running: `dir` of its configuration, or a copy of it.
    Nothing in it is changed. Exits with 1 if anything is not as it must be.
    """
    from phx.cli.report import print_json

    report = examined(folder, whole=True)
    if as_json:
        print_json(facts(report))
    else:
        for finding in report.findings:
            click.echo(printable(f"{finding.path}: {finding.what}"))
        click.echo(f"{summary(report)}; {len(report.findings)} findings")
    if report.findings:
        fail(f"{len(report.findings)} findings")


@click.command("inspect", context_settings=SETTINGS)
@click.version_option(__version__, prog_name="phx inspect")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option(
    "--group", type=click.IntRange(0, GROUP_ID_MAX), default=None, help="This group only."
)
@AS_JSON
def inspect(folder: Path, group: int | None, as_json: bool) -> None:
    """Show what a node's folder holds: log, ballots, checkpoints, members.

    DIR is the folder of a node that is not running, or a copy of it, damaged or not. Nothing in it
    is changed. Bodies are not read: see phx verify. Exits with 1 if not all of it could be read.
    """
    from phx.cli.report import print_json

    report = examined(folder, whole=False)
    if group is not None:
        if group not in report.groups:
            fail(f"{folder} holds nothing of group {group}")
        report.groups = {group: report.groups[group]}
    if as_json:
        print_json(facts(report))
    else:
        show(report)
    if report.findings:
        fail("\n".join(printable(f"{one.path}: {one.what}") for one in report.findings))


def examined(folder: Path, *, whole: bool) -> Report:
    from phx.verify import examine

    try:
        return examine(folder, whole=whole)
    except PhxError as error:
        fail(f"{folder}: {type(error).__name__}: {error}")


def summary(report: Report) -> str:
    journal, store = report.journal, report.store
    return (
        f"{journal.records if journal else 0:,} journal records, "
        f"{store.entries if store else 0:,} settled entries in {store.chunks if store else 0:,} "
        f"chunks, {report.checkpoints:,} checkpoints with {report.checkpoint_bytes:,} bytes, "
        f"{report.machines:,} durable machines"
    )


def facts(report: Report) -> dict[str, Any]:
    """All of a report, for JSON."""
    identity, journal, store = report.identity, report.journal, report.store
    return {
        "identity": identity
        and {
            "cluster": identity.cluster,
            "node": identity.node,
            "store_id": identity.store_id.hex(),
        },
        "journal": journal
        and {
            "sound": journal.verdict is None,
            "incarnation": journal.incarnation,
            "records": journal.records,
            "first_lsn": journal.first_lsn,
            "end_lsn": journal.end_lsn,
            "floor_lsn": journal.floor_lsn,
            "cut_bytes": journal.cut_bytes,
            "lease_bound_us": journal.lease_bound_us,
            "segments": [dict(zip(SEGMENT, one, strict=True)) for one in journal.segments],
            "free_segments": len(journal.free) + len(journal.suspects),
        },
        "store": store
        and {
            "entries": store.entries,
            "chunks": store.chunks,
            "chunk_bytes": store.chunk_bytes,
            "file_bytes": store.file_bytes,
        },
        "lives": report.lives
        and {
            "incarnation": report.lives.incarnation,
            "spare": report.lives.spare,
            "lost": report.lives.lost,
            "allowed": report.lives.allowed,
            "ceiling": report.lives.ceiling,
            "relaxed": list(report.lives.relaxed),
        },
        "checkpoints": report.checkpoints,
        "checkpoint_bytes": report.checkpoint_bytes,
        "machines": report.machines,
        "quarantined": report.quarantined,
        "groups": [group_facts(one) for one in report.groups.values()],
        "findings": [finding._asdict() for finding in report.findings],
    }


def group_facts(one: GroupReport) -> dict[str, Any]:
    return {
        "group": one.group,
        "promise": one.promise,
        "journal_records": one.journal_records,
        "journal_bytes": one.journal_bytes,
        "accepted": one.accepted,
        "learned": one.learned,
        "journal_settled": one.journal_settled,
        "kept_from": one.kept_from,
        "settled_through": one.settled_through,
        "holes": one.holes,
        "checkpoints": one.checkpoints,
        "members": one.members,
        "members_version": one.version,
        "members_since": one.since,
        "removed": one.removed,
    }


def show(report: Report) -> None:
    from phx.cli.report import print_table

    identity, journal = report.identity, report.journal
    if identity is not None:
        click.echo(
            f"node {identity.node} of cluster {identity.cluster:#x}, "
            f"store {identity.store_id.hex()}"
        )
    if journal is not None:
        click.echo(
            f"incarnation {journal.incarnation}; journal from {journal.first_lsn:,} to "
            f"{journal.end_lsn:,} in {len(journal.segments)} segments, "
            f"{len(journal.free) + len(journal.suspects)} more are free"
        )
        if journal.cut_bytes:
            click.echo(f"a torn tail of {journal.cut_bytes:,} bytes, never acknowledged")
    click.echo(summary(report))
    for name in report.quarantined:
        click.echo(printable(f"put aside: quarantine/{name}"))
    shown = list(report.groups.values())[:GROUPS_SHOWN]
    columns = ["group", "promise", "accepted", "learned", "settled", "checkpoints", "members"]
    print_table(f"Groups in {report.folder}", columns, [cells(one) for one in shown])
    if len(shown) < len(report.groups):
        click.echo(f"and {len(report.groups) - len(shown):,} more groups: see --json, --group")


def cells(one: GroupReport) -> list[str]:
    settled = None if one.settled_through is None else (one.kept_from, one.settled_through)
    return [
        str(one.group),
        one.promise or "-",
        *("-" if span is None else f"{span[0]}-{span[1]}" for span in (one.accepted, one.learned)),
        "-" if settled is None else f"{settled[0]}-{settled[1]}",
        ",".join(map(str, one.checkpoints)) or "-",
        members_of(one),
    ]


def members_of(one: GroupReport) -> str:
    """Node ids; behind a change of them its version and instance too."""
    nodes = ",".join(map(str, one.members or ())) or "-"
    changed = f" (v{one.version} from {one.since})" if one.since else ""
    return nodes + changed + (", without this node" if one.removed else "")
