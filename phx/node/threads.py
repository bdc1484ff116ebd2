"""Waiting for threads that were told to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

__all__ = ["join_all"]


def join_all(threads: Iterable[threading.Thread], wait_s: float | None) -> None:
    """Wait until they have ended, at most `wait_s` seconds altogether; None: however long."""
    until = None if wait_s is None else time.monotonic() + wait_s
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
