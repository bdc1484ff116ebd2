"""Named leases: locks that others can take once their holder is gone. Commands: msgpack arrays.

    command                                 result
    --------------------------------------  ------------------------------------------------------
    ["acquire", name, holder, ttl, under]   Granted(token); Held(name, holder) of what is in the
                                            way; Full(leases)
    ["renew", name, token, ttl]             True: it is held for another `ttl` from here; False: it
                                            is not held under that token any more
    ["release", name, token]                True: it was held under that token, and is free
    ["get", name]                           Holding(holder, token, ttl_us), or None
    ["forget"]                              how many leases that had run out were dropped

Anything else changes nothing, with a Malformed as its result. `ttl` is in microseconds. A node
adds to an acquire and a forget what its clock says (``prepare``); ``group.lease`` does the rest.

Names are paths ("jobs", "jobs/night"). A lease of a name covers everything below it: it is granted
while nobody else holds the name, one above it or one below it. Who holds a name lets others in
below it by its token: their acquire says `under` = that token. (Lampson, How to Build a Highly
Available System Using Consensus, 1996: hierarchical leases.)

The token of a lease is larger than that of every lease granted before it: a fencing token.

Guarantee: two holders never both believe in leases that exclude each other, if no clock of theirs
gains or loses more than 0.7 % against true time. No two clocks need to agree on what time it is.

    A holder counts from the moment before it proposed the acquire or renew, by its own clock, and
    stops believing `ttl` later. The machine never ends a lease by itself. Another node may end it
    by an acquire into which its ``prepare`` wrote that, on its own clock, `ttl` and a 64th have
    gone by since it applied that very grant (or was restored). It applied it after it was proposed,
    so its count began later, and runs longer. The word is given for that grant or renewal alone
    (its version): if anything else is in the way when the acquire is applied, it is refused. All
    that apply looks at stands in values, so replicas agree.

    Not for all grants up to some version: of what is not in the way when the word is given, nobody
    has looked whether it has run out, and it may be in the way when the word is applied. (C is let
    in below "a/b" by B, who was let in below "a" by A. B releases; now A's lease stands above.)

    Not with a wall clock in the value: a node whose clock is a minute ahead would end leases of
    thirty seconds that were granted just now.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import msgpack

from phx.errors import Damaged, PhxError, TimedOut
from phx.machine import CopyView, Reader, StateMachine, Writer, no_rest
from phx.machines.kv import Malformed
from phx.machines.objects import digest_of, read_objects, write_objects
from phx.types import Entry, Result

__all__ = [
    "BlockingLease",
    "Full",
    "Granted",
    "Held",
    "Holding",
    "Lease",
    "Leases",
    "encode_acquire",
    "encode_forget",
    "encode_get",
    "encode_release",
    "encode_renew",
]

log = logging.getLogger("phx")

HEAD = "phx leases 1"
# Part of what a log means: these never change.
NAME_BYTES_MAX = 512
HOLDER_BYTES_MAX = 256
DEPTH_MAX = 16
LEASES_MAX = 65_536
TTL_US_MIN = 1_000
TTL_US_MAX = 30 * 86_400 * 1_000_000
FORGET_MAX = 1_000

POLL_S = 0.02
# Of a lease that is kept: when it is renewed, and after which pause again if that failed.
KEEP_PART = 1 / 3
AGAIN_PART = 1 / 16

_pack: Callable[[Any], bytes] = msgpack.packb
_unpack: Callable[[bytes], Any] = msgpack.unpackb


def clock_us() -> int:
    """Microseconds of a clock that no one sets and that counts suspension, where there is one."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1000


def margin_us(ttl_us: int) -> int:
    """How much longer others wait than a holder believes: pays for clocks of different speed."""
    return ttl_us // 64 + 1


class Granted(NamedTuple):
    """The lease is had, under this token."""

    token: int


class Held(NamedTuple):
    """Refused: this lease of somebody else is in the way."""

    name: str
    holder: str


