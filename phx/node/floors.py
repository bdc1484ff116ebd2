"""How much of the groups' logs a node keeps, and the raising of their floors.

    due       a checkpoint was taken or restored, what is held has become old, a pin was released
    wanted    from the cover: MIN over the machines, less what is held (phx.checkpoint.retention),
              never above a pin or what is known to be chosen
    raised    on the store thread: one transaction for all groups that are due (``Store``), with
              the members of their covers: what is passed without a copy may have changed them
    told      to the engine, which says it to peers and settles nothing below

While checkpoints are paused, floors stay, whatever becomes old or is asked for: somebody wants the
log that there is, for a member that catches up from it, or to look into it.

A *pin* holds the log of one group from an instance on, as long as somebody reads it: a mirror. (Who
sends a checkpoint pins that, in the catalog: it stays the cover, and so the log behind it stays.)

A crash between any two of these leaves a floor that is too low. The next start finds it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from types import TracebackType
from typing import NamedTuple, Self

from phx._core.driver import ERROR_CLOSED, Driver, DriverError
from phx.applier import GroupState
from phx.checkpoint.catalog import Catalog
from phx.checkpoint.manifest import members_of
from phx.checkpoint.retention import Retention
from phx.config import Checkpoints
from phx.node.keeper import Keeper
from phx.store import Floor, Store

__all__ = ["Floors", "Pin"]

log = logging.getLogger("phx")

GROUPS_MAX = 256
"""Looked at in one turn of the store thread, so that others have theirs."""
QUESTIONS_MAX = 8
PAUSE_S = 1.0
"""Between two such turns: the row of every group is written in each, whoever is due."""
RETRY_S = 10.0
"""After a failure, or where what the cover holds is not known to be chosen yet."""


class Pin:
    """Made by `Floors.pin` only. Any thread.

    Attributes:
        group: whose log.
        first: the lowest instance that it holds.
    """

    def __init__(self, floors: Floors, group: int, first: int) -> None:
        self._floors = floors
        self.group = group
        self.first = first

    def move(self, first: int) -> None:
        """What is below `first` is not needed any more. It never moves back."""
        self._floors._moved(self, first)

    def release(self) -> None:
        """Nothing is needed any more. Idempotent."""
        self._floors._released(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Wish(NamedTuple):
    """What a group's floor is, what its checkpoints allow, and when they will allow more."""

    kept_from: int
    floor: int
    again_s: float

    @property
    def more(self) -> bool:
        return self.floor > self.kept_from


