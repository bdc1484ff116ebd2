"""A checkpoint goes from one to the other, wherever the line is cut, and whoever goes on."""

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest
from checkpoint_lab import made, part, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_lab import (
    GREETING,
    MIB,
    MINE,
    THEIRS,
    Line,
    Pantry,
    finish,
    provider,
    receiver,
    sender,
)

from phx._core.codec import frame_fields
from phx.checkpoint.catalog import ROOT, Catalog, path_of
from phx.checkpoint.files import Files, OsFiles
from phx.checkpoint.manifest import DURABLE, MANIFEST, encode
from phx.checkpoint.taking import Part, run
from phx.errors import Damaged
from phx.sim.files import MemoryFiles
from phx.transfer import messages
from phx.transfer.messages import (
    ACK,
    CHUNK,
    ENTRIES,
    ENTRIES_WANTED,
    SILENCE_US,
    Declined,
    Entry,
    Fetch,
    Hostile,
    Stalled,
    pack_ack,
    pack_chunk,
    pack_entries,
)
from phx.transfer.receiver import Asker, Receiver
from phx.transfer.sender import WINDOW_BYTES, Bucket, Sender
from phx.transfer.staging import kept, waiting

SIZES = (3 * MIB + 5, 0, 700, 2 * MIB)


@pytest.fixture(params=["os", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return OsFiles(tmp_path) if request.param == "os" else MemoryFiles()


def test_what_is_sent_becomes_a_checkpoint(files: Files) -> None:
    theirs, manifest = provider(SIZES)
    line = Line(sender(theirs, manifest), receiver(files, manifest))
    assert line.run()
    assert line.receiving.progress.there == sum(SIZES) == line.receiving.progress.received
    assert Catalog.scan(files, ROOT) == {}  # before it is published, it is none
    assert finish(line) == manifest
    assert whole(files, manifest)
    assert files.listing(f"{ROOT}/staging") == []
    assert Catalog.open(files, ROOT).groups() == {7: [manifest]}


@pytest.mark.parametrize("piece", [1, 31, 4096, 10 * MIB])
def test_bytes_may_arrive_in_any_pieces(piece: int) -> None:
    files = MemoryFiles()
    theirs, manifest = provider((3000, 0, 17))
    line = Line(sender(theirs, manifest), receiver(files, manifest))
    assert line.run(piece=piece)
    finish(line)
    assert whole(files, manifest)


def test_one_without_files_is_its_manifest() -> None:
    theirs, manifest = provider((0,))
    line = Line(sender(theirs, manifest), receiver(files := MemoryFiles(), manifest))
    assert line.run()
    finish(line)
    assert whole(files, manifest)


# --- cuts


def frame_ends(said: bytes) -> list[int]:
    ends, at = [], 0
    while at < len(said):
        at += 32 + frame_fields(said[at : at + 32])[3]
        ends.append(at)
    return ends


def test_a_cut_anywhere_leaves_what_can_be_gone_on_with() -> None:
    """At each end of a frame, one byte before and behind it, and in its middle."""
    theirs, manifest = provider((2 * MIB + 100, 5, MIB))
    sending = sender(theirs, manifest)
    said = sending.feed(receiver(MemoryFiles(), manifest).hello(GREETING), 1)
    ends = frame_ends(said)
    assert ends[-1] == len(said)  # all of it fits into the window
    assert len(ends) > 12
    cuts = {at + delta for at in [0, *ends] for delta in (-1, 0, 1)}
    cuts |= {(one + other) // 2 for one, other in itertools.pairwise(ends)}
    for cut in sorted(cut for cut in cuts if 0 < cut < len(said)):
        files = MemoryFiles()
        assert not Line(sender(theirs, manifest), receiver(files, manifest)).run(cut)
        line = Line(sender(theirs, manifest), receiver(files, manifest))
        there = line.receiving.progress.resumed
        assert line.run()
        assert line.receiving.progress.received == manifest.size_bytes - there
        finish(line)
        assert whole(files, manifest), cut


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 4 * MIB), max_size=6),
    piece=st.sampled_from([999, 64 << 10, MIB]),
    sizes=st.lists(st.sampled_from([0, 1, 777, MIB - 1, MIB, MIB + 1]), min_size=1, max_size=4),
)
def test_any_number_of_cuts_and_providers(cuts: list[int], piece: int, sizes: list[int]) -> None:
    """Each time another node provides, which took the same state itself."""
    files = MemoryFiles()
    for node, cut in enumerate([*cuts, None], 2):
        theirs, manifest = provider(sizes, taken_by=node, taken_us=node)
        line = Line(sender(theirs, manifest), receiver(files, manifest))
        if line.run(cut, piece):
            break
    taken = finish(line)
    assert taken.content == manifest.content
    assert whole(files, taken)


