"""`phx checkpoint` on folders: what it shows, what it finds, what it refuses."""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
from click.testing import CliRunner, Result

import phx
from phx.checkpoint.catalog import ROOT, path_of
from phx.checkpoint.files import OsFiles
from phx.checkpoint.manifest import DURABLE, Manifest
from phx.checkpoint.taking import Part
from phx.cli.checkpoint import checkpoint
from phx.cli.commands import phx as command
from phx.errors import NoLongerKept
from phx.machines import Counter
from phx.node.folder import Folder
from phx.store import Floor, MembersRow, Store
from phx.store_folder import read_identity
from phx.verify import examine

TESTS = Path(__file__).resolve().parent.parent
CLUSTER = 0xC1A5


@pytest.fixture(autouse=True)
def labs() -> Iterator[None]:
    """Captures and plans of other folders' tests."""
    before = list(sys.path)
    sys.path += [str(TESTS / "checkpoint"), str(TESTS / "store")]
    yield
    sys.path[:] = before


def made(folder: Path, *arguments: Any, **changed: Any) -> Manifest:
    from checkpoint_lab import made as taken

    manifest: Manifest = taken(OsFiles(folder), *arguments, **changed)
    return manifest


def called(*words: object) -> Result:
    return CliRunner().invoke(command, ["checkpoint", *map(str, words)])


def answer(*words: object, exit_code: int = 0) -> Any:
    shown = called(*words, "--json")
    assert shown.exit_code == exit_code, shown.output
    return json.loads(shown.stdout)


def refusal(*words: object) -> str:
    shown = called(*words)
    assert shown.exit_code == 1
    assert shown.stdout == ""
    return shown.stderr


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The folder of a node that has never settled anything."""
    folder = tmp_path / "node"
    folder.mkdir()
    Store.open(folder / "store", cluster=CLUSTER, node=1, create=True).close()
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A checkpoint of group 7 at 4096."""
    (tmp_path / "other").mkdir()
    made(tmp_path / "other")
    assert called("export", tmp_path / "other", 7, tmp_path / "bundle").exit_code == 0
    return tmp_path / "bundle"


def damage(folder: Path, manifest: Manifest, name: str = "machine-0") -> str:
    path = folder / path_of(ROOT, manifest) / name
    path.write_bytes(b"?" + path.read_bytes()[1:])
    return path.relative_to(folder).as_posix()


def test_list_shows_every_checkpoint_newest_first(tmp_path: Path) -> None:
    assert answer("list", tmp_path) == {"checkpoints": [], "findings": []}
    for frontier in (4096, 8192):
        made(tmp_path, frontier)
    made(tmp_path, 5, group=3)
    found = answer("list", tmp_path)
    assert [(one["group"], one["frontier"]) for one in found["checkpoints"]] == [
        (3, 5),
        (7, 8192),
        (7, 4096),
    ]
    assert found["checkpoints"][2]["taken"] == "2023-11-14T22:13:20Z"
    shown = called("list", tmp_path)
    assert shown.exit_code == 0
    assert all(word in shown.stdout for word in ("8192", "4096", "ident"))


def test_list_names_what_cannot_be_read(tmp_path: Path) -> None:
    path = damage(tmp_path, made(tmp_path), "manifest")
    assert answer("list", tmp_path, exit_code=1)["findings"] == [
        {"path": path, "what": "not a manifest"}
    ]
    assert path in called("list", tmp_path).stderr


def test_verify_finds_what_list_does_not_see(tmp_path: Path) -> None:
    manifest = made(tmp_path)
    assert answer("verify", tmp_path) == {
        "checkpoints": 1,
        "bytes": manifest.size_bytes,
        "findings": [],
    }
    path = damage(tmp_path, manifest)
    assert answer("list", tmp_path)["findings"] == []
    found = answer("verify", tmp_path, exit_code=1)["findings"]
    assert [one["path"] for one in found] == [path]
    shown = called("verify", tmp_path)
    assert shown.stdout.splitlines()[0].startswith(f"{path}: bytes 0 .. ")
    assert shown.exit_code == 1


def test_looking_changes_nothing(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / ROOT / "staging" / "take-7-0").mkdir()

    def tree() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))

    before = tree()
    for name in ("list", "verify"):
        assert called(name, tmp_path).exit_code == 0
    assert tree() == before


def test_a_checkpoint_goes_from_one_node_to_another(node: Path, bundle: Path) -> None:
    assert "holds nothing of group 7" in refusal("import", bundle, node)
    found = answer("import", bundle, node, "--new")
    assert (found["group"], found["frontier"]) == (7, 4096)
    assert answer("verify", node)["checkpoints"] == 1
    assert answer("import", bundle, node, "--new") == found
    again = node / "again"
    assert called("export", node, 7, again).stdout == "group 7, frontier 4096, 724 bytes\n"
    assert again.read_bytes() == bundle.read_bytes()


