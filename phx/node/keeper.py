"""The store thread of a node: the only one that writes to LMDB.

In this order: what the driver wants (settling, loading, answers to peers); what somebody asks for;
a step of trimming; a step of merging. The last two are one transaction each, so that nothing waits
for more than one of them. Whoever asks, and a step of trimming, are not put off for ever by a
driver that always wants something.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from math import inf
from typing import Any, TypeVar

from phx._core.driver import ERROR_CLOSED, ERROR_OVERLOADED, Driver, DriverError
from phx._core.plan import SettlePlan
from phx.errors import Closed, Damaged
from phx.store import Store

log = logging.getLogger("phx")

IDLE_US = 30_000_000
RETRY_US = 1_000_000
SUPPLY_BYTES = 1 << 20  # an answer to a peer
LOAD_BYTES = 4 << 20
FULL_S = 0.05  # until a full queue of the driver is tried again
PATIENCE_S = 1.0
"""So long an action stands behind what the driver wants, however much that is."""
TRIM_S = 0.25
"""So long a step of trimming does: a node that settles all the time would else only grow."""

T = TypeVar("T")


class Keeper(threading.Thread):
    """The store thread: opens the store, serves the driver's store work, closes the store.

    Args:
        opening: opens it, on this thread.
        idle: called when there is nothing else to do; whether it may be long until the next time.

    Attributes:
        error: why the store cannot settle at the moment; None: it can.
        hear: called before it settles, which goes past no change of members that is not noted.
        last: if there is one, called when the driver is stopped, before the store is closed.
    """

    def __init__(self, opening: Callable[[], Store], *, idle: Callable[[], bool]) -> None:
        super().__init__(name="phx-store", daemon=True)
        self._idle = idle
        self._idle_us = RETRY_US
        self._open = opening
        self._opened: Future[Store] = Future()
        self._driver: Future[Driver | None] = Future()
        self._ended = threading.Event()
        self._asked: deque[tuple[float, Callable[[Store], Any], Future[Any]]] = deque()
        self._asking = threading.Lock()
        self._over = False  # nobody will do what is asked any more
        self._called = threading.Event()  # somebody asked, or there is a driver
        self._trim_s = 0.0  # when a step of trimming has waited for long enough
        self.error: str | None = None
        self.hear: Callable[[], None] = lambda: None
        self.last: Callable[[Store], object] | None = None

    def open(self) -> Store:
        """Start the thread; the store, once it is open. It belongs to the thread."""
        self.start()
        return self._opened.result()

    def serve(self, driver: Driver | None) -> None:
        """Let the thread work for this driver until it stops; None: there will be none."""
        if not self._driver.done():
            self._driver.set_result(driver)
            self._called.set()

    def ask(self, action: Callable[[Store], T]) -> Future[T]:
        """Have something done on the store thread, between two pieces of the driver's work.

        Args:
            action: gets the store; one transaction at most, as the driver's work waits for it.

        Returns:
            What the action gives or raises. `Closed` when the store was closed before its turn.
            Any thread may ask.
        """
        future: Future[T] = Future()
        with self._asking:
            if self._over:
                future.set_exception(Closed("the store is closed"))
                return future
            self._asked.append((time.monotonic() + PATIENCE_S, action, future))
        self._called.set()
        if self._driver.done() and (driver := self._driver.result()) is not None:
            driver.store_call()
        return future

    def end(self) -> None:
        """The driver is stopped: wait until the store is closed."""
        self._ended.set()
        self.serve(None)
        if self.ident is not None and self is not threading.current_thread():
            self.join()
        self._forget_asked()

    def _forget_asked(self) -> None:
        with self._asking:
            self._over = True
            left, self._asked = self._asked, deque()
        for _, _, future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(Closed("the store is closed"))

    def run(self) -> None:
        try:
            store = self._open()
        except BaseException as error:
            self._opened.set_exception(error)
            self._forget_asked()
            return
        self._opened.set_result(store)
        try:
            driver = self._await_driver(store)
            while driver is not None and not self._ended.is_set():
                if self._asked and self._asked[0][0] <= time.monotonic():
                    self._answer(store)
                if time.monotonic() >= self._trim_s:
                    self._trim(store)
                if not self._work(store, driver):
                    break
        except DriverError as error:
            if error.code != ERROR_CLOSED:  # else it was stopped during the last work
                raise
        finally:
            self._forget_asked()
            if (last := self.last) is not None:
                self._ended.wait()
                self._guarded("closing", partial(last, store))
            store.close()

    def _await_driver(self, store: Store) -> Driver | None:
        """Until there is one, whatever is asked for is done at once."""
        while not self._driver.done():
            self._called.wait()
            self._called.clear()
            while self._asked:
                self._answer(store)
        while self._asked:  # by whoever did not see the driver
            self._answer(store)
        return self._driver.result()

    def _answer(self, store: Store) -> None:
        """Do the oldest of what was asked for, if there is any."""
        with self._asking:
            if not self._asked:
                return
            _, action, future = self._asked.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(action(store))
        except BaseException as error:
            future.set_exception(error)
        self._trim_s = min(self._trim_s, time.monotonic() + TRIM_S)  # floors may be higher now

    def _work(self, store: Store, driver: Driver) -> bool:
        """Wait for one piece of work and do it; False when the driver stops."""
        match driver.store_work(0 if self._asked else self._idle_us):
            case None if self._asked:
                self._answer(store)
                self._idle_us = 0  # it may have left something to trim
            case None:
                self._guarded("writing members", store.write_members)
                more = self._trim(store)
                more = more or self._guarded("merging", store.merge)
                self._idle_us = 0 if more else IDLE_US if self._long_idle() else RETRY_US
            case ("settle", plan, upto_lsn):
                if self._guarded("settling", partial(self._settle, store, plan)):
                    self.error = None
                    self._idle_us = RETRY_US
                    self._tell(partial(driver.settled, plan, upto_lsn))
                else:
                    self._tell(partial(driver.settle_failed, plan))
                    self._ended.wait(RETRY_US / 1e6)
            case ("fetch", group, peer, first, last):
                entries = self._read(store, group, first, last, SUPPLY_BYTES)
                self._tell(partial(driver.supply, group, peer, first, entries))
            case ("load", group, first, last):
                entries = self._read(store, group, first, last, LOAD_BYTES)
                self._tell(partial(driver.loaded, group, first, entries))
            case ("closing",):
                return False
        return True

    def _settle(self, store: Store, plan: SettlePlan) -> None:
        self.hear()
        store.settle(plan)

    def _tell(self, tell: Callable[[], None]) -> None:
        """Until the driver takes it: its queue is full while its poll thread is behind, and it
        waits for the answer."""
        while not self._ended.is_set():
            try:
                tell()
                return
            except DriverError as error:
                if error.code != ERROR_OVERLOADED:
                    raise
            self._ended.wait(FULL_S)

    def _long_idle(self) -> bool:
        try:
            return self._idle()
        except DriverError as error:
            if error.code != ERROR_OVERLOADED:
                raise
            return False  # it is done the next time

    def _trim(self, store: Store) -> bool:
        """One step; whether there may be more to do."""
        more = self._guarded("trimming", store.trim)
        # With nothing to do, or a step that fails, the next one comes in an idle turn, or behind
        # what somebody asks for.
        self._trim_s = time.monotonic() + TRIM_S if more else inf
        return more

    def _guarded(self, what: str, action: Callable[[], object]) -> bool:
        """Whether the action came to something (anything but False) and did not fail."""
        try:
            return action() is not False
        except Damaged as error:  # its own words say where; and nothing of the journal is held
            self.error = f"{what}: {type(error).__name__}: {error}"
            log.error("%s failed: %s", what, str(error))
            return False
        except Exception as error:
            self.error = f"{what}: {type(error).__name__}: {error}"
            log.exception("%s failed", what)
            return False

    def _read(self, store: Store, group: int, first: int, last: int, bytes_max: int) -> bytes:
        if store.is_hole(group, first):
            return b""  # said once, when it was found
        try:
            return store.read(group, first, bytes_max, last)
        except Damaged as error:  # whoever mends it has been told, and says what becomes of it
            log.error("%s", error)
            return b""
        except Exception as error:
            self.error = f"reading: {type(error).__name__}: {error}"
            log.exception("group %d: reading instance %d from the store failed", group, first)
            return b""
