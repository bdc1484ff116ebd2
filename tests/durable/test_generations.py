"""Which generation counts, whatever happens."""

import io
import shutil
import subprocess
import sys

import pytest
from durable_lab import KINDS, expected, feed

from phx.durable.generations import Generations
from phx.errors import Damaged
from phx.node.machine_files import FOLDER, sweep


def test_the_first_one_counts_when_it_is_switched_to(tmp_path):
    generations = Generations(tmp_path / "a" / "m")
    assert generations.current() is None
    first = generations.begin()
    assert first == tmp_path / "a" / "m" / "00000001"
    assert list(first.iterdir()) == []
    assert generations.current() is None
    generations.switch(first)
    assert generations.current() == first
    assert Generations(tmp_path / "a" / "m").current() == first


def test_numbers_grow_and_a_sweep_leaves_what_counts_and_what_is_kept(tmp_path):
    generations = Generations(tmp_path)
    made = [generations.begin() for _ in range(4)]
    assert len(set(made)) == 4
    generations.switch(made[1])
    (tmp_path / "current.new").write_bytes(b"half a na")
    (tmp_path / "notes.txt").write_bytes(b"somebody's")
    generations.sweep(keep=[made[3]])
    assert sorted(tmp_path.iterdir()) == sorted(
        [made[1], made[3], tmp_path / "current", tmp_path / "notes.txt"]
    )
    assert generations.begin() == tmp_path / "00000005"
    generations.switch(made[3])
    generations.sweep()
    assert generations.current() == made[3]
    assert not made[1].exists()


def test_only_a_generation_can_count(tmp_path):
    generations = Generations(tmp_path / "m")
    for path in (tmp_path / "m" / "00000009", tmp_path, tmp_path / "m" / ".."):
        with pytest.raises(ValueError):
            generations.switch(path)


@pytest.mark.parametrize("name", [b"", b"00000001", b"../../etc\n", b"0000000a\n", b"00000002\n"])
def test_a_damaged_name_is_refused_and_nothing_is_removed(tmp_path, name):
    generations = Generations(tmp_path)
    generations.switch(generations.begin())
    (tmp_path / "current").write_bytes(name)
    with pytest.raises(Damaged):
        generations.current()
    with pytest.raises(Damaged):
        generations.sweep()
    assert (tmp_path / "00000001").is_dir()


def test_a_name_that_is_lost_is_damage_and_nothing_is_removed(tmp_path):
    generations = Generations(tmp_path)
    generations.switch(generations.begin())
    (tmp_path / "current").unlink()
    for again in (generations, Generations(tmp_path)):
        with pytest.raises(Damaged, match="which generation counts"):
            again.current()
        with pytest.raises(Damaged):
            again.sweep()
    assert (tmp_path / "00000001").is_dir()


def test_also_while_another_one_is_in_the_making(tmp_path):
    generations = Generations(tmp_path)
    generations.switch(generations.begin())
    generations.begin()
    (tmp_path / "current").unlink()
    with pytest.raises(Damaged):
        Generations(tmp_path).current()


def test_the_first_one_may_be_begun_again_and_again(tmp_path):
    """A crash before it counts is no damage: there was nothing before it."""
    for _ in range(3):
        generations = Generations(tmp_path)
        assert generations.current() is None
        generations.sweep()
        made = generations.begin()
        (made / "data").write_bytes(b"half")
    generations.switch(made)
    assert Generations(tmp_path).current() == made
    generations.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == [made.name, "current"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_restore_fills_a_new_generation_beside_the_one_that_applies(tmp_path, kind):
    generations = Generations(tmp_path / "m")
    old = KINDS[kind]()
    generations.switch(first := generations.begin())
    old.open(first)
    feed(old, 1, 50)
    old.commit(50)
    out = io.BytesIO()
    old.snapshot(out)

    new = KINDS[kind]()
    second = generations.begin()
    assert new.open(second) == 0
    feed(old, 51, 55)  # goes on
    out.seek(0)
    new.restore(out)
    assert generations.current() == first
    generations.switch(second)
    old.retire()
    old.close()
    generations.sweep()
    feed(new, 51, 60)
    new.commit(60)
    new.close()
    assert not first.exists()

    again = KINDS[kind]()
    current = generations.current()
    assert current == second
    assert again.open(current) == 60
    assert again.digest() == expected(60)
    again.close()


SWITCHER = """
import sys
from pathlib import Path
from phx.durable.generations import Generations
generations = Generations(Path(sys.argv[1]))
generations.sweep()
made = generations.begin()
(made / "data").write_bytes(made.name.encode())
print("made", flush=True)
generations.switch(made)
print("switched", flush=True)
generations.sweep()
"""


@pytest.mark.processes
@pytest.mark.strace
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    ("call", "when"),
    [
        ("mkdir", 1),
        ("fsync", 1),
        ("fsync", 2),
        ("fsync", 3),
        ("rename", 1),
        ("unlinkat", 1),
        ("rmdir", 1),
    ],
)
def test_killed_anywhere_it_is_the_old_one_or_the_new_one(tmp_path, call, when):
    generations = Generations(tmp_path)
    generations.switch(first := generations.begin())
    (first / "data").write_bytes(first.name.encode())
    calls = f"/^{call}(at2?)?$"
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}"]
    strace += ["-e", f"inject={calls}:signal=KILL:when={when}"]
    result = subprocess.run(
        [*strace, sys.executable, "-c", SWITCHER, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == -9, result.stderr
    current = generations.current()
    assert current in (first, tmp_path / "00000002")
    if "switched" in result.stdout:
        assert current != first
    assert (current / "data").read_bytes() == current.name.encode()
    generations.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == [current.name, "current"]


@pytest.mark.processes
@pytest.mark.strace
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    ("call", "when"),
    [("mkdir", 1), ("fsync", 1), ("fsync", 2), ("fsync", 3), ("fsync", 4), ("rename", 1)],
)
def test_killed_anywhere_the_first_one_counts_or_is_begun_again(tmp_path, call, when):
    calls = f"/^{call}(at2?)?$"
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}"]
    strace += ["-e", f"inject={calls}:signal=KILL:when={when}"]
    command = [sys.executable, "-c", SWITCHER, str(tmp_path)]
    result = subprocess.run([*strace, *command], capture_output=True, text=True, timeout=60)
    assert result.returncode == -9, result.stderr
    found = Generations(tmp_path).current()
    assert found is None or (found / "data").read_bytes() == found.name.encode()
    assert "switched" not in result.stdout or found is not None
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert Generations(tmp_path).current() is not None


def test_what_is_older_goes_while_another_one_is_in_the_making(tmp_path):
    """An install of the same group may be filling one, and be about to switch to it."""
    folder = tmp_path / FOLDER / "1.2"
    generations = Generations(folder)
    made = [generations.begin() for _ in range(2)]
    generations.switch(made[1])
    filled = generations.begin()
    (filled / "state").write_bytes(b"in the making")
    (folder / "current.new").write_bytes(b"00000003\n")
    sweep(tmp_path, 1, 2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000002",
        "00000003",
        "current",
        "current.new",
    ]
    assert (filled / "state").read_bytes() == b"in the making"
    generations.switch(filled)
    sweep(tmp_path, 1, 2)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["00000003"]
