"""Compressed files of checkpoints: the same bytes come back, no more of them, and all is checked.

What writes or reads such files needs the package; what looks at their digests does not.
"""

import os
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from checkpoint_lab import MIB, bundle_of, capture, made, part, whole

from phx.checkpoint import compression
from phx.checkpoint.bundle import import_
from phx.checkpoint.catalog import ROOT, STAGING, path_of, verify
from phx.checkpoint.compression import PIECE_BYTES, ZSTD, Packer, Unpacker, why_missing
from phx.checkpoint.files import Files, OsFiles
from phx.checkpoint.loading import Broken, load_machine, need_sound
from phx.checkpoint.manifest import Manifest, decode, encode, read_manifest
from phx.checkpoint.taking import run, take
from phx.machine import Reader, StateMachine
from phx.sim.files import MemoryFiles

STATE = b"".join(b"key %d and what it says; " % number for number in range(60_000))

needs_zstd = pytest.mark.skipif(why_missing(ZSTD) is not None, reason=str(why_missing(ZSTD)))


class Text(StateMachine):
    def __init__(self, how: str = "read") -> None:
        self.how = how
        self.state = b""

    def apply(self, entry: object) -> None: ...

    def restore(self, reader: Reader) -> None:
        if self.how == "path":
            self.state = reader.path().read_bytes()
            return
        while data := reader.read(70_001):
            self.state += data


def packed(files: Files, state: bytes = STATE, **changed: Any) -> tuple[Manifest, str]:
    parts = (part(4, [state]), part(5, []))
    manifest = run(take(files, ROOT, capture(parts=parts, **changed), codec=ZSTD))
    return manifest, path_of(ROOT, manifest)


def load(files: Files, manifest: Manifest, path: str, how: str = "read") -> bytes:
    where = files.root.joinpath if isinstance(files, OsFiles) else Path
    machine = Text(how)
    load_machine(files, machine, manifest.machines[0], manifest, path, where)
    return machine.state


def frame(data: bytes) -> bytes:
    packer = Packer()
    return b"".join([*packer.add(data), *packer.end()])


def unpacked(stored: bytes, raw_bytes: int) -> tuple[bytes, bool]:
    unpacker = Unpacker(BytesIO(stored).read, raw_bytes)
    found = bytearray()
    while data := unpacker.read(100_000):
        found += data
    return bytes(found), unpacker.whole()


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="not a run that has to have all extras")
def test_a_full_run_has_the_package() -> None:
    """So that what is skipped here for want of it is not skipped everywhere."""
    assert why_missing(ZSTD) is None


@needs_zstd
@pytest.mark.parametrize("how", ["read", "path"])
def test_a_machine_gets_what_it_wrote(tmp_path: Path, how: str) -> None:
    files = OsFiles(tmp_path)
    manifest, path = packed(files)
    one, empty = manifest.files
    assert (one.codec, one.raw_bytes, empty.raw_bytes) == (ZSTD, len(STATE), 0)
    assert one.size_bytes < len(STATE) // 4
    assert (tmp_path / path / one.name).stat().st_size == one.size_bytes
    assert manifest.raw_bytes == len(STATE)
    assert decode(encode(manifest)) == manifest
    need_sound(files, manifest, path)
    assert load(files, manifest, path, how) == STATE
    assert list((tmp_path / ROOT / STAGING).iterdir()) == []


@needs_zstd
def test_what_is_stored_depends_on_the_bytes_and_not_on_the_pieces_they_came_in() -> None:
    seen = set()
    for size in (999, 70_000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, MIB, len(STATE)):
        pieces = [STATE[at : at + size] for at in range(0, len(STATE), size)]
        manifest = run(take(MemoryFiles(), ROOT, capture(parts=(part(0, pieces),)), codec=ZSTD))
        seen.add(manifest.content)
    assert len(seen) == 1


@needs_zstd
def test_it_is_another_checkpoint_than_the_one_that_is_not_compressed() -> None:
    files = MemoryFiles()
    parts = (part(4, [STATE]), part(5, []))
    plain, (other, _) = made(files, parts=parts), packed(files)
    assert plain.content != other.content
    assert plain.chain == other.chain


