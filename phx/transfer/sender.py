"""The side that provides: answers one FETCH, and sends no faster than is taken and allowed."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Protocol

from phx.checkpoint.files import Files, join
from phx.checkpoint.manifest import (
    BLOCK_DIGEST_BYTES,
    FileEntry,
    Manifest,
    block_bytes_of,
    encode,
)
from phx.errors import Damaged
from phx.transfer.messages import (
    ACK,
    CHECKPOINT,
    CHUNK,
    CHUNK_BYTES_MAX,
    END,
    ENTRIES,
    ENTRIES_WANTED,
    FETCH,
    MANIFEST,
    OFFER,
    Ack,
    Ends,
    Entry,
    Fetch,
    Frames,
    Hostile,
    Offer,
    Patience,
    pack_chunk,
    pack_entries,
    pack_error,
    pack_offer,
    unpack_ack,
    unpack_fetch,
)

__all__ = ["WINDOW_BYTES", "Bucket", "Sender", "Shelf"]

WINDOW_BYTES = 4 << 20
"""So much may be on its way that was not acknowledged."""
SECOND_US = 1_000_000
NEVER = (1 << 63) - 1

Load = Generator[tuple[int, bytes, int], None, None]
"""(kind of frame, payload, how many bytes of it wait for an ACK)."""


class Bucket:
    """How fast all transfers of a node together may send. Any thread may call.

    Args:
        rate: bytes a second. What was not used is kept for a tenth of a second. A transfer whose
            part of it is below that of `Patience` is cut.
    """

    def __init__(self, rate: int) -> None:
        self.chunk_bytes = max(1, min(CHUNK_BYTES_MAX, rate // 2))
        """A chunk of this size passes in half a second, whatever the rate."""
        self._rate = rate
        self._free_us = float(-SECOND_US)
        self._lock = threading.Lock()

    def take(self, nbytes: int, now_us: int) -> bool:
        """Whether so many bytes may be sent now; if so, they count."""
        with self._lock:
            if self._free_us > now_us:
                return False
            earliest = now_us - SECOND_US / 10
            self._free_us = max(self._free_us, earliest) + nbytes * SECOND_US / self._rate
            return True

    def due_us(self) -> int:
        """From when on something may be sent again."""
        return int(self._free_us) + 1


class Shelf(Protocol):
    """What a node has to give."""

    def offer(self, fetch: Fetch) -> Offer:
        """What it could provide; for DIGESTS with ``chains``."""
        ...

    def checkpoint(self, fetch: Fetch) -> tuple[str, Manifest] | None:
        """(folder, manifest) of the checkpoint with that ident, pinned for as long as this transfer
        may want it or come again; None: it is not there, or is not given now."""
        ...

    def entries(self, fetch: Fetch) -> Iterable[Sequence[Entry]] | None:
        """The values of the instances above + 1 .. through, as far as they are here, in runs that
        are not empty and fit into a frame of ENTRIES_BYTES_MAX; None: the first one is not here."""
        ...


class Sender:
    """One connection of somebody who fetches. One thread; no socket of its own.

    Call ``feed`` with what came, and with b"" at ``due_us``; send what it returns before the next
    call. It never returns more than WINDOW_BYTES and the frames around it, a manifest, or,
    of values, one run beyond that. Values are not acknowledged: that somebody takes none of them
    is seen by the socket alone, which needs a limit of its own.

    Attributes:
        done: all was sent, and acknowledged where that is asked for: close the connection.
        fetch: what was asked for, once it is known.
        sent_bytes: of files, so far.
    """

    def __init__(self, files: Files, ends: Ends, shelf: Shelf, bucket: Bucket, now_us: int) -> None:
        self.done = False
        self.fetch: Fetch | None = None
        self.sent_bytes = 0
        self._files = files
        self._ends = ends
        self._shelf = shelf
        self._bucket = bucket
        self._frames = Frames(ends, {FETCH})
        self._patience = Patience(now_us)
        self._throttled = False
        self._load: Load | None = None
        self._next: tuple[int, bytes, int] | None = None
        self._acked_bytes = 0
        self._reach: list[tuple[int, int, int]] = []
        """Of each file: sent_bytes when its first byte goes, offset of that byte, its size."""

    @property
    def due_us(self) -> int:
        """When to call ``feed`` though nothing came."""
        silent_us = self._patience.due_us if self._waits() else NEVER
        return min(self._bucket.due_us(), silent_us) if self._throttled else silent_us

    def feed(self, data: bytes, now_us: int) -> bytes:
        """What came; returns what to send.

        Raises Hostile, Stalled: close the connection. Damaged: the checkpoint is not what was
        written, nothing bad was sent; OSError. Close the connection, and let others have a look.
        """
        out = bytearray()
        for kind, payload in self._frames.feed(data):
            if kind == FETCH:
                self._frames.kinds = {ACK}
                self._patience.renew(now_us)
                self.fetch = unpack_fetch(payload)
                out += self._begin(self.fetch)
            else:
                self._note(unpack_ack(payload), now_us)
        self._fill(out, now_us)
        if not self._waits():
            self._patience.renew(now_us)
        self._patience.check(now_us, "nothing was asked for, or too little acknowledged")
        return bytes(out)

    def close(self) -> None:
        """Close its files. Raises nothing."""
        if self._load is not None:
            self._load.close()
        self._load = self._next = None

    def _waits(self) -> bool:
        """For the other side to say something."""
        return not self.done and (self.fetch is None or self._acked_bytes < self.sent_bytes)

    def _begin(self, fetch: Fetch) -> bytes:
        if fetch.what == CHECKPOINT:
            return self._begin_checkpoint(fetch)
        if fetch.what == ENTRIES_WANTED:
            runs = self._shelf.entries(fetch)
            if runs is None:
                return self._decline("these instances are not kept here")
            self._load = ((ENTRIES, pack_entries(run), 0) for run in runs)
            return b""
        self.done = True
        return self._ends.frame(OFFER, pack_offer(self._shelf.offer(fetch)))

    def _begin_checkpoint(self, fetch: Fetch) -> bytes:
        found = self._shelf.checkpoint(fetch)
        if found is None or found[1].light:
            return self._decline("this checkpoint is not here")
        folder, manifest = found
        if manifest.content != fetch.ident or manifest.group != fetch.group:
            return self._decline("this checkpoint is not here")
        if manifest.frontier <= fetch.above:
            return self._decline("this checkpoint has nothing that is wanted")
        have = dict(fetch.have)
        at = 0
        for index, entry in enumerate(manifest.files):
            offset, block_bytes = have.pop(index, 0), block_bytes_of(entry.size_bytes)
            if offset > entry.size_bytes or (offset % block_bytes and offset != entry.size_bytes):
                raise Hostile("a FETCH with an offset that is no block's")
            self._reach.append((at, offset, entry.size_bytes))
            at += entry.size_bytes - offset
        if have:
            raise Hostile("a FETCH with an offset of no file")
        starts = [offset for _, offset, _ in self._reach]
        chunk_bytes = self._bucket.chunk_bytes
        self._load = _chunks(self._files, folder, manifest, starts, chunk_bytes)
        return self._ends.frame(MANIFEST, encode(manifest))

    def _decline(self, why: str) -> bytes:
        self.done = True
        return self._ends.frame(OFFER, pack_error(why))

    def _note(self, ack: Ack, now_us: int) -> None:
        if ack.file >= len(self._reach):
            raise Hostile("an ACK of no file")
        at, first, size = self._reach[ack.file]
        acked = at + ack.offset - first
        if not first <= ack.offset <= size or not self._acked_bytes <= acked <= self.sent_bytes:
            raise Hostile("an ACK of what was not sent, or was acknowledged before")
        self._patience.moved(acked - self._acked_bytes, now_us)
        self._acked_bytes = acked

    def _fill(self, out: bytearray, now_us: int) -> None:
        """As much as window and bucket allow."""
        self._throttled = False
        room = WINDOW_BYTES
        while self._load is not None:
            if self._next is None:
                self._next = next(self._load, None)
            if self._next is None:
                self._load = None
                out += self._ends.frame(END)
                break
            kind, payload, counted = self._next
            if self.sent_bytes + counted - self._acked_bytes > WINDOW_BYTES:
                break  # until an ACK comes
            if room <= 0 or not self._bucket.take(len(payload), now_us):
                self._throttled = True
                break
            room -= len(payload)
            out += self._ends.frame(kind, payload)
            self.sent_bytes += counted
            self._next = None
        if self.fetch is not None and self._load is None and self._acked_bytes == self.sent_bytes:
            self.done = True


def _chunks(
    files: Files, folder: str, manifest: Manifest, starts: list[int], chunk_bytes: int
) -> Load:
    """The chunks of a checkpoint's files, from these offsets on."""
    for index, entry in enumerate(manifest.files):
        if starts[index] < entry.size_bytes:
            path = join(folder, entry.name)
            for offset, data in _blocks(files, path, entry, starts[index], chunk_bytes):
                yield CHUNK, pack_chunk(index, offset, data), len(data)


def _blocks(
    files: Files, path: str, entry: FileEntry, offset: int, chunk_bytes: int
) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a file from a block's beginning on. Raises Damaged before the last bytes
    of a block that is not the manifest's, OSError."""
    block_bytes = block_bytes_of(entry.size_bytes)
    opened = files.read(path)
    try:
        opened.skip(offset)
        while offset < entry.size_bytes:
            end = min(offset + block_bytes, entry.size_bytes)
            block, number = blake2b(digest_size=BLOCK_DIGEST_BYTES), offset // block_bytes
            while offset < end:
                data = opened.read(min(chunk_bytes, end - offset))
                if not data:
                    raise Damaged(f"{path} ends after {offset} bytes")
                block.update(data)
                if offset + len(data) == end and block.digest() != entry.block(number):
                    raise Damaged(f"{path} is damaged before byte {end}")
                yield offset, data
                offset += len(data)
    finally:
        opened.close()