class Full(NamedTuple):
    """Refused: there are LEASES_MAX leases. ``encode_forget`` drops those that have run out."""

    leases: int


class Holding(NamedTuple):
    """A lease that nobody has ended; its holder may be gone."""

    holder: str
    token: int
    ttl_us: int


def encode_acquire(name: str, holder: str, ttl_us: int, under: int = 0) -> bytes:
    """The command that acquires a lease for `holder`; what it holds already gets a new token."""
    return _pack(["acquire", name, holder, ttl_us, under])


def encode_renew(name: str, token: int, ttl_us: int) -> bytes:
    """The command that makes a lease last `ttl_us` from the moment before it is proposed."""
    return _pack(["renew", name, token, ttl_us])


def encode_release(name: str, token: int) -> bytes:
    """The command that ends a lease. Its holder stops believing in it before it proposes this."""
    return _pack(["release", name, token])


def encode_get(name: str) -> bytes:
    """The command that reads a lease through the log."""
    return _pack(["get", name])


def encode_forget() -> bytes:
    """The command that drops leases which, by the clock of the node that takes it, have run out."""
    return _pack(["forget"])


class _Row(NamedTuple):
    holder: str
    token: int
    ttl_us: int
    version: int  # of the grant or renewal that counts


class Leases(StateMachine):
    """The machine. Its own clock is asked where a value is prepared, and never decides in apply.

    Args:
        group: unused; a factory is called with it.
        clock: microseconds; for tests.
    """

    digest_of_views: ClassVar[bool] = True

    def __init__(self, group: int = 0, clock: Callable[[], int] = clock_us) -> None:
        self.clock = clock
        self._rows: dict[str, _Row] = {}
        self._below: dict[str, set[str]] = {}  # by name: the held names below it
        self._version = 0
        # Of this node alone, no part of the state: since when, by its clock, it has known the row.
        self._known_us: dict[str, int] = {}
        self._lock = threading.Lock()  # prepare may come from another thread than apply

    # --- this node's view

    def get(self, name: str) -> Holding | None:
        """Who holds a name, as of what is applied here."""
        row = self._rows.get(name)
        return None if row is None else Holding(*row[:3])

    def query(self, query: object) -> Holding | None:
        """Who holds the lease of that name, as ``get``; ValueError for what is no name."""
        if not isinstance(query, str):
            raise ValueError(f"the name of a lease is a str, not {query!r}")
        return self.get(query)

    def __len__(self) -> int:
        return len(self._rows)

    def wait_us(self, name: str, holder: str, under: int = 0) -> int:
        """How long, by this node's clock, until nothing that it knows of is in the way; 0: now."""
        with self._lock:
            ways = self._in_the_way(name, holder, under)
            return max((self._left_us(way) for way in ways), default=0)

    def _left_us(self, name: str) -> int:
        ttl_us = self._rows[name].ttl_us
        return max(0, self._known_us[name] + ttl_us + margin_us(ttl_us) - self.clock())

    def _run_out(self, names: Iterable[str]) -> list[int]:
        """The versions of those that have run out by this node's clock, not too many."""
        gone = [self._rows[name].version for name in names if not self._left_us(name)]
        return sorted(gone)[:FORGET_MAX]

    # --- preparing

    def prepare(self, value: bytes) -> bytes:
        """Adds what this node's clock says. ValueError for a value that says it already."""
        match _command(value):
            case [
                "acquire", str() as name, str() as holder, int() as ttl_us, int() as under
            ] if _may(name, holder, ttl_us, under):  # fmt: skip
                with self._lock:
                    gone = self._run_out(self._in_the_way(name, holder, under))
                return _pack(["acquire", name, holder, ttl_us, under, gone])
            case ["forget"]:
                with self._lock:
                    gone = self._run_out(self._rows)
                return _pack(["forget", gone])
            case ["acquire", _, _, _, _, _] | ["forget", _]:
                raise ValueError("what a node's clock says is not given by the caller")
        return value

    # --- applying

    def apply(self, entry: Entry) -> Any:
        return self.apply_batch([entry])[0]

    def apply_batch(self, entries: Sequence[Entry]) -> list[Any]:
        with self._lock:
            # One look for all: later than each of them was proposed, which is what counts.
            now_us = self.clock()
            return [self._run(_command(entry.value), now_us) for entry in entries]

    def _run(self, command: object, now_us: int) -> Any:
        match command:
            case ["renew", str() as name, int() as token, int() as ttl_us] if _is_ttl(ttl_us):
                row = self._rows.get(name)
                if row is None or row.token != token:
                    return False
                # Never for a shorter time than before: an older renewal may come after a newer one.
                self._put(name, row.holder, token, max(ttl_us, row.ttl_us), now_us)
                return True
            case [
                "acquire", str() as name, str() as holder, int() as ttl_us, int() as under,
                list() as gone,
            ] if _may(name, holder, ttl_us, under) and _are_versions(gone):  # fmt: skip
                return self._acquire(name, holder, ttl_us, under, set(gone), now_us)
            case ["release", str() as name, int() as token]:
                row = self._rows.get(name)
                if row is None or row.token != token:
                    return False
                self._drop(name)
                return True
            case ["get", str() as name]:
                return self.get(name)
            case ["forget", list() as gone] if _are_versions(gone):
                versions = set(gone)
                found = [way for way, row in self._rows.items() if row.version in versions]
                for way in found:
                    self._drop(way)
                return len(found)
        return Malformed("not a command")

    def _acquire(
        self, name: str, holder: str, ttl_us: int, under: int, gone: set[int], now_us: int
    ) -> Granted | Held | Full:
        ways = list(self._in_the_way(name, holder, under))
        if standing := [way for way in ways if self._rows[way].version not in gone]:
            first = min(standing, key=lambda way: self._rows[way].version)
            return Held(first, self._rows[first].holder)
        if len(self._rows) - len(ways) >= LEASES_MAX and name not in self._rows:
            return Full(len(self._rows))
        if (mine := self._rows.get(name)) is not None and mine.holder == holder:
            ttl_us = max(ttl_us, mine.ttl_us)  # what it held before may be believed in still
        for way in ways:
            self._drop(way)
        token = self._version + 1
        self._put(name, holder, token, ttl_us, now_us)
        return Granted(token)

    def _in_the_way(self, name: str, holder: str, under: int) -> Iterator[str]:
        """The held names that have to have run out before `holder` can be granted `name`."""
        mine = self._rows.get(name)
        if mine is not None and mine.holder == holder:
            return  # whoever is above or below it was let in, or had run out
        for above in _above(name):
            row = self._rows.get(above)
            if row is not None:
                if row.holder == holder or row.token == under:
                    break  # the nearest one decides: its holder was let in by those above
                yield above
        if mine is not None:
            yield name
        for below in self._below.get(name, ()):
            if self._rows[below].holder != holder:
                yield below

    def _put(self, name: str, holder: str, token: int, ttl_us: int, now_us: int) -> None:
        self._version += 1
        if name not in self._rows:
            for above in _above(name):
                self._below.setdefault(above, set()).add(name)
        self._rows[name] = _Row(holder, token, ttl_us, self._version)
        self._known_us[name] = now_us

    def _drop(self, name: str) -> None:
        del self._rows[name], self._known_us[name]
        for above in _above(name):
            self._below[above].discard(name)
            if not self._below[above]:
                del self._below[above]

    def digest(self) -> bytes:
        """Over all leases, in whatever order they were granted; about 1 us each."""
        return self.digest_slowly(no_rest)

    def digest_slowly(self, rest: Callable[[], None]) -> bytes:
        return digest_of(self._version, (_pack([name, *r]) for name, r in self._rows.items()), rest)

    # --- checkpoints

    def freeze(self) -> CopyView:
        frozen = Leases(clock=self.clock)
        frozen._rows, frozen._version = self._rows.copy(), self._version
        return CopyView(frozen)

    def snapshot(self, writer: Writer) -> None:
        write_objects(writer, self._packed())

    def _packed(self) -> Iterator[bytes]:
        yield _pack([HEAD, self._version, len(self._rows)])
        for name, row in sorted(self._rows.items(), key=lambda item: item[1].version):
            yield _pack([name, *row])

    def restore(self, reader: Reader) -> None:
        """Raises Damaged for what is no whole snapshot of this machine.

        This node knows of every lease in it from now on: others have waited for some of them, this
        one begins to.
        """
        found = read_objects(reader, "a snapshot of leases")
        match next(found, None):
            case [str() as head, int() as last, int() as count] if head == HEAD and last >= 0:
                pass
            case _:
                raise Damaged("no snapshot of leases")
        now_us, before = self.clock(), 0
        made = Leases(clock=self.clock)
        for one in found:
            match one:
                case [
                    str() as name, str() as holder, int() as token, int() as ttl_us,
                    int() as version,
                ] if (
                    _may(name, holder, ttl_us, token)
                    and before < version <= last
                    and 0 < token <= version
                    and name not in made._rows
                ):  # fmt: skip
                    made._version = version - 1
                    made._put(name, holder, token, ttl_us, now_us)
                    before = version
                case _:
                    raise Damaged("a snapshot of leases holds something else")
        if len(made) != count:
            raise Damaged("a snapshot of leases lacks some, or has more")
        self._rows, self._below, self._version = made._rows, made._below, last
        self._known_us = made._known_us


