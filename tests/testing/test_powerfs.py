"""The file layer of test_power.py loses what it should lose, and nothing else."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from phx.testing.powerfs import SECTOR, Power

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse"),
]


@pytest.fixture
def power(tmp_path: Path) -> Iterator[Power]:
    try:
        with Power(tmp_path / "power") as one:
            yield one
    except PermissionError as error:
        pytest.skip(f"may not mount here: {error}")


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def written(path: Path, data: bytes, *, synced: bool, at: int = 0) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(descriptor, data, at)
    if synced:
        os.fdatasync(descriptor)
    os.close(descriptor)


def test_what_was_synced_stays_and_what_was_not_is_gone(power):
    old, new = os.urandom(3000), os.urandom(3000)
    written(power.point / "file", old, synced=True)
    sync(power.point)
    written(power.point / "file", new, synced=False)
    assert (power.point / "file").read_bytes() == new
    assert power.cut()["lost_sectors"] == 6
    assert (power.point / "file").read_bytes() == old
    written(power.point / "file", new, synced=True)
    power.cut()
    assert (power.point / "file").read_bytes() == new


def test_a_name_is_durable_when_its_folder_was_synced(power):
    (power.point / "folder").mkdir()
    sync(power.point)
    written(power.point / "folder" / "lost", b"x", synced=True)
    power.cut()
    assert os.listdir(power.point / "folder") == []
    written(power.point / "folder" / "kept", b"x", synced=True)
    sync(power.point / "folder")
    os.rename(power.point / "folder" / "kept", power.point / "folder" / "renamed")
    power.cut()
    assert (power.point / "folder" / "kept").read_bytes() == b"x"


def test_a_size_that_was_not_synced_is_the_old_one(power):
    written(power.point / "file", b"a" * 1000, synced=True)
    sync(power.point)
    os.truncate(power.point / "file", 10)
    power.cut()
    assert (power.point / "file").read_bytes() == b"a" * 1000
    written(power.point / "file", b"b" * 1000, at=1000, synced=False)
    power.cut()
    assert (power.point / "file").read_bytes() == b"a" * 1000


def test_a_write_with_o_dsync_is_durable(power):
    sync(power.point)
    descriptor = os.open(power.point / "file", os.O_RDWR | os.O_CREAT | os.O_DSYNC)
    sync(power.point)
    os.pwrite(descriptor, b"x" * 5000, 0)
    os.close(descriptor)
    power.cut()
    assert (power.point / "file").read_bytes() == b"x" * 5000


def test_sectors_survive_one_by_one_and_the_seed_says_which(power):
    def kept(seed: int) -> list[bool]:
        written(power.point / "file", bytes(100 * SECTOR), synced=True)
        sync(power.point)
        written(power.point / "file", b"n" * 100 * SECTOR, synced=False)
        power.cut(seed, 0.5)
        data = (power.point / "file").read_bytes()
        sectors = [data[at : at + SECTOR] for at in range(0, len(data), SECTOR)]
        assert set(sectors) <= {bytes(SECTOR), b"n" * SECTOR}
        return [bool(sector[0]) for sector in sectors]

    first = kept(1)
    assert 20 < sum(first) < 80
    assert first != kept(2)
    assert first == kept(1)


def test_a_sync_that_had_not_returned_when_the_power_went_was_none(power):
    written(power.point / "file", b"old", synced=True)
    sync(power.point)
    power.off()
    child = os.fork()
    if not child:
        written(power.point / "file", b"new", synced=True)
        os._exit(0)
    while (power.point / "file").read_bytes() != b"new":
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    power.release()
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "its fsync returned"
    power.cut()
    assert (power.point / "file").read_bytes() == b"old"
