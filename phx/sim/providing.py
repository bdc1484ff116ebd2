"""What a simulated node gives to those that fetch: the production sender over its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from phx.checkpoint.catalog import ROOT, path_of
from phx.checkpoint.manifest import Manifest
from phx.errors import Damaged
from phx.sim.files import Crashed
from phx.sim.hosted import hosts
from phx.sim.pipes import Pipe
from phx.transfer.choice import offered
from phx.transfer.messages import (
    DIGESTS,
    OFFER_WANTED,
    Chain,
    Cut,
    Ends,
    Entry,
    Fetch,
    Offer,
    unpack_entries,
)
from phx.transfer.sender import Bucket, Sender
from phx.types import NEVER

if TYPE_CHECKING:
    from phx.sim.host import Host

__all__ = ["Provider"]

TRANSFERS_MAX = 2
WISHES = 2
BYTES_PER_S = 200_000
CHUNK_BYTES = 1024
"""Small, as the checkpoints are: a cut may come in the middle."""
AFTER_END_US = 3_000_000
"""So long a checkpoint stays for who has just got all of it, or may come again for the rest."""


class Talk:
    """One connection, and the Shelf that its Sender is given from."""

    def __init__(self, provider: Provider, pipe: Pipe) -> None:
        self.provider = provider
        self.pipe = pipe
        self.pinned: ExitStack | None = None
        self._due_us = 0
        me, peer = pipe.nodes[1], pipe.nodes[0]
        ends = Ends(provider.cluster, me, peer)
        now_us = provider.host.now_us
        self._sender = Sender(provider.host.keeping.files, ends, self, provider.bucket, now_us)
        self._wait()

    # --- an End

    def came(self, data: bytes) -> None:
        """Raises nothing: what goes wrong cuts the pipe."""
        try:
            out = self._sender.feed(data, self.provider.host.now_us)
        except Crashed:
            self.provider.host.keeping.dead = True
            return
        except Damaged:
            self.provider.damaged(self)
            self.pipe.cut()
            return
        except (Cut, OSError):
            self.pipe.cut()
            return
        if out:
            self.pipe.send(1, out)
        if self._sender.done:
            self.pipe.finish(1)
        else:
            self._wait()

    def over(self) -> None:
        self._sender.close()
        self.provider.left(self)

    def _wait(self) -> None:
        """Until something comes, or it is time to look."""
        host, due_us = self.provider.host, self._sender.due_us
        if host.now_us < self._due_us <= due_us:
            return
        self._due_us = max(due_us, host.now_us + 1)
        host.soon(self._due_us - host.now_us, self._due)

    def _due(self) -> None:
        if self.pipe.open and self.provider.host.now_us >= self._due_us:
            self.came(b"")

    # --- a Shelf

    def offer(self, fetch: Fetch) -> Offer:
        return self.provider.offer(fetch, self.pipe.nodes[0])

    def checkpoint(self, fetch: Fetch) -> tuple[str, Manifest] | None:
        return self.provider.begin(self, fetch)

    def entries(self, fetch: Fetch) -> Iterable[Sequence[Entry]] | None:
        return self.provider.entries(fetch)


class Provider:
    """A node's side of all connections on which something is fetched from it, in one life."""

    def __init__(self, host: Host, cluster: int) -> None:
        self.host = host
        self.cluster = cluster
        self.bucket = Bucket(BYTES_PER_S)
        self.bucket.chunk_bytes = CHUNK_BYTES
        self.sending: set[Talk] = set()
        self._wished: dict[int, int] = {}

    def accept(self, pipe: Pipe) -> None:
        """Somebody has dialled."""
        pipe.ends[1] = Talk(self, pipe)

    def offer(self, fetch: Fetch, peer: int) -> Offer:
        if not hosts(self.host, fetch.group):
            return Offer(floor=NEVER)
        facts = self.host.facts(fetch.group)
        found = self._sound(fetch.group, peer)
        best = offered(found, floor=facts["floor"], ident=fetch.ident)
        if fetch.what == OFFER_WANTED and (best is None or best.frontier <= fetch.above):
            self._wish(fetch.group, bool(facts["leading"]))
        return Offer(
            frontier=best.frontier if best else 0,
            ident=best.content if best else b"",
            size_bytes=best.size_bytes if best else 0,
            floor=facts["floor"],
            leading=bool(facts["leading"]),
            busy=len(self.sending),
            chains=self._chains(fetch) if fetch.what == DIGESTS else (),
        )

    def _chains(self, fetch: Fetch) -> tuple[Chain, ...]:
        if self.host.facts(fetch.group)["anew"]:
            return ()  # it would put in doubt those who are right
        return tuple(Chain(*one) for one in self.host.comparing.noted(fetch.group, fetch.above))

    def _sound(self, group: int, peer: int) -> list[Manifest]:
        """Those that are for that peer: none while the group is to be made anew. An odd one that
        nobody knows to be odd is for whoever may become odd, too (`Oddness.allows`)."""
        keeping = self.host.keeping
        if self.host.facts(group)["anew"]:
            return []
        return [one for one in keeping.catalog.of(group) if keeping.is_for(one, peer)]

    def entries(self, fetch: Fetch) -> list[list[Entry]] | None:
        """What is asked for of the log, as far as one run of it is here."""
        if not hosts(self.host, fetch.group):
            return None
        found = self.host.entries(fetch.group, fetch.above + 1, fetch.through)
        return [unpack_entries(found)] if found else None

    def _wish(self, group: int, leading: bool) -> None:
        """Take one that somebody asks for; who leads leaves it to the others at first."""
        self._wished[group] = self._wished.get(group, 0) + 1
        if not leading or self._wished[group] > WISHES:
            self.host.soon(1, lambda: self.host.checkpoint(group))

    def begin(self, talk: Talk, fetch: Fetch) -> tuple[str, Manifest] | None:
        """The checkpoint that is asked for, pinned; None: it is not there, or not given now."""
        if not hosts(self.host, fetch.group):
            return None
        keeping, peer = self.host.keeping, talk.pipe.nodes[0]
        catalog, sound = keeping.catalog, self._sound(fetch.group, peer)
        found = [one for one in sound if one.content == fetch.ident]
        if not found or len(self.sending) >= TRANSFERS_MAX:
            return None
        odd = keeping.is_odd(found[0])
        if odd and keeping.oddness is not None:
            keeping.oddness.joins(fetch.group, peer)
        self.host.gives(fetch.group, found[0].frontier, odd)
        talk.pinned = ExitStack()
        talk.pinned.enter_context(catalog.pinned(found[0]))
        self.sending.add(talk)
        return path_of(ROOT, found[0]), found[0]

    def left(self, talk: Talk) -> None:
        """A connection is over; what was pinned for it stays a little."""
        self.sending.discard(talk)
        if talk.pinned is not None:
            self.host.soon(AFTER_END_US, talk.pinned.close)

    def cut(self) -> int:
        """Cut all that is being sent; how many."""
        found = sorted(self.sending, key=lambda talk: talk.pipe.number)
        for talk in found:
            talk.pipe.cut()
        return len(found)

    def damaged(self, talk: Talk) -> None:
        """What was read for it is not what was written."""
        keeping, fetch = self.host.keeping, talk._sender.fetch
        assert fetch is not None
        for manifest in keeping.catalog.of(fetch.group):
            if manifest.content == fetch.ident:
                try:
                    keeping.catalog.put_aside(manifest)
                except Crashed:
                    keeping.dead = True
