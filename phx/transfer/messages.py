"""Frames of a transfer, and the bytes of each. docs/reference/transfer.md has the same tables.

Every frame has the header of phx/_core/codec.pxd (32 bytes): checksum, cluster, source, dest. Words
are little-endian. Who fetches sends FETCH, once, and then ACKs; who provides sends the rest.

    kind  frame     payload
    3     REFUSED   as between any two nodes: reason u32, pad u32, a text for people
    4     FETCH     HELLO's 40 bytes (phx/_core/transport.pxd), then a msgpack map: what, group,
                    above, through, ident, have
    5     OFFER     a msgpack map: frontier, ident, bytes, floor, leading, busy, chains; or: error
    6     MANIFEST  the file (phx/checkpoint/manifest.py)
    7     CHUNK     file u32, bytes u32, offset u64, then so many bytes of that file
    8     ACK       file u32, pad u32, offset u64: so much of it is written
    9     END       nothing
    10    ENTRIES   per entry: instance u64, body_bytes u32, pad u32, body, zeros to 8
    11    JOIN      HELLO's 40 bytes; of more the first 4, see MEMBERS. Instead of FETCH, and from
                    anybody
    12    PEERS     the answer: a msgpack map: peers, a list of [node, "host:port"]; the end
    13    MEMBERS   the answer to FETCH "members", of one group, and to a JOIN with 4 bytes more, a
                    group: of all from that one on (phx/transfer/changing.py); the end
    14    CHANGE    after a FETCH "change": a group and its next members
    15    CHANGED   the answer: what became of it; the end

HELLO's bytes in a FETCH or JOIN:

    offset  size  field
    0       2     version_min
    2       2     version_max
    4       4     incarnation
    8       16    store_id
    24      8     now_us
    32      4     window
    36      4     pad            0
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from phx._core.codec import check_frame, encode_frame, frame_fields
from phx.checkpoint.manifest import FILES_MAX, MANIFEST_BYTES_MAX
from phx.config import split_address
from phx.types import GROUP_ID_MAX, NODE_ID_MAX

__all__ = [
    "ACK",
    "CHANGE",
    "CHANGED",
    "CHANGE_WANTED",
    "CHECKPOINT",
    "CHUNK",
    "CHUNK_BYTES_MAX",
    "DIGESTS",
    "END",
    "ENTRIES",
    "ENTRIES_WANTED",
    "FETCH",
    "FETCH_BYTES_MAX",
    "JOIN",
    "LIMITS",
    "MANIFEST",
    "MEMBERS",
    "MEMBERS_WANTED",
    "OFFER",
    "OFFER_WANTED",
    "PEERS",
    "PEERS_MAX",
    "REFUSED",
    "REFUSED_BUSY",
    "REFUSED_STORE",
    "SILENCE_US",
    "Ack",
    "Chain",
    "Chunk",
    "Cut",
    "Declined",
    "Ends",
    "Entry",
    "Fetch",
    "Frames",
    "Greeting",
    "Hostile",
    "Offer",
    "Patience",
    "Stalled",
    "join_group",
    "join_store",
    "kind_of",
    "pack_ack",
    "pack_chunk",
    "pack_entries",
    "pack_error",
    "pack_fetch",
    "pack_join",
    "pack_offer",
    "pack_peers",
    "pack_refused",
    "unpack_ack",
    "unpack_chunk",
    "unpack_entries",
    "unpack_fetch",
    "unpack_offer",
    "unpack_peers",
    "unpack_refused",
]

REFUSED, FETCH, OFFER, MANIFEST, CHUNK, ACK, END, ENTRIES, JOIN, PEERS = range(3, 13)
MEMBERS, CHANGE, CHANGED = range(13, 16)
REFUSED_STORE, REFUSED_BUSY = 3, 5

OFFER_WANTED, CHECKPOINT, ENTRIES_WANTED, DIGESTS = "offer", "checkpoint", "entries", "digests"
MEMBERS_WANTED, CHANGE_WANTED = "members", "change"
WHAT = (OFFER_WANTED, CHECKPOINT, ENTRIES_WANTED, DIGESTS, MEMBERS_WANTED, CHANGE_WANTED)

HEADER_BYTES = 32
GREETING = struct.Struct("<HHI16sQII")
CHUNK_HEAD = struct.Struct("<IIQ")
ACK_BODY = struct.Struct("<IIQ")
ENTRY_HEAD = struct.Struct("<QII")

CHUNK_BYTES_MAX = 256 << 10
ENTRIES_BYTES_MAX = 64 << 20
"""Of one frame: the largest value, and what belongs to it."""
SILENCE_US = 10_000_000
"""Without progress for so long, a transfer is cut: a link must carry a CHUNK in that time."""
FETCH_BYTES_MAX = 1024
"""As in phx/_core/transport.pxd: it is believed before anything is known of who sends it."""
OFFER_BYTES_MAX = 4096
ERROR_CHARS_MAX = 200
CHAINS_MAX = 64
PEERS_MAX = 64
ADDRESS_BYTES_MAX = 261
"""A name of 255, a colon, a port."""
MEMBERS_BYTES_MAX = 256 << 10
CHANGE_BYTES_MAX = 8 << 10
"""A roster of 15 with the longest addresses there are, and more."""
IDENT_BYTES = 32
U32_MAX, U64_MAX = (1 << 32) - 1, (1 << 64) - 1

LIMITS: Mapping[int, int] = {
    REFUSED: 8 + 128,
    FETCH: FETCH_BYTES_MAX,
    OFFER: OFFER_BYTES_MAX,
    MANIFEST: MANIFEST_BYTES_MAX,
    CHUNK: CHUNK_HEAD.size + CHUNK_BYTES_MAX,
    ACK: ACK_BODY.size,
    END: 0,
    ENTRIES: ENTRIES_BYTES_MAX,
    JOIN: FETCH_BYTES_MAX,
    PEERS: PEERS_MAX * (ADDRESS_BYTES_MAX + 16) + 64,
    MEMBERS: MEMBERS_BYTES_MAX,
    CHANGE: CHANGE_BYTES_MAX,
    CHANGED: 64,
}
"""The longest payload of each kind of frame."""

PROTOCOL_VERSION = frame_fields(encode_frame(END, 0, 0, 0, b""))[1]


class Cut(Exception):
    """The connection is of no more use: close it. What was received is kept for the next one."""


class Hostile(Cut):
    """The other side said something that phx does not say. Ask somebody else."""


class Declined(Cut):
    """The other side has not got it, or will not send it now. Ask somebody else."""


class Stalled(Cut):
    """For too long too little came forward. Try again, or ask somebody else."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Who talks to whom.

    Attributes:
        cluster: id of the cluster.
        me, peer: node ids of this side and of the other one.
    """

    cluster: int
    me: int
    peer: int

    def frame(self, kind: int, payload: bytes = b"") -> bytes:
        """A frame from this side to the other one."""
        return encode_frame(kind, self.me, self.peer, self.cluster, payload)


class Patience:
    """How long the other side of a transfer is still waited for.

    Guarantee: it is given up after SILENCE_US without progress, and whoever goes on at less than
    a CHUNK of the longest kind in SILENCE_US (26 KiB/s) is given up as well, in however small
    pieces that comes. What came is never too late because this side was slow to look at it.
    """

    def __init__(self, now_us: int) -> None:
        self.due_us = now_us + SILENCE_US
        """When it is given up."""

    def renew(self, now_us: int) -> None:
        """Nothing is waited for."""
        self.due_us = now_us + SILENCE_US

    def moved(self, nbytes: int, now_us: int) -> None:
        """So many bytes more are through."""
        earned_us = nbytes * SILENCE_US // CHUNK_BYTES_MAX
        self.due_us = min(max(self.due_us, now_us) + earned_us, now_us + SILENCE_US)

    def check(self, now_us: int, why: str) -> None:
        """Raises Stalled."""
        if now_us >= self.due_us:
            raise Stalled(why)


class Frames:
    """Frames out of the bytes of a connection, which may come from anybody, in any pieces.

    Guarantee: what it gives has passed length, checksum, version, cluster, source and dest. It
    keeps at most one frame of the longest kind it was told to expect, and of bytes that really
    came.
    """

    def __init__(self, ends: Ends, kinds: Collection[int]) -> None:
        self.kinds = kinds
        """Those that may come now. May be changed between two frames."""
        self._ends = ends
        self._kept = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(kind, payload) of each frame that is whole now. Raises Hostile."""
        self._kept += data
        while len(self._kept) >= HEADER_BYTES:
            head = bytes(self._kept[:HEADER_BYTES])
            _, _, kind, payload_bytes, *_ = frame_fields(head)
            total = HEADER_BYTES + payload_bytes
            limit = LIMITS[kind] if kind in self.kinds else 0
            there = payload_bytes <= limit and len(self._kept) >= total
            whole = bytes(self._kept[:total]) if there else head
            verdict = check_frame(whole, self._ends.cluster, self._ends.me, self._ends.peer, limit)
            if verdict == "short":
                return
            if verdict != "ok":
                raise Hostile(f"a frame: {verdict}")
            if kind not in self.kinds:
                raise Hostile(f"a frame of kind {kind} has no place here")
            del self._kept[:total]
            yield kind, whole[HEADER_BYTES:]


