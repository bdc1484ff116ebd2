"""A checkpoint is there as a whole or not at all, whatever dies, and whenever."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from checkpoint_lab import MIB, capture, made, part, whole

from phx.checkpoint import manifest as manifest_module
from phx.checkpoint.bundle import import_
from phx.checkpoint.catalog import ROOT, Catalog, look, path_of, verify
from phx.checkpoint.files import Files, OsFiles, join
from phx.checkpoint.manifest import DURABLE, MEMORY, state_digest
from phx.checkpoint.taking import Part, run, take
from phx.sim.files import Crashed, MemoryFiles


@pytest.fixture(params=["os", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return OsFiles(tmp_path) if request.param == "os" else MemoryFiles()


def read(files: Files, path: str) -> bytes:
    opened, found = files.read(path), b""
    while data := opened.read(MIB):
        found += data
    opened.close()
    return found


def left_in_staging(files: Files) -> list[str]:
    return [one.name for one in files.listing(join(ROOT, "staging"))]


def test_a_checkpoint_holds_what_was_written(files: Files) -> None:
    steps: list[str] = []
    taking_it = take(files, ROOT, capture())
    while True:
        try:
            steps.append(next(taking_it))
        except StopIteration as end:
            manifest = end.value
            break
    assert steps == ["staged", "file", "file", "manifest", "renamed", "taken"]
    path = path_of(ROOT, manifest)
    assert read(files, f"{path}/machine-0") == b"state of 4096 " + b"x" * 700
    assert read(files, f"{path}/machine-9") == b"other 4096"
    assert [(one.machine, one.file, one.digest) for one in manifest.machines] == [
        (0, 0, b""),
        (9, 1, state_digest(b"\x01\x02")),
    ]
    assert verify(files, path) == []
    assert left_in_staging(files) == []
    found = Catalog.open(files, ROOT)
    assert found.groups() == {7: [manifest]}
    assert found.findings == []


def test_equal_states_make_one_checkpoint(files: Files) -> None:
    first = made(files)
    second = made(files, taken_by=2, taken_us=5)
    assert second.content == first.content
    assert Catalog.scan(files, ROOT) == {7: [first]}
    assert left_in_staging(files) == []


def test_a_damaged_one_in_the_way_is_put_aside(tmp_path: Path) -> None:
    files = OsFiles(tmp_path)
    first = made(files)
    path = tmp_path / path_of(ROOT, first) / "machine-0"
    path.write_bytes(b"X" + path.read_bytes()[1:])
    assert whole(files, made(files))
    kept = tmp_path / "quarantine" / "checkpoint-7-0" / Path(path_of(ROOT, first)).name
    assert (kept / "machine-0").read_bytes()[:1] == b"X"


def test_groups_do_not_share_anything(files: Files) -> None:
    one, other = made(files, group=7), made(files, group=8)
    assert one.content != other.content
    assert Catalog.scan(files, ROOT) == {7: [one], 8: [other]}


def test_a_light_one_has_no_file_of_a_durable_machine(files: Files) -> None:
    parts = (Part(0, DURABLE, None), part(1, [b"abc"]))
    manifest = made(files, parts=parts)
    assert manifest.light
    assert [(one.kind, one.file) for one in manifest.machines] == [(DURABLE, -1), (MEMORY, 0)]
    assert whole(files, manifest)


@pytest.mark.parametrize("sizes", [[], [0], [1], [MIB], [MIB - 1, 2], [3 * MIB + 5], [7] * 99_999])
def test_any_sizes_of_pieces_make_the_same_file(files: Files, sizes: list[int]) -> None:
    data = Random(1).randbytes(sum(sizes))
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    in_pieces = made(files, parts=(part(0, pieces),))
    assert read(files, f"{path_of(ROOT, in_pieces)}/machine-0") == data
    assert in_pieces.content == made(files, parts=(part(0, [data]),)).content
    assert len(in_pieces.files[0].blocks) == 16 * -(-len(data) // MIB)
    assert whole(files, in_pieces)


def test_what_goes_round_write_is_hashed_as_well(tmp_path: Path) -> None:
    files, data = OsFiles(tmp_path), Random(1).randbytes(2 * MIB + 7)

    def write(writer: Any) -> None:
        writer.write(data[:5])
        os.write(writer.fileno(), data[5 : MIB + 9])
        writer.write(data[MIB + 9 :])

    manifest = made(files, parts=(Part(0, MEMORY, write),))
    assert whole(files, manifest)
    assert manifest.content == made(MemoryFiles(), parts=(part(0, [data]),)).content


def test_a_file_of_very_many_blocks_gets_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "BLOCKS_MAX", 2)
    files = MemoryFiles()
    manifest = made(files, parts=(part(0, [bytes(5 * MIB)]),))
    assert len(manifest.files[0].blocks) == 2 * 16
    assert whole(files, manifest)


def test_a_large_file_is_synced_in_pieces() -> None:
    class Counting(MemoryFiles):
        syncs = 0

        def create(self, path: str) -> Any:
            output = super().create(path)
            sync = output.sync

            def counted() -> None:
                self.syncs += path.endswith("machine-0")
                sync()

            output.sync = counted  # type: ignore[method-assign]
            return output

    files = Counting()
    made(files, parts=(part(0, [bytes(MIB)] * 20),))
    assert files.syncs == 20 // 8 + 1


def test_the_pace_hears_of_every_byte_and_may_end_it() -> None:
    files, heard = MemoryFiles(), []
    parts = (part(0, [bytes(MIB), b"xyz"]),)
    run(take(files, ROOT, capture(parts=parts), pace=heard.append))
    assert sum(heard) == MIB + 3

    def stop(_: int) -> None:
        raise InterruptedError("not wanted any more")

    with pytest.raises(InterruptedError):
        run(take(files, ROOT, capture(8192, parts=parts), pace=stop))
    assert left_in_staging(files) == []
    assert [one.frontier for one in Catalog.scan(files, ROOT)[7]] == [4096]


def test_no_room_is_said_before_anything_is_written() -> None:
    files = MemoryFiles(capacity_bytes=1000)
    for settings in ({"estimate_bytes": 1001}, {"estimate_bytes": 500, "reserve_bytes": 501}):
        with pytest.raises(OSError) as caught:
            run(take(files, ROOT, capture(), **settings))
        assert caught.value.errno == errno.ENOSPC
        assert files.effects == 0


def test_a_disk_that_fills_up_leaves_nothing() -> None:
    files = MemoryFiles(capacity_bytes=500)
    with pytest.raises(OSError) as caught:
        made(files)
    assert caught.value.errno == errno.ENOSPC
    assert left_in_staging(files) == []
    assert look(files, ROOT).groups == {}


def test_what_a_manifest_cannot_say_leaves_nothing(files: Files) -> None:
    def fails(writer: Any) -> None:
        writer.write(b"half")
        raise RuntimeError("the machine's")

    for changed, kind in [
        ({"sessions": b""}, ValueError),
        ({"parts": (Part(0, MEMORY, None),)}, ValueError),
        ({"parts": ()}, ValueError),
        ({"parts": (part(0, [b""]), Part(1, MEMORY, fails))}, RuntimeError),
        ({"parts": tuple(part(at, [b""]) for at in range(65))}, ValueError),
    ]:
        with pytest.raises(kind):
            made(files, **changed)
        assert left_in_staging(files) == []
    assert look(files, ROOT).groups == {}


def test_a_writer_is_of_no_use_after_its_snapshot(files: Files) -> None:
    kept: list[Any] = []
    made(files, parts=(Part(0, MEMORY, kept.append),))
    with pytest.raises(ValueError):
        kept[0].write(b"late")
    with pytest.raises(OSError):
        kept[0].fileno()


def test_a_generator_that_is_let_go_of_leaves_nothing(files: Files) -> None:
    for stop_at in ("staged", "file", "manifest"):
        steps = take(files, ROOT, capture())
        for step in steps:
            if step == stop_at:
                break
        steps.close()
        assert left_in_staging(files) == []
    assert look(files, ROOT).groups == {}


# --- crashes

Work = Callable[[MemoryFiles], Iterator[str]]
OLD, NEW = capture(4096), capture(8192)


def taking_and_dropping(files: MemoryFiles) -> Iterator[str]:
    catalog = Catalog.open(files, ROOT)
    catalog.add((yield from take(files, ROOT, NEW)))
    yield from catalog.drop(7, 1)


def importing(files: MemoryFiles) -> Iterator[str]:
    catalog = Catalog.open(files, ROOT)
    catalog.add((yield from import_(files, ROOT, BytesOf(NEW_BUNDLE), accept=lambda one: None)))
    yield from catalog.drop(7, 1)


class BytesOf:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, bytes_max: int, /) -> bytes:
        found, self.data = self.data[:bytes_max], self.data[bytes_max:]
        return found


def new_bundle() -> bytes:
    from checkpoint_lab import bundle_of

    files = MemoryFiles()
    return bundle_of(files, run(take(files, ROOT, NEW)))


NEW_BUNDLE = new_bundle()


def with_old() -> MemoryFiles:
    files = MemoryFiles(sector_bytes=64)
    run(take(files, ROOT, OLD))
    files.effects = 0
    return files


def effects_of(work: Work) -> int:
    files = with_old()
    for _ in work(files):
        pass
    return files.effects


def crashing(work: Work, files: MemoryFiles, at: int) -> list[str]:
    """Let the process die before an effect; the steps that it had finished."""
    files.crash_at = at
    steps = []
    try:
        for step in work(files):
            steps.append(step)
    except Crashed:
        return steps
    raise AssertionError("it did not crash")


def failing(work: Work, files: MemoryFiles) -> list[int | None]:
    """The errno of the error that it ends with, if it does."""
    try:
        for _ in work(files):
            pass
    except OSError as error:
        return [error.errno]
    return []


def settled(files: MemoryFiles, seen_new: bool) -> bool:
    """After a restart: the old state or the new one, each whole, and nothing else; is it the new?

    And what was found is durable: a loss of power right behind the restart changes nothing.
    """
    catalog = Catalog.open(files, ROOT)
    assert catalog.findings == []
    found = catalog.of(7)
    frontiers = [one.frontier for one in found]
    assert frontiers in ([4096], [8192, 4096], [8192])
    assert all(whole(files, one) for one in found)
    assert left_in_staging(files) == []
    assert not seen_new or 8192 in frontiers
    files.power_loss(Random(0), 0)
    assert [one.frontier for one in Catalog.open(files, ROOT).of(7)] == frontiers
    assert all(whole(files, one) for one in found)
    return 8192 in frontiers


@pytest.mark.parametrize("work", [taking_and_dropping, importing])
def test_crash_before_each_effect_of_a_process(work: Work) -> None:
    seen = set()
    count = effects_of(work)
    assert count > 20
    for at in range(1, count + 1):
        files = with_old()
        steps = crashing(work, files, at)
        files.restart()
        seen.add(settled(files, "taken" in steps))
        # And life goes on: the same again ends as it should.
        for _ in work(files):
            pass
        assert [one.frontier for one in Catalog.open(files, ROOT).of(7)] == [8192]
    assert seen == {False, True}


@pytest.mark.parametrize("work", [taking_and_dropping, importing])
@pytest.mark.parametrize("keep", [0, 0.5, 1])
def test_power_lost_before_each_effect(work: Work, keep: float) -> None:
    seen = set()
    for at in range(1, effects_of(work) + 1):
        for seed in range(1 if keep in (0, 1) else 20):
            files = with_old()
            steps = crashing(work, files, at)
            files.power_loss(Random(seed * 1000 + at), keep)
            seen.add(settled(files, "taken" in steps))
    assert seen == {False, True}


@pytest.mark.parametrize("work", [taking_and_dropping, importing])
def test_a_crash_behind_each_step_and_then_a_loss_of_power(work: Work) -> None:
    """The process dies, a new one has opened the folder, and then the power goes."""
    steps = list(work(with_old()))
    for at in range(len(steps)):
        files = with_old()
        running = work(files)
        for _ in range(at + 1):
            next(running)
        files.restart()
        settled(files, "taken" in steps[: at + 1])


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("work", [taking_and_dropping, importing])
def test_an_error_at_each_effect_leaves_the_old_or_the_new(work: Work, number: int) -> None:
    unnoticed = 0
    for at in range(1, effects_of(work) + 1):
        files = with_old()
        files.errors = {at: number}
        errors = failing(work, files)
        assert errors in ([number], [])
        unnoticed += not errors
        # Without a restart; what could not be removed may be in staging.
        found = Catalog.scan(files, ROOT)[7]
        assert [one.frontier for one in found] in ([4096], [8192, 4096], [8192])
        assert all(whole(files, one) for one in found)
        settled(files, False)
        for _ in work(files):
            pass
        assert [one.frontier for one in Catalog.open(files, ROOT).of(7)] == [8192]
    assert unnoticed == 1, "an empty folder in staging may stay"


def test_first_folders_of_all_survive_a_crash_and_then_the_power() -> None:
    """A folder that was made, and not synced, by one who died: the next one has to sync it."""
    files = MemoryFiles()
    run(take(files, ROOT, OLD))
    for at in range(1, files.effects + 1):
        files = MemoryFiles()
        files.crash_at = at
        with pytest.raises(Crashed):
            run(take(files, ROOT, OLD))
        files.restart()
        Catalog.open(files, ROOT)
        manifest = run(take(files, ROOT, OLD))
        files.power_loss(Random(at), 0)
        assert whole(files, manifest)
