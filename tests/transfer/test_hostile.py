"""Nothing that a peer sends gets further than it may."""

import dataclasses
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgpack
import pytest
from checkpoint_lab import CLUSTER, MIB
from hypothesis import given, settings
from hypothesis import strategies as st
from test_manifest import body_of, sealed
from transfer_lab import GREETING, MINE, THEIRS, Line, finish, provider, receiver, sender

from phx.checkpoint.catalog import ROOT, Catalog
from phx.checkpoint.files import Files, OsFiles
from phx.checkpoint.manifest import SHARED_KEYS, Manifest, encode
from phx.errors import Damaged
from phx.sim.files import MemoryFiles
from phx.transfer.messages import (
    ACK,
    CHUNK,
    END,
    MANIFEST,
    OFFER,
    Cut,
    Ends,
    Fetch,
    Offer,
    pack_ack,
    pack_chunk,
    pack_error,
    pack_fetch,
    pack_offer,
)
from phx.transfer.receiver import Receiver


def frame(kind: int, payload: bytes = b"") -> bytes:
    return THEIRS.frame(kind, payload)


def told(receiving: Receiver, *frames: bytes) -> str:
    """What becomes of a receiver that is told this: "taken", or the name of what it raises."""
    try:
        for one in frames:
            receiving.feed(one, 1)
    except Exception as error:
        return type(error).__name__
    return "taken"


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- manifests

NAMES = [
    "../escape", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "A", "machine\x000", "a" * 65,
    ".hidden", "-rf", "manifest", "ünï", "a b", "con:", "a\n",
]  # fmt: skip


def told_of(
    manifest: Manifest,
    change: Callable[[list[dict[str, Any]]], object],
    *frames: bytes,
    files: Files | None = None,
) -> str:
    """As `told`, of that checkpoint with its files changed; every digest fits, and it is the one
    that was asked for."""
    body = body_of(manifest)
    change(body["files"])
    shared = {key: body[key] for key in sorted(SHARED_KEYS)}
    body["content"] = blake2b(msgpack.packb(shared), digest_size=32).digest()
    said = sealed(msgpack.packb(dict(sorted(body.items()))))
    receiving = receiver(files or MemoryFiles(), manifest, ident=body["content"])
    return told(receiving, frame(MANIFEST, said), *frames)


def test_what_is_told_is_taken_if_nothing_is_wrong_with_it() -> None:
    _, manifest = provider((9, 9))
    assert told_of(manifest, lambda found: None) == "taken"
    assert told_of(manifest, lambda found: found[0].update(name="another.name")) == "taken"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_name_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    _, manifest = provider((9, 9))
    files = OsFiles(tmp_path / "node")
    files.root.mkdir()
    chunk = frame(CHUNK, pack_chunk(0, 0, b"x" * 9))
    what = told_of(manifest, lambda found: found[0].update(name=name), chunk, files=files)
    assert what == "Hostile"
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("name", ["machine-1", "MACHINE-1", "Machine-1"])
def test_no_two_names_are_one_on_any_disk(name: str) -> None:
    _, manifest = provider((9, 9))
    assert told_of(manifest, lambda found: found[0].update(name=name)) == "Hostile"


def test_more_files_than_there_may_be_are_refused() -> None:
    _, manifest = provider((1,) * 64)
    assert told(receiver(MemoryFiles(), manifest), frame(MANIFEST, encode(manifest))) == "taken"
    more = {"name": "one-more", "bytes": 1}
    assert told_of(manifest, lambda found: found.append({**found[0], **more})) == "Hostile"


@pytest.mark.parametrize("size", [-1, 1 << 63, (1 << 64) - 1, True, "9", None, 10 * MIB])
def test_a_size_that_cannot_be_is_refused(size: object) -> None:
    _, manifest = provider((9, 9))

    def change(found: list[dict[str, Any]]) -> None:
        found[0].update(bytes=size, raw_bytes=size)

    assert told_of(manifest, change) == "Hostile"


@pytest.mark.parametrize(
    "changed",
    [{"cluster": CLUSTER + 1}, {"group": 8}, {"frontier": 4097}, {"frontier": 7}, {"seed": 2}],
    ids=str,
)
def test_another_checkpoint_than_was_asked_for_is_refused(changed: dict[str, Any]) -> None:
    _, manifest = provider((9,))
    _, other = provider((9,), **changed)
    files = MemoryFiles()
    assert told(receiver(files, manifest), frame(MANIFEST, encode(other))) == "Hostile"
    assert files.tree() == []


