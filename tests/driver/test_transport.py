"""Connections between nodes: handshake, framing, queues; no engine, no thread."""

import contextlib
import random
import socket
import struct

import pytest
from transport_lab import ENGINE, HELLO, REFUSED, connected, settle, step, talk

from phx._core.codec import encode_frame
from phx._core.transport_door import TransportDoor


def link(door: TransportDoor, peer: int) -> dict:
    return door.status()["links"][peer]


@pytest.fixture
def pair(make, port) -> tuple[TransportDoor, TransportDoor]:
    """Two connected nodes; 1 has dialled 2, which listens at `port`."""
    one, two = make(1), make(2)
    one.set_peer(2, two.listen(port=port))
    two.set_peer(1, 0)
    step(one, two, until=lambda: connected(one, 2) and connected(two, 1))
    return one, two


def hello(node: int, *, dest: int = 0, cluster: int = 1, versions=(5, 5), kind=HELLO) -> bytes:
    payload = struct.pack("<HHI16sQII", *versions, 1, b"s" * 16, 0, 0, 0)
    return encode_frame(kind, node, dest, cluster, payload)


# --- handshake


def test_the_lower_node_dials_and_both_learn_of_it(pair):
    one, two = pair
    assert one.changes() == [(2, True)]
    assert two.changes() == [(1, True)]
    assert one.status()["connections"] == two.status()["connections"] == 1
    assert any("connected to node 2" in line for line in one.lines())


def test_the_higher_node_never_dials(make):
    one, two = make(1), make(2)
    two.set_peer(1, one.listen())
    one.set_peer(2, 0)
    settle(one, two)
    assert two.status()["connections"] == one.status()["connections"] == 0


def test_a_peer_that_is_away_is_dialled_until_it_is_there(make):
    with socket.socket() as taken:  # nobody listens here, and nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        one = make(1)
        one.set_peer(2, port)
        settle(one, turns=40)
        lines = [line for line in one.lines() if "node 2" in line]
        assert len(lines) == 1, "one line for a peer that stays away, not one for each attempt"
    two = make(2)
    two.set_peer(1, 0)
    two.listen(port=port)
    step(one, two, until=lambda: connected(one, 2) and connected(two, 1))


def test_a_peer_that_the_node_refuses_is_told_and_not_connected(make):
    one, two = make(1, handshake_us=300_000), make(2, refuse=1)
    one.set_peer(2, two.listen())
    two.set_peer(1, 0)
    step(one, two, until=lambda: bool(two.lines()))
    settle(one, two)
    assert one.changes() == []
    assert two.changes() == []
    assert any("refused by the other side: another store" in line for line in one.lines())


def test_an_impostor_that_is_refused_leaves_the_good_connection_alone(make, port):
    one, two = make(1), make(2)
    one.set_peer(2, two.listen(port=port))
    two.set_peer(1, 0)
    step(one, two, until=lambda: connected(one, 2) and connected(two, 1))
    two.refuse(1)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(hello(1, dest=2))
        step(one, two, until=lambda: any("another store" in line for line in two.lines()))
    settle(one, two)
    assert two.changes() == [(1, True)]
    assert link(one, 2)["connects"] == 1
    two.send(1, b"as before")
    step(one, two, until=lambda: one.frames() == [(2, b"as before")])


def test_twenty_reconnects_leave_one_connection(pair, port):
    one, two = pair
    for round_ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            # A newer connection of a known peer replaces the older one.
            stranger.sendall(hello(1, dest=2))
            step(one, two, until=lambda n=round_: link(two, 1)["connects"] >= 2 * n + 2)
        step(one, two, until=lambda n=round_: link(two, 1)["connects"] >= 2 * n + 3)
        step(one, two, until=lambda: connected(one, 2) and connected(two, 1))
    settle(one, two)
    assert one.status()["connections"] == two.status()["connections"] == 1
    assert one.changes()[-1] == (2, True)
    assert two.changes()[-1] == (1, True)


# --- frames


def test_frames_arrive_whole_and_in_order(pair):
    one, two = pair
    dice = random.Random(7)
    sent = [dice.randbytes(dice.choice([0, 1, 100, 5_000, 65_536])) for _ in range(300)]
    got: list[bytes] = []
    at = 0
    while len(got) < len(sent):
        while at < len(sent) and link(one, 2)["queued_bytes"] < 500_000:
            one.send(2, sent[at])
            at += 1
        one.step()
        two.step(1)
        got += [payload for _, payload in two.frames()]
    assert got == sent
    assert link(one, 2)["queued_bytes"] == 0


