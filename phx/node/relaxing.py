"""How durable a value of a group is when this node says that it has accepted it: sync, interval or
none (docs/design/durability.md).

A group is relaxed in this order, and a crash between any two steps leaves one that counts as
relaxed and is not, which costs a rejoin if the machine fails, and never a vote:

1. what was relaxed in an earlier run of the system, and may lack acceptances, stands in the journal
   as suspect, durably: the journal is durable up to the end of this life's first turn
2. the store has the group as relaxed in this run of the system, durably
3. the driver is told: from now on it says what is only written

And back: the driver is told, and syncs all that was written; then the store takes the group out. So
does a close, when the journal is synced. All of it is done on the store thread, in the order in
which it was asked for, and in steps of which none waits: a journal that is full is synced again
when that thread has settled something.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from threading import Lock
from typing import Any

from phx._core.driver import ERROR_UNKNOWN_GROUP, NO_SYNC, Driver, DriverError
from phx.config import Config
from phx.errors import Closed, NotInCluster, PhxError, StoreError
from phx.node.keeper import Keeper
from phx.node.lives import Lives
from phx.store import Store
from phx.types import DIRECTORY_GROUP, DURABILITIES, DurabilityMode

__all__ = ["INTERVAL_US_MAX", "INTERVAL_US_MIN", "Relaxing"]

log = logging.getLogger("phx")

INTERVAL_US_MIN, INTERVAL_US_MAX = 1_000, 60_000_000
DROPPED = -1
LOOK_S = 0.001
LOOKS = 100
"""So often it is looked for a sync, before it is asked whether there will be one."""


class Change:
    """Of how durable groups are.

    Attributes:
        within_us: of each group: 0: it syncs; NO_SYNC; DROPPED; else its interval.
        done: it is so, or why it is not.
        lsn: the journal has to be durable up to there.
        synced: whether it is.
    """

    def __init__(self, within_us: Mapping[int, int], synced: Callable[[int], bool]) -> None:
        self.within_us = within_us
        self.done: Future[None] = Future()
        self.done.set_running_or_notify_cancel()  # who stops waiting stops nothing
        self.lsn = 0
        self.synced = synced


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
        self._lock = Lock()  # of the next two
        self._looking = False  # the store thread was asked to
        self._waiting: deque[Change] = deque()  # in the order in which they were asked for
        # --- of the store thread
        self._begun = False
        self._start_lsn = 0  # the end of this life's first turn; 0: not asked for
        self._start_synced = self._synced()
        self._relaxed: set[int] = set()  # as the store has them
        self._last_change: dict[int, Change] = {}  # of each group
        self._syncing: list[Change] = []  # the driver was told; the journal is not durable yet

    def begin(self, driver: Driver, groups: Iterable[int]) -> None:
        """The driver runs, and these groups with it."""
        self._driver = driver
        wanted = self._wanted(groups)
        if wanted or self._lives.relaxed:
            self._said(self._change(wanted))

    def added(self, group: int) -> None:
        """It is hosted from now on."""
        if wanted := self._wanted([group]):
            self._said(self._change(wanted))

    def dropped(self, group: int) -> None:
        """Nothing of it is here any more; what is hosted under its id later is another one."""
        self._said(self._change({group: DROPPED}))

    def set(self, group: int, mode: DurabilityMode, interval_us: int | None) -> Future[None]:
        """See Group.set_durability."""
        if mode not in DURABILITIES:
            raise ValueError(f"{mode!r} is none of {', '.join(DURABILITIES)}")
        within_us = self._within_us(mode, interval_us)
        if group == DIRECTORY_GROUP:
            raise ValueError("the directory is always sync")
        return self._change({group: within_us})

    def doubt(self) -> None:
        """The journal failed: what is only written may be gone, though the machine goes on."""
        self._said(self._keeper.ask(self._lives.doubt))

    def _wanted(self, groups: Iterable[int]) -> dict[int, int]:
        """What the configuration says of those that it has relaxed."""
        modes = self._config.durability
        return {group: self._within_us(modes.of(group), None) for group in modes.relaxed(groups)}

    def _within_us(self, mode: str, interval_us: int | None) -> int:
        if interval_us is None:
            interval_us = self._config.durability.interval_us
        if not INTERVAL_US_MIN <= interval_us <= INTERVAL_US_MAX:
            raise ValueError(
                f"an interval is {INTERVAL_US_MIN} .. {INTERVAL_US_MAX} us, not {interval_us}"
            )
        return {"sync": 0, "interval": interval_us, "none": NO_SYNC}[mode]

    def _change(self, within_us: Mapping[int, int]) -> Future[None]:
        """After all that was asked for before. The future has what went wrong, or Closed."""
        change = Change(within_us, self._synced())
        with self._lock:
            self._waiting.append(change)
        self._ask()
        return change.done

    def _ask(self) -> None:
        with self._lock:
            if self._looking:
                return
            self._looking = True
        self._keeper.ask(self._look).add_done_callback(self._looked)

    def _said(self, future: Future[Any]) -> None:
        """Of what nobody waits for."""

        def done(ended: Future[Any]) -> None:
            error = ended.exception()
            if error is not None and not isinstance(error, Closed | NotInCluster):
                log.error("durability: %s", error)

        future.add_done_callback(done)

    # --- on the store thread

    def _look(self, store: Store) -> None:
        """Go on with what can go on."""
        with self._lock:
            self._looking = False
        while self._waiting and self._tried(self._waiting[0], self._tell, store):
            change = self._waiting.popleft()
            if not change.done.done():
                self._syncing.append(change)
        self._syncing = [one for one in self._syncing if not self._tried(one, self._end, store)]
        if self._waiting or self._syncing:
            time.sleep(LOOK_S)
            self._ask()

    def _looked(self, asked: Future[None]) -> None:
        """On any thread, if the store is closed."""
        if (error := asked.exception()) is None:
            return
        with self._lock:
            self._looking = False
            left = [*self._syncing, *self._waiting]
            self._syncing.clear()
            self._waiting.clear()
        for change in left:
            change.done.set_exception(error)

    def _tried(self, change: Change, step: Callable[[Change, Store], bool], store: Store) -> bool:
        """Whether nothing is left of this step, be it that it failed."""
        try:
            return step(change, store)
        except DriverError as error:
            change.done.set_exception(self._error_of(error))
        except BaseException as error:
            change.done.set_exception(error)
        return True

    def _tell(self, change: Change, store: Store) -> bool:
        """Tell the store, and then the driver."""
        assert self._driver is not None
        if not self._first(store):
            return False
        if relaxed := [group for group, within_us in change.within_us.items() if within_us > 0]:
            self._relaxed.update(relaxed)
            self._keep(store)
        self._last_change.update(dict.fromkeys(change.within_us, change))
        failed: DriverError | None = None
        for group, within_us in change.within_us.items():
            try:
                if within_us == DROPPED:
                    self._forget(group, store)
                else:
                    change.lsn = max(change.lsn, self._driver.durability(group, within_us))
            except DriverError as error:  # the others may be there all the same
                failed = error
                if error.code == ERROR_UNKNOWN_GROUP:
                    self._forget(group, store)
        if failed is not None:
            raise failed
        return True

    def _forget(self, group: int, store: Store) -> None:
        """Nothing is told of it."""
        del self._last_change[group]
        self._relaxed.discard(group)
        self._keep(store)

    def _end(self, change: Change, store: Store) -> bool:
        """The groups that sync are taken out when the journal is durable."""
        back = [group for group, within_us in change.within_us.items() if not within_us]
        if back and not change.synced(change.lsn):
            return False
        if back:
            # (Else it was changed again meanwhile.)
            mine = [group for group in back if self._last_change.get(group) is change]
            self._relaxed.difference_update(mine)
            self._keep(store)
        change.done.set_result(None)
        return True

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
