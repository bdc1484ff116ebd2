"""Nodes without the Python API on top: drivers, what they deliver, and a store made of a dict."""

import select
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phx._core.driver import ERROR_CLOSED, Driver, DriverError
from phx._core.member_table import MemberTable
from phx._core.peer_table import PeerTable

US = 1_000_000
CLUSTER = 0xC0FFEE
FETCH_BYTES = 1 << 20


def entries(first: int, bodies: Sequence[bytes]) -> bytes:
    """Bodies of consecutive instances in the form that ``supply`` and ``loaded`` take."""
    parts = []
    for instance, body in enumerate(bodies, first):
        parts += [struct.pack("<QII", instance, len(body), 0), body, bytes(-len(body) % 8)]
    return b"".join(parts)


class Store(threading.Thread):
    """What the store thread does, with a dict for LMDB."""

    def __init__(
        self, driver: Any, kept: dict[int, list[bytes]], floors: dict[int, int] | None = None
    ) -> None:
        super().__init__(name="store")
        self.driver = driver
        self.kept = kept  # of each group: the bodies of instances 1, 2, …
        self.floors = floors or {}  # and from where on they would still be there
        self.work: list[str] = []
        self.hold = threading.Event()  # cleared: settle plans wait
        self.hold.set()
        self.problem: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while self.serve():
                pass
        except DriverError as problem:
            if problem.code != ERROR_CLOSED:
                self.problem = problem
        except BaseException as problem:
            self.problem = problem

    def serve(self) -> bool:
        work = self.driver.store_work(US)
        match work:
            case None:
                return True
            case ("settle", plan, upto_lsn):
                self.work.append("settle")
                self.hold.wait(10)
                for group, instance, _ in plan.entries():
                    body = self.driver.read(group, instance)
                    assert isinstance(body, bytes), (group, instance, body)
                    kept = self.kept.setdefault(group, [])
                    assert instance == len(kept) + 1
                    kept.append(body)
                self.driver.settled(plan, upto_lsn)
            case ("fetch", group, peer, first, last):
                self.work.append("fetch")
                self.driver.supply(group, peer, first, self.stretch(group, first, last))
            case ("load", group, first, last):
                self.work.append("load")
                self.driver.loaded(group, first, self.stretch(group, first, last))
            case ("closing",):
                return False
        return True

    def stretch(self, group: int, first: int, last: int) -> bytes:
        """As many of these instances as FETCH_BYTES take, and at least one, as phx.node.keeper."""
        found, size = [], 0
        if first < self.floors.get(group, 1):
            return b""
        for body in self.kept.get(group, [])[first - 1 : last]:
            found.append(body)
            size += len(body)
            if size >= FETCH_BYTES:
                break
        return entries(first, found)


class Member:
    """One driver, what it has delivered so far, and its store."""

    def __init__(self, node: int, folder: Path, nodes: Sequence[int], **options: int) -> None:
        self.node = node
        self.folder = folder
        self.nodes = nodes
        self.groups: Sequence[int] = range(options.pop("groups", 1))
        self.port = 0
        self.cluster = CLUSTER
        self.store_id = bytes([node]) * 16
        self.options = options
        self.kept: dict[int, list[bytes]] = {}
        self.starts: dict[int, int] = {}
        self.floors: dict[int, int] = {}
        self.known: list[tuple[int, int, bytes, int, int, bool]] = []  # of its store
        self.others: Sequence[int] = ()  # peers from the start on, beside the nodes
        self.trace_path: str | None = None
        self.created = False
        self.driver: Driver
        self.peers: PeerTable
        self.table: MemberTable
        self.store: Store
        self.lines: list[str] = []
        self.of_store: Callable[[Driver], Any] = lambda driver: driver  # what the store sees of it

    def start(self) -> None:
        self.values: dict[int, list[bytes]] = {group: [] for group in self.groups}
        self.instances: dict[int, list[int]] = {group: [] for group in self.groups}
        self.own: dict[int, set[int]] = {group: set() for group in self.groups}
        self.events: list[tuple[int, int, int, int, int, int]] = []
        self.notes: list[tuple[int, bytes, int, int, bool, bool]] = []
        # Of each batch: group, last instance, where the newest members of the group began.
        self.told_at: list[tuple[int, int, int]] = []
        self.driver = Driver(
            cluster=self.cluster,
            node=self.node,
            store_id=self.store_id,
            members=[(node, "127.0.0.1", 0) for node in self.nodes],
            peers=[(node, "127.0.0.1", 0) for node in self.others],
            bind=("127.0.0.1", self.port),
            groups=self.groups,
            settled={group: len(bodies) for group, bodies in self.kept.items()},
            journal_dir=str(self.folder / f"node{self.node}"),
            create=not self.created,
            options=self.options,
            starts=self.starts,
            floors=self.floors,
            trace_path=self.trace_path,
        )
        self.table = MemberTable(self.driver)
        for said in self.known:
            self.table.known(*said)
        self.driver.start()
        self.peers = PeerTable(self.driver)
        self.created = True
        self.port = self.driver.port
        self.store = Store(self.of_store(self.driver), self.kept, self.floors)

    def stop(self) -> None:
        if hasattr(self, "store"):
            self.driver.stop(10 * US)
            self.store.hold.set()
            self.store.join(10)
            assert not self.store.is_alive()
            assert self.store.problem is None, self.store.problem

    def prime(self, group: int, bodies: Sequence[bytes]) -> None:
        """Bring the group's session table to where it stands after these instances."""
        for batch in self.driver.sessions.offer(group, 1, bodies):
            assert batch.error is None, batch.error

    def bodies(self, group: int = 0) -> list[bytes]:
        """Of all instances that it knows to be chosen."""
        kept = self.kept.get(group, [])
        last = int(self.driver.group_status(group)["chosen_through"])
        rest = [self.driver.read(group, i) for i in range(len(kept) + 1, last + 1)]
        assert all(isinstance(body, bytes) for body in rest), "read while it was being settled"
        return [*kept, *(body for body in rest if isinstance(body, bytes))]

    def submit(self, values: Sequence[bytes], group: int = 0, timeout_s: float = 10) -> int:
        return self.driver.submit(group, 1, values, Driver.now_us() + int(timeout_s * US))

    def hear(self) -> None:
        self.notes += self.table.take()

    def pump(self, wait_s: float = 0.0, bytes_max: int = 1 << 22) -> None:
        """Take whatever there is; wait for something for at most so long."""
        select.select([self.driver.fileno()], [], [], wait_s)
        self.driver.clear_wake()
        while batches := self.driver.take(bytes_max):
            self.hear()
            for batch in batches:
                told = max((one[2] for one in self.notes if one[0] == batch.group), default=0)
                self.told_at.append((batch.group, batch.last, told))
                assert batch.error is None, batch.error
                for entry in batch.entries:
                    self.values[batch.group].append(entry.value)
                    self.instances[batch.group].append(entry.instance)
                    if entry.sequence:
                        self.own[batch.group].add(entry.sequence)
                self.driver.applied(batch.group, batch.last)
        self.hear()
        self.events += self.driver.events()
        self.lines += [text for _, text in self.driver.messages()]