def test_a_cut_at_half_costs_less_than_a_twentieth() -> None:
    """Bytes that left the provider, those that never arrived among them."""
    size = 160 * MIB
    files = MemoryFiles()
    theirs, manifest = provider((size,))
    first = Line(sender(theirs, manifest), receiver(files, manifest))
    assert not first.run(size // 2, piece=MIB - 12_345)
    theirs, manifest = provider((size,), taken_by=3)
    second = Line(sender(theirs, manifest), receiver(files, manifest))
    assert second.run(piece=MIB)
    finish(second)
    assert whole(files, manifest)
    sent = first.sending.sent_bytes + second.sending.sent_bytes
    assert size < sent < 1.05 * size


# --- flow


def test_no_more_than_the_window_is_on_its_way() -> None:
    theirs, manifest = provider((10 * MIB,))
    sending, receiving = sender(theirs, manifest), receiver(MemoryFiles(), manifest)
    said = sending.feed(receiving.hello(GREETING), 1)
    assert sending.sent_bytes == WINDOW_BYTES
    assert sending.feed(b"", 2) == b""
    for at in range(0, len(said), 1000):
        acks = receiving.feed(said[at : at + 1000], 2)
        if acks:
            break
    assert MIB <= receiving.progress.there < MIB + (256 << 10) + 1000
    sending.feed(acks, 3)
    assert sending.sent_bytes == WINDOW_BYTES + receiving.progress.there


def test_all_transfers_together_keep_to_the_rate() -> None:
    theirs, manifest = provider((3 * MIB,))
    bucket = Bucket(MIB)
    lines = []
    for _ in range(2):
        files = MemoryFiles()
        sending = Sender(theirs, THEIRS, Pantry(manifest), bucket, 0)
        lines.append((sending, receiver(files, manifest)))
    inbox = [receiving.hello(GREETING) for _, receiving in lines]
    now_us = 0
    while not all(sending.done for sending, _ in lines):
        for at, (sending, receiving) in enumerate(lines):
            inbox[at] = receiving.feed(sending.feed(inbox[at], now_us), now_us)
        now_us += 10_000
    assert 5.5 < now_us / 1e6 < 6.5  # 6 MiB at 1 MiB/s


@pytest.mark.parametrize("rate", [30 << 10, 64 << 10, 300_000])
def test_a_low_rate_is_no_stall(rate: int) -> None:
    theirs, manifest = provider((2 * MIB,))
    line = Line(sender(theirs, manifest, rate=rate), receiver(MemoryFiles(), manifest))
    assert line.run()
    assert line.now_us > 1.8 * MIB / rate * 1e6


def test_a_part_of_the_rate_that_leads_nowhere_is_a_stall() -> None:
    theirs, manifest = provider((2 * MIB,))
    line = Line(sender(theirs, manifest, rate=20 << 10), receiver(MemoryFiles(), manifest))
    with pytest.raises(Stalled):
        line.run()
    assert line.now_us > SILENCE_US


@pytest.mark.parametrize("rate", [30 << 10, 64 << 10])
def test_a_slow_line_is_no_stall(rate: int) -> None:
    """So much each second: less than 1 MiB, which is worth an ACK, in 10 seconds."""
    theirs, manifest = provider((2 * MIB,))
    sending, receiving = sender(theirs, manifest), receiver(MemoryFiles(), manifest)
    inbox, queue, now_us = receiving.hello(GREETING), b"", 0
    while not sending.done:
        now_us += 1_000_000
        queue += sending.feed(inbox, now_us)
        inbox, queue = receiving.feed(queue[:rate], now_us), queue[rate:]
    assert receiving.ended


def test_silence_cuts() -> None:
    theirs, manifest = provider((MIB,))
    sending, receiving = sender(theirs, manifest), receiver(MemoryFiles(), manifest)
    hello = receiving.hello(GREETING)
    assert (sending.due_us, receiving.due_us) == (10_000_000, 10_000_000)
    assert sending.feed(hello[:50], 9_999_999) == b""
    assert receiving.feed(b"", 9_999_999) == b""
    with pytest.raises(Stalled):
        sending.feed(b"", 10_000_000)  # FETCH is not there
    with pytest.raises(Stalled):
        receiving.feed(b"", 10_000_000)
    sending = sender(theirs, manifest)
    said = sending.feed(hello, 5)
    assert sending.due_us == 10_000_005
    with pytest.raises(Stalled):
        sending.feed(b"", 10_000_005)  # nothing was acknowledged
    receiving = receiver(MemoryFiles(), manifest)
    receiving.feed(said[:-40], 7)
    with pytest.raises(Stalled):
        receiving.feed(said[-40:-39], 10_000_007)  # a frame that trickles is no progress


def borne_us(side: Receiver | Sender | Asker, said: Iterable[bytes]) -> int:
    """How long somebody is borne with who says these, one each 9 s."""
    now_us = 0
    try:
        for number, one in enumerate(said):
            at_us = 9_000_000 * number
            while side.due_us <= at_us:
                now_us = side.due_us
                side.feed(b"", now_us)
            now_us = at_us
            side.feed(one, now_us)
    except Stalled:
        return now_us
    pytest.fail("it never ends")


def test_who_trickles_is_cut() -> None:
    """One byte each 9 s is more than nothing, and would hold a transfer's place for ever."""
    theirs, manifest = provider((6 * MIB,))
    chunks = (THEIRS.frame(CHUNK, pack_chunk(0, at, b"x")) for at in range(100))
    said = [THEIRS.frame(messages.MANIFEST, encode(manifest)), *chunks]
    assert borne_us(receiver(MemoryFiles(), manifest), said) < SILENCE_US + 1_000_000
    acks = (MINE.frame(ACK, pack_ack(0, at)) for at in range(1, 100))
    said = [receiver(MemoryFiles(), manifest).hello(GREETING), *acks]
    assert borne_us(sender(theirs, manifest), said) < SILENCE_US + 1_000_000
    values = [THEIRS.frame(ENTRIES, pack_entries([Entry(at, b"")])) for at in range(1, 100)]
    asking = Asker(MINE, Fetch(ENTRIES_WANTED, 7, 0, 1000), 0)
    assert borne_us(asking, values) < SILENCE_US + 1_000_000


def test_who_looks_late_takes_what_came_meanwhile() -> None:
    """A disk that holds up the receiver for a minute is not the provider's fault."""
    theirs, manifest = provider((2 * MIB,))
    receiving = receiver(MemoryFiles(), manifest)
    said = sender(theirs, manifest).feed(receiving.hello(GREETING), 0)
    for at in range(0, len(said), 300_000):
        receiving.feed(said[at : at + 300_000], 60_000_000 * (at // 300_000 + 1))
    assert receiving.ended


def test_an_acknowledgement_is_progress() -> None:
    theirs, manifest = provider((6 * MIB,))
    sending, receiving = sender(theirs, manifest), receiver(MemoryFiles(), manifest)
    said, now_us = sending.feed(receiving.hello(GREETING), 0), 0
    while not sending.done:
        now_us += 9_000_000
        acks = receiving.feed(said[: MIB + MIB // 2], now_us)
        said = said[MIB + MIB // 2 :] + sending.feed(acks, now_us)
    assert now_us > 27_000_000


# --- who cannot provide


def test_what_is_not_there_is_declined() -> None:
    theirs, manifest = provider((100,))
    _, other = provider((100,), seed=2)
    for there, asked in [(None, manifest), (other, manifest)]:
        sending, receiving = sender(theirs, there), receiver(MemoryFiles(), asked)
        said = sending.feed(receiving.hello(GREETING), 1)
        assert sending.done
        with pytest.raises(Declined, match="not here"):
            receiving.feed(said, 2)
    sending, receiving = sender(theirs, manifest), receiver(MemoryFiles(), manifest, above=4096)
    with pytest.raises(Declined, match="nothing that is wanted"):
        receiving.feed(sending.feed(receiving.hello(GREETING), 1), 2)


def test_a_light_one_is_not_given() -> None:
    theirs = MemoryFiles()
    light = made(theirs, parts=(Part(0, DURABLE, None), part(1, [b"abc"])))
    sending, receiving = sender(theirs, light), receiver(MemoryFiles(), light)
    with pytest.raises(Declined):
        receiving.feed(sending.feed(receiving.hello(GREETING), 1), 2)


@pytest.mark.parametrize("at", [0, MIB - 1, MIB, 2 * MIB + 50])
def test_a_damaged_block_is_never_sent_to_its_end(at: int) -> None:
    theirs, manifest = provider((2 * MIB + 100,))
    theirs.flip(f"{path_of(ROOT, manifest)}/machine-0", 8 * at)
    sending = sender(theirs, manifest)
    with pytest.raises(Damaged, match="is damaged before byte"):
        sending.feed(receiver(MemoryFiles(), manifest).hello(GREETING), 1)


# --- what is kept


def test_what_was_received_in_part_outlives_a_start() -> None:
    files = MemoryFiles()
    theirs, manifest = provider((3 * MIB,))
    assert not Line(sender(theirs, manifest), receiver(files, manifest)).run(2 * MIB)
    names = kept(files, ROOT, manifest.cluster, 4)
    assert names == ["fetch-7-0"]
    assert (
        kept(files, ROOT, manifest.cluster + 1, 4) == kept(files, ROOT, manifest.cluster, 0) == []
    )
    assert Catalog.open(files, ROOT, keep=names).groups() == {}
    line = Line(sender(theirs, manifest), receiver(files, manifest))
    assert line.run()
    assert line.receiving.progress.resumed == MIB
    finish(line)
    assert Catalog.open(files, ROOT).groups() == {7: [manifest]}


def test_what_is_not_wanted_any_more_goes() -> None:
    files = MemoryFiles()
    theirs, manifest = provider((3 * MIB,))
    line = Line(sender(theirs, manifest), receiver(files, manifest))
    assert not line.run(2 * MIB)
    assert line.receiving.staged is not None
    line.receiving.staged.drop()
    assert waiting(files, ROOT) == {}
    assert files.listing(f"{ROOT}/staging") == []


def test_staged_of_another_checkpoint_is_not_gone_on_with() -> None:
    files = MemoryFiles()
    theirs, manifest = provider((3 * MIB,))
    _, other = provider((3 * MIB,), seed=2)
    assert not Line(sender(theirs, manifest), receiver(files, manifest)).run(2 * MIB)
    with pytest.raises(ValueError, match="another checkpoint"):
        receiver(files, other)


def test_a_digest_that_does_not_fit_its_blocks_is_given_up() -> None:
    """Else it would be fetched for ever."""
    theirs, good = provider((MIB + 5,))
    entry = dataclasses.replace(good.files[0], digest=bytes(32))
    lie = dataclasses.replace(good, files=(entry,))
    theirs.rename(path_of(ROOT, good), path_of(ROOT, lie))
    theirs.remove(f"{path_of(ROOT, lie)}/{MANIFEST}")
    theirs.create(f"{path_of(ROOT, lie)}/{MANIFEST}").write(encode(lie))
    files = MemoryFiles()
    line = Line(sender(theirs, lie), receiver(files, lie))
    assert line.run()
    assert line.receiving.staged is not None
    with pytest.raises(Hostile):
        run(line.receiving.staged.publish())
    assert waiting(files, ROOT) == {}
