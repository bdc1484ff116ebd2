"""Traces made by hand: of a node that does everything right, unless a test lets it do otherwise."""

import struct
from collections.abc import Sequence
from pathlib import Path

from phx._core.codec import crc32c, encode_frame, encode_record, salt
from phx.sim.wire_text import ACCEPT, PROMISE, ballot, value
from phx.testing.trace_checks import SEGMENT_HEAD, SEGMENT_MAGIC, salted
from phx.testing.trace_file import (
    BEGIN,
    CHOSEN,
    DISK,
    FRAME,
    INPUT,
    MAGIC,
    OPTIONS,
    SENDING,
    SENT,
    TURN,
    VERSION,
    Kind,
    event,
)

CLUSTER = 7
START_LSN = 8192
POLL, JOURNAL = 1, 2  # threads
FILE = 5
B1, B2, B3 = (ballot(counter, 1) for counter in (1, 2, 3))
X, Y = value(b"x"), value(b"y")


def promise(number: int, group: int = 0) -> bytes:
    return encode_record(PROMISE, group, 0, number, b"")


def accept(instance: int, number: int, body: bytes = X, group: int = 0) -> bytes:
    return encode_record(ACCEPT, group, instance, number, body)


def frame(payload: bytes, source: int = 2, dest: int = 1) -> bytes:
    return encode_frame(2, source, dest, CLUSTER, payload)


class Scribe:
    """Writes events; everything goes to file FILE, whose segment begins where the stream does."""

    def __init__(
        self,
        node: int = 2,
        members: Sequence[int] = (1, 2, 3),
        *,
        incarnation: int = 1,
        settled: int = 0,
        replayed: Sequence[bytes] = (),
    ) -> None:
        self.events: list[bytes] = []
        self.lsn = self.written = self.synced = START_LSN
        self.unwritten = b""
        self.generation, self.base = 3, START_LSN
        self.add(Kind.BEGIN, BEGIN.pack(MAGIC, VERSION, node, CLUSTER, bytes([node]) * 16))
        sizes = (1 << 20, 1 << 20, 1 << 20, 64, 4096, 100_000, 800_000, 100_000, 300_000)
        padded = [*members, *[0] * (16 - len(members))]
        self.add(Kind.OPTIONS, OPTIONS.pack(1, *sizes, 1 << 20, 1 << 16, 1, len(members), *padded))
        self.told(Kind.GROUP, group=0, first=settled)
        for one in replayed:
            self.told(Kind.REPLAYED, first=4096, body=one)
        self.disk(Kind.OPENED, FILE, result=FILE)
        wall = struct.pack("<Q", 1)
        self.told(Kind.START, first=START_LSN, second=1, result=incarnation, body=wall)

    def add(self, kind: Kind, data: bytes, thread: int = POLL) -> None:
        self.events.append(event(kind, data, thread))

    def told(
        self, kind: Kind, *, group: int = 0, peer: int = 0, first: int = 0, second: int = 0,
        result: int = 0, body: bytes = b"",
    ) -> None:  # fmt: skip
        self.add(kind, INPUT.pack(group, peer, first, second, result, len(body)) + body)

    # --- the engine

    def turn(
        self, records: bytes = b"", frames: Sequence[tuple[int, int, bytes]] = (),
        chosen: Sequence[tuple[int, int, int]] = (),
    ) -> None:  # fmt: skip
        """`frames`: (peer, after, frame)."""
        data = TURN.pack(
            self.lsn, self.lsn + len(records), 0, 0, 0, 1, len(records), len(frames), len(chosen),
            0, 0, 0, 0,
        )  # fmt: skip
        self.lsn += len(records)
        self.unwritten += records
        data += records
        for peer, after, one in frames:
            data += FRAME.pack(peer, len(one), after) + one + bytes(-len(one) % 8)
        for group, first, last in chosen:
            data += CHOSEN.pack(group, 0, first, last)
        self.add(Kind.TURN, data)

    def durable(self) -> None:
        self.told(Kind.DURABLE, first=self.lsn)

    # --- the disk

    def disk(
        self, kind: Kind, file: int, *, offset: int = 0, count: int = 0, result: int = 0,
        crc: int = 0, body: bytes = b"", thread: int = JOURNAL,
    ) -> None:  # fmt: skip
        self.add(kind, DISK.pack(file, offset, count, result, crc, len(body)) + body, thread)

    def header(self, file: int = FILE) -> None:
        """Of a segment that begins where nothing is written yet."""
        head = SEGMENT_HEAD.pack(
            SEGMENT_MAGIC, 1, 2, CLUSTER, bytes(16), self.generation, self.written
        )
        self.base = self.written
        self.disk(Kind.WROTE, file, count=4096, result=4096, body=head.ljust(96, b"\0"))

    def write(self, file: int = FILE, *, damage: bool = False) -> None:
        """Everything that was emitted."""
        data = salted(self.unwritten, salt(self.generation))
        if damage:
            data = data[:-1] + b"\xff"
        self.disk(
            Kind.WROTE, file, offset=4096 + self.written - self.base, count=len(data),
            result=len(data), crc=crc32c(data),
        )  # fmt: skip
        self.written += len(data)
        self.unwritten = b""

    def sync(self, file: int = FILE, result: int = 0) -> None:
        self.disk(Kind.SYNCING, file)
        self.disk(Kind.SYNCED, file, result=result)

    def ready(self) -> None:
        """The first segment, with a durable header."""
        self.header()
        self.sync()

    # --- the world

    def send(self, one: bytes, after: int = 0, peer: int = 1) -> None:
        self.add(Kind.SENDING, SENDING.pack(peer, 1) + SENT.pack(crc32c(one), len(one), after))

    def exchange(self, records: bytes, one: bytes) -> None:
        """Emit these records and a frame that waits for them; make them durable; send it."""
        self.turn(records, [(1, self.lsn + len(records), one)])
        self.write()
        self.sync()
        self.durable()
        self.send(one, self.lsn)

    def save(self, path: Path) -> Path:
        path.write_bytes(b"".join(self.events))
        return path
