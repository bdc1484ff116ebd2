"""Reads again what a node keeps, so that damage is found while others can still help.

A round goes over the pages of the store, its chunks, the files of checkpoints and the closed
segments of the journal, in pieces, no faster than ``scrub_bytes_per_s``, in turns in which the
thread that writes checkpoints has nothing else to do. Where it is is kept in the store every half
minute, so a restart goes on from there. A round begins an hour after the one before began, or when
that is over, if it takes longer.

What the system has in its page cache is read from there: a disk that forgot it shows when it is
read from the disk again.
"""

from __future__ import annotations

import errno
import logging
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from phx._core.codec import crc32c
from phx.checkpoint.catalog import Catalog, path_of
from phx.checkpoint.files import join
from phx.checkpoint.manifest import (
    BLOCK_DIGEST_BYTES,
    FileEntry,
    Manifest,
    block_bytes_of,
    read_manifest,
)
from phx.errors import Closed, Damaged, Foreign
from phx.lmdb_pages import page_findings
from phx.store import Store

__all__ = ["Place", "Scrubber", "Told"]

log = logging.getLogger("phx")

NAME = b"scrub"
KEPT = struct.Struct("<IBQQQQQ")  # crc, then a Place, and when the round began
PIECE_BYTES = 1 << 20
ROUND_S = 3600.0
KEEP_S = 30.0
BURST_S = 0.05
RETRY_S = 60.0
LACKING = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR))
"""Of this process or system, not of the disk: what cannot be read so is not damaged."""

PAGES, CHUNKS, CHECKPOINTS, SEGMENTS, OVER = range(5)


class Place(NamedTuple):
    """Where a round is: all before it was read.

    CHUNKS: the chunk; CHECKPOINTS: group, frontier, file, offset; SEGMENTS: position.
    """

    part: int = PAGES
    first: int = 0
    second: int = 0
    third: int = 0
    fourth: int = 0


