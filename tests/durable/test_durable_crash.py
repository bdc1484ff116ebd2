"""Data and applied instance stay together, wherever a process is killed."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from durable_lab import KINDS, expected, feed

LAB = Path(__file__).with_name("durable_lab.py")

pytestmark = pytest.mark.processes
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def start(kind, folder, *options, strace=()):
    before = ["strace", "-f", "-qq", "-o", "/dev/null", *strace] if strace else []
    return subprocess.Popen(
        [*before, sys.executable, str(LAB), kind, str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, before=()):
    """The last instance that it said was committed, and what it complained of."""
    said = "".join([*before, process.stdout.read()])  # ends when the process does
    lines = said[: said.rfind("\n") + 1].splitlines()  # the last one may be half a line
    err = process.stderr.read()
    process.wait(20)
    process.stdout.close()
    process.stderr.close()
    return max((int(line.split()[1]) for line in lines if line[:1] in "oc"), default=0), err


def check(kind, folder, told):
    """The applied instance: never below what was said, and the state is exactly of it."""
    machine = KINDS[kind]()
    applied = machine.open(folder)
    try:
        assert applied >= told
        assert machine.digest() == expected(applied)
    finally:
        machine.close()
    return applied


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_points(tmp_path, kind):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    applied = 0
    for _ in range(10):
        victim = start(kind, tmp_path)
        before = [victim.stdout.readline() for _ in range(chance.randrange(1, 20))]
        time.sleep(chance.uniform(0, 0.01))
        victim.kill()
        told, err = finish(victim, before)
        assert victim.returncode == -9, err
        assert told >= applied
        applied = check(kind, tmp_path, told)
    assert applied > 10


POINTS = [("lmdb", "pwrite64", n) for n in (1, 2, 3, 5, 8, 9, 10, 11, 12, 13)]
POINTS += [("lmdb", "writev", n) for n in (1, 2, 3)]
POINTS += [("lmdb", "fdatasync", n) for n in (1, 2, 3, 4, 5, 9)]
POINTS += [("sqlite", "pwrite64", n) for n in (1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 40)]
POINTS += [("sqlite", "fdatasync", n) for n in (1, 2, 3, 4, 5)]


@needs_strace
@pytest.mark.strace
@pytest.mark.parametrize(("kind", "call", "when"), POINTS)
def test_killed_between_any_two_writes(tmp_path, kind, call, when):
    inject = f"inject={call}:signal=KILL:when={when}"
    victim = start(
        kind, tmp_path, "--instances", "60", strace=("-e", f"trace={call}", "-e", inject)
    )
    told, err = finish(victim)
    assert (victim.returncode, err) == (-9, "")
    applied = check(kind, tmp_path, told)
    again = start(kind, tmp_path, "--instances", "20")
    told, err = finish(again)
    assert (again.returncode, err) == (0, "")
    assert check(kind, tmp_path, told) >= applied + 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_a_machine_that_applies_are_those_of_its_last_commit(tmp_path, kind):
    """A copy of the files, taken in the middle: nothing was closed or flushed for it."""
    machine = KINDS[kind]()
    machine.open(tmp_path / "live")
    feed(machine, 1, 40)
    machine.commit(40)
    feed(machine, 41, 60)
    shutil.copytree(tmp_path / "live", tmp_path / "copy")
    assert check(kind, tmp_path / "copy", 40) == 40
    feed(machine, 61, 62)
    machine.commit(62)
    machine.close()
    assert check(kind, tmp_path / "live", 62) == 62


RESTORER = """
import sys
from pathlib import Path
sys.path.append(sys.argv[4])
from durable_lab import KINDS
with open(sys.argv[2], "rb") as file:
    machine = KINDS[sys.argv[1]]()
    machine.open(Path(sys.argv[3]))
    machine.restore(file)
print("restored", flush=True)
"""


@needs_strace
@pytest.mark.strace
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", [1, 3, 6])
def test_killed_in_a_restore_it_is_done_again_elsewhere(tmp_path, kind, when):
    source = KINDS[kind]()
    source.open(tmp_path / "source")
    feed(source, 1, 300)
    source.commit(300)
    with open(tmp_path / "snapshot", "wb") as out:
        source.snapshot(out)
    source.close()
    calls = "/^(fsync|fdatasync|openat|unlink)$"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(tmp_path / "1")]
    command += ["-P", str(tmp_path / "1" / ("data.mdb" if kind == "lmdb" else "state.db"))]
    command += ["-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={when}"]
    command += [sys.executable, "-c", RESTORER, kind, str(tmp_path / "snapshot")]
    victim = subprocess.run(
        [*command, str(tmp_path / "1"), str(LAB.parent)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (victim.returncode, victim.stdout, victim.stderr) == (-9, "", "")
    made = KINDS[kind]()
    assert made.open(tmp_path / "2") == 0
    with open(tmp_path / "snapshot", "rb") as file:
        made.restore(file)
    assert (made.applied, made.digest()) == (300, expected(300))
    made.close()
