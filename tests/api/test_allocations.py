"""Native allocations are counted to zero when all is closed: in a process of its own."""

import subprocess
import sys
import textwrap
from pathlib import Path

PROGRAM = """
import asyncio, gc, sys
from pathlib import Path

import phx
from phx._core.codec import allocations_live, encode_record
from phx._core.driver import Driver
from phx._core.engine_door import Engine
from phx._core.journal_door import Journal, Writer
from phx.machines import Counter

folder = Path(sys.argv[1])


def left(of):
    gc.collect()
    print(of, allocations_live())


def an_engine(members):
    engine = Engine(1, members, range(8))
    engine.start(0, 1_000_000)
    for peer in members[1:]:
        engine.connected(peer, 1, bytes(16))
    engine.submit(0, 1, [b"a", b"b"], 9_000_000)
    for now in range(1_000_000, 3_000_000, 50_000):
        engine.advance(now)
        engine.durable(engine.turn()["lsn_end"])
    assert engine.status(0)["leading"] == (len(members) == 1)
    engine.submit(0, 3, [b"c"], 9_000_000)
    engine.advance(4_000_000)  # and goes away with what nobody has drained
    assert allocations_live() > 8


def a_journal():
    journal = Journal(str(folder / "journal"), create=True)
    writer = Writer(journal)
    lsn = journal.next_lsn
    for n in range(50):
        lsn = writer.push(lsn, encode_record(2, 1, n, 1, bytes(900)))
    writer.stop()
    journal.prepare_spare()
    assert allocations_live() > 4
    journal.close()


def a_driver(stop):
    driver = Driver(cluster=1, node=1, store_id=bytes(16), members=[(1, "127.0.0.1", 0)],
                    bind=None, groups=[0], settled={}, journal_dir=str(folder / f"driver{stop}"),
                    create=True, options={})
    driver.start()
    driver.submit(0, 0, [b"x"] * 100, Driver.now_us() + 1_000_000)
    assert allocations_live() > 4
    if stop:
        driver.stop(5_000_000)


async def nodes():
    ids = (1, 2, 3)
    made = [phx.Node(phx.Config(cluster="count", node=n, dir=folder / f"node{n}", groups=4,
                                members=dict.fromkeys(ids, "127.0.0.1:0")), Counter, bootstrap=True)
            for n in ids]
    await asyncio.gather(*(node.open() for node in made))
    for node in made:
        for other in made:
            if other is not node:
                node.set_address(other.config.node, f"127.0.0.1:{other.port}")
    await asyncio.gather(*(node.wait_ready(timeout=30) for node in made))
    await asyncio.gather(*(made[g % 3].group(g).propose(b"+1") for g in range(4) for _ in range(9)))
    assert allocations_live() > 100
    await asyncio.gather(*(node.close() for node in made))


for of, made in (("alone", lambda: an_engine([1])),
                 ("engine", lambda: an_engine([1, 2, 3])), ("journal", a_journal),
                 ("driver", lambda: a_driver(True)), ("dropped", lambda: a_driver(False)),
                 ("nodes", lambda: asyncio.run(nodes()))):
    made()
    left(of)
"""


def test_nothing_native_is_left_when_all_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [
        "alone 0",
        "engine 0",
        "journal 0",
        "driver 0",
        "dropped 0",
        "nodes 0",
        "",
    ]
