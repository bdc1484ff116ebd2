"""Waiting for other threads: for what they are handed, and for their end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, wait
from typing import TypeVar

from phx.node.line import Ending

__all__ = ["handed", "join_all", "result_of"]

SLICE_S = 0.1

T = TypeVar("T")


def handed(call: Callable[[], T]) -> tuple[Future[T], Callable[[], None]]:
    """For another thread: what comes of it, and what that thread is to run, which does nothing once
    the future was cancelled, and raises nothing."""
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    return future, run


def result_of(future: Future[T], ending: Callable[[], bool]) -> T:
    """What came of it. Blocks. Raises Ending once the node closes, unless it is being worked at:
    then that is waited for."""
    # (What is cancelled is not done for `wait` before the other thread comes to it: perhaps never.)
    while not future.done():
        wait([future], SLICE_S)
        if ending():
            future.cancel()
    try:
        return future.result()
    except CancelledError:
        raise Ending from None


def join_all(threads: Iterable[threading.Thread], wait_s: float | None) -> None:
    """Wait until they have ended, at most `wait_s` seconds altogether; None: however long."""
    until = None if wait_s is None else time.monotonic() + wait_s
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
