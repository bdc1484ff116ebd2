"""What is said to nodes that are not known, and what they get to know: no engine, no thread."""

import os
import socket
import struct

import pytest
from transport_lab import HELLO, REFUSED, connected, settle, step, talk

from phx._core.codec import encode_frame
from phx._core.transport_door import TransportDoor

JOIN, PEERS = 11, 12
UNKNOWN, CLUSTER = 6, 7


def join(
    source: int,
    *,
    dest: int = 0,
    cluster: int = 1,
    versions: tuple[int, int] = (5, 5),
    nbytes: int = 40,
    kind: int = JOIN,
) -> bytes:
    payload = struct.pack("<HHI16sQII", *versions, 1, b"s" * 16, 0, 0, 0)
    return encode_frame(kind, source, dest, cluster, payload.ljust(nbytes, b"x")[:nbytes])


@pytest.fixture
def door(make) -> TransportDoor:
    """Node 2, which knows nodes 1 and 3."""
    made: TransportDoor = make(2, handshake_us=300_000)
    made.set_peer(1, 0)
    made.set_peer(3, 0)
    return made


def reason(answer: bytes) -> int:
    assert struct.unpack_from("<H", answer, 6) == (REFUSED,)
    return int(struct.unpack_from("<I", answer, 32)[0])


@pytest.mark.parametrize("source", [1, 3, 9, 1_048_575])
@pytest.mark.parametrize("nbytes", [40, 41, 256])
def test_who_asks_who_is_there_is_handed_over_known_or_not(door, source, nbytes):
    port = door.listen()
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(join(source, nbytes=nbytes) + b"more")
        found = []
        step(door, until=lambda: bool(found.extend(door.handed()) or found))
        ((descriptor, node, said),) = found
        try:
            assert node == source
            assert said.startswith(join(source, nbytes=nbytes))
        finally:
            os.close(descriptor)
    assert door.status()["connections"] == 0
    assert door.changes() == []


