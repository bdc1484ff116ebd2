"""How long a start takes with many settled entries and fresh checkpoints.

A node's folder is made as one that ran for long would have left it: `--entries` entries in its
store, in instances of one value each, and a checkpoint of each group with `--keys` keys, `--tail`
instances below the end of its log. Then the node is opened, `--starts` times: until it votes, until
every group is there with all that is settled applied, and what the machine's memory is then.

Making the folder takes a minute or several, and about 150 bytes an entry.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from store_settle import MIB, lot

import phx.blocking
from phx._core.batch import pack_body
from phx._core.codec import crc32c
from phx._core.delivery import Sessions
from phx._core.session_codec import table_facts
from phx.bench.meter import memory_bytes
from phx.checkpoint.catalog import ROOT
from phx.checkpoint.files import OsFiles
from phx.checkpoint.taking import Capture, Part, run, take
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.store import Store

NODE, LIFE = 1, 1
LOT = 200_000  # entries settled in one call


def config_of(folder: Path, options: argparse.Namespace) -> phx.Config:
    return phx.Config(
        cluster="start",
        node=NODE,
        members={NODE: "127.0.0.1:0"},
        dir=folder,
        groups=options.groups,
        checkpoints={
            "interval_us": 0,
            "interval_instances": 0,
            "interval_bytes": 0,
            "restore_threads": options.restore_threads,
        },
    )


def body_of(instance: int, keys: int) -> bytes:
    """One value: the same in every group."""
    value = encode_set(b"key %d" % (instance % keys), b"value of %d, and more of it" % instance)
    return pack_body([(NODE, LIFE, instance, instance, [(0, value)])])


def lots(through: int, each: int, keys: int) -> Iterator[list[tuple[int, bytes]]]:
    for first in range(1, through + 1, each):
        last = min(through, first + each - 1)
        yield [(instance, body_of(instance, keys)) for instance in range(first, last + 1)]


def table_for(table: bytes, group: int) -> bytes:
    """The same table of another group."""
    rest = table[4:8] + group.to_bytes(4, "little") + table[12:]
    return crc32c(rest).to_bytes(4, "little") + rest


def make(folder: Path, options: argparse.Namespace) -> None:
    config = config_of(folder, options)
    with phx.blocking.Node(config, KeyValue, bootstrap=True) as node:
        node.wait_ready()
    groups, per_group = range(options.groups), options.entries // options.groups
    frontier = per_group - options.tail
    sessions, machine = Sessions(NODE, [0]), KeyValue()
    table = b""
    store = Store.open(folder / "store", cluster=config.cluster_id, node=NODE, create=False)
    try:
        for bodies in lots(per_group, max(1, LOT // options.groups), options.keys):
            journal, plan = lot(groups, bodies)
            store.settle(plan)
            del plan
            journal.close()
            below = [body for instance, body in bodies if instance <= frontier]
            for batch in sessions.offer(0, bodies[0][0], below) if below else ():
                machine.apply_batch(batch.entries)
            table = sessions.table(0)
        while store.merge():
            pass
        print(store.stats())
    finally:
        store.close()
    _, at, chain, epoch = table_facts(table)
    assert at == frontier, (at, frontier)
    for group in groups:
        capture = Capture(
            cluster=config.cluster_id,
            group=group,
            frontier=frontier,
            epoch=epoch,
            config=1,
            members=(NODE,),
            sessions=table_for(table, group),
            chain=chain,
            parts=(Part(0, 1, machine.snapshot),),
            taken_by=NODE,
            taken_us=time.time_ns() // 1000,
        )
        run(take(OsFiles(folder), ROOT, capture))


def forget(folder: Path) -> None:
    """Let the page cache forget the folder's files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def started(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds until the node is open, and until every group has applied all that is settled."""
    node = phx.blocking.Node(config_of(folder, options), KeyValue)
    began = time.perf_counter()
    node.open()
    opened_s = time.perf_counter() - began
    try:
        node.wait_ready(timeout=600)
        ready_s = time.perf_counter() - began
        through = options.entries // options.groups
        for group in node.groups:
            status = group.status()
            assert status.applied_through >= through, status
            assert not status.stopped
        assert node.status().checkpoints["restored"] == options.groups
        print(
            f"open {opened_s:.2f} s, ready {ready_s:.2f} s, "
            f"{memory_bytes()[1] / MIB:.0f} MiB of memory"
        )
    finally:
        node.close()
    return opened_s, ready_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--keys", type=int, default=10_000, help="of each group's machine")
    parser.add_argument("--tail", type=int, default=1000, help="instances above its checkpoint")
    parser.add_argument("--restore-threads", type=int, default=2)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="drop the files' pages before each")
    parser.add_argument("--dir", type=Path, help="made if it is not there, and kept")
    options = parser.parse_args()
    kept = options.dir is not None
    folder = options.dir or Path(tempfile.mkdtemp(prefix="phx-start-"))
    try:
        if not (folder / "store").exists():
            began = time.perf_counter()
            make(folder, options)
            print(f"made in {time.perf_counter() - began:.0f} s")
        found = []
        for _ in range(options.starts):
            if options.cold:
                forget(folder)
            found.append(started(folder, options))
            gc.collect()  # the node before and its machines
        opened, ready = zip(*found, strict=True)
        print(
            f"{options.entries:,} entries, {options.groups} groups: "
            f"open {statistics.median(opened):.2f} s, ready {statistics.median(ready):.2f} s"
        )
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
