"""``phx torture``: what it is told, what it prints. The run itself: phx/testing/torture/run.py."""

from __future__ import annotations

import asyncio
import random
import signal
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phx.cli.report import Progress, number, print_table
from phx.testing.torture.disks import missing, own_mounts
from phx.testing.torture.run import Options, Result, Torture
from phx.testing.torture.schedule import GROUPS, KINDS, MEMBERS


class Wrong(ValueError):
    """What was asked for does not go together."""


class Missing(Wrong):
    """A fault was asked for by name that cannot be had here."""


def run(
    *,
    minutes: float,
    seed: int | None,
    nodes: int,
    groups: int,
    clients: int,
    faults: list[str] | None,
    folder: Path | None,
    changing: bool,
    creating: bool,
    relaxing: bool,
) -> Result:
    """Run it in a loop of its own. Raises Missing; FileExistsError: `folder` is not empty.

    Wrong: members are to change where groups come and go: who is replaced would first have to
    be moved out of all that it hosts. Or they come and go, and are relaxed: one of few members
    stands still for good when a machine fails.
    """
    if creating and (changing or MEMBERS & set(faults or ())):
        raise Wrong("--created does not go with changes of members")
    if creating and relaxing:
        raise Wrong("--created does not go with groups that are relaxed")
    if changing and faults:
        faults = sorted({*faults, *MEMBERS})
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(17, "not empty", str(folder))
    own_mounts()
    left_out = {kind: why for kind in faults or KINDS if (why := missing(kind))}
    if faults and left_out:
        raise Missing("; ".join(f"{kind}: {why}" for kind, why in sorted(left_out.items())))
    chosen = tuple(kind for kind in KINDS if kind not in left_out and kind in (faults or KINDS))
    if creating:
        chosen = (*GROUPS, *(kind for kind in chosen if kind not in MEMBERS))
    seed = random.SystemRandom().getrandbits(32) if seed is None else seed
    options = Options(
        minutes, seed, nodes, groups, clients, chosen, folder, changing, creating, relaxing
    )
    with Progress() as progress:
        progress.note(f"seed {seed}; faults: {', '.join(chosen)}")
        for kind, why in sorted(left_out.items()):
            progress.note(f"left out: {kind}: {why}")
        torture = Torture(options, left_out, progress.note, progress.update)
        return asyncio.run(_until_told_to_end(torture))


async def _until_told_to_end(torture: Torture) -> Result:
    """SIGTERM ends a run as Ctrl-C does: with everything taken back."""
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await torture.run()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def print_result(result: Result) -> None:
    """The readable table, and how to run the same again."""
    calls = ", ".join(f"{how} {count}" for how, count in result.group_calls.items())
    faults = ", ".join(f"{kind} {count}" for kind, count in result.faults.items() if count)
    noticed = ", ".join(f"{what} {count}" for what, count in result.noticed.items())
    rows = [
        ("operations", number(result.operations)),
        ("acknowledged", number(result.acknowledged)),
        ("of them reads, not proposed", number(sum(result.reads.values()))),
        ("unknown outcomes", number(result.unknown)),
        ("rejected", number(result.rejected)),
        ("keys", number(result.keys)),
        ("episodes of faults", number(result.episodes)),
        ("starts of nodes", number(result.restarts)),
        ("power cuts", number(result.power_cuts)),
        ("sectors lost by them", number(result.lost_sectors)),
        ("writable again p50, ms", number(result.writable_ms["p50"])),
        ("writable again max, ms", number(result.writable_ms["max"])),
        ("changes of members", number(result.changes)),
        ("change p50, ms", number(result.change_ms["p50"])),
        ("change max, ms", number(result.change_ms["max"])),
        ("pause in a change alone p50, ms", number(result.pause_ms["p50"])),
        ("pause in a change alone max, ms", number(result.pause_ms["max"])),
        ("nodes gone for good", number(result.replaced)),
        ("groups created", number(result.created)),
        ("most groups of an id", number(result.generations)),
        ("call for a group p50, ms", number(result.group_call_ms["p50"])),
        ("call for a group max, ms", number(result.group_call_ms["max"])),
        ("seconds", number(result.seconds)),
        ("findings", number(len(result.findings))),
    ]
    title = f"{result.nodes} nodes, {result.groups} groups, seed {result.seed}\n"
    noticed = (noticed or "nothing") + (f"\ngroups: {calls}" if calls else "")
    print_table(f"{title}faults: {faults}\nnoticed: {noticed}", ["", "found"], rows)
    if result.findings:
        print(f"kept in {result.folder}\nthe same schedule again: {result.again}")


def as_json(result: Result) -> dict[str, Any]:
    return asdict(result)
