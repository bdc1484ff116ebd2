"""How a simulated node follows the directory, as events: as `phx.node.hosting` on its thread.

host   the store has a row first; then what it keeps of the group begins behind its base; then the
       engine has it, and machines are made
end    whoever leads proposes the last value; who knows, durably, that it is chosen says so
drop   the store's row says gone; callers are told; the engine lets go when nothing else is at it;
       then checkpoints go, and what the store has of the log

A crash may come between any two steps, and an act has one come at the n-th (`dies_in`). What it
leaves half done the next start, or the next look, does to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from phx.sim import hosted
from phx.sim.directory import ENDING, GONE, Directory, Fact, row_of
from phx.sim.steps import run_steps
from phx.sim.storage import StoreFailed

if TYPE_CHECKING:
    from phx.sim.host import Host

__all__ = ["Hosting"]

HEAR_US_MAX = 60_000
LATE_US_MAX = 4_000_000
LATE = 0.1
"""How likely a node hears late."""
MANY = (1, 1, 2, 5)
"""So many facts are heard at once."""
END_US_MAX = 80_000


class Hosting:
    """What one node hosts of created groups, over all its lives.

    Attributes:
        dies_in: it dies behind so many steps from now; 0: not.
        counts: over all lives; `World.counters` has each under its name.
    """

    NOTHING = dict.fromkeys(
        ("groups_hosted", "groups_dropped", "groups_ends", "groups_cut", "groups_cleaned"), 0
    )
    """The counts where nothing of this happens."""

    def __init__(self, host: Host, directory: Directory, seed: int) -> None:
        self.host = host
        self.directory = directory
        self.counts = dict(self.NOTHING)
        self.dies_in = 0
        self._chance = Random(f"hosting {seed}")
        self.crash()

    def crash(self) -> None:
        """The process is dead."""
        self._heard = 0
        self._hearing = False
        self._at: set[int] = set()

    def begin(self) -> None:
        """A life begins: what is gone is swept away, and all facts are heard again."""
        for group, row in self.host.store.hosted.items():
            if row.gone and self.left(group):
                self.counts["groups_cleaned"] += 1
                self._run(group, self._clean(group))
        self.wake()

    def left(self, group: int) -> bool:
        """Something of it is kept."""
        floor, settled = self.host.store.index.bounds(group)
        return floor <= settled or bool(self.host.keeping.catalog.of(group))

    def wake(self) -> None:
        """There is a fact that was not heard yet."""
        if not self._hearing and self._heard < len(self.directory.facts):
            self._hearing = True
            most = LATE_US_MAX if self._chance.random() < LATE else HEAR_US_MAX
            self.host.soon(1 + self._chance.randrange(most), self._hear)

    def _hear(self) -> None:
        self._hearing = False
        more = self.directory.facts[self._heard :][: self._chance.choice(MANY)]
        self._heard += len(more)
        for group in dict.fromkeys(fact.group for fact in more):
            self._look(group)
        self.wake()

    def _known(self, group: int) -> Fact | None:
        """The newest fact that was heard."""
        heard = self.directory.facts[: self._heard]
        return next((fact for fact in reversed(heard) if fact.group == group), None)

    # --- what follows from it

    def _look(self, group: int) -> None:
        fact, row = self._known(group), self.host.store.hosted.get(group)
        if group in self._at or fact is None or (row is not None and row.gone):
            return
        if fact.phase == GONE:
            if row is not None:
                self._run(group, self._drop(group))
        elif self.host.node in fact.nodes:
            if not hosted.hosts(self.host, group):
                self._run(group, self._host(group, fact.nodes))
            elif fact.phase == ENDING:
                self._run(group, self._end(group))

    def _run(self, group: int, steps: Iterator[str]) -> None:
        def done() -> None:
            self._at.discard(group)
            self._look(group)

        self._at.add(group)
        run_steps(self.host, self._chance, self._dying(steps), done)

    def _dying(self, steps: Iterator[str]) -> Iterator[str]:
        for said in steps:
            if said != "waits" and self.dies_in:
                self.dies_in -= 1
                if not self.dies_in:
                    self.counts["groups_cut"] += 1
                    self.host.keeping.dead = True
            yield said

    def _store(self, action: Callable[[], object]) -> Iterator[str]:
        """One transaction, again until it is made."""
        while True:
            try:
                action()
            except StoreFailed:
                yield "waits"
            else:
                return

    def _host(self, group: int, nodes: tuple[int, ...]) -> Iterator[str]:
        host = self.host
        if group not in host.store.hosted:
            yield from self._store(lambda: host.store.host(group, row_of(nodes)))
            hosted.row_says(host, group, True)
            yield "row"
        yield from self._store(lambda: hosted.remember(host, group))
        yield from self._store(lambda: hosted.prepare(host, group))
        yield "prepared"
        while host.poisoned:  # its engine takes no group any more; the next life does
            yield "waits"
        hosted.begin(host, group)
        self.counts["groups_hosted"] += 1
        yield "begun"

    def _end(self, group: int) -> Iterator[str]:
        host = self.host
        while not hosted.over(host, group):
            fact = self._known(group)
            if fact is not None and fact.phase == GONE:
                return
            self.counts["groups_ends"] += hosted.end(host, group)
            for _ in range(1 + self._chance.randrange(END_US_MAX // 20_000)):
                yield "waits"
        yield from self._store(host.store.write_members)
        yield "tombstone"
        self.directory.over(group, host.node)

    def _drop(self, group: int) -> Iterator[str]:
        host = self.host
        gone = replace(host.store.hosted[group], gone=True)
        yield from self._store(lambda: host.store.host(group, gone))
        hosted.row_says(host, group, False)
        yield "gone"
        if hosted.hosts(host, group):
            hosted.retire(host, group)
            yield "retired"
            while host.fetching.at(group) or hosted.settling(host) or not host.busy(group, True):
                yield "waits"
            hosted.drop(host, group)
            self.counts["groups_dropped"] += 1
            yield "dropped"
        yield from self._clean(group)

    def _clean(self, group: int) -> Iterator[str]:
        host = self.host
        host.keeping.sweep(group)
        yield "swept"
        while hosted.settling(host):
            yield "waits"
        yield from self._store(lambda: hosted.clean(host, group))