@needs_zstd
def test_verifying_and_carrying_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    files, elsewhere = MemoryFiles(), MemoryFiles()
    manifest, path = packed(files)

    def missing() -> Any:
        raise ImportError("no such package")

    with monkeypatch.context() as patch:
        patch.setattr(compression, "_zstd", missing)
        assert verify(files, path) == []
        bundle = BytesIO(bundle_of(files, manifest))
        there = run(import_(elsewhere, ROOT, bundle, accept=lambda _: None))
        assert there == read_manifest(elsewhere, path)
        assert whole(elsewhere, manifest)
        need_sound(elsewhere, manifest, path)
        with pytest.raises(ImportError, match="no such package"):
            load(elsewhere, manifest, path)
    assert load(elsewhere, manifest, path) == STATE


def test_without_the_package_it_is_said_which_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, compression.MODULE, None)
    assert "phx-paxos[zstd]" in str(why_missing(ZSTD))
    assert why_missing("") is None
    files = MemoryFiles()
    with pytest.raises(ImportError):
        packed(files)
    assert files.listing(f"{ROOT}/{STAGING}") == []


@needs_zstd
@pytest.mark.parametrize("at", [0, 1, 5, 4000, -1])
def test_a_flipped_byte_is_found_before_a_machine_is_made_of_it(at: int) -> None:
    files = MemoryFiles()
    manifest, path = packed(files)
    size = manifest.files[0].size_bytes
    files.flip(f"{path}/machine-4", 8 * (at % size))
    with pytest.raises(Broken, match="machine-4"):
        need_sound(files, manifest, path)
    with pytest.raises(Broken, match="machine-4"):
        load(files, manifest, path)


def claimed(files: Files, stored: bytes, raw_bytes: int) -> tuple[Manifest, str]:
    """A checkpoint of a hostile writer: digests are right, and the frame is what it likes."""
    manifest = made(files, parts=(part(4, [stored]),))
    one = replace(manifest.files[0], codec=ZSTD, raw_bytes=raw_bytes)
    lying = replace(manifest, files=(one,))
    return lying, path_of(ROOT, manifest)


@needs_zstd
@pytest.mark.parametrize("how", ["read", "path"])
def test_a_frame_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path, how: str) -> None:
    good = frame(b"x" * 1000)
    for number, (stored, raw_bytes) in enumerate(
        [
            (good, 999),
            (good, 1001),
            (good, 0),
            (good + b"y", 1000),
            (good + good, 1000),
            (good + good, 2000),
            (good[:-1], 1000),
            (b"", 0),
            (b"plain text, no frame", 20),
            (b"\x50\x2a\x4d\x18\x00\x00\x00\x00" + good, 1000),  # a frame to be skipped
        ]
    ):
        files = OsFiles(tmp_path / str(number))
        files.root.mkdir()
        manifest, path = claimed(files, stored, raw_bytes)
        need_sound(files, manifest, path)
        with pytest.raises(Broken):
            load(files, manifest, path, how)
        assert list((files.root / ROOT / STAGING).iterdir()) == []


@needs_zstd
def test_a_bomb_gives_no_more_than_its_manifest_says() -> None:
    """64 MiB of zeros in a few KiB: what is beyond the first 1,000 bytes is never unpacked."""
    bomb = frame(bytes(64 * MIB))
    assert len(bomb) < 16_384
    tracemalloc.start()
    try:
        found, good = unpacked(bomb, 1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found, good) == (bytes(1000), False)
    assert peak < 2 * MIB


@needs_zstd
def test_a_frame_that_makes_its_reader_hold_much_is_refused() -> None:
    zstd = compression._zstd()
    large = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    stored = large.compress(STATE) + large.flush()
    with pytest.raises(ValueError, match="zstd"):
        unpacked(stored, len(STATE))


@needs_zstd
def test_a_large_state_is_packed_and_unpacked_in_little_memory(tmp_path: Path) -> None:
    files = OsFiles(tmp_path)
    piece, count = bytes(range(256)) * 4096, 48

    def write(writer: Any) -> None:
        for _ in range(count):
            writer.write(piece)
        with pytest.raises(OSError):
            writer.fileno()

    class Length(Text):
        def restore(self, reader: Reader) -> None:
            self.size = sum(len(data) for data in pieces(reader))

    def pieces(reader: Reader) -> Iterator[bytes]:
        while data := reader.read(MIB):
            yield data

    big = replace(part(4, []), write=write)
    tracemalloc.start()
    try:
        manifest = run(take(files, ROOT, capture(parts=(big,)), codec=ZSTD))
        machine = Length()
        one, path = manifest.machines[0], path_of(ROOT, manifest)
        load_machine(files, machine, one, manifest, path, tmp_path.joinpath)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert machine.size == len(piece) * count
    assert peak < 8 * MIB
