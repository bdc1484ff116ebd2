"""Whom a node tells who leads: callbacks of the program, off the path on which values are applied.

A watcher holds what its callback was told last. Whenever the leader of its group changes it asks to
be run, once however often that happens; when it is run it tells what holds then. So what a callback
hears is in order, never twice the same, and ends with what holds; what was overtaken before it was
told is left out, and nothing piles up however slow a callback is.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from phx.types import Leader

__all__ = ["CallbackThread", "LeaderCallback", "Soon", "Watched", "Watcher"]

log = logging.getLogger("phx")

LeaderCallback = Callable[[Leader | None], object]
Soon = Callable[[Callable[[], None]], object]

END_S = 5.0


class Watched(Protocol):
    """A group whose leader is watched (phx.applier.GroupState)."""

    group: int
    led: Leader | None
    watchers: tuple[Watcher, ...]


class Watcher:
    """One callback. ``changed`` from the thread that applies, ``run`` from the one of `soon`."""

    __slots__ = ("_call", "_due", "_soon", "_told", "_watched")

    def __init__(self, watched: Watched, call: LeaderCallback, soon: Soon) -> None:
        self._watched = watched
        self._call: LeaderCallback | None = call
        self._soon = soon
        self._due = False
        self._told: object = self  # nothing yet

    def changed(self) -> None:
        """What is to be told may be something else now."""
        if not self._due:
            self._due = True
            self._soon(self.run)

    def run(self) -> None:
        self._due = False  # first: what changes from here on is told by another run
        call, led = self._call, self._watched.led
        if call is None or led == self._told:
            return
        self._told = led
        try:
            call(led)
        except Exception:
            log.exception("a leader callback of group %d", self._watched.group)

    def stop(self) -> None:
        """It is not called any more, but for a call that is under way."""
        self._call = None


class CallbackThread:
    """The thread of a blocking node's callbacks, which begins with the first of them."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = False

    def soon(self, call: Callable[[], None]) -> None:
        with self._lock:
            if self._ended:
                return
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name="phx-callbacks", daemon=True
                )
                self._thread.start()
            self._queue.put(call)

    def _serve(self) -> None:
        while (call := self._queue.get()) is not None:
            try:
                call()
            except BaseException:  # also SystemExit: others are called yet
                log.exception("a callback")

    def end(self) -> None:
        """No call begins after those that wait. Waits for them, for a while."""
        with self._lock:
            self._ended = True
            self._queue.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(END_S)
            if self._thread.is_alive():
                log.warning("closing: a leader callback does not return")