def _command(value: bytes) -> object:
    try:
        return _unpack(value)
    except ValueError:  # every error of msgpack is one
        return None


def _above(name: str) -> Iterator[str]:
    """The names above, the nearest first."""
    while (at := name.rfind("/")) >= 0:
        name = name[:at]
        yield name


def _is_ttl(ttl_us: object) -> bool:
    return type(ttl_us) is int and TTL_US_MIN <= ttl_us <= TTL_US_MAX


def _are_versions(gone: list[Any]) -> bool:
    return len(gone) <= FORGET_MAX and all(type(version) is int for version in gone)


def _may(name: str, holder: str, ttl_us: int, under: int) -> bool:
    """Whether these can be a name, a holder, a time and a token."""
    parts = name.split("/")
    return (
        all(parts)
        and len(parts) <= DEPTH_MAX
        and len(name.encode()) <= NAME_BYTES_MAX
        and 0 < len(holder.encode()) <= HOLDER_BYTES_MAX
        and _is_ttl(ttl_us)
        and under >= 0
    )


# --- holding one


class Proposes(Protocol):
    """A phx.Group, as far as it is needed here."""

    def propose(
        self, value: bytes, *, timeout: float | None = ..., machine: int = ...
    ) -> Awaitable[Result]: ...


class ProposesNow(Protocol):
    """A phx.blocking.Group, as far as it is needed here."""

    def propose(
        self, value: bytes, *, timeout: float | None = ..., machine: int = ...
    ) -> Result: ...