def test_one_of_another_group_is_refused_whatever_its_ident() -> None:
    _, other = provider((9,), group=8)
    receiving = receiver(MemoryFiles(), other)
    receiving._wish = dataclasses.replace(receiving._wish, group=7)
    assert told(receiving, frame(MANIFEST, encode(other))) == "Hostile"
    _, other = provider((9,), cluster=CLUSTER + 1)
    assert told(receiver(MemoryFiles(), other), frame(MANIFEST, encode(other))) == "Hostile"


def test_one_that_is_not_beyond_what_is_applied_is_refused() -> None:
    _, manifest = provider((9,))
    said = frame(MANIFEST, encode(manifest))
    assert told(receiver(MemoryFiles(), manifest, above=4095), said) == "taken"
    for above in (4096, 4097):
        assert told(receiver(files := MemoryFiles(), manifest, above=above), said) == "Hostile"
        assert files.tree() == []


def test_more_bytes_than_are_allowed_are_refused() -> None:
    _, manifest = provider((600, 400))
    said = frame(MANIFEST, encode(manifest))
    assert told(receiver(MemoryFiles(), manifest, bytes_max=1000), said) == "taken"
    assert told(receiver(files := MemoryFiles(), manifest, bytes_max=999), said) == "Hostile"
    assert files.tree() == []


def test_what_would_be_unpacked_counts_as_what_is_sent() -> None:
    """A few bytes may stand for many."""
    _, manifest = provider((9, 9))
    large = dataclasses.replace(manifest.files[0], codec="zstd", raw_bytes=991)
    packed = dataclasses.replace(manifest, files=(large, manifest.files[1]))
    said = frame(MANIFEST, encode(packed))
    assert told(receiver(MemoryFiles(), packed, bytes_max=1000), said) == "taken"
    assert told(receiver(MemoryFiles(), packed, bytes_max=999), said) == "Hostile"


def test_more_bytes_than_are_free_are_not_begun() -> None:
    _, manifest = provider((600, 400))
    said = frame(MANIFEST, encode(manifest))
    wish = {"reserve_bytes": 50}
    assert told(receiver(MemoryFiles(20_000), manifest, **wish), said) == "taken"
    assert told(receiver(files := MemoryFiles(1049), manifest, **wish), said) == "OSError"
    assert files.tree() == []


# --- what follows a manifest


@pytest.mark.parametrize(
    ("file", "offset", "data"),
    [
        (0, 1, b"x"), (0, MIB, b"x"), (1, 0, b"x"), (2, 0, b"x"), (64, 0, b"x"),
        (0xFFFFFFFF, 0, b"x"), (0, 0xFFFFFFFFFFFFFFFF, b"x"), (0, 0, b"x" * 10), (0, 0, b""),
    ],
)  # fmt: skip
def test_a_chunk_that_does_not_go_on_is_refused(file: int, offset: int, data: bytes) -> None:
    _, manifest = provider((9, 9))
    receiving = receiver(MemoryFiles(), manifest)
    assert told(receiving, frame(MANIFEST, encode(manifest))) == "taken"
    assert told(receiving, frame(CHUNK, pack_chunk(file, offset, data))) == "Hostile"
    assert receiving.progress.received == 0


def test_nothing_is_taken_twice() -> None:
    theirs, manifest = provider((9, 9))
    said = sender(theirs, manifest).feed(receiver(MemoryFiles(), manifest).hello(GREETING), 1)
    receiving = receiver(MemoryFiles(), manifest)
    assert told(receiving, said) == "taken"
    assert receiving.ended
    assert told(receiving, said) == "Hostile"
    for again in (
        frame(END),
        frame(CHUNK, pack_chunk(1, 9, b"x")),
        frame(CHUNK, pack_chunk(0, 0, b"x")),
    ):
        receiving = receiver(MemoryFiles(), manifest)
        assert told(receiving, said, again) == "Hostile"


def test_an_end_before_the_end_is_refused() -> None:
    _, manifest = provider((9, 9))
    said = frame(MANIFEST, encode(manifest))
    assert told(receiver(MemoryFiles(), manifest), said, frame(END)) == "Hostile"
    assert told(receiver(MemoryFiles(), manifest), frame(END)) == "Hostile"


