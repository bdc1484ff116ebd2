"""What a running node's own scrubber finds where nobody reads, and what the node makes of it."""

import re
from functools import partial
from pathlib import Path

import pytest

import phx
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.node import doctor
from phx.node.scrubber import Scrubber
from tests.api.catch_up import QUIET
from tests.api.cluster import all_applied, cluster, until

pytestmark = pytest.mark.usefixtures("no_leaks")

SETTINGS = {"groups": 1, "checkpoints": QUIET | {"scrub_bytes_per_s": 1 << 34}}
COUNT = 40


@pytest.fixture(autouse=True)
def round_after_round(monkeypatch):
    """And nothing is settled because nobody calls: it would read what is damaged."""
    options = phx.Config.options
    idle = {"settle_idle_us": 600_000_000}
    monkeypatch.setattr(phx.Config, "options", lambda self: options(self) | idle)
    monkeypatch.setattr(doctor, "Scrubber", partial(Scrubber, round_s=0.05))


def value(n: int) -> bytes:
    return b"a value that stands in one place only %04d " % n + bytes([n]) * 100_000


async def filled(nodes):
    """All have applied COUNT values: 4 MiB, so the first segments of the journals are closed."""
    for n in range(COUNT):
        await nodes[0].group(0).propose(encode_set(b"%d" % n, value(n)))
    await all_applied(nodes)


def flip(path: Path, pattern: bytes) -> None:
    """One byte, in every place where that stands, under the node's hands."""
    content = path.read_bytes()
    at = content.find(pattern)
    assert at >= 0
    with path.open("r+b") as file:
        while at >= 0:
            file.seek(at + 3)
            file.write(bytes([content[at + 3] ^ 1]))
            at = content.find(pattern, at + 1)


async def rounds(node, count):
    before = node.status().damage["scrubs"]
    await until(lambda: node.status().damage["scrubs"] >= before + count, seconds=60)


def settled(node):
    return node.group(0).status().settled_through


def same_settled(node, other):
    """Up to where the node's store has, entry by entry, what the other one has of the log."""
    through = settled(node)
    for instance in range(1, through + 1):
        body = other._room.driver.read(0, instance)
        if not isinstance(body, bytes):
            body = other._room._store.entry(0, instance)
        assert isinstance(body, bytes)
        assert node._room._store.entry(0, instance) == body
    return through


def test_a_byte_of_a_chunk_that_nobody_reads_is_found_and_mended(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, KeyValue, **SETTINGS) as nodes:
            await filled(nodes)
            hurt = nodes[2]
            for node in (nodes[0], hurt):
                node._room.driver.settle_now()
                await until(lambda node=node: settled(node) >= COUNT, seconds=60)
            await rounds(hurt, 2)
            damage = hurt.status().damage
            assert (damage["found"], damage["mended"]) == (0, 0)
            flip(hurt.config.dir / "store" / "data.mdb", value(7)[:42])
            await until(lambda: hurt.status().damage["mended"] == 1, seconds=60)
            await rounds(hurt, 2)
            damage = hurt.status().damage
            assert (damage["found"], damage["holes"]) == (1, 0)
            assert "chunk" in damage["last"]
            assert same_settled(hurt, nodes[0]) >= COUNT
            assert [node.status().damage["found"] for node in nodes[:2]] == [0, 0]

    run_once(main())


def test_a_byte_of_a_closed_segment_is_found_and_what_counts_of_it_is_written_again(
    run_once, tmp_path
):
    async def main():
        async with cluster(tmp_path, KeyValue, **SETTINGS) as nodes:
            await filled(nodes)
            hurt = nodes[2]
            segments = hurt._room._doctor._segments.segments
            await until(segments)
            begin, end = segments()[0]
            await rounds(hurt, 2)
            assert hurt.status().damage["found"] == 0
            assert settled(hurt) < 7
            (segment, *_) = sorted((hurt.config.dir / "journal").glob("*.segment"))
            flip(segment, value(7)[:42])
            await until(lambda: hurt.status().damage["found"], seconds=60)
            await until(lambda: all(start > begin for start, _ in segments()), seconds=60)
            # The line says where the record begins; later ones are of whoever wanted to read it.
            said = re.search(r"damaged at position (\d+)", hurt._room._doctor.found[0])
            assert said
            assert begin <= int(said[1]) < end
            await until(lambda: hurt.status().damage["mended"] == 1, seconds=60)
            await until(lambda: settled(hurt) >= 8, seconds=60)
            assert same_settled(hurt, nodes[0]) >= 8
            assert hurt.group(0).machine().get(b"7") == value(7)
            assert hurt.status().store_error is None

    run_once(main())
