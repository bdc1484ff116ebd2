"""Fetches from peers what no log brings any more: checkpoints, of groups that lie below all floors.

wanted     the engine says that nobody has the log that comes next (EVENT_BELOW); a start found no
           checkpoint that serves; or somebody wants a group's state made anew
asked      every connected peer, what it could provide (`phx.transfer.choice`)
fetched    into staging, from one of them; what came before a cut is gone on with, from anybody
           who has the same checkpoint
installed  `phx.node.installer`; the rest comes as log

A checkpoint of this node's own that would do is installed instead of a fetched one. As long as
nobody has one that helps, all are asked again, less and less often: who has none, or one without
its state, takes a whole one when it is asked.

Threads ``phx-fetch``: at most `fetches_max`, and none while nothing is wanted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from phx._core.driver import ERROR_CLOSED, DriverError
from phx.checkpoint.files import exists, remove_tree
from phx.checkpoint.loading import Broken
from phx.checkpoint.manifest import Manifest
from phx.checkpoint.taking import run
from phx.errors import Closed, Damaged, Foreign, PhxError
from phx.node.installer import Installer
from phx.node.line import Ending, Lines, now_us
from phx.node.restorer import Unfit
from phx.node.threads import join_all
from phx.store_hosted import generation_at
from phx.transfer.choice import (
    Log,
    Providers,
    believed,
    log_there,
    lowest_floor,
    own_to_install,
)
from phx.transfer.messages import (
    DIGESTS,
    ENTRIES_WANTED,
    OFFER_WANTED,
    Chain,
    Cut,
    Ends,
    Entry,
    Fetch,
    Greeting,
    Offer,
)
from phx.transfer.receiver import Asker, Receiver, Wish
from phx.transfer.staging import Staged, waiting

__all__ = ["Fetcher", "Peers"]

log = logging.getLogger("phx")

Noted = Callable[[int, int], Iterable[tuple[int, int, bytes]]]
RETRY_S, RETRY_MAX_S = 0.5, 15.0
"""Between two rounds in which nobody had anything that helps."""
UNFIT_S = 60.0
"""After a checkpoint that the machines do not take."""
BYTES_MAX = 1 << 50
"""Of one checkpoint; the room on the disk is the limit that counts."""


@dataclass(frozen=True, slots=True)
class Peers:
    """Who can be asked, and as whom.

    Attributes:
        cluster, node: this one.
        members: how many the group with the most members has now.
        greeting: as in this node's HELLO.
        addresses: (numeric host, port) of every other member whose address is known.
        connected: those that there is a connection with.
        timeout_us: for connecting.
        reach: the same of one node, looked up afresh (which blocks); raises KeyError.
    """

    cluster: int
    node: int
    members: Callable[[], int]
    greeting: Greeting
    addresses: Callable[[], Mapping[int, tuple[str, int]]]
    connected: Callable[[], set[int]]
    timeout_us: int
    reach: Callable[[int], tuple[str, int]] | None = None

    def at(self, node: int) -> tuple[str, int]:
        """Where to connect with it now. Blocks. Raises KeyError, OSError."""
        return self.addresses()[node] if self.reach is None else self.reach(node)

    def known(self) -> dict[int, tuple[str, int]]:
        """Those that can be asked now."""
        connected = self.connected()
        return {node: at for node, at in self.addresses().items() if node in connected}


@dataclass
class Want:
    """A group that needs a checkpoint.

    Attributes:
        anew: its machines have failed, or there are none: the log alone is of no use.
        asked: so many times that was wished.
        hole: first and last instance of a hole in the log here that no peer fills.
        due_s: when it is its turn, by time.monotonic.
        why: what is in the way, for people.
        unfit: checkpoints that the machines do not take.
        others: what the machines did not take just now was not all that was offered.
        chosen: what was known to be chosen here when it was found that somebody may have the log.
    """

    group: int
    anew: bool
    asked: int = 0
    hole: tuple[int, int] | None = None
    due_s: float = 0.0
    pause_s: float = RETRY_S
    working: bool = False
    why: str = ""
    node: int = 0
    there_bytes: int = 0
    total_bytes: int = 0
    providers: Providers = field(default_factory=Providers)
    unfit: set[bytes] = field(default_factory=set)
    others: bool = False
    chosen: int | None = None


class Fetcher:
    """Brings groups on that no log brings on.

    Guarantee: a group that is wanted is tried until it is there, or the node closes; no transfer
    of a group holds up another one but by its turn.

    Args:
        installer: installs, and has the node's groups, driver and checkpoints.
        reserve_bytes: what stays free on the disk.
        failed: told of a group without machines whose checkpoint its machines do not take.

    Attributes:
        noted: (group, above) -> what this node noted at agreed instances beyond that one.
        awaited: whether somebody waits for a group that is to be made anew.
        on_unfit: told of a group to be made anew whose machines take none of what is offered.
        on_removed: told of a group that this node left while it was fetched: nothing more of it
            comes.
        counters: since the start; "fetching", "wanted": now.
    """

    def __init__(
        self,
        installer: Installer,
        peers: Peers,
        failed: Callable[[int, BaseException], None],
        *,
        fetches_max: int,
        reserve_bytes: int,
    ) -> None:
        self._installer = installer
        self._catalog = installer.catalog
        self._states = installer.states
        self._driver = installer.driver
        self._peers = peers
        self._failed = failed
        self.awaited: Callable[[int], bool] = lambda group: False
        self.on_unfit: Callable[[int, BaseException], None] = lambda group, error: None
        self.on_removed: Callable[[int], None] = lambda group: None
        self._fetches_max = fetches_max
        self._reserve_bytes = reserve_bytes
        self._lines = Lines()
        self._lines.ending = installer.ending
        self.noted: Noted = lambda group, above: ()
        self._change = threading.Condition()
        self._wants: dict[int, Want] = {}
        self._threads: set[threading.Thread] = set()
        self._number = 0
        self._tidy()
        self.counters = {"fetching": 0, "fetched": 0, "fetched_bytes": 0, "fetch_failed": 0}

    def _tidy(self) -> None:
        """Of what was received in part, forget that which this node has something newer than."""
        files, root = self._catalog.files, self._catalog.root
        for group, (path, manifest) in waiting(files, root).items():
            newest = next(iter(self._catalog.of(group)), None)
            if newest is not None and newest.frontier >= manifest.frontier:
                with suppress(OSError):
                    remove_tree(files, path)

    # --- who wants one

    def below(self, group: int, leader: int, floor: int) -> None:
        """Nobody has the log that the group needs next; with `leader` 0 it is this node's own that
        does not go on. Any thread."""
        self._want(group, anew=False)

    def anew(self, group: int) -> None:
        """Make the group's state anew from a checkpoint of another node. Any thread."""
        self._want(group, anew=True)

    def lost(self, group: int, first: int, last: int) -> None:
        """The log here has a hole, and no peer gave what fills it. Any thread."""
        if (state := self._states.get(group)) is not None and state.applied < last:
            self._want(group, anew=False, hole=(first, last))

    def let_go(self, group: int) -> bool:
        """Nothing is wanted of the group any more; whether somebody is at it still."""
        with self._change:
            want = self._wants.get(group)
            if want is None or not want.working:
                self._wants.pop(group, None)
                return False
            return True

    def wanted(self) -> dict[int, Want]:
        """The groups that need one, and how far that is."""
        with self._change:
            return dict(self._wants)

    def __contains__(self, group: object) -> bool:
        return group in self._wants

    def _want(self, group: int, *, anew: bool, hole: tuple[int, int] | None = None) -> None:
        with self._change:
            state = self._states.get(group)
            if self._lines.ending.is_set() or state is None or state.removed:
                return
            want = self._wants.get(group)
            if want is None:
                want = self._wants[group] = Want(group, anew)
            want.anew = want.anew or anew
            want.asked += anew
            want.hole = hole or want.hole
            self._change.notify_all()
            if len(self._threads) < min(self._fetches_max, len(self._wants)):
                self._number += 1
                name = f"phx-fetch-{self._number}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                thread.start()
                self._threads.add(thread)

    def gone(self, group: int) -> None:
        """This node is no member of it any more (`GroupState.removed`). Any thread."""
        with self._change:
            want = self._wants.get(group)
            if want is not None and not want.working:
                del self._wants[group]

    def end(self, wait_s: float | None = None) -> None:
        """Fetch nothing more. It waits for the threads, at most `wait_s`."""
        self._lines.ending.set()
        with self._change:
            self._change.notify_all()
            threads = list(self._threads)
        join_all(threads, wait_s)

    def forget(self) -> None:
        """In a forked child."""
        self._lines.forget()

    # --- the threads

    def _work(self) -> None:
        while (want := self._next()) is not None:
            asked = want.asked
            try:
                over = self._attempt(want)
            except Ending:
                over = True
            except BaseException as error:  # a user's factory or restore may exit, too
                over = self._gone_wrong(want, error)
            left = self._states[want.group].removed
            if left:
                self.on_removed(want.group)
            with self._change:
                want.working = False
                want.node = want.there_bytes = want.total_bytes = 0
                if left or (over and want.asked == asked):  # else more was asked for meanwhile
                    self._wants.pop(want.group, None)
                else:
                    want.due_s = time.monotonic() + want.pause_s
                    want.pause_s = min(want.pause_s * 1.5, RETRY_MAX_S)
                self._change.notify_all()

    def _next(self) -> Want | None:
        """The next whose turn it is; None: this thread is not needed any more."""
        with self._change:
            while not self._lines.ending.is_set():
                idle = [one for one in self._wants.values() if not one.working]
                if not idle:
                    break
                first = min(idle, key=lambda one: one.due_s)
                wait_s = first.due_s - time.monotonic()
                if wait_s <= 0:
                    first.working = True
                    return first
                self._change.wait(wait_s)
            self._threads.discard(threading.current_thread())
            return None

    def _gone_wrong(self, want: Want, error: BaseException) -> bool:
        """Say so; whether it is of no use to try again."""
        if self._lines.ending.is_set() or isinstance(error, Closed):
            return True
        if self._states[want.group].removed:
            return True
        if isinstance(error, DriverError) and error.code == ERROR_CLOSED:
            return True
        self.counters["fetch_failed"] += 1
        want.why = f"{type(error).__name__}: {error}"
        if isinstance(error, (Cut, OSError, Broken, PhxError)):
            log.warning("group %d: no checkpoint yet: %s", want.group, want.why)
            return False
        log.error("group %d: a checkpoint cannot be installed", want.group, exc_info=error)
        if want.others:
            want.pause_s = RETRY_S
            return False
        want.pause_s = UNFIT_S
        if not want.anew:
            return False
        self.on_unfit(want.group, error)
        if self._states[want.group].stopped is None:
            self._failed(want.group, error)
            return True
        return False

    # --- one group

    def _attempt(self, want: Want) -> bool:
        """One round; True: nothing is wanted any more."""
        want.others = False
        status = self._driver.group_status(want.group)
        state = self._states[want.group]
        if state.removed or (not want.anew and state.stopped is not None):
            return True
        if not want.anew and want.group in self._installer.paused:
            want.why = "it is being restored"
            return False
        chosen, own_floor = int(status["chosen_through"]), int(status["floor"])
        # (What a group without machines has applied is of no use to it.)
        idle = state.stopped is not None or want.group in self._installer.paused
        if want.anew and not idle:
            if not self.awaited(want.group):
                return True  # it was made anew since
            self._installer.pause(want.group)
            idle = True
        above = max(0 if want.anew and idle else state.applied, own_floor - 2)
        hole = None if want.anew else want.hole
        if hole is not None:
            if state.applied >= hole[1]:
                return True
            above = max(above, hole[1] - 1)
        offers = self._offers(want, above, generation_at(own_floor))
        if not offers:
            want.why = "nobody answers whose state is not in doubt"
            return False
        if hole and any(self.entries(node, want.group, hole[0], hole[0]) for node in offers):
            return True  # who could not be asked when the hole was told of
        found = [] if want.anew else self._catalog.of(want.group)
        if not want.anew and not want.hole and own_floor <= state.applied + 1:
            there = log_there(offers, chosen=chosen, before=want.chosen)
            if there is Log.PERHAPS:
                want.chosen, want.why = chosen, "somebody may have the log"
                return False
            if there is Log.CAME:
                self._forget_staged(want.group)
                return True
            if there is Log.NOBODY_AHEAD and not want.providers.helps(
                found, offers, applied=above, now_us=now_us()
            ):
                return True  # if there is more all the same, it is told again
        floor = max(lowest_floor(offers, chosen), own_floor)
        local = own_to_install(found, applied=state.applied, chosen=chosen, floor=floor)
        if local is not None:
            log.info("group %d: goes on from its checkpoint at %d", want.group, local.frontier)
            self._install(local, verified=False)
            return True
        return self._fetch(want, offers, above)

    def _fetch(self, want: Want, offers: dict[int, Offer], above: int) -> bool:
        files, root = self._catalog.files, self._catalog.root
        path, manifest = waiting(files, root).get(want.group, ("", None))
        ident = b"" if manifest is None else manifest.content
        node = want.providers.choose(offers, applied=above, now_us=now_us(), staged=ident)
        if node is None:
            want.why = "nobody has a checkpoint that helps"
            return False
        offer = offers[node]
        staged = None
        if ident == offer.ident:
            with suppress(Damaged, Foreign):
                staged = Staged.resume(files, root, path, self._reserve_bytes)
        if staged is None:
            self._forget_staged(want.group)
        wish = Wish(want.group, offer.ident, above, BYTES_MAX, self._reserve_bytes)
        try:
            published = self._receive(want, node, offer, wish, staged)
        except (Cut, OSError, Damaged):
            want.providers.failed(node, now_us())
            raise
        try:
            self._install(published, verified=True)
        except Unfit:
            want.unfit.add(published.content)
            left = {n: one for n, one in offers.items() if one.ident not in want.unfit}
            others = want.providers.choose(left, applied=above, now_us=now_us())
            want.others = others is not None
            raise
        return True

    def _receive(
        self, want: Want, node: int, offer: Offer, wish: Wish, staged: Staged | None
    ) -> Manifest:
        """Fetch it, and make it a checkpoint."""
        peers = self._peers
        ends = Ends(peers.cluster, peers.node, node)
        receiver = Receiver(self._catalog.files, self._catalog.root, ends, wish, now_us(), staged)
        log.info(
            "group %d: fetches the checkpoint at %d from node %d, %d bytes, %d are here",
            want.group, offer.frontier, node, offer.size_bytes, receiver.progress.there,
        )  # fmt: skip
        with self._change:
            self.counters["fetching"] += 1
            want.node, want.why = node, ""
        watched = _Watched(receiver, want)
        try:
            line = self._lines.dial(*peers.at(node), peers.timeout_us)
            try:
                hello = receiver.hello(peers.greeting)
                self._lines.run(line, watched, lambda: receiver.ended, hello)
            finally:
                self._lines.close(line)
                receiver.close()
        finally:
            received = receiver.progress.received
            if received:
                want.pause_s = RETRY_S
            with self._change:
                self.counters["fetching"] -= 1
                self.counters["fetched_bytes"] += received
        assert receiver.staged is not None
        published = run(receiver.staged.publish())
        self.counters["fetched"] += 1
        return published

    def _install(self, manifest: Manifest, *, verified: bool) -> None:
        try:
            with ExitStack() as stack:
                with suppress(KeyError):  # one that was fetched is not known yet
                    stack.enter_context(self._catalog.pinned(manifest))
                self._installer.install(manifest, verified=verified)
        except Broken as error:
            self._catalog.found_damaged(manifest, error)
            raise
        log.info("group %d: goes on behind %d", manifest.group, manifest.frontier)

    def _forget_staged(self, group: int) -> None:
        """What was received in part is of no use any more."""
        files, root = self._catalog.files, self._catalog.root
        while (found := waiting(files, root).get(group)) is not None:
            remove_tree(files, found[0])
            if exists(files, found[0]):
                return

    # --- questions

    def _offers(self, want: Want, above: int, generation: int) -> dict[int, Offer]:
        """What each peer that answers has. (One that has another group of this id by now, or still,
        has nothing.)"""
        ident = b""
        if found := waiting(self._catalog.files, self._catalog.root).get(want.group):
            ident = found[1].content
        offers = {}
        for node in self._peers.known():
            asker = self.ask(node, Fetch(OFFER_WANTED, want.group, above, 0, ident))
            if asker is not None and (offer := asker.offer) is not None:
                if generation_at(offer.floor) != generation:
                    continue
                if offer.ident in want.unfit:
                    offer = replace(offer, frontier=0, ident=b"")
                offers[node] = offer
        said = {node: self.digests(node, want.group, 0) or () for node in offers}
        if not want.anew:
            said[self._peers.node] = [Chain(*one) for one in self.noted(want.group, 0)]
        return believed(offers, said, self._peers.members(), anew=want.anew)

    def digests(self, node: int, group: int, above: int) -> Sequence[Chain] | None:
        """What that peer noted of a group beyond an instance; None: it gave no answer. Blocks.
        Raises Ending."""
        asker = self.ask(node, Fetch(DIGESTS, group, above))
        return None if asker is None or asker.offer is None else asker.offer.chains

    def entries(self, node: int, group: int, first: int, last: int) -> list[Entry]:
        """Values of a group's log, as far as that peer has them; [] if it has not, or is not to be
        reached. Blocks. Raises Ending."""
        asker = self.ask(node, Fetch(ENTRIES_WANTED, group, first - 1, last))
        return [] if asker is None else asker.entries

    def ask(self, node: int, fetch: Fetch) -> Asker | None:
        """One question to one peer; None: it gave no answer. Blocks. Raises Ending."""
        peers = self._peers
        asker = Asker(Ends(peers.cluster, peers.node, node), fetch, now_us())
        try:
            line = self._lines.dial(*peers.at(node), peers.timeout_us)
            try:
                self._lines.run(line, asker, lambda: asker.ended, asker.hello(peers.greeting))
            finally:
                self._lines.close(line)
        except (Cut, OSError, KeyError) as error:
            log.debug("node %d gave no answer: %s", node, error)
            return None
        return asker


class _Watched:
    """A Receiver whose progress can be seen by others."""

    def __init__(self, receiver: Receiver, want: Want) -> None:
        self._receiver = receiver
        self._want = want

    @property
    def due_us(self) -> int:
        return self._receiver.due_us

    def feed(self, data: bytes, at_us: int) -> bytes:
        out = self._receiver.feed(data, at_us)
        progress = self._receiver.progress
        self._want.there_bytes, self._want.total_bytes = progress.there, progress.total
        return out
