"""How durable the groups of a simulated node are: the production order (`phx.durability`) over
the facts of its store, a step at a time.
"""

from __future__ import annotations

from collections.abc import Collection
from random import Random
from typing import TYPE_CHECKING, Any

from phx.durability import Change, DurabilityOrder
from phx.errors import StoreError
from phx.sim.storage import StoreFailed

if TYPE_CHECKING:
    from phx.sim.host import Host
    from phx.store_facts import Facts

__all__ = ["COUNTED", "NO_SYNC", "SYNC", "Relaxing", "any_mode", "modes_of"]

SYNC = 0
NO_SYNC = (1 << 64) - 1
INTERVALS_US = (1_000, 5_000, 50_000, 400_000)
LOOK_US = (100, 3_000)
AGAIN_US = 1_000_000
COUNTED = ("switched", "switches_failed", "doubts")


def any_mode(chance: Random) -> int:
    """Of a group that is relaxed: within how many microseconds it syncs, or NO_SYNC."""
    return chance.choice([NO_SYNC, NO_SYNC, *INTERVALS_US])


def modes_of(seed: int, node: int, groups: list[int], percent: int) -> dict[int, int]:
    """What a node is configured with: so many of a hundred groups are relaxed."""
    chance = Random(f"modes {seed} {node}")
    return {group: any_mode(chance) for group in groups if chance.randrange(100) < percent}


class Lives:
    """What an order needs of the lives of its node (`phx.node.lives`)."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.doubted = False

    @property
    def relaxed(self) -> frozenset[int]:
        return frozenset(self.host.store.facts.relaxed)

    def relax(self, store: Any, groups: Collection[int]) -> None:
        boot = b"" if self.doubted else self.host.boot
        self.write(store, store.facts.relaxing(groups, boot))

    def doubt(self, store: Any) -> None:
        self.doubted = True
        if store.facts.relaxed and store.facts.boot:
            self.write(store, store.facts.doubted())

    def write(self, store: Any, after: Facts) -> None:
        before = store.facts
        if after == before:
            return
        try:
            store.remember(after)
        except StoreFailed as error:
            raise StoreError(str(error)) from error
        self.host.row_changed(before, after)


class Driver:
    """And of its driver."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def durability(self, group: int, within_us: int) -> int:
        return self.host.durability(group, within_us)

    def durable_lsn(self) -> int:
        return self.host.durable

    def status(self) -> dict[str, Any]:
        return {"journal": {"poisoned": self.host.poisoned}}

    def group_statuses(self) -> list[dict[str, Any]]:
        return [{"group": 0}]


class LifeOrder(DurabilityOrder):
    """Of one life."""

    def __init__(self, host: Host) -> None:
        self.known = Lives(host)
        super().__init__(self.known)
        self._driver = Driver(host)

    def ask(self, within_us: dict[int, int]) -> Change:
        change = Change(within_us, self._synced())
        self._waiting.append(change)
        return change

    def go_on(self, store: Any) -> bool:
        return self._go_on(store)


class Relaxing:
    """The groups of one host, in all its lives.

    Args:
        modes: of each group that is not to sync, as a configuration says it.
    """

    def __init__(self, host: Host, seed: int, modes: dict[int, int]) -> None:
        self.host = host
        self.chance = Random(f"relaxing {seed}")
        self.modes = modes
        self.looking = False
        self.order: LifeOrder | None = None
        self.counts = dict.fromkeys(COUNTED, 0)

    def begin(self) -> None:
        """A life begins: its engine runs."""
        self.order = LifeOrder(self.host)
        self.looking = False
        if self.modes or self.order.known.relaxed:
            self.ask(dict(self.modes))

    def set(self, group: int, within_us: int) -> None:
        """Somebody calls `Group.set_durability`."""

        def done(ended: Any) -> None:
            self.counts["switches_failed" if ended.exception() else "switched"] += 1

        self.ask({group: within_us}).done.add_done_callback(done)

    def ask(self, within_us: dict[int, int]) -> Change:
        assert self.order is not None
        change = self.order.ask(within_us)
        self.look_soon()
        return change

    def look_soon(self) -> None:
        if not self.looking:
            self.looking = True
            self.host.soon(self.chance.randrange(*LOOK_US), self.look)

    def look(self) -> None:
        assert self.order is not None
        self.looking = False
        if self.order.go_on(self.host.store):
            self.look_soon()

    def doubt(self) -> None:
        """The journal failed; the store is told until it takes it."""
        self.host.soon(self.chance.randrange(*LOOK_US), self.doubt_now)

    def doubt_now(self) -> None:
        assert self.order is not None
        try:
            self.order.known.doubt(self.host.store)
        except StoreError:
            self.host.soon(AGAIN_US, self.doubt_now)
            return
        self.counts["doubts"] += 1
