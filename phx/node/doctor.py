"""What becomes of damage in a node's folder, at its start and while it runs.

At a start, in this order; a crash between any two steps leaves what is found and done again:

1. the pages of the store are checked before LMDB is asked, which believes them; then it is opened
2. one that is lost or damaged goes to ``quarantine/``, as a whole
3. a new one is made in its place, with the store id that the journal has, and one row for each
   group of which the journal says that something was settled (RECORD_SETTLED): settled up to there,
   nothing kept
4. a store that is whole, and knows of less than the journal says, is an older one: its rows become
   the same as those of a new one, for the groups where that is so
5. with each row of 3 and 4 comes who the members are, in the same transaction: by journal or
   checkpoints, whichever knows of the later change. Where the store says it itself, one copy of two
   is enough
6. of what the store knows of the node's lives one copy is enough; without any the journal says it

All of it before the replay. The journal has all promises, and says what is known to be chosen, so
the node votes at once; what its machines lack they get from checkpoints. Without a journal that can
be read, and in which a life has begun, none of this is done: then it is the promises that are in
doubt.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from math import inf

import lmdb

from phx._core.driver import Driver
from phx._core.segment import parse_header
from phx._core.segment_check import SegmentCheck
from phx._core.survey import Survey
from phx.checkpoint.catalog import ROOT, Catalog, look, put_aside
from phx.checkpoint.files import OsFiles
from phx.checkpoint.manifest import Manifest
from phx.config import Config
from phx.errors import Damaged, Foreign, NotBootstrapped, StoreError
from phx.lmdb_pages import page_findings
from phx.node.folder import Folder
from phx.node.keeper import Keeper
from phx.node.mender import FetchedEntry, Mender, ask_each
from phx.node.scrubber import Scrubber, Told
from phx.store import MAP_BYTES, Floor, Store
from phx.store_facts import NAMES, forget, join
from phx.store_folder import FORMAT_VERSION, StoreIdentity, remake
from phx.store_members import MembersRow, later, of_journal

__all__ = ["Doctor"]

log = logging.getLogger("phx")

SEGMENT_HEADER_BYTES = 4096
FOUND_MAX = 64


class Doctor:
    """Sees to what is damaged: of the store at a start, of everything while the node runs.

    Attributes:
        count: how often something was damaged or lost.
        found: a line for each of the last of them, and what became of it.
        journal: as it was when the store was opened; None: it was not whole, or no life had begun.
    """

    def __init__(self, folder: Folder, config: Config) -> None:
        self._folder = folder
        self._config = config
        self.count = 0
        self.journal: Survey | None = None
        self.mender: Mender | None = None
        self.scrubber: Scrubber | None = None
        self._segments: SegmentCheck | None = None
        self.found: deque[str] = deque(maxlen=FOUND_MAX)

    def open_store(self, *, create: bool) -> Store:
        """The store, whole; on the thread that is going to write to it.

        Raises what `Store.open` does. Damaged: also the journal cannot be read, so that nobody
        knows what the store was.
        """
        if create:
            return self._open(create=True)
        try:
            refuse_bad_pages(self._folder)
            store = self._open()
        except (Damaged, NotBootstrapped) as error:
            self._make_anew(error)
            store = self._open()
        try:
            self.journal = self.journal or whole_journal(self._folder, store.identity)
            self._raise_old_rows(store)
            self._look_at_members(store)
            self._look_at_facts(store)
        except BaseException:
            store.close()
            raise
        return store

    def _open(self, *, create: bool = False) -> Store:
        config = self._config
        return Store.open(
            self._folder.store, cluster=config.cluster_id, node=config.node, create=create
        )

    def _make_anew(self, why: StoreError) -> None:
        """A new store in the place of a lost one; raises `why` if the journal does not say which
        one that was."""
        identity = self._identity_of_journal()
        if identity is not None:
            self.journal = whole_journal(self._folder, identity)
        if identity is None or self.journal is None:
            raise why
        settled = settled_by(self.journal)
        path, files = self._folder.store, OsFiles(self._folder.path)
        aside = ""
        try:
            if path.is_dir() and any(path.iterdir()):
                aside = f"; the old one is {put_aside(files, ROOT, path.name, path.name)}"
            remake(path, MAP_BYTES, identity, settled, self._members())
        except OSError as error:
            raise StoreError(f"{path}: a new store cannot be made: {error}") from why
        self.note(
            f"the store is lost ({why}); a new one was made, in which {len(settled)} groups begin "
            f"behind what the journal says is settled{aside}"
        )

    def _raise_old_rows(self, store: Store) -> None:
        """Where the journal says that more is settled than the store knows, nothing between is
        anywhere, and no group could be settled behind such a gap."""
        told = settled_by(self.journal) if self.journal is not None else {}
        rows = store.settled()
        old = {group: at for group, at in told.items() if at > rows.get(group, 0)}
        if not old:
            return
        known = self._members()
        for group in old.keys() & known.keys():
            store.note_members(group, known[group].membership, removed=known[group].removed)
        members = {group: row.membership for group, row in known.items() if group in old}
        store.raise_floors({group: Floor(at + 1, at) for group, at in old.items()}, members)
        group, at = next(iter(old.items()))
        self.note(
            f"the store is an older one: group {group} was settled through {at}, and the store "
            f"says {rows.get(group, 0)}; so with {len(old)} groups, which begin anew behind that"
        )

    def _members(self) -> dict[int, MembersRow]:
        """Of each group whose members ever changed, the latest that this folder knows of besides
        its store. Raises Damaged: it does not agree with itself."""
        manifests = look(OsFiles(self._folder.path), ROOT, self._config.cluster_id).groups
        try:
            found = of_journal(self.journal.members) if self.journal is not None else {}
            for manifest in chain.from_iterable(manifests.values()):
                if manifest.membership is not None:
                    told = MembersRow(manifest.membership)
                    found[manifest.group] = later(found.get(manifest.group), told)
        except ValueError as error:
            raise Damaged(f"{self._folder.path}: who the members are: {error}") from error
        return found

    def _look_at_members(self, store: Store) -> None:
        """One copy is enough: both are written anew. (Without any the store did not open.)"""
        for wrong in store.members_wrong():
            self.note(f"{wrong}; the other one is whole, and both are written anew")
        try:
            store.write_members()
        except StoreError as error:  # for want of room, perhaps: the keeper tries again
            log.error("%s", error)

    def _look_at_facts(self, store: Store) -> None:
        """One copy is enough: the next who writes them writes both. Where neither is whole, a
        journal that is says all of it, as for a store that was made anew."""
        try:
            _, wrong = join(map(store.remembered, NAMES), store.path)
        except Damaged as damage:
            if self.journal is None:
                raise Damaged(
                    f"{damage}, in both copies, and the journal is not whole: what this node has "
                    "promised is known nowhere. It must not vote again under its id: put another "
                    "node in its place"
                ) from damage
            forget(store)
            self.note(f"{damage}, in both copies; the journal is whole, and so they are made anew")
        else:
            if wrong:
                self.note(f"{wrong}; the other one is whole, and both are written anew")

    def _identity_of_journal(self) -> StoreIdentity | None:
        """Whose journal it is; None: nobody can say. Raises Foreign."""
        config = self._config
        for file in sorted(self._folder.journal.iterdir()):
            with suppress(OSError), file.open("rb") as opened:
                header = parse_header(opened.read(SEGMENT_HEADER_BYTES))
                if header is None:
                    continue
                cluster, node = header["cluster"], header["node"]
                if (cluster, node) != (config.cluster_id, config.node):
                    raise Foreign(
                        f"{self._folder.journal} belongs to node {node} of cluster {cluster:#x}, "
                        f"not to node {config.node} of cluster {config.cluster_id:#x}"
                    )
                return StoreIdentity(
                    cluster, node, header["store_id"], FORMAT_VERSION, lmdb.version()
                )
        return None

    # --- while it runs

    def attend(
        self,
        store: Store,
        keeper: Keeper,
        driver: Driver,
        catalog: Catalog,
        take: Callable[[int], object],
    ) -> None:
        """See to a node from here on.

        Args:
            take: has a checkpoint of a group taken.
        """
        options = self._config.checkpoints
        files = OsFiles(self._folder.path)
        mender = self.mender = Mender(store, files, keeper.ask, self.note, options.reserve_bytes)
        catalog.on_damage = self.note
        store.on_damage, store.on_unreadable = mender.suspect, mender.unreadable
        mender.begin()
        self._segments = SegmentCheck(driver)
        self.scrubber = Scrubber(
            store,
            catalog,
            self._segments,
            keeper.ask,
            Told(
                page=self._bad_page,
                chunk=mender.suspect,
                checkpoint=partial(self._bad_checkpoint, catalog, take),
                journal=partial(self._bad_segment, driver.settle_now),
            ),
            bytes_per_s=options.scrub_bytes_per_s,
        )

    def fetch_by(
        self,
        entries: Callable[[int, int, int, int], Sequence[FetchedEntry]],
        lost: Callable[[int, int, int], None],
        others: Callable[[], list[int]],
    ) -> None:
        """How values are had from a peer, from now on: see `ask_each`; and who is told of those
        that nobody has: see `Mender.lost`."""
        if self.mender is not None:
            self.mender.lost = lost
            self.mender.fetch = ask_each(entries, others)
            self.mender.wake()

    def step(self) -> float:
        """Look at something; in how many seconds to come again. One thread at a time."""
        return self.scrubber.step() if self.scrubber is not None else inf

    def end(self, wait_s: float | None = None) -> None:
        """Look at nothing more. Nobody calls `step` any more."""
        if self.mender is not None:
            self.mender.end(wait_s)
        if self._segments is not None:
            self._segments.close()

    def status(self) -> dict[str, object]:
        """As `NodeStatus.damage`."""
        holes = self.mender.holes() if self.mender else 0
        scrubber = self.scrubber
        return {
            "found": self.count,
            "last": self.found[-1] if self.found else None,
            "holes": holes,
            "mended": self.mender.mended if self.mender else 0,
            "scrubbed_bytes": scrubber.counters["bytes"] if scrubber else 0,
            "scrubs": scrubber.counters["rounds"] if scrubber else 0,
            "scrubbed_us": scrubber.ended_us if scrubber else 0,
        }

    def _bad_page(self, what: str) -> None:
        """LMDB has the pages it needs in memory, perhaps; nothing is changed under its hands."""
        self.note(f"the store: {what}; it is made anew when the node is started again")

    def _bad_checkpoint(
        self, catalog: Catalog, take: Callable[[int], object], manifest: Manifest, why: str
    ) -> None:
        """The others of the group are used, and the log behind the oldest of them is there."""
        catalog.found_damaged(manifest, why)
        take(manifest.group)

    def _bad_segment(self, settle: Callable[[], None], lsn: int) -> None:
        """No loss yet: what stands there is in memory, too. It is written again, in the store or
        further on in the journal, and then nobody needs the segment."""
        self.note(f"the journal is damaged at position {lsn}: what counts of it is written again")
        settle()

    def note(self, what: str) -> None:
        """Somebody should know."""
        self.count += 1
        self.found.append(what)
        log.critical("%s: %s", self._folder.path, what)


def refuse_bad_pages(folder: Folder) -> None:
    """Damaged, if a page of the store's file is not as it must be."""
    data = folder.store / "data.mdb"
    try:
        wrong = page_findings(data)
    except FileNotFoundError:
        return  # whoever opens it says so
    except OSError as error:
        raise StoreError(f"{data}: {error}") from error
    if wrong:
        raise Damaged(f"{data}: {wrong[0]}")


def whole_journal(folder: Folder, identity: StoreIdentity) -> Survey | None:
    """What the journal holds; None: it is not that of this store, or not whole, as its replay will
    say; or no life has begun in it yet. Raises StoreError: it cannot be read at the moment, which
    its replay, a moment later, may not find so."""
    try:
        survey = Survey(
            folder.journal,
            cluster=identity.cluster,
            node=identity.node,
            store_id=identity.store_id,
        )
    except OSError as error:
        raise StoreError(f"{folder.journal}: {os.strerror(error.errno or 0)}") from error
    # Before its first records, too: what a lost journal made doubtful stands in them, before the
    # life (RECORD_SUSPECT, then RECORD_NODE).
    if survey.verdict is not None and survey.verdict[0] == "io":
        raise StoreError(f"{folder.journal}: {survey.verdict[1]}")
    if survey.verdict is not None or survey.incarnation == 0:
        return None
    return survey


def settled_by(journal: Survey) -> dict[int, int]:
    """Of each group, how far the journal says that it is settled."""
    return {group: settled for group, *_, settled in journal.groups if settled}
