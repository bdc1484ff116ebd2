"""The store thread of a node: the only one that writes to LMDB."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from phx._core.driver import ERROR_CLOSED, Driver, DriverError
from phx.config import Config
from phx.store import Store

log = logging.getLogger("phx")

IDLE_US = 30_000_000
RETRY_US = 1_000_000
SUPPLY_BYTES = 1 << 20  # an answer to a peer
LOAD_BYTES = 4 << 20


class Keeper(threading.Thread):
    """The store thread: opens the store, serves the driver's store work, closes the store.

    Attributes:
        error: why the store cannot settle at the moment; None: it can.
    """

    def __init__(
        self, path: Path, config: Config, *, create: bool, idle: Callable[[], bool]
    ) -> None:
        super().__init__(name="phx-store", daemon=True)
        self._idle = idle
        self._idle_us = RETRY_US
        self._open: Callable[[], Store] = lambda: Store.open(
            path, cluster=config.cluster_id, node=config.node, create=create
        )
        self._opened: Future[Store] = Future()
        self._driver: Future[Driver | None] = Future()
        self._ended = threading.Event()
        self.error: str | None = None

    def open(self) -> Store:
        """Start the thread; the store, once it is open. It belongs to the thread."""
        self.start()
        return self._opened.result()

    def serve(self, driver: Driver | None) -> None:
        """Let the thread work for this driver until it stops; None: there will be none."""
        if not self._driver.done():
            self._driver.set_result(driver)

    def end(self) -> None:
        """The driver is stopped: wait until the store is closed."""
        self._ended.set()
        self.serve(None)
        if self.ident is not None and self is not threading.current_thread():
            self.join()

    def run(self) -> None:
        try:
            store = self._open()
        except BaseException as error:
            self._opened.set_exception(error)
            return
        self._opened.set_result(store)
        try:
            driver = self._driver.result()
            while driver is not None and not self._ended.is_set():
                if not self._work(store, driver):
                    break
        except DriverError as error:
            if error.code != ERROR_CLOSED:  # else it was stopped during the last work
                raise
        finally:
            store.close()

    def _work(self, store: Store, driver: Driver) -> bool:
        """Wait for one piece of work and do it; False when the driver stops."""
        match driver.store_work(self._idle_us):
            case None:
                more = self._guarded("merging", store.merge)
                self._idle_us = 0 if more else IDLE_US if self._idle() else RETRY_US
            case ("settle", plan, upto_lsn):
                if self._guarded("settling", lambda: store.settle(plan)):
                    self.error = None
                    self._idle_us = RETRY_US
                    driver.settled(plan, upto_lsn)
                else:
                    driver.settle_failed(plan)
                    self._ended.wait(RETRY_US / 1e6)
            case ("fetch", group, peer, first, last):
                entries = self._read(store, group, first, last, SUPPLY_BYTES)
                driver.supply(group, peer, first, entries)
            case ("load", group, first, last):
                entries = self._read(store, group, first, last, LOAD_BYTES)
                driver.loaded(group, first, entries)
            case ("closing",):
                return False
        return True

    def _guarded(self, what: str, action: Callable[[], object]) -> bool:
        """Whether the action came to something (anything but False) and did not fail."""
        try:
            return action() is not False
        except Exception as error:
            self.error = f"{what}: {type(error).__name__}: {error}"
            log.exception("%s failed", what)
            return False

    def _read(self, store: Store, group: int, first: int, last: int, bytes_max: int) -> bytes:
        try:
            return store.read(group, first, bytes_max, last)
        except Exception as error:
            self.error = f"reading: {type(error).__name__}: {error}"
            log.exception("group %d: reading instance %d from the store failed", group, first)
            return b""
