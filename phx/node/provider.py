"""Gives peers what they come for: checkpoints, values of the log, and word of what there is.

A connection that begins with FETCH is handed over by the driver, and gets a thread
``phx-provide``, which ends soon after the last of them. Who asks for a checkpoint that is not
there, because all that this node has of the group is *light*, makes it take a whole one: the next
round of offers finds it.

The machines of the group are not asked for anything: a group that stopped here, or is being
restored, is provided for all the same, with the checkpoints and the log that are here.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from phx._core.driver import DriverError
from phx.applier import GroupState
from phx.checkpoint.catalog import Catalog, path_of
from phx.checkpoint.manifest import Manifest
from phx.errors import Damaged, PhxError, StoreError
from phx.node.line import Ending, Lines, now_us
from phx.node.threads import join_all
from phx.store import Store
from phx.transfer.changing import Answer, Telling, wants
from phx.transfer.choice import offered
from phx.transfer.messages import (
    CHANGE_WANTED,
    CHECKPOINT,
    DIGESTS,
    JOIN,
    MEMBERS_WANTED,
    OFFER_WANTED,
    REFUSED,
    REFUSED_BUSY,
    Chain,
    Cut,
    Ends,
    Entry,
    Fetch,
    Offer,
    kind_of,
    pack_refused,
    unpack_entries,
)
from phx.transfer.sender import Bucket, Sender
from phx.types import NEVER

__all__ = ["Pins", "Provider"]

log = logging.getLogger("phx")

IDLE_S = 2.0
"""So long a thread waits for the next connection: peers ask about many groups at a time."""
TALKS_MAX = 16
"""Connections beside the transfers that are served at a time: they only want an answer."""
AFTER_OFFER_S = 20.0
"""So long a checkpoint stays that was offered: who asks has other nodes to ask before it comes, and
by then a busy group may have taken others, and dropped this one."""
AFTER_END_S = 60.0
"""So long a checkpoint stays, and the log behind it, for who has just got all of it."""
AFTER_CUT_S = 600.0
"""And for who may come again for the rest."""
LEADER_WAITS_S = 5.0
"""So long a leader leaves it to the others to take a checkpoint that somebody asks for."""
WISH_OLD_S = 60.0
RUN_BYTES = 1 << 20


class Groups(Protocol):
    """What is needed of the driver."""

    def group_status(self, group: int) -> dict[str, int | bool]: ...
    def read(self, group: int, instance: int) -> bytes | int: ...


@dataclass
class Held:
    """A checkpoint that is held, by so many transfers, or until then."""

    stack: ExitStack
    users: int = 0
    until_s: float = 0.0


class Pins:
    """Checkpoints that peers fetch, or may come again for. Any thread.

    Guarantee: one that is held is not dropped; as long as it is the oldest one, the log behind it
    stays, too.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._held: dict[bytes, Held] = {}
        self._lock = threading.Lock()

    def hold(self, manifest: Manifest) -> bool:
        """False: it is gone already."""
        with self._lock:
            held = self._held.get(manifest.content)
            if held is None:
                held = Held(ExitStack())
                try:
                    held.stack.enter_context(self._catalog.pinned(manifest))
                except KeyError:
                    return False
                self._held[manifest.content] = held
            held.users += 1
            return True

    def release(self, manifest: Manifest, after_s: float) -> None:
        """One transfer less; it stays for so many seconds."""
        with self._lock:
            held = self._held[manifest.content]
            held.users -= 1
            held.until_s = max(held.until_s, time.monotonic() + after_s)

    def keep(self, manifest: Manifest, for_s: float) -> bool:
        """It stays for so many seconds. False: it is gone already."""
        if not self.hold(manifest):
            return False
        self.release(manifest, for_s)
        return True

    def expire(self) -> None:
        """Let go of those whose time is over."""
        now_s = time.monotonic()
        with self._lock:
            for content, held in list(self._held.items()):
                if not held.users and held.until_s <= now_s:
                    del self._held[content]
                    held.stack.close()

    def __len__(self) -> int:
        return len(self._held)


