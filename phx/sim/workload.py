"""Clients of a simulated cluster: what they ask for, at which node, and what they remember of it.

Each client is a session in one group: it asks, waits for the outcome, thinks, asks again. What was
*rejected* it asks again, mostly elsewhere. What is *unknown* stays so in its history; some clients
read the key next, to see. A new kind of client is a row of CLIENTS.

A client draws from a stream of its own, so that leaving one out changes little for the others.
"""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random
from typing import Any, NamedTuple

from phx.sim.history import UNSEEN, Operation
from phx.sim.machine import (
    encode_append,
    encode_cas,
    encode_delete,
    encode_get,
    encode_put,
)
from phx.sim.plan import SECOND, Plan
from phx.sim.world import UNKNOWN, World

__all__ = ["CLIENTS", "TOKEN_BYTES", "Client", "ClientKind", "Operations", "Workload", "is_list"]

TICK_US_MAX = 40_000
GOAL = 5
"""Values of a group in a second: while a run is behind, its clients think a third as long."""
EPOCH_US = 4 * SECOND
"""Keys are new in each epoch, so that values and what is unknown of a key do not pile up."""
REGISTERS = 4
LISTS = 2
TOKEN_BYTES = 8
HOME = 0.6
"""How often a client asks the node at which it asked before."""
TRIES_MAX = 6
SUBMIT_BYTES = 16_000
ENVELOPE_BYTES = 96
"""Of a value of the largest size: what command and simulator add."""


BURST = 1 << 23


def key_of(group: int, epoch: int, slot: int) -> int:
    """The key in histories and machines: slots 0 .. REGISTERS - 1, then lists."""
    return group << 24 | epoch << 4 | slot


def burst_key(group: int, number: int, serial: int) -> int:
    """A key of its own for each value of a burst: their order matters to nobody."""
    return group << 24 | BURST | (number & 0x7FF) << 12 | (serial & 0xFFF)


def is_list(key: int) -> bool:
    return not key & BURST and (key & 15) >= REGISTERS


class ClientKind(NamedTuple):
    """What a client is like.

    weight: how often it is drawn.
    lists: share of operations on lists (append, get), the others on registers.
    reads: share of gets.
    batch: values submitted at once, at most.
    large: share of values that are not small; `huge`: of those, of the largest size.
    timeout_us, think_us: at least and at most.
    verify: it reads the key after an unknown outcome.
    """

    weight: float
    lists: float = 0.35
    reads: float = 0.3
    batch: int = 1
    large: float = 0.04
    huge: float = 0.1
    timeout_us: tuple[int, int] = (300_000, 4_000_000)
    think_us: tuple[int, int] = (50_000, 700_000)
    verify: bool = True


CLIENTS: dict[str, ClientKind] = {
    "session": ClientKind(4),
    "batcher": ClientKind(3, batch=12, think_us=(100_000, 1_500_000)),
    "impatient": ClientKind(1.5, timeout_us=(1_000, 200_000), verify=False),
    "appender": ClientKind(2, lists=1.0, reads=0.2, batch=3),
    "bulky": ClientKind(0.7, large=0.5, think_us=(200_000, 900_000)),
    "hasty": ClientKind(1, think_us=(1, 150_000)),
}
"""Kinds of clients, by name."""


class Call(Operation):
    """An operation under way: what World calls back."""

    __slots__ = ("asker", "command", "node", "op", "tries")

    key: int

    def __init__(
        self, asker: Client, key: int, kind: str, argument: Any, command: bytes, now_us: int
    ) -> None:
        self.asker = asker
        self.client = asker.number
        self.key = key
        self.kind = kind
        self.argument = argument
        self.result = None
        self.called_us = now_us
        self.returned_us = None
        self.command = command
        self.tries = 0
        self.op = 0
        self.node = 0

    def done(self, now_us: int, result: Any) -> None:
        self.result = result
        self.returned_us = now_us
        self.asker.heard(self, now_us)

    def lost(self, now_us: int) -> None:
        self.result = UNSEEN
        self.returned_us = now_us
        self.asker.heard(self, now_us)

    def failed(self, now_us: int, verdict: int) -> None:
        if verdict in UNKNOWN:
            self.asker.unknown(self, now_us)
        else:
            self.asker.rejected(self, now_us)

    def died(self, now_us: int) -> None:
        self.asker.unknown(self, now_us)


