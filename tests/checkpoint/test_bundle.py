"""A checkpoint in one file: what arrives is what left, or nothing arrives."""

import errno
import io
from random import Random

import msgpack
import pytest
from checkpoint_lab import CLUSTER, MIB, bundle_of, made, membership, moved, part, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from phx.checkpoint.bundle import BUNDLE_HEAD, LENGTH, export, import_, read_head
from phx.checkpoint.catalog import ROOT, Catalog, path_of
from phx.checkpoint.files import OsFiles
from phx.checkpoint.manifest import DURABLE, Manifest, encode
from phx.checkpoint.taking import Part, run
from phx.errors import Damaged, Foreign, StoreError
from phx.sim.files import MemoryFiles


def imported(files: MemoryFiles | OsFiles, data: bytes) -> Manifest:
    return run(import_(files, ROOT, io.BytesIO(data), accept=lambda manifest: None))


def refused(data: bytes, *errors: type[Exception]) -> None:
    """It raises, and leaves nothing."""
    files = MemoryFiles()
    with pytest.raises(errors or (Damaged, Foreign)):
        imported(files, data)
    assert [path for path in files.tree() if not path.endswith("/")] == []
    assert Catalog.open(files, ROOT).groups() == {}


@pytest.fixture(scope="module")
def small() -> bytes:
    files = MemoryFiles()
    return bundle_of(files, made(files))


def test_what_is_exported_is_imported(tmp_path) -> None:
    source = MemoryFiles()
    sizes = [0, 1, MIB, 2 * MIB + 3]
    parts = tuple(part(at, [Random(at).randbytes(size)]) for at, size in enumerate(sizes))
    manifest = made(source, parts=parts)
    data = bundle_of(source, manifest)
    files = OsFiles(tmp_path)
    assert imported(files, data) == manifest
    assert whole(files, manifest)
    assert Catalog.open(files, ROOT, cluster=CLUSTER).groups() == {7: [manifest]}
    assert bundle_of(files, manifest) == data
    assert imported(files, data) == manifest, "a second time it is there already"
    assert len(Catalog.open(files, ROOT).of(7)) == 1


def test_the_members_go_along() -> None:
    source, files = MemoryFiles(), MemoryFiles()
    told = membership()
    data = bundle_of(source, made(source, **moved(told)))
    assert imported(files, data).membership == told
    ((kept,),) = Catalog.open(files, ROOT, cluster=CLUSTER).groups().values()
    assert kept.membership == told
    assert bundle_of(files, kept) == data


def test_a_bundle_is_laid_out_as_its_page_says(small: bytes) -> None:
    files = MemoryFiles()
    manifest = made(files)
    packed = encode(manifest)
    expected = b"PHXBNDL1" + (1).to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed
    for entry in manifest.files:
        expected += entry.size_bytes.to_bytes(8, "little")
        expected += files.content(f"{path_of(ROOT, manifest)}/{entry.name}")
    assert small == expected
    assert read_head(io.BytesIO(small)) == manifest


def test_each_flipped_byte_is_found(small: bytes) -> None:
    for at in range(len(small)):
        spoilt = bytearray(small)
        spoilt[at] ^= 1 << at % 8
        refused(bytes(spoilt))


def test_each_shortened_one_and_every_tail_is_found(small: bytes) -> None:
    for size in range(len(small)):
        refused(small[:size])
    refused(small + b"\0")
    refused(small + small)