@dataclass
class _Talk:
    """One connection: what its Sender is given from. See `phx.transfer.sender.Shelf`."""

    provider: Provider
    node: int
    holds: Manifest | None = None

    def offer(self, fetch: Fetch) -> Offer:
        return self.provider.offer(fetch)

    def checkpoint(self, fetch: Fetch) -> tuple[str, Manifest] | None:
        found = self.provider.begin(fetch)
        if found is None:
            return None
        self.holds = found
        log.info(
            "group %d: node %d fetches the checkpoint at %d, %d bytes",
            found.group, self.node, found.frontier, found.size_bytes,
        )  # fmt: skip
        return path_of(self.provider.catalog.root, found), found

    def entries(self, fetch: Fetch) -> Iterable[Sequence[Entry]] | None:
        return self.provider.entries(fetch)


class Provider:
    """Serves the connections of peers that fetch.

    Guarantee: at most `transfers_max` checkpoints are sent at a time, all of them together no
    faster than the bucket allows; and nothing of a checkpoint is sent whose bytes are not those of
    its manifest.

    Args:
        ask: has a whole checkpoint of a group taken.
        noted: (group, above) -> what was noted at agreed instances beyond that one.

    Attributes:
        doubted: whether no checkpoint of a group is for others.
        welcome: the answer to a JOIN; b"": none.
        members, change: see `Telling`.
        counters: since the start; "providing": now.
    """

    def __init__(
        self,
        catalog: Catalog,
        states: Mapping[int, GroupState],
        driver: Groups,
        store: Store,
        ask: Callable[[int], Future[Any]],
        noted: Callable[[int, int], Iterable[tuple[int, int, bytes]]],
        *,
        cluster: int,
        node: int,
        transfers_max: int,
        bytes_per_s: int,
    ) -> None:
        self.catalog = catalog
        self.doubted: Callable[[int], bool] = lambda group: False
        self.welcome: Callable[[bytes, Ends], bytes] = lambda said, ends: b""
        self.members: Callable[[int], bytes]
        self.change: Callable[[int, bytes], Answer]
        self.pins = Pins(catalog)
        self._states = states
        self._driver = driver
        self._store = store
        self._ask = ask
        self._noted = noted
        self._cluster = cluster
        self._node = node
        self._transfers_max = transfers_max
        self._bucket = Bucket(bytes_per_s)
        self._lines = Lines()
        self._lock = threading.Lock()
        self._change = threading.Condition()
        self._line: deque[tuple[socket.socket, int, bytes]] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle = self._busy = 0
        self._wished: dict[int, tuple[float, Future[Any] | None]] = {}
        self._number = 0
        self.counters = {"providing": 0, "provided": 0, "provided_bytes": 0, "provide_failed": 0}

    def handed(self, connections: Iterable[tuple[int, int, bytes]]) -> None:
        """Serve these; turn away those that are too many. Any thread."""
        for descriptor, node, said in connections:
            one = self._lines.adopt(socket.socket(fileno=descriptor))
            with self._change:
                taken = self._busy + len(self._line)
                if self._lines.ending.is_set() or taken >= self._transfers_max + TALKS_MAX:
                    self._turn_away(one, node)
                    continue
                self._line.append((one, node, said))
                self._change.notify()
                if len(self._line) <= self._idle:
                    continue
                try:
                    self._spawn()
                except RuntimeError as error:  # no thread can be had now
                    log.error("node %d is not served now: %s", node, error)
                    self._line.pop()
                    self._turn_away(one, node)

    def _turn_away(self, one: socket.socket, node: int) -> None:
        """It may come again. Said at once, or not at all: what it asked for was not looked at."""
        ends = Ends(self._cluster, self._node, node)
        with suppress(OSError):
            one.send(ends.frame(REFUSED, pack_refused(REFUSED_BUSY, "busy")))
        self._lines.close(one)

    def _spawn(self) -> None:
        self._number += 1
        name = f"phx-provide-{self._number}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        thread.start()
        self._threads.add(thread)

    def _work(self) -> None:
        while (talk := self._next()) is not None:
            try:
                self._serve(*talk)
            finally:
                with self._change:
                    self._busy -= 1

    def _next(self) -> tuple[socket.socket, int, bytes] | None:
        """The next connection; None: this thread is not needed any more."""
        with self._change:
            self._idle += 1
            self._change.wait_for(lambda: self._line or self._lines.ending.is_set(), IDLE_S)
            self._idle -= 1
            if self._line and not self._lines.ending.is_set():
                self._busy += 1
                return self._line.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def end(self, wait_s: float | None = None) -> None:
        """Cut every transfer, and wait for its thread, at most so long."""
        with self._change:
            self._lines.ending.set()
            self._change.notify_all()
            threads = list(self._threads)
            left, self._line = self._line, deque()
        for one, _, _ in left:
            self._lines.close(one)
        join_all(threads, wait_s)

    def forget(self) -> None:
        """In a forked child."""
        self._lines.forget()

    # --- one connection

    def _serve(self, one: socket.socket, node: int, said: bytes) -> None:
        ends = Ends(self._cluster, self._node, node)
        if kind_of(said) == JOIN:
            self._introduce(one, ends, said)
            return
        if wants(said) in (MEMBERS_WANTED, CHANGE_WANTED):
            self._tell(one, Telling(ends, self.members, self.change), said)
            return
        talk = _Talk(self, node)
        sender = Sender(self.catalog.files, ends, talk, self._bucket, now_us())
        try:
            out = sender.feed(said, now_us())
            self._lines.run(one, sender, lambda: sender.done, out)
        except Ending:
            pass
        except (Cut, OSError, DriverError, StoreError) as error:
            self._failed(talk, sender, error)
        except Exception as error:
            log.exception("a transfer to node %d", node)
            self._failed(talk, sender, error)
        finally:
            sender.close()
            self._lines.close(one)
            self._over(talk, sender)

    def _introduce(self, one: socket.socket, ends: Ends, said: bytes) -> None:
        try:
            self._lines.send(one, self.welcome(said, ends))
            log.info("node %d, which is no peer here, asked who is there", ends.peer)
        except Ending:
            pass
        except (Cut, OSError, PhxError) as error:
            log.debug("node %d, which asked who is there: %s", ends.peer, error)
        finally:
            self._lines.close(one)

    def _tell(self, one: socket.socket, telling: Telling, said: bytes) -> None:
        """Of members: an answer, and no more."""
        try:
            out = telling.feed(said, now_us())
            self._lines.run(one, telling, lambda: telling.done, out)
        except Ending:
            pass
        except (Cut, OSError, DriverError, PhxError, ValueError) as error:
            log.debug("node %d, which asked for members: %s", telling.ends.peer, error)
        finally:
            self._lines.close(one)

    def _failed(self, talk: _Talk, sender: Sender, error: Exception) -> None:
        if talk.holds is None:
            return  # an answer that nobody waited for
        self.counters["provide_failed"] += 1
        log.warning(
            "group %d: the transfer to node %d was cut after %d bytes: %s",
            talk.holds.group, talk.node, sender.sent_bytes, error or type(error).__name__,
        )  # fmt: skip
        if isinstance(error, Damaged):
            self._damaged(talk.holds, error)

    def _damaged(self, manifest: Manifest, error: Damaged) -> None:
        """Put it aside, and have another one taken in its place."""
        self.catalog.found_damaged(manifest, error)
        self._ask(manifest.group)

    def _over(self, talk: _Talk, sender: Sender) -> None:
        if talk.holds is None:
            return
        with self._lock:
            self.counters["providing"] -= 1
            self.counters["provided"] += sender.done
            self.counters["provided_bytes"] += sender.sent_bytes
        self.pins.release(talk.holds, AFTER_END_S if sender.done else AFTER_CUT_S)

    # --- what there is

    def offer(self, fetch: Fetch) -> Offer:
        """What this node could provide of a group."""
        self.pins.expire()
        state = self._states.get(fetch.group)
        if state is None:
            return Offer(floor=NEVER)
        status = self._driver.group_status(fetch.group)
        floor, leading = int(status["floor"]), bool(status["leading"])
        best = offered(self._sound(fetch.group), floor=floor, ident=fetch.ident)
        if fetch.what == OFFER_WANTED:
            if best is None or best.frontier <= fetch.above:
                self._wish(state, fetch.above, leading)
            elif not self.pins.keep(best, AFTER_OFFER_S):
                best = None  # it went just now
        return Offer(
            frontier=best.frontier if best else 0,
            ident=best.content if best else b"",
            size_bytes=best.size_bytes if best else 0,
            floor=floor,
            leading=leading,
            busy=self.counters["providing"],
            chains=self._chains(fetch) if fetch.what == DIGESTS else (),
        )

    def _chains(self, fetch: Fetch) -> tuple[Chain, ...]:
        if self.doubted(fetch.group):
            return ()  # what was noted of it would put in doubt those who are right
        return tuple(Chain(*one) for one in self._noted(fetch.group, fetch.above))

    def _sound(self, group: int) -> list[Manifest]:
        """Those with all states in them, unless the group is to be made anew."""
        if self.doubted(group):
            return []
        return [one for one in self.catalog.of(group) if not one.light]

    def _wish(self, state: GroupState, above: int, leading: bool) -> None:
        """Have one taken that somebody asks for, one at a time of each group."""
        now_s = time.monotonic()
        with self._lock:
            since_s, taking = self._wished.get(state.group, (now_s, None))
            if taking.done() if taking is not None else now_s - since_s > WISH_OLD_S:
                since_s, taking = now_s, None
            able = state.stopped is None and state.applied > above
            able = able and not self.doubted(state.group)
            patient = leading and now_s - since_s < LEADER_WAITS_S
            if taking is None and able and not patient:
                log.info("group %d: a checkpoint is taken for who asks for it", state.group)
                taking = self._ask(state.group)
            self._wished[state.group] = since_s, taking

    def begin(self, fetch: Fetch) -> Manifest | None:
        """The checkpoint that is asked for, held; None: it is not given now."""
        assert fetch.what == CHECKPOINT
        found = [one for one in self._sound(fetch.group) if one.content == fetch.ident]
        with self._lock:
            if not found or self.counters["providing"] >= self._transfers_max:
                return None
            if not self.pins.hold(found[0]):
                return None
            self.counters["providing"] += 1
            return found[0]

    def entries(self, fetch: Fetch) -> Iterator[list[Entry]] | None:
        """Runs of the values that are wanted, as far as they are here."""
        if fetch.group not in self._states:
            return None
        runs = self._runs(fetch.group, fetch.above + 1, fetch.through)
        first = next(runs, None)
        return None if first is None else _behind(first, runs)

    def _runs(self, group: int, first: int, last: int) -> Iterator[list[Entry]]:
        while first <= last:
            run: list[Entry] = []
            nbytes = 0
            while first + len(run) <= last and nbytes < RUN_BYTES:
                body = self._driver.read(group, first + len(run))
                if not isinstance(body, bytes):
                    break
                run.append(Entry(first + len(run), body))
                nbytes += len(body)
            if not run and (packed := self._store.read(group, first, RUN_BYTES, last)):
                run = unpack_entries(packed)
            if not run:
                return
            yield run
            first = run[-1].instance + 1


def _behind(first: list[Entry], rest: Iterator[list[Entry]]) -> Iterator[list[Entry]]:
    yield first
    yield from rest
