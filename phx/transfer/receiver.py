"""The side that fetches: asks once, takes what it asked for, refuses all else."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from phx.checkpoint.files import Files
from phx.checkpoint.manifest import Manifest, decode
from phx.errors import Damaged, Foreign
from phx.transfer.messages import (
    ACK,
    CHECKPOINT,
    CHUNK,
    END,
    ENTRIES,
    ENTRIES_WANTED,
    FETCH,
    MANIFEST,
    OFFER,
    REFUSED,
    Chunk,
    Ends,
    Entry,
    Fetch,
    Frames,
    Greeting,
    Hostile,
    Offer,
    Patience,
    pack_ack,
    pack_fetch,
    unpack_chunk,
    unpack_entries,
    unpack_offer,
    unpack_refused,
)
from phx.transfer.staging import Staged

__all__ = ["ACK_BYTES", "Asker", "Progress", "Receiver", "Wish"]

ACK_BYTES = 1 << 20
ACK_US = 1_000_000
"""On a slow link, what came is acknowledged after so long, though it is less than ACK_BYTES."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Which checkpoint is wanted, and what may be spent on it.

    Attributes:
        group, ident: which one; as offered.
        above: what is applied here: it must be beyond that.
        bytes_max: of all its files, also of what is unpacked from them.
        reserve_bytes: what must stay free on the disk.
    """

    group: int
    ident: bytes
    above: int
    bytes_max: int
    reserve_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is, in bytes of files.

    Attributes:
        there: of the checkpoint, verified or not.
        total: of all its files; 0: not known yet.
        resumed: what was there when this receiver began.
        received: what came since, in whole frames.
    """

    there: int
    total: int
    resumed: int
    received: int


class Receiver:
    """Fetches one checkpoint over one connection. One thread; no socket of its own.

    Send ``hello()``, then call ``feed`` with what comes, and with b"" at ``due_us``; send what it
    returns. When it is ``ended``, `Staged.publish` makes a checkpoint of it. What came before a cut
    stays in staging: `waiting` finds it, `Staged.resume` takes it up, any peer can go on with it.

    Guarantee: whatever comes, nothing is written but files with good names in the one folder, no
    more of them and no more bytes than the manifest says, which is checked before anything is
    written; and a block that is not what the manifest says ends the transfer.

    Args:
        staged: what is there already, of this very ident; None: nothing.

    Attributes:
        staged: what came; None before the manifest.
        ended: all of it is there.
    """

    def __init__(
        self,
        files: Files,
        root: str,
        ends: Ends,
        wish: Wish,
        now_us: int,
        staged: Staged | None = None,
    ) -> None:
        if staged is not None and staged.manifest.content != wish.ident:
            raise ValueError("what is staged is of another checkpoint")
        self.staged = staged
        self.ended = False
        self._files = files
        self._root = root
        self._ends = ends
        self._wish = wish
        self._frames = Frames(ends, {OFFER, MANIFEST, REFUSED})
        self._resumed_bytes = 0 if staged is None else staged.size_bytes
        self._received_bytes = 0
        self._unacked_bytes = 0
        self._patience = Patience(now_us)
        self._acked_us = now_us
        self._last = (0, 0)

    @property
    def progress(self) -> Progress:
        there = 0 if self.staged is None else self.staged.size_bytes
        total = 0 if self.staged is None else self.staged.manifest.size_bytes
        return Progress(there, total, self._resumed_bytes, self._received_bytes)

    @property
    def due_us(self) -> int:
        """When to call ``feed`` though nothing came."""
        silent_us = self._patience.due_us
        return min(silent_us, self._acked_us + ACK_US) if self._unacked_bytes else silent_us

    def hello(self, greeting: Greeting) -> bytes:
        """What to send first."""
        have: list[tuple[int, int]] = []
        if self.staged is not None:
            have = [(at, offset) for at, offset in enumerate(self.staged.offsets) if offset]
        wish = self._wish
        fetch = Fetch(CHECKPOINT, wish.group, wish.above, 0, wish.ident, tuple(have))
        return self._ends.frame(FETCH, pack_fetch(greeting, fetch))

    def feed(self, data: bytes, now_us: int) -> bytes:
        """What came; returns what to send.

        Raises Hostile, Declined, Stalled, and OSError of the disk (ENOSPC before anything is
        written if there is no room). Its file is closed then; close the connection.
        """
        try:
            return self._feed(data, now_us)
        except BaseException:
            with suppress(OSError):
                self.close()
            raise

    def close(self) -> None:
        """Close its file; what came stays. Raises OSError."""
        if self.staged is not None:
            self.staged.close()

    def _feed(self, data: bytes, now_us: int) -> bytes:
        for kind, payload in self._frames.feed(data):
            if kind == CHUNK:
                self._take(unpack_chunk(payload), now_us)
            elif kind == MANIFEST:
                self._begin(payload)
                self._patience.moved(len(payload), now_us)
            elif kind == END:
                self._end()
            elif kind == REFUSED:
                raise unpack_refused(payload)
            else:
                unpack_offer(payload)
                raise Hostile("an OFFER that nobody asked for")
        if not self.ended:
            self._patience.check(now_us, "too little came")
        return self._ack(now_us)

    def _begin(self, payload: bytes) -> None:
        try:
            manifest = decode(payload)
        except (Damaged, Foreign) as error:
            raise Hostile(str(error)) from error
        self._check(manifest)
        if self.staged is None:
            reserve_bytes = self._wish.reserve_bytes
            self.staged = Staged.begin(self._files, self._root, manifest, reserve_bytes)
        self._frames.kinds = {CHUNK, END}

    def _check(self, manifest: Manifest) -> None:
        wish = self._wish
        if manifest.cluster != self._ends.cluster or manifest.group != wish.group:
            raise Hostile("a checkpoint of another cluster or group")
        if manifest.content != wish.ident:
            raise Hostile("another checkpoint than was asked for")
        if manifest.frontier <= wish.above:
            raise Hostile("a checkpoint that is not beyond what is applied here")
        if manifest.light:
            raise Hostile("a checkpoint without its state")
        if (largest := max(manifest.size_bytes, manifest.raw_bytes)) > wish.bytes_max:
            raise Hostile(f"a checkpoint of {largest} bytes: too large")

    def _take(self, chunk: Chunk, now_us: int) -> None:
        staged = self.staged
        assert staged is not None
        index = staged.file
        if index < 0 or chunk.file != index or chunk.offset != staged.offsets[index]:
            raise Hostile("a CHUNK that does not go on where the last one ended")
        if chunk.offset + len(chunk.data) > staged.manifest.files[index].size_bytes:
            raise Hostile("a CHUNK beyond the end of its file")
        staged.append(chunk.data)
        self._received_bytes += len(chunk.data)
        self._unacked_bytes += len(chunk.data)
        self._last = (index, staged.offsets[index])
        self._patience.moved(len(chunk.data), now_us)

    def _end(self) -> None:
        if self.staged is None or self.staged.file >= 0:
            raise Hostile("an END before the end")
        self.ended = True
        self._frames.kinds = ()

    def _ack(self, now_us: int) -> bytes:
        whole = self.staged is not None and self.staged.file < 0
        late = now_us - self._acked_us >= ACK_US
        if self._unacked_bytes and (self._unacked_bytes >= ACK_BYTES or late or whole):
            self._unacked_bytes = 0
            self._acked_us = now_us
            return self._ends.frame(ACK, pack_ack(*self._last))
        return b""


