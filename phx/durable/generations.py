"""The folders of one durable machine: one is current, another may be in the making.

    FOLDER/00000001/    a generation: what DurableMachine.open is given
    FOLDER/00000002/    another, that a restore fills
    FOLDER/current      the name of the one that counts; changed by rename
    FOLDER/first        none has ever counted here

A crash at any moment leaves the old generation current, or the new one, never neither. Where
generations are and neither ``current`` nor ``first`` is, ``current`` was lost: that is damage, for
one of them may be all that there is of the machine.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from phx.durable.files import fill, make_folder, sync_folder
from phx.errors import Damaged

__all__ = ["Generations"]

_NAME = re.compile(r"[0-9]{8}")


class Generations:
    """Generations below one folder, which is made if need be. One thread at a time, but for
    `sweep_older`.

    Usual order: at a start ``sweep``, then ``current``, or ``begin`` and ``switch`` if there is
    none; for a restore ``begin``, DurableMachine.open and restore, ``switch``, and ``sweep`` once
    the old machine is closed and its views are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_folder(folder)

    def current(self) -> Path | None:
        """The generation that counts; None: there is none yet. Damaged if it is not to be found."""
        try:
            name = (self._folder / "current").read_bytes()
        except FileNotFoundError:
            if self._all() and not (self._folder / "first").exists():
                raise Damaged(
                    f"{self._folder}: the name is lost of which generation counts"
                ) from None
            return None
        text = name.decode("ascii", "replace")
        if not text.endswith("\n") or not _NAME.fullmatch(text[:-1]):
            raise Damaged(f"{self._folder}: the name of the current generation is damaged")
        found = self._folder / text[:-1]
        if not found.is_dir():
            raise Damaged(f"{found}: the current generation is not there")
        return found

    def begin(self) -> Path:
        """A new, empty generation, which does not count yet. OSError if it cannot be made."""
        last = max((int(path.name) for path in self._all()), default=0)
        if not last:
            (self._folder / "first").touch()
            sync_folder(self._folder)  # before there is anything to be sure of
        made = self._folder / f"{last + 1:08d}"
        made.mkdir()
        sync_folder(self._folder)
        return made

    def switch(self, generation: Path) -> None:
        """From here on this one counts, durably when it returns. Its files must be so already.

        If it raises OSError, ``current`` says which of the two counts.
        """
        if generation not in self._all():
            raise ValueError(f"{generation} is no generation of {self._folder}")
        passing = self._folder / "current.new"
        passing.unlink(missing_ok=True)
        fill(passing, [generation.name.encode("ascii") + b"\n"])
        os.rename(passing, self._folder / "current")
        sync_folder(self._folder)
        with suppress(FileNotFoundError):
            (self._folder / "first").unlink()
            sync_folder(self._folder)

    def sweep(self, keep: Collection[Path] = ()) -> None:
        """Remove what does not count, besides ``keep``: open ones, and those with open views.

        Nothing is removed while it is not known what counts (Damaged).
        """
        counts = self.current()
        for path in self._all():
            if path != counts and path not in keep:
                shutil.rmtree(path)
        (self._folder / "current.new").unlink(missing_ok=True)

    def sweep_older(self) -> None:
        """Remove what was begun before the one that counts; also beside another thread that begins
        and switches to one: what is in the making was begun after it. Raises Damaged, OSError."""
        counts = self.current()
        for path in self._all():
            if counts is not None and path.name < counts.name:
                shutil.rmtree(path)

    def _all(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
