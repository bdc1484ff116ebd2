"""What the tests of the store share: a small journal to settle from, and a store that is closed."""

import random
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from phx._core.codec import encode_record
from phx._core.journal_door import Journal
from phx._core.memdisk import MemoryDisk
from phx._core.plan import SettlePlan
from phx._core.settler import plan_over
from phx.store import Store

ACCEPT = 2
CHOSEN = 3
CLUSTER = 0x1234
NODE = 5
KIB = 1 << 10
MIB = 1 << 20
SMALL, MIDDLE, LARGE = (size - 16 for size in (64 * KIB, 512 * KIB, 8 * MIB))


class Log:
    """A journal on a simulated disk, and where every record of it is."""

    def __init__(self, segment_bytes: int = MIB, body_bytes_max: int = 256 * KIB) -> None:
        self.segment_bytes = segment_bytes
        self.journal = Journal(
            MemoryDisk(), create=True, segment_bytes=segment_bytes, body_bytes_max=body_bytes_max
        )
        self.lsns: dict[tuple[int, int], int] = {}

    def add(self, entries: Iterable[tuple[int, int, bytes]], kind: int = ACCEPT) -> None:
        """Write a record for each (group, instance, body), in this order."""
        batch: list[bytes] = []
        size = 0
        for group, instance, body in entries:
            record = encode_record(kind, group, instance, 1, body)
            if size + len(record) > self.segment_bytes // 4:
                self._append(batch)
                batch, size = [], 0
            batch.append(record)
            self.lsns[group, instance] = self.journal.next_lsn + size
            size += len(record)
        self._append(batch)

    def _append(self, batch: list[bytes]) -> None:
        if not batch:
            return
        while self.journal.prepare_spare():
            pass
        size = sum(map(len, batch))
        expected = self.journal.next_lsn
        assert self.journal.append(b"".join(batch)) == expected
        assert self.journal.next_lsn == expected + size
        self.journal.sync()

    def plan(self, wanted: Iterable[tuple[int, int]] | None = None) -> SettlePlan:
        """A plan for these (group, instance), or for everything that was written."""
        keys = sorted(self.lsns if wanted is None else wanted)
        return plan_over(self.journal, [(*key, self.lsns[key]) for key in keys])


def body_of(group: int, instance: int, size: int = 130) -> bytes:
    """Bytes that tell which instance they belong to, all the way through."""
    return random.Random(group << 40 | instance).randbytes(size)


def entries_of(data: bytes) -> list[tuple[int, bytes]]:
    """Parse the `entries` format, strictly."""
    found = []
    at = 0
    while at < len(data):
        instance, size, zero = struct.unpack_from("<QII", data, at)
        assert zero == 0
        end = at + 16 + size
        found.append((instance, data[at + 16 : end]))
        at = end + -end % 8
        assert at <= len(data)
        assert not any(data[end:at])
    return found


@contextmanager
def opened(path: Path, **options: object) -> Iterator[Store]:
    store = Store.open(path, cluster=CLUSTER, node=NODE, **options)
    try:
        yield store
    finally:
        store.close()


def in_thread(call: Callable[[], object]) -> object:
    """What the call gives or raises in another thread."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return outcome[0]


def block(groups, first, last, size=130):
    """Entries of all groups, instance by instance, as a busy node writes them."""
    return [
        (group, instance, body_of(group, instance, size))
        for instance in range(first, last + 1)
        for group in groups
    ]


def settled(path, groups=(1, 2), last=50):
    """Make a store of these groups' first instances, settled together; the log they came from."""
    log = Log()
    log.add(block(groups, 1, last))
    with opened(path, create=True) as store:
        store.settle(log.plan())
    return log


def settled_singly(path, last):
    """The same of group 1, in a chunk for each instance."""
    log = Log()
    with opened(path, create=True) as store:
        for n in range(1, last + 1):
            log.add(block([1], n, n))
            store.settle(log.plan())
    return log


def read_all(store, group, first=1, step=256 * KIB):
    found = []
    while data := store.read(group, first, step):
        found += entries_of(data)
        first = found[-1][0] + 1
    return found


def chunk_sizes(store):
    return [chunk[1] for chunk in store._index.chunk_list()]


def flip(path, pattern, at=0):
    """Flip a bit of the only place of the file where `pattern` stands."""
    with open(path / "data.mdb", "r+b") as file:
        content = file.read()
        where = content.index(pattern)
        assert content.find(pattern, where + 1) == -1
        file.seek(where + at)
        file.write(bytes([content[where + at] ^ 1]))