class Asker:
    """Asks one question over one connection: what a peer could provide, or some values.

    Use it as a Receiver. Guarantee: of a group's values it takes only those that were asked for,
    in order, without a gap.

    Attributes:
        ended: the answer is complete.
        offer: the answer to OFFER_WANTED and DIGESTS.
        entries: the answer to ENTRIES_WANTED, so far; whoever reads them may take them out.
    """

    def __init__(self, ends: Ends, fetch: Fetch, now_us: int) -> None:
        self.ended = False
        self.offer: Offer | None = None
        self.entries: list[Entry] = []
        self._ends = ends
        self._fetch = fetch
        self._next = fetch.above + 1
        self._patience = Patience(now_us)
        wanted = {OFFER, REFUSED}
        if fetch.what == ENTRIES_WANTED:
            wanted |= {ENTRIES, END}
        self._frames = Frames(ends, wanted)

    @property
    def due_us(self) -> int:
        return self._patience.due_us

    def hello(self, greeting: Greeting) -> bytes:
        """What to send first."""
        return self._ends.frame(FETCH, pack_fetch(greeting, self._fetch))

    def feed(self, data: bytes, now_us: int) -> bytes:
        """What came; there is never anything to send. Raises Hostile, Declined, Stalled."""
        for kind, payload in self._frames.feed(data):
            if kind == ENTRIES:
                self._take(unpack_entries(payload))
                self._patience.moved(len(payload), now_us)
                self._frames.kinds = {ENTRIES, END}
                continue
            if kind == REFUSED:
                raise unpack_refused(payload)
            if kind == OFFER:
                self.offer = unpack_offer(payload)
                if self._fetch.what == ENTRIES_WANTED:
                    raise Hostile("an OFFER instead of ENTRIES")
            self.ended = True
            self._frames.kinds = ()
        if not self.ended:
            self._patience.check(now_us, "too little of an answer came")
        return b""

    def _take(self, entries: list[Entry]) -> None:
        if entries[0].instance != self._next or entries[-1].instance > self._fetch.through:
            raise Hostile("ENTRIES that were not asked for")
        self._next = entries[-1].instance + 1
        self.entries += entries
