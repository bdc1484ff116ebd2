"""How durable a value of a group is when this node says that it has accepted it: sync, interval or
none (docs/design/durability.md).

A group is relaxed in this order, and a crash between any two steps leaves one that counts as
relaxed and is not, which costs a rejoin if the machine fails, and never a vote:

1. what was relaxed in an earlier run of the system, and may lack acceptances, stands in the journal
   as suspect, durably: the journal is durable up to the end of this life's first turn
2. the store has the group as relaxed in this run of the system, durably
3. the driver is told: from now on it says what is only written

And back: the driver is told, and syncs all that was written; then the store takes the group out. So
does a close, when the journal is synced. All of it is done on the store thread, one after another.
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
"""So often it is looked for the sync, before it is asked whether there will be one."""


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
        self._begun = False
        self._relaxed: set[int] = set()  # as the driver was told, or is about to be

    def begin(self, driver: Driver, groups: Iterable[int]) -> None:
        """The driver runs, and these groups with it."""
        self._driver = driver
        wanted = self._config.durability.relaxed(groups)
        if wanted or self._lives.relaxed:
            self._later(lambda store: self._begin(store, wanted))

    def added(self, group: int) -> None:
        """It is hosted from now on."""
        if self._config.durability.relaxed([group]):
            self._later(lambda store: self._begin(store, [group]))

    def set(self, group: int, mode: DurabilityMode, interval_us: int | None) -> Future[None]:
        """See Group.set_durability."""
        if mode not in DURABILITIES:
            raise ValueError(f"{mode!r} is none of {', '.join(DURABILITIES)}")
        if interval_us is None:
            interval_us = self._config.durability.interval_us
        if not INTERVAL_US_MIN <= interval_us <= INTERVAL_US_MAX:
            raise ValueError(
                f"an interval is {INTERVAL_US_MIN} .. {INTERVAL_US_MAX} us, not {interval_us}"
            )
        if group == DIRECTORY_GROUP:
            raise ValueError("the directory is always sync")
        within_us = {"sync": 0, "interval": interval_us, "none": NO_SYNC}[mode]
        return self._keeper.ask(lambda store: self._set(store, group, within_us))

    def doubt(self) -> None:
        """The journal failed: what is only written may be gone, though the machine goes on."""
        self._later(self._lives.doubt)

    # --- on the store thread

    def _later(self, action: Callable[[Store], None]) -> None:
        def done(future: Future[Any]) -> None:
            error = future.exception()
            if error is not None and not isinstance(error, Closed):
                log.error("durability: %s", error)

        self._keeper.ask(action).add_done_callback(done)

    def _begin(self, store: Store, groups: list[int]) -> None:
        self._first(store)
        for group in groups:
            mode = self._config.durability.of(group)
            interval_us = self._config.durability.interval_us
            try:
                self._set(store, group, interval_us if mode == "interval" else NO_SYNC)
            except NotInCluster:
                continue  # it is gone already

    def _first(self, store: Store) -> None:
        """What is doubtful is so in the journal; and so it is no more in the store."""
        if self._begun:
            return
        assert self._driver is not None
        if self._lives.relaxed:
            for row in self._driver.group_statuses()[:1]:
                self._synced(self._told(row["group"], 0))
            self._lives.relax(store, ())
        self._keeper.last = self._last
        self._begun = True

    def _set(self, store: Store, group: int, within_us: int) -> None:
        self._first(store)
        if within_us:
            self._lives.relax(store, self._relaxed | {group})
            self._relaxed.add(group)
            self._told(group, within_us)
            return
        self._synced(self._told(group, 0))
        self._relaxed.discard(group)
        self._lives.relax(store, self._relaxed)

    def _told(self, group: int, within_us: int) -> int:
        assert self._driver is not None
        try:
            return self._driver.durability(group, within_us)
        except DriverError as error:
            raise self._error_of(error) from error

    def _synced(self, lsn: int) -> None:
        """Wait until the journal is durable up to there. Raises StoreError: it will not be."""
        driver, looks = self._driver, 0
        assert driver is not None
        try:
            while driver.durable_lsn() < lsn:
                looks += 1
                journal: Any = driver.status()["journal"] if looks % LOOKS == 0 else {}
                if journal.get("poisoned"):
                    raise StoreError("the journal failed: it is not known what is durable")
                time.sleep(LOOK_S)
        except DriverError as error:
            raise self._error_of(error) from error

    def _last(self, store: Store) -> None:
        """The driver was stopped."""
        if self._driver is not None and self._driver.clean:
            self._lives.relax(store, ())
        else:
            self._lives.doubt(store)
