"""Which checkpoints there are, which go, and that no byte of one can change unseen."""

import errno
import os
import shutil
from pathlib import Path
from random import Random

import pytest
from checkpoint_lab import CLUSTER, MIB, capture, made, part, table, whole

from phx.checkpoint import catalog as module
from phx.checkpoint.catalog import ROOT, Catalog, Finding, look, path_of, put_aside, verify
from phx.checkpoint.files import OsFiles, exists, join, make_folders
from phx.checkpoint.manifest import DURABLE, Manifest, decode, encode, read_all
from phx.checkpoint.taking import Part, run, take
from phx.errors import Damaged
from phx.sim.files import MemoryFiles


def several(files: MemoryFiles | OsFiles, frontiers: list[int], group: int = 7) -> list[Manifest]:
    return [made(files, frontier, group) for frontier in frontiers]


def frontiers(catalog: Catalog, group: int = 7) -> list[int]:
    return [one.frontier for one in catalog.of(group)]


def dropped(catalog: Catalog, keep: int, group: int = 7) -> list[int]:
    before = frontiers(catalog, group)
    for _ in catalog.drop(group, keep):
        pass
    return [one for one in before if one not in frontiers(catalog, group)]


# --- looking


def test_nothing_is_there() -> None:
    files = MemoryFiles()
    catalog = Catalog.open(files, ROOT)
    assert (catalog.groups(), catalog.findings, catalog.cover(7)) == ({}, [], None)
    assert list(catalog.drop(7, 1)) == []
    assert files.effects == 0


def test_newest_first_and_the_cover_is_the_oldest() -> None:
    files = MemoryFiles()
    several(files, [5, 100_000, 20])
    several(files, [3], group=12)
    catalog = Catalog.open(files, ROOT)
    assert frontiers(catalog) == [100_000, 20, 5]
    assert frontiers(catalog, 12) == [3]
    cover = catalog.cover(7)
    assert cover is not None
    assert cover.frontier == 5


def test_looking_changes_nothing_and_opening_empties_staging() -> None:
    files = MemoryFiles()
    made(files)
    for name in ("take-7-0", "import-8-3", "take-x", "0" * 64, "f" * 64):
        make_folders(files, join(ROOT, "staging", name, "deep"))
    output = files.create(join(ROOT, "staging", "loose"))
    output.close()
    before = files.tree()
    assert len(Catalog.scan(files, ROOT)[7]) == 1
    assert files.tree() == before
    catalog = Catalog.open(files, ROOT, keep=["f" * 64])
    assert catalog.findings == []
    assert [one.name for one in files.listing(join(ROOT, "staging"))] == ["f" * 64]


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    files = OsFiles(tmp_path)
    one, other = made(files), made(files, 8192)
    root, group = tmp_path / ROOT, tmp_path / ROOT / "7"
    good = (tmp_path / path_of(ROOT, one)).name
    shutil.copytree(group / good, root / "8" / good)  # of another group
    shutil.copytree(group / good, group / ("0" * 19 + "9-" + good[-8:]))  # of another frontier
    (group / ("0" * 19 + "1-00000000")).mkdir()
    (group / "notes").write_text("x")
    (group / ("0" * 19 + "2-00000000")).symlink_to(group / good)
    for name in ("07", "1048576", "x", "-1"):
        (root / name).mkdir()
    (root / "9").write_text("no folder")
    (root / "10").symlink_to(group)
    newest = tmp_path / path_of(ROOT, other) / "manifest"
    newest.write_bytes(newest.read_bytes()[:-1])
    survey = look(files, ROOT)
    assert survey.groups == {7: [one]}
    assert {Path(finding.path).relative_to(ROOT).as_posix() for finding in survey.findings} == {
        f"8/{good}/manifest",
        f"7/{'0' * 19}9-{good[-8:]}/manifest",
        f"7/{'0' * 19}1-00000000/manifest",
        f"7/{'0' * 19}2-00000000",
        "7/notes",
        "07", "1048576", "x", "-1", "9", "10",
        f"7/{newest.parent.name}/manifest",
    }  # fmt: skip


def test_checkpoints_of_another_cluster_are_not_used() -> None:
    files = MemoryFiles()
    made(files)
    assert Catalog.open(files, ROOT, cluster=CLUSTER).groups() != {}
    catalog = Catalog.open(files, ROOT, cluster=1)
    assert catalog.groups() == {}
    assert "cluster" in catalog.findings[0].what


def test_one_whose_manifest_is_damaged_is_put_aside_when_it_is_opened() -> None:
    files = MemoryFiles()
    older, newer = several(files, [4096, 8192])
    path = path_of(ROOT, newer)
    files.flip(f"{path}/manifest", 8 * 20)
    assert look(files, ROOT).groups == {7: [older]}
    assert f"{path}/manifest" in files.tree(), "looking changes nothing"
    catalog = Catalog.open(files, ROOT)
    assert frontiers(catalog) == [4096]
    assert [finding.path for finding in catalog.findings] == [f"{path}/manifest"]
    assert f"quarantine/checkpoint-7-0/{path.rpartition('/')[2]}/manifest" in files.tree()
    files.power_loss(Random(1), 0.0)
    assert Catalog.open(files, ROOT).findings == [], "it is found once"
    assert frontiers(catalog) == [4096]


