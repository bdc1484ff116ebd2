"""What outlives a journal, kept in the store: raised before each start, and while the node runs.

The *ceiling* is an upper bound of all promises that the node ever made; nothing above it is
promised before the store has a higher one. With it a node whose journal is lost can vote again
(docs/design/protocol.md, "Rejoin"), under its old id. The order of a start:

1. the journal is read; the life is raised in the store above those that either knows, and in the
   same write the ceiling above all that a journal that is whole has promised (the store may be an
   older one), the longest lease and the groups that are hosted
2. the engine is told the ceiling, and begins
3. the peers that the journal knows, and those that are met, go into the store

So no life begins while a promise lies above the ceiling that the store has.

A store that has no facts yet (it was made anew, or by an older phx) gets them in step 3; until then
its node promises nothing new. What may be lacking stands in these as relaxed in no known run. Where
the store cannot be written, for want of room, step 1 is left out for one of the few lives that it
allows for (`Facts.spare`), if the journal is whole and says that this one was never begun, and that
nothing was promised above the ceiling that the store has; nothing is promised above it, and the
store is told when there is room. Of a journal that was lost:

1. the store says so: no journal is believed any more that does not know this life
2. what is left of it goes to ``quarantine/``
3. a new one is begun, and says in its first records that no group may vote; then, that it knows
   this life

A crash after any of these steps leaves a journal that is found lost again. Unless the configuration
allows it, all of that is done only for a loss that ``phx repair --rejoin`` has allowed
(`Facts.allowed`), until the new journal is there: a start does not go on, and no life begins on
that journal, before the store has taken the leave back.

Relaxed groups (docs/design/durability.md) are in the store, with what the system calls its run,
before the first of them tells of what is only written; a clean close takes them out. Where they
stand there, and this is another run of the system, they may lack acceptances: they begin as if the
journal were lost, and stand there until it says so itself (`phx.node.relaxing`).
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from phx._core.driver import ERROR_CLOSED, ERROR_JOURNAL, Driver, DriverError
from phx._core.session_codec import table_incarnation
from phx._core.survey import Survey
from phx.checkpoint.catalog import Catalog
from phx.config import Config
from phx.errors import Damaged, StoreError
from phx.node.folder import Folder
from phx.store import Store
from phx.store_facts import CEILING_STEP, SPARE_LIVES, Facts, read, write

__all__ = ["Lives", "boot_id", "former_lives"]

log = logging.getLogger("phx")

ERROR_JOURNAL_DAMAGED = ERROR_JOURNAL + 2
ERROR_JOURNAL_MISSING = ERROR_JOURNAL + 9
BOOT_ID = "PHX_BOOT_ID"
COUNTER_BITS = 20  # of a ballot, below its counter
LIVES_MAX = (1 << 32) - (1 << 16)  # a table that says more is somebody's invention


class Lives:
    """The facts of one node.

    Args:
        created: groups that were created and are or were hosted, and whether they are still.
    """

    def __init__(
        self,
        config: Config,
        ask: Callable[[Callable[[Store], Any]], Future[Any]],
        created: Mapping[int, bool] | None = None,
    ) -> None:
        self._config = config
        self._created = dict(created or {})
        self._ask = ask
        self._driver: Driver | None = None
        self._store: Store | None = None
        self._facts: Facts | None = None  # as the store has them
        self._told = Facts(ceiling=0)
        self._ceiling = 0  # as the driver has it
        self._wanted = 0  # a higher ceiling
        self._failed = ""
        self._compared = False  # with what the journal says
        self._later: frozenset[int] = frozenset()
        self._wiped: tuple[int, ...] = ()  # they may lack acceptances
        self._doubted = False  # the journal failed in this life

    def begin(
        self,
        lived: int,
        journal: Survey | None,
        *,
        create: bool,
        later: Collection[int] = (),
    ) -> None:
        """Before the driver is made: raise the life in the store, durably.

        Args:
            lived: the highest life that is known from elsewhere.
            journal: what it holds; None: it is not whole, or no life has begun in it.
            create: the node is new: there is no earlier life.
            later: groups of the configuration that are not hosted before `host` says so.
        """
        self._later = frozenset(later)
        if os.environ.get(BOOT_ID):
            log.warning(
                "%s is set: whether the machine failed is judged by it, and not by the system's "
                "own. That is for tests: acknowledged values of relaxed groups may be lost by it",
                BOOT_ID,
            )
        self._told = self._ask(
            lambda store: self._raise_life(store, lived, journal, create)
        ).result()
        self._ceiling = self._told.ceiling

    def _raise_life(self, store: Store, lived: int, journal: Survey | None, create: bool) -> Facts:
        config = self._config
        above = max(lived, journal.incarnation) if journal is not None else lived
        highest = journal.counter if journal is not None else 0
        self._store = store
        before = self._facts = read(store)
        self._wiped = self._may_lack(before, create)
        if before is None:
            if not create:
                return Facts(ceiling=0, incarnation=lived + 1)
            before = Facts(incarnation=0)
        groups, lease_us = set(self._hosted()) - self._later, config.timing.lease_us
        facts = before.next_life(above=above, lease_us=lease_us, groups=groups)
        if highest + CEILING_STEP // 2 > before.ceiling:
            facts = facts.raised(highest + CEILING_STEP)
        if journal is not None and journal.incarnation >= before.lost:
            facts = replace(facts, allowed=0)  # that loss is over
        try:
            write(store, facts)
        except StoreError as error:
            spare = None
            # (Above its ceiling a promise would be forgotten with the journal.)
            known = journal is not None and highest <= before.ceiling
            # (A leave that stood on would be good for the next loss.)
            known = known and not before.allowed
            if known and not create and store.stats().failed is None:
                spare = before.spare_life(above=above, lease_us=lease_us, groups=groups)
            if spare is None:
                raise
            log.error(
                "%s; the node starts all the same, as life %d, which its store allows for: until "
                "there is room it promises nothing above what it has said before",
                error,
                spare.incarnation,
            )
            return spare
        self._facts = facts
        return facts

    def _may_lack(self, before: Facts | None, create: bool) -> tuple[int, ...]:
        """Groups of which something may have been told that a machine took along when it failed."""
        if before is None:
            # A store that was made anew. (It is not known what was chosen while the node ran.)
            relaxed = self._config.durability.relaxed(self._hosted())
            return () if create else tuple(sorted(relaxed))
        return before.may_lack(boot_id())

    @property
    def relaxed(self) -> frozenset[int]:
        """Groups that the store has as relaxed, or will have before anything else."""
        return frozenset(self._facts.relaxed if self._facts is not None else self._wiped)

    def relax(self, store: Store, groups: Collection[int]) -> None:
        """On the store thread: these and no others are relaxed in this run of the system, durably.
        The journal says by now what may be lacking from an earlier one. Raises StoreError."""
        if self._facts is None:
            self._settle(store)
        if self._facts is None:
            raise StoreError(self._failed)
        after = self._facts.relaxing(groups, b"" if self._doubted else boot_id())
        if after != self._facts:
            write(store, after)
            self._facts = after

    def doubt(self, store: Store) -> None:
        """On the store thread: what is only written may be lost, though the system goes on.

        Raises StoreError: it is not noted yet; `look` tries again.
        """
        self._doubted = True
        if self._facts is not None and self._facts.relaxed and self._facts.boot:
            after = self._facts.doubted()
            write(store, after)
            self._facts = after

    def _hosted(self) -> list[int]:
        return [*self._config.hosted_ids, *(one for one, there in self._created.items() if there)]

    def host(self, groups: Collection[int]) -> None:
        """These are hosted, too, from now on: durable on return. Raises StoreError."""
        self._created.update(dict.fromkeys(set(groups) - set(self._config.hosted_ids), True))

        def write_them(store: Store) -> None:
            if self._facts is not None and not set(groups) <= set(self._facts.groups):
                there = tuple(sorted({*self._facts.groups, *groups}))
                after = replace(self._facts, groups=there)
                write(store, after)
                self._facts = after

        self._ask(write_them).result()

    def start(
        self,
        folder: Folder,
        create: bool,
        bootstrap: bool,
        start: Callable[[bool, Facts, tuple[int, ...]], None],
    ) -> None:
        """Start the driver on the journal that there is, or on a new one if it is lost.

        Args:
            start: makes and starts it: whether the journal is to be made, what to tell it, and
                which groups lost their votes.
        """
        try:
            start(create, self._told, self._wiped)
            self._say_wiped()
        except DriverError as error:
            if error.code not in (ERROR_JOURNAL_MISSING, ERROR_JOURNAL_DAMAGED):
                raise
            new = (folder.begun and bootstrap) or folder.taken_over
            if error.code == ERROR_JOURNAL_MISSING and new:
                # No journal has ever begun in there: a bootstrap that was cut short goes on.
                start(True, self._told, ())
            elif not self._may_rejoin():
                raise Damaged(
                    f"{error.message}. Its promises may be lost, and so it does not start. `phx "
                    f"repair --rejoin {self._config.dir}` says what can be done"
                ) from error
            else:
                facts = self._lost(error.message)
                folder.begin_journal(error.message)
                start(True, facts, facts.groups)

    def _say_wiped(self) -> None:
        if self._wiped:
            log.warning(
                "acceptances of groups %s may be lost with what was not synced: the machine "
                "failed, or the store that knew better was lost. This node votes there again once "
                "it has rejoined; where that is true of a majority, it takes phx recover",
                list(self._wiped),
            )

    def _may_rejoin(self) -> bool:
        facts = self._facts
        allowed = facts is not None and facts.allowed != 0 and facts.allowed == facts.lost
        return allowed or self._config.checkpoints.journal_damage == "rejoin"

    def _lost(self, why: str) -> Facts:
        """The journal is lost: say so in the store, durably. What to tell the next driver.

        Raises Damaged if the node cannot live without it.
        """
        facts, config = self._facts, self._config
        if facts is None:
            raise Damaged(f"{config.dir}: {why}: its promises are lost")
        if self._alone():
            raise Damaged(
                f"{config.dir}: {why}: its promises are lost, and there is no other member that "
                "knows what was chosen"
            )
        if gone := sorted(set(facts.groups) - {*config.hosted_ids, *self._created}):
            raise Damaged(
                f"{config.dir}: {why}; and group {gone[0]}, which was hosted here, is not "
                "configured: it cannot be left out"
            )
        after = facts.found_lost()
        self._ask(lambda store: write(store, after)).result()
        self._facts = after
        return after

    def _alone(self) -> bool:
        """Nobody else can know what was chosen in any group. (Of a group that has no other member
        nobody does: there it stays without a vote.)"""
        config = self._config
        if len(config.members) > 1 or config.join or self._store is None:
            return False
        rows = self._store.members().values()
        return not any(set(row.membership.nodes) - {config.node} for row in rows)

    @property
    def incarnation(self) -> int:
        """Of the life that is about to start."""
        return self._told.incarnation

    def serve(self, driver: Driver) -> None:
        """The driver runs: what the journal knew goes into the store, too.

        Raises StoreError if the leave for the loss that is over cannot be taken back: the node must
        not go on with it.
        """
        if self._facts is not None and self._facts.allowed:
            self._ask(self._take_leave_back).result()
        self._driver = driver  # (not before: with a higher ceiling its groups may rejoin, and vote)
        self._ask(self._settle)

    def _take_leave_back(self, store: Store) -> None:
        assert self._facts is not None
        after = replace(self._facts, allowed=0)  # a journal is there that knows of the loss
        write(store, after)
        self._facts = after

    def store_of(self, node: int) -> bytes | None:
        """The store that was seen behind a node id, in any life; None: none was, that is known."""
        return self._facts.peers.get(node) if self._facts is not None else None

    def keep_peers(self) -> None:
        """Whoever was met is remembered, durably, when this returns. Blocks; not on the store
        thread. Raises StoreError, Closed."""
        self._ask(self._settle).result()
        if self._failed:
            raise StoreError(self._failed)

    def wanted(self, ceiling: int) -> None:
        """The engine wants a higher ceiling. Any thread."""
        self._wanted = max(self._wanted, ceiling)
        self._ask(self._settle)

    def look(self) -> bool:
        """In the store thread's idle time: write what is missing. False: it has to be tried
        again."""
        if self._driver is not None and self._store is not None:
            self._settle(self._store)
            if self._doubted:
                try:
                    self.doubt(self._store)
                except StoreError:  # it was said when it was asked for
                    return False
        return not self._failed

    def _settle(self, store: Store) -> None:
        """On the store thread: bring the store up to what the driver knows, and then raise the
        driver's ceiling."""
        driver = self._driver
        assert driver is not None
        try:
            facts = self._known(driver, self._facts)
            if facts != self._facts:
                write(store, facts)
                self._facts = facts
            if facts.ceiling > self._ceiling:
                driver.ceiling(facts.ceiling)
                self._ceiling = facts.ceiling
        except (StoreError, DriverError) as error:
            if isinstance(error, DriverError) and error.code == ERROR_CLOSED:
                raise
            if str(error) != self._failed:
                log.error("the ceiling of promises cannot be raised: %s", error)
            self._failed = str(error)
            return
        self._failed = ""

    def _known(self, driver: Driver, before: Facts | None) -> Facts:
        config = self._config
        if before is None:
            before = Facts(ceiling=0, incarnation=0).next_life(
                above=driver.incarnation - 1,
                lease_us=config.timing.lease_us,
                groups=self._hosted(),
            )
            # (As any other store that knows of no run: the journal may not say it yet.)
            before = replace(before, relaxed=self._wiped)
        if not self._compared:
            # A store that was made anew knows of less than the journal.
            rows = driver.group_statuses()
            # (What a suspect group may have promised counts, too: its mark has raised that.)
            counters = (int(row["highest_seen"]) >> COUNTER_BITS for row in rows)
            highest = max(counters, default=0)
            if highest + CEILING_STEP // 2 > before.ceiling:
                self._wanted = max(self._wanted, highest + CEILING_STEP)
            self._compared = True
        status: dict[str, Any] = dict(driver.status())
        met = {peer["node"]: peer["store_id"] for peer in status["peers"]}
        peers = {**before.peers, **{node: one for node, one in met.items() if one is not None}}
        life = max(before.incarnation, driver.incarnation)
        return replace(
            before.raised(self._wanted),
            incarnation=life,
            spare=max(before.spare, life + SPARE_LIVES),
            peers=peers,
        )


def boot_id() -> bytes:
    """What the system calls its run since it was started (16 bytes); b"": it does not say.

    PHX_BOOT_ID, a UUID, takes its place: for tests.
    """
    with suppress(OSError, ValueError):
        told = os.environ.get(BOOT_ID)
        told = told or Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        return uuid.UUID(told.strip()).bytes
    return b""


def former_lives(catalog: Catalog, node: int) -> int:
    """The highest incarnation of a node that any checkpoint has seen; 0: none.

    Its journal knows them all, unless a checkpoint was carried to a new folder: values of a life
    that the session table takes for an old one would never be applied.
    """
    highest = 0
    for found in catalog.groups().values():
        for manifest in found:
            with suppress(ValueError):  # whoever restores it says what is wrong with it
                highest = max(highest, table_incarnation(manifest.sessions, node))
    return highest if highest < LIVES_MAX else 0
