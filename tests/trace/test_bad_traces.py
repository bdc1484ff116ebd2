"""Every check of a trace rejects a bad one, and takes the same trace without the mistake."""

import struct

import pytest
from scribe import (
    B1,
    B2,
    B3,
    FILE,
    START_LSN,
    Scribe,
    X,
    Y,
    accept,
    frame,
    promise,
)

from phx._core.codec import encode_record
from phx.sim.wire_text import CHOSEN, SETTLED, align8, ballot, encode
from phx.testing.trace import Finding, check, check_all, main
from phx.testing.trace_file import BadTrace, Kind

PROMISED = frame(encode("Promise", 0, B1, first=1))
ACCEPTED = frame(encode("Accepted", 0, B1, first=1, through=1))


@pytest.fixture
def verify(tmp_path):
    """Check what a scribe wrote, without the replay: no engine ever said these things."""

    def of(scribe):
        return check(scribe.save(tmp_path / "one.trace"), replay=False)

    return of


def rejected(verify, scribe, rule, text):
    with pytest.raises(Finding, match=text) as caught:
        verify(scribe)
    assert caught.value.rule == rule
    assert caught.value.context, "a finding shows what was before it"


# --- when a frame may leave


def test_a_node_that_waits_for_its_sync_is_right(verify, scribe):
    scribe.ready()
    scribe.exchange(promise(B1), PROMISED)
    scribe.exchange(accept(1, B1), ACCEPTED)
    found = verify(scribe)
    assert (found.frames, found.held, found.records, found.writes) == (2, 2, 2, 2)
    assert found.exposures == 3  # two promises of B1, one acceptance
    assert found.durable == scribe.lsn


def test_a_frame_that_leaves_before_the_sync_is_found(verify, scribe):
    scribe.ready()
    scribe.turn(promise(B1), [(1, scribe.lsn + 32, PROMISED)])
    scribe.write()
    scribe.send(PROMISED, scribe.lsn)
    scribe.sync()
    rejected(verify, scribe, "after", "leaves at 8192, and its after is 8224")


def test_a_frame_that_leaves_while_the_sync_is_under_way_is_found(verify, scribe):
    scribe.ready()
    scribe.turn(promise(B1), [(1, scribe.lsn + 32, PROMISED)])
    scribe.write()
    scribe.disk(Kind.SYNCING, FILE)
    scribe.send(PROMISED, scribe.lsn)
    scribe.disk(Kind.SYNCED, FILE)
    rejected(verify, scribe, "after", "leaves at 8192")


def test_what_is_written_after_the_sync_began_is_not_covered_by_it(verify, scribe):
    scribe.ready()
    scribe.turn(promise(B1), [(1, scribe.lsn + 32, PROMISED)])
    scribe.disk(Kind.SYNCING, FILE)
    scribe.write()
    scribe.disk(Kind.SYNCED, FILE)
    scribe.send(PROMISED, scribe.lsn)
    rejected(verify, scribe, "after", "leaves at 8192")


@pytest.mark.parametrize("change", ["bytes", "peer", "after"])
def test_a_frame_that_the_engine_did_not_make_so_is_found(verify, scribe, change):
    scribe.ready()
    scribe.turn(promise(B1), [(1, scribe.lsn + 32, PROMISED)])
    scribe.write()
    scribe.sync()
    one = frame(encode("Promise", 0, B2, first=1)) if change == "bytes" else PROMISED
    after = 0 if change == "after" else scribe.lsn
    scribe.send(one, after, peer=3 if change == "peer" else 1)
    rejected(verify, scribe, "frame", "the engine made no such frame")


def test_a_frame_for_all_may_go_to_each(verify, scribe):
    scribe.ready()
    scribe.turn(promise(B1), [(0, scribe.lsn + 32, PROMISED)])
    scribe.write()
    scribe.sync()
    for peer in (1, 3):
        scribe.send(PROMISED, scribe.lsn, peer=peer)
    assert verify(scribe).frames == 2


# --- what is durable


def test_a_position_said_to_be_durable_too_early_is_found(verify, scribe):
    scribe.ready()
    scribe.turn(promise(B1))
    scribe.write()
    scribe.durable()
    rejected(verify, scribe, "durable", "told that 8224 is durable; .* up to 8192")


