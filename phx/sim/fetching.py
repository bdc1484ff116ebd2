"""What a simulated node does when no log brings a group on: production code, and what its fetching
thread would do, as events.

wanted, asked, fetched, installed: as `phx.node.fetcher` of a real node. One group at a time.
Whether a checkpoint is needed, and who provides it, says the production `choice`; what comes goes
through the production receiver and its staging; the order in which it is installed is that of
`phx.checkpoint.installing`. A crash may come between any two steps, and inside of each.

A group that is to be made anew (`rebuild`, as of `phx.node.transfers`) is marked first, durably,
and paused; the mark goes when another state is in its place, and no checkpoint is left of what was
before. Where nodes compare what they applied, nobody takes one of a peer whose state is in doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Protocol

from phx.checkpoint.catalog import ROOT
from phx.checkpoint.files import remove_tree
from phx.checkpoint.installing import install
from phx.checkpoint.loading import Broken
from phx.checkpoint.manifest import Manifest
from phx.checkpoint.rebuild import mark, unmark
from phx.errors import Damaged, Foreign
from phx.machine import StateMachine
from phx.sim.files import Crashed
from phx.sim.pipes import Net, Pipe
from phx.sim.steps import BUSY_US, STEP_US_MAX, run_steps
from phx.store_mend import Hole
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
    OFFER_WANTED,
    Chain,
    Cut,
    Ends,
    Fetch,
    Greeting,
    Offer,
)
from phx.transfer.receiver import Asker, Receiver, Wish
from phx.transfer.staging import Staged, waiting

if TYPE_CHECKING:
    from phx.sim.host import Host

__all__ = ["Fetching"]

RETRY_US = 300_000
RETRY_US_MAX = 1_500_000
ANSWERS_US = 1_000_000
"""So long the answers of a round are waited for."""
BYTES_MAX = 1 << 30


class StoreBusy(Exception):
    """The store's transaction failed, and is tried again."""


class Owner(Protocol):
    """Who has a Line."""

    host: Host
    net: Net
    peers: dict[int, Host]

    def dies(self) -> None:
        """The node died within an effect on its disk."""


