"""The micro-benchmarks by name: what each measures, and how many operations are enough.

A count is large enough that the loop around the operations is not what is measured, and small
enough that all of them run under callgrind within a minute or two.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build

build.ready()

from phx_micro import codec_loops, engine_loops, log_loops, queue_loops  # noqa: E402

SIZES = {"16 B": 16, "100 B": 100, "2 KiB": 2 << 10, "100 KiB": 100 << 10}


class Loop(Protocol):
    """See phx_micro/measure.pxd."""

    count: int

    def run(self) -> int: ...
    def check(self) -> None: ...


@dataclass(frozen=True)
class Bench:
    """`make(count)` gives a loop of so many operations; with `folder` given, on a real disk."""

    name: str
    unit: str
    count: int
    least: int  # operations, and counts are multiples of it
    make: Callable[..., Loop]
    on_disk: bool = False

    def loop(self, count: int, folder: Path) -> Loop:
        return self.make(count, folder=folder) if self.on_disk else self.make(count)


def codec() -> Iterator[Bench]:
    yield Bench("ballot", "ballot", 100_000, 10, codec_loops.Ballots)
    kinds = [
        ("crc32c", "run", codec_loops.Crc),
        ("record encode", "record", codec_loops.RecordEncode),
        ("record check", "record", codec_loops.RecordCheck),
        ("frame encode", "frame", codec_loops.FrameEncode),
        ("frame check", "frame", codec_loops.FrameCheck),
    ]
    for name, unit, loop in kinds:
        for size, count in SIZES.items():
            enough = max(20_000_000 // (count + 1000), 200)
            yield Bench(f"{name} {size}", unit, enough, 1, partial(loop, size=count))
    yield Bench("message encode 100 B", "message", 20_000, 1,
                partial(codec_loops.MessageEncode, size=100))  # fmt: skip
    yield Bench("message check 100 B", "message", 20_000, 1,
                partial(codec_loops.MessageCheck, size=100))  # fmt: skip
    for values in (1, 100):
        kinds = [
            ("batch pack", "value", codec_loops.BatchPack),
            ("batch check", "value", codec_loops.BatchCheck),
            ("batch unpack", "value", codec_loops.BatchUnpack),
        ]
        for name, unit, loop in kinds:
            make = partial(loop, size=100, per_body=values)
            yield Bench(f"{name} {values} x 100 B", unit, 40_000, values, make)
    make = partial(codec_loops.ItemsSplit, size=100, per_body=100)
    yield Bench("run split 100 x 100 B", "value", 40_000, 100, make)


def engine() -> Iterator[Bench]:
    for groups, values in ((1, 1), (1, 100), (100, 1), (100, 10)):
        make = partial(engine_loops.Rounds, groups=groups, values=values)
        name = f"engine round, {groups} groups, {values} values"
        yield Bench(name, "instance", 3_000 if groups == 1 else 10_000, groups, make)
    for part in ("submit", "propose", "accepts", "vote", "accepteds", "choose"):
        make = partial(engine_loops.Rounds, groups=100, part=part)
        yield Bench(f"engine {part}, 100 groups", "instance", 10_000, 100, make)
    for part in ("propose", "accepts", "accepteds", "choose"):
        make = partial(engine_loops.Rounds, groups=1, part=part)
        yield Bench(f"engine {part}, 1 group", "instance", 3_000, 1, make)
    for groups in (1, 1000):
        make = partial(engine_loops.Rounds, groups=groups, part="idle")
        yield Bench(f"engine idle turns, {groups} groups", "group", 1_000 * groups, groups, make)
    make = partial(engine_loops.SettlePlans, groups=100)
    yield Bench("settle plan, 100 groups", "entry", 10_000, 100, make)


def log() -> Iterator[Bench]:
    for size, count in (("100 B", 20_000), ("2 KiB", 2_000)):
        for disk, on_disk in (("memory", False), ("file", True)):
            for name, loop in (
                ("append", log_loops.JournalAppend),
                ("replay", log_loops.JournalReplay),
                ("read", log_loops.JournalRead),
            ):
                make = partial(loop, size=SIZES[size])
                yield Bench(f"journal {name} {size}, {disk}", "record", count, 100, make, on_disk)
    for disk, on_disk in (("memory", False), ("file", True)):
        name = f"journal tail never written, {disk}"
        yield Bench(name, "MiB", 8, 1, log_loops.JournalTail, on_disk)
    for size, count in (("100 B", 20_000), ("2 KiB", 2_000)):
        for name, loop in (
            ("chunk encode", log_loops.ChunkEncode),
            ("chunk decode", log_loops.ChunkDecode),
            ("settle", log_loops.Settling),
        ):
            yield Bench(f"{name} {size}", "entry", count, 100, partial(loop, size=SIZES[size]))


def queues() -> Iterator[Bench]:
    yield Bench("window", "instance", 50_000, 1, queue_loops.Windows)
    yield Bench("ring", "word", 50_000, 1, queue_loops.Rings)
    yield Bench("timers", "timer", 20_000, 1, queue_loops.Timers)
    for together in (1, 64):
        make = partial(queue_loops.Submissions, together=together)
        yield Bench(f"submissions, {together} together", "submission", 51_200, 256, make)
    yield Bench("applied", "group", 50_000, 100, queue_loops.Applied)
    for groups in (1, 100):
        make = partial(queue_loops.Handing, groups=groups)
        yield Bench(f"handing over, {groups} groups", "instance", 20_000, 100, make)
    yield Bench("chores", "chore", 20_000, 1, queue_loops.ChoreQueue)
    for name, shuffled in (("in order", False), ("out of order", True)):
        make = partial(queue_loops.Admissions, shuffled=shuffled)
        yield Bench(f"sessions, {name}", "value", 20_000, 2, make)
    for values in (1, 100):
        make = partial(queue_loops.Deliveries, size=100, per_body=values)
        yield Bench(f"delivery {values} x 100 B", "value", 20_000, values, make)
    for name, together in (("each", False), ("run", True)):
        make = partial(queue_loops.Completions, together=together)
        yield Bench(f"completion, {name}", "value", 20_000, 1, make)


BENCHES = {bench.name: bench for part in (codec, engine, log, queues) for bench in part()}
