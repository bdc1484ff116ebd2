"""A provider and somebody who fetches, with a line between them that can be cut at any byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from checkpoint_lab import CLUSTER, MIB, made, part

from phx.checkpoint.catalog import ROOT, path_of
from phx.checkpoint.files import Files
from phx.checkpoint.manifest import Manifest
from phx.checkpoint.taking import run
from phx.sim.files import MemoryFiles
from phx.transfer.messages import Ends, Entry, Fetch, Greeting, Offer
from phx.transfer.receiver import Receiver, Wish
from phx.transfer.sender import Bucket, Sender
from phx.transfer.staging import Staged, waiting

ME, PEER = 1, 2
MINE, THEIRS = Ends(CLUSTER, ME, PEER), Ends(CLUSTER, PEER, ME)
GREETING = Greeting(3, bytes(range(16)), 77, 64)
FAST = 1 << 40


class Pantry:
    """A Shelf with one checkpoint, and some values."""

    def __init__(self, manifest: Manifest | None, entries: Sequence[Entry] = ()) -> None:
        self.manifest = manifest
        self.values = entries
        self.asked: list[Fetch] = []

    def offer(self, fetch: Fetch) -> Offer:
        self.asked.append(fetch)
        if self.manifest is None:
            return Offer(floor=9)
        return Offer(self.manifest.frontier, self.manifest.content, self.manifest.size_bytes)

    def checkpoint(self, fetch: Fetch) -> tuple[str, Manifest] | None:
        self.asked.append(fetch)
        return None if self.manifest is None else (path_of(ROOT, self.manifest), self.manifest)

    def entries(self, fetch: Fetch) -> Iterable[Sequence[Entry]] | None:
        self.asked.append(fetch)
        good = [one for one in self.values if fetch.above < one.instance <= fetch.through]
        return [good[at : at + 2] for at in range(0, len(good), 2)] if good else None


def provider(sizes: Sequence[int], seed: int = 1, **changed: Any) -> tuple[MemoryFiles, Manifest]:
    """Who has a checkpoint with files of these sizes; equal arguments, equal bytes."""
    files, chance = MemoryFiles(), Random(seed)
    parts = tuple(part(at, [chance.randbytes(size)]) for at, size in enumerate(sizes))
    return files, made(files, parts=parts, **changed)


def sender(files: Files, manifest: Manifest | None, now_us: int = 0, rate: int = FAST) -> Sender:
    return Sender(files, THEIRS, Pantry(manifest), Bucket(rate), now_us)


def wish(manifest: Manifest, **changed: Any) -> Wish:
    fields: dict[str, Any] = {
        "group": manifest.group,
        "ident": manifest.content,
        "above": 7,
        "bytes_max": 1 << 40,
    }
    return Wish(**fields | changed)


def resumed(files: Files, group: int = 7) -> Staged | None:
    found = waiting(files, ROOT).get(group)
    return None if found is None else Staged.resume(files, ROOT, found[0], 0)


def receiver(files: Files, manifest: Manifest, now_us: int = 0, **changed: Any) -> Receiver:
    return Receiver(files, ROOT, MINE, wish(manifest, **changed), now_us, resumed(files))


class Line:
    """Carries bytes between the two until nothing is left to carry, or it is cut.

    Attributes:
        carried: bytes that arrived at the receiver.
    """

    def __init__(self, sending: Sender, receiving: Receiver, now_us: int = 0) -> None:
        self.sending, self.receiving = sending, receiving
        self.now_us = now_us
        self.carried = 0

    def run(self, cut_at: int | None = None, piece: int = 64 << 10) -> bool:
        """Whether it went through. `piece`: so many bytes arrive at once."""
        for_sender, for_receiver = self.receiving.hello(GREETING), bytearray()
        while not (self.sending.done and self.receiving.ended and not for_receiver):
            self.now_us += 1
            said = self.sending.feed(for_sender, self.now_us)
            for_receiver += said
            if not for_receiver and not for_sender and not said:
                self.now_us = max(self.now_us, min(self.sending.due_us, self.receiving.due_us))
            taken = piece if cut_at is None else min(piece, cut_at - self.carried)
            if taken == 0:
                self.sending.close()
                self.receiving.close()
                return False
            arrived = bytes(for_receiver[:taken])
            del for_receiver[:taken]
            self.carried += len(arrived)
            for_sender = self.receiving.feed(arrived, self.now_us)
        self.sending.close()
        return True


def finish_of(receiving: Receiver) -> Manifest:
    assert receiving.staged is not None
    return run(receiving.staged.publish())


def finish(line: Line) -> Manifest:
    return finish_of(line.receiving)


__all__ = ["FAST", "GREETING", "ME", "MIB", "MINE", "PEER", "THEIRS", "Line", "Pantry"]
__all__ += ["finish", "finish_of", "provider", "receiver", "resumed", "sender", "wish"]