def test_a_broadcast_reaches_every_connected_peer(make):
    doors = {node: make(node) for node in (1, 2, 3)}
    ports = {node: door.listen() for node, door in doors.items()}
    for node, door in doors.items():
        for other in doors:
            if other != node:
                door.set_peer(other, ports[other])
    step(
        *doors.values(),
        until=lambda: all(
            connected(door, other)
            for node, door in doors.items()
            for other in doors
            if other != node
        ),
    )
    doors[2].send(0, b"to all")
    settle(*doors.values(), turns=5)
    assert doors[1].frames() == [(2, b"to all")]
    assert doors[3].frames() == [(2, b"to all")]


def test_no_frame_leaves_before_its_record_is_durable(pair):
    one, two = pair
    one.send(2, b"waits for 300", after=300)
    one.send(2, b"free")
    one.send(2, b"waits for 100", after=100)
    one.send(2, b"waits for 300 too", after=300)
    settle(one, two)
    assert two.frames() == [(1, b"free")]
    one.release(99)
    settle(one, two)
    assert two.frames() == []
    assert link(one, 2)["held"] == 3
    one.release(299)
    settle(one, two)
    assert two.frames() == [(1, b"waits for 100")]
    one.release(300)
    settle(one, two)
    assert two.frames() == [(1, b"waits for 300"), (1, b"waits for 300 too")]
    one.send(2, b"durable already", after=250)
    settle(one, two)
    assert two.frames() == [(1, b"durable already")]


def test_a_broadcast_waits_for_its_record_too(pair):
    one, two = pair
    one.send(0, b"waits for 100", after=100)
    settle(one, two)
    assert two.frames() == []
    one.release(99)
    settle(one, two)
    assert two.frames() == []
    one.release(100)
    settle(one, two)
    assert two.frames() == [(1, b"waits for 100")]


def test_a_full_queue_drops_the_new_frames_and_counts_them(make):
    one, two = make(1, peer_queue_bytes_max=100_000), make(2)
    one.set_peer(2, two.listen())
    two.set_peer(1, 0)
    step(one, two, until=lambda: connected(one, 2) and connected(two, 1))
    for number in range(10):
        one.send(2, bytes([number]) * 30_000, after=10)
    status = link(one, 2)
    assert status["held"] == 3
    assert status["dropped"] == 7
    assert status["queued_bytes"] <= 100_000
    one.release(10)
    step(one, two, until=lambda: link(one, 2)["queued_bytes"] == 0)
    settle(one, two)
    assert [payload[0] for _, payload in two.frames()] == [0, 1, 2]


def test_frames_for_a_peer_that_is_away_are_dropped(make):
    one = make(1)
    one.set_peer(2, 0)
    one.send(2, b"nobody there")
    one.send(0, b"nobody at all")
    one.send(9, b"no such peer")
    assert link(one, 2)["dropped"] == 1
    assert link(one, 2)["queued_bytes"] == 0


def test_what_was_queued_is_gone_after_a_reconnect(make):
    one, two = make(1), make(2)
    port = two.listen()
    one.set_peer(2, port)
    two.set_peer(1, 0)
    step(one, two, until=lambda: connected(one, 2) and connected(two, 1))
    one.send(2, b"of the old connection", after=5)
    two.close()
    step(one, until=lambda: not connected(one, 2))
    assert link(one, 2)["held"] == 0
    again = make(2)
    again.set_peer(1, 0)
    again.listen(port=port)
    step(one, again, until=lambda: connected(one, 2) and connected(again, 1))
    one.release(5)
    one.send(2, b"of the new one")
    settle(one, again)
    assert again.frames() == [(1, b"of the new one")]


def test_a_silent_connection_is_closed_and_made_again(make):
    one, two = make(1, silence_us=200_000), make(2, silence_us=60_000_000)
    one.set_peer(2, two.listen())
    two.set_peer(1, 0)
    step(one, two, until=lambda: connected(one, 2) and connected(two, 1))
    step(one, two, until=lambda: link(one, 2)["connects"] == 2)
    assert any("nothing was heard" in line for line in one.lines())


# --- hostile bytes


@pytest.fixture
def open_door(make):
    """A node that listens and knows nodes 1 and 3; strangers talk to it by socket."""
    door = make(2, handshake_us=300_000)
    door.set_peer(1, 0)
    door.set_peer(3, 0)
    return door, door.listen()


