"""What the commands print: tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

PLAIN_LINE_EVERY_S = 1.0
WIDTH_MIN = 80
WIDTH_MAX = 1000


class Progress:
    """A live line on a terminal; elsewhere a plain line a second. Always stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._last_line = 0.0

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def note(self, text: str) -> None:
        """Something happened; stays on the screen."""
        self._console.print(text, markup=False, soft_wrap=True)

    def update(self, text: str) -> None:
        """Where things stand."""
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._last_line >= PLAIN_LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._console.print(text, markup=False, soft_wrap=True)


def print_json(result: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: the first column to the left, all others to the right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # As wide as it needs to be: a figure that is cut off is worse than a line that is broken.
    needed = Console(width=WIDTH_MAX).measure(table).maximum
    Console(width=max(needed, WIDTH_MIN), highlight=False).print(table)


def number(value: float, digits: int = 0) -> str:
    """1234567.8 as "1,234,568"."""
    return f"{value:,.{digits}f}"