def test_a_sync_that_failed_makes_nothing_durable(verify, scribe):
    """Nor does a later one of the same file, which may succeed although the bytes are lost."""
    scribe.ready()
    scribe.turn(promise(B1))
    scribe.write()
    scribe.sync(result=-5)
    scribe.sync()
    scribe.durable()
    rejected(verify, scribe, "durable", "up to 8192")


def test_a_sync_of_another_file_makes_nothing_durable(verify, scribe):
    scribe.ready()
    scribe.turn(promise(B1))
    scribe.write()
    scribe.sync(FILE + 1)
    scribe.durable()
    rejected(verify, scribe, "durable", "up to 8192")


def test_a_write_that_failed_makes_nothing_durable(verify, scribe):
    scribe.ready()
    scribe.turn(promise(B1))
    scribe.disk(Kind.WROTE, FILE, offset=4096, count=32, result=-28)
    scribe.sync()
    scribe.durable()
    rejected(verify, scribe, "durable", "up to 8192")


def test_a_position_beyond_a_gap_is_not_durable(verify, scribe):
    scribe.ready()
    scribe.turn(promise(B1))
    scribe.disk(Kind.WROTE, FILE, offset=4096, count=32, result=-28)  # lost, and gone on
    scribe.unwritten, scribe.written = b"", scribe.lsn
    scribe.turn(promise(B2))
    scribe.write()
    rejected(verify, scribe, "journal", "were not emitted")


def test_other_bytes_than_those_emitted_are_found(verify, scribe):
    scribe.ready()
    scribe.turn(accept(1, B1))
    scribe.write(damage=True)
    rejected(verify, scribe, "journal", "what was written at 8192 is not what was emitted")


def test_bytes_that_were_never_emitted_are_found(verify, scribe):
    scribe.ready()
    scribe.unwritten = promise(B1)
    scribe.write()
    rejected(verify, scribe, "journal", "were not emitted by the engine")


def test_records_before_the_header_of_their_segment_is_durable_are_found(verify, scribe):
    scribe.header()
    scribe.turn(promise(B1))
    scribe.write()
    rejected(verify, scribe, "journal", "before the segment's header is durable")


def test_a_segment_begun_before_all_before_it_is_durable_is_found(verify, scribe):
    scribe.ready()
    scribe.turn(promise(B1))
    scribe.write()
    scribe.generation = 4
    scribe.header(FILE + 1)
    rejected(verify, scribe, "journal", "begins at 8224 while everything up to 8192 is durable")


def test_a_roll_into_another_segment_is_followed(verify, scribe):
    scribe.ready()
    scribe.exchange(promise(B1), PROMISED)
    scribe.generation = 4
    scribe.header(FILE + 1)
    scribe.sync(FILE + 1)
    scribe.turn(accept(1, B1), [(1, scribe.lsn + align8(32 + len(X)), ACCEPTED)])
    scribe.write(FILE + 1)
    scribe.sync(FILE + 1)
    scribe.durable()
    scribe.send(ACCEPTED, scribe.lsn)
    assert verify(scribe).durable == scribe.lsn > START_LSN + 32


# --- what a frame says, whatever its `after` is

NO_PROMISE = {
    "Prepare": encode("Prepare", 0, B2, first=1),
    "Promise": encode("Promise", 0, B2, first=1),
    "Accept": encode("Accept", 0, B2, X, instance=1, first=1, nbytes=len(X)),
    "Accepted": encode("Accepted", 0, B2, first=1, through=0),
    "Refuse": encode("Refuse", 0, B1, promised=B2, reason=1),
    "Heartbeat": encode("Heartbeat", 0, 0, struct.pack("<IIQ", 0, 0, B2), seq=1, count=1),
}


@pytest.mark.parametrize("name", NO_PROMISE)
@pytest.mark.parametrize("how", ["absent", "unsynced", "lower", "durable"])
def test_a_message_that_exposes_a_promise_without_its_record_is_found(verify, scribe, name, how):
    one = frame(NO_PROMISE[name])
    scribe.ready()
    scribe.turn({"absent": b"", "lower": promise(B1)}.get(how, promise(B2)), [(0, 0, one)])
    if how != "absent":
        scribe.write()
        if how != "unsynced":
            scribe.sync()
    scribe.send(one)
    if how == "durable":
        assert verify(scribe).exposures > 0
        return
    rejected(verify, scribe, "U5", f"{name} .* leaves, and the promise that is durable")