# --- FETCH


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a node says of itself, as in a HELLO.

    Attributes:
        incarnation: grows with each start.
        store_id: 16 bytes, random, made with the store.
        now_us: its clock, for people.
        window: open instances per group.
    """

    incarnation: int
    store_id: bytes
    now_us: int = 0
    window: int = 0


@dataclass(frozen=True, slots=True)
class Fetch:
    """What is asked for.

    Attributes:
        what: OFFER_WANTED, CHECKPOINT, ENTRIES_WANTED, DIGESTS, MEMBERS_WANTED or CHANGE_WANTED.
        group: of which group.
        above: only what is beyond this instance is of use.
        through: ENTRIES_WANTED: the last instance wanted; else 0.
        ident: of the checkpoint that is wanted: this one (CHECKPOINT), or rather this one than
            another (OFFER_WANTED); b"": none.
        have: CHECKPOINT: (file, offset): so much of that file is there, and was verified.
    """

    what: str
    group: int
    above: int = 0
    through: int = 0
    ident: bytes = b""
    have: tuple[tuple[int, int], ...] = ()


def pack_join(greeting: Greeting, group: int | None = None) -> bytes:
    """The payload of a JOIN, and what a FETCH begins with. `group`: the members of groups are asked
    for, from this one on; None: who is there."""
    more = b"" if group is None else group.to_bytes(4, "little")
    return _greeted(greeting) + more


def _greeted(greeting: Greeting) -> bytes:
    return GREETING.pack(
        PROTOCOL_VERSION,
        PROTOCOL_VERSION,
        greeting.incarnation,
        greeting.store_id,
        greeting.now_us,
        greeting.window,
        0,
    )


def pack_fetch(greeting: Greeting, fetch: Fetch) -> bytes:
    """The payload of a FETCH."""
    return pack_join(greeting) + _pack(
        {
            "above": fetch.above,
            "group": fetch.group,
            "have": [list(one) for one in fetch.have],
            "ident": fetch.ident,
            "through": fetch.through,
            "what": fetch.what,
        }
    )


def unpack_fetch(payload: bytes) -> Fetch:
    """What is asked for; the transport has looked at HELLO's bytes. Raises Hostile."""
    if len(payload) < GREETING.size:
        raise Hostile("a FETCH that is too short")
    found = _unpack(payload[GREETING.size :])
    _keys(found, {"above", "group", "have", "ident", "through", "what"})
    if found["what"] not in WHAT:
        raise Hostile("a FETCH for what phx does not have")
    _number(found["group"], GROUP_ID_MAX)
    _number(found["above"], U64_MAX)
    _number(found["through"], U64_MAX)
    _ident(found["ident"])
    have = _list(found["have"], FILES_MAX)
    for one in have:
        if len(_list(one, 2)) != 2:
            raise Hostile("a FETCH with a bad offset")
        _number(one[0], FILES_MAX - 1)
        _number(one[1], U64_MAX)
    if len({one[0] for one in have}) != len(have):
        raise Hostile("a FETCH with two offsets of one file")
    return Fetch(
        found["what"],
        found["group"],
        found["above"],
        found["through"],
        found["ident"],
        tuple((one[0], one[1]) for one in have),
    )


