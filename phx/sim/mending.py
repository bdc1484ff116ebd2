"""How a simulated node mends its store, as events: what `phx.node.mender` does on its threads.

noted      the damaged instances of a chunk are holes from now on: nobody is served from there
mended     what is there twice is taken from where it is sound
fetched    what is not, from one peer after the other, by the production asker and sender
mended     the chunk is written anew, in one transaction

What is damaged, and how a chunk is written anew, says `phx.store_mend`. A crash between two steps
leaves what is found and done again.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from phx.sim.fetching import Line
from phx.sim.pipes import Net
from phx.sim.storage import StoreDamaged, StoreFailed
from phx.store_mend import Hole
from phx.transfer.messages import ENTRIES_WANTED, Ends, Entry, Fetch, Greeting
from phx.transfer.receiver import Asker

if TYPE_CHECKING:
    from phx.sim.host import Host

__all__ = ["Mending"]

STEP_US_MAX = 15_000
RETRY_US = 300_000
RETRY_US_MAX = 2_000_000

Bodies = dict[tuple[int, int], bytes]


class Mending:
    """What one node mends, over all its lives.

    Args:
        net: connections, over the links of the world.
        peers: the hosts, by node.

    Attributes:
        counts: over all lives; `World.counters` has each under its name.
    """

    def __init__(
        self, host: Host, net: Net, peers: dict[int, Host], cluster: int, seed: int
    ) -> None:
        self.host = host
        self.net = net
        self.peers = peers
        self.counts = dict.fromkeys(("ailing", "holes", "mended", "mends_in_vain"), 0)
        self._cluster = cluster
        self._chance = Random(f"mending {seed}")
        self._known: set[int] = set()
        self._pause_us = RETRY_US

    def crash(self) -> None:
        """The process is dead."""
        self._known = set()
        self._pause_us = RETRY_US

    def dies(self) -> None:
        """Of a Line: nothing here writes to a disk."""

    # --- what is found

    def begin(self) -> None:
        """See to what the last life left."""
        for chunk in self.host.store.damaged():
            self.suspect(chunk)

    def scrub(self) -> None:
        """Look through all chunks."""
        store = self.host.store
        for chunk in sorted(store.chunks):
            if store.check(chunk) is not None:
                self.suspect(chunk)

    def suspect(self, chunk: int) -> None:
        """This chunk was found damaged."""
        if chunk not in self._known and self.host.up:
            self._known.add(chunk)
            self._soon(lambda: self._see_to(chunk))

    def _soon(self, what: Callable[[], None], after_us: int = 0) -> None:
        self.host.soon(1 + after_us + self._chance.randrange(STEP_US_MAX), what)

    def _again(self, what: Callable[[], None]) -> None:
        self._soon(what, self._pause_us)
        self._pause_us = min(2 * self._pause_us, RETRY_US_MAX)

    def _see_to(self, chunk: int) -> None:
        store = self.host.store
        ailing = store.check(chunk)
        if ailing is None:
            self._known.discard(chunk)
            self.host.mended({})
            return
        try:
            store.note(ailing)
        except StoreFailed:
            self._again(lambda: self._see_to(chunk))
            return
        self.counts["ailing"] += 1
        self.counts["holes"] += sum(hole.last - hole.first + 1 for hole in ailing.holes)
        self._soon(lambda: self._fetch(chunk, {}, []))

    # --- fetching

    def _fetch(self, chunk: int, bodies: Bodies, left: list[int]) -> None:
        """The next instances that are missing, from the peers that are `left`; all, if none is."""
        host = self.host
        hole = next(
            (
                Hole(hole.group, first, hole.last)
                for hole in host.store.holes_of(chunk)
                for first in range(hole.first, hole.last + 1)
                if (hole.group, first) not in bodies
            ),
            None,
        )
        if hole is None:
            self._soon(lambda: self._mend(chunk, bodies))
            return
        if not left:
            left = host.connected()
            self._chance.shuffle(left)
        if not left:
            self._again(lambda: self._fetch(chunk, bodies, []))
            return
        self._ask(left[0], hole, lambda found: self._came(chunk, bodies, left, hole, found))

    def _ask(self, peer: int, hole: Hole, done: Callable[[list[Entry]], None]) -> None:
        host = self.host
        fetch = Fetch(ENTRIES_WANTED, hole.group, hole.first - 1, hole.last)
        asker = Asker(Ends(self._cluster, host.node, peer), fetch, host.now_us)
        greeting = Greeting(host.incarnation, bytes([host.node]) * 16, host.now_us)
        Line(self, asker, peer, asker.hello(greeting), lambda error: done(asker.entries))

    def _came(
        self, chunk: int, bodies: Bodies, left: list[int], hole: Hole, found: list[Entry]
    ) -> None:
        """What was whole before a cut counts."""
        for one in found:
            bodies[hole.group, one.instance] = one.body
        if found or len(left) > 1:
            self._soon(lambda: self._fetch(chunk, bodies, left if found else left[1:]))
            return
        self.counts["mends_in_vain"] += 1
        self.host.fetching.lost(*hole)
        self._again(lambda: self._fetch(chunk, {}, []))

    # --- mending

    def _mend(self, chunk: int, bodies: Bodies) -> None:
        store = self.host.store
        try:
            mended = store.mend(chunk, bodies)
        except StoreFailed:
            self._again(lambda: self._mend(chunk, bodies))
            return
        except StoreDamaged:  # more of it is by now
            self._known.discard(chunk)
            self.suspect(chunk)
            return
        self._known.discard(chunk)
        self._pause_us = RETRY_US
        if mended:
            self.counts["mended"] += len(bodies)
        self.host.mended(bodies if mended else {})
