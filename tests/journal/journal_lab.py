"""What the journal's tests share: records, and a log that knows what a journal has to remember."""

from dataclasses import dataclass, field
from itertools import pairwise

from phx._core import codec, segment
from phx._core.journal_door import Journal, JournalFailure
from phx._core.memdisk import MemoryDisk

ACCEPT, FLOOR, MARK = 2, 6, 7
HEADER = 4096  # bytes of a segment's header; a record starts at HEADER + lsn - base_lsn
FIRST_LSN = 4096
SEGMENT = 8192  # bytes of a segment here: 4096 for records


def accept(index: int, body: bytes = b"", *, group: int = 1, ballot: int = 1) -> bytes:
    return codec.encode_record(ACCEPT, group, index, ballot, body)


def mark(lsn: int) -> bytes:
    return codec.encode_record(MARK, 0, lsn, 0, b"")


def floor(lsn: int) -> bytes:
    return codec.encode_record(FLOOR, 0, lsn, 0, b"")


def split(records: bytes) -> list[bytes]:
    """The single records of a run of them."""
    found = []
    while records:
        stride = codec.check_record(records)
        assert stride, "not whole records"
        found.append(records[:stride])
        records = records[stride:]
    return found


def replayed(journal: Journal) -> list[tuple[int, bytes]]:
    """(lsn, bytes as they were appended) of everything that the journal handed on at open."""
    return [
        (lsn, codec.encode_record(kind, group, index, ballot, body))
        for lsn, kind, group, index, ballot, body in journal.replayed
    ]


def headers(disk: MemoryDisk) -> dict[str, dict[str, int]]:
    found = {name: segment.parse_header(disk.content(name)) for name in disk.names()}
    return {name: header for name, header in found.items() if header is not None}


def newest(disk: MemoryDisk) -> str:
    """Name of the segment with the highest generation."""
    known = headers(disk)
    return max(known, key=lambda name: known[name]["generation"])


def flip(disk: MemoryDisk, name: str, byte: int, bit: int = 0) -> None:
    content = bytearray(disk.content(name))
    content[byte] ^= 1 << bit
    disk.put(name, bytes(content))


def open_code(disk: MemoryDisk, **options: object) -> str:
    """How opening ends: "" or the code of the failure."""
    try:
        Journal(disk, **options).close()  # type: ignore[arg-type]
    except JournalFailure as failure:
        return failure.code
    return ""


def expect(failure: JournalFailure, *codes: str) -> None:
    assert failure.code in codes, failure


@dataclass
class Log:
    """Drives a journal as an engine does, and knows what has to be there after a crash.

    Every batch begins with a mark of the position that is known durable.
    """

    disk: MemoryDisk
    options: dict[str, int] = field(default_factory=dict)
    journal: Journal | None = None
    records: list[tuple[int, bytes]] = field(default_factory=list)  # all that may be there
    durable: int = FIRST_LSN  # all below was acknowledged
    highest: int = FIRST_LSN  # no position at or above was written whole
    made: bool = False
    count: int = 0

    def open(self, *, create: bool = False) -> None:
        self.journal = Journal(self.disk, create=create, **self.options)  # type: ignore[arg-type]
        self.made = True

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()
        self.journal = None

    def append(self, sizes: list[int], *, urgent: bool = False, then: bytes = b"") -> None:
        assert self.journal is not None
        lsn = self.journal.next_lsn
        batch = [mark(self.journal.durable_lsn)]
        for size in sizes:
            self.count += 1
            batch.append(accept(self.count, self.count.to_bytes(8, "little") * (size // 8)))
        if then:
            batch.append(then)
        before = len(self.records)
        for record in batch:
            # Before it is written: what fails half way may be there too.
            self.records.append((lsn, record))
            lsn += len(record)
        try:
            self.journal.append(b"".join(batch), urgent=urgent)
        except JournalFailure as failure:
            if failure.code in ("full", "poisoned"):
                del self.records[before:]  # nothing was written
            raise
        finally:
            self.highest = max(self.highest, self.journal.next_lsn)

    def sync(self) -> None:
        assert self.journal is not None
        lsn = self.journal.sync()
        if self.records:
            last, record = self.records[-1]
            assert lsn >= last + len(record)
            self.durable = last + len(record)

    def retire(self, lsn: int) -> None:
        """A floor, and when it is durable, the recycling."""
        assert self.journal is not None
        self.append([], urgent=True, then=floor(lsn))
        self.sync()
        self.journal.recycle(lsn)

    def floor(self, cut: int) -> int:
        """The highest floor among the records below ``cut``."""
        known = (
            codec.record_fields(record)[6]
            for lsn, record in self.records
            if lsn < cut and codec.record_fields(record)[2] == FLOOR
        )
        return max(known, default=0)

    def reopen(self) -> None:
        """Open after a crash; then check, and go on from what is there."""
        self.close()
        if self.disk.names() or self.made:
            try:
                self.open()
            except JournalFailure as failure:
                # Power went before the very first segment was whole: a bootstrap is repeated.
                if failure.code != "missing" or self.durable != FIRST_LSN or self.records:
                    raise
                self.open(create=True)
        else:
            self.open(create=True)
        self.check()

    def check(self) -> None:
        assert self.journal is not None
        found = replayed(self.journal)
        cut = found[-1][0] + len(found[-1][1]) if found else FIRST_LSN
        assert cut >= self.durable, "something acknowledged is lost"
        low = self.floor(cut)
        assert found == [(lsn, record) for lsn, record in self.records if low <= lsn < cut]
        assert self.journal.next_lsn >= self.highest, "a position would be used twice"
        self.records = [(lsn, record) for lsn, record in self.records if lsn < cut]
        # What was handed on is durable from now on, whoever synced it or not.
        self.durable = max(self.durable, cut)
        for (lsn, record), (later, _) in pairwise(found):
            assert lsn + len(record) <= later
