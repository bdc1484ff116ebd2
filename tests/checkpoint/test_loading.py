"""Machines come back from what was found sound, and from nothing else."""

from pathlib import Path

import pytest
from checkpoint_lab import MIB, made, part

from phx.checkpoint.catalog import ROOT, path_of
from phx.checkpoint.files import Files, OsFiles
from phx.checkpoint.loading import Broken, load_machine, need_sound
from phx.checkpoint.manifest import Manifest
from phx.machine import Reader, StateMachine
from phx.sim.files import MemoryFiles

STATE = bytes(range(256)) * 5000


class Text(StateMachine):
    """A machine whose state is its file."""

    digest_cheap = True

    def __init__(self, how: str = "read") -> None:
        self.how = how
        self.state = b""

    def apply(self, entry: object) -> None: ...

    def digest(self) -> bytes:
        return self.state[:9]

    def restore(self, reader: Reader) -> None:
        if self.how == "path":
            self.state = reader.path().read_bytes()
        elif self.how == "read":
            while data := reader.read(70_001):
                self.state += data
        else:
            self.state = reader.read(10)


def provided(files: Files, digest: bytes = STATE[:9]) -> tuple[Manifest, str]:
    manifest = made(files, parts=(part(4, [STATE], digest=digest), part(5, [b"another"])))
    return manifest, path_of(ROOT, manifest)


def load(
    files: Files, manifest: Manifest, path: str, how: str = "read", digest: bool = True
) -> Text:
    machine = Text(how)
    where = files.root.joinpath if isinstance(files, OsFiles) else Path
    load_machine(files, machine, manifest.machines[0], manifest, path, where, digest=digest)
    return machine


@pytest.mark.parametrize("how", ["read", "path"])
def test_a_machine_gets_what_was_written(tmp_path: Path, how: str) -> None:
    files = OsFiles(tmp_path)
    manifest, path = provided(files)
    need_sound(files, manifest, path)
    assert load(files, manifest, path, how).state == STATE


@pytest.mark.parametrize("change", ["flipped", "short", "missing"])
def test_what_is_not_as_it_was_written_is_found_before_it_is_used(change: str) -> None:
    files = MemoryFiles()
    manifest, path = provided(files)
    if change == "flipped":
        files.flip(f"{path}/machine-5", 9)
    elif change == "short":
        files.extend(f"{path}/machine-5", 6)
    else:
        files.remove(f"{path}/machine-5")
    with pytest.raises(Broken, match="machine-5"):
        need_sound(files, manifest, path)
    need_sound(files, manifest, path, manifest.files[:1])  # if no other is going to be read


@pytest.mark.parametrize("how", ["read", "a little"])
@pytest.mark.parametrize("at", [0, MIB, len(STATE) - 1])
def test_what_is_read_differently_the_second_time_is_found(how: str, at: int) -> None:
    """Also behind what the machine cared to read."""
    files = MemoryFiles()
    manifest, path = provided(files)
    need_sound(files, manifest, path)
    files.flip(f"{path}/machine-4", 8 * at)
    with pytest.raises(Broken, match="differently"):
        load(files, manifest, path, how, digest=False)


def test_a_copy_that_bypassed_the_reader_is_looked_at_again(tmp_path: Path) -> None:
    files = OsFiles(tmp_path)
    manifest, path = provided(files)

    class Copier(Text):
        def restore(self, reader: Reader) -> None:
            while reader.read(MIB):
                pass
            where = reader.path()
            where.write_bytes(STATE[:-1] + b"\0")  # it goes bad just now
            self.state = where.read_bytes()

    with pytest.raises(Broken, match="differently"):
        load_machine(files, Copier(), manifest.machines[0], manifest, path, tmp_path.joinpath)


def test_a_machine_that_comes_to_another_state_is_refused_if_it_is_asked() -> None:
    files = MemoryFiles()
    manifest, path = provided(files, digest=b"another")
    with pytest.raises(ValueError, match="another digest"):
        load(files, manifest, path)
    assert load(files, manifest, path, digest=False).state == STATE