def test_another_format_version_is_foreign(small: bytes) -> None:
    refused(small[:8] + (2).to_bytes(4, "little") + small[12:], Foreign)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    refused(data)
    refused(BUNDLE_HEAD.pack(b"PHXBNDL1", 1, len(data)) + data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_bundle_with_pieces_cut_out_doubled_or_swapped_is_refused(data: st.DataObject) -> None:
    files = MemoryFiles()
    whole_one = bundle_of(files, made(files))
    at = sorted(data.draw(st.lists(st.integers(0, len(whole_one)), min_size=3, max_size=3)))
    a, b, c, d = (whole_one[i:j] for i, j in zip([0, *at], [*at, len(whole_one)], strict=True))
    changed = data.draw(st.sampled_from([a + c + d, a + b + b + c + d, a + c + b + d, b + a + c]))
    if changed != whole_one:
        refused(changed)


def test_a_path_in_a_bundle_creates_nothing_outside(small: bytes, tmp_path) -> None:
    """The digests are right, and a name is a path: refused before anything is made."""
    from test_manifest import HEAD, sealed

    (size,) = BUNDLE_HEAD.unpack_from(small)[2:]
    packed = small[16 : 16 + size]
    body = msgpack.unpackb(packed[HEAD:-32], raw=False)
    root = tmp_path / "a" / "b" / "node"
    root.mkdir(parents=True)
    for name in ("../../../escaped", "/escaped", "..", "sub/x", "manifest"):
        body["files"][0]["name"] = name
        hostile = sealed(msgpack.packb(body))
        data = BUNDLE_HEAD.pack(b"PHXBNDL1", 1, len(hostile)) + hostile + small[16 + size :]
        with pytest.raises(Damaged):
            imported(OsFiles(root), data)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "node"]


def test_a_length_that_is_not_the_manifests_is_refused_before_it_is_read(small: bytes) -> None:
    (size,) = BUNDLE_HEAD.unpack_from(small)[2:]
    refused(small[: 16 + size] + LENGTH.pack(1 << 62) + small[24 + size :])


def test_a_manifest_that_claims_to_be_huge_is_refused() -> None:
    refused(BUNDLE_HEAD.pack(b"PHXBNDL1", 1, 0xFFFFFFFF))
    refused(BUNDLE_HEAD.pack(b"PHXBNDL1", 1, 0))


def test_who_does_not_accept_it_sees_nothing_written(small: bytes) -> None:
    files = MemoryFiles()

    def accept(manifest: Manifest) -> None:
        raise Foreign(f"group {manifest.group}")

    with pytest.raises(Foreign, match="group 7"):
        run(import_(files, ROOT, io.BytesIO(small), accept=accept))
    assert files.effects == 0


def test_no_room_is_said_before_anything_is_written(small: bytes) -> None:
    for capacity, reserve in ((10, 0), (1000, 999)):
        files = MemoryFiles(capacity_bytes=capacity)
        steps = import_(
            files, ROOT, io.BytesIO(small), accept=lambda one: None, reserve_bytes=reserve
        )
        with pytest.raises(OSError) as caught:
            run(steps)
        assert caught.value.errno == errno.ENOSPC
        assert files.effects == 0


def test_a_damaged_one_is_not_exported() -> None:
    files = MemoryFiles()
    manifest = made(files)
    for name in ("machine-0", "machine-9", "manifest"):
        path = f"{path_of(ROOT, manifest)}/{name}"
        files.flip(path, 9)
        with pytest.raises(Damaged):
            bundle_of(files, manifest)
        files.flip(path, 9)
    assert bundle_of(files, manifest)


def test_a_longer_file_is_not_exported(tmp_path) -> None:
    files = OsFiles(tmp_path)
    manifest = made(files)
    with (tmp_path / path_of(ROOT, manifest) / "machine-0").open("ab") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(Damaged):
        bundle_of(files, manifest)


def test_a_light_one_is_not_exported() -> None:
    files = MemoryFiles()
    manifest = made(files, parts=(Part(0, DURABLE, None),))
    with pytest.raises(StoreError, match="own files"):
        export(files, path_of(ROOT, manifest), lambda data: None)


def test_an_import_mends_a_damaged_checkpoint_of_the_same_content(small: bytes) -> None:
    files = MemoryFiles()
    manifest = made(files)
    files.flip(f"{path_of(ROOT, manifest)}/machine-0", 0)
    assert not whole(files, manifest)
    assert imported(files, small).content == manifest.content
    assert whole(files, manifest)
    assert any(path.startswith("quarantine/checkpoint-7-0/0") for path in files.tree())