# --- OFFER


class Chain(NamedTuple):
    """What a group's state was at an agreed instance."""

    instance: int
    chain: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Offer:
    """What a node could provide of a group.

    Attributes:
        frontier: K of the checkpoint it offers; 0: it has none.
        ident: of that checkpoint; b"": it has none.
        size_bytes: of its files.
        floor: the lowest instance whose value it can still supply.
        leading: it leads the group.
        busy: transfers that it has under way.
        chains: DIGESTS: at the last agreed instances.
    """

    frontier: int = 0
    ident: bytes = b""
    size_bytes: int = 0
    floor: int = 1
    leading: bool = False
    busy: int = 0
    chains: tuple[Chain, ...] = ()


def pack_offer(offer: Offer) -> bytes:
    return _pack(
        {
            "busy": offer.busy,
            "bytes": offer.size_bytes,
            "chains": [list(one) for one in offer.chains],
            "floor": offer.floor,
            "frontier": offer.frontier,
            "ident": offer.ident,
            "leading": offer.leading,
        }
    )


def pack_error(why: str) -> bytes:
    """The payload of an OFFER that says no."""
    return _pack({"error": why[:ERROR_CHARS_MAX]})


def unpack_offer(payload: bytes) -> Offer:
    """Raises Declined if it says no, Hostile for what no node says."""
    found = _unpack(payload)
    if found.keys() == {"error"}:
        why = found["error"]
        if type(why) is not str or len(why) > ERROR_CHARS_MAX:
            raise Hostile("an OFFER with a bad error")
        raise Declined(_printable(why))
    _keys(found, {"busy", "bytes", "chains", "floor", "frontier", "ident", "leading"})
    for key, most in (("busy", U32_MAX), ("bytes", U64_MAX), ("frontier", U64_MAX - 1)):
        _number(found[key], most)
    _number(found["floor"], U64_MAX)
    _ident(found["ident"])
    if type(found["leading"]) is not bool or bool(found["frontier"]) != bool(found["ident"]):
        raise Hostile("an OFFER that cannot be")
    chains = []
    for one in _list(found["chains"], CHAINS_MAX):
        if len(_list(one, 3)) != 3 or type(one[2]) is not bytes or len(one[2]) > 16:
            raise Hostile("an OFFER with a bad chain")
        _number(one[0], U64_MAX)
        _number(one[1], U32_MAX)
        chains.append(Chain(*one))
    return Offer(
        found["frontier"],
        found["ident"],
        found["bytes"],
        found["floor"],
        found["leading"],
        found["busy"],
        tuple(chains),
    )


