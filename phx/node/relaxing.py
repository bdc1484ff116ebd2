"""How durable a value of a group is when this node says that it has accepted it: sync, interval or
none (docs/design/durability.md).

In which order store, driver and journal are told says `phx.durability`; here is who asks. All of
it is done on the store thread. A close, when the journal is synced, takes all groups out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from threading import Lock
from typing import Any

from phx._core.driver import ERROR_UNKNOWN_GROUP, NO_SYNC, Driver, DriverError
from phx.config import Config
from phx.durability import DROPPED, Change, DurabilityOrder
from phx.errors import Closed, NotInCluster, PhxError
from phx.node.keeper import Keeper
from phx.node.lives import Lives
from phx.store import Store
from phx.types import DIRECTORY_GROUP, DURABILITIES, DurabilityMode

__all__ = ["INTERVAL_US_MAX", "INTERVAL_US_MIN", "Relaxing"]

log = logging.getLogger("phx")

INTERVAL_US_MIN, INTERVAL_US_MAX = 1_000, 60_000_000
LOOK_S = 0.001


class Relaxing(DurabilityOrder):
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
        super().__init__(lives)
        self._config = config
        self._doubt = lives.doubt
        self._keeper = keeper
        self._error_of = error_of
        self._clean: Callable[[], bool] = lambda: False
        self._lock = Lock()  # of _waiting, and:
        self._looking = False  # the store thread was asked to

    def begin(self, driver: Driver, groups: Iterable[int]) -> None:
        """The driver runs, and these groups with it."""
        self._driver = driver
        self._clean = lambda: driver.clean
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
        self._said(self._keeper.ask(self._doubt))

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

    refusal = DriverError

    def _look(self, store: Store) -> None:
        with self._lock:
            self._looking = False
        if self._go_on(store):
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

    def _typed(self, refusal: Exception) -> BaseException:
        assert isinstance(refusal, DriverError)
        return self._error_of(refusal)

    def _unknown(self, refusal: Exception) -> bool:
        return isinstance(refusal, DriverError) and refusal.code == ERROR_UNKNOWN_GROUP

    def _first_done(self) -> None:
        self._keeper.last = self._last

    def _last(self, store: Store) -> None:
        """The driver was stopped."""
        if self._clean():
            self._lives.relax(store, ())
        else:
            self._doubt(store)