class Line:
    """One connection of this node: an Asker or a Receiver, and the pipe under it."""

    def __init__(
        self, owner: Owner, speaker: Asker | Receiver, peer: int, hello: bytes,
        ended: Callable[[Exception | None], None],
    ) -> None:  # fmt: skip
        self._owner = owner
        self._speaker = speaker
        self._ended: Callable[[Exception | None], None] | None = ended
        self._due_us = 0
        self.pipe: Pipe = owner.net.dial(owner.host, owner.peers[peer], self)
        self.pipe.send(0, hello)
        self._wait()

    def came(self, data: bytes) -> None:
        error: Exception | None = None
        try:
            out = self._speaker.feed(data, self._owner.host.now_us)
        except Crashed:
            self._owner.dies()
            return
        except (Cut, OSError) as caught:
            error, out = caught, b""
        if out:
            self.pipe.send(0, out)
        if error is not None or self._speaker.ended:
            self._end(error)
        else:
            self._wait()

    def over(self) -> None:
        self._end(ConnectionError("the connection is gone"))

    def close(self) -> None:
        """Nobody waits for it any more."""
        self._ended = None
        self.pipe.cut()

    def _end(self, error: Exception | None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            if error is None:
                self.pipe.finish(0)  # behind the last ACK
            else:
                self.pipe.cut()
            ended(error)

    def _wait(self) -> None:
        host, due_us = self._owner.host, self._speaker.due_us
        if host.now_us < self._due_us <= due_us:
            return
        self._due_us = max(due_us, host.now_us + 1)
        host.soon(self._due_us - host.now_us, self._due)

    def _due(self) -> None:
        if self._ended is not None and self._owner.host.now_us >= self._due_us:
            self.came(b"")


class Round:
    """What the peers that answer have."""

    def __init__(self, peers: list[int], done: Callable[[dict[int, Offer]], None]) -> None:
        self.offers: dict[int, Offer] = {}
        self.lines: list[Line] = []
        self._left = set(peers)
        self._done: Callable[[dict[int, Offer]], None] | None = done

    def answered(self, peer: int, offer: Offer | None) -> None:
        self._left.discard(peer)
        if offer is not None:
            self.offers[peer] = offer
        if not self._left:
            self.close()

    def close(self) -> None:
        """No more is waited for."""
        done, self._done = self._done, None
        if done is not None:
            for line in self.lines:
                line.close()
            done({peer: self.offers[peer] for peer in sorted(self.offers)})


@dataclass
class Want:
    """A group that needs a checkpoint; as `phx.node.fetcher.Want`.

    Attributes:
        anew: whatever is here of its state.
        chosen: what was known to be chosen here when it was found that somebody may have the log.
        hole: in the log here, that no peer fills.
    """

    anew: bool = False
    chosen: int | None = None
    hole: Hole | None = None
    providers: Providers = field(default_factory=Providers)


class Fetching:
    """What one node fetches, over all its lives.

    Args:
        net: connections, over the links of the world.
        peers: the hosts, by node.
        factory: a new machine of a group.

    Attributes:
        counts: over all lives; `World.counters` has each under its name.
    """

    def __init__(
        self,
        host: Host,
        net: Net,
        peers: dict[int, Host],
        cluster: int,
        factory: Callable[[int], StateMachine],
        seed: int,
    ) -> None:
        self.host = host
        self.net = net
        self.peers = peers
        self.factory = factory
        self.counts = dict.fromkeys(
            ("below", "offers", "fetches", "fetches_resumed", "fetches_cut", "fetches_refused",
             "fetched_bytes", "fetches_spoilt", "installs", "installs_passed", "installs_own",
             "installs_abandoned", "marks", "made_anew"), 0,
        )  # fmt: skip
        self._cluster = cluster
        self._chance = Random(f"fetching {seed}")
        self._clear()

    def _clear(self) -> None:
        self._wanted: dict[int, Want] = {}
        self._group = -1
        self.installing_of: dict[int, bytes] = {}
        self._pause_us = RETRY_US
        self._line: Line | None = None
        self._steps: Iterator[str] | None = None

    def crash(self) -> None:
        """The process is dead, and the disk has been told."""
        steps, self._steps = self._steps, None
        if steps is not None:
            self.counts["installs_abandoned"] += 1
            with suppress(Crashed):
                close = getattr(steps, "close", None)
                if close is not None:
                    close()
        self._clear()

    def dies(self) -> None:
        """It died within an effect on its disk."""
        self.host.keeping.dead = True

    @property
    def installing(self) -> bool:
        """What came is being verified, or put into its place."""
        return self._steps is not None

    # --- who is wanted

    def below(self, group: int) -> None:
        """No log brings the group on."""
        self.counts["below"] += group not in self._wanted
        self._wanted.setdefault(group, Want())
        self._soon(BUSY_US)

    def forget(self, group: int) -> None:
        """It is hosted no more, and nothing is under way for it (`at`)."""
        self._wanted.pop(group, None)

    def at(self, group: int) -> bool:
        """Something is under way for it."""
        return self._group == group

    def lost(self, group: int, first: int, last: int) -> None:
        """The log here has a hole, and no peer gives what fills it."""
        self._wanted.setdefault(group, Want()).hole = Hole(group, first, last)
        self._soon(BUSY_US)

    def rebuild(self, group: int, dying: bool = False) -> None:
        """Make its state anew, whatever it is here; `dying`: when it has a mark the process dies,
        and the next start sees to it."""
        host = self.host

        def marked() -> None:
            self.counts["marks"] += 1
            host.mark(group, True)
            if dying:
                host.keeping.dead = True
                return
            host.pause_anew(group)
            self.anew(group)

        run_steps(host, self._chance, self._marking(group), marked)

    def _marking(self, group: int) -> Iterator[str]:
        while not self.host.busy(group, True):
            yield "waits"
        try:
            yield from mark(self.host.keeping.files, ROOT, group)
        finally:
            self.host.busy(group, False)

    def anew(self, group: int) -> None:
        """It is marked and paused."""
        self._wanted.setdefault(group, Want()).anew = True
        self._soon(BUSY_US)

    def _filled(self, want: Want) -> bool:
        """Whether the hole does not matter any more: it is mended, or what it hides is applied."""
        hole, host = want.hole, self.host
        if hole is not None and (
            host.facts(hole.group)["applied"] >= hole.last
            or not host.store.is_hole(hole.group, hole.first)
        ):
            want.hole = None
            return True
        return False

    def _soon(self, after_us: int) -> None:
        if self._group < 0 and self._wanted:
            self._group = next(iter(self._wanted))
            self.host.soon(1 + self._chance.randrange(after_us), self._begin)

    def _over(self, wanted: bool) -> None:
        """The group's turn is over."""
        group, self._group = self._group, -1
        want = self._wanted.pop(group)
        self.host.busy(group, False)
        if not wanted:
            self._pause_us = RETRY_US
            self._soon(BUSY_US)
            return
        self._wanted[group] = want
        self._soon(self._pause_us)
        self._pause_us = min(self._pause_us * 2, RETRY_US_MAX)

    # --- one group

    def _begin(self) -> None:
        """Ask all peers that are connected."""
        group, host = self._group, self.host
        facts = host.facts(group)
        if facts["stopped"] and not self._wanted[group].anew:
            self._over(False)
            return
        if facts["restoring"]:
            self._over(True)
            return
        want = self._wanted[group]
        if self._filled(want):
            self._over(False)
            return
        if want.anew and not facts["anew"]:  # it goes on from another state since that was asked
            host.pause_anew(group)
            facts = host.facts(group)
        self.counts["offers"] += 1
        above = self._above(want, facts)
        fetch = Fetch(OFFER_WANTED, group, above, 0, self._staged_ident(group))
        self._ask(host.connected(), fetch, self._offered)

    def _ask(
        self, peers: list[int], fetch: Fetch, done: Callable[[dict[int, Offer]], None]
    ) -> None:
        """The same of all of them; `done` is told what those say that answer in time."""
        host = self.host
        asked = Round(peers, done)
        for peer in peers:
            ends = Ends(self._cluster, host.node, peer)
            asker = Asker(ends, fetch, host.now_us)
            answered = self._answer_to(asked, peer, asker)
            asked.lines.append(Line(self, asker, peer, asker.hello(self._greeting()), answered))
        host.soon(ANSWERS_US, asked.close)

    def _above(self, want: Want, facts: dict[str, int]) -> int:
        """Only a checkpoint beyond that helps."""
        above = max(0 if want.anew else facts["applied"], facts["floor"] - 2)
        return above if want.hole is None else max(above, want.hole.last - 1)

    def _answer_to(
        self, asked: Round, peer: int, asker: Asker
    ) -> Callable[[Exception | None], None]:
        return lambda error: asked.answered(peer, asker.offer if error is None else None)

    def _greeting(self) -> Greeting:
        return Greeting(self.host.incarnation, bytes([self.host.node]) * 16, self.host.now_us)

    def _staged_ident(self, group: int) -> bytes:
        found = waiting(self.host.keeping.files, ROOT).get(group)
        return b"" if found is None else found[1].content

    def _offered(self, offers: dict[int, Offer]) -> None:
        """All have answered that will; where states are compared, they are asked for those."""
        group, comparing = self._group, self.host.comparing
        if not comparing.on or not offers:
            self._chosen(offers)
            return
        want = self._wanted[group]

        def said(answers: dict[int, Offer]) -> None:
            rings = {peer: one.chains for peer, one in answers.items()}
            if not want.anew:
                rings[self.host.node] = tuple(Chain(*one) for one in comparing.noted(group, 0))
            self._chosen(believed(offers, rings, comparing.members, anew=want.anew))

        self._ask(list(offers), Fetch(DIGESTS, group), said)

    def _chosen(self, offers: dict[int, Offer]) -> None:
        """What is on offer is known."""
        group, host = self._group, self.host
        facts, want = host.facts(group), self._wanted[group]
        stopped = facts["stopped"] and not want.anew
        if stopped or not offers:
            self._over(not stopped)
            return
        chosen, above = facts["chosen_through"], self._above(want, facts)
        found = [] if want.anew else host.keeping.catalog.of(group)
        if not want.anew and want.hole is None and facts["floor"] <= facts["applied"] + 1:
            there = log_there(offers, chosen=chosen, before=want.chosen)
            if there is Log.PERHAPS:
                want.chosen = chosen
                self._over(True)
                return
            if there is Log.CAME:
                self._forget_staged(group)
                self._over(False)
                return
            if there is Log.NOBODY_AHEAD and not want.providers.helps(
                found, offers, applied=above, now_us=host.now_us
            ):
                self._over(False)
                return
        floor = max(lowest_floor(offers, chosen), facts["floor"])
        own = own_to_install(found, applied=facts["applied"], chosen=chosen, floor=floor)
        if own is not None:
            self.counts["installs_own"] += 1
            self._install(own)
            return
        self._fetch(offers, above)

    def _forget_staged(self, group: int) -> None:
        files = self.host.keeping.files
        try:
            while (found := waiting(files, ROOT).get(group)) is not None:
                remove_tree(files, found[0])
        except Crashed:
            self.dies()

    def _fetch(self, offers: dict[int, Offer], above: int) -> None:
        group, host = self._group, self.host
        ident = self._staged_ident(group)
        providers = self._wanted[group].providers
        peer = providers.choose(offers, applied=above, now_us=host.now_us, staged=ident)
        if peer is None:
            self._over(True)
            return
        try:
            staged = self._resumed(group, ident, offers[peer].ident)
        except Crashed:
            self.dies()
            return
        except OSError:
            self._over(True)
            return
        wish = Wish(group, offers[peer].ident, above, BYTES_MAX)
        ends = Ends(self._cluster, host.node, peer)
        receiver = Receiver(host.keeping.files, ROOT, ends, wish, host.now_us, staged)
        self.counts["fetches"] += 1
        self.counts["fetches_resumed"] += staged is not None
        self._line = Line(
            self, receiver, peer, receiver.hello(self._greeting()),
            lambda error: self._received(receiver, peer, error),
        )  # fmt: skip

    def _resumed(self, group: int, ident: bytes, wanted: bytes) -> Staged | None:
        """What came before a cut, if it is of the checkpoint that is fetched now."""
        files = self.host.keeping.files
        if ident and ident == wanted:
            with suppress(Damaged, Foreign):
                return Staged.resume(files, ROOT, waiting(files, ROOT)[group][0], 0)
        while (found := waiting(files, ROOT).get(group)) is not None:
            remove_tree(files, found[0])
        return None

    def _received(self, receiver: Receiver, peer: int, error: Exception | None) -> None:
        self._line = None
        self.counts["fetched_bytes"] += receiver.progress.received
        if error is not None:
            with suppress(OSError):
                receiver.close()
            cut = isinstance(error, ConnectionError)
            self.counts["fetches_cut" if cut else "fetches_refused"] += 1
            self._failed(peer)
            return
        assert receiver.staged is not None
        self.host.keeping.came()
        self._go(self._published(receiver.staged, peer))

    def _failed(self, peer: int) -> None:
        self._wanted[self._group].providers.failed(peer, self.host.now_us)
        self._over(True)

    # --- installing

    def _published(self, staged: Staged, peer: int) -> Iterator[str]:
        """Make what came a checkpoint, then install it."""
        group = staged.manifest.group
        while not self.host.busy(group, True):  # nobody else changes the group's folders
            yield "waits"
        try:
            manifest = yield from staged.publish()
        except (Damaged, Cut, OSError):
            self.counts["fetches_spoilt"] += 1
            self._failed(peer)
            return
        yield "published"
        yield from self._installed(manifest, True)

    def _install(self, manifest: Manifest) -> None:
        def steps() -> Iterator[str]:
            while not self.host.busy(manifest.group, True):
                yield "waits"
            yield from self._installed(manifest, False)

        self._go(steps())

    def _installed(self, manifest: Manifest, verified: bool) -> Iterator[str]:
        place = Place(self, manifest, verified)
        self.installing_of[manifest.group] = manifest.content
        while True:
            try:
                yield from install(place)
                yield from self._cleared(place)
            except StoreBusy:
                yield "waits"
            except (Broken, OSError) as error:
                if isinstance(error, Broken):
                    with suppress(OSError):
                        self.host.keeping.catalog.put_aside(manifest)
                self.counts["fetches_spoilt"] += 1
                self.installing_of.pop(manifest.group, None)
                self._over(True)
                return
            else:
                self.installing_of.pop(manifest.group, None)
                self.counts["installs"] += place.swapped
                self.counts["installs_passed"] += not place.swapped
                self._over(self._wanted[manifest.group].anew and not place.anew)
                return

    def _cleared(self, place: Place) -> Iterator[str]:
        """What was made anew goes on: all that was of the state before goes, then the mark."""
        keeping, group = self.host.keeping, place.manifest.group
        if not place.anew:
            return
        try:
            for one in place.victims:
                keeping.catalog.put_aside(one)
                yield "aside"
        except OSError:
            return  # the mark stays: a start would find the newest one
        self.host.mark(group, False)
        yield from unmark(keeping.files, ROOT, group)
        self.counts["made_anew"] += 1

    def _go(self, steps: Iterator[str]) -> None:
        self._steps = steps
        self.host.soon(1 + self._chance.randrange(STEP_US_MAX), self._step)

    def _step(self) -> None:
        steps = self._steps
        if steps is None:
            return
        try:
            said = next(steps)
        except StopIteration:
            if self._steps is steps:
                self._steps = None
            return
        except Crashed:
            self.dies()
            return
        most = BUSY_US if said == "waits" else STEP_US_MAX
        self.host.soon(1 + self._chance.randrange(most), self._step)


class Place:
    """`phx.checkpoint.installing.Place` of one group of a simulated node."""

    def __init__(self, owner: Fetching, manifest: Manifest, verified: bool) -> None:
        self._owner = owner
        self.manifest = self._manifest = manifest
        self._verified = verified
        self._machine: StateMachine | None = None
        self._read = 0
        self.swapped = False
        self.anew = False
        self.victims: list[Manifest] = []

    def passed(self) -> bool:
        facts = self._owner.host.facts(self._manifest.group)
        return not facts["lost"] and facts["applied"] >= self._manifest.frontier

    def restore(self) -> None:
        group = self._manifest.group
        machine = self._owner.factory(group)
        keeping = self._owner.host.keeping
        self._read = keeping.load(self._manifest, machine, verified=self._verified)
        self._machine = machine

    def floor(self) -> None:
        host, frontier = self._owner.host, self._manifest.frontier
        host.keeping.catalog.add(self._manifest)
        if self._manifest.membership is not None:
            host.store.note_members(self._manifest.group, self._manifest.membership)
        if not host.raise_floor(self._manifest.group, frontier + 1, frontier):
            raise StoreBusy

    def swap(self) -> None:
        host, manifest = self._owner.host, self._manifest
        if self._machine is None:
            return
        self.anew = bool(host.facts(manifest.group)["anew"])
        self.swapped = host.swap(
            manifest.group, self._machine, manifest.sessions, manifest.frontier, self._read,
            host.keeping.is_odd(manifest), not self._verified, manifest.changed_members,
        )  # fmt: skip
        self._machine = None
        if self.anew:  # all else is of a state that is not to be believed
            self.victims = host.keeping.condemn(manifest.group, -1, manifest.content)

    def know(self) -> None:
        self._owner.host.know(self._manifest.group, self._manifest.membership)

    def tell(self) -> None:
        manifest = self._manifest
        self._owner.host.install(manifest.group, manifest.frontier, manifest.epoch)

    def drop(self) -> None:
        for _ in self._owner.host.keeping.catalog.drop(self._manifest.group, 1):
            pass

    def abandon(self) -> None:
        self._machine = None
