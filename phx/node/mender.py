"""Mends the settled log of a node that runs.

Whoever meets a damaged chunk of the store, reading, joining or scrubbing, says so (`suspect`).
Then, and a crash between two steps leaves what is found and done again:

noted    on the store thread: the chunk goes to ``quarantine/`` as it lies there, its damaged
         instances are holes from now on. Peers that ask for one get nothing and ask somebody else;
         what applies waits for it, in this group only
mended   what is there twice is taken from where it is sound, at once
fetched  on the thread ``phx-mend``, which there is as long as there are holes: from a peer, over a
         connection of its own
mended   on the store thread: the chunk is written anew, in one transaction
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from phx.checkpoint.catalog import QUARANTINE
from phx.checkpoint.files import Files, join, make_folders, need_room, new_folder
from phx.errors import Closed, Damaged, StoreError
from phx.store import Ailing, Hole, Store

__all__ = ["Fetch", "FetchedEntry", "Mender", "ask_each"]

log = logging.getLogger("phx")

PAUSE_S = 1.0
PAUSE_MAX_S = 60.0


class FetchedEntry(Protocol):
    """What is chosen at an instance, and was checked on its way."""

    @property
    def instance(self) -> int: ...
    @property
    def body(self) -> bytes: ...


Fetch = Callable[[int, int, int], Sequence[FetchedEntry]]
"""(group, first, last): entries from `first` on, without a gap, as many as one peer gives; at least
one. Blocks; raises LookupError if no peer has it now, and anything else."""


class Mender:
    """Notes what is damaged of the store, and mends it.

    Guarantee: nothing that is damaged is served meanwhile; it stays a hole until a chosen value
    takes its place; and what was there is kept aside.

    Args:
        ask: has something done on the store thread (`Keeper.ask`).
        note: somebody should know.

    Attributes:
        fetch: how holes are fetched; None: not at all, until somebody says how and calls `wake`.
        lost: told of a hole (group, first, last) that no peer gives, whenever one was asked for in
            vain.
        mended: instances that were fetched, and are whole again.
    """

    def __init__(
        self,
        store: Store,
        files: Files,
        ask: Callable[[Callable[[Store], Any]], Future[Any]],
        note: Callable[[str], None],
        reserve_bytes: int,
    ) -> None:
        self._store = store
        self._files = files
        self._ask = ask
        self._note = note
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self._known: set[int] = set()  # chunks that are being seen to
        self._unreadable: set[tuple[int, int]] = set()  # in the journal, to be settled
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self.fetch: Fetch | None = None
        self.lost: Callable[[int, int, int], None] = lambda group, first, last: None
        self.mended = 0

    def begin(self) -> None:
        """See to what the last life of the node left."""
        for chunk in self._store.damaged():
            if self._store.holes_of(chunk):
                self._known.add(chunk)
            else:
                self.suspect(chunk)
        self.wake()

    def suspect(self, chunk: int) -> None:
        """This chunk of the store was found damaged. Any thread."""
        with self._lock:
            if chunk in self._known or self._ending.is_set():
                return
            self._known.add(chunk)
        self._ask(lambda store: self._see_to(store, chunk)).add_done_callback(
            lambda done: self._failed(chunk, done)
        )

    def unreadable(self, group: int, instance: int) -> None:
        """What is chosen there is to be settled, and the journal cannot give it. Any thread."""
        with self._lock:
            known = (group, instance) in self._unreadable
            self._unreadable.add((group, instance))
        if not known:
            self._note(
                f"the journal: group {group} instance {instance} cannot be read; to be fetched"
            )
        self.wake()

    def _failed(self, chunk: int, done: Future[Any]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is None:
            return
        with self._lock:
            self._known.discard(chunk)
        if not self._ending.is_set():
            log.error(
                "chunk %d of the store is damaged, and cannot be seen to now: %s", chunk, error
            )

    def _see_to(self, store: Store, chunk: int) -> None:
        """On the store thread."""
        ailing, _ = store.check(chunk)
        if ailing is None:
            with self._lock:
                self._known.discard(chunk)
            return
        self._put_aside(ailing)
        store.note(ailing)
        if not ailing.holes:
            store.mend(chunk, {})
            with self._lock:
                self._known.discard(chunk)
            self._note(f"the store: {ailing.why}; all of it was there, and was written anew")
            return
        what = ", ".join(map(text_of, ailing.holes[:3])) + (", ..." if ailing.holes[3:] else "")
        self._note(f"the store: {ailing.why}; damaged: {what}, to be fetched from a peer")
        self.wake()

    def _put_aside(self, ailing: Ailing) -> None:
        """For people: nothing depends on it."""
        files = self._files
        try:
            need_room(files, len(ailing.value), self._reserve_bytes)
            make_folders(files, QUARANTINE)
            folder = new_folder(files, QUARANTINE, f"chunk-{ailing.chunk}")
            output = files.create(join(folder, "value"))
            try:
                output.write(ailing.value)
                output.sync()
            finally:
                output.close()
            files.sync(folder)
            files.sync(QUARANTINE)
        except OSError as error:
            log.error("chunk %d is not put aside: %s", ailing.chunk, error)

    def holes(self) -> int:
        """So many settled instances wait to be fetched."""
        return sum(hole.last - hole.first + 1 for hole in self._store.holes())

    # --- fetching

    def wake(self) -> None:
        """Begin to fetch, if there is anything to fetch and it is known how."""
        with self._lock:
            running = self._thread is not None and self._thread.is_alive()
            if running or self.fetch is None or self._ending.is_set() or not self._wanted():
                return
            self._thread = threading.Thread(target=self._work, name="phx-mend", daemon=True)
            self._thread.start()

    def _wanted(self) -> bool:
        return bool(self._unreadable or self._store.holes())

    def end(self, wait_s: float | None = None) -> None:
        """Begin nothing more; wait for what is under way, at most so long."""
        self._ending.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(wait_s)

    def _work(self) -> None:
        pause_s = PAUSE_S
        while not self._ending.is_set():
            try:
                self._give()
                left = [chunk for chunk in self._store.damaged() if not self._healed(chunk)]
                with self._lock:
                    if not left and not self._wanted():
                        self._thread = None
                        return
            except Closed:
                return
            except Exception:
                log.exception("the store cannot be mended now")
            self._ending.wait(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def _give(self) -> None:
        """Values that are to be settled, and cannot be read."""
        for group, instance in list(self._unreadable):
            try:
                (one,) = self._fetched(Hole(group, instance, instance))
            except Exception as error:
                if not self._ending.is_set():
                    log.warning(
                        "group %d instance %d cannot be fetched: %s", group, instance, error
                    )
                continue
            self._store.give(group, instance, one.body)
            self.mended += 1
            with self._lock:
                self._unreadable.discard((group, instance))

    def _healed(self, chunk: int) -> bool:
        """`_heal`; whatever goes wrong with one chunk, the others' turn comes. Raises Closed."""
        try:
            return self._heal(chunk)
        except Closed:
            raise
        except Exception:
            log.exception("chunk %d cannot be mended now", chunk)
            return False

    def _heal(self, chunk: int) -> bool:
        """Whether there is nothing more to do for it."""
        holes = self._store.holes_of(chunk)
        if not holes:
            return True  # it is being seen to, or what was damaged is below the floor now
        bodies: dict[tuple[int, int], bytes] = {}
        missing = [hole for hole in holes if not self._collect(hole, bodies)]
        if missing:
            return False
        try:
            self._ask(lambda store: store.mend(chunk, bodies)).result()
        except Damaged:  # more of it is by now
            with self._lock:
                self._known.discard(chunk)
            self.suspect(chunk)
            return False
        except StoreError as error:
            log.warning("chunk %d cannot be mended now: %s", chunk, error)
            return False
        with self._lock:
            self._known.discard(chunk)
        self.mended += len(bodies)
        log.warning("%s: mended", ", ".join(map(text_of, holes)))
        return True

    def _collect(self, hole: Hole, bodies: dict[tuple[int, int], bytes]) -> bool:
        """Fetch a hole; False: it is not to be had now."""
        if self._ending.is_set():
            return False
        try:
            for one in self._fetched(hole):
                bodies[hole.group, one.instance] = one.body
            return True
        except LookupError as error:
            log.warning("%s cannot be fetched now: %s", text_of(hole), error)
            self.lost(*hole)
        except Exception as error:
            if not self._ending.is_set():
                log.warning("%s cannot be fetched now: %s", text_of(hole), error)
        return False

    def _fetched(self, hole: Hole) -> list[FetchedEntry]:
        """All of a hole. Raises anything."""
        assert self.fetch is not None
        found: list[FetchedEntry] = []
        while len(found) <= hole.last - hole.first:
            first = hole.first + len(found)
            more = self.fetch(hole.group, first, hole.last)
            wanted = range(first, first + len(more))
            if not more or [one.instance for one in more] != list(wanted) or wanted[-1] > hole.last:
                raise ValueError(f"a peer gave other instances than {first} to {hole.last}")
            found += more
        return found


def text_of(hole: Hole) -> str:
    one = hole.first == hole.last
    return f"group {hole.group} instance{'' if one else 's'} {hole.first}" + (
        "" if one else f" to {hole.last}"
    )


def ask_each(
    entries: Callable[[int, int, int, int], Sequence[FetchedEntry]],
    nodes: Callable[[], Iterable[int]],
) -> Fetch:
    """A Fetch that asks the nodes that there are then, one after the other, until one gives
    something.

    Args:
        entries: (node, group, first, last): what that node gives; nothing if it has none, or is
            not to be reached. Blocks.
    """

    def fetch(group: int, first: int, last: int) -> Sequence[FetchedEntry]:
        for node in nodes():
            if found := entries(node, group, first, last):
                return found
        raise LookupError(f"no peer gives instance {first} of group {group}")

    return fetch