class Belief:
    """What both kinds of Lease share: for how long it may be believed in.

    Attributes:
        name, holder: whose it is.
        token: larger than that of every lease before: what outside systems are fenced with, and
            what lets others in below the name.
    """

    def __init__(self, machine: int, clock: Callable[[], int], name: str, holder: str) -> None:
        self.name = name
        self.holder = holder
        self.token = 0
        self._machine = machine
        self._clock = clock
        self._ttl_us = 0
        self._until_us = 0
        self._over = False  # released, or found to be lost

    def left_s(self) -> float:
        """For how many seconds it is held for certain, by this node's clock; at most 0: no more."""
        return (self._until_us - self._clock()) / 1e6

    @property
    def held(self) -> bool:
        """It is held at this moment."""
        return self._clock() < self._until_us

    def renew_in_s(self) -> float | None:
        """When it should be renewed by itself; None: it has run out, or was released."""
        left_s, ttl_s = self.left_s(), self._ttl_us / 1e6
        if left_s <= 0:
            return None
        due_s = left_s - ttl_s * (1 - KEEP_PART)
        # (It is late when the last attempt failed, or took long.)
        return due_s if due_s > 0 else min(ttl_s * AGAIN_PART, left_s)

    def _acquired(self, result: Any, since_us: int, ttl_us: int) -> Granted | Held | Full:
        """`since_us`: before it was proposed, for nobody can count from earlier."""
        if isinstance(result, Malformed):
            raise ValueError("no name, holder or time of a lease")
        if isinstance(result, Granted) and not self._over:
            self.token, self._ttl_us, self._until_us = result.token, ttl_us, since_us + ttl_us
        found: Granted | Held | Full = result
        return found

    def _renewed(self, result: Any, since_us: int, ttl_us: int) -> bool:
        if isinstance(result, Malformed):
            raise ValueError(f"a lease of {ttl_us / 1e6:g} s")
        if not result:
            self._ended()
        elif not self._over:  # else it was released meanwhile
            self._ttl_us = ttl_us
            self._until_us = max(self._until_us, since_us + ttl_us)
        return bool(result)

    def _ended(self) -> None:
        self._over = True
        self._until_us = 0

    def _ttl(self, ttl: float | None) -> int:
        return self._ttl_us if ttl is None else int(ttl * 1e6)


