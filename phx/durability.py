"""In which order the store, the engine and the journal are told how durable groups are
(docs/design/durability.md).

A group is relaxed in this order, and a crash between any two steps leaves one that counts as
relaxed and is not, which costs a rejoin if the machine fails, and never a vote:

1. what was relaxed in an earlier run of the system, and may lack acceptances, stands in the journal
   as suspect, durably: the journal is durable up to the end of this life's first turn
2. the store has the group as relaxed in this run of the system, durably
3. the engine is told: from now on it says what is only written

And back: the engine is told, and syncs all that was written; then the store takes the group out.
Changes are made in the order in which they were asked for, in steps of which none waits: a journal
that is full is synced again when the same thread has settled something.

No threads here: a node's are in `phx.node.relaxing`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from phx.errors import StoreError

__all__ = ["DROPPED", "Change", "DurabilityOrder"]

DROPPED = -1
LOOKS = 100
"""So often it is looked for a sync, before it is asked whether there will be one."""


class Told(Protocol):
    """What an order needs of a driver."""

    def durability(self, group: int, within_us: int) -> int:
        """As engine_durability."""

    def durable_lsn(self) -> int: ...

    def status(self) -> dict[str, Any]:
        """`journal`, a mapping, has `poisoned`."""

    def group_statuses(self) -> list[dict[str, Any]]:
        """A mapping for each group; `group`: its id."""


class Known(Protocol):
    """And of what the store knows."""

    @property
    def relaxed(self) -> frozenset[int]:
        """Groups that it has as relaxed."""

    def relax(self, store: Any, groups: Collection[int]) -> None:
        """These and no others are, in this run of the system, durably. Raises StoreError."""


class Change:
    """Of how durable groups are.

    Attributes:
        within_us: of each group, as engine_durability has it; or DROPPED.
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


class DurabilityOrder:
    """The changes of one life of a node; all calls from the thread that writes to the store, but
    for `_waiting`, whose guard is the caller's.
    """

    refusal: type[Exception] = ValueError
    """What the driver raises for a group that it cannot change."""

    def __init__(self, lives: Known) -> None:
        self._lives = lives
        self._driver: Told | None = None
        self._waiting: deque[Change] = deque()  # in the order in which they were asked for
        self._begun = False
        self._start_lsn = 0  # the end of this life's first turn; 0: not asked for
        self._start_synced = self._synced()
        self._relaxed: set[int] = set()  # as the store has them
        self._last_change: dict[int, Change] = {}  # of each group
        self._syncing: list[Change] = []  # the driver was told; the journal is not durable yet

    def _go_on(self, store: Any) -> bool:
        """With what can go on; whether anything is left that waits."""
        while self._waiting and self._tried(self._waiting[0], self._tell, store):
            change = self._waiting.popleft()
            if not change.done.done():
                self._syncing.append(change)
        self._syncing = [one for one in self._syncing if not self._tried(one, self._end, store)]
        return bool(self._waiting or self._syncing)

    def _tried(self, change: Change, step: Callable[[Change, Any], bool], store: Any) -> bool:
        """Whether nothing is left of this step, be it that it failed."""
        try:
            return step(change, store)
        except self.refusal as error:
            change.done.set_exception(self._typed(error))
        except BaseException as error:
            change.done.set_exception(error)
        return True

    def _typed(self, refusal: Exception) -> BaseException:
        """What whoever asked is told of it."""
        return refusal

    def _unknown(self, refusal: Exception) -> bool:
        """The driver does not know the group."""
        return False

    def _first_done(self) -> None:
        """What an earlier run of the system left is said."""

    def _tell(self, change: Change, store: Any) -> bool:
        """Tell the store, and then the driver."""
        assert self._driver is not None
        if not self._first(store):
            return False
        if relaxed := [group for group, within_us in change.within_us.items() if within_us > 0]:
            self._relaxed.update(relaxed)
            self._keep(store)
        self._last_change.update(dict.fromkeys(change.within_us, change))
        failed: Exception | None = None
        for group, within_us in change.within_us.items():
            try:
                if within_us == DROPPED:
                    self._forget(group, store)
                else:
                    change.lsn = max(change.lsn, self._driver.durability(group, within_us))
            except self.refusal as error:  # the others may be there all the same
                failed = error
                if self._unknown(error):
                    self._forget(group, store)
        if failed is not None:
            raise failed
        return True

    def _forget(self, group: int, store: Any) -> None:
        """Nothing is told of it."""
        del self._last_change[group]
        self._relaxed.discard(group)
        self._keep(store)

    def _end(self, change: Change, store: Any) -> bool:
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

    def _first(self, store: Any) -> bool:
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
        self._first_done()
        self._begun = True
        return True

    def _keep(self, store: Any) -> None:
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