class Floors:
    """The floors of a node's groups. Any thread.

    Guarantee: a floor is raised only to where the oldest checkpoint that is kept, and the files of
    durable machines where it leaves their state to them, hold everything below; not above a pin,
    what is applied here, or what the engine knows to be chosen. A floor never falls.

    Args:
        options: `trim` False: no floor is raised, and pins hold all the same.
        wake: whoever calls `ring` should look at `next_s` again.
    """

    def __init__(
        self,
        options: Checkpoints,
        catalog: Catalog,
        states: Mapping[int, GroupState],
        store: Store,
        keeper: Keeper,
        driver: Driver,
    ) -> None:
        self._trims = options.trim
        self._catalog = catalog
        self._states = states
        self._store = store
        self._keeper = keeper
        self._driver = driver
        self.wake: Callable[[], None] = lambda: None
        self._lock = threading.Lock()  # of all that follows
        self._retention = Retention(
            hold_instances=options.hold_instances,
            hold_bytes=options.hold_bytes,
            hold_us=options.hold_us,
        )
        self._begun: dict[int, tuple[int, int]] = {}  # `applied` and `log_bytes` when it began
        self._pins: dict[int, set[Pin]] = {}
        self._wanted: dict[int, int] = {}  # floors that are about to be raised
        self._due: set[int] = set()
        self._asked = False  # the store thread is going to look at them
        self._held = False  # all stay where they are
        self._next_s = 0.0  # when it may do so again
        self._untold: set[int] = set()  # whose floor the engine does not know
        self._rings: list[tuple[float, int]] = []
        self._rings_s: dict[int, float] = {}  # the entry of it that counts
        self.counters = {"floors_raised": 0, "entries_trimmed": 0, "entries_passed": 0}

    # --- pins

    def pin(self, group: int, first: int) -> Pin:
        """Hold the log of a group from instance `first` on until the pin is released.

        Guarantee: from now on trimming by this node's own checkpoints removes nothing from
        ``Pin.first`` on. That is `first`, or a greater one if what lies between is not there any
        more, or about to go: whoever needs it compares. It is no promise that the log goes down to
        there already or reaches up to anything; and where a checkpoint of another node is
        installed, the log below that goes, pinned or not.

        Args:
            first: from 1 on.

        Raises:
            ValueError: there is no such instance.
            Closed: the node is closed.
        """
        if first < 1:
            raise ValueError("instances are counted from 1")
        with self._lock:
            floor = max(self._wanted.get(group, 1), self._store.bounds(group)[0])
            made = Pin(self, group, max(first, floor))
            self._pins.setdefault(group, set()).add(made)
            return made

    def pinned(self, group: int) -> int | None:
        """The lowest instance that is held; None: no pin is."""
        with self._lock:
            return self._lowest_pin(group)

    def _lowest_pin(self, group: int) -> int | None:
        return min((one.first for one in self._pins.get(group, ())), default=None)

    def _moved(self, pin: Pin, first: int) -> None:
        with self._lock:
            pin.first = max(pin.first, first)

    def _released(self, pin: Pin) -> None:
        with self._lock:
            pins = self._pins.get(pin.group, set())
            pins.discard(pin)
            if not pins:
                self._pins.pop(pin.group, None)
        self.due(pin.group)

    # --- who is due

    def forget(self, group: int) -> None:
        """It is gone. Any thread."""
        with self._lock:
            self._due.discard(group)
            self._untold.discard(group)
            self._begun.pop(group, None)
            self._pins.pop(group, None)
            self._wanted.pop(group, None)
            self._rings_s.pop(group, None)
            self._rings = [one for one in self._rings if one[1] != group]
            heapify(self._rings)
            self._retention.forget(group)

    def begins(self, state: GroupState) -> None:
        """The group goes on from one of its checkpoints, or from none: from `state.applied`. At a
        start, and where a checkpoint of another node was installed."""
        now_s, wall_us = time.monotonic(), time.time_ns() // 1000
        with self._lock:
            self._begun[state.group] = state.applied, state.log_bytes
            for one in reversed(self._catalog.of(state.group) if self._trims else []):
                age_s = max(0, wall_us - one.taken_us) / 1e6
                self._retention.mark(state.group, one.frontier, now_s - age_s)
        self.due(state.group)

    def covered(self, group: int, frontier: int, at_s: float) -> None:
        """A checkpoint that was captured at `at_s` (time.monotonic) is durable, and what was older
        than those that are kept is gone."""
        if not self._trims:
            return  # nobody would take the marks away
        with self._lock:
            self._retention.mark(group, frontier, at_s)
        self.due(group)

    def due(self, group: int) -> None:
        """Look at the group's floor soon."""
        if not self._trims:
            return
        with self._lock:
            self._due.add(group)
            if self._asked or self._held:
                return
            early = time.monotonic() < self._next_s
            self._asked = not early
        if early:
            self._ring_at(self._next_s, group)
        else:
            self._keeper.ask(self._turn)

    def hold(self, held: bool) -> None:
        """Let all floors stay where they are; what the store thread is about already, it finishes.
        False: go on, at once with whoever came due meanwhile."""
        with self._lock:
            self._held = held
            group = None if held else next(iter(self._due), None)
        if group is not None:
            self.due(group)

    def next_s(self) -> float:
        """When `ring` should be called, by time.monotonic; infinity: not at all."""
        with self._lock:
            return self._rings[0][0] if self._rings else math.inf

    def ring(self, now_s: float) -> None:
        """The groups whose time has come are due."""
        came = []
        with self._lock:
            while self._rings and self._rings[0][0] <= now_s:
                at_s, group = heappop(self._rings)
                if self._rings_s.get(group) == at_s:
                    del self._rings_s[group]
                    came.append(group)
        for group in came:
            self.due(group)

    def _ring_at(self, at_s: float, group: int) -> None:
        with self._lock:
            if at_s >= self._rings_s.get(group, math.inf):
                return  # it rings before that, and looks then
            self._rings_s[group] = at_s
            heappush(self._rings, (at_s, group))
        self.wake()

    # --- on the store thread

    def _turn(self, store: Store) -> None:
        """Look at the groups that are due, raise their floors, tell the engine."""
        with self._lock:
            count = 0 if self._held else min(len(self._due), GROUPS_MAX)
            groups = [self._due.pop() for _ in range(count)]
        try:
            self._tell(store, self._raise(store, groups))
        except DriverError as error:
            if error.code == ERROR_CLOSED:
                return
            self._failed(groups, error)
        except Exception as error:
            self._failed(groups, error)
        finally:
            with self._lock:
                for group in groups:
                    self._wanted.pop(group, None)  # the store has them, or it failed
                self._next_s = time.monotonic() + PAUSE_S
                self._asked = len(groups) == GROUPS_MAX and bool(self._due)
                left = None if self._asked else next(iter(self._due), None)
            if self._asked:
                self._keeper.ask(self._turn)
            elif left is not None:
                self._ring_at(self._next_s, left)

    def _failed(self, groups: list[int], error: Exception) -> None:
        log.error("floors could not be raised", exc_info=error)
        for group in groups:
            self._ring_at(time.monotonic() + RETRY_S, group)

    def _raise(self, store: Store, groups: list[int]) -> list[int]:
        """Those whose floor the engine has to be told."""
        wanted = {group: self._wish(store, group) for group in groups if group in self._states}
        chosen = self._chosen([group for group, wish in wanted.items() if wish.more])
        floors = {}
        for group, wish in wanted.items():
            floor = self._settle_on(group, wish, chosen.get(group, 0))
            if floor > wish.kept_from:
                floors[group] = Floor(floor, floor - 1)
        if floors:
            covers = (self._catalog.cover(group, wanted[group].kept_from) for group in floors)
            stats = store.raise_floors(floors, members_of(one for one in covers if one is not None))
            self.counters["floors_raised"] += stats.groups
            self.counters["entries_trimmed"] += stats.entries
            self.counters["entries_passed"] += stats.passed
        return [group for group in groups if group in floors or group in self._untold]

    def _tell(self, store: Store, groups: list[int]) -> None:
        self._untold.update(groups)
        for group in groups:
            floor, settled = store.bounds(group)
            # (Else a checkpoint is being installed: that is told when its machines are there.)
            if (state := self._states.get(group)) is None:
                self._untold.discard(group)
                continue
            if floor <= state.applied + 1:
                self._driver.floored(group, floor, settled)
            self._untold.discard(group)

    def _wish(self, store: Store, group: int) -> Wish:
        """The floor that the group's checkpoints allow."""
        now_s, kept_from = time.monotonic(), store.bounds(group)[0]
        through = self._covered_through(group, kept_from)

        def within(nbytes: int) -> int:
            return self._within(store, group, through, nbytes)

        with self._lock:
            floor, again_s = self._retention.wanted(group, through, now_s, within)
        return Wish(kept_from, floor, again_s)

    def _chosen(self, groups: list[int]) -> dict[int, int]:
        """How far each is known to be chosen. Of many all are asked for at once: each question
        waits for a turn of the poll thread."""
        if len(groups) > QUESTIONS_MAX:
            rows = self._driver.group_statuses()
        else:
            rows = [self._driver.group_status(group) for group in groups]
        return {int(row["group"]): int(row["chosen_through"]) for row in rows}

    def _settle_on(self, group: int, wish: Wish, chosen: int) -> int:
        """The floor that it gets; from now on nobody can pin anything below. At most what is kept
        now, if it is to stay as it is."""
        floor, again_s = wish.floor, wish.again_s
        if wish.more and floor > chosen + 1:  # after a start that is not known at once
            floor, again_s = chosen + 1, time.monotonic() + RETRY_S
        if again_s < math.inf:
            self._ring_at(again_s, group)
        with self._lock:
            pinned = self._lowest_pin(group)
            if pinned is not None:
                floor = min(floor, pinned)
            self._wanted[group] = floor
        return floor

    def _covered_through(self, group: int, kept_from: int) -> int:
        """MIN over the group's machines of what its cover has of each; 0: it has no cover.

        A light checkpoint leaves the state of a durable machine to the machine's own files. They
        count by what was committed last: they may have been lost since, and begun anew.
        """
        state = self._states[group]
        cover = self._catalog.cover(group, kept_from)
        if cover is None or state.stopped is not None:
            return 0
        light = (one.machine for one in cover.machines if one.file < 0)
        return min(
            state.applied, cover.frontier, *(state.committed.get(machine, 0) for machine in light)
        )

    def _within(self, store: Store, group: int, through: int, nbytes: int) -> int:
        """Lowest instance from which on the log up to `through` takes at most so many bytes.

        The store knows what is settled. Of what is not, the number is known, and how long the
        group's instances were on the average in this life.
        """
        settled = store.bounds(group)[1]
        if through > settled:
            state = self._states[group]
            applied, log_bytes = self._begun.get(group, (0, 0))
            each = (state.log_bytes - log_bytes) // max(1, state.applied - applied) + 1
            if each * (through - settled) > nbytes:
                return through + 1 - nbytes // each
            nbytes -= each * (through - settled)
        return store.first_within(group, min(through, settled), nbytes)
