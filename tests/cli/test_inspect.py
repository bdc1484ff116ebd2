"""`phx inspect` on folders: floors, checkpoints, damage; and never a change."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from phx import errors, store_look
from phx.checkpoint.files import OsFiles
from phx.cli.commands import phx as command
from phx.store import Floor

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def labs() -> Iterator[None]:
    before = list(sys.path)
    sys.path += [str(TESTS / "checkpoint"), str(TESTS / "store")]
    yield
    sys.path[:] = before


def answer(folder: Path, exit_code: int = 0) -> Any:
    shown = CliRunner().invoke(command, ["inspect", str(folder), "--json"])
    assert shown.exit_code == exit_code, shown.output
    return json.loads(shown.stdout)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def node(tmp_path: Path, labs: None) -> Path:
    """Groups 7 and 8 with 40 instances; 7 is kept from 31 on, and has a checkpoint at 4096."""
    from checkpoint_lab import made
    from store_lab import Log, block, opened

    log = Log()
    log.add(block([7, 8], 1, 40))
    with opened(tmp_path / "store", create=True) as store:
        store.settle(log.plan())
        store.raise_floors({7: Floor(31, 30)})
    made(OsFiles(tmp_path))
    return tmp_path


GROUPS = [
    {"group": 7, "kept_from": 31, "settled_through": 40, "checkpoints": [4096]},
    {"group": 8, "kept_from": 1, "settled_through": 40, "checkpoints": []},
]


def test_it_shows_floors_and_checkpoints_and_changes_nothing(node: Path) -> None:
    before = contents(node)
    found = answer(node)
    assert found["groups"] == GROUPS
    assert found["findings"] == []
    assert (found["store"]["cluster"], found["store"]["node"]) == (0x1234, 5)
    assert found["store"]["chunks"] == 1
    assert found["store"]["file_bytes"] == (node / "store" / "data.mdb").stat().st_size
    shown = CliRunner().invoke(command, ["inspect", str(node)])
    assert shown.exit_code == 0
    assert ["7", "31", "40", "4096"] in [
        [word for word in line.split() if word.isdigit()] for line in shown.stdout.splitlines()
    ]
    assert contents(node) == before


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_beside_a_store_that_is_at_work(tmp_path: Path) -> None:
    """Every look is at one moment: the floors of all groups go up together."""
    from store_lab import opened
    from store_victim import GROUPS, floor_of

    folder, hold = tmp_path / "store", 2
    with opened(folder, create=True):
        pass
    victim = TESTS / "store" / "store_victim.py"
    command = [sys.executable, str(victim), str(folder), "--hold", str(hold)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment()) as process:
        try:
            seen: list[int] = []
            while len(set(seen)) < 20:
                assert process.poll() is None
                floors = store_look.look(folder).floors
                if floors and floors[GROUPS[0]].kept_from > 1:
                    moment = floors[GROUPS[0]].kept_from - 1 + hold
                    assert {group: floor.kept_from for group, floor in floors.items()} == {
                        group: floor_of(group, moment, hold) for group in GROUPS
                    }
                    seen.append(moment)
            assert seen == sorted(seen)
        finally:
            process.kill()


def test_what_is_damaged_is_named_and_the_rest_is_shown(node: Path) -> None:
    path = node / "store" / "data.mdb"
    data = path.read_bytes()
    row = struct.pack("<IIQQ", 7, 0, 31, 40)
    for at in range(len(data)):  # every copy: older pages have the table of groups, too
        if data.startswith(row, at):
            data = data[:at] + b"\x06" + data[at + 1 :]
    path.write_bytes(data)
    found = answer(node, exit_code=1)
    assert found["store"] == {}
    assert [(one["group"], one["kept_from"], one["checkpoints"]) for one in found["groups"]] == [
        (7, None, [4096])
    ]
    (finding,) = found["findings"]
    assert "Damaged" in finding
    assert "the table of groups" in finding
    manifest = next((node / "checkpoints" / "7").glob("*/manifest"))
    manifest.write_bytes(manifest.read_bytes()[:-1])
    found = answer(node, exit_code=1)
    assert found["groups"] == []
    assert len(found["findings"]) == 2


def test_a_file_that_was_cut_is_not_read(node: Path) -> None:
    path = node / "store" / "data.mdb"
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(errors.Damaged, match=r"data\.mdb has \d+ of \d+ bytes"):
        store_look.look(node / "store")


def test_no_store(tmp_path: Path) -> None:
    found = answer(tmp_path, exit_code=1)
    assert found["groups"] == []
    assert "NotBootstrapped" in found["findings"][0]
