"""What runs under ThreadSanitizer: every thread of phx, with everybody else in its way.

journal   the journal thread writes and syncs; others read records and spans, recycle, make spares,
          and ask for its counters; it is stopped while they do
cluster   three drivers in this process with a store thread each; callers submit from their own
          threads, appliers stand still now and then, segments are settled and used again, nodes
          stop and come back; others come for a checkpoint, and are handed over
cycles    drivers that start, get a little to do, and are closed at any moment

Run by run.py. Values that were acknowledged must be there; races are found by the sanitizer.
"""

import argparse
import errno
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "driver"))

from driver_lab import US, Lab, Member

from phx._core import codec
from phx._core.driver import ERROR_CLOSED, ERROR_TIMED_OUT, Driver, DriverError
from phx._core.journal_door import Journal, JournalFailure, Writer
from phx.transfer.messages import FETCH, OFFER_WANTED, Ends, Fetch, Greeting, pack_fetch

ACCEPT, FLOOR = 2, 6
CATCH_UP_S = 30
SEGMENT = 64 << 10


class Crew:
    """Threads that run until they are told to end; the first error of any of them is raised."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.threads: list[threading.Thread] = []
        self.problem: BaseException | None = None

    def add(self, name: str, step: Callable[[], object]) -> None:
        def work() -> None:
            try:
                while not self.over.is_set():
                    step()
            except BaseException as problem:
                self.problem = self.problem or problem
                self.over.set()

        self.threads.append(threading.Thread(target=work, name=name))
        self.threads[-1].start()

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive(), f"{thread.name} hangs"
        if self.problem is not None:
            raise self.problem


@contextmanager
def crew() -> Iterator[Crew]:
    made = Crew()
    try:
        yield made
    finally:
        made.end()


# --- the journal


class Life:
    """One life of a journal: what each thread does to it, again and again."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.chance = chance
        self.journal = Journal(
            str(folder),
            create=not folder.exists(),
            segment_bytes=SEGMENT,
            journal_bytes_max=16 * SEGMENT,
            body_bytes_max=4096,
        )
        self.writer = Writer(self.journal)
        self.first = self.end = self.journal.next_lsn
        self.positions = [self.first]
        self.pushing = threading.Lock()  # the writer is fed by one thread at a time

    def push(self) -> None:
        if self.writer.queued_bytes > 4 * SEGMENT or self.writer.full:
            time.sleep(0.001)
            return
        with self.pushing:
            records = b""
            for _ in range(self.chance.randrange(1, 20)):
                lsn = self.end + len(records)
                body = bytes(self.chance.randrange(1500))
                records += codec.encode_record(ACCEPT, 1, lsn, 1, body)
                self.positions.append(lsn)
            done = False
            if self.chance.random() < 0.2 and self.writer.idle:
                done = bool(self.writer.push(self.end, records, inline=True))
            if not done:
                self.writer.push(self.end, records, sync=self.chance.random() < 0.7)
            self.end += len(records)

    def read(self) -> None:
        lsn = self.positions[self.chance.randrange(len(self.positions))]
        try:
            if lsn != self.first:  # which may be a floor
                assert self.journal.read(lsn)[2] == lsn
            self.journal.read_span(lsn, 8192)
        except JournalFailure as failure:
            if failure.code not in ("gone", "not yet"):
                raise

    def keep_house(self) -> None:
        floor = max(self.first, self.writer.durable_lsn - 4 * SEGMENT)
        record = codec.encode_record(FLOOR, 0, floor, 0, b"")
        with self.pushing:
            self.writer.push(self.end, record, urgent=True)
            self.end += len(record)
        self.journal.recycle(floor)
        if self.journal.wants_spare():
            self.journal.prepare_spare()
        self.writer.retry()
        time.sleep(0.005)

    def look(self) -> None:
        self.journal.counters()
        self.journal.pressure()
        self.journal.segments()
        _ = self.journal.durable_lsn, self.journal.poisoned
        _ = self.writer.notices, self.writer.cpu_ns, self.writer.error
        time.sleep(0.001)


