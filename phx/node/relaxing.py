"""How durable a value of a group is when this node says that it has accepted it: sync, interval or
none (docs/design/durability.md).

A group is relaxed in this order, and a crash between any two steps leaves one that counts as
relaxed and is not, which costs a rejoin if the machine fails, and never a vote:

1. what was relaxed in an earlier run of the system, and may lack acceptances, stands in the journal
   as suspect, durably: the journal is durable up to the end of this life's first turn
2. the store has the group as relaxed in this run of the system, durably
3. the driver is told: from now on it says what is only written

And back: the driver is told, and syncs all that was written; then the store takes the group out. So
does a close, when the journal is synced. All of it is done on the store thread, in steps of which
none waits: a journal that is full is synced again when that thread has settled something.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from phx._core.driver import NO_SYNC, Driver, DriverError
from phx.config import Config
from phx.errors import Closed, NotInCluster, PhxError, StoreError
from phx.node.keeper import Keeper
from phx.node.lives import Lives
from phx.store import Store
from phx.types import DIRECTORY_GROUP, DURABILITIES, DurabilityMode

__all__ = ["INTERVAL_US_MAX", "INTERVAL_US_MIN", "Relaxing"]

log = logging.getLogger("phx")

INTERVAL_US_MIN, INTERVAL_US_MAX = 1_000, 60_000_000
LOOK_S = 0.001
LOOKS = 100
"""So often it is looked for a sync, before it is asked whether there will be one."""

Step = Callable[[Store], bool]
"""On the store thread; whether all is done. Otherwise it is called again."""


class Relaxing:
    """The groups of one node.

    Args:
        error_of: the typed error for one of the driver's.
    """

    def __init__(
        self,
        config: Config,
        lives: Lives,
        keeper: Keeper,
        error_of: Callable[[DriverError], PhxError],
    ) -> None:
        self._config = config
        self._lives = lives
        self._keeper = keeper
        self._error_of = error_of
        self._driver: Driver | None = None
        # --- of the store thread
        self._begun = False
        self._start_lsn = 0  # the end of this life's first turn; 0: not asked for
        self._start_synced = self._synced()
        self._relaxed: set[int] = set()  # as the store has them
        self._changes: dict[int, int] = {}  # of each group: how often it was changed

    def begin(self, driver: Driver, groups: Iterable[int]) -> None:
        """The driver runs, and these groups with it."""
        self._driver = driver
        wanted = self._config.durability.relaxed(groups)
        if self._lives.relaxed:
            self._said(self._until(self._first))
        for group in wanted:
            self.added(group)

    def added(self, group: int) -> None:
        """It is hosted from now on."""
        mode = self._config.durability.of(group)
        if mode != "sync":
            self._said(self._until(self._setting(group, self._within_us(mode, None))))

    def set(self, group: int, mode: DurabilityMode, interval_us: int | None) -> Future[None]:
        """See Group.set_durability."""
        if mode not in DURABILITIES:
            raise ValueError(f"{mode!r} is none of {', '.join(DURABILITIES)}")
        within_us = self._within_us(mode, interval_us)
        if group == DIRECTORY_GROUP:
            raise ValueError("the directory is always sync")
        return self._until(self._setting(group, within_us))

    def doubt(self) -> None:
        """The journal failed: what is only written may be gone, though the machine goes on."""
        self._said(self._keeper.ask(self._lives.doubt))

    def _within_us(self, mode: str, interval_us: int | None) -> int:
        if interval_us is None:
            interval_us = self._config.durability.interval_us
        if not INTERVAL_US_MIN <= interval_us <= INTERVAL_US_MAX:
            raise ValueError(
                f"an interval is {INTERVAL_US_MIN} .. {INTERVAL_US_MAX} us, not {interval_us}"
            )
        return {"sync": 0, "interval": interval_us, "none": NO_SYNC}[mode]

    # --- on the store thread

    def _until(self, step: Step) -> Future[None]:
        """Have it called until it is done. What it raises is the future's, and Closed."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # who stops waiting stops nothing

        def look(store: Store) -> None:
            if step(store):
                future.set_result(None)
            else:
                time.sleep(LOOK_S)
                again()

        def looked(asked: Future[None]) -> None:
            error = asked.exception()
            if isinstance(error, DriverError):
                error = self._error_of(error)
            if error is not None and not future.done():
                future.set_exception(error)

        def again() -> None:
            self._keeper.ask(look).add_done_callback(looked)

        again()
        return future

    def _said(self, future: Future[Any]) -> None:
        """Of what nobody waits for."""

        def done(ended: Future[Any]) -> None:
            error = ended.exception()
            if error is not None and not isinstance(error, Closed | NotInCluster):
                log.error("durability: %s", error)

        future.add_done_callback(done)

    def _setting(self, group: int, within_us: int) -> Step:
        """The steps by which a group becomes so."""
        lsn, change = 0, 0
        synced = self._synced()

        def step(store: Store) -> bool:
            nonlocal lsn, change
            assert self._driver is not None
            if not self._first(store):
                return False
            if change == 0:
                change = self._changes[group] = self._changes.get(group, 0) + 1
                if within_us:
                    self._relaxed.add(group)
                    self._keep(store)
                lsn = self._driver.durability(group, within_us)
            if within_us:
                return True
            if not synced(lsn):
                return False
            if change == self._changes[group]:  # else it was changed again meanwhile
                self._relaxed.discard(group)
                self._keep(store)
            return True

        return step

    def _first(self, store: Store) -> bool:
        """What is doubtful is so in the journal; then it is so no more in the store."""
        assert self._driver is not None
        if self._begun:
            return True
        if self._lives.relaxed:
            if self._start_lsn == 0:
                for row in self._driver.group_statuses()[:1]:
                    self._start_lsn = self._driver.durability(row["group"], 0)
            if not self._start_synced(self._start_lsn):
                return False
            self._keep(store)
        self._keeper.last = self._last
        self._begun = True
        return True

    def _keep(self, store: Store) -> None:
        try:
            self._lives.relax(store, self._relaxed)
        except StoreError:
            self._relaxed = set(self._lives.relaxed) if self._begun else set()
            raise

    def _synced(self) -> Callable[[int], bool]:
        """Whether the journal is durable up to a position. Raises StoreError: it will not be."""
        looks = 0

        def synced(lsn: int) -> bool:
            nonlocal looks
            assert self._driver is not None
            if self._driver.durable_lsn() >= lsn:
                return True
            looks += 1
            journal: Any = self._driver.status()["journal"] if looks % LOOKS == 0 else {}
            if journal.get("poisoned"):
                raise StoreError("the journal failed: it is not known what is durable")
            return False

        return synced

    def _last(self, store: Store) -> None:
        """The driver was stopped."""
        if self._driver is not None and self._driver.clean:
            self._lives.relax(store, ())
        else:
            self._lives.doubt(store)
