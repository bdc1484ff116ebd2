"""Clients: one operation after another, at whatever node answers, everything noted down."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

from phx.testing.processes import Cluster, WorkerFailed, now_us
from phx.testing.torture.book import Book, Log

OPERATE_TIMEOUT_S = 2.0
"""How long a node tries; a client gives up on the node half a second later."""
PAUSE_S = 0.02
OPERATIONS_PER_KEY = 150
UNKNOWN_PER_KEY = 5
REGISTERS_PER_GROUP, STRINGS_PER_GROUP = 2, 1
CREATED_SHARE = 0.6
"""Of operations, those on created groups, if there are any."""
READ_SHARE = 0.6
"""Of what only reads: as a read, at whatever node; the rest is proposed."""
CONSISTENCY = {"linearizable": 0.6, "quorum": 0.2, "lease": 0.2}
"""Of those. All of them say that they see what was complete when they began."""
MEMBER_SHARE = 0.9
"""Of those, the ones that a node is asked for which hosts the group, as it was heard."""

ACKNOWLEDGED, REJECTED, UNKNOWN, DAMAGED = "acknowledged", "rejected", "unknown", "damaged"


@dataclass(slots=True)
class Record:
    """An operation of a client.

    Attributes:
        client: no two operations of one client overlap: a client whose operation has no outcome
            goes on under another number.
        node: who was asked.
        kind, argument, result: as the worker's ``operate`` has them.
        written: the token that it writes; "" if none.
        expected: of a cas: the token that the version stands for; None: that the key is not there.
        outcome: "unknown" until it is known to be something else.
        called_us, returned_us: by one clock for all processes; None: no result.
        error: the class of the error.
        generation: of the group, if it is one that was created; 0: of the configuration.
        consistency: how it was read; None: it was proposed.
    """

    client: int
    node: int
    group: int
    key: str
    kind: str
    argument: Any
    written: str
    expected: str | None
    called_us: int
    returned_us: int | None = None
    outcome: str = UNKNOWN
    result: Any = None
    error: str = ""
    generation: int = 0
    consistency: str | None = None

    @property
    def log(self) -> Log:
        return self.group, self.generation


@dataclass
class Slot:
    """A key in use, and what is known of it. It gives way to a new key before long, so that every
    key's history stays short.
    """

    name: str
    appends: bool
    number: int = 0
    operations: int = 0
    unknown: int = 0
    seen: dict[int, str] = field(default_factory=dict)  # version -> token
    newest: int = 0

    @property
    def key(self) -> str:
        return f"{self.name}.{self.number}"

    def note(self, version: int, token: str) -> None:
        self.seen[version] = token
        self.newest = version

    def turn(self) -> None:
        """Go on to the next key if this one has had enough."""
        if self.operations >= OPERATIONS_PER_KEY or self.unknown >= UNKNOWN_PER_KEY:
            self.number += 1
            self.operations = self.unknown = self.newest = 0
            self.seen = {}


class Clients:
    """`count` clients of a cluster, until `stop`.

    Args:
        book: which groups were created; clients hear of that at once, and of an end a little later.

    Attributes:
        records: every operation that was sent.
    """

    def __init__(self, cluster: Cluster, count: int, seed: str, book: Book | None = None) -> None:
        self.records: list[Record] = []
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._stopping = asyncio.Event()
        self._numbers = itertools.count(1)
        self._tokens = itertools.count(1)
        self._book = book or Book()
        self._slots: dict[Log, list[Slot]] = {}
        self._count = count
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._count)]

    async def stop(self) -> None:
        """Begin nothing more, and wait until every client has given up or has its answer."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """End at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def read_everything(self, timeout_s: float) -> list[tuple[Log, str]]:
        """Read every key that was ever used, through the log; those that could not be read. (Of
        groups that are gone nothing can be.)"""
        there = {life.log for life in self._book.there()}
        keys = sorted(
            {
                (one.log, one.key, one.kind == "append")
                for one in self.records
                if not one.generation or one.log in there
            }
        )
        left = iter(keys)
        failed: list[tuple[Log, str]] = []
        until_us = now_us() + int(timeout_s * 1e6)

        async def read() -> None:
            number = next(self._numbers)
            for log, key, appends in left:
                record = None
                while record is None or record.outcome != ACKNOWLEDGED:
                    if now_us() > until_us:
                        failed.append((log, key))
                        break
                    slot = Slot(key, appends)
                    kind, argument = ("append", "") if appends else ("get", None)
                    record = await self._send(number, log, key, slot, kind, argument)
                    if record is None or record.outcome == UNKNOWN:
                        number = next(self._numbers)
                        await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(read() for _ in range(32)))
        return failed

    # --- one client

    async def _run(self) -> None:
        number = next(self._numbers)
        while not self._stopping.is_set():
            log = self._choose_log()
            slot = self._chance.choice(self._slots_of(log))
            slot.turn()
            slot.operations += 1
            key = slot.key
            kind, argument = self._choose(slot)
            record = await self._send(
                number, log, key, slot, kind, argument, self._how(kind, argument)
            )
            if record is None or record.outcome == UNKNOWN:
                number = next(self._numbers)
                slot.unknown += record is not None and slot.key == key
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * PAUSE_S)

    def _choose_log(self) -> Log:
        created = self._book.known(now_us())
        if created and self._chance.random() < CREATED_SHARE:
            return self._chance.choice(created)
        return self._chance.choice(self._cluster.groups), 0

    def _slots_of(self, log: Log) -> list[Slot]:
        if log not in self._slots:
            self._slots[log] = [
                *(Slot(f"r{at}", False) for at in range(REGISTERS_PER_GROUP)),
                *(Slot(f"s{at}", True) for at in range(STRINGS_PER_GROUP)),
            ]
        return self._slots[log]

    def _choose(self, slot: Slot) -> tuple[str, Any]:
        chance = self._chance
        if slot.appends:
            return "append", "" if chance.random() < 0.3 else self._token()
        kind = chance.choices(("get", "put", "cas", "delete"), (35, 30, 30, 5))[0]
        if kind == "put":
            return kind, [self._token(), self._size()]
        if kind == "cas":
            return kind, [slot.newest, self._token(), self._size()]
        return kind, None

    def _how(self, kind: str, argument: Any) -> str | None:
        """The consistency of a read; None: it is proposed."""
        if argument or kind not in ("get", "append") or self._chance.random() >= READ_SHARE:
            return None
        return self._chance.choices(list(CONSISTENCY), list(CONSISTENCY.values()))[0]

    def _token(self) -> str:
        return f"v{next(self._tokens)}"

    def _size(self) -> int:
        chance = self._chance.random()
        if chance < 0.8:
            return self._chance.randrange(200)
        return self._chance.randrange(8_000 if chance < 0.97 else 60_000)

    async def _send(
        self,
        number: int,
        log: Log,
        key: str,
        slot: Slot,
        kind: str,
        argument: Any,
        consistency: str | None = None,
    ) -> Record | None:
        """Do it at some node; None: it was not sent to any."""
        # Seldom one that is stopped: it finds what it was asked when it goes on.
        stopped_too = self._chance.random() < 0.05
        running = [
            node
            for node, one in self._cluster.workers.items()
            if (stopped_too or not one.stopped) and node not in self._cluster.joining
        ]
        if not running:
            await asyncio.sleep(PAUSE_S)
            return None
        (group, generation), members = log, self._book.members(log)
        if members and self._chance.random() < MEMBER_SHARE:
            running = [node for node in running if node in members] or running
        node = self._chance.choice(running)
        written = argument[-2] if kind in ("put", "cas") else argument or ""
        expected = slot.seen.get(argument[0]) or None if kind == "cas" else None
        record = Record(
            number, node, group, key, kind, argument, written, expected, now_us(),
            generation=generation, consistency=consistency,
        )  # fmt: skip
        try:
            future = self._cluster[node].ask(
                "operate", group=group, kind=kind, key=key, argument=argument,
                timeout_s=OPERATE_TIMEOUT_S, generation=generation, consistency=consistency,
            )  # fmt: skip
        except WorkerFailed:
            await asyncio.sleep(PAUSE_S)
            return None
        self.records.append(record)
        future.add_done_callback(lambda future: self._answered(record, slot, future))
        await asyncio.wait({future}, timeout=OPERATE_TIMEOUT_S + 0.5)
        await asyncio.sleep(0)  # let the callback run
        return record

    def _answered(self, record: Record, slot: Slot, future: asyncio.Future[Any]) -> None:
        """It may be long after the client gave up: better late than unknown."""
        if future.cancelled() or future.exception() is not None:
            return  # the process ended
        answer = future.result()
        record.outcome, record.error = answer["outcome"], answer["error"]
        if record.outcome != ACKNOWLEDGED:
            return
        record.result = result = answer["result"]
        record.called_us, record.returned_us = answer["called_us"], answer["returned_us"]
        if record.key != slot.key:
            return
        if record.kind == "get":
            slot.note(result[1], result[0]) if result else slot.note(0, "")
        elif record.kind in ("put", "cas") and result is not None:
            slot.note(result, record.written)
