"""The bytes of each frame, and questions that are answered without a checkpoint."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from checkpoint_lab import CLUSTER
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_lab import GREETING, MINE, THEIRS, Pantry, provider

from phx._core.codec import encode_frame
from phx.sim.files import MemoryFiles
from phx.transfer import messages
from phx.transfer.messages import (
    DIGESTS,
    ENTRIES,
    ENTRIES_WANTED,
    FETCH_BYTES_MAX,
    OFFER,
    OFFER_WANTED,
    Ack,
    Chain,
    Cut,
    Declined,
    Entry,
    Fetch,
    Frames,
    Hostile,
    Offer,
    Stalled,
    pack_ack,
    pack_chunk,
    pack_entries,
    pack_error,
    pack_fetch,
    pack_offer,
    unpack_ack,
    unpack_chunk,
    unpack_entries,
    unpack_fetch,
    unpack_offer,
)
from phx.transfer.receiver import Asker
from phx.transfer.sender import Bucket, Sender

U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)
IDENT = st.sampled_from([b"", bytes(range(32))])
FETCHES = st.builds(
    Fetch,
    st.sampled_from(messages.WHAT),
    st.integers(0, 9_999),
    U64,
    U64,
    IDENT,
    st.dictionaries(st.integers(0, 63), U64).map(lambda found: tuple(found.items())),
)


@given(FETCHES)
def test_a_fetch_is_what_it_was(fetch: Fetch) -> None:
    assert unpack_fetch(pack_fetch(GREETING, fetch)) == fetch


def test_golden_bytes() -> None:
    fetch = pack_fetch(GREETING, Fetch("checkpoint", 7, 5, 0, b"", ((1, 1 << 20),)))
    assert fetch[4:40] == (
        b"\x03\0\0\0" + bytes(range(16)) + b"\x4d\0\0\0\0\0\0\0" + b"\x40\0\0\0" + b"\0\0\0\0"
    )
    assert fetch[40:] == (
        b"\x86\xa5above\x05\xa5group\x07\xa4have\x91\x92\x01\xce\x00\x10\x00\x00"
        b"\xa5ident\xc4\x00\xa7through\x00\xa4what\xaacheckpoint"
    )
    assert pack_chunk(1, 0x0A0B, b"xyz") == (b"\x01\0\0\0\x03\0\0\0\x0b\x0a\0\0\0\0\0\0xyz")
    assert pack_ack(2, 3) == b"\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0"
    assert pack_entries([Entry(9, b"abc")]) == (
        b"\x09\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0abc\0\0\0\0\0"
    )


def test_the_longest_fetch_is_short_enough() -> None:
    have = tuple((file, (1 << 64) - 1) for file in range(64))
    fetch = Fetch("checkpoint", 9_999, (1 << 64) - 1, (1 << 64) - 1, bytes(32), have)
    assert len(pack_fetch(GREETING, fetch)) <= FETCH_BYTES_MAX


@given(
    st.builds(
        Offer,
        st.integers(1, (1 << 64) - 2),
        st.just(bytes(range(32))),
        U64, U64, st.booleans(), U32,
        st.lists(st.builds(Chain, U64, U32, st.binary(max_size=16)), max_size=64).map(tuple),
    )
)  # fmt: skip
def test_an_offer_is_what_it_was(offer: Offer) -> None:
    packed = pack_offer(offer)
    assert unpack_offer(packed) == offer
    assert len(packed) <= messages.LIMITS[OFFER]


@given(st.text(max_size=300))
def test_a_no_is_a_no(why: str) -> None:
    with pytest.raises(Declined) as found:
        unpack_offer(pack_error(why))
    assert str(found.value).isprintable()


@given(U32, U64, st.binary(min_size=1, max_size=99))
def test_a_chunk_and_its_acknowledgement_are_what_they_were(
    file: int, offset: int, data: bytes
) -> None:
    chunk = unpack_chunk(pack_chunk(file, offset, data))
    assert (chunk.file, chunk.offset, bytes(chunk.data)) == (file, offset, data)
    assert unpack_ack(pack_ack(file, offset)) == Ack(file, offset)


@given(st.integers(1, 1 << 40), st.lists(st.binary(max_size=30), min_size=1, max_size=9))
def test_entries_are_what_they_were(first: int, bodies: list[bytes]) -> None:
    entries = [Entry(first + at, body) for at, body in enumerate(bodies)]
    assert unpack_entries(pack_entries(entries)) == entries


UNPACKS: list[Callable[[bytes], object]] = [
    unpack_fetch,
    unpack_offer,
    unpack_chunk,
    unpack_ack,
    unpack_entries,
]


@settings(max_examples=300)
@given(st.sampled_from(UNPACKS), st.binary(max_size=120))
def test_any_bytes_are_refused_or_mean_something(
    unpack: Callable[[bytes], object], data: bytes
) -> None:
    with suppress(Cut):
        unpack(data)


@given(FETCHES, st.data())
def test_a_fetch_with_a_byte_changed_is_refused_or_one_that_phx_could_send(
    fetch: Fetch, data: st.DataObject
) -> None:
    packed = bytearray(pack_fetch(GREETING, fetch))
    at = data.draw(st.integers(40, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack_fetch(bytes(packed))
    except Hostile:
        return
    assert unpack_fetch(pack_fetch(GREETING, found)) == found


@pytest.mark.parametrize(
    "payload",
    [
        b"", bytes(15), pack_entries([Entry(1, b"abc")])[:-1], pack_entries([Entry(0, b"")]),
        pack_entries([Entry(1, b""), Entry(3, b"")]), pack_entries([Entry(2, b""), Entry(1, b"")]),
        pack_entries([Entry(1, b"abc")])[:-1] + b"\x01",
        b"\x01\0\0\0\0\0\0\0\xff\xff\xff\xff\0\0\0\0" + bytes(64),
    ],
)  # fmt: skip
def test_entries_that_phx_would_not_write_are_refused(payload: bytes) -> None:
    with pytest.raises(Hostile):
        unpack_entries(payload)


def test_a_frame_of_another_version_is_refused() -> None:
    good = bytearray(THEIRS.frame(OFFER, pack_offer(Offer())))
    good[4] ^= 0x40
    with pytest.raises(Hostile, match="bad version"):
        list(Frames(MINE, {OFFER}).feed(bytes(good)))


# --- questions


def answered(pantry: Pantry, fetch: Fetch) -> Asker:
    asking = Asker(MINE, fetch, 1)
    sending = Sender(MemoryFiles(), THEIRS, pantry, Bucket(1 << 40), 1)
    said = sending.feed(asking.hello(GREETING), 1)
    assert sending.done
    for at in range(0, len(said), 7):
        asking.feed(said[at : at + 7], 2)
    assert asking.ended
    return asking


@pytest.mark.parametrize("what", [OFFER_WANTED, DIGESTS])
def test_an_offer_answers(what: str) -> None:
    _, manifest = provider((9,))
    pantry = Pantry(manifest)
    offer = answered(pantry, Fetch(what, 7, 3, ident=manifest.content)).offer
    assert offer == Offer(4096, manifest.content, 9)
    assert pantry.asked == [Fetch(what, 7, 3, ident=manifest.content)]


def test_values_answer() -> None:
    values = [Entry(instance, b"v" * instance) for instance in range(1, 12)]
    asking = answered(Pantry(None, values), Fetch(ENTRIES_WANTED, 7, 3, 8))
    assert asking.entries == values[3:8]
    with pytest.raises(Declined, match="not kept"):
        answered(Pantry(None), Fetch(ENTRIES_WANTED, 7, 3, 8))


@pytest.mark.parametrize("instances", [[3], [5], [4, 5, 6, 7, 8, 9], [9], [4, 5]], ids=str)
def test_values_that_were_not_asked_for_are_refused(instances: list[int]) -> None:
    asking = Asker(MINE, Fetch(ENTRIES_WANTED, 7, 3, 8), 1)
    frame = THEIRS.frame(ENTRIES, pack_entries([Entry(one, b"x") for one in instances]))
    if instances == [4, 5]:
        asking.feed(frame, 1)
        assert [one.instance for one in asking.entries] == [4, 5]
    with pytest.raises(Hostile):
        asking.feed(frame, 1)  # the second time they do not go on


def test_no_answer_is_not_waited_for() -> None:
    asking = Asker(MINE, Fetch(OFFER_WANTED, 7), 1)
    assert asking.feed(b"", asking.due_us - 1) == b""
    with pytest.raises(Stalled):
        asking.feed(b"", asking.due_us)
    asking = Asker(MINE, Fetch(OFFER_WANTED, 7), 1)
    with pytest.raises(Hostile):
        asking.feed(THEIRS.frame(ENTRIES, pack_entries([Entry(1, b"")])), 1)
    asking = Asker(MINE, Fetch(ENTRIES_WANTED, 7, 0, 5), 1)
    with pytest.raises(Hostile):
        asking.feed(encode_frame(OFFER, 2, 1, CLUSTER, pack_offer(Offer())), 1)