def test_what_does_not_belong_there_is_refused() -> None:
    _, manifest = provider((9, 9))
    good = frame(MANIFEST, encode(manifest))
    for frames in (
        [frame(CHUNK, pack_chunk(0, 0, b"x"))],
        [good, good],
        [good, frame(OFFER, pack_error("no"))],
        [frame(ACK, pack_ack(0, 0))],
        [frame(OFFER, pack_offer(Offer()))],
        [frame(2, b"x" * 24)],
        [frame(99)],
        [MINE.frame(MANIFEST, encode(manifest))],
        [Ends(CLUSTER + 1, 2, 1).frame(MANIFEST, encode(manifest))],
        [Ends(CLUSTER, 3, 1).frame(MANIFEST, encode(manifest))],
        [Ends(CLUSTER, 2, 3).frame(MANIFEST, encode(manifest))],
        [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    ):
        assert told(receiver(MemoryFiles(), manifest), *frames) == "Hostile"
    assert told(receiver(MemoryFiles(), manifest), frame(OFFER, pack_error("x"))) == "Declined"


def test_a_length_alone_makes_nobody_wait_or_keep_bytes() -> None:
    _, manifest = provider((9,))
    good = frame(MANIFEST, encode(manifest))
    for nbytes in ((4 << 20) + 49, 0xFFFFFFFF):
        head = good[:8] + nbytes.to_bytes(4, "little") + good[12:32]
        assert told(receiver(MemoryFiles(), manifest), head) == "Hostile"


# --- the disk


def test_a_link_in_staging_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    files = OsFiles(tmp_path / "node")
    files.root.mkdir()
    theirs, manifest = provider((3 * MIB, 70))
    assert not Line(sender(theirs, manifest), receiver(files, manifest)).run(2 * MIB)
    new = files.root / ROOT / "staging" / "fetch-7-0" / "new"
    os.unlink(new / "machine-0")
    os.symlink(outside, new / "machine-0")
    os.link(outside, new / "machine-1")
    (new / "stray").mkdir()
    line = Line(sender(theirs, manifest), receiver(files, manifest))
    assert line.receiving.progress.resumed == 0
    assert line.run()
    finish(line)
    assert outside.read_bytes() == b"precious"
    assert Catalog.open(files, ROOT).groups() == {7: [manifest]}


def test_a_folder_in_staging_that_is_a_link_is_not_entered(tmp_path: Path) -> None:
    files = OsFiles(tmp_path / "node")
    files.root.mkdir()
    theirs, manifest = provider((3 * MIB,))
    assert not Line(sender(theirs, manifest), receiver(files, manifest)).run(2 * MIB)
    staging = files.root / ROOT / "staging"
    (staging / "fetch-7-0").rename(tmp_path / "outside")
    os.symlink(tmp_path / "outside", staging / "fetch-7-0")
    before = tree(tmp_path / "outside")
    line = Line(sender(theirs, manifest), receiver(files, manifest))
    assert line.receiving.progress.resumed == 0
    assert line.run()
    finish(line)
    assert tree(tmp_path / "outside") == before


@pytest.mark.parametrize("at", [0, MIB - 1, MIB, 2 * MIB - 1, 2 * MIB, 2 * MIB + 4, 2 * MIB + 5])
def test_a_bit_that_flips_in_staging_is_found(at: int) -> None:
    """While a transfer is cut: the block is fetched again. At its end: it is no checkpoint."""
    theirs, manifest = provider((2 * MIB + 5, 40))
    index, offset = (0, at) if at < 2 * MIB + 5 else (1, 3)
    path = f"{ROOT}/staging/fetch-7-0/new/machine-{index}"
    files = MemoryFiles()
    line = Line(sender(theirs, manifest), receiver(files, manifest))
    assert line.run()
    files.flip(path, 8 * offset + 3)
    with pytest.raises(Damaged):
        finish(line)
    assert Catalog.scan(files, ROOT) == {}
    again = Line(sender(theirs, manifest), receiver(files, manifest))
    resumed = manifest.files[index].size_bytes - offset // MIB * MIB
    assert again.receiving.progress.resumed == manifest.size_bytes - resumed
    assert again.run()
    finish(again)
    assert Catalog.open(files, ROOT).groups() == {7: [manifest]}


# --- any bytes at all

THEIRS_FILES, WANTED = provider((MIB + 5, 40))
SAID = bytes(sender(THEIRS_FILES, WANTED).feed(receiver(MemoryFiles(), WANTED).hello(GREETING), 1))


@settings(max_examples=150, deadline=None)
@given(bit=st.integers(0, 8 * len(SAID) - 1))
def test_no_bit_on_the_line_flips_unseen(bit: int) -> None:
    said = bytearray(SAID)
    said[bit // 8] ^= 1 << bit % 8
    receiving = receiver(MemoryFiles(), WANTED)
    what = told(receiving, bytes(said))
    assert what == "Hostile" or (what == "taken" and not receiving.ended)


PIECES = st.one_of(
    st.builds(frame, st.integers(0, 12), st.binary(max_size=60)),
    st.builds(
        lambda file, offset, data: frame(CHUNK, pack_chunk(file, offset, data)),
        st.integers(0, 3), st.integers(0, 50), st.binary(max_size=50),
    ),
    st.just(frame(END)),
    st.just(frame(MANIFEST, encode(WANTED))),
    st.binary(max_size=200),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=6))
def test_whatever_is_said_ends_in_a_cut_or_in_what_was_asked_for(pieces: list[bytes]) -> None:
    files = MemoryFiles()
    receiving = receiver(files, WANTED)
    try:
        for piece in pieces:
            receiving.feed(piece, 1)
    except Cut:
        pass
    assert not receiving.ended
    allowed = ("checkpoints/staging/", f"{ROOT}/staging/fetch-7-0/")
    assert all(path == f"{ROOT}/" or path.startswith(allowed) for path in files.tree())
    assert sum(len(files.content(p)) for p in files.tree() if "/new/" in p and p[-1] != "/") <= (
        WANTED.size_bytes
    )


# --- somebody who fetches


def asked(*frames: bytes) -> str:
    files, manifest = provider((MIB + 5, 40))
    sending = sender(files, manifest)
    try:
        for one in frames:
            sending.feed(one, 1)
    except Cut as error:
        return type(error).__name__
    finally:
        sending.close()
    return "done" if sending.done else "taken"


def fetch(**changed: Any) -> bytes:
    fields: dict[str, Any] = {"what": "checkpoint", "group": 7, "ident": WANTED.content}
    return MINE.frame(4, pack_fetch(GREETING, Fetch(**fields | changed)))


@pytest.mark.parametrize(
    ("have", "what"),
    [
        (((0, MIB),), "taken"), (((0, MIB + 5),), "taken"), (((0, MIB + 5), (1, 40)), "done"),
        (((0, MIB - 1),), "Hostile"), (((0, MIB + 6),), "Hostile"), (((0, 2 * MIB),), "Hostile"),
        (((2, 0),), "Hostile"), (((1, 1),), "Hostile"), (((0, 0), (0, 0)), "Hostile"),
    ],
)  # fmt: skip
def test_offsets_are_those_of_blocks(have: tuple[tuple[int, int], ...], what: str) -> None:
    assert asked(fetch(have=have)) == what


@pytest.mark.parametrize(
    ("file", "offset", "what"),
    [
        (0, 0, "taken"), (0, 5, "taken"), (0, MIB + 5, "taken"), (1, 40, "done"),
        (0, MIB + 6, "Hostile"), (1, 41, "Hostile"), (2, 0, "Hostile"), (1 << 31, 0, "Hostile"),
    ],
)  # fmt: skip
def test_acknowledgements_are_of_what_was_sent(file: int, offset: int, what: str) -> None:
    assert asked(fetch(), MINE.frame(ACK, pack_ack(file, offset))) == what


def test_what_was_acknowledged_stays_so() -> None:
    ack = MINE.frame(ACK, pack_ack(0, 9))
    assert asked(fetch(), ack, ack) == "taken"
    assert asked(fetch(), ack, MINE.frame(ACK, pack_ack(0, 8))) == "Hostile"


def test_a_question_is_asked_once() -> None:
    assert asked(fetch(), fetch()) == "Hostile"
    assert asked(MINE.frame(ACK, pack_ack(0, 0))) == "Hostile"
    assert asked(fetch(), MINE.frame(CHUNK, pack_chunk(0, 0, b"x"))) == "Hostile"
    assert asked(THEIRS.frame(4, b"")) == "Hostile"


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["what", "group", "above", "through", "ident", "have"]),
        st.one_of(st.none(), st.integers(-1, 1 << 63), st.binary(max_size=33), st.lists(st.none())),
    )
)
def test_whatever_is_asked_is_answered_or_refused(changed: dict[str, Any]) -> None:
    fields = {"what": "offer", "group": 7, "above": 0, "through": 0, "ident": b"", "have": []}
    good = pack_fetch(GREETING, Fetch("offer", 7))
    said = good[:40] + msgpack.packb(dict(sorted((fields | changed).items())))
    if len(said) <= 1024:
        assert asked(MINE.frame(4, said)) in ("done", "taken", "Hostile")
