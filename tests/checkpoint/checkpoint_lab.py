"""Captures, checkpoints and bundles to test with."""

import struct
from collections.abc import Iterable
from typing import Any

from phx._core.codec import crc32c
from phx._core.members import write
from phx.checkpoint.bundle import export
from phx.checkpoint.catalog import ROOT, path_of, verify
from phx.checkpoint.files import Files
from phx.checkpoint.manifest import MEMORY, Manifest, read_manifest
from phx.checkpoint.taking import Capture, Part, run, take
from phx.membership import Membership

CLUSTER = 0xC1A5
PACKED = 5 << 20 | 1
"""Ballot of the leader that packed the rosters of these tests."""
MIB = 1 << 20


def table(
    group: int = 7, frontier: int = 4096, chain: int = 0xABCD, epoch: int = 3 << 20, rows: int = 0
) -> bytes:
    """A session table, without rows, as docs/design/checkpoints.md has it."""
    body = struct.pack("<IIIQIIQ", 1, group, rows, frontier + 1, chain, 0, epoch)
    return crc32c(body).to_bytes(4, "little") + body


def part(machine: int, pieces: Iterable[bytes], kind: int = MEMORY, digest: bytes = b"") -> Part:
    kept = list(pieces)

    def write(writer: Any) -> None:
        for piece in kept:
            writer.write(piece)

    return Part(machine, kind, write, digest)


def membership(
    instance: int = 4000,
    version: int = 3,
    nodes: tuple[int, ...] = (1, 4, 5),
    floor: int = 7 << 20 | 2,
    active: bool = False,
) -> Membership:
    """Members that changed."""
    roster = write(version, PACKED, 17, [(node, 1, b"10.0.0.%d:7000" % node) for node in nodes])
    return Membership(roster, instance, floor, active)


def moved(told: Membership) -> dict[str, Any]:
    """What a capture or a manifest says of such members."""
    return {"membership": told, "config": told.version, "members": told.nodes}


def capture(
    frontier: int = 4096, group: int = 7, parts: tuple[Part, ...] | None = None, **changed: Any
) -> Capture:
    chain, epoch = changed.pop("chain", 0xABCD), changed.pop("epoch", 3 << 20)
    if parts is None:
        parts = (
            part(0, [b"state of %d " % frontier, b"x" * 700]),
            part(9, [b"other %d" % frontier], digest=b"\x01\x02"),
        )
    fields: dict[str, Any] = {
        "cluster": CLUSTER,
        "group": group,
        "frontier": frontier,
        "epoch": epoch,
        "config": 0,
        "members": (1, 2, 3),
        "sessions": table(group, frontier, chain, epoch),
        "chain": chain,
        "parts": parts,
        "taken_by": 1,
        "taken_us": 1_700_000_000_000_000 + frontier,
    }
    return Capture(**fields | changed)


def made(files: Files, frontier: int = 4096, group: int = 7, **changed: Any) -> Manifest:
    """Take a checkpoint."""
    return run(take(files, ROOT, capture(frontier, group, **changed)))


def bundle_of(files: Files, manifest: Manifest) -> bytes:
    packed = bytearray()
    export(files, path_of(ROOT, manifest), packed.extend)
    return bytes(packed)


def whole(files: Files, manifest: Manifest) -> bool:
    """It is there, it is this one, and every byte of it is right."""
    path = path_of(ROOT, manifest)
    return not verify(files, path) and read_manifest(files, path).content == manifest.content