REPORTED = struct.pack("<QQII", 3, B1, len(X), 0) + X.ljust(align8(len(X)), b"\0")
VOTES = {
    "acknowledged": encode("Accepted", 0, B2, first=1, through=3),
    "reported": encode("Promise", 0, B2, REPORTED, first=1, count=1),
    "held": encode("Prepare", 0, B2, struct.pack("<QQQ", 3, 3, B1), first=1, holds=1),
}


def votes(scribe, name, instances, number):
    one = frame(VOTES[name])
    made = promise(B2) + b"".join(accept(i, number) for i in instances)
    scribe.ready()
    scribe.turn(made, [(1, 0, one)])
    scribe.write()
    scribe.sync()
    scribe.send(one)


@pytest.mark.parametrize("name", VOTES)
def test_a_message_that_exposes_acceptances_with_their_records_is_right(verify, scribe, name):
    votes(scribe, name, (1, 2, 3), B2 if name == "acknowledged" else B1)
    assert verify(scribe).exposures == 2


@pytest.mark.parametrize("name", VOTES)
def test_an_acceptance_in_another_ballot_is_found(verify, scribe, name):
    votes(scribe, name, (1, 2, 3), B1 if name == "acknowledged" else B3)
    rejected(verify, scribe, "U5", "is not durable in that ballot")


@pytest.mark.parametrize("name", VOTES)
def test_an_acceptance_without_a_record_is_found(verify, scribe, name):
    votes(scribe, name, (1, 2), B2 if name == "acknowledged" else B1)
    rejected(verify, scribe, "U5", "instance 3 is not durable")


def test_an_acknowledgement_across_a_hole_is_found(verify, scribe):
    votes(scribe, "acknowledged", (1, 3), B2)
    rejected(verify, scribe, "U5", "instance 2 is not durable")


@pytest.mark.parametrize("how", ["learned", "chosen", "settled", "replayed", "floor", "installed"])
def test_an_acknowledgement_may_cover_what_is_known_to_be_chosen(verify, how):
    said = [encode_record(SETTLED, 0, 2, 1, b"")] if how == "replayed" else []
    scribe = Scribe(settled=2 if how == "settled" else 0, replayed=said)
    if how == "floor":
        scribe.told(Kind.FLOOR, first=3)
    elif how == "installed":
        scribe.told(Kind.INSTALL, first=2)
    one = frame(VOTES["acknowledged"])
    made = promise(B2) + accept(3, B2)
    if how == "learned":
        made += b"".join(encode_record(CHOSEN, 0, i, 0, X) for i in (1, 2))
    scribe.ready()
    scribe.turn(made, [(1, 0, one)], [(0, 1, 2)] if how == "chosen" else [])
    scribe.write()
    scribe.sync()
    scribe.send(one)
    assert verify(scribe).exposures == 2


def test_an_install_that_was_refused_makes_nothing_chosen(verify, scribe):
    scribe.told(Kind.INSTALL, first=2, result=(1 << 32) - 1)
    votes(scribe, "acknowledged", (3,), B2)
    rejected(verify, scribe, "U5", "instance 1 is not durable")


# --- several traces


def life(tmp_path, name, node, records, *, incarnation=1, replayed=(), exposed=b"", sync=True):
    scribe = Scribe(node, incarnation=incarnation, replayed=replayed)
    scribe.ready()
    frames = [(1, 0, frame(exposed))] if exposed else []
    scribe.turn(records, frames)
    scribe.write()
    if sync:
        scribe.sync()
    if exposed:
        scribe.send(frame(exposed))
    return scribe.save(tmp_path / f"{name}.trace")


def test_two_values_chosen_for_one_instance_are_found(tmp_path):
    paths = [
        life(tmp_path, "a", 1, promise(B1) + accept(1, B1, X)),
        life(tmp_path, "b", 2, promise(B1) + accept(1, B1, X) + promise(B2) + accept(1, B2, Y)),
    ]
    assert len(check_all(paths, replay=False)) == 2  # Y has one vote
    paths.append(life(tmp_path, "c", 3, promise(B2) + accept(1, B2, Y)))
    with pytest.raises(Finding, match=r"chosen in ballot 1\.1, another in 2\.1"):
        check_all(paths, replay=False)


