"""A transfer goes on after any crash, from what the disk really kept."""

from random import Random

import pytest
from checkpoint_lab import MIB, whole
from transfer_lab import Line, finish, provider, receiver, sender

from phx.checkpoint.catalog import ROOT, Catalog, path_of
from phx.checkpoint.manifest import Manifest
from phx.sim.files import Crashed, MemoryFiles
from phx.transfer.staging import kept, waiting

SIZES = (2 * MIB + 5, 0, MIB)


def restarted(files: MemoryFiles, manifest: Manifest) -> None:
    """As a node starts."""
    names = kept(files, ROOT, manifest.cluster, 4)
    Catalog.open(files, ROOT, keep=names)


def fetched(files: MemoryFiles, theirs: MemoryFiles, manifest: Manifest) -> int:
    """Fetch it unless it is there; how much came over the line."""
    if Catalog.scan(files, ROOT):
        return 0
    line = Line(sender(theirs, manifest), receiver(files, manifest))
    assert line.run()
    finish(line)
    return line.receiving.progress.received


def effects() -> int:
    files = MemoryFiles()
    theirs, manifest = provider(SIZES)
    fetched(files, theirs, manifest)
    return files.effects


@pytest.mark.parametrize("keep", [None, 0.0, 0.5, 1.0], ids=str)
def test_a_crash_at_any_effect_costs_time_only(keep: float | None) -> None:
    """`keep`: a loss of power, and how likely it is for each unsynced thing to stay; None: none."""
    theirs, manifest = provider(SIZES)
    for at in range(1, effects() + 1):
        files = MemoryFiles(sector_bytes=1 << 16)
        files.crash_at = at
        with pytest.raises(Crashed):
            fetched(files, theirs, manifest)
        if keep is None:
            files.restart()
        else:
            files.power_loss(Random(at), keep)
        restarted(files, manifest)
        fetched(files, theirs, manifest)
        restarted(files, manifest)
        assert Catalog.scan(files, ROOT) == {7: [manifest]}, at
        assert whole(files, manifest), at
        assert waiting(files, ROOT) == {}, at
        # And what was called done is so without any luck.
        files.power_loss(Random(at), 0.0)
        assert whole(files, manifest), at


def test_crashes_one_after_the_other_end_some_time() -> None:
    theirs, manifest = provider(SIZES)
    for seed in range(30):
        chance = Random(seed)
        files = MemoryFiles(sector_bytes=1 << 16)
        for _ in range(200):
            files.crash_at = files.effects + chance.randint(1, 25)
            try:
                restarted(files, manifest)
                fetched(files, theirs, manifest)
                break
            except Crashed:
                if chance.random() < 0.5:
                    files.power_loss(chance, chance.random())
                else:
                    files.restart()
        files.restart()
        restarted(files, manifest)
        assert whole(files, manifest), seed


def good_bytes(files: MemoryFiles, theirs: MemoryFiles, manifest: Manifest) -> int:
    """How much of what is staged is in whole blocks that are the provider's, from the first on."""
    total = 0
    for entry in manifest.files:
        path = f"{ROOT}/staging/fetch-7-0/new/{entry.name}"
        if path not in files.tree():
            continue
        data = theirs.content(f"{path_of(ROOT, manifest)}/{entry.name}")
        found = files.content(path)
        for at in range(0, len(data), MIB):
            if found[at : at + MIB] != data[at : at + MIB]:
                break
            total += len(data[at : at + MIB])
    return total


@pytest.mark.parametrize("seed", range(12))
def test_it_goes_on_from_what_the_disk_kept(seed: int) -> None:
    """A file may have its length, and zeros where its tail was: its size says nothing."""
    chance = Random(seed)
    theirs, manifest = provider((12 * MIB, 3 * MIB + 7))
    files = MemoryFiles(sector_bytes=1 << 18)
    cut = chance.randint(2 * MIB, 15 * MIB)
    sending, receiving = sender(theirs, manifest), receiver(files, manifest)
    line = Line(sending, receiving)
    receiving.close = lambda: None  # type: ignore[method-assign]  # it dies: nothing is synced
    assert not line.run(cut)
    files.power_loss(chance, 0.6)
    good = good_bytes(files, theirs, manifest)
    again = Line(sender(theirs, manifest), receiver(files, manifest))
    assert again.receiving.progress.resumed == good
    assert again.run()
    assert again.receiving.progress.received == manifest.size_bytes - good
    finish(again)
    assert whole(files, manifest)


def test_a_full_disk_is_an_error_and_what_came_stays() -> None:
    theirs, manifest = provider((3 * MIB,))
    files = MemoryFiles()
    line = Line(sender(theirs, manifest), receiver(files, manifest))
    files.capacity_bytes = 4 * MIB
    assert not line.run(2 * MIB + 5000)
    files.capacity_bytes = 2 * MIB + 100_000
    with pytest.raises(OSError, match="are free"):
        receiver(files, manifest)  # it is known before anything more comes
    files.capacity_bytes = 4 * MIB
    assert fetched(files, theirs, manifest) <= 2 * MIB
    assert whole(files, manifest)