def test_the_members_of_an_imported_checkpoint_are_those_of_the_group(
    node: Path, tmp_path: Path
) -> None:
    """Its log begins behind the checkpoint: nothing that is left there says who they are."""
    from checkpoint_lab import bundle_of, membership, moved

    told = membership()
    (tmp_path / "source").mkdir()
    files = OsFiles(tmp_path / "source")
    manifest = made(tmp_path / "source", **moved(told))
    (tmp_path / "bundle").write_bytes(bundle_of(files, manifest))
    answer("import", tmp_path / "bundle", node, "--new")
    owner = read_identity(node / "store", 1 << 20)
    store = Store.open(node / "store", cluster=owner.cluster, node=owner.node)
    try:
        assert store.settled()[7] == manifest.frontier
        assert store.members() == {7: MembersRow(told)}
    finally:
        store.close()
    (report,) = (one for one in examine(node, whole=True).groups.values() if one.group == 7)
    assert (report.members, report.version, report.since) == ((1, 4, 5), 3, told.instance)


def test_import_needs_no_new_for_a_group_that_the_folder_holds(node: Path, bundle: Path) -> None:
    from store_lab import Log, block

    log = Log()
    log.add(block([7], 1, 3))
    store = Store.open(node / "store", cluster=CLUSTER, node=1)
    store.settle(log.plan())
    store.close()
    assert answer("import", bundle, node)["group"] == 7


def test_a_group_that_has_no_log_anywhere_goes_on_behind_the_checkpoint(tmp_path: Path) -> None:
    """Its next value is not instance 1, which would pass for applied: nobody would be answered."""
    old, new = (
        phx.Config(
            cluster="imported", node=1, dir=tmp_path / name, members={1: "127.0.0.1:0"}, groups=2
        )
        for name in ("old", "new")
    )

    async def begin() -> int:
        async with phx.Node(old, Counter, bootstrap=True) as node:
            for _ in range(20):
                await node.group(1).propose(b"1")
            frontier = (await node.group(1).checkpoint()).frontier
        async with phx.Node(new, Counter, bootstrap=True) as node:
            await node.group(0).propose(b"1")
        return frontier

    async def go_on() -> list[int]:
        async with phx.Node(new, Counter) as node:
            await node.wait_ready()
            group = node.group(1)
            for _ in range(3):
                await group.propose(b"1", timeout=20)
            with pytest.raises(NoLongerKept):
                await group.entry(1)
            return [group.machine().total, group.status().applied_through]

    frontier = asyncio.run(begin())
    bundle = tmp_path / "bundle"
    assert answer("export", old.dir, 1, bundle)["frontier"] == frontier
    assert answer("import", bundle, new.dir, "--new")["group"] == 1
    total, through = asyncio.run(go_on())
    assert total == 23
    assert through > frontier
    assert asyncio.run(go_on())[0] == 26
    assert called("verify", new.dir).exit_code == 0


class Carried:
    """A node with group 1, which took a checkpoint of it, and a new one that has none."""

    def __init__(self, folder: Path, machine: type[Counter] = Counter, lives: int = 1) -> None:
        self.folder = folder
        self.machine = machine
        self.old, self.new = (
            phx.Config(
                cluster="carried", node=1, dir=folder / name, members={1: "127.0.0.1:0"}, groups=2
            )
            for name in ("old", "new")
        )
        for number in range(lives - 1):
            self.life(self.old, 1, bootstrap=number == 0)
        self.life(self.old, 20, bootstrap=lives == 1, bundle="bundle")
        self.life(self.new, 1, group=0, bootstrap=True)

    def life(
        self,
        config: phx.Config,
        count: int,
        *,
        group: int = 1,
        bootstrap: bool = False,
        bundle: str = "",
    ) -> int:
        """Proposes so many values, and exports a checkpoint, if told to; the machine's total."""

        async def live() -> int:
            async with phx.Node(config, self.machine, bootstrap=bootstrap) as node:
                await node.wait_ready([group])
                for _ in range(count):
                    await node.group(group).propose(b"1", timeout=10)
                if bundle:
                    await node.group(group).checkpoint()
                machine = node.group(group).machine()
                assert isinstance(machine, Counter)
                return machine.total

        total = asyncio.run(live())
        if bundle:
            answer("export", config.dir, group, self.folder / bundle)
        return total

    def bring(self, bundle: str = "bundle") -> None:
        answer("import", self.folder / bundle, self.new.dir, "--new")


def test_a_node_whose_forerunner_was_started_more_often_goes_on(tmp_path: Path) -> None:
    """The session table knows life 5 of node 1; of life 2 it would admit nothing."""
    carried = Carried(tmp_path, lives=5)
    carried.bring()
    assert carried.life(carried.new, 3) == 24 + 3


class Epochs(Counter):
    seen: ClassVar[list[int]] = []

    def apply(self, entry: phx.Entry) -> Any:
        if entry.group == 1:
            self.seen.append(entry.epoch)
        return super().apply(entry)


def test_epochs_never_go_back(tmp_path: Path) -> None:
    Epochs.seen.clear()
    carried = Carried(tmp_path, Epochs, lives=5)
    highest = max(Epochs.seen)
    carried.bring()
    Epochs.seen.clear()
    carried.life(carried.new, 2)
    assert min(Epochs.seen) > highest


