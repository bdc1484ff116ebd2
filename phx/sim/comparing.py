"""How a simulated node finds out that a replica of it is odd, as events: what `phx.node.divergence`
does on its threads, and `phx.node.transfers` when it was found.

noted      when an agreed instance is applied: chained checksum and machine
asked      each peer that there is a connection with, every `compare_us` or so
compared   production code, `phx.checkpoint.digests`
stopped    the group; its checkpoints beyond the last known equality go to quarantine
repaired   a little later the group is made anew (`fetching`), by the node or by its next start

What claims U9i say of it is looked at here, too, where it is not the watch's: that a majority which
has told this node what it is does not tell it in vain (`oddness.missed`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

from phx.checkpoint.digests import Agreed, Comparison, Known, Verdict, state_of
from phx.checkpoint.manifest import Manifest
from phx.sim.fetching import Line
from phx.sim.oddness import missed, settled
from phx.sim.pipes import Net
from phx.sim.steps import run_steps
from phx.transfer.messages import DIGESTS, Chain, Ends, Fetch, Greeting
from phx.transfer.receiver import Asker

if TYPE_CHECKING:
    from phx.sim.host import Host

__all__ = ["Comparing"]

ANSWER_US = 1_000_000
"""So long one answer is waited for; then the peer is asked for nothing more in this round."""
REPAIR_US_MAX = 5_000_000
ASKED_US = 3_000_000
"""After this, or twice as much, somebody has an odd one made anew that no majority could find."""
NEVER = 1 << 62
DYING = 0.3
"""Of repairs: the mark is all that is done, and the next start makes the group anew."""


class Comparing:
    """The comparisons of one node, over all its lives.

    Args:
        net: connections, over the links of the world.
        peers: the hosts, by node; those of others tell claims alone who is odd.
        every_us: about that often peers are asked; 0: never.
        agreed_every: agreed instances are the multiples of this.

    Attributes:
        counts: over all lives; `World.counters` has each under its name.
    """

    def __init__(
        self,
        host: Host,
        net: Net,
        peers: dict[int, Host],
        cluster: int,
        seed: int,
        *,
        every_us: int,
        agreed_every: int,
    ) -> None:
        self.host = host
        self.net = net
        self.peers = peers
        self.members = len(peers)
        self.counts = dict.fromkeys(
            ("compared", "odd_found", "odd_others", "odd_split", "odd_asked"), 0
        )
        self._cluster = cluster
        self._every_us = every_us
        self._agreed_every = agreed_every
        self._chance = Random(f"comparing {seed}")
        self.crash()

    @property
    def on(self) -> bool:
        """Whether nodes compare what they applied."""
        return self._every_us > 0

    def crash(self) -> None:
        """The process is dead."""
        self._known = Comparison(self.members, self._agreed_every)
        self._right: dict[int, dict[int, set[int]]] = {}
        self._asking = 0
        self._asking_for: set[int] = set()

    def dies(self) -> None:
        """Of a Line: nothing here writes to a disk."""

    def begin(self) -> None:
        """A life begins."""
        if self.on:
            self._later()

    def _later(self) -> None:
        at_us = self._every_us // 2 + self._chance.randrange(self._every_us)
        self.host.soon(1 + at_us, self._round)

    # --- what is noted

    def note(self, group: int, instance: int, chain: int) -> None:
        """All of the group is applied through an agreed instance."""
        if self.on:
            state = state_of({0: self.host.machine[group]})
            self._known.note(group, Agreed(instance, chain, state))

    def forget(self, group: int) -> None:
        """The group goes on from another state."""
        self._known.forget(group)

    def noted(self, group: int, above: int) -> list[Agreed]:
        """What this node says to who asks."""
        return self._known.noted(group, above)

    # --- a round

    def _round(self) -> None:
        peers = self.host.connected()
        self._asking = len(peers)
        for peer in peers:
            self._next(peer, deque(self._known.news(peer)))
        if not peers:
            self._judge()

    def _next(self, peer: int, news: deque[tuple[int, int]]) -> None:
        """Ask that peer for the next group of which it may have news."""
        if not news:
            self._asking -= 1
            if not self._asking:
                self._judge()
            return
        host, (group, above) = self.host, news.popleft()
        asker = Asker(
            Ends(self._cluster, host.node, peer), Fetch(DIGESTS, group, above), host.now_us
        )
        hello = asker.hello(Greeting(host.incarnation, bytes([host.node]) * 16, host.now_us))
        waiting = [True]

        def over(error: Exception | None) -> None:
            if not waiting:
                return
            waiting.clear()
            if error is None and asker.offer is not None:
                self._heard(group, peer, asker.offer.chains)
            else:
                news.clear()  # it is not to be reached
            self._next(peer, news)

        def late() -> None:
            if waiting:
                line.close()
                over(TimeoutError())

        line = Line(self, asker, peer, hello, over)
        host.soon(ANSWER_US, late)

    def _heard(self, group: int, peer: int, chains: Iterable[Chain]) -> None:
        self._known.heard(group, peer, chains)
        since, right = self.peers[peer].odd(group), self._right.setdefault(group, {})
        for one in chains:
            if not since or one.instance < since:
                right.setdefault(one.instance, set()).add(peer)

    def _judge(self) -> None:
        self._later()
        for group in self._known.unjudged():
            known = self._known.known(group)
            verdict = self._known.judge(known)
            self.counts["compared"] += 1
            if self._known.news_is(group, known, verdict):
                self._say(group, verdict, known)
            if verdict.kind != "equal" and self.host.odd(group):
                self._ask_somebody(group)
            self._look(group)

    def _look(self, group: int) -> None:
        host = self.host
        since = host.odd(group)
        if since and not host.found(group):
            noted = [one.instance for one in self.noted(group, 0)]
            at = missed(noted, since, self._right.get(group, {}), self.members)
            if at is not None:
                where = f"node {host.node}, group {group}"
                told = f"a majority has said what it is at {at}"
                host.broken("U9i", f"{where}: odd since {since}, {told}, and it is not found")

    # --- what follows

    def _say(self, group: int, verdict: Verdict, known: Known) -> None:
        self.host.trace("compared", group, str(verdict))
        if verdict.kind == "others":
            self.counts["odd_others"] += 1
        elif verdict.kind == "split":
            self.counts["odd_split"] += 1
        else:
            self.counts["odd_found"] += 1
            self._odd(group, verdict, known)

    def _odd(self, group: int, verdict: Verdict, known: Known) -> None:
        host = self.host
        differs = verdict.differs
        if not settled(known, differs, self.members):
            differs = NEVER  # then it is named too early rather than too late
        host.halt_odd(group, verdict.equal, differs, str(verdict))
        spared = host.fetching.installing_of.get(group, b"")
        victims = host.keeping.condemn(group, verdict.equal, spared)
        left = [one for one in host.keeping.catalog.of(group) if host.keeping.is_odd(one)]
        for one in left:
            if one.content != spared:
                where = f"node {host.node}, group {group}, instance {one.frontier}"
                host.broken("U9i", f"{where}: keeps a checkpoint of when it was odd")
        run_steps(host, self._chance, self._aside(group, victims))
        host.soon(1 + self._chance.randrange(REPAIR_US_MAX), lambda: self._repair(group))

    def _aside(self, group: int, victims: list[Manifest]) -> Iterator[str]:
        """As `phx.node.divergence.set_aside`."""
        host, catalog = self.host, self.host.keeping.catalog
        while not host.busy(group, True):
            yield "waits"
        try:
            for one in victims:
                again = any(other.content == one.content for other in catalog.of(group))
                if not again and host.fetching.installing_of.get(group) != one.content:
                    with suppress(OSError):
                        catalog.put_aside(one)
                    yield "aside"
        finally:
            host.busy(group, False)

    def _ask_somebody(self, group: int) -> None:
        if group not in self._asking_for:
            self._asking_for.add(group)
            after_us = ASKED_US + self._chance.randrange(ASKED_US)
            self.host.soon(after_us, lambda: self._asked(group))

    def _asked(self, group: int) -> None:
        """Nobody of the cluster can say who is right; somebody who reads its log does."""
        self._asking_for.discard(group)
        if self.host.odd(group) and not self.host.found(group):
            self.counts["odd_asked"] += 1
            self.host.fetching.rebuild(group)

    def _repair(self, group: int) -> None:
        if self.host.found(group):
            self.host.fetching.rebuild(group, self._chance.random() < DYING)
