"""Threads of a node: one for each call that takes long, and waiting for others: for what they are
handed, and for their end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, wait
from typing import TypeVar

from phx.errors import Closed, Overloaded, SystemFailure
from phx.node.line import Ending

__all__ = ["Calls", "handed", "join_all", "result_of"]

SLICE_S = 0.1
CALLS_MAX = 64
"""So many calls of a kind are at it at a time."""

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


class Calls:
    """Calls of one kind, each in a thread of its own. Any thread.

    Guarantee: who has the result of one may begin another; after `end` none is begun, and no thread
    of them is left, if they end in time.

    Args:
        name: of the threads.
        what: they do, in words: "change members".
    """

    def __init__(self, name: str, what: str) -> None:
        self._name = name
        self._what = what
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._going = 0  # that have no result yet
        self.ending = False

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """Raises Closed, Overloaded, SystemFailure: it is not begun. Ending is Closed to who
        waits."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # who stops waiting stops nothing

        def run() -> None:
            error: BaseException | None = None
            try:
                result = work()
            except Ending:
                error = Closed("the node is closed")
            except BaseException as raised:
                error = raised
            with self._lock:
                self._going -= 1
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)
            with self._lock:
                self._threads.discard(thread)

        thread = threading.Thread(target=run, name=self._name, daemon=True)
        with self._lock:
            if self.ending:
                raise Closed("the node is closed")
            if self._going >= CALLS_MAX:
                raise Overloaded(f"{CALLS_MAX} calls that {self._what} are at it already")
            try:
                thread.start()
            except RuntimeError as error:
                raise SystemFailure(f"a thread for a call that {self._what}: {error}") from error
            self._threads.add(thread)
            self._going += 1
        return future

    def end(self, wait_s: float | None = None) -> None:
        """Idempotent. Those that wait have to be told by whoever ends them."""
        with self._lock:
            self.ending = True
            threads = list(self._threads)
        join_all(threads, wait_s)