def test_a_newer_checkpoint_takes_the_place_of_the_first(tmp_path: Path) -> None:
    carried = Carried(tmp_path)
    carried.life(carried.old, 20, bundle="newer")
    carried.bring()
    carried.bring("newer")
    assert carried.life(carried.new, 3) == 43


def test_a_checkpoint_that_is_lost_keeps_its_group_down_and_not_the_node(tmp_path: Path) -> None:
    carried = Carried(tmp_path)
    carried.bring()
    (file,) = (Path(carried.new.dir) / ROOT / "1").glob("*/machine-0")
    file.write_bytes(b"?" + file.read_bytes()[1:])
    assert carried.life(carried.new, 1, group=0) == 2  # it goes to quarantine
    assert carried.life(carried.new, 1, group=0) == 3  # there is none


def test_import_refuses_another_cluster(node: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    made(foreign, cluster=0xBAD)
    called("export", foreign, 7, tmp_path / "bundle")
    assert "0xbad" in refusal("import", tmp_path / "bundle", node, "--new")
    assert not (node / ROOT).exists()


def test_import_refuses_what_ends_below_the_floor(
    node: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for floor, good in ((4098, False), (4097, True)):
        monkeypatch.setattr(Store, "floors", lambda self, floor=floor: {7: Floor(floor, 9000)})
        if good:
            assert answer("import", bundle, node)["frontier"] == 4096
        else:
            assert "begins with 4098" in refusal("import", bundle, node)
            assert not (node / ROOT).exists()


def test_import_refuses_a_running_node_and_what_is_none(
    node: Path, bundle: Path, tmp_path: Path
) -> None:
    running = Folder(node)
    running.lock(create=False)
    try:
        assert "Locked" in refusal("import", bundle, node, "--new")
    finally:
        running.unlock()
    (tmp_path / "empty").mkdir()
    assert "not the folder of a node" in refusal("import", bundle, tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []
    (tmp_path / "empty" / "store").mkdir()
    assert "NotBootstrapped" in refusal("import", bundle, tmp_path / "empty")


def test_import_refuses_damage_and_leaves_nothing(node: Path, bundle: Path) -> None:
    data = bundle.read_bytes()
    for spoilt in (b"", data[:-1], data + b"x", data[:-1] + b"?", b"x" * len(data)):
        bundle.write_bytes(spoilt)
        assert "Damaged" in refusal("import", bundle, node, "--new")
    assert answer("list", node) == {"checkpoints": [], "findings": []}
    bundle.write_bytes(data)
    assert called("import", bundle, node, "--new").exit_code == 0


def test_export_takes_the_newest_or_the_one_that_is_named(tmp_path: Path) -> None:
    for frontier in (4096, 8192, 12288):
        made(tmp_path, frontier)
    made(tmp_path, 12288, parts=(Part(0, DURABLE, None),), taken_us=1 << 60)  # a light one
    assert answer("export", tmp_path, 7, tmp_path / "newest")["frontier"] == 12288
    old = answer("export", tmp_path, 7, tmp_path / "old", "--frontier", 4096)
    assert old["frontier"] == 4096
    assert "no such checkpoint" in refusal("export", tmp_path, 8, tmp_path / "x")
    assert "no such checkpoint" in refusal("export", tmp_path, 7, tmp_path / "x", "--frontier", 5)
    assert not (tmp_path / "x").exists()


def test_export_never_overwrites_and_leaves_no_half(tmp_path: Path) -> None:
    manifest = made(tmp_path)
    target = tmp_path / "target"
    target.write_text("mine")
    assert "exists" in refusal("export", tmp_path, 7, target)
    assert target.read_text() == "mine"
    (tmp_path / "half.part").write_text("mine, too")
    assert "half.part" in refusal("export", tmp_path, 7, tmp_path / "half")
    assert (tmp_path / "half.part").read_text() == "mine, too"
    (tmp_path / "half.part").unlink()
    damage(tmp_path, manifest, "machine-9")
    assert "Damaged" in refusal("export", tmp_path, 7, tmp_path / "half")
    assert sorted(path.name for path in tmp_path.iterdir()) == [ROOT, "target"]
    assert "nowhere" in refusal("export", tmp_path, 7, tmp_path / "nowhere" / "file")


def test_reference_has_every_command_and_option() -> None:
    page = (TESTS.parent / "docs/reference/cli.md").read_text()
    section = page.split("\n## phx checkpoint\n", 1)[1].split("\n## ")[0]
    parts = re.split(r"(?m)^### phx checkpoint (\w+)$", section)
    named = {
        name: set(re.findall(r"`(--[\w-]+)", text))
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    assert named == {
        name: {
            option.opts[0]
            for option in one.params
            if isinstance(option, click.Option) and option.opts[0] not in ("--version", "--json")
        }
        for name, one in checkpoint.commands.items()
    }


@pytest.mark.parametrize("name", sorted(checkpoint.commands))
def test_habits(name: str) -> None:
    shown = called(name, "--help").stdout
    assert "--json" in shown
    assert "--version" in shown
    assert called(name, "--version").exit_code == 0