class Operations:
    """What all clients remember: the history, and what is still open."""

    __slots__ = ("abandoned", "history", "open", "rejections", "unknown")

    def __init__(self) -> None:
        self.history: list[Operation] = []
        """Done or unknown, in the order of hearing of it."""
        self.open: dict[int, Call] = {}
        """By id of the object: submitted, and nothing heard yet."""
        self.rejections = 0
        self.unknown = 0
        self.abandoned = 0
        """Rejected too often; they never took effect."""


class Client:
    """One session. `due` is called when it is time to ask."""

    __slots__ = (
        "asked", "chance", "group", "home", "kind", "load", "number", "open", "retry", "seen",
        "serial", "verify",
    )  # fmt: skip

    def __init__(self, load: Workload, number: int, group: int, kind: ClientKind) -> None:
        self.load = load
        self.number = number
        self.group = group
        self.kind = kind
        self.chance = Random(load.plan.seed << 20 | number)
        self.home = 1 + int(self.chance.random() * load.plan.nodes)
        self.serial = 0
        self.open = 0
        self.asked = 0
        self.retry: list[Call] = []
        self.verify: int | None = None
        self.seen: dict[int, Any] = {}

    # --- asking

    def due(self, now_us: int) -> None:
        """Ask again what was rejected, or something new."""
        if self.retry:
            calls, self.retry = self.retry, []
        elif now_us >= self.load.end_us:
            return
        else:
            calls = self.new_calls(now_us)
        node = self.node()
        low, high = self.kind.timeout_us
        timeout_us = low + int(self.chance.random() * (high - low))
        self.load.submit(self, node, calls, timeout_us)

    def node(self) -> int:
        if self.chance.random() >= HOME:
            self.home = 1 + int(self.chance.random() * self.load.plan.nodes)
        return self.home

    def new_calls(self, now_us: int) -> list[Call]:
        chance, kind = self.chance, self.kind
        epoch = now_us // EPOCH_US
        if self.verify is not None:
            key, self.verify = self.verify, None
            return [Call(self, key, "get", None, encode_get(key), now_us)]
        count = 1 + int(chance.random() * kind.batch) if kind.batch > 1 else 1
        calls = []
        slot = int(chance.random() * REGISTERS)
        for _ in range(count):
            if chance.random() < kind.lists:
                key = key_of(self.group, epoch, REGISTERS + int(chance.random() * LISTS))
                calls.append(self.list_call(key, now_us))
            else:
                slot = (slot + 1) % REGISTERS
                calls.append(self.register_call(key_of(self.group, epoch, slot), now_us))
        return calls

    def token(self) -> bytes:
        """Never the same again in this run."""
        self.serial += 1
        return b"%03x%05x" % (self.number, self.serial)

    def list_call(self, key: int, now_us: int) -> Call:
        if self.chance.random() < self.kind.reads:
            return Call(self, key, "get", None, encode_get(key), now_us)
        token = self.token()
        return Call(self, key, "append", token, encode_append(key, token), now_us)

    def register_call(self, key: int, now_us: int) -> Call:
        chance = self.chance
        what = chance.random()
        if what < self.kind.reads:
            return Call(self, key, "get", None, encode_get(key), now_us)
        if what > 0.97:
            return Call(self, key, "delete", None, encode_delete(key), now_us)
        value = self.value()
        if what > 0.75:
            seen = self.seen.get(key)
            if seen is None or len(seen) <= 64:
                return Call(self, key, "cas", (seen, value), encode_cas(key, seen, value), now_us)
        return Call(self, key, "put", value, encode_put(key, value), now_us)

    def value(self) -> bytes:
        token, chance = self.token(), self.chance
        if chance.random() >= self.kind.large:
            return token
        most = self.load.value_bytes_max
        if chance.random() >= self.kind.huge:
            most = min(most, 2048)
            most = TOKEN_BYTES + int(chance.random() * (most - TOKEN_BYTES))
        return (token * (most // TOKEN_BYTES + 1))[:most]

    # --- hearing

    def heard(self, call: Call, now_us: int) -> None:
        load = self.load
        del load.operations.open[id(call)]
        load.operations.history.append(call)
        if not is_list(call.key):
            if call.kind == "get":
                self.seen[call.key] = call.result if call.result is not UNSEEN else None
            elif call.kind == "put":
                self.seen[call.key] = call.argument
        self.settled(now_us)

    def unknown(self, call: Call, now_us: int) -> None:
        operations = self.load.operations
        del operations.open[id(call)]
        operations.history.append(call)
        operations.unknown += 1
        if self.kind.verify and call.kind != "get":
            self.verify = call.key
        self.settled(now_us)

    def rejected(self, call: Call, now_us: int) -> None:
        operations = self.load.operations
        del operations.open[id(call)]
        operations.rejections += 1
        call.tries += 1
        if call.tries < TRIES_MAX:
            self.retry.append(call)
        else:
            operations.abandoned += 1
        self.settled(now_us)

    def settled(self, now_us: int) -> None:
        self.open -= 1
        if self.open:
            return
        if self.retry:
            tries = self.retry[0].tries
            think = int(self.chance.random() * 20_000 * (1 << tries))
        else:
            low, high = self.kind.think_us
            think = low + int(self.chance.random() * (high - low))
            if self.load.behind:
                think //= 3
        self.load.wake(self, now_us + think)


class Workload:
    """All clients of a run.

    Args:
        world: asked at the nodes that run; a client of one that does not tries another later.
        plan: how many clients, until when.
    """

    client: type[Client] = Client
    """What a client is; another workload may have others."""

    def __init__(self, world: World, plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.chance = Random(plan.seed << 20 | 0xFFFFF)
        self.operations = Operations()
        self.end_us = plan.clients_end_us
        self.value_bytes_max = dict(plan.limits)["value_bytes_max"] - ENVELOPE_BYTES
        self.behind = False
        self.sleeping: list[tuple[int, int, Client]] = []
        self.clients: list[Client] = []
        kinds = list(CLIENTS.values())
        weights = [kind.weight for kind in kinds]
        for group in range(plan.groups):
            for _ in range(plan.clients):
                kind = self.chance.choices(kinds, weights)[0]
                self.clients.append(self.client(self, len(self.clients), group, kind))
        self.bursts = len(self.clients)

    def open(self) -> None:
        """The first wake-ups."""
        for client in self.clients:
            self.wake(client, int(client.chance.random() * SECOND))
        self.tick()

    def wake(self, client: Client, at_us: int) -> None:
        heappush(self.sleeping, (at_us, client.number, client))

    def tick(self) -> None:
        """One call for all clients that are due by now."""
        now, sleeping = self.world.now_us, self.sleeping
        wanted = now * self.plan.groups * GOAL // SECOND
        self.behind = self.world.decided_values() < wanted
        while sleeping and sleeping[0][0] <= now:
            heappop(sleeping)[2].due(now)
        if now < self.plan.duration_us:
            self.world.call_at(now + 1 + int(self.chance.random() * TICK_US_MAX), self.tick)

    def submit(self, client: Client, node: int, calls: list[Call], timeout_us: int) -> None:
        """Every call is heard of, now or later."""
        operations = self.operations
        client.open += len(calls)
        for call in calls:
            operations.open[id(call)] = call
            call.node = node
        if len(calls) == 1:
            self.hand_in(client, node, calls, timeout_us)
            return
        # A submission keeps to the limit of a node's inbox, as those of a driver do.
        some: list[Call] = []
        size = 0
        for call in calls:
            if some and size + len(call.command) > SUBMIT_BYTES:
                self.hand_in(client, node, some, timeout_us)
                some, size = [], 0
            some.append(call)
            size += len(call.command)
        self.hand_in(client, node, some, timeout_us)

    def hand_in(self, client: Client, node: int, calls: list[Call], timeout_us: int) -> None:
        if self.world.running(node):
            values = [call.command for call in calls]
            if not self.world.submit(node, client.group, values, timeout_us, calls):
                return
        for call in calls:
            client.rejected(call, self.world.now_us)

    def unheard(self) -> list[Operation]:
        """Calls of which nothing was heard, but for those at a node whose disk was damaged: it may
        be unable to apply, and they count as unknown.
        """
        left: list[Operation] = []
        for call in self.operations.open.values():
            if self.world.damaged(call.node):
                self.operations.history.append(call)
            else:
                left.append(call)
        return left

    def burst(self, node: int, group: int, values: int, value_bytes: int) -> None:
        """More at once than anybody waits for: an act of a plan."""
        kind = ClientKind(0, lists=0, reads=0, verify=False, timeout_us=(200_000, 2_000_000))
        client = Client(self, self.bursts, group, kind)
        self.bursts += 1
        now = self.world.now_us
        calls = []
        for serial in range(values):
            key = burst_key(group, client.number, serial)
            token = client.token()
            value = token + bytes(max(value_bytes - TOKEN_BYTES, 0))
            calls.append(Call(client, key, "put", value, encode_put(key, value), now))
        self.submit(client, node, calls, 1_000_000)
