"""The folder is there as a whole or not at all; and what is in it."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import phx
from phx import store_first
from phx._core.ballot import counter_of
from phx.checkpoint import rebuild
from phx.checkpoint.catalog import ROOT
from phx.checkpoint.catalog import look as look_at
from phx.checkpoint.files import OsFiles
from phx.errors import ConfigError, Damaged, Locked, StoreError
from phx.membership import Membership, roster_of
from phx.recovery.making import COUNTER_LEAP, COUNTER_MOST, make_folder, plan
from phx.recovery.seen import survivors, under
from phx.store import Store
from phx.store_facts import read as read_facts
from phx.store_facts import write as write_facts
from phx.store_folder import chunks_of, fill
from phx.store_members import MembersRow
from phx.types import voter
from phx.verify import examine
from tests.api.cluster import cluster
from tests.api.members_lab import counters, kill
from tests.durable.durable_lab import LmdbSums, SqliteSums

from .recovery_lab import NEW, content, made, new_config, recover, write_toml

QUIET = {"interval_instances": 0, "interval_us": 0}


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


def test_two_that_make_one_folder_do_not_meet(folders: list[Path], tmp_path: Path) -> None:
    config = new_config(tmp_path)
    with survivors(folders[:1]) as found:
        making = plan(config, found, 1)
        first = make_folder(making)
        assert [next(first), next(first)] == ["begun", "store"]
        with pytest.raises(Locked, match="made by somebody else"):
            next(make_folder(making))
        for _ in first:
            pass
        whole = content(config.dir)
        with pytest.raises(StoreError, match="is not empty"):  # it was when it was looked at
            next(make_folder(making))
        assert content(config.dir) == whole
        assert not config.dir.with_name(config.dir.name + ".recovering").exists()


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


def test_ballots_have_to_be_left(folders: list[Path], tmp_path: Path) -> None:
    config = new_config(tmp_path)
    with survivors(folders[:1]) as (one,):
        at_most = replace(one, counter=COUNTER_MOST - COUNTER_LEAP)
        assert counter_of(plan(config, [at_most], 1).floor) == COUNTER_MOST
        with pytest.raises(StoreError, match="leave no room"):
            plan(config, [replace(one, counter=COUNTER_MOST - COUNTER_LEAP + 1)], 1)


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


def test_a_state_that_is_to_be_made_anew_is_left_out(folders: list[Path], tmp_path: Path) -> None:
    """Its node found that it is not what the others have."""
    config = new_config(tmp_path)
    path = write_toml(tmp_path / "new.toml", config)
    for _ in rebuild.mark(OsFiles(folders[0]), ROOT, 0):
        pass
    told = json.loads(recover(folders[0], "--config", path, "--json").output)
    assert told["survivors"][0]["left_out"] == [
        "checkpoints/0: the state is to be made anew (`phx repair`)"
    ]
    assert told["groups"][0]["checkpoint"] is None
    made(folders[:1], config)
    assert not list((config.dir / ROOT).glob("0/*"))
    assert examine(config.dir, whole=True).findings == []


def test_a_marked_machine_is_not_taken(folders: list[Path], tmp_path: Path) -> None:
    """Not even looked at: only itself could read this one."""
    generation = folders[0] / "machines" / "0.0" / "00000001"
    generation.mkdir(parents=True)
    (generation / "own.bin").write_bytes(b"x")
    (generation.parent / "current").write_bytes(b"00000001\n")
    for _ in rebuild.mark(OsFiles(folders[0]), ROOT, 0):
        pass
    with survivors(folders[:1]) as (one,):
        assert one.groups[0].machines == {}
        assert one.groups[1].machines == {}


def test_who_lost_its_journal_once_may_have_forgotten(folders: list[Path], tmp_path: Path) -> None:
    with survivors(folders[:2]) as found:
        assert not any(one.forgot for of in found for one in of.groups.values())
        facts = read_facts(found[1].store)
        assert facts is not None
        write_facts(found[1].store, replace(facts, lost=1))
    path = write_toml(tmp_path / "new.toml", new_config(tmp_path))
    told = json.loads(recover(*folders[:2], "--config", path, "--json").output)
    assert [(one["here"], one["majority"]) for one in told["groups"]] == [([1], False)] * 2


def test_a_folder_that_something_is_mounted_on_is_refused(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = new_config(tmp_path)
    config.dir.mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == config.dir)
    with pytest.raises(ConfigError, match="something is mounted on"):
        made(folders[:1], config)


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


# --- durable machines


@pytest.mark.parametrize("kind", [LmdbSums, SqliteSums])
def test_durable_machines_come_along(kind: Any, tmp_path: Path, run_once: Any) -> None:
    async def live() -> None:
        async with cluster(tmp_path, lambda group: kind(), checkpoints=QUIET) as nodes:
            for _ in range(9):
                await nodes[0].group(0).propose(b"1 1")
            await asyncio.gather(*(node.group(0).barrier() for node in nodes))
            await nodes[1].close()  # its machine is committed
            for node in (nodes[0], nodes[2]):
                kill(node)

    run_once(live())
    config = new_config(tmp_path)
    made([tmp_path / "node2"], config)
    assert (config.dir / "machines" / "0.0" / "current").exists()
    told = json.loads(
        recover(
            tmp_path / "node2",
            "--config",
            write_toml(tmp_path / "again.toml", new_config(tmp_path, 12)),
            "--json",
        ).output
    )
    assert told["groups"][0]["machines"]["0"] >= 9

    async def go_on() -> None:
        async with phx.Node(config, lambda group: kind()) as one:
            await one.wait_ready(timeout=20)
            assert (await one.group(0).propose(b"1 1")).value == 10

    run_once(go_on())


def test_files_that_only_their_machine_can_read_are_refused(
    folders: list[Path], tmp_path: Path
) -> None:
    generation = folders[0] / "machines" / "0.0" / "00000001"
    generation.mkdir(parents=True)
    (generation / "own.bin").write_bytes(b"x")
    (generation.parent / "current").write_bytes(b"00000001\n")
    config = new_config(tmp_path)
    with pytest.raises(StoreError, match="nobody but the machine itself"):
        made(folders[:1], config)
    assert not config.dir.exists()


# --- acceptances, as the journal's own replay takes them


def test_votes_of_members_before_a_change_are_dropped_by_the_floor_of_the_own_record() -> None:
    roster = roster_of(2, {1: voter("a:1")})
    told, own = (MembersRow(Membership(roster, 5, floor)) for floor in (200, 100))
    votes = {at: (90 + 10 * at, b"%d" % at) for at in range(3, 9)}  # 120, 130, … 170
    votes[6] = 100, b"old"
    left, chosen = under(told, own, votes, 2, held=False)
    assert (sorted(left), chosen) == ([3, 4, 5, 7, 8], {})
    # With a record of an older change the floor is the one that was told.
    older = MembersRow(Membership(roster_of(2, {2: voter("a:1")}), 4, 1))
    newer = MembersRow(Membership(roster_of(3, {1: voter("a:1")}), 5, 155))
    assert sorted(under(newer, older, votes, 2, held=True)[0]) == [3, 4, 5, 7, 8]


def test_a_journal_that_holds_all_up_to_a_change_knows_it_to_be_chosen() -> None:
    row = MembersRow(Membership(roster_of(2, {1: voter("a:1")}), 5, 1))
    votes = {at: (9, b"%d" % at) for at in (2, 3, 4, 5, 6)}
    assert sorted(under(row, row, votes, 3, held=True)[1]) == [4, 5]
    assert sorted(under(row, row, votes, 0, held=True)[1]) == []  # 1 is not here: it is not whole
    assert sorted(under(row, row, votes, 3, held=False)[1]) == []
