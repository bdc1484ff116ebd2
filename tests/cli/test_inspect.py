"""`phx inspect` on folders: floors, checkpoints, damage; and never a change."""

import json
import struct
import sys
import threading
import time
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


def test_beside_a_store_that_is_at_work(node: Path) -> None:
    """Every look is at one moment: the floors of both groups go up together."""
    from store_lab import Log, block, opened

    stop = threading.Event()
    trouble: list[BaseException] = []

    def work() -> None:
        try:
            with opened(node / "store") as store:
                store.raise_floors({7: Floor(41, 40), 8: Floor(41, 40)})
                first = 41
                while not stop.is_set():
                    log = Log()
                    log.add(block([7, 8], first, first + 9))
                    store.settle(log.plan())
                    first += 10
                    store.raise_floors({7: Floor(first, first - 1), 8: Floor(first, first - 1)})
                    while store.trim():
                        pass
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        seen: list[Floor] = []
        until = time.monotonic() + 20
        while len(set(seen)) < 20 and thread.is_alive() and time.monotonic() < until:
            floors = store_look.look(node / "store").floors
            if floors[8].kept_from > 1:
                assert floors[7] == floors[8]
                seen.append(floors[7])
        assert [floor.kept_from for floor in seen] == sorted(floor.kept_from for floor in seen)
    finally:
        stop.set()
        thread.join(30)
    assert not trouble
    assert len(set(seen)) == 20


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
