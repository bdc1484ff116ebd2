"""The store of a process that is killed, or whose disk fails, at any point."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_lab import Log, body_of, entries_of, opened
from store_victim import GROUPS, MOVING, change_at, floor_of, value_of

from phx.errors import StoreError
from phx.store import Floor
from phx.testing.torture.disks import SmallDisk

VICTIM = Path(__file__).with_name("store_victim.py")

pytestmark = pytest.mark.processes
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def start(folder, *options, strace=()):
    before = ["strace", "-f", "-qq", "-o", "/dev/null", *strace] if strace else []
    return subprocess.Popen(
        [*before, sys.executable, str(VICTIM), str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, before=()):
    """What it said, and how far it says everything is settled."""
    lines = "".join([*before, process.stdout.read()]).splitlines()  # ends when the process does
    err = process.stderr.read()
    process.wait(10)
    process.stdout.close()
    process.stderr.close()
    settled = [int(line.split()[1]) for line in lines if line.startswith("settled")]
    return lines, settled[-1] if settled else 0, err


def check_members(store):
    """They are never older than what is settled (S1), and both copies say so."""
    assert store.members_wrong() == []
    wanted = change_at(store.settled().get(MOVING, 0))
    found = store.members().get(MOVING)
    if wanted is None:
        return
    assert found is not None
    assert found.membership == change_at(found.membership.instance)
    assert found.membership.instance >= wanted.instance


def check(folder, told):
    """Everything that was said to be settled is there, everything that is there is right."""
    with opened(folder) as store:
        settled = store.settled()
        check_members(store)
        assert min((settled.get(group, 0) for group in GROUPS), default=0) >= told
        entries = 0
        for group, through in settled.items():
            found = entries_of(store.read(group, 1, 1 << 30))
            assert found == [(i, value_of(group, i)) for i in range(1, through + 1)]
            entries += through
        assert store.verify() == entries
        return min(settled.values(), default=0), store.stats()


@pytest.mark.timeout(120)
def test_killed_at_random_points(tmp_path):
    folder = tmp_path / "s"
    with opened(folder, create=True):
        pass
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    merges = 0
    for _ in range(12):
        victim = start(folder)
        before = [victim.stdout.readline() for _ in range(chance.randrange(1, 15))]
        time.sleep(chance.uniform(0, 0.01))
        victim.kill()
        lines, told, err = finish(victim, before)
        assert victim.returncode == -9, err
        merges += lines.count("merged")
        check(folder, told)
    assert told > 12
    assert merges > 0


@needs_strace
@pytest.mark.strace
@pytest.mark.parametrize(
    ("call", "when"),
    [
        ("writev", 1),
        ("writev", 5),
        ("pwrite64", 1),
        ("pwrite64", 2),
        ("pwrite64", 3),
        ("pwrite64", 28),
        ("fdatasync", 1),
        ("fdatasync", 2),
        ("fdatasync", 13),
    ],
)
def test_killed_between_any_two_writes(tmp_path, call, when):
    folder = tmp_path / "s"
    with opened(folder, create=True):
        pass
    victim = start(
        folder,
        "--steps",
        "12",
        strace=("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"),
    )
    _, told, err = finish(victim)
    assert (victim.returncode, err) == (-9, "")
    through, _ = check(folder, told)
    again = start(folder, "--steps", "3")
    _, told, err = finish(again)
    assert (again.returncode, err) == (0, "")
    assert told > through
    check(folder, told)


def check_floors(folder, lines, told, hold):
    """Floors are those of one moment, no earlier than was said; above them all is there, below
    nothing is served; and what was still to be trimmed can be."""
    floors_told = [int(line.split()[1]) for line in lines if line.startswith("floors")]
    with opened(folder) as store:
        floors = store.floors()
        check_members(store)
        through = min(
            (floors[group].settled_through for group in GROUPS if group in floors), default=0
        )
        assert through >= told
        if not through:
            return 0
        found = {group: floors[group].kept_from for group in GROUPS}
        moments = [
            moment
            for moment in range(max(floors_told, default=0), through + 1)
            if found == {group: floor_of(group, moment, hold) for group in GROUPS}
        ]
        assert moments, (found, floors_told, through)
        for _ in range(2):
            kept = 0
            for group, floor in store.floors().items():
                assert floor == floors[group]
                assert store.read(group, 1, 1 << 30, floor.kept_from - 1) == b""
                assert store.entry(group, floor.kept_from - 1) is None
                assert entries_of(store.read(group, floor.kept_from, 1 << 30)) == [
                    (i, value_of(group, i))
                    for i in range(floor.kept_from, floor.settled_through + 1)
                ]
                kept += floor.settled_through + 1 - floor.kept_from
            assert store.verify() >= kept == store.stats().entries
            while store.trim():
                pass
        assert store.stats().dead_chunks == 0
    return moments[-1]


@pytest.mark.timeout(120)
def test_killed_at_random_points_while_it_trims(tmp_path):
    folder = tmp_path / "s"
    with opened(folder, create=True):
        pass
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    kinds = dict.fromkeys(("floors", "removed", "joined", "merged"), 0)
    moments = [0]
    for life in range(60):
        if life >= 16 and all(kinds.values()):
            break
        victim = start(folder, "--hold", "4")
        before = [victim.stdout.readline() for _ in range(chance.randrange(1, 25))]
        time.sleep(chance.uniform(0, 0.01))
        victim.kill()
        lines, told, err = finish(victim, before)
        assert victim.returncode == -9, err
        for kind in kinds:
            kinds[kind] += sum(line.startswith(kind) for line in lines)
        moments.append(check_floors(folder, lines, told, 4))
        assert moments[-1] >= moments[-2]  # over all lives
    print(kinds)
    assert all(kinds.values()), kinds


@needs_strace
@pytest.mark.strace
@pytest.mark.parametrize("call", ["writev", "pwrite64", "fdatasync"])
@pytest.mark.parametrize("when", [9, 20, 21, 22, 33, 34, 35, 46, 47, 48])
def test_killed_between_any_two_writes_while_it_trims(tmp_path, call, when):
    folder = tmp_path / "s"
    with opened(folder, create=True):
        pass
    victim = start(
        folder,
        "--steps",
        "40",
        "--hold",
        "3",
        strace=("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"),
    )
    lines, told, err = finish(victim)
    assert (victim.returncode, err) == (-9, "")
    moment = check_floors(folder, lines, told, 3)
    again = start(folder, "--steps", "3", "--hold", "3")
    lines, told, err = finish(again)
    assert (again.returncode, err) == (0, "")
    assert check_floors(folder, lines, told, 3) > moment


@needs_strace
@pytest.mark.strace
def test_a_failed_sync_is_final(tmp_path):
    folder = tmp_path / "s"
    with opened(folder, create=True):
        pass
    victim = start(
        folder,
        "--steps",
        "10",
        strace=("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=4"),
    )
    lines, told, err = finish(victim)
    assert not err
    failed = [at for at, line in enumerate(lines) if line.startswith("failed")]
    assert failed
    assert "Input/output error" in lines[failed[0]]
    assert failed == list(range(failed[0], len(lines)))  # nothing succeeds after it
    assert told > 0
    through, _ = check(folder, told)
    again = start(folder, "--steps", "3")  # opened again, from what is on the disk, it works
    _, told, err = finish(again)
    assert not err
    assert told > through


@needs_strace
@pytest.mark.strace
def test_a_full_disk_can_be_tried_again(tmp_path):
    folder = tmp_path / "s"
    with opened(folder, create=True):
        pass
    victim = start(
        folder,
        "--steps",
        "10",
        strace=("-e", "trace=pwrite64", "-e", "inject=pwrite64:error=ENOSPC:when=9"),
    )
    lines, told, err = finish(victim)
    assert not err
    failed = [line for line in lines if line.startswith("failed")]
    assert len(failed) == 1
    assert "No space left" in failed[0]
    assert told == sum(1 + step for step in range(10))
    check(folder, told)


@pytest.fixture
def small_disk(tmp_path):
    """One that can be filled up."""
    disk = SmallDisk(tmp_path / "disk")
    try:
        disk.begin()
    except PermissionError as error:
        pytest.skip(f"may not mount here: {error}")
    yield disk
    disk.end()


@pytest.mark.parametrize("pages", [0, 1, 2, 7, 20])
def test_a_disk_that_is_full_in_the_midst_of_a_write_can_be_tried_again(small_disk, pages):
    """LMDB calls a write that found room for a part of it EIO, as if the device had failed."""
    log = Log()
    with opened(small_disk.point / "s", create=True) as store:
        for turn in range(3):
            log.add((1, turn * 50 + at, body_of(1, at, 3000)) for at in range(1, 51))
            small_disk.fill()
            os.truncate(small_disk.filler, small_disk.filler.stat().st_size - 4096 * pages)
            with pytest.raises(StoreError):
                store.settle(log.plan())
            assert store.stats().failed is None
            small_disk.free()
            store.settle(log.plan())
            assert store.settled() == {1: 50 * (turn + 1)}


def test_a_full_disk_can_be_trimmed_and_settled_to_again(small_disk):
    """What is freed is used again without a byte more of the disk."""
    log = Log()
    with opened(small_disk.point / "s", create=True) as store:
        for turn in range(6):
            log.add((1, turn * 50 + at, body_of(1, at, 3000)) for at in range(1, 51))
            store.settle(log.plan())
        small_disk.fill()
        log.add((1, 300 + at, body_of(1, at, 3000)) for at in range(1, 51))
        with pytest.raises(StoreError):
            store.settle(log.plan())
        store.raise_floors({1: Floor(251, 250)})
        while store.trim():
            pass
        assert store.stats().dead_chunks == 0
        for _ in range(3):  # freed pages can be used two transactions later
            try:
                store.settle(log.plan())
                break
            except StoreError:
                floor = store.floors()[1].kept_from + 1
                store.raise_floors({1: Floor(floor, floor - 1)})
        assert store.settled() == {1: 350}
        small_disk.free()
        assert store.verify() >= store.stats().entries
