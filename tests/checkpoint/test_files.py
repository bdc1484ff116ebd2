"""Real folders and the simulated disk behave alike; nothing leads out of the one, and the other
forgets what it may forget."""

import errno
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from phx.checkpoint.files import (
    FILE,
    FOLDER,
    OTHER,
    Files,
    Found,
    OsFiles,
    exists,
    make_folders,
    new_folder,
    remove_tree,
)
from phx.sim.files import Crashed, MemoryFiles


@pytest.fixture(params=["os", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return OsFiles(tmp_path) if request.param == "os" else MemoryFiles()


def put(files: Files, path: str, data: bytes, sync: bool = True) -> None:
    output = files.create(path)
    output.write(data)
    if sync:
        output.sync()
    output.close()


def get(files: Files, path: str) -> bytes:
    opened, found = files.read(path), b""
    while data := opened.read(7):
        found += data
    opened.close()
    return found


def test_a_name_is_made_durable_once_in_a_life_and_again_if_it_is_made_again(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = files.sync

    def noted(path: str) -> None:
        synced.append(path)
        sync(path)

    monkeypatch.setattr(files, "sync", noted)
    make_folders(files, "a/b")
    assert synced == ["", "a"]
    make_folders(files, "a/b")
    make_folders(files, "a/c")
    assert synced == ["", "a", "a"]
    files.remove_folder("a/b")
    make_folders(files, "a/b")
    assert synced == ["", "a", "a", "a"]


def test_what_an_earlier_life_made_may_not_be_durable() -> None:
    files = MemoryFiles()
    make_folders(files, "a")
    files.make_folder("a/b")  # and dies before it is synced
    files.restart()
    make_folders(files, "a/b")
    files.power_loss(Random(1), 0.0)
    assert exists(files, "a/b")


def test_what_is_written_is_read(files: Files) -> None:
    make_folders(files, "a/b")
    output = files.create("a/b/file")
    for piece in (b"one", bytearray(b"two"), memoryview(b"three"), b""):
        output.write(piece)
    assert output.size_bytes() == 11
    output.sync()
    output.close()
    files.sync("a/b")
    assert get(files, "a/b/file") == b"onetwothree"
    opened = files.read("a/b/file")
    assert opened.size_bytes == 11
    opened.close()
    assert files.listing("a/b") == [Found("file", FILE, 11)]
    assert [(one.name, one.kind) for one in files.listing("")] == [("a", FOLDER)]
    assert files.free_bytes() > 0


@pytest.mark.parametrize("size", [0, 4, 11])
def test_a_file_is_cut_and_gone_on_with(files: Files, size: int) -> None:
    put(files, "file", b"one two six")
    output = files.extend("file", size)
    assert output.size_bytes() == size
    output.write(b"seven")
    output.sync()
    output.close()
    assert get(files, "file") == b"one two six"[:size] + b"seven"
    opened = files.read("file")
    opened.skip(size)
    assert opened.read(9) == b"seven"
    opened.close()


def test_a_file_is_not_made_longer_and_only_a_file_is_cut(files: Files) -> None:
    put(files, "file", b"abc")
    make_folders(files, "folder")
    for path, size, number in [
        ("file", 4, errno.EINVAL),
        ("none", 0, errno.ENOENT),
    ]:
        with pytest.raises(OSError) as found:
            files.extend(path, size)
        assert found.value.errno == number
    with pytest.raises(OSError):
        files.extend("folder", 0)
    assert get(files, "file") == b"abc"


def test_errors_are_those_of_the_system(files: Files) -> None:
    make_folders(files, "a")
    put(files, "f", b"x")
    for call, kind in [
        (lambda: files.make_folder("a"), FileExistsError),
        (lambda: files.create("f"), FileExistsError),
        (lambda: files.create("a"), FileExistsError),
        (lambda: files.rename("f", "a"), FileExistsError),
        (lambda: files.rename("a", "f"), FileExistsError),
        (lambda: files.rename("none", "new"), FileNotFoundError),
        (lambda: files.read("none"), FileNotFoundError),
        (lambda: files.read("none/f"), FileNotFoundError),
        (lambda: files.listing("none"), FileNotFoundError),
        (lambda: files.listing("f"), NotADirectoryError),
        (lambda: files.remove("none"), FileNotFoundError),
        (lambda: files.make_folder("none/x"), FileNotFoundError),
        (lambda: files.sync("none"), FileNotFoundError),
    ]:
        with pytest.raises(kind):
            call()
    put(files, "a/inside", b"")
    with pytest.raises(OSError) as caught:
        files.remove_folder("a")
    assert caught.value.errno == errno.ENOTEMPTY
    with pytest.raises(OSError):
        files.read("a")
    with pytest.raises(OSError):
        files.remove("a")


@pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "/etc", "a//b", "a/.", "a/", "x\0y"])
def test_a_path_that_could_lead_out_is_refused(files: Files, path: str) -> None:
    make_folders(files, "a")
    for call in (files.listing, files.make_folder, files.create, files.read, files.remove):
        with pytest.raises(ValueError):
            call(path)
    with pytest.raises(ValueError):
        files.rename("a", path)


def test_folders_are_made_once_and_removed_as_a_tree(files: Files) -> None:
    make_folders(files, "a/b/c")
    make_folders(files, "a/b/c")
    assert [new_folder(files, "a", "n") for _ in range(3)] == ["a/n-0", "a/n-1", "a/n-2"]
    put(files, "a/b/f", b"x")
    remove_tree(files, "a/b/f")
    assert not exists(files, "a/b/f")
    put(files, "a/b/c/f", b"x")
    remove_tree(files, "a")
    remove_tree(files, "a")
    assert files.listing("") == []
    assert not exists(files, "a/b")


# --- links


@pytest.fixture
def outside(tmp_path: Path) -> tuple[OsFiles, Path]:
    """A tree with links that lead out of it, and what must stay as it is."""
    root, other = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    other.mkdir()
    (other / "secret").write_text("secret")
    (root / "folder").symlink_to(other)
    (root / "file").symlink_to(other / "secret")
    (root / "dangling").symlink_to(other / "new")
    os.link(other / "secret", root / "hard")
    os.mkfifo(root / "pipe")
    return OsFiles(root), other


def test_nothing_follows_a_link(outside: tuple[OsFiles, Path]) -> None:
    files, other = outside
    assert {one.name: one.kind for one in files.listing("")} == dict.fromkeys(
        ["folder", "file", "dangling", "hard", "pipe"], OTHER
    )
    for name in ("file", "dangling", "hard", "pipe", "folder", "folder/secret"):
        with pytest.raises(OSError):
            files.read(name)
        with pytest.raises(OSError):
            files.extend(name, 0)
    for name in ("file", "dangling", "folder", "folder/new"):
        with pytest.raises(OSError):
            files.create(name)
    for call in (
        lambda: files.listing("folder"),
        lambda: files.sync("folder"),
        lambda: files.make_folder("folder/new"),
        lambda: files.remove("folder/secret"),
        lambda: files.rename("folder/secret", "mine"),
        lambda: files.rename("pipe", "folder/pipe"),
    ):
        with pytest.raises(OSError):
            call()
    assert [path.name for path in other.iterdir()] == ["secret"]
    assert (other / "secret").read_text() == "secret"


def test_a_tree_is_removed_with_its_links_and_not_with_what_they_lead_to(
    outside: tuple[OsFiles, Path],
) -> None:
    files, other = outside
    for name in ["folder", "file"]:
        remove_tree(files, name)
    make_folders(files, "tree")
    for name in ["dangling", "hard", "pipe"]:
        files.rename(name, f"tree/{name}")
    (files.root / "tree" / "more").symlink_to(other)
    remove_tree(files, "tree")
    assert files.listing("") == []
    assert (other / "secret").read_text() == "secret"


def test_nothing_stays_open(tmp_path: Path) -> None:
    files, before = OsFiles(tmp_path), len(os.listdir("/dev/fd"))
    make_folders(files, "a/b")
    put(files, "a/b/f", b"x")
    get(files, "a/b/f")
    for call in (
        lambda: files.read("a/b"),
        lambda: files.create("a/b/f"),
        lambda: files.sync("x"),
        lambda: files.extend("a/b/f", 2),
    ):
        with pytest.raises(OSError):
            call()
    assert len(os.listdir("/dev/fd")) == before


# --- the simulated disk


def test_power_takes_what_was_not_synced() -> None:
    files = MemoryFiles()
    make_folders(files, "a")
    put(files, "a/synced", b"x" * 5000)
    put(files, "a/unsynced", b"x" * 5000, sync=False)
    files.sync("a")
    put(files, "a/unnamed", b"x")
    files.power_loss(Random(1), keep=0)
    assert [one.name for one in files.listing("a")] == ["synced", "unsynced"]
    assert get(files, "a/synced") == b"x" * 5000
    assert get(files, "a/unsynced") == b"\0" * len(get(files, "a/unsynced"))


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_power_may_take_back_a_cut_that_was_not_synced(keep: float) -> None:
    for synced in (False, True):
        files = MemoryFiles(sector_bytes=4)
        put(files, "file", b"before it")
        files.sync("")
        output = files.extend("file", 4)
        output.write(b"x")
        if synced:
            output.sync()
        files.power_loss(Random(1), keep)
        assert files.content("file") == (b"befox" if synced or keep else b"before it")


def test_power_may_keep_anything_that_was_not_synced() -> None:
    """Each of what can be left of two names and a torn file is seen."""
    seen: Counter[tuple[bool, bool]] = Counter()
    torn: set[bytes] = set()
    for seed in range(200):
        files = MemoryFiles(sector_bytes=4)
        put(files, "a", b"aaaabbbb", sync=False)
        put(files, "b", b"x")
        files.power_loss(Random(seed), keep=0.5)
        seen[exists(files, "a"), exists(files, "b")] += 1
        if exists(files, "a"):
            torn.add(get(files, "a"))
    assert len(seen) == 4
    assert {b"aaaabbbb", b"\0\0\0\0bbbb", b"aaaa\0\0\0\0"} <= torn


@pytest.mark.parametrize("synced", ["", "source", "target", "both"])
def test_a_rename_is_whole_but_may_be_lost_when_only_its_source_is_synced(synced: str) -> None:
    seen = set()
    for seed in range(50):
        files = MemoryFiles()
        make_folders(files, "source")
        make_folders(files, "target")
        put(files, "source/f", b"x")
        files.sync("source")
        files.rename("source/f", "target/f")
        for folder in ("source", "target"):
            if synced in (folder, "both"):
                files.sync(folder)
        files.power_loss(Random(seed), keep=0.5)
        seen.add((exists(files, "source/f"), exists(files, "target/f")))
    assert (
        seen
        == {
            "": {(True, False), (False, True)},
            "source": {(False, False), (False, True)},
            "target": {(False, True)},
            "both": {(False, True)},
        }[synced]
    )


def test_old_changes_of_names_are_on_the_disk_without_a_sync() -> None:
    files = MemoryFiles(changes_max=2)
    for name in ("a", "b", "c", "d"):
        put(files, name, b"x")
    files.power_loss(Random(1), keep=0)
    assert [one.name for one in files.listing("")] == ["a", "b"]


def test_a_crash_comes_before_its_effect_and_ends_all_that_was_open() -> None:
    for at in range(1, 6):
        files = MemoryFiles()
        files.crash_at = at
        outputs = []
        with suppress(Crashed):
            make_folders(files, "a")
            outputs.append(files.create("a/f"))
            outputs[0].write(b"12345678")
            outputs[0].sync()
        with pytest.raises(Crashed):
            files.listing("")
        files.restart()
        expected = {1: [], 2: ["a/"], 3: ["a/"], 4: ["a/", "a/f"], 5: ["a/", "a/f"]}
        assert files.tree() == expected[at]
        if at > 3:
            assert files.content("a/f") == b"12345678"[: 4 if at == 4 else 8]
            with pytest.raises(Crashed):
                outputs[0].write(b"of the dead")


def test_the_simulated_disk_is_as_large_as_it_says() -> None:
    files = MemoryFiles(capacity_bytes=10)
    output = files.create("f")
    output.write(b"12345678")
    assert files.free_bytes() == 2
    with pytest.raises(OSError) as caught:
        output.write(b"90abc")
    assert caught.value.errno == errno.ENOSPC
    assert files.content("f") == b"1234567890"
