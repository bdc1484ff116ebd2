"""What a trace must show about bytes: written as emitted, durable before it is said.

Nothing here believes the engine or the journal. That a record is durable is concluded from the
calls of the disk alone: it was written to a file whose header says where, and a sync of that file
that began later returned without an error. What a frame exposes is read from its messages.
"""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from phx._core.codec import crc32c, salt
from phx.sim.wire_text import (
    ACCEPT,
    CHOSEN,
    ENTRY_CHOSEN,
    PROMISE,
    RECORD_HEADER,
    Message,
    Record,
    align8,
    ballot_text,
)
from phx.testing.trace_file import Disk, Turn

SEGMENT_MAGIC: Final = int.from_bytes(b"PHX1SEG\0", "little")
SEGMENT_HEAD = struct.Struct("<QIIQ16sQQ")  # … generation, base_lsn: segment.pxd
SEGMENT_HEADER_BYTES: Final = 4096


class Broken(Exception):
    """What must hold does not; `rule` names it."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


@dataclass(slots=True)
class File:
    """A file of the journal, as far as the trace shows it."""

    base: int | None = None  # lsn of the byte at 4096; None: not a segment in use
    generation: int = 0
    header_durable: bool = False
    failed: bool = False  # a sync failed: nothing unsynced of it is believed any more
    written: list[tuple[int, int]] = field(default_factory=list)
    syncing: tuple[int, bool] | None = None  # so many of them, and the header, when it began


class Journal:
    """Which positions are durable, from the calls of the disk."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.emitted: deque[tuple[int, bytes]] = deque()  # not yet written
        self.ranges: dict[int, int] = {}  # durable, beyond a gap
        self.durable = 0
        self.written = 0  # given to the system, without a gap
        self.started = False
        self.writes = 0

    def start(self, next_lsn: int) -> None:
        self.durable = self.written = next_lsn
        self.started = True

    def emit(self, lsn: int, data: bytes) -> None:
        if data:
            self.emitted.append((lsn, data))

    def opened(self, d: Disk) -> None:
        if d.result >= 0:
            self.files[d.file] = File()

    def wrote(self, d: Disk) -> None:
        file = self.files.setdefault(d.file, File())
        if d.offset == 0:
            self._header(file, d)
        elif file.base is not None and d.offset >= SEGMENT_HEADER_BYTES:
            self._records(file, d, file.base + d.offset - SEGMENT_HEADER_BYTES)

    def _header(self, file: File, d: Disk) -> None:
        file.base, file.header_durable, file.written = None, False, []
        if d.result != d.count or len(d.body) < SEGMENT_HEAD.size:
            return
        magic, _, _, _, _, generation, base = SEGMENT_HEAD.unpack_from(d.body)
        if magic != SEGMENT_MAGIC or generation == 0:
            return
        if self.started and base != self.durable:
            raise Broken(
                "journal",
                f"a segment begins at {base} while everything up to {self.durable} is durable",
            )
        file.base, file.generation = base, generation

    def _records(self, file: File, d: Disk, first: int) -> None:
        # Before the start the journal makes durable what it has read; nothing here rests on that.
        if d.result != d.count or not self.started:
            return
        if not file.header_durable:
            raise Broken("journal", f"records at {first} before the segment's header is durable")
        data = self._take(first, d.count)
        if crc32c(salted(data, salt(file.generation))) != d.crc:
            raise Broken("journal", f"what was written at {first} is not what was emitted")
        self.writes += 1
        file.written.append((first, first + d.count))
        self.written = first + d.count

    def _take(self, first: int, count: int) -> bytes:
        """Emitted bytes, each once, in order."""
        parts = []
        while count:
            if not self.emitted or self.emitted[0][0] != first:
                raise Broken("journal", f"{count} bytes at {first} were not emitted by the engine")
            lsn, data = self.emitted.popleft()
            if len(data) > count:
                self.emitted.appendleft((lsn + count, data[count:]))
                data = data[:count]
            parts.append(data)
            first += len(data)
            count -= len(data)
        return b"".join(parts)

    def syncing(self, d: Disk) -> None:
        file = self.files.setdefault(d.file, File())
        file.syncing = len(file.written), file.base is not None

    def synced(self, d: Disk) -> None:
        file = self.files.setdefault(d.file, File())
        if d.result < 0:
            file.failed = True
        if file.syncing is None or file.failed:
            return
        count, header = file.syncing
        file.syncing = None
        file.header_durable = file.header_durable or header
        self.ranges.update(file.written[:count])
        del file.written[:count]
        while (end := self.ranges.pop(self.durable, 0)) != 0:
            self.durable = end


def salted(data: bytes, word: int) -> bytes:
    """Records as they stand in a segment: the checksum of each xored with the salt."""
    out = bytearray(data)
    at = 0
    while at < len(out):
        crc, nbytes = struct.unpack_from("<II", out, at)
        struct.pack_into("<I", out, at, crc ^ word)
        at += align8(RECORD_HEADER.size + nbytes)
    return bytes(out)


# --- what a message exposes


@dataclass(frozen=True, slots=True)
class Need:
    """What must be durable before a message may leave."""

    # "promise": of at least `ballot`; "accepted": first .. last in exactly `ballot`;
    # "acknowledged": so, or learned; "told": the same, of a relaxed group: written will do
    what: str
    group: int
    ballot: int
    first: int
    last: int
    message: str