class Lease(Belief):
    """A lease that was had. Believe in it while ``held``, and no longer."""

    def __init__(
        self, group: Proposes, machine: int, clock: Callable[[], int], name: str, holder: str
    ) -> None:
        super().__init__(machine, clock, name, holder)
        self._group = group
        self._keeper: asyncio.Task[None] | None = None

    async def _propose(self, value: bytes, timeout: float) -> Any:
        return (await self._group.propose(value, timeout=timeout, machine=self._machine)).value

    async def renew(self, ttl: float | None = None, *, timeout: float = 10.0) -> bool:
        """Hold it for another `ttl` seconds (as before) from now; False: somebody else had it.

        Also after it has run out, as long as nobody else had it meanwhile: look at ``held`` if that
        makes a difference. Raises what ``propose`` does; it is then held as long as it was.
        """
        since_us, ttl_us = self._clock(), self._ttl(ttl)
        result = await self._propose(encode_renew(self.name, self.token, ttl_us), timeout)
        return self._renewed(result, since_us, ttl_us)

    async def release(self, *, timeout: float = 10.0) -> None:
        """Give it back, for others to have at once. Not held from the moment of the call on."""
        self._ended()
        if self._keeper is not None:
            self._keeper.cancel()
        await self._propose(encode_release(self.name, self.token), timeout)

    def keep(self) -> Self:
        """Renew it by itself from now on, whenever a third of its time has gone by; returns it.

            async with (await group.lease("jobs/night", ttl=10)).keep() as lease:
                while lease.held: ...

        Until it is released, or nobody refers to it any more, or it has run out: when nothing could
        be chosen for so long, or the process was stopped. Then ``held`` is false for good, unless
        it is renewed by hand. It says that this event loop runs, not that the work gets on.
        """
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.get_running_loop().create_task(_keep(weakref.ref(self)))
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()


async def _keep(found: weakref.ref[Lease]) -> None:
    while (lease := found()) is not None and (pause_s := lease.renew_in_s()) is not None:
        del lease  # it may go while nothing is done for it
        await asyncio.sleep(pause_s)
        if (lease := found()) is not None and lease.held:
            try:
                await lease.renew(timeout=lease.left_s())
            except PhxError as error:  # it is held as long as it was
                log.info("the lease of %r is not renewed: %s", lease.name, error)


