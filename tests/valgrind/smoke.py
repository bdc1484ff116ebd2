"""What runs under valgrind: a little of every native part. Times are long, for it is slow."""

import gc
import sys
import time
from pathlib import Path

from phx._core import batch, chunk, codec
from phx._core.driver import Driver
from phx._core.engine_door import Engine
from phx._core.journal_door import Journal, Writer
from phx._core.memdisk import MemoryDisk

US = 1_000_000


def bytes_in_and_out() -> None:
    body = batch.pack_body([(1, 1, 1, 1, [(0, b"a" * n) for n in range(9)])])
    assert batch.check_body(body)
    for cut in range(len(body)):
        assert not batch.check_body(body[:cut])
    frame = codec.encode_frame(2, 1, 2, 7, body)
    for cut in range(len(frame)):
        assert codec.check_frame(frame[:cut], 7, 2) == "short"
    record = codec.encode_record(2, 1, 1, 1, body)
    for at in range(len(record)):
        spoilt = record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]
        assert codec.check_record(spoilt) == 0
    made, taken = chunk.build_chunk(1, 4000, bytes(16), [(1, n, body) for n in range(1, 9)])
    assert chunk.verify_chunk(1, made, bytes(16)) == taken


def engines() -> None:
    """Three of them agree on a value, their frames carried by hand."""
    nodes = {n: Engine(n, [1, 2, 3], range(2)) for n in (1, 2, 3)}
    for n, engine in nodes.items():
        engine.start(0, US)
        for peer in nodes:
            if peer != n:
                engine.connected(peer, 1, bytes([peer]) * 16)
    now, chosen = US, 0
    while chosen < 2 * 3:
        now += 20_000
        assert now < 100 * US, "they never agree"
        for n, engine in nodes.items():
            engine.advance(now)
            if now == 3 * US:
                engine.submit(0, 1, [b"value of %d" % n], 90 * US)
            out = engine.turn()
            engine.durable(out["lsn_end"])
            chosen += sum(last - first + 1 for _, first, last in out["chosen"])
            for peer, frame, _ in out["outgoing"]:
                for other in nodes:
                    if other != n and peer in (0, other):
                        nodes[other].receive(n, frame[32:])


def journals(folder: Path) -> None:
    for where in (MemoryDisk(), str(folder / "journal")):
        journal = Journal(where, create=True)
        writer = Writer(journal)
        lsn = journal.next_lsn
        for n in range(30):
            lsn = writer.push(lsn, codec.encode_record(2, 1, n, 1, bytes(700)))
        writer.stop()
        journal.close()
        assert len(Journal(where).replayed) == 30


def driver(folder: Path) -> None:
    one = Driver(
        cluster=1,
        node=1,
        store_id=bytes(16),
        members=[(1, "127.0.0.1", 0)],
        bind=("127.0.0.1", 0),
        groups=[0],
        settled={},
        journal_dir=str(folder / "driver"),
        create=True,
        options={},
    )
    one.start()
    one.submit(0, 0, [b"x" * n for n in range(100)], Driver.now_us() + 100 * US)
    until, seen = time.monotonic() + 100, 0
    while seen < 100:
        assert time.monotonic() < until, "nothing is applied"
        one.clear_wake()
        for taken in one.take(1 << 20):
            seen += len(taken.entries)
            one.applied(taken.group, taken.last)
        time.sleep(0.01)
    one.stop(30 * US)


def main() -> None:
    folder = Path(sys.argv[1])
    bytes_in_and_out()
    engines()
    journals(folder)
    driver(folder)
    gc.collect()
    assert codec.allocations_live() == 0, codec.allocations_live()
    print("all is given back")


if __name__ == "__main__":
    main()