def needs(m: Message, chosen_through: int) -> Iterator[Need]:
    """`chosen_through`: what the sender knew to be chosen in that group when it made it."""
    line = m.line()
    if m.name in ("Prepare", "Promise", "Accept", "Accepted"):
        yield Need("promise", m.group, m.ballot, 0, 0, line)
    if m.name == "Refuse":
        yield Need("promise", m.group, m.promised, 0, 0, line)
    if m.name == "Heartbeat":
        for group, number in m.claims():
            yield Need("promise", group, number, 0, 0, line)
    if m.name == "Accepted":
        first = max(m.first, chosen_through + 1)
        yield Need("acknowledged", m.group, m.ballot, first, m.through, line)
    if m.name == "Promise":
        for entry in m.entries():
            if not entry.flags & ENTRY_CHOSEN:
                yield Need("accepted", m.group, entry.ballot, entry.instance, entry.instance, line)
    if m.name == "Prepare":
        for first, last, number in struct.iter_unpack("<QQQ", m.rest[: 24 * m.holds]):
            first = max(first, chosen_through + 1)
            yield Need("accepted", m.group, number, first, last, line)


@dataclass(slots=True)
class Made:
    """A frame that the engine made."""

    peer: int  # 0: all
    after: int
    needs: list[Need]


class Exposure:
    """U5: whatever exposes a promise or an acceptance leaves after its record is durable.

    What a relaxed group (docs/design/durability.md) acknowledges need only be written; its promises
    are durable like all others.
    """

    def __init__(self) -> None:
        self.chosen: dict[int, int] = defaultdict(int)
        self.frames: dict[tuple[int, int], list[Made]] = defaultdict(list)
        self.waiting: deque[Record] = deque()
        self.unwritten: deque[Record] = deque()
        self.written: set[tuple[int, int, int]] = set()  # acceptances; ballot 0: learned
        self.relaxed: set[int] = set()
        self.promise: dict[int, int] = defaultdict(int)  # durable
        self.accepted: set[tuple[int, int, int]] = set()
        self.learned: set[tuple[int, int]] = set()
        self.exposed: dict[int, int] = defaultdict(int)  # highest ballot that left as promised
        self.bodies: dict[tuple[int, int, int], int] = {}  # durable acceptances: hash of the value
        self.checked = 0
        self.sent = 0
        self.left: set[tuple[int, int]] = set()  # (crc, bytes) of the frames that were sent
        self.held = 0

    def known(self, group: int, through: int) -> None:
        """Everything up to `through` is chosen, and will not be announced."""
        self.chosen[group] = max(self.chosen[group], through)

    def turn(self, turn: Turn) -> int:
        """Note what a turn made; how many records."""
        for group, _, last in turn.effects["chosen"]:
            self.known(group, last)
        made = turn.records()
        self.waiting.extend(made)
        self.unwritten.extend(made)
        for peer, after, frame, messages in turn.messages():
            found = [one for m in messages for one in needs(m, self.chosen[m.group])]
            found = [
                replace(one, what="told")
                if one.what == "acknowledged" and one.group in self.relaxed
                else one
                for one in found
            ]
            self.frames[crc32c(frame), len(frame)].append(Made(peer, after, found))
        return len(made)

    def wrote(self, lsn: int) -> None:
        waiting = self.unwritten
        while waiting and waiting[0].lsn + len(waiting[0].raw) <= lsn:
            record = waiting.popleft()
            if record.kind == ACCEPT:
                self.written.add((record.group, record.index, record.ballot))
            elif record.kind == CHOSEN:
                self.written.add((record.group, record.index, 0))

    def durable(self, lsn: int) -> None:
        waiting = self.waiting
        while waiting and waiting[0].lsn + len(waiting[0].raw) <= lsn:
            record = waiting.popleft()
            if record.kind in (PROMISE, ACCEPT):
                self.promise[record.group] = max(self.promise[record.group], record.ballot)
            if record.kind == ACCEPT:
                key = (record.group, record.index, record.ballot)
                self.accepted.add(key)
                self.bodies[key] = hash(record.body)
            elif record.kind == CHOSEN:
                self.learned.add((record.group, record.index))

    def sending(self, peer: int, crc: int, size: int, after: int, durable: int) -> None:
        """The first byte of this frame may leave now."""
        if after > durable:
            raise Broken(
                "after", f"a frame to {peer} leaves at {durable}, and its after is {after}"
            )
        self.sent += 1
        self.left.add((crc, size))
        self.held += after > 0
        made = [
            one
            for one in self.frames.get((crc, size), ())
            if one.after == after and one.peer in (0, peer)
        ]
        if not made:
            raise Broken(
                "frame",
                f"{size} bytes with crc {crc:08x} and after {after} go to {peer}, and the engine"
                " made no such frame",
            )
        # Two frames with one checksum and one length: a chance of 2**-32; one of them is it.
        problem = ""
        for one in made:
            problem = next((text for need in one.needs if (text := self.lacks(need))), "")
            if not problem:
                self.checked += len(one.needs)
                for need in one.needs:
                    if need.what == "promise":
                        self.exposed[need.group] = max(self.exposed[need.group], need.ballot)
                return
        raise Broken("U5", problem)

    def lacks(self, need: Need) -> str:
        """What of it is not durable; "" if all is."""
        promise = self.promise[need.group]
        if need.what == "promise":
            if promise >= need.ballot:
                return ""
            return (
                f"{need.message} leaves, and the promise that is durable in group {need.group}"
                f" is {ballot_text(promise)}"
            )
        for instance in range(need.first, need.last + 1):
            if (need.group, instance, need.ballot) in self.accepted:
                continue
            if need.what == "acknowledged" and (need.group, instance) in self.learned:
                continue
            if need.what == "told":
                place = need.group, instance
                if (*place, need.ballot) in self.written or (*place, 0) in self.written:
                    continue
                return f"{need.message} leaves, and instance {instance} is not written"
            return f"{need.message} leaves, and instance {instance} is not durable in that ballot"
        return ""
