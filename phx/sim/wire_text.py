"""Engine messages and journal records, taken apart and put together in Python.

Written from the tables in wire.pxd, codec.pxd and batch.pxd, not from the code, so that a test that
reads a message does not believe what the engine believes. A message prints as one line of a
transcript: ``1→2 Prepare g0 b(1.1) first=1 after=durable``.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

FRAME_HEADER_BYTES = 32
RECORD_HEADER = struct.Struct("<IIBBHIQQ")
MESSAGE_HEADER = struct.Struct("<IBBHIIQ")

PROMISE, ACCEPT, CHOSEN, NODE, PEER, FLOOR, MARK, GROUP, SETTLED, SUSPECT, MEMBERS = range(1, 12)
RECORD_NAMES = [
    "?", "PROMISE", "ACCEPT", "CHOSEN", "NODE", "PEER", "FLOOR", "MARK", "GROUP", "SETTLED",
    "SUSPECT", "MEMBERS",
]  # fmt: skip

FLAG_LAST, FLAG_WHOLE, FLAG_NEED_WHOLE, FLAG_TRANSFER = 1, 2, 4, 8
FLAG_QUORUM = 1
POINT_OK, POINT_NOT_LEADER, POINT_LATER = 1, 2, 3
POINTS = ["?", "ok", "not-leader", "later"]
NODE_WIDE = ("Heartbeat", "HeartbeatAck", "ReadAsk", "ReadPoint")
ENTRY_CHOSEN, ENTRY_ELIDED = 1, 2
REFUSE_BALLOT, REFUSE_LEASED, REFUSE_STOPPED, REFUSE_CONFIG = 1, 2, 3, 4
REASONS = ["?", "ballot", "leased", "stopped", "config"]
PREVOTES = ["?", "ok", "hears-leader", "behind"]
VERDICTS = [
    "ok", "timed-out-rejected", "timed-out-unknown", "overloaded", "not-leader",
    "stopped-rejected", "stopped-unknown", "no-quorum",
]  # fmt: skip
REJECTED = {1, 3, 4, 5, 7}

# kind: name, struct of the fixed part, field names ("_": padding)
KINDS: dict[int, tuple[str, struct.Struct, list[str]]] = {
    1: ("PreVote", struct.Struct("<Q"), ["chosen"]),
    2: ("PreVoteReply", struct.Struct("<QQII"), ["chosen", "promised", "verdict", "leader"]),
    3: ("Prepare", struct.Struct("<QQQII"), ["first", "start", "released", "holds", "_"]),
    4: ("Promise", struct.Struct("<QQQQQII"),
        ["first", "start", "chosen", "floor", "reply", "page", "count"]),
    5: ("Accept", struct.Struct("<QQQII"), ["instance", "first", "watermark", "nbytes", "_"]),
    6: ("Accepted", struct.Struct("<QQQ"), ["first", "through", "chosen"]),
    7: ("Refuse", struct.Struct("<QII"), ["promised", "reason", "leader"]),
    8: ("Chosen", struct.Struct("<Q"), ["through"]),
    9: ("Confirm", struct.Struct("<Q"), ["through"]),
    10: ("LearnAsk", struct.Struct("<QQ"), ["first", "last"]),
    11: ("Learn", struct.Struct("<QQQII"), ["first", "chosen", "floor", "count", "_"]),
    12: ("Forward", struct.Struct("<QQIIII"),
         ["low_water", "first_seq", "incarnation", "count", "nbytes", "attempt"]),
    13: ("ForwardReply", struct.Struct("<QIIIIII"),
         ["first_seq", "incarnation", "count", "verdict", "leader", "attempt", "_"]),
    14: ("Transfer", struct.Struct("<"), []),
    15: ("Heartbeat", struct.Struct("<QQQIIII"),
         ["seq", "version", "base", "incarnation", "lease_us", "count", "priority"]),
    16: ("HeartbeatAck", struct.Struct("<QQIIII"),
         ["seq", "version", "lease_us", "count", "incarnation", "_"]),
    17: ("Rejoin", struct.Struct("<Q"), ["chosen"]),
    18: ("ReadAsk", struct.Struct("<QII"), ["round", "count", "_"]),
    19: ("ReadPoint", struct.Struct("<QII"), ["round", "count", "_"]),
    20: ("Config", struct.Struct("<QQII"), ["instance", "floor", "nbytes", "_"]),
    21: ("ConfigAsk", struct.Struct("<"), []),
}  # fmt: skip
NUMBERS = {name: kind for kind, (name, _, _) in KINDS.items()}
SHOWN = {
    "PreVote": ["chosen"],
    "PreVoteReply": ["verdict"],
    "Prepare": ["first", "released"],
    "Promise": ["first", "chosen", "page"],
    "Accept": ["instance", "watermark"],
    "Accepted": ["first", "through"],
    "Refuse": ["promised", "reason"],
    "Chosen": ["through"],
    "Confirm": ["through"],
    "LearnAsk": ["first", "last"],
    "Learn": ["first", "count"],
    "Forward": ["first_seq", "count"],
    "ForwardReply": ["first_seq", "count", "verdict"],
    "Transfer": [],
    "Heartbeat": ["seq"],
    "HeartbeatAck": ["seq"],
    "Rejoin": ["chosen"],
    "ReadAsk": [],
    "ReadPoint": [],
    "Config": ["instance", "floor"],
    "ConfigAsk": [],
}


def align8(count: int) -> int:
    return (count + 7) & ~7


def ballot(counter: int, node: int) -> int:
    return counter << 20 | node


def ballot_node(value: int) -> int:
    return value & 0xFFFFF


def ballot_text(value: int) -> str:
    return f"{value >> 20}.{value & 0xFFFFF}" if value else "-"


@dataclass
class Reported:
    """An entry of a Promise."""

    instance: int
    ballot: int
    flags: int
    body: bytes


@dataclass
class Message:
    """One engine message; its fixed part is reached by attribute."""

    name: str
    group: int
    ballot: int
    flags: int
    fixed: dict[str, int]
    rest: bytes = b""
    raw: bytes = b""
    source: int = 0
    dest: int = 0
    after: int = 0  # leaves when the sender's journal is durable up to here
    sent_us: int = 0
    config: int = 1  # version of the members that the sender knows
    generation: int = 0  # of the group
    meta: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> int:
        try:
            return self.__dict__["fixed"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def body(self) -> bytes:
        return self.rest[: self.fixed["nbytes"]]

    def entries(self) -> list[Reported]:
        """Of a Promise (reported) or a Learn (supplied, ballot 0)."""
        found, at = [], 0
        for _ in range(self.fixed["count"]):
            if self.name == "Promise":
                instance, number, nbytes, flags = struct.unpack_from("<QQII", self.rest, at)
                start = at + 24
            else:
                instance, nbytes, _ = struct.unpack_from("<QII", self.rest, at)
                number, flags, start = 0, ENTRY_CHOSEN, at + 16
            found.append(Reported(instance, number, flags, self.rest[start : start + nbytes]))
            at += align8(start - at + nbytes)
        return found

    def claims(self) -> list[tuple[int, int]]:
        """Of a Heartbeat: (group, ballot)."""
        return [
            (g, b) for g, _, b in struct.iter_unpack("<IIQ", self.rest[: 16 * self.fixed["count"]])
        ]

    def refused(self) -> set[int]:
        """Of a HeartbeatAck: groups that are not granted."""
        return set(struct.unpack(f"<{self.fixed['count']}I", self.rest[: 4 * self.fixed["count"]]))

    def asked(self) -> list[tuple[int, int]]:
        """Of a ReadAsk: (group, ballot)."""
        return [
            (g, b) for g, _, b in struct.iter_unpack("<IIQ", self.rest[: 16 * self.fixed["count"]])
        ]

    def points(self) -> list[tuple[int, int, int, int]]:
        """Of a ReadPoint: (group, verdict, instance, ballot)."""
        found = struct.iter_unpack("<IHHQQ", self.rest[: 24 * self.fixed["count"]])
        return [(group, verdict, at, number) for group, verdict, _, at, number in found]

    def line(self) -> str:
        parts = [f"{self.source}→{self.dest} {self.name}"]
        if self.name not in NODE_WIDE:
            parts.append(f"g{self.group}")
        if self.config > 1:
            parts.append(f"v{self.config}")
        if self.ballot:
            parts.append(f"b({ballot_text(self.ballot)})")
        for name in SHOWN[self.name]:
            value = self.fixed[name]
            if name in ("released", "page") and not value:
                continue
            if name == "verdict":
                text = (PREVOTES if self.name == "PreVoteReply" else VERDICTS)[value]
            elif name == "reason":
                text = REASONS[value]
            elif name in ("promised", "released"):
                text = ballot_text(value)
            else:
                text = str(value)
            parts.append(f"{name}={text}")
        if self.name == "Promise":
            for entry in self.entries():
                mark = "chosen" if entry.flags & ENTRY_CHOSEN else ballot_text(entry.ballot)
                same = "=" if entry.flags & ENTRY_ELIDED else ""
                parts.append(f"{entry.instance}@{mark}{same}")
            if not self.flags & FLAG_LAST:
                parts.append("more")
        if self.name == "ReadAsk":
            parts += [f"g{group}" for group, _ in self.asked()]
        elif self.name == "ReadPoint":
            for group, verdict, instance, _ in self.points():
                parts.append(f"g{group}:{POINTS[verdict]}" + (f"={instance}" * (verdict == 1)))
        if self.name in ("ReadAsk", "ReadPoint") and self.flags & FLAG_QUORUM:
            parts.append("quorum")
        if self.after:
            parts.append("after=durable")
        return " ".join(parts)


def decode(payload: bytes) -> Iterator[Message]:
    at = 0
    while at < len(payload):
        length, kind, flags, space, group, config, number = MESSAGE_HEADER.unpack_from(payload, at)
        assert length % 8 == 0
        name, fixed, names = KINDS[kind]
        start = at + MESSAGE_HEADER.size
        values = dict(zip(names, fixed.unpack_from(payload, start), strict=True))
        yield Message(
            name, group, number, flags, values,
            payload[start + fixed.size : at + length], payload[at : at + length], config=config,
            generation=space,
        )  # fmt: skip
        at += length


def encode(
    name: str, group: int, number: int, rest: bytes = b"", flags: int = 0, config: int = 1,
    generation: int = 0, **fields: int,
) -> bytes:  # fmt: skip
    """The bytes of a message; fields that are not given are 0 (`start`: as `first`; `floor`: 1)."""
    kind = NUMBERS[name]
    _, fixed, names = KINDS[kind]
    if "start" in names:
        fields.setdefault("start", fields.get("first", 0))
    if "floor" in names:
        fields.setdefault("floor", 1)
    unknown = set(fields) - set(names)
    assert not unknown, unknown
    body = fixed.pack(*[fields.get(field_name, 0) for field_name in names]) + rest
    length = align8(MESSAGE_HEADER.size + len(body))
    header = MESSAGE_HEADER.pack(length, kind, flags, generation, group, config, number)
    return (header + body).ljust(length, b"\0")


def supplied(entries: Sequence[tuple[int, bytes]]) -> bytes:
    """In the form that Engine.supply takes."""
    out = b""
    for instance, body in entries:
        entry = struct.pack("<QII", instance, len(body), 0) + body
        out += entry.ljust(align8(len(entry)), b"\0")
    return out


@dataclass
class Record:
    lsn: int
    kind: int
    group: int
    index: int
    ballot: int
    body: bytes
    raw: bytes
    synced: bool = False
    generation: int = 0

    def line(self) -> str:
        parts = [RECORD_NAMES[self.kind]]
        if self.kind in (PROMISE, ACCEPT, CHOSEN):
            parts.append(f"g{self.group}")
        if self.kind in (ACCEPT, CHOSEN):
            parts.append(str(self.index))
        if self.kind in (PROMISE, ACCEPT):
            parts.append(f"b({ballot_text(self.ballot)})")
        return " ".join(parts)


def records(data: bytes, lsn: int) -> Iterator[Record]:
    at = 0
    while at < len(data):
        _, nbytes, kind, _, space, group, index, number = RECORD_HEADER.unpack_from(data, at)
        assert 1 <= kind <= MEMBERS, "a record of unknown kind"
        end = at + align8(RECORD_HEADER.size + nbytes)
        body = data[at + RECORD_HEADER.size : at + RECORD_HEADER.size + nbytes]
        yield Record(lsn + at, kind, group, index, number, body, data[at:end], generation=space)
        at = end


@dataclass
class Run:
    """A stretch of values of one session (node, incarnation) inside a body."""

    node: int
    incarnation: int
    low_water: int
    first_seq: int
    values: list[bytes]


def runs_of(body: bytes) -> list[Run]:
    """The runs of a chosen value; [] for a no-op, and for one that changes members."""
    kind, version, count, values, _, _ = struct.unpack_from("<BBHIQQ", body)
    assert version == 1
    if kind == 0:
        assert len(body) == 24
    if kind != 1:
        return []  # a no-op, or other members
    found, at = [], 24
    for _ in range(count):
        node, incarnation, low, first, n, nbytes = struct.unpack_from("<IIQQII", body, at)
        at += 32
        end, items = at + nbytes, []
        for _ in range(n):
            (size,) = struct.unpack_from("<I", body, at)
            items.append(body[at + 8 : at + 8 + size])
            at += 8 + size
        assert at == end
        found.append(Run(node, incarnation, low, first, items))
    assert at == len(body)
    assert sum(len(run.values) for run in found) == values
    return found


def batch(runs: Sequence[Run], epoch: int = 0, time_us: int = 0) -> bytes:
    out = struct.pack("<BBHIQQ", 1, 1, len(runs), sum(len(r.values) for r in runs), epoch, time_us)
    for run in runs:
        items = b"".join(struct.pack("<IHH", len(v), 0, 0) + v for v in run.values)
        out += struct.pack(
            "<IIQQII", run.node, run.incarnation, run.low_water, run.first_seq,
            len(run.values), len(items),
        )  # fmt: skip
        out += items
    return out


def value(text: bytes, node: int = 1, seq: int = 1, incarnation: int = 1) -> bytes:
    """A body with one value, as a leader would pack it."""
    return batch([Run(node, incarnation, 1, seq, [text])])


NOOP = struct.pack("<BBHIQQ", 0, 1, 0, 0, 0, 0)