class BlockingLease(Belief):
    """``Lease`` without ``await``. One thread at a time, besides the one of ``keep``."""

    def __init__(
        self, group: ProposesNow, machine: int, clock: Callable[[], int], name: str, holder: str
    ) -> None:
        super().__init__(machine, clock, name, holder)
        self._group = group
        self._lock = threading.RLock()  # what was released is not held because of a renewal
        self._released = threading.Event()
        self._keeper: threading.Thread | None = None

    def _propose(self, value: bytes, timeout: float) -> Any:
        return self._group.propose(value, timeout=timeout, machine=self._machine).value

    def renew(self, ttl: float | None = None, *, timeout: float = 10.0) -> bool:
        """See ``Lease.renew``."""
        since_us, ttl_us = self._clock(), self._ttl(ttl)
        result = self._propose(encode_renew(self.name, self.token, ttl_us), timeout)
        with self._lock:
            return self._renewed(result, since_us, ttl_us)

    def release(self, *, timeout: float = 10.0) -> None:
        """See ``Lease.release``."""
        with self._lock:
            self._ended()
        self._released.set()
        self._propose(encode_release(self.name, self.token), timeout)

    def keep(self) -> Self:
        """See ``Lease.keep``; by a thread of its own, so it says that this process runs."""
        if self._keeper is None or not self._keeper.is_alive():
            self._keeper = threading.Thread(
                target=_keep_blocking,
                args=(weakref.ref(self), self._released),
                name="phx-lease",
                daemon=True,
            )
            self._keeper.start()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _keep_blocking(found: weakref.ref[BlockingLease], released: threading.Event) -> None:
    while (lease := found()) is not None and (pause_s := lease.renew_in_s()) is not None:
        del lease
        if released.wait(pause_s):
            return
        if (lease := found()) is not None and lease.held:
            try:
                lease.renew(timeout=lease.left_s())
            except PhxError as error:
                log.info("the lease of %r is not renewed: %s", lease.name, error)


class Wanted:
    """An attempt to have a lease, step by step; both kinds of Group walk it.

    Each step is a pause in seconds, or a command to be proposed; ``told`` takes its result. The
    last one is None: the lease is had.
    """

    def __init__(
        self,
        lease: Belief,
        leases: Callable[[], Leases],
        ttl: float,
        under: int | Belief,
        timeout: float,
    ) -> None:
        self._lease = lease
        self._leases = leases
        self._ttl_us = int(ttl * 1e6)
        self._under = under.token if isinstance(under, Belief) else under
        self._timeout = timeout
        self._until = time.monotonic() + timeout
        self._since_us = 0
        self._found: Granted | Held | Full | None = None

    @property
    def left_s(self) -> float:
        """Never less than nothing."""
        return max(0.0, self._until - time.monotonic())

    def next(self) -> float | bytes | None:
        lease, found = self._lease, self._found
        if isinstance(found, Granted):
            return None
        if not (left_s := self.left_s):
            name = lease.name
            raise TimedOut(f"the lease of {name!r} was not to be had in {self._timeout:g} s")
        self._found = None
        if isinstance(found, Full):
            return encode_forget()
        if isinstance(found, Held):
            return min(POLL_S, left_s)
        # While this node knows of somebody in the way, nothing is proposed.
        if wait_us := self._leases().wait_us(lease.name, lease.holder, self._under):
            return min(wait_us / 1e6, POLL_S, left_s)
        self._since_us = lease._clock()
        return encode_acquire(lease.name, lease.holder, self._ttl_us, self._under)

    def told(self, result: Any) -> None:
        if type(result) is not int:  # else it is what a forget says
            self._found = self._lease._acquired(result, self._since_us, self._ttl_us)


def new_holder() -> str:
    """A holder that nobody else is."""
    return secrets.token_hex(8)


async def acquire(lease: Lease, wanted: Wanted) -> Lease:
    """Walk the steps with an event loop."""
    while (step := wanted.next()) is not None:
        if isinstance(step, bytes):
            wanted.told(await lease._propose(step, wanted.left_s))
        else:
            await asyncio.sleep(step)
    return lease


def acquire_blocking(lease: BlockingLease, wanted: Wanted) -> BlockingLease:
    """Walk the steps in this thread."""
    while (step := wanted.next()) is not None:
        if isinstance(step, bytes):
            wanted.told(lease._propose(step, wanted.left_s))
        else:
            time.sleep(step)
    return lease
