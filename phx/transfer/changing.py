"""Who the members of groups are, and who they are to be, as nodes tell each other.

MEMBERS: groups in ascending order, and from where on there are more. Little-endian:

    offset  size  field
    0       4     next       the group to go on from; 2**32 - 1: that was all
    4       4     pad        0
    8       8     chosen     through here that node knows all to be chosen in the group that was
                             asked for; 0: it has nothing of it
    16      …     rows

and each row

    0       4     group
    4       4     flags      1: active
    8       8     instance   i
    16      8     floor
    24      4     bytes      of the roster
    28      4     left       how many ids follow it
    32      …     roster     phx/_core/members.pxd
    …       …     left       nodes that were members before, ascending, 4 bytes each

CHANGE: the group (4 bytes), then the roster. CHANGED: verdict u32, and who leads as that node
believes, u32 (0: nobody is known).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable
from itertools import pairwise
from typing import NamedTuple

from phx._core.codec import frame_fields
from phx.membership import Membership
from phx.transfer.messages import (
    CHANGE,
    CHANGE_WANTED,
    CHANGED,
    FETCH,
    HEADER_BYTES,
    JOIN,
    LIMITS,
    MEMBERS,
    MEMBERS_WANTED,
    PEERS,
    REFUSED,
    Ends,
    Fetch,
    Frames,
    Greeting,
    Hostile,
    Patience,
    pack_fetch,
    pack_join,
    unpack_fetch,
    unpack_refused,
)
from phx.types import GROUP_ID_MAX, NODE_ID_MAX

__all__ = [
    "LEFT_MAX",
    "Answer",
    "Asking",
    "Page",
    "Telling",
    "ask_change",
    "ask_join",
    "ask_members",
    "ask_who",
    "pack_answer",
    "pack_change",
    "pack_members",
    "unpack_answer",
    "unpack_change",
    "unpack_members",
    "wants",
]

HEAD = struct.Struct("<II")
PAGE = struct.Struct("<IIQ")
ROW = struct.Struct("<IIQQII")
GROUP = struct.Struct("<I")
LAST = (1 << 32) - 1
ACTIVE = 1
VERDICT_MAX = 64
LEFT_MAX = 32_768
"""So many nodes can have left a group; that fits into a page."""


class Page(NamedTuple):
    """Members of groups.

    Attributes:
        members: of those groups whose members ever changed.
        left: nodes that were members of them before, as far as that node knows.
        next: from where on there are more; None: that was all.
        chosen: through here all is known to be chosen there, in the group that was asked for.
    """

    members: dict[int, Membership]
    left: dict[int, tuple[int, ...]]
    next: int | None
    chosen: int


class Answer(NamedTuple):
    """What became of a change: a ChangeVerdict of the engine or one of `phx.node.changes`, and who
    leads, as that node believes; 0: nobody."""

    verdict: int
    leader: int


def pack_members(
    members: Iterable[tuple[int, Membership, Collection[int]]], chosen: int = 0
) -> bytes:
    """As many as there is room for: group, members, who left; by ascending group."""
    packed = bytearray(PAGE.size)
    going_on = LAST
    for group, one, left in members:
        row = ROW.pack(
            group, ACTIVE * one.active, one.instance, one.floor, len(one.roster), len(left)
        )
        row += one.roster + struct.pack(f"<{len(left)}I", *sorted(left))
        if len(packed) + len(row) > LIMITS[MEMBERS]:
            going_on = group
            break
        packed += row
    packed[: PAGE.size] = PAGE.pack(going_on, 0, chosen)
    return bytes(packed)


def unpack_members(payload: bytes, first: int = 0) -> Page:
    """The answer to a question from group `first` on. Raises Hostile; so whoever goes on at `next`
    comes to an end."""
    if len(payload) < PAGE.size:
        raise Hostile("MEMBERS that are too short")
    going_on, pad, chosen = PAGE.unpack_from(payload)
    at, before = PAGE.size, first - 1
    found: dict[int, Membership] = {}
    gone: dict[int, tuple[int, ...]] = {}
    while at < len(payload):
        if len(payload) - at < ROW.size:
            raise Hostile("MEMBERS that end inside a row")
        group, flags, instance, floor, nbytes, n_left = ROW.unpack_from(payload, at)
        at += ROW.size
        roster, left = payload[at : at + nbytes], payload[at + nbytes :][: 4 * n_left]
        at += nbytes + 4 * n_left
        fits = n_left <= LEFT_MAX and at <= len(payload)
        if flags > ACTIVE or not before < group <= GROUP_ID_MAX or not fits:
            raise Hostile("MEMBERS with a row that cannot be")
        try:
            found[group] = Membership(roster, instance, floor, bool(flags))
        except ValueError as error:
            raise Hostile(f"MEMBERS of group {group}: {error}") from error
        ids = gone[group] = struct.unpack(f"<{n_left}I", left)
        if any(low >= high for low, high in pairwise((0, *ids, NODE_ID_MAX + 1))):
            raise Hostile(f"MEMBERS of group {group}: who left cannot be")
        before = group
    more = going_on != LAST
    if pad or (more and (not found or not before < going_on <= GROUP_ID_MAX)):
        raise Hostile("MEMBERS that go on nowhere")
    return Page(found, gone, None if going_on == LAST else going_on, chosen)


def pack_change(group: int, roster: bytes) -> bytes:
    return GROUP.pack(group) + roster


def unpack_change(payload: bytes) -> tuple[int, bytes]:
    """(group, roster); the engine looks at the roster. Raises Hostile."""
    if len(payload) <= GROUP.size:
        raise Hostile("a CHANGE that is too short")
    (group,) = GROUP.unpack_from(payload)
    return group, payload[GROUP.size :]


def pack_answer(answer: Answer) -> bytes:
    return HEAD.pack(*answer)


def unpack_answer(payload: bytes) -> Answer:
    """Raises Hostile."""
    if len(payload) != HEAD.size:
        raise Hostile("CHANGED of a bad length")
    answer = Answer(*HEAD.unpack(payload))
    if answer.verdict > VERDICT_MAX:
        raise Hostile("CHANGED with a verdict that is none")
    return answer


class Asking:
    """The asking side of one connection: one question, one frame for an answer."""

    def __init__(self, ends: Ends, answer: int, hello: bytes, now_us: int) -> None:
        self.hello = hello
        self.answer: bytes | None = None
        self._kind = answer
        self._frames = Frames(ends, {answer, REFUSED})
        self._patience = Patience(now_us)

    @property
    def due_us(self) -> int:
        return self._patience.due_us

    def feed(self, data: bytes, now_us: int) -> bytes:
        """Raises Hostile; Declined, with what the other side says; Stalled."""
        for kind, payload in self._frames.feed(data):
            if kind == REFUSED:
                raise unpack_refused(payload)
            self.answer = payload
        if self.answer is None:
            self._patience.check(now_us, "there was no answer")
        return b""


class Telling:
    """The other side: who asks for members, or for a change of them. One answer, and the end.

    Args:
        members: group -> the payload of MEMBERS, of that one alone.
        change: group, roster -> what became of it.

    Attributes:
        done: it was answered.
    """

    def __init__(
        self,
        ends: Ends,
        members: Callable[[int], bytes],
        change: Callable[[int, bytes], Answer],
        now_us: int = 0,
    ) -> None:
        self.ends = ends
        self.done = False
        self._members = members
        self._change = change
        self._group = -1  # of the change that is to follow
        self._frames = Frames(ends, {FETCH})
        self._patience = Patience(now_us)

    @property
    def due_us(self) -> int:
        return self._patience.due_us

    def feed(self, data: bytes, now_us: int) -> bytes:
        """Raises Hostile, Stalled, and what the two raise."""
        for kind, payload in self._frames.feed(data):
            self._patience.renew(now_us)
            if kind == CHANGE:
                group, roster = unpack_change(payload)
                if group != self._group:
                    raise Hostile("a CHANGE of another group than was said")
                self.done = True
                return self.ends.frame(CHANGED, pack_answer(self._change(group, roster)))
            fetch = unpack_fetch(payload)
            if fetch.what == MEMBERS_WANTED:
                self.done = True
                return self.ends.frame(MEMBERS, self._members(fetch.group))
            self._group = fetch.group
            self._frames.kinds = {CHANGE}
        self._patience.check(now_us, "nothing was asked for")
        return b""


def wants(said: bytes) -> str:
    """What the first frame of a connection, a FETCH, asks for; "": it cannot be read."""
    end = HEADER_BYTES + int(frame_fields(said[:HEADER_BYTES])[3])
    try:
        return unpack_fetch(said[HEADER_BYTES:end]).what
    except Hostile:
        return ""


def ask_members(ends: Ends, greeting: Greeting, group: int, now_us: int) -> Asking:
    """As a peer: who are the members of this group? The answer: `unpack_members`."""
    hello = ends.frame(FETCH, pack_fetch(greeting, Fetch(MEMBERS_WANTED, group)))
    return Asking(ends, MEMBERS, hello, now_us)


def ask_who(ends: Ends, greeting: Greeting, now_us: int) -> Asking:
    """As anybody: who is there? The answer: `phx.transfer.messages.unpack_peers`."""
    return Asking(ends, PEERS, ends.frame(JOIN, pack_join(greeting)), now_us)


def ask_join(ends: Ends, greeting: Greeting, group: int, now_us: int) -> Asking:
    """As anybody: who are the members of groups, from this one on? The answer is a `Page`, too."""
    return Asking(ends, MEMBERS, ends.frame(JOIN, pack_join(greeting, group)), now_us)


def ask_change(ends: Ends, greeting: Greeting, group: int, roster: bytes, now_us: int) -> Asking:
    """Propose these members, if you lead. The answer: `unpack_answer`."""
    hello = ends.frame(FETCH, pack_fetch(greeting, Fetch(CHANGE_WANTED, group)))
    hello += ends.frame(CHANGE, pack_change(group, roster))
    return Asking(ends, CHANGED, hello, now_us)