class Segments(Protocol):
    """What is needed of the journal (phx._core.segment_check)."""

    def segments(self) -> list[tuple[int, int]]: ...
    def check(self, lsn: int, bytes_max: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told of what is damaged, once in each round, on the thread that scrubs."""

    page: Callable[[str], None]
    chunk: Callable[[int], None]
    checkpoint: Callable[[Manifest, str], None]
    journal: Callable[[int], None]


class Scrubber:
    """One thread at a time.

    Args:
        ask: has something done on the store thread (`Keeper.ask`).
        bytes_per_s: 0: nothing is read.

    Attributes:
        counters: since the start: bytes and pieces read, rounds ended.
        ended_us: wall clock of the end of the last round, in any life of the node; 0: none yet.
    """

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        segments: Segments,
        ask: Callable[[Callable[[Store], Any]], Future[Any]],
        told: Told,
        *,
        bytes_per_s: int,
        round_s: float = ROUND_S,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._segments = segments
        self._ask = ask
        self._told = told
        self._bytes_per_s = bytes_per_s
        self._round_s = round_s
        self._free_s = 0.0  # when the pace allows the next piece
        self._keep_s = time.monotonic() + KEEP_S
        self._steps: Iterator[tuple[Place, int]] | None = None
        self.place, self._began_us = self._kept()
        self.counters = {"bytes": 0, "pieces": 0, "rounds": 0}
        self.ended_us = self._began_us if self.place.part == OVER else 0

    # --- when

    def step(self) -> float:
        """Read a piece, if it is time; in how many seconds to come again."""
        if not self._bytes_per_s:
            return ROUND_S
        if (wait_s := self._wait_s()) > 0.0:
            return wait_s
        try:
            nbytes = self._go_on()
        except (Closed, CancelledError):
            return RETRY_S
        except Exception:
            log.exception("scrubbing: %s", self.place)
            self._steps = None
            self._free_s = time.monotonic() + RETRY_S
            return RETRY_S
        now_s = time.monotonic()
        self._free_s = max(self._free_s, now_s - BURST_S) + nbytes / self._bytes_per_s
        self.counters["bytes"] += nbytes
        self.counters["pieces"] += 1
        return max(0.0, self._free_s - now_s)

    def _wait_s(self) -> float:
        wait_s = self._free_s - time.monotonic()
        if self.place.part == OVER:
            since_s = time.time() - self._began_us / 1e6
            # (A clock that was set back must not put it off for ever.)
            wait_s = max(wait_s, self._round_s - since_s if since_s >= 0.0 else 0.0)
        return wait_s

    def _go_on(self) -> int:
        if self.place.part == OVER:
            self.place, self._steps, self._began_us = Place(), None, wall_us()
        if self._steps is None:
            self._began_us = self._began_us or wall_us()
            self._steps = self._round(self.place)
        self.place, nbytes = next(self._steps, (Place(OVER), 0))
        over = self.place.part == OVER
        if over:
            self._steps = None
            self.ended_us = wall_us()
            self.counters["rounds"] += 1
        if over or time.monotonic() >= self._keep_s:
            self._keep()
        return nbytes

    def _keep(self) -> None:
        """On the store thread, when it comes to it; what is not kept is read again."""
        body = KEPT.pack(0, *self.place, self._began_us)[4:]
        value = crc32c(body).to_bytes(4, "little") + body
        self._ask(lambda store: store.remember({NAME: value})).add_done_callback(_logged)
        self._keep_s = time.monotonic() + KEEP_S

    def _kept(self) -> tuple[Place, int]:
        value = self._store.remembered(NAME)
        if value is None or len(value) != KEPT.size:
            return Place(), 0
        crc, *place, began_us = KEPT.unpack(value)
        if crc != crc32c(value[4:]) or place[0] > OVER:
            return Place(), 0
        return Place(*place), began_us

    # --- what

    def _round(self, place: Place) -> Iterator[tuple[Place, int]]:
        """(where it is, bytes read) after each piece, from `place` on."""
        if place.part <= PAGES:
            yield from self._pages()
        if place.part <= CHUNKS:
            yield from self._chunks(place.first if place.part == CHUNKS else 0)
        if place.part <= CHECKPOINTS:
            yield from self._checkpoints(place if place.part == CHECKPOINTS else Place(CHECKPOINTS))
        yield from self._journal(place.first if place.part == SEGMENTS else 0)

    def _pages(self) -> Iterator[tuple[Place, int]]:
        """On the store thread, or they would change meanwhile."""
        for what in self._ask(lambda store: page_findings(store.path / "data.mdb")).result():
            self._told.page(what)
        yield Place(CHUNKS), 0

    def _chunks(self, after: int) -> Iterator[tuple[Place, int]]:
        for chunk in self._store.chunks():
            if chunk <= after:
                continue
            try:
                ailing, nbytes = self._store.check(chunk)
            except Damaged as error:
                self._told.page(str(error))
            else:
                if ailing is not None and chunk not in self._store.damaged():
                    self._told.chunk(chunk)
                yield Place(CHUNKS, chunk), nbytes

    def _checkpoints(self, at: Place) -> Iterator[tuple[Place, int]]:
        for group, found in sorted(self._catalog.groups().items()):
            for manifest in reversed(found):
                if (group, manifest.frontier) < (at.first, at.second):
                    continue
                same = (group, manifest.frontier) == (at.first, at.second)
                start = at if same else Place(CHECKPOINTS, group, manifest.frontier)
                try:
                    yield from self._checkpoint(
                        manifest, path_of(self._catalog.root, manifest), start
                    )
                except (Damaged, Foreign, OSError) as error:
                    if isinstance(error, OSError) and error.errno in LACKING:
                        log.warning("group %d: a checkpoint cannot be read now: %s", group, error)
                    elif manifest in self._catalog.of(group):  # else it was dropped meanwhile
                        self._told.checkpoint(manifest, str(error))

    def _checkpoint(self, manifest: Manifest, path: str, at: Place) -> Iterator[tuple[Place, int]]:
        """Raises Damaged, Foreign, OSError."""
        if read_manifest(self._catalog.files, path).content != manifest.content:
            raise Damaged(f"{path}: the manifest is another one")
        for number, entry in enumerate(manifest.files):
            if number >= at.third:
                offset = at.fourth if number == at.third else 0
                for done, nbytes in self._file(join(path, entry.name), entry, offset):
                    yield at._replace(third=number, fourth=done), nbytes

    def _file(self, path: str, entry: FileEntry, offset: int) -> Iterator[tuple[int, int]]:
        """(offset up to which whole blocks were found sound, bytes read) after each piece."""
        block_bytes = block_bytes_of(entry.size_bytes)
        if offset < entry.size_bytes:
            offset -= offset % block_bytes
        opened = self._catalog.files.read(path)
        try:
            if opened.size_bytes != entry.size_bytes:
                raise Damaged(f"{path} has {opened.size_bytes} bytes, not {entry.size_bytes}")
            opened.skip(offset)
            while offset < entry.size_bytes:
                end = min(offset + block_bytes, entry.size_bytes)
                at, digest = offset, blake2b(digest_size=BLOCK_DIGEST_BYTES)
                while at < end:
                    data = opened.read(min(PIECE_BYTES, end - at))
                    if not data:
                        raise Damaged(f"{path} ends after {at} bytes")
                    digest.update(data)
                    at += len(data)
                    if at == end and digest.digest() != entry.block(offset // block_bytes):
                        raise Damaged(f"{path}: bytes {offset} .. {end - 1} are damaged")
                    yield offset if at < end else end, len(data)
                offset = end
        finally:
            opened.close()

    def _journal(self, after: int) -> Iterator[tuple[Place, int]]:
        for begin, end in self._segments.segments():
            at = max(begin, after)
            while at < end:
                nbytes = self._segments.check(at, min(PIECE_BYTES, end - at))
                if nbytes < 0:
                    self._told.journal(at)
                if nbytes <= 0:  # damaged, or given up meanwhile: to the next one
                    break
                at += nbytes
                yield Place(SEGMENTS, at), nbytes


def wall_us() -> int:
    return time.time_ns() // 1000


def _logged(done: Future[Any]) -> None:
    error = None if done.cancelled() else done.exception()
    if error is not None and not isinstance(error, Closed):
        log.warning("where the scrubbing is cannot be kept: %s", error)