class Lab:
    """A cluster in this process."""

    def __init__(self, folder: Path, nodes: int, **options: int) -> None:
        ids = range(1, nodes + 1)
        options = {"segment_bytes": 1 << 20, "value_bytes_max": 1 << 18, **options}
        options = {"journal_bytes_max": 16 << 20, "settle_bytes": 4 << 20, **options}
        self.members = {node: Member(node, folder, ids, **options) for node in ids}
        self.up: set[int] = set()
        self.problems: list[BaseException] = []

    def start(self, *nodes: int) -> None:
        for node in nodes or self.members:
            self.members[node].start()
            self.up.add(node)
        self.introduce()

    def introduce(self) -> None:
        for node in self.up:
            for other in self.up:
                if node != other:
                    port = self.members[other].port
                    self.members[node].peers.set_address(other, "127.0.0.1", port)

    def stop(self, *nodes: int) -> None:
        for node in nodes or sorted(self.up):
            self.up.discard(node)
            self.members[node].stop()

    def running(self) -> list[Member]:
        return [self.members[node] for node in sorted(self.up)]

    def until(self, reached: Callable[[], bool], seconds: float = 15.0) -> None:
        """Pump everybody until it is so."""
        end = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < end, self.report()
            for member in self.running():
                member.pump(0.002)
                assert member.store.problem is None, member.store.problem

    def pause(self, seconds: float = 0.3) -> None:
        """Pump everybody for so long."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end)

    def report(self) -> str:
        found = ["it did not happen in time"]
        for member in self.running():
            found.append(f"node {member.node}: {member.driver.status()}")
            found += [str(one) for one in member.driver.group_statuses()[:3]]
            found += member.lines[-10:]
        return "\n".join(found)

    def led(self, group: int = 0) -> int:
        """The leader that every running node knows; 0: none."""
        leaders = {one.driver.group_status(group)["leader"] for one in self.running()}
        return int(leaders.pop()) if len(leaders) == 1 else 0

    def wait_led(self, groups: Sequence[int] = (0,)) -> None:
        self.until(lambda: all(self.led(group) in self.up for group in groups))

    def commit(self, values: Sequence[bytes], node: int, group: int = 0) -> None:
        """Propose at `node` and wait until every running node has applied them."""
        member = self.members[node]
        first = member.submit(values, group)
        wanted = set(range(first, first + len(values)))
        self.until(lambda: wanted <= member.own[group])
        self.until(lambda: self.same(group))

    def commit_at(self, nodes: Sequence[int], values: Sequence[bytes], group: int = 0) -> None:
        """The same, where only these nodes are expected to apply them."""
        members = [self.members[node] for node in nodes]
        members[0].submit(values, group)
        self.until(lambda: all(set(values) <= set(one.values[group]) for one in members))

    def same(self, group: int = 0) -> bool:
        logs = [one.values[group] for one in self.running()]
        return all(log == logs[0] for log in logs)
