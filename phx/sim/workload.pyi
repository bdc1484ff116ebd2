"""Clients of a simulated cluster: what they ask for, at which node, and what they remember of it.

Each client is a session in one group: it asks, waits for the outcome, thinks, asks again. What was
*rejected* it asks again, mostly elsewhere. What is *unknown* stays so in its history; some clients
read the key next, to see. A new kind of client is a row of CLIENTS (`client_kinds`).

A client draws from a stream of its own, so that leaving one out changes little for the others.
"""

from random import Random
from typing import Any, Final

from phx.sim.client_kinds import ClientKind
from phx.sim.history import Operation
from phx.sim.plan import Plan
from phx.sim.world import World

TOKEN_BYTES: Final = 8
EPOCH_US: Final = 4_000_000
"""Keys are new in each epoch, so that values and what is unknown of a key do not pile up."""
REGISTERS: Final = 4
LISTS: Final = 2

def key_of(group: int, epoch: int, slot: int) -> int:
    """The key in histories and machines: slots 0 .. REGISTERS - 1, then lists."""

def burst_key(group: int, number: int, serial: int) -> int:
    """A key of its own for each value of a burst: their order matters to nobody."""

def is_list(key: int) -> bool: ...

class Operations:
    """What all clients remember: the history, and what is still open."""

    history: list[Operation]
    """Done or unknown, in the order of hearing of it."""
    open: dict[int, Call]
    """By address of the object: submitted, and nothing heard yet."""
    rejections: int
    unknown: int
    abandoned: int
    """Rejected too often; they never took effect."""
    def submitted(self, client: Client, node: int, calls: list[Call]) -> None:
        """These are open from now on."""

class Call(Operation):
    """An operation under way: what World calls back."""

    asker: Client
    command: bytes
    key: int
    node: int
    op: int
    tries: int
    def __init__(
        self, asker: Client, key: int, kind: str, argument: Any, command: bytes, now_us: int
    ) -> None: ...
    def done(self, now_us: int, result: Any) -> None: ...
    def lost(self, now_us: int) -> None: ...
    def failed(self, now_us: int, verdict: int) -> None: ...
    def died(self, now_us: int) -> None: ...

class Client:
    """One session. `due` is called when it is time to ask."""

    load: Workload
    number: int
    group: int
    kind: ClientKind
    chance: Random
    home: int
    """The node that it asked last, and asks again in HOME of all cases."""
    serial: int
    open: int
    retry: list[Call]
    verify: int | None
    seen: dict[int, Any]
    def __init__(self, load: Workload, number: int, group: int, kind: ClientKind) -> None: ...
    def due(self, now_us: int) -> None:
        """Ask again what was rejected, or something new."""
    def new_calls(self, now_us: int) -> list[Call]: ...
    def token(self) -> bytes:
        """Never the same again in this run."""
    def heard(self, call: Call, now_us: int) -> None: ...
    def unknown(self, call: Call, now_us: int) -> None: ...
    def rejected(self, call: Call, now_us: int) -> None: ...

class Workload:
    """All clients of a run.

    Args:
        world: asked at the nodes that run; a client of one that does not tries another later.
        plan: how many clients, until when.
        client: what a client is; another workload may have others.
    """

    world: World
    plan: Plan
    chance: Random
    operations: Operations
    end_us: int
    value_bytes_max: int
    behind: bool
    plain: bool
    """Set by a subclass whose `hand_in` would do what that of this class does: it is passed by."""
    clients: list[Client]
    bursts: int
    """The number of the next client that is made for a burst."""
    def __init__(self, world: World, plan: Plan, client: type[Client] = Client) -> None: ...
    def open(self) -> None:
        """The first wake-ups."""
    def tick(self) -> None:
        """Wake all clients that are due, and come again."""
    def submit(self, client: Client, node: int, calls: list[Any], timeout_us: int) -> None:
        """Every call is heard of, now or later."""
    def hand_in(self, client: Client, node: int, calls: list[Any], timeout_us: int) -> None:
        """As much of a submission as a node's inbox takes."""
    def unheard(self) -> list[Operation]:
        """Calls of which nothing was heard, but for those at a node whose disk was damaged: it may
        be unable to apply, and they count as unknown.
        """
    def burst(self, node: int, group: int, values: int, value_bytes: int) -> None:
        """More at once than anybody waits for: an act of a plan."""
