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
from store_victim import GROUPS, size_of

from phx.errors import StoreError
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


def check(folder, told):
    """Everything that was said to be settled is there, everything that is there is right."""
    with opened(folder) as store:
        settled = store.settled()
        assert min((settled.get(group, 0) for group in GROUPS), default=0) >= told
        entries = 0
        for group, through in settled.items():
            found = entries_of(store.read(group, 1, 1 << 30))
            assert found == [(i, body_of(group, i, size_of(i))) for i in range(1, through + 1)]
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


@pytest.mark.parametrize("pages", [0, 1, 2, 7, 20])
def test_a_disk_that_is_full_in_the_midst_of_a_write_can_be_tried_again(tmp_path, pages):
    """LMDB calls a write that found room for a part of it EIO, as if the device had failed."""
    disk = SmallDisk(tmp_path / "disk")
    try:
        disk.begin()
    except PermissionError as error:
        pytest.skip(f"may not mount here: {error}")
    try:
        log = Log()
        with opened(disk.point / "s", create=True) as store:
            for turn in range(3):
                log.add((1, turn * 50 + at, body_of(1, at, 3000)) for at in range(1, 51))
                disk.fill()
                os.truncate(disk.filler, disk.filler.stat().st_size - 4096 * pages)
                with pytest.raises(StoreError):
                    store.settle(log.plan())
                assert store.stats().failed is None
                disk.free()
                store.settle(log.plan())
                assert store.settled() == {1: 50 * (turn + 1)}
    finally:
        disk.end()
