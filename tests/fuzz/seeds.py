"""Writes the first inputs: ``python tests/fuzz/seeds.py build/fuzz-seeds``; after that
``python tests/fuzz/run.py --merge 30`` puts them into the corpus.

Frames and records come out of engines that elect a leader and agree on values, bodies, tables and
chunks are packed as phx packs them. (Inputs of the journal, engine and replay targets are scripts;
their real bytes are made inside the target.) What libFuzzer finds beyond these is in
tests/fuzz/corpus.
"""

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from script import Script

from phx._core import batch, chunk, codec, delivery
from phx.transfer.messages import FETCH, JOIN, PROTOCOL_VERSION, REFUSED

STORE_ID = b"\x09" * 16


def frames() -> dict[str, bytes]:
    """Mode and step of the target, then a HELLO and what a leader says in an election."""
    versions = PROTOCOL_VERSION, PROTOCOL_VERSION
    hello = struct.pack("<HHI16sQII", *versions, 1, bytes(16), 0, 64, 0)
    said = b""
    s = Script()
    s.elect(1)
    s.submit(1, b"a value")
    for kind in (b"", b"x" * 40):
        said += codec.encode_frame(2, 1, 2, 7, kind)
    engine = s.engines[1]
    s.submit(1, b"another")
    engine.advance(s.now + 1_000_000)
    for _, frame, _ in engine.turn()["outgoing"]:
        said += codec.encode_frame(2, 1, 2, 7, frame[32:])
    greeting = codec.encode_frame(1, 1, 2, 7, hello)
    return {
        "hello": b"\x00\x20" + greeting,
        "session": b"\x00\x10" + greeting + said,
        "mended": b"\x07\x10" + said,
        "fetch": b"\x00\x20"
        + codec.encode_frame(FETCH, 1, 2, 7, hello + b"what is wanted" * 20)
        + said,
        "join": b"\x00\x20" + codec.encode_frame(JOIN, 9, 0, 7, hello),
        "stranger": b"\x00\x20" + codec.encode_frame(1, 9, 2, 7, hello),
        "foreign": b"\x00\x20" + codec.encode_frame(1, 1, 2, 8, hello),
        "refused": b"\x04\x10"
        + codec.encode_frame(REFUSED, 1, 2, 7, struct.pack("<II", 1, 0) + b"no"),
    }


def records() -> dict[str, bytes]:
    """Mode and generation, then records of a journal, salted and not."""
    s = Script()
    s.elect(1)
    for value in (b"one", b"two" * 40):
        s.submit(1, value)
        s.flow()
    run = b"".join(record.raw for record in s.journal[1])
    salt = codec.salt(3)
    salted, at = b"", 0
    while at < len(run):
        size = codec.check_record(run[at:])
        crc = int.from_bytes(run[at : at + 4], "little") ^ salt
        salted += crc.to_bytes(4, "little") + run[at + 4 : at + size]
        at += size
    return {"salted": b"\x04\x03" + salted[:1500], "plain": b"\x80\x03" + run[:800]}


def bodies() -> dict[str, bytes]:
    """Mode, how much is cut off, length, and a body; several of them for one session table."""

    def part(mode: int, body: bytes) -> bytes:
        return struct.pack("<BBH", mode, 3, len(body)) + body

    first = batch.pack_body([(1, 1, 1, 1, [(0, b"a"), (0, b"bb")]), (2, 1, 1, 5, [(1, b"c")])])
    later = batch.pack_body([(1, 1, 2, 2, [(0, b"bb"), (0, b"ccc")])])
    renewed = batch.pack_body([(1, 2, 1, 1, [(0, b"a")])])
    noop = batch.pack_noop(7, 8)
    return {
        "batch": part(0, first),
        "noop": part(0, noop),
        "sessions": part(0, first) + part(0, later) + part(0, renewed) + part(0, first),
        "mended": part(1, first + bytes(100)),
    }


def tables() -> dict[str, bytes]:
    """Mode, length, a table, how many sequences before it is written again, and sequences."""
    made = delivery.Sessions(1, [7])
    empty = made.table(7)
    for instance, first in enumerate((1, 2, 9, 70, 300), 1):
        runs = [(node, 1, 1, first * node, [(0, b"v")] * 3) for node in (1, 2, 40)]
        made.offer(7, instance, [batch.pack_body(runs, epoch=instance)])
    some = made.table(7)
    asked = b"".join(struct.pack("<BBBBH", n % 8, n, n % 4, n % 64, n * 37) for n in range(40))

    def part(mode: int, table: bytes) -> bytes:
        return struct.pack("<BH", mode, len(table)) + table + b"\x14" + asked

    return {"empty": part(0, empty), "table": part(0, some), "mended": part(1, some + bytes(90))}


def chunks() -> dict[str, bytes]:
    """Mode, length, a chunk, and what is asked of it."""
    made, _ = chunk.build_chunk(
        3, 1000, STORE_ID, [(group, n, b"v" * n) for group in (1, 2) for n in range(1, 9)]
    )
    asked = bytes([1, 8, 0xFF, 0xFF, 0] * 2)
    return {
        "chunk": b"\x00" + struct.pack("<H", len(made)) + made + asked,
        "mended": b"\x03" + struct.pack("<H", len(made)) + made + asked,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    made = {"frame": frames(), "record": records(), "body": bodies(), "chunk": chunks()}
    made["table"] = tables()
    scripts = {"journal": 4, "engine": 3, "replay": 3}
    for name, roles in scripts.items():
        made[name] = {f"script{n}": bytes([n]) for n in range(roles)}
    for target, inputs in made.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / target / f"seed-{name}").write_bytes(data)


if __name__ == "__main__":
    main()
