"""What a disk takes away from a node that does not run, and how the node is allowed to go on.

Guarantee: damage of a journal is such that a start sees it. (What a start cannot see is the end of
a journal that its last write was to mark: docs/design/journal.md. That would be a torture of what
is known not to hold.)
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from phx.node.rejoining import Loss, look

__all__ = ["allow_rejoin", "flip", "flip_some", "give_back", "lose_journal", "take_away"]

TRIES = 20


def lose_journal(folder: Path, chance: random.Random) -> str:
    """Take the journal away, or a file of it, or flip a bit of it; which. "": nothing was done, as
    the store does not know what the node may have promised (it was made anew just now)."""
    journal, aside = folder / "journal", folder / "journal.aside"
    journal.rename(aside)
    known = isinstance(look(folder), Loss)
    aside.rename(journal)
    if not known:
        return ""
    how = chance.choice(("gone", "segment", "bit", "bit"))
    files = sorted(journal.iterdir())
    for _ in range(TRIES if how != "gone" else 0):
        path = chance.choice(files)
        if how == "bit":
            used = len(path.read_bytes().rstrip(b"\0"))
            at, bit = chance.randrange(used or 1), chance.randrange(8)
            flip(path, at, bit)
            if isinstance(look(folder), Loss):
                return f"bit {bit} of byte {at} of {path.name}"
            flip(path, at, bit)
        else:
            path.rename(folder / "segment.aside")
            if isinstance(look(folder), Loss):
                (folder / "segment.aside").unlink()
                return f"all of {path.name}"
            (folder / "segment.aside").rename(path)
    shutil.rmtree(journal)
    return "everything"


def take_away(folder: Path, names: Collection[str]) -> Path:
    """Those parts of a folder are gone; where they are, on the same disk."""
    taken = folder.parent / f"{folder.name}.taken"
    if folder.is_mount():
        taken = folder / "taken"
    taken.mkdir()
    for name in names:
        with suppress(FileNotFoundError):
            (folder / name).rename(taken / name)
    return taken


def give_back(folder: Path, taken: Path) -> None:
    """What was taken is there again, in the place of what is there now."""
    for path in list(taken.iterdir()):
        shutil.rmtree(folder / path.name, ignore_errors=True)
        path.rename(folder / path.name)


def flip_some(folder: Path, chance: random.Random) -> dict[Path, bytes]:
    """Flip a bit in one to three places of the store and the checkpoints; those files as they were.

    Files of which a start reads nothing are left alone.
    """
    files = [folder / "store" / "data.mdb"]
    root = folder / "checkpoints"
    files += [path for path in sorted(root.glob("[0-9]*/*/*")) if path.is_file()]
    before: dict[Path, bytes] = {}
    for _ in range(chance.choice((1, 1, 2, 3))):
        path = files[0] if chance.random() < 0.5 else chance.choice(files)
        before.setdefault(path, path.read_bytes())
        if size := path.stat().st_size:
            flip(path, chance.randrange(size), chance.randrange(8))
    return before


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def allow_rejoin(folder: Path) -> str:
    """As an operator does it; what the command says. "": it was refused."""
    command = [sys.executable, "-P", "-m", "phx.cli", "repair", str(folder), "--rejoin", "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout if done.returncode == 0 else ""
