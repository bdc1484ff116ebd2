"""Why a node's journal takes no new values at the moment, in words."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from phx.errors import DiskFull

__all__ = ["Pressure"]

log = logging.getLogger("phx")

# verdicts of EVENT_PRESSED (upkeep.pyx)
BY_NOTHING = 0
BY_LIMIT = 1
BY_QUEUE = 2
BY_DISK = 3


class Pressure:
    """What a node says of a journal that takes no new values.

    Guarantee: "the disk is full" is said where a segment could not be made for want of room, and
    nowhere else; the limit is named where the journal is at its own.

    Args:
        folder: of the journal.
        bytes_max: its limit.

    Attributes:
        turn_away: called with what makes the error of every new value while the disk is full, with
            None once it is not.

    Thread-safety: `heard` by one thread at a time; the rest by any.
    """

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._by = BY_NOTHING
        self._number = self._bytes = 0
        self.turn_away: Callable[[Callable[[], DiskFull] | None], None] = lambda make: None

    def heard(self, by: int, number: int, nbytes: int) -> None:
        """What the driver has told: why, and its errno or bytes."""
        was = self._by
        self._number, self._bytes, self._by = number, nbytes, by
        if by == BY_DISK:
            log.error("%s: no vote for a new value until there is room", self.error)
        elif by:
            log.warning("%s: no new values", self.error)
        elif was:
            log.warning("the journal takes new values again")
        if (by == BY_DISK) != (was == BY_DISK):
            self.turn_away(self.refusal if by == BY_DISK else None)

    @property
    def error(self) -> str | None:
        """As `NodeStatus.journal_error`."""
        if self._by == BY_LIMIT:
            used = f"{self._bytes} of {self._bytes_max} bytes"
            return f"the journal is at its limit ({used}, the rest is for what is open)"
        if self._by == BY_QUEUE:
            return f"the disk is slow: {self._bytes} bytes of the journal wait for it"
        return self._no_room() if self._by == BY_DISK else None

    def refusal(self) -> DiskFull:
        return DiskFull(f"{self.error or 'the disk was full'}; other nodes go on")

    def note(self) -> str:
        """To be added to what a caller is told whose time was up."""
        why = self.error
        return f" ({why})" if why else ""

    def _no_room(self) -> str:
        why = os.strerror(self._number)
        if self._number not in (errno.ENOSPC, errno.EDQUOT):
            return f"no file can be made for the journal in {self._folder}: {why}"
        try:
            free = f"{shutil.disk_usage(self._folder).free} bytes free"
        except OSError as error:
            free = str(error)
        return f"the disk is full: {self._folder}: {why}, {free}"