def test_a_vote_that_was_never_synced_does_not_count(tmp_path):
    paths = [
        life(tmp_path, "a", 1, promise(B1) + accept(1, B1, X)),
        life(tmp_path, "b", 2, promise(B1) + accept(1, B1, X) + promise(B2) + accept(1, B2, Y)),
        life(tmp_path, "c", 3, promise(B2) + accept(1, B2, Y), sync=False),
    ]
    assert len(check_all(paths, replay=False)) == 3


def test_two_values_of_one_ballot_are_found(tmp_path):
    paths = [
        life(tmp_path, "a", 1, promise(B1) + accept(1, B1, X)),
        life(tmp_path, "b", 2, promise(B1) + accept(1, B1, Y)),
    ]
    with pytest.raises(Finding, match=r"two values for group 0, instance 1, ballot 1\.1") as caught:
        check_all(paths, replay=False)
    assert caught.value.rule == "U6"


@pytest.mark.parametrize("kept", [True, False])
def test_a_promise_forgotten_over_a_restart_is_found(tmp_path, kept):
    told = encode("Promise", 0, B2, first=1)
    first = life(tmp_path, "a", 2, promise(B2), exposed=told)
    replayed = [promise(B2 if kept else B1)]
    second = life(tmp_path, "b", 2, promise(B1), incarnation=2, replayed=replayed)
    if kept:
        assert len(check_all([second, first], replay=False)) == 2
        return
    with pytest.raises(Finding, match=r"told of its promise 2.1 .* now its journal has 1.1"):
        check_all([second, first], replay=False)


@pytest.mark.parametrize("how", ["sent", "unseen", "limited", "other life"])
def test_a_frame_that_was_received_and_never_seen_to_leave_is_found(tmp_path, how):
    one = frame(encode("Confirm", 0, B1, through=0), source=2, dest=1)
    sender = Scribe(2)
    if how == "sent":
        sender.turn(b"", [(1, 0, one)])
        sender.send(one)
    if how == "limited":
        sender.add(Kind.LIMIT, b"")
    receiver = Scribe(1)
    incarnation = 2 if how == "other life" else 1  # of that one there is no trace
    receiver.told(Kind.CONNECTED, peer=2, first=incarnation, body=bytes(16))
    receiver.told(Kind.RECEIVE, peer=2, body=one[32:])
    paths = [receiver.save(tmp_path / "a.trace"), sender.save(tmp_path / "b.trace")]
    if how == "unseen":
        with pytest.raises(Finding, match=r"bytes came from node 2, incarnation 1") as caught:
            check_all(paths, replay=False)
        assert caught.value.rule == "unseen"
        return
    assert check_all(paths, replay=False)[0].received == 1


# --- files


def test_a_trace_torn_anywhere_is_right_as_far_as_it_goes(verify, scribe, tmp_path):
    scribe.ready()
    scribe.exchange(promise(B1), PROMISED)
    whole = b"".join(scribe.events)
    path = tmp_path / "torn.trace"
    lengths = set()
    for end in range(len(scribe.events[0]), len(whole)):
        path.write_bytes(whole[:end])
        found = check(path, replay=False)
        lengths.add(found.events)
    assert lengths == set(range(1, len(scribe.events)))


def test_a_damaged_trace_is_no_trace(verify, scribe, tmp_path):
    scribe.ready()
    scribe.exchange(promise(B1), PROMISED)
    whole = bytearray(b"".join(scribe.events))
    whole[len(whole) // 2] ^= 1
    path = tmp_path / "damaged.trace"
    path.write_bytes(whole)
    with pytest.raises(BadTrace, match=r"bad checksum|impossible length|unknown kind"):
        check(path, replay=False)
    path.write_bytes(bytes(64))
    with pytest.raises(BadTrace):
        check(path)


def test_the_command_says_what_it_found(scribe, tmp_path, capsys, recorded):
    assert main([str(path) for path in recorded]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == len(recorded)
    assert '"closed": true' in told[0]
    assert main([]) == 2
    assert main(["--wrong"]) == 2
    assert main([str(tmp_path / "nothing")]) == 2
    assert main([__file__]) == 2
    capsys.readouterr()
    scribe.turn(b"", [(1, 0, frame(encode("Promise", 0, ballot(9, 1), first=1)))])
    scribe.send(frame(encode("Promise", 0, ballot(9, 1), first=1)))
    assert main(["--no-replay", str(scribe.save(tmp_path / "bad.trace"))]) == 1
    assert "U5: 0→0 Promise g0 b(9.1)" in capsys.readouterr().err
