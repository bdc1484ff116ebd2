"""The folder is there as a whole or not at all; and what is in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import phx
from phx import store_first
from phx._core.ballot import counter_of
from phx.checkpoint.catalog import ROOT
from phx.checkpoint.catalog import look as look_at
from phx.checkpoint.files import OsFiles
from phx.errors import Damaged
from phx.recovery.making import COUNTER_LEAP, make_folder, plan
from phx.recovery.seen import survivors
from phx.store import Store
from phx.store_facts import read as read_facts
from phx.store_folder import chunks_of, fill
from phx.verify import examine
from tests.api.members_lab import counters

from .recovery_lab import NEW, content, made, new_config, recover, write_toml


def steps_of(folders: list[Path], config: phx.Config) -> list[str]:
    with survivors(folders) as found:
        return list(make_folder(plan(config, found, 1)))


def test_a_crash_at_any_step_leaves_nothing_or_all_of_it(
    folders: list[Path], tmp_path: Path
) -> None:
    config = new_config(tmp_path)
    steps = steps_of(folders[:1], config)
    whole = content(config.dir).keys()
    shutil.rmtree(config.dir)
    assert steps[0] == "begun"
    assert steps[-3:] == ["whole", "placed", "done"]
    assert {"store", "file", "machines"} <= set(steps)
    before = content(folders[0])
    for at in range(len(steps)):
        with survivors(folders[:1]) as found:
            making = make_folder(plan(config, found, 1))
            for _ in range(at + 1):
                last = next(making)
            # (Nothing of it is tidied up: what lies there is what a crash leaves.)
            assert config.dir.exists() == (last in ("placed", "done"))
        if config.dir.exists():
            assert content(config.dir).keys() == whole
            assert examine(config.dir, whole=True).findings == []
            shutil.rmtree(config.dir)
    made(folders[:1], config)
    assert content(config.dir).keys() == whole
    assert not config.dir.with_name(config.dir.name + ".recovering").exists()
    assert content(folders[0]) == before


def test_a_first_start_that_is_cut_short_begins_again(
    folders: list[Path], tmp_path: Path, run_once
) -> None:
    config = new_config(tmp_path)
    made(folders[:1], config)
    assert (config.dir / "recovered").exists()
    (config.dir / "journal").mkdir()

    async def start(total: int) -> None:
        async with phx.Node(config, counters) as one:
            await one.wait_ready(timeout=20)
            assert (await one.group(0).propose(b"1")).value == total
            assert not (config.dir / "recovered").exists()

    run_once(start(21))
    (config.dir / "recovered").touch()  # the journal was made, and that was all
    run_once(start(22))
    # From there on a journal that is lost is a loss.
    shutil.rmtree(config.dir / "journal")
    with pytest.raises(Damaged):
        run_once(start(23))


def test_the_folder_says_what_it_must(folders: list[Path], tmp_path: Path) -> None:
    config = new_config(tmp_path)
    with survivors(folders[:2]) as found:
        making = plan(config, found, 5)
        floor, highest = making.floor, max(one.counter for one in found)
        assert counter_of(floor) == highest + COUNTER_LEAP
        for _ in make_folder(making):
            pass
    store = Store.open(config.dir / "store", cluster=config.cluster_id, node=NEW)
    try:
        facts = read_facts(store)
        assert facts is not None
        assert facts.groups == (0, 1)
        assert facts.ceiling > counter_of(floor)
        assert facts.lease_us >= config.timing.lease_us
        assert facts.peers == {}
        assert store_first.read(store) == {NEW}
        rows = store.members()
        for group, row in rows.items():
            assert row.membership.nodes == (NEW,)
            assert (row.left, row.removed, row.membership.active) == ((1, 2, 3), False, True)
            assert row.membership.floor == floor
            assert store.settled()[group] == row.membership.instance
            assert store.entry(group, row.membership.instance) == row.membership.roster
    finally:
        store.close()
    groups = look_at(OsFiles(config.dir), ROOT, config.cluster_id).groups
    assert {one.frontier for one in groups[0]} >= {10}


def test_a_damaged_survivor_is_refused_and_a_damaged_checkpoint_left_out(
    folders: list[Path], tmp_path: Path
) -> None:
    config = new_config(tmp_path)
    file = next((folders[0] / "checkpoints" / "0").glob("*/machine-0"))
    file.write_bytes(b"\xff" + file.read_bytes()[1:])
    path = write_toml(tmp_path / "new.toml", config)
    said = recover(folders[0], "--config", path)
    assert said.exit_code == 0, said.output
    assert "left out: checkpoints/0/" in said.output
    shutil.rmtree(folders[0] / "journal")
    data = folders[1] / "store" / "data.mdb"
    data.write_bytes(data.read_bytes()[:8192])
    for folder in folders[:2]:
        said = recover(folder, "--config", path, "--i-know-data-may-be-lost")
        assert said.exit_code == 1
        assert "is no survivor to begin from" in said.output
    assert not config.dir.exists()


def test_the_command_says_what_there_is_and_what_it_means(
    folders: list[Path], tmp_path: Path
) -> None:
    config = new_config(tmp_path)
    path = write_toml(tmp_path / "new.toml", config)
    before = {folder: content(folder) for folder in folders}
    said = recover(*folders[:2], "--config", path)
    assert said.exit_code == 0, said.output
    for words in (
        "chosen through",
        "accepted above",
        "1, 2, 3",
        "a majority of the voters is here",
        "is lost, and nobody can",
        "Ids of the old cluster's nodes are never used again",
        "Nothing was written. With --i-know-data-may-be-lost this is done.",
    ):
        assert words in " ".join(said.output.split()), words
    told = json.loads(recover(*folders[:1], "--config", path, "--json").output)
    assert told["made"] is False
    assert [one["group"] for one in told["groups"]] == [0, 1]
    assert told["groups"][0]["checkpoint"] == 10
    assert told["groups"][0]["majority"] is False
    assert {folder: content(folder) for folder in folders} == before
    assert not config.dir.exists()


# --- a store made of a log


def test_a_log_is_cut_into_chunks_and_read_back(tmp_path: Path) -> None:
    log = [(0, at, bytes([at % 251]) * (at * 37 % 9000)) for at in range(5, 2000)]
    log += [(3, 1, b""), (3, 2, bytes(9 << 20)), (3, 3, b"end")]
    assert sum(len(body) for *_, body in log) > 16 << 20
    floors = {0: (5, 1999), 1: (8, 7), 3: (1, 3)}
    fill(tmp_path / "store", 7, 2, floors, {}, iter(log), 1 << 30)
    store = Store.open(tmp_path / "store", cluster=7, node=2)
    try:
        assert store.verify() == len(log)
        assert {g: (f.kept_from, f.settled_through) for g, f in store.floors().items()} == floors
        for group, instance, body in log[::97] + log[-3:]:
            assert store.entry(group, instance) == body
    finally:
        store.close()
    assert list(chunks_of(bytes(16), [])) == []


def test_a_store_whose_making_was_cut_short_is_none(tmp_path: Path) -> None:
    def cut() -> object:
        yield 0, 1, b"one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "store", 7, 2, {0: (1, 1)}, {}, cut(), 1 << 28)  # type: ignore[arg-type]
    with pytest.raises(phx.errors.NotBootstrapped):
        Store.open(tmp_path / "store", cluster=7, node=2)