# --- dropping


def test_the_newest_stay_and_the_oldest_go_first() -> None:
    files = MemoryFiles()
    several(files, [1, 2, 3, 4])
    made(files, 1, group=8)
    catalog, covers = Catalog.open(files, ROOT), []
    for step in catalog.drop(7, 2):
        cover = catalog.cover(7)
        assert cover is not None
        covers.append((step, cover.frontier))
    steps = ["grave", "unnamed", "dropped", "removed"]
    assert [step for step, _ in covers] == steps * 2
    assert [frontier for _, frontier in covers] == [2] * 4 + [3] * 4
    assert frontiers(catalog) == [4, 3]
    assert Catalog.open(files, ROOT).groups() == catalog.groups()
    assert frontiers(catalog, 8) == [1]
    assert dropped(catalog, 0) == [3], "one stays in any case"


def test_of_equal_frontiers_the_last_taken_stays() -> None:
    files = MemoryFiles()
    made(files, 1)
    for seconds in (1, 3, 2):
        made(files, 2, parts=(part(0, [b"%d" % seconds]),), taken_us=seconds)
    catalog = Catalog.open(files, ROOT)
    assert frontiers(catalog) == [2, 2, 2, 1]
    for _ in catalog.drop(7, 2):
        pass
    assert [(one.frontier, one.taken_us) for one in catalog.of(7)][:-1] == [(2, 3)]
    assert frontiers(catalog) == [2, 1]


def test_one_in_use_is_not_dropped() -> None:
    files = MemoryFiles()
    one, two, three = several(files, [1, 2, 3])
    catalog = Catalog.open(files, ROOT)
    with catalog.pinned(one) as path, catalog.pinned(one):
        assert path == path_of(ROOT, one)
        assert dropped(catalog, 1) == [2]
        assert whole(files, one)
        assert catalog.cover(7) == one
    assert dropped(catalog, 1) == [1]
    assert catalog.of(7) == [three]
    with pytest.raises(KeyError), catalog.pinned(two):
        pass


def test_one_that_is_being_dropped_cannot_be_pinned_any_more() -> None:
    files = MemoryFiles()
    one, _ = several(files, [1, 2])
    catalog = Catalog.open(files, ROOT)
    steps = catalog.drop(7, 1)
    assert next(steps) == "grave"
    with pytest.raises(KeyError), catalog.pinned(one):
        pass
    steps.close()  # type: ignore[attr-defined]
    with catalog.pinned(one):  # it was not dropped after all
        assert whole(files, one)


def test_what_could_not_be_dropped_is_still_known() -> None:
    files = MemoryFiles()
    one, _ = several(files, [1, 2])
    for at in range(1, 20):
        catalog = Catalog.open(files, ROOT)
        if frontiers(catalog) == [2]:
            break
        files.errors = {files.effects + at: errno.EIO}
        with pytest.raises(OSError):
            list(catalog.drop(7, 1))
        assert (one in catalog.of(7)) == exists(files, path_of(ROOT, one))
    assert at > 3


def test_added_and_forgotten() -> None:
    files = MemoryFiles()
    one, two = several(files, [1, 2])
    catalog = Catalog(files, ROOT, module.Survey({}, []))
    for manifest in (one, two, one):
        catalog.add(manifest)
    assert catalog.groups() == {7: [two, one]}
    catalog.forget(two)
    assert catalog.of(7) == [one]
    catalog.forget(one)
    assert catalog.groups() == {}


def test_quarantine_is_beside_the_checkpoints_and_never_full() -> None:
    files = MemoryFiles()
    manifest = made(files)
    path = path_of(ROOT, manifest)
    first = put_aside(files, ROOT, path)
    assert whole(files, made(files))
    second = put_aside(files, ROOT, path)
    name = path.rpartition("/")[2]
    assert (first, second) == (
        f"quarantine/checkpoint-7-0/{name}",
        f"quarantine/checkpoint-7-1/{name}",
    )
    files.power_loss(Random(1), 0)
    assert look(files, ROOT).groups == {}
    assert read_all(files, f"{first}/manifest", MIB) == read_all(files, f"{second}/manifest", MIB)


# --- verifying


def test_each_flipped_byte_of_a_checkpoint_is_found() -> None:
    files = MemoryFiles()
    manifest = made(files)
    path = path_of(ROOT, manifest)
    for one in files.listing(path):
        for at in range(one.size_bytes):
            bit = at * 8 + at % 8
            files.flip(f"{path}/{one.name}", bit)
            assert [finding.path for finding in verify(files, path)] == [f"{path}/{one.name}"]
            files.flip(f"{path}/{one.name}", bit)
    assert verify(files, path) == []