def unpack_refused(payload: bytes) -> Declined:
    """What the other node's transport has against this one, to be raised."""
    return Declined("refused: " + _printable(payload[8:].decode("ascii", "replace")))


def pack_refused(reason: int, why: str) -> bytes:
    return struct.pack("<II", reason, 0) + why.encode("ascii", "replace")[:128]


# --- JOIN


def kind_of(said: bytes) -> int:
    """Of the first frame of a connection that the transport has handed over."""
    return int(frame_fields(said[:HEADER_BYTES])[2])


def join_store(said: bytes) -> bytes:
    """The store id in such a frame; the transport has looked at its length."""
    found: bytes = GREETING.unpack_from(said, HEADER_BYTES)[3]
    return found


def join_group(said: bytes) -> int | None:
    """The first group of those whose members are asked for; None: it asks who is there."""
    more = said[HEADER_BYTES + GREETING.size :][:4]
    return int.from_bytes(more, "little") if len(more) == 4 else None


def pack_peers(peers: Mapping[int, str]) -> bytes:
    """Of at most PEERS_MAX; an address that is too long is left out."""
    fit = [[node, at] for node, at in sorted(peers.items()) if len(at) <= ADDRESS_BYTES_MAX]
    return _pack({"peers": fit[:PEERS_MAX]})