def oversize() -> bytes:
    frame = bytearray(encode_frame(HELLO, 1, 2, 1, b"x" * 40))
    frame[8:12] = struct.pack("<I", 0xFFFFFFFF)
    return bytes(frame)


def flipped() -> bytes:
    frame = bytearray(hello(1, dest=2))
    frame[40] ^= 1
    return bytes(frame)


def other_version() -> bytes:
    frame = bytearray(hello(1, dest=2))
    frame[4] = 9
    return bytes(frame)


HOSTILE = {
    "random bytes": (random.Random(1).randbytes(10_000), "not a frame"),
    "http": (b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n", "not a frame"),
    "oversize length": (oversize(), "above the limit"),
    "large for a handshake": (encode_frame(HELLO, 1, 2, 1, b"x" * 300), "above the limit"),
    "flipped bit": (flipped(), "bad checksum"),
    "unknown frame version": (other_version(), "unknown frame version"),
    "no common protocol version": (hello(1, dest=2, versions=(7, 9)), "protocol version"),
    "foreign cluster": (hello(1, dest=2, cluster=77), "another cluster"),
    "for another node": (hello(1, dest=3), "another node"),
    "not a peer": (hello(9, dest=2), "not a node that is known here"),
    "the node itself": (hello(2, dest=2), "not the id of another node"),
    "nobody": (hello(0, dest=2), "not the id of another node"),
    "no node id": (hello(1 << 20, dest=2), "not the id of another node"),
    "the wrong side dials": (hello(3, dest=2), "not a node that connects here"),
    "short hello": (encode_frame(HELLO, 1, 2, 1, b"x" * 20), "too short"),
    "no hello first": (encode_frame(ENGINE, 1, 2, 1, b"x" * 40), "no place here"),
    "unknown kind": (hello(1, dest=2, kind=77), "no place here"),
    "hangs up": (b"", "handshake took too long"),
    "half a hello": (hello(1, dest=2)[:50], "handshake took too long"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_close_the_connection_with_one_line(open_door, name):
    door, port = open_door
    data, reason = HOSTILE[name]
    talk(door, port, data)
    settle(door, turns=3)
    lines = door.lines()
    assert [reason in line for line in lines] == [True], lines
    assert door.changes() == []
    assert door.frames() == []
    assert door.status()["connections"] == 0
    assert door.status()["rejected"] == 1


def test_hostile_bytes_after_a_good_handshake_close_the_connection(open_door):
    door, port = open_door
    for bad in (
        random.Random(2).randbytes(500),
        oversize(),
        hello(1, dest=2),
        encode_frame(ENGINE, 3, 2, 1, b"of another node"),
    ):
        talk(door, port, hello(1, dest=2) + bad)
        assert door.changes() == [(1, True), (1, False)]
        assert door.frames() == []
    assert door.status()["connections"] == 0


def test_refusals_are_told_in_a_frame(open_door):
    door, port = open_door
    answer = talk(door, port, hello(1, dest=2, versions=(7, 9)))
    assert answer[6:8] == struct.pack("<H", REFUSED)
    assert answer.endswith(b"no common protocol version")


def test_a_flood_of_strangers_neither_grows_nor_floods_the_log(open_door):
    door, port = open_door
    for _ in range(150):
        talk(door, port, b"nonsense, but long enough to be looked at as the head of a frame")
    status = door.status()
    assert status["connections"] == 0
    assert status["rejected"] == 150
    assert len(door.lines()) <= 20


def test_unfinished_handshakes_are_bounded_and_a_peer_still_gets_in(make):
    door = make(2, handshake_us=30_000_000)
    door.set_peer(1, 0)
    port = door.listen()
    strangers = []
    try:
        for _ in range(120):
            strangers.append(socket.create_connection(("127.0.0.1", port)))
            door.step()
        assert door.status()["connections"] <= 64
        assert door.status()["buffer_bytes"] <= 64 * 512
        one = make(1)
        one.set_peer(2, port)
        step(one, door, until=lambda: connected(door, 1) and connected(one, 2))
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_buffer_never_grows_beyond_one_frame(make):
    door = make(2, payload_bytes_max=200_000)
    door.set_peer(1, 0)
    port = door.listen()
    frame = encode_frame(ENGINE, 1, 2, 1, b"y" * 200_000)
    got = 0
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(hello(1, dest=2))
        peer.setblocking(False)
        left = frame * 20
        while got < 20:
            with contextlib.suppress(BlockingIOError):
                left = left[peer.send(left[:50_000]) :]
            door.step(1)
            got += len(door.frames())
            assert door.status()["buffer_bytes"] <= 200_000 + 32