def journal_round(folder: Path, chance: random.Random, seconds: float) -> int:
    """One life of a journal; how many records it wrote."""
    life = Life(folder, chance)
    with crew() as hands:
        hands.add("push", life.push)
        for number in range(2):
            hands.add(f"read{number}", life.read)
        hands.add("house", life.keep_house)
        hands.add("look", life.look)
        hands.over.wait(seconds)
        if chance.random() < 0.5:
            life.writer.stop()  # with everybody still at it
        hands.end()
    life.writer.stop()
    assert life.writer.error is None, life.writer.error
    life.journal.close()
    return len(life.positions)


def journals(folder: Path, chance: random.Random, seconds: float) -> str:
    until = time.monotonic() + seconds
    lives = records = 0
    while time.monotonic() < until:
        left = until - time.monotonic()
        records += journal_round(folder, chance, min(left, 0.2 + chance.random() * 2))
        lives += 1
    return f"{lives} journals, {records} records"


# --- a cluster


def ignoring_closed(step: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        try:
            step()
        except DriverError as problem:
            if problem.code != ERROR_CLOSED:
                raise
            time.sleep(0.002)
        except OSError as problem:
            if problem.errno != errno.EBADF:  # closed between fileno() and select()
                raise
            time.sleep(0.002)

    return run


def applier(member: Member, chance: random.Random) -> Callable[[], None]:
    def step() -> None:
        if chance.random() < 0.01:
            time.sleep(0.3)  # a state machine that stands still
        member.pump(0.005, bytes_max=chance.choice((1 << 12, 1 << 18)))

    return step


def caller(member: Member, chance: random.Random, counts: list[int]) -> Callable[[], None]:
    def step() -> None:
        values = [bytes(chance.choice((10, 100, 3000))) for _ in range(chance.randrange(1, 30))]
        try:
            member.submit(values, chance.choice(list(member.groups)), 0.5 + chance.random() * 3)
            counts[0] += len(values)
        except DriverError as problem:
            if problem.code == ERROR_CLOSED:
                raise
            time.sleep(0.01)  # full
        time.sleep(chance.random() * 0.01)

    return step


def watcher(member: Member, chance: random.Random) -> Callable[[], None]:
    def step() -> None:
        driver = member.driver
        driver.status()
        driver.group_statuses()
        group = chance.choice(list(member.groups))
        last = int(driver.group_status(group)["chosen_through"])
        if last:
            driver.read(group, chance.randrange(1, last + 1))
        if chance.random() < 0.1:
            driver.settle_now()
        time.sleep(0.005)

    return step


def guest(lab: Lab, member: Member, counts: list[int]) -> Callable[[], None]:
    """Another node comes for a checkpoint; who is handed over is shown the door."""

    def step() -> None:
        other = lab.members[member.node % 3 + 1]
        greeting = Greeting(other.driver.incarnation, other.store_id)
        ends = Ends(member.cluster, other.node, member.node)
        said = ends.frame(FETCH, pack_fetch(greeting, Fetch(OFFER_WANTED, 0)))
        with suppress(OSError), socket.create_connection(("127.0.0.1", member.port), 5) as line:
            line.sendall(said)
            for descriptor, _, _ in member.driver.handed():
                os.close(descriptor)
                counts[1] += 1
        time.sleep(0.002)

    return step


def cluster(folder: Path, chance: random.Random, seconds: float) -> str:
    lab = Lab(
        folder,
        3,
        groups=4,
        segment_bytes=1 << 20,
        journal_bytes_max=64 << 20,
        settle_bytes=2 << 20,
        cache_bytes_max=256 << 10,
        delivery_bytes_max=128 << 10,
        window_bytes=1 << 20,
    )
    until = time.monotonic() + seconds
    counts, restarts = [0, 0], 0
    lab.start()
    hands: dict[int, Crew] = {}

    def man(node: int) -> None:
        member = lab.members[node]
        hands[node] = Crew()
        for name, made in (
            ("apply", applier(member, chance)),
            ("call", caller(member, chance, counts)),
            ("watch", watcher(member, chance)),
            ("guest", guest(lab, member, counts)),
        ):
            hands[node].add(f"{name}{node}", ignoring_closed(made))

    try:
        for node in lab.members:
            man(node)
        while time.monotonic() < until and not any(one.over.is_set() for one in hands.values()):
            time.sleep(min(0.2 + chance.random() * 1.5, max(0.0, until - time.monotonic())))
            victim = chance.choice(list(lab.members))
            if chance.random() < 0.3:
                lab.members[victim].driver.resign()
            lab.stop(victim)  # its callers and its applier are still at it
            hands.pop(victim).end()
            lab.start(victim)
            man(victim)
            restarts += 1
        for one in hands.values():
            one.end()
        hands.clear()
        lab.until(lambda: all(lab.same(group) for group in range(4)), CATCH_UP_S)
    finally:
        for one in hands.values():
            one.over.set()
        lab.stop()
    applied = sum(len(log) for log in lab.members[1].values.values())
    return (
        f"{restarts} restarts, {counts[0]} values submitted, {applied} applied at node 1 since "
        f"then, {counts[1]} connections handed over"
    )


# --- starting and closing


def stop_soon(driver: Driver, timeout_us: int) -> None:
    """A stop that may be cut short: it is repeated later, or the driver is dropped as it is."""
    try:
        driver.stop(timeout_us)
    except DriverError as problem:
        if problem.code != ERROR_TIMED_OUT:
            raise


def cycle(folder: Path, chance: random.Random, created: list[bool]) -> None:
    driver = Driver(
        cluster=1,
        node=1,
        store_id=bytes(16),
        members=[(1, "127.0.0.1", 0)],
        bind=("127.0.0.1", 0),
        groups=range(2),
        settled={},
        journal_dir=str(folder / "cycles"),
        create=not created[0],
        options={
            "segment_bytes": 1 << 20,
            "journal_bytes_max": 16 << 20,
            "value_bytes_max": 1 << 16,
        },
    )
    if chance.random() < 0.1:
        return  # never started
    driver.start()
    created[0] = True

    def submit() -> None:
        driver.submit(chance.randrange(2), 0, [bytes(50)] * 20, Driver.now_us() + US)
        time.sleep(0.001)

    def take() -> None:
        driver.clear_wake()
        for batch in driver.take(1 << 20):
            driver.applied(batch.group, batch.last)
        driver.events()
        time.sleep(0.001)

    with crew() as hands:
        hands.add("submit", ignoring_closed(submit))
        hands.add("take", ignoring_closed(take))
        hands.add("store", ignoring_closed(lambda: driver.store_work(1000)))
        hands.add("status", ignoring_closed(driver.status))
        time.sleep(chance.random() * 0.15)
        if chance.random() < 0.9:
            stop_soon(driver, chance.choice((0, 1000, 5 * US)))
    if chance.random() < 0.9:
        driver.stop(20 * US)


def cycles(folder: Path, chance: random.Random, seconds: float) -> str:
    until = time.monotonic() + seconds
    count, created = 0, [False]
    while time.monotonic() < until:
        cycle(folder, chance, created)
        count += 1
    return f"{count} drivers started and closed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--part", choices=("journal", "cluster", "cycles"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    parts = {"journal": journals, "cluster": cluster, "cycles": cycles}
    shares = {"journal": 0.25, "cluster": 0.5, "cycles": 0.25}
    for name, part in parts.items():
        if options.part in (None, name):
            share = 1.0 if options.part else shares[name]
            folder = options.folder / name
            if name != "journal":
                folder.mkdir(exist_ok=True)
            start = time.monotonic()
            found = part(folder, random.Random(options.seed), options.seconds * share)
            print(f"{name}: {found}, {time.monotonic() - start:.0f} s", flush=True)
    left = codec.allocations_live()
    assert left == 0, f"{left} native allocations are left"


if __name__ == "__main__":
    main()
