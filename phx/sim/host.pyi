from collections.abc import Callable
from typing import Any

from phx.machine import StateMachine
from phx.membership import Membership
from phx.sim.keeping import Keeping
from phx.store_facts import Facts

class Host:
    """One node of a simulated cluster; made and driven by a World."""

    poisoned: bool
    why: str
    tracing: Any
    machine: dict[int, Any]
    waiting: dict[int, Any]
    provider: Any
    @property
    def node(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def life(self) -> int: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def refused(self) -> bool: ...
    @property
    def disk(self) -> Any: ...
    @property
    def keeping(self) -> Keeping: ...
    @property
    def store(self) -> Any: ...
    @property
    def fetching(self) -> Any: ...
    @property
    def mending(self) -> Any: ...
    @property
    def trimming(self) -> Any: ...
    @property
    def memberships(self) -> Any: ...
    @property
    def comparing(self) -> Any: ...
    @property
    def hosting(self) -> Any: ...
    @property
    def now_us(self) -> int: ...
    @property
    def up(self) -> bool:
        """It runs."""
    @property
    def relaxing(self) -> Any: ...
    @property
    def boot(self) -> bytes:
        """Id of the run of its machine."""
    @property
    def durable(self) -> int:
        """The journal is, up to this position."""
    def durability(self, group: int, within_us: int) -> int:
        """As engine_durability."""
    def row_changed(self, before: Facts, after: Facts) -> None:
        """What its store has of relaxed groups."""
    def soon(self, after_us: int, what: Callable[[], None]) -> None:
        """Call it then, unless this life is over; later if the process stands still."""
    def facts(self, group: int) -> dict[str, int]:
        """floor (of the store), chosen_through, applied, leading, stopped, restoring, lost (it
        waits for a checkpoint of somebody else), anew (whatever is here)."""
    def connected(self) -> list[int]:
        """The peers that there is a connection with."""
    def busy(self, group: int, on: bool) -> bool:
        """While on, no checkpoint of the group is taken. False: one is being taken."""
    def raise_floor(self, group: int, kept_from: int, settled: int) -> bool:
        """The store's row, in one transaction. False: it failed."""
    def tell_floor(self, group: int) -> None:
        """The engine is told what the row says."""
    def swap(
        self,
        group: int,
        machine: StateMachine,
        table: bytes,
        frontier: int,
        read: int,
        odd: bool,
        own: bool,
        members: tuple[int, ...],
    ) -> bool:
        """Another machine, with the session table and the instance that it is of; `read`: hash of
        the bytes that it was made of; `odd`: who took them was odd, `own`: they were not fetched;
        `members`: those of that instance, if they ever changed.
        False: the group is beyond that, or has stopped and is not made anew."""
    def know(self, group: int, told: Membership | None) -> None:
        """The engine knows the members that a checkpoint says. Raises Foreign where members never
        change."""
    def install(self, group: int, through: int, ballot: int) -> None:
        """The engine is told of it, and what is handed to the machine begins behind it."""
    def pause_anew(self, group: int) -> None:
        """Its machine gets nothing more until another one is there, whatever it is; it leads no
        more."""
    def halt_odd(self, group: int, equal: int, differs: int, why: str) -> None:
        """It stops: a comparison says that it is odd, since after `equal`, and by `differs`."""
    def odd(self, group: int) -> int:
        """Since which instance its state is not what was decided; 0: it is. For claims alone."""
    def found(self, group: int) -> bool:
        """A comparison has said so, in this life, and of this state."""
    def marked(self, group: int) -> bool:
        """It is to be made anew, durably."""
    def mark(self, group: int, on: bool) -> None: ...
    def gives(self, group: int, frontier: int, odd: bool) -> None:
        """The watch hears that it begins to give a checkpoint away."""
    def trace(self, what: str, group: int, text: str) -> None: ...
    def broken(self, kind: str, why: str) -> None:
        """A claim does not hold."""
    def entries(self, group: int, first: int, last: int) -> bytes:
        """Chosen values from `first` on, as far as one run of them is here, packed as the store
        packs them; b"": none."""
    def mended(self, bodies: dict[tuple[int, int], bytes]) -> None:
        """By group and instance: these took the place of what was damaged in the store."""
    def checkpoint(self, group: int) -> None:
        """Take one soon, unless one is being taken, or nothing was applied since the last."""
    def wrote(self, group: int, hash: int) -> None:
        """The watch hears of what a machine has written."""
    def trim(self) -> bool:
        """One transaction of the store. False: there is nothing to do."""