def unpack_peers(payload: bytes) -> dict[int, str]:
    """ "host:port" by node. Raises Hostile."""
    found = _unpack(payload)
    _keys(found, {"peers"})
    peers: dict[int, str] = {}
    for one in _list(found["peers"], PEERS_MAX):
        if len(_list(one, 2)) != 2:
            raise Hostile("PEERS with a bad one")
        node, address = one
        _number(node, NODE_ID_MAX)
        if type(address) is not str or not 0 < len(address) <= ADDRESS_BYTES_MAX:
            raise Hostile("PEERS with a bad address")
        if not address.isascii() or not address.isprintable() or " " in address:
            raise Hostile("PEERS with a bad address")
        if node == 0 or node in peers:
            raise Hostile("PEERS with one twice, or node 0")
        try:
            _, port = split_address(address)
        except ValueError as error:
            raise Hostile("PEERS with a bad address") from error
        if port == 0:
            raise Hostile("PEERS with port 0")
        peers[node] = address
    return peers


def _printable(said: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in said)


# --- CHUNK, ACK, ENTRIES


class Chunk(NamedTuple):
    """Bytes of a file, by its index in the manifest."""

    file: int
    offset: int
    data: memoryview


class Ack(NamedTuple):
    """So much of a file is written."""

    file: int
    offset: int


class Entry(NamedTuple):
    """The value of an instance."""

    instance: int
    body: bytes


def pack_chunk(file: int, offset: int, data: bytes) -> bytes:
    return CHUNK_HEAD.pack(file, len(data), offset) + data


def unpack_chunk(payload: bytes) -> Chunk:
    """Raises Hostile."""
    if len(payload) < CHUNK_HEAD.size:
        raise Hostile("a CHUNK that is too short")
    file, nbytes, offset = CHUNK_HEAD.unpack_from(payload)
    if nbytes == 0 or nbytes != len(payload) - CHUNK_HEAD.size:
        raise Hostile("a CHUNK of another length than it says")
    return Chunk(file, offset, memoryview(payload)[CHUNK_HEAD.size :])


def pack_ack(file: int, offset: int) -> bytes:
    return ACK_BODY.pack(file, 0, offset)


def unpack_ack(payload: bytes) -> Ack:
    """Raises Hostile."""
    if len(payload) != ACK_BODY.size:
        raise Hostile("an ACK of a bad length")
    file, pad, offset = ACK_BODY.unpack(payload)
    if pad:
        raise Hostile("an ACK with set padding")
    return Ack(file, offset)


def pack_entries(entries: Collection[Entry]) -> bytes:
    packed = bytearray()
    for instance, body in entries:
        packed += ENTRY_HEAD.pack(instance, len(body), 0) + body
        packed += bytes(-len(packed) % 8)
    return bytes(packed)


def unpack_entries(payload: bytes) -> list[Entry]:
    """At least one; instances that follow each other. Raises Hostile."""
    found: list[Entry] = []
    at = 0
    while at < len(payload):
        if len(payload) - at < ENTRY_HEAD.size:
            raise Hostile("ENTRIES that end inside one")
        instance, nbytes, pad = ENTRY_HEAD.unpack_from(payload, at)
        at += ENTRY_HEAD.size
        end = at + nbytes
        padded = end + -end % 8
        if pad or padded > len(payload) or any(payload[end:padded]):
            raise Hostile("ENTRIES with a bad length or set padding")
        if instance == 0 or (found and instance != found[-1].instance + 1):
            raise Hostile("ENTRIES that do not follow each other")
        found.append(Entry(instance, payload[at:end]))
        at = padded
    if not found:
        raise Hostile("ENTRIES without one")
    return found


# --- msgpack from anybody


def _pack(fields: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    return packed


def _unpack(packed: bytes) -> dict[str, Any]:
    try:
        found = msgpack.unpackb(
            packed,
            raw=False,
            strict_map_key=True,
            max_array_len=CHAINS_MAX,
            max_map_len=16,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise Hostile("not msgpack") from error
    if type(found) is not dict:
        raise Hostile("a map is missing")
    return found


def _keys(found: dict[str, Any], keys: set[str]) -> None:
    if found.keys() != keys:
        raise Hostile("unknown or missing keys")


def _number(value: object, most: int) -> None:
    if type(value) is not int or not 0 <= value <= most:
        raise Hostile("a number out of its range")


def _ident(value: object) -> None:
    if type(value) is not bytes or len(value) not in (0, IDENT_BYTES):
        raise Hostile("a bad ident")


def _list(value: object, most: int) -> list[Any]:
    if type(value) is not list or len(value) > most:
        raise Hostile("a list is missing, or too long")
    return value
