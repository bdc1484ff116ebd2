"""A real folder; and that the simulated one is as bad as it claims to be."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from journal_lab import FIRST_LSN, HEADER, SEGMENT, accept, floor, replayed

from phx._core.journal_door import Journal, JournalFailure
from phx._core.memdisk import MemoryDisk

pytestmark = pytest.mark.usefixtures("no_leaks")

BIG = b"\x77" * 1500


def test_a_journal_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    journal = Journal(folder, create=True)
    records = [accept(index, BIG) for index in range(9)]
    lsns = [journal.append(record) for record in records]
    journal.sync()
    journal.prepare_spare()
    assert [journal.read(lsn)[2] for lsn in lsns] == list(range(9))
    journal.close()
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{number:08x}.segment" for number in range(1, 7)]
    for path in folder.iterdir():
        assert path.stat().st_size == SEGMENT
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_blocks * 512 >= SEGMENT, "not filled with zeros but with holes"
    again = Journal(folder)
    assert replayed(again) == list(zip(lsns, records, strict=True))
    again.append(floor(again.next_lsn))
    again.sync()
    assert again.recycle(again.next_lsn) == 5
    again.close()


def test_the_same_bytes_as_on_the_simulated_disk(tmp_path: Path) -> None:
    disk = MemoryDisk()
    for journal in (Journal(disk, create=True), Journal(tmp_path / "journal", create=True)):
        for index in range(9):
            journal.append(accept(index, BIG))
        journal.sync()
        journal.close()
    for name in disk.names():
        assert disk.content(name) == (tmp_path / "journal" / name).read_bytes()


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    journal = Journal(folder, create=True)
    with pytest.raises(BlockingIOError):
        Journal(folder)
    code = (
        "import sys\nfrom phx._core.journal_door import Journal\n"
        "try:\n    Journal(sys.argv[1])\nexcept BlockingIOError:\n    sys.exit(7)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    assert subprocess.run(command, timeout=30, check=False).returncode == 7
    journal.close()
    assert subprocess.run(command, timeout=30, check=False).returncode == 0
    Journal(folder).close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "nowhere" / "deeper", create=True)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        Journal(tmp_path / "file")


def open_descriptors() -> set[int]:
    """Without the one that lists them."""
    listed = (int(name) for name in os.listdir("/dev/fd"))
    return {fd for fd in listed if os.path.exists(f"/dev/fd/{fd}")}


def test_descriptors_are_not_inherited(tmp_path: Path) -> None:
    before = open_descriptors()
    journal = Journal(tmp_path / "journal", create=True)
    mine = open_descriptors() - before
    assert len(mine) == 2
    assert not any(os.get_inheritable(fd) for fd in mine)
    journal.close()
    assert open_descriptors() == before


def test_a_forked_child_lets_go_and_the_parent_keeps_its_lock(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    journal = Journal(folder, create=True)
    journal.append(accept(1))
    child = os.fork()
    if child == 0:
        before = len(os.listdir("/dev/fd"))
        journal.abandon()
        os._exit(before - len(os.listdir("/dev/fd")))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    with pytest.raises(BlockingIOError):
        Journal(folder)
    journal.append(accept(2))
    journal.sync()
    journal.close()
    assert len(Journal(folder).replayed) == 2


def test_a_real_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the file system refuse what is beyond it, as a quota does."""
    code = f"""
import resource, signal, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from journal_lab import accept
from phx._core.journal_door import Journal, JournalFailure
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(sys.argv[1], create=True)
journal.append(accept(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    journal.prepare_spare()
except JournalFailure as failure:
    assert failure.code == "full", failure
    assert journal.errno == {errno.EFBIG}, journal.errno
    assert not journal.poisoned
else:
    sys.exit("no failure")
try:
    journal.append(accept(2, bytes(1500)))
    journal.append(accept(3, bytes(1500)))
except JournalFailure as failure:
    assert failure.code == "io", failure
    assert journal.poisoned
else:
    sys.exit("no failure")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "journal")]
    subprocess.run(command, timeout=30, check=True)
    assert len(list((tmp_path / "journal").iterdir())) == 1


# --- the simulated disk


def lost_and_kept(atom: int, seeds: int) -> set[tuple[bool, ...]]:
    """Which atoms of one unsynced write landed, over many losses of power."""
    disk = MemoryDisk(atom=atom)
    journal = Journal(disk, create=True)
    journal.append(accept(1, b"\xff" * 2000))
    journal.close()
    outcomes = set()
    for seed in range(seeds):
        copy = disk.copy()
        copy.power_loss(seed)
        after = copy.medium("00000001.segment")[HEADER + 64 : HEADER + 64 + 3 * 512]
        assert len(after) == 3 * 512
        outcomes.add(tuple(after[at] == 0xFF for at in (0, 600, 1200)))
    return outcomes


def test_every_sector_lands_or_not_by_itself() -> None:
    assert len(lost_and_kept(512, 100)) == 8


def test_a_power_loss_is_the_same_for_the_same_seed() -> None:
    def medium(seed: int) -> bytes:
        disk = MemoryDisk()
        journal = Journal(disk, create=True)
        journal.append(accept(1, BIG))
        journal.close()
        disk.power_loss(seed)
        return disk.medium("00000001.segment")

    assert medium(1) == medium(1)
    assert len({medium(seed) for seed in range(20)}) > 5


def test_a_name_that_was_not_synced_may_be_gone() -> None:
    gone = set()
    for seed in range(20):
        disk = MemoryDisk()
        disk.fail("sync_folder")
        with pytest.raises(JournalFailure):
            Journal(disk, create=True)
        disk.put("other", b"kept")
        disk.power_loss(seed)
        assert "other" in disk.names()
        gone.add("00000001.segment" in disk.names())
    assert False in gone


def test_a_crash_point_stops_everything_until_the_crash() -> None:
    disk = MemoryDisk()
    journal = Journal(disk, create=True)
    journal.append(accept(1))
    journal.sync()
    disk.crash_at(1)
    for call in (lambda: journal.append(accept(2)), lambda: Journal(disk)):
        with pytest.raises(JournalFailure):
            call()
    assert disk.dead
    disk.process_crash()
    assert next(lsn for lsn, *_ in Journal(disk).replayed) == FIRST_LSN


def test_handles_die_with_the_process() -> None:
    disk = MemoryDisk()
    journal = Journal(disk, create=True)
    journal.append(accept(1))
    disk.process_crash()
    with pytest.raises(JournalFailure) as failure:
        journal.append(accept(2))
    assert failure.value.code == "io"
    assert journal.errno == errno.EBADF