HOSTILE = {
    "nobody": (join(0), "not the id of another node"),
    "the node itself": (join(2), "not the id of another node"),
    "no node id": (join(1_048_576), "not the id of another node"),
    "for another node": (join(9, dest=3), "another node"),
    "no common protocol version": (join(9, versions=(7, 9)), "protocol version"),
    "short": (join(9, nbytes=39), "too short"),
    "empty": (join(9, nbytes=0), "too short"),
    "long": (join(9, nbytes=257), "above the limit"),
    "an answer": (join(9, kind=PEERS), "no place here"),
    "half": (join(9)[:50], "handshake took too long"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_questions_close_the_connection_with_one_line(door, name):
    data, why = HOSTILE[name]
    talk(door, door.listen(), data)
    settle(door, turns=3)
    assert [why in line for line in door.lines()] == [True]
    assert door.handed() == []
    assert door.status()["connections"] == 0


def test_a_question_after_the_handshake_has_no_place(door):
    hello = encode_frame(HELLO, 1, 2, 1, struct.pack("<HHI16sQII", 5, 5, 1, b"s" * 16, 0, 0, 0))
    talk(door, door.listen(), hello + join(1))
    assert door.changes() == [(1, True), (1, False)]
    assert door.handed() == []


def test_who_was_known_with_another_store_is_refused(door):
    door.refuse(9)
    answer = talk(door, door.listen(), join(9))
    assert reason(answer) == 3
    assert door.handed() == []


def test_too_many_that_wait_are_told_so(door):
    port = door.listen()
    waiting = []
    try:
        for _ in range(16):
            waiting.append(socket.create_connection(("127.0.0.1", port)))
            waiting[-1].sendall(join(9))
        step(door, until=lambda: door.status()["connections"] == 0)
        assert reason(talk(door, port, join(9))) == 5
    finally:
        for one in waiting:
            one.close()
    found = door.handed()
    assert len(found) == 16
    for descriptor, _, _ in found:
        os.close(descriptor)


def test_not_known_and_another_cluster_are_told_apart(door):
    port = door.listen()
    hello = join(9, dest=2, kind=HELLO)
    answer = talk(door, port, hello)
    assert reason(answer) == UNKNOWN
    assert answer.endswith(b"not a node that is known here")
    for kind in (HELLO, JOIN):
        answer = talk(door, port, join(9, dest=2, kind=kind, cluster=77))
        assert reason(answer) == CLUSTER
        assert struct.unpack_from("<IIQ", answer, 16) == (2, 9, 77), "in terms that it understands"


def test_who_is_not_known_is_connected_as_soon_as_it_is(make):
    one, two = make(1), make(2)
    one.set_peer(2, two.listen())
    step(one, two, until=lambda: one.status()["links"][2]["refused"] == UNKNOWN)
    assert two.status()["links"] == {}
    two.set_peer(1, 0)
    step(one, two, until=lambda: connected(one, 2) and connected(two, 1))
    assert one.status()["links"][2]["refused"] == 0


def test_who_is_let_go_of_leaves_nothing_behind(make):
    """Frames that wait for the journal, or for the socket; a connection, or an attempt to make one;
    and what comes of it at the other side."""
    one, two = make(1, peer_queue_bytes_max=1 << 24), make(2)
    port = two.listen()
    two.set_peer(1, 0)
    for round_ in range(3):
        one.set_peer(2, port)
        step(one, two, until=lambda: connected(one, 2) and connected(two, 1))
        one.changes(), two.changes()
        one.send(2, b"for nobody", after=round_ + 5)
        for _ in range(100):
            one.send(2, bytes(1 << 16))
        one.step()  # the socket takes a part of it
        one.drop_peer(2)
        assert one.status()["links"] == {}
        assert one.status()["connections"] == 0
        assert one.changes() == [], "whoever drops it knows"
        one.send(2, b"no such peer")
        step(one, two, until=lambda: not connected(two, 1))
        assert two.changes()[-1] == (1, False)
        two.frames()
    one.set_peer(2, port)
    one.step()  # it is being dialled
    one.drop_peer(2)
    one.drop_peer(2)
    assert one.status()["connections"] == 0


def test_sixty_three_peers_are_all(make):
    door = make(1)
    for node in range(2, 70):
        door.set_peer(node, 0)
    assert sorted(door.status()["links"]) == list(range(2, 65))
    door.drop_peer(30)
    door.set_peer(100, 0)
    assert 100 in door.status()["links"]


# --- addresses that change


def test_a_changed_address_ends_what_was_dialled_and_nothing_else(make, port):
    one, two, other = make(1), make(2), make(2)
    two.set_peer(1, 0)
    other.set_peer(1, 0)
    first, second = two.listen(port=port), other.listen()
    one.set_peer(2, first)
    step(one, two, until=lambda: connected(one, 2) and connected(two, 1))
    one.set_peer(2, first)
    assert connected(one, 2), "it is where it was"
    one.set_peer(2, second, looked_up=True)
    assert connected(one, 2), "for the next attempt"
    one.set_peer(2, first, looked_up=True)
    two.set_peer(1, 9)
    assert connected(two, 1), "the other side dialled"
    one.set_peer(2, second)
    assert not connected(one, 2)
    step(one, other, until=lambda: connected(one, 2) and connected(other, 1))
    step(one, two, until=lambda: not connected(two, 1))


def test_an_attempt_is_given_up_when_a_look_up_leads_elsewhere(make):
    with socket.socket() as full:  # takes no connection: its queue is full
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        queued = []
        for _ in range(3):
            queued.append(socket.socket())
            queued[-1].setblocking(False)
            queued[-1].connect_ex(full.getsockname())
        one, two = make(1, handshake_us=60_000_000), make(2)
        two.set_peer(1, 0)
        one.set_peer(2, full.getsockname()[1], named=True)
        settle(one, turns=3)
        assert one.dialing() == [2]
        assert one.status()["connections"] == 1
        one.set_peer(2, two.listen(), looked_up=True)
        step(one, two, until=lambda: connected(one, 2) and connected(two, 1))
        assert one.dialing() == [], "that attempt goes where its look-up has led"
        for extra in queued:
            extra.close()
    one.set_peer(9, 1, looked_up=True)
    assert 9 not in one.status()["links"], "of one that was let go of meanwhile"