def test_the_damaged_blocks_are_named() -> None:
    files = MemoryFiles()
    manifest = made(files, parts=(part(0, [bytes(2 * MIB + 5)]),))
    path = f"{path_of(ROOT, manifest)}/machine-0"
    files.flip(path, (MIB + 1) * 8)
    files.flip(path, (2 * MIB + 1) * 8)
    assert verify(files, path_of(ROOT, manifest)) == [
        Finding(path, f"bytes {MIB} .. {2 * MIB - 1} are damaged"),
        Finding(path, f"bytes {2 * MIB} .. {2 * MIB + 4} are damaged"),
    ]


def test_a_digest_of_all_that_its_blocks_do_not_bear_out_is_found() -> None:
    """A manifest whose blocks are right and whose digest of the whole file is not."""
    files = MemoryFiles()
    good = made(files)
    entry = good.files[0]
    spoilt = type(entry)(entry.name, entry.size_bytes, bytes(32), entry.blocks)
    bad = decode(encode(_with(good, files=(spoilt, *good.files[1:]))))
    path = path_of(ROOT, bad)
    files.rename(path_of(ROOT, good), path)
    files.remove(f"{path}/manifest")
    output = files.create(f"{path}/manifest")
    output.write(encode(bad))
    assert verify(files, path) == [Finding(f"{path}/machine-0", "its digest is not the manifest's")]


def _with(manifest: Manifest, **changed: object) -> Manifest:
    import dataclasses

    return dataclasses.replace(manifest, **changed)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> tuple[OsFiles, Path, str]:
    files = OsFiles(tmp_path)
    path = path_of(ROOT, made(files))
    assert verify(files, path) == []
    return files, tmp_path / path, path


def test_what_is_missing_or_too_much_is_found(folder: tuple[OsFiles, Path, str]) -> None:
    files, real, path = folder
    (real / "extra").write_text("x")
    (real / "sub").mkdir()
    (real / "machine-9").unlink()
    assert verify(files, path) == [
        Finding(f"{path}/machine-9", "is missing"),
        Finding(f"{path}/extra", "does not belong here"),
        Finding(f"{path}/sub", "does not belong here"),
    ]


@pytest.mark.parametrize("change", [b"", b"more"])
def test_a_file_of_another_size_is_found(folder: tuple[OsFiles, Path, str], change: bytes) -> None:
    files, real, path = folder
    data = (real / "machine-0").read_bytes()
    (real / "machine-0").write_bytes(data + change if change else data[:-1])
    size = len(data) + (len(change) or -1)
    assert verify(files, path) == [
        Finding(f"{path}/machine-0", f"has {size} bytes, not {len(data)}")
    ]


def test_links_are_refused_even_to_the_right_bytes(
    folder: tuple[OsFiles, Path, str], tmp_path: Path
) -> None:
    files, real, path = folder
    (real / "machine-0").rename(tmp_path / "elsewhere")
    (real / "machine-0").symlink_to(tmp_path / "elsewhere")
    os.link(real / "machine-9", tmp_path / "hard")
    assert verify(files, path) == [
        Finding(f"{path}/machine-0", "is a link, or no plain file"),
        Finding(f"{path}/machine-9", "is a link, or no plain file"),
    ]
    (real / "manifest").rename(tmp_path / "manifest")
    (real / "manifest").symlink_to(tmp_path / "manifest")
    assert [finding.path for finding in verify(files, path)] == [f"{path}/manifest"]
    moved = real.rename(tmp_path / "moved")
    real.symlink_to(moved)
    assert [finding.path for finding in verify(files, path)] == [f"{path}/manifest"]


def test_a_pipe_in_place_of_a_file_does_not_hang(folder: tuple[OsFiles, Path, str]) -> None:
    files, real, path = folder
    for name in ("machine-0", "manifest"):
        (real / name).unlink()
        os.mkfifo(real / name)
        assert [finding.path for finding in verify(files, path)] == [f"{path}/{name}"]


def test_the_folder_of_another_checkpoint_is_found(folder: tuple[OsFiles, Path, str]) -> None:
    files, real, path = folder
    real.rename(real.with_name("0" * 20 + "-00000000"))
    finding = verify(files, f"{path.rpartition('/')[0]}/{'0' * 20}-00000000")
    assert len(finding) == 1
    assert "group 7" in finding[0].what


def test_nothing_large_is_read_as_a_manifest(folder: tuple[OsFiles, Path, str]) -> None:
    files, real, path = folder
    with (real / "manifest").open("r+b") as opened:
        opened.truncate(1 << 40)
    findings = verify(files, path)
    assert "more than" in findings[0].what
    with pytest.raises(Damaged):
        read_all(files, f"{path}/manifest", 10)


def test_a_light_one_is_verified_without_its_machine() -> None:
    files = MemoryFiles()
    parts = (Part(0, DURABLE, None),)
    manifest = run(take(files, ROOT, capture(5, parts=parts, sessions=table(frontier=5))))
    assert manifest.files == ()
    assert whole(files, manifest)
