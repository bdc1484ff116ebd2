from collections.abc import Callable, Iterable

class WatchDoor:
    """A watch over `nodes` nodes and `groups` groups, and `created` more that come and go, told
    what a test makes up.

    Values carry the number that `propose` gave them in their first eight bytes.
    """

    def __init__(self, nodes: int, groups: int, created: int = 0) -> None: ...
    def failure(self) -> tuple[str, str] | None:
        """(invariant, text) of the first violation."""
    def time(self, now_us: int) -> None: ...
    def propose(self, node: int, group: int, sequence: int, text: bytes) -> bytes:
        """A value that a caller of a running node proposes: its bytes."""
    def start(
        self,
        node: int,
        replayed: Iterable[tuple[int, bytes]] = ...,
        settled: dict[int, int] | None = None,
        floors: dict[int, int] | None = None,
        suspect: bool = False,
        created: dict[int, bytes] | None = None,
    ) -> None:
        """A life begins: records (position, bytes) are replayed into a real engine. `floors`: what
        it is told of its rows; default: what they say. `suspect`: its journal was lost; `created`:
        with which of the groups that come and go it begins, and with which members."""
    def die(self, node: int) -> None: ...
    def lose(self, node: int) -> None:
        """Its journal is gone; it is down."""
    def relax(self, node: int, group: int, on: bool, turn: int = 0) -> None:
        """The engine is told so, after its turn `turn`."""
    def relaxed_row(self, node: int, group: int, on: bool) -> None:
        """The store has the group as relaxed in this run of the machine; or not any more."""
    def written(self, node: int, lsn: int) -> None: ...
    def power(self, node: int) -> None:
        """The power of its machine goes; it is down."""
    def ceiling(self, node: int, counter: int) -> None: ...
    def emit(self, node: int, lsn: int, records: bytes) -> int:
        """Records are written from this position on; the position after them."""
    def durable(self, node: int, lsn: int) -> None: ...
    def send(self, node: int, messages: bytes, made: int = 0) -> None:
        """A frame leaves that was made in the turn `made`."""
    def step(self, node: int, group: int) -> None: ...
    def full(self) -> None: ...
    def chosen(self, node: int, group: int, instance: int, body: bytes) -> None: ...
    def applied(
        self,
        node: int,
        group: int,
        instance: int,
        index: int,
        value: bytes,
        epoch: int = 0,
        time_us: int = 0,
    ) -> None: ...
    def chain(self, node: int, group: int, instance: int, chain: int) -> None: ...
    def known(self, group: int) -> int:
        """A read begins: what its point has to cover."""
    def point(self, node: int, group: int, known: int, point: int, quorum: bool = False) -> None:
        """And this is its point."""
    def checkpoint(self, node: int, group: int, through: int, table: bytes, state: int) -> None: ...
    def restored(self, node: int, group: int, through: int, table: bytes, state: int) -> None: ...
    def swapped(
        self, node: int, group: int, through: int, table: bytes, state: int, anew: bool = False
    ) -> None: ...
    def odd(self, node: int, group: int, since: int) -> None: ...
    def found(self, node: int, group: int, equal: int, differs: int) -> None: ...
    def marked(self, node: int, group: int, on: bool) -> None: ...
    def answers(self, node: int, group: int) -> bool: ...
    def made_of(self, node: int, group: int, through: int, odd: bool, own: bool) -> None: ...
    def gives(self, node: int, group: int, through: int, odd: bool) -> None: ...
    def mended(self, node: int, group: int, instance: int, body: bytes) -> None: ...
    def wrote(self, group: int, hash: int) -> None: ...
    def loaded(self, node: int, group: int, hash: int) -> None: ...
    def row(self, node: int, group: int, kept_from: int, settled: int) -> None: ...
    def cover(self, node: int, group: int, cover: int) -> None: ...
    def tell_floor(self, node: int, group: int, floor: int, turn: int = 0) -> None:
        """The engine is told, and frames of turn `turn` or later say it."""
    def install(
        self,
        node: int,
        group: int,
        through: int,
        ballot: int,
        spoil: Callable[[], None] | None = None,
    ) -> None:
        """The engine is told of an install; `spoil` is called before the watch looks at it."""
    def acked(self, node: int, group: int, value: bytes) -> None: ...
    def dropped(self, node: int, group: int, value: bytes) -> None: ...
    def verdict(self, value: bytes, rejected: bool) -> None: ...
    def spoil(self, node: int, group: int, **fields: int) -> None:
        """Write into the engine: promised, chosen_through, settled_through, applied_through,
        cached_bytes, pending_bytes."""
    def spoil_slot(self, node: int, group: int, instance: int, ballot: int, body: bytes) -> None:
        """The engine holds this acceptance."""
    def spoil_lead(self, node: int, group: int, ballot: int, lease_us: int) -> None:
        """The engine leads in this ballot; everybody has granted it a lease until then."""
    def members(self, first: Iterable[int]) -> None:
        """Members may change; these nodes are the first voters of every group."""
    def know_members(
        self,
        node: int,
        group: int,
        version: int,
        roster: bytes,
        instance: int,
        floor: int,
        active: bool,
    ) -> None:
        """The engine knows these, as a store's row or a checkpoint says."""
    def leads(self, node: int, group: int, epoch: int) -> None:
        """The node's program hears that it leads."""
    def members_row(self, node: int, group: int, settled: int, version: int) -> None:
        """The store is settled up to there, and its row has the members of that version."""
    def wiped(self, node: int) -> None:
        """A node is deleted."""
    def turn(self, node: int, number: int) -> None:
        """What the engine is seen to know from now on it learned in this turn."""
    def created(self, group: int, roster: bytes) -> None:
        """The directory says that there is the group, of these members."""
    def over(self, node: int, group: int) -> None:
        """A node tells the directory that it is over."""
    def hosts(self, node: int, group: int, on: bool) -> None:
        """Its store says that it hosts the group, or no more."""
    def host(self, node: int, group: int, roster: bytes) -> None:
        """Its engine does, and its store has prepared that."""
    def unhost(self, node: int, group: int) -> None: ...
    def begun(self, node: int, group: int) -> None:
        """Its machine begins with nothing."""
    def announced(self, group: int, through: int) -> None:
        """Some node hands on what is chosen."""
    def read_began(self, group: int) -> int:
        """What is announced by now."""
    def read_point(self, node: int, group: int, known: int, point: int) -> None:
        """A read that began when `known` was announced has got this point."""
    def publish(self, node: int, group: int, changed: bool) -> None:
        """The node's turn ends; the group is published anew if it is said to have changed, and the
        first time. One node of a test only."""
    def writing(self) -> None:
        """Whoever publishes is stopped in the midst of it; called again: goes on."""
    def point_while_chosen(self, node: int, group: int, through: int) -> int | None:
        """A read point at a clock; while that is looked at, a turn ends with more chosen."""
