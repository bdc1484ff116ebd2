"""A connection that comes for a checkpoint is checked like any other, and handed to Python."""

import contextlib
import os
import random
import re
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driver_lab import CLUSTER, Lab
from test_transport import hello
from transport_lab import settle, step, talk

from phx._core.codec import encode_frame, frame_fields
from phx._core.driver import DriverError
from phx._core.transport_door import TransportDoor
from phx.transfer import messages
from phx.transfer.messages import FETCH, FETCH_BYTES_MAX

REFUSED = 3
WAITING_MAX = 16


def fetch(
    node: int,
    *,
    dest: int = 2,
    cluster: int = 1,
    versions: tuple[int, int] | None = None,
    incarnation: int = 1,
    store_id: bytes = b"s" * 16,
    window: int = 0,
    rest: bytes = b"what is wanted",
) -> bytes:
    ours = frame_fields(encode_frame(FETCH, 0, 0, 0, b""))[1]
    low, high = versions or (ours, ours)
    payload = struct.pack("<HHI16sQII", low, high, incarnation, store_id, 0, window, 0)
    return encode_frame(FETCH, node, dest, cluster, payload + rest)


@pytest.fixture
def door(no_leaks: None) -> Iterator[tuple[TransportDoor, int]]:
    """Node 2, which knows nodes 1 and 3; strangers talk to it by socket."""
    made = TransportDoor(2, handshake_us=300_000)
    made.set_peer(1, 0)
    made.set_peer(3, 0)
    yield made, made.listen()
    made.close()


@contextlib.contextmanager
def stranger(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.settimeout(5)
        yield one


def handed(door: TransportDoor) -> list[tuple[int, int, bytes]]:
    found: list[tuple[int, int, bytes]] = []

    def there() -> bool:
        found.extend(door.handed())
        return bool(found)

    step(door, until=there)
    return found


@pytest.mark.parametrize("node", [1, 3])
@pytest.mark.parametrize("piece", [1, 7, 2000])
def test_it_is_handed_over_with_all_that_was_read_of_it(
    door: tuple[TransportDoor, int], node: int, piece: int
) -> None:
    """From below and from above: whoever needs something dials."""
    two, port = door
    said = fetch(node, rest=random.Random(node).randbytes(FETCH_BYTES_MAX - 40))
    with stranger(port) as one:
        for at in range(0, len(said), piece):
            one.sendall(said[at : at + piece])
            two.step()
        [(descriptor, peer, data)] = handed(two)
        with socket.socket(fileno=descriptor) as other:
            assert (peer, data) == (node, said)
            assert two.status()["connections"] == 0
            settle(two, turns=5)
            two.step()
            other.setblocking(True)
            other.sendall(b"answer")
            assert one.recv(100) == b"answer"
            one.sendall(b"and on")
            assert other.recv(100) == b"and on"
    assert two.lines() == []
    assert two.changes() == []
    assert two.status()["rejected"] == 0


def test_what_comes_right_behind_is_not_lost(door: tuple[TransportDoor, int]) -> None:
    two, port = door
    said = fetch(1) + bytes(range(256)) * 20
    with stranger(port) as one:
        one.sendall(said)
        [(descriptor, _, data)] = handed(two)
        with socket.socket(fileno=descriptor) as other:
            other.setblocking(True)
            other.settimeout(5)
            while len(data) < len(said):
                data += other.recv(4096)
    assert data == said


def test_a_peer_that_is_connected_stays_so(no_leaks: None) -> None:
    one, two = TransportDoor(1), TransportDoor(2)
    try:
        port = two.listen()
        one.set_peer(2, port)
        two.set_peer(1, 0)
        step(one, two, until=lambda: two.changes() == [(1, True)])
        with stranger(port) as more:
            more.sendall(fetch(1))
            [(descriptor, _, _)] = handed(two)
            os.close(descriptor)
        settle(one, two)
        assert two.changes() == []
        assert one.changes() == [(2, True)]
    finally:
        one.close()
        two.close()


def test_no_more_wait_than_may(door: tuple[TransportDoor, int]) -> None:
    two, port = door
    before = len(os.listdir("/dev/fd"))
    with contextlib.ExitStack() as stack:
        for _ in range(WAITING_MAX):
            stack.enter_context(stranger(port)).sendall(fetch(1))
            settle(two, turns=2)
        step(two, until=lambda: two.status()["connections"] == 0)
        answer = talk(two, port, fetch(3))
        assert answer[6:8] == struct.pack("<H", REFUSED)
        assert answer.endswith(b"too many connections wait")
        assert len(os.listdir("/dev/fd")) == before + 2 * WAITING_MAX
        found = two.handed()
        assert [peer for _, peer, _ in found] == [1] * WAITING_MAX
        for descriptor, _, _ in found:
            os.close(descriptor)
        stack.enter_context(stranger(port)).sendall(fetch(3))
        [(descriptor, peer, _)] = handed(two)
        assert peer == 3
        os.close(descriptor)
    assert len(os.listdir("/dev/fd")) == before


def test_those_that_nobody_took_are_closed_with_it(no_leaks: None) -> None:
    two = TransportDoor(2)
    two.set_peer(1, 0)
    port = two.listen()
    with stranger(port) as one, stranger(port) as other:
        one.sendall(fetch(1))
        other.sendall(fetch(1)[:60])
        settle(two)
        two.close()
        assert one.recv(1) == b""
        assert other.recv(1) == b""


BAD = {
    "no common protocol version": (fetch(1, versions=(70, 90)), "protocol version"),
    "foreign cluster": (fetch(1, cluster=77), "another cluster"),
    "for another node": (fetch(1, dest=3), "another node"),
    "not a peer": (fetch(9), "not a node that is known here"),
    "the node itself": (fetch(2), "not the id of another node"),
    "nobody": (fetch(0), "not the id of another node"),
    "short": (encode_frame(FETCH, 1, 2, 1, b"x" * 39), "too short"),
    "empty": (encode_frame(FETCH, 1, 2, 1, b""), "too short"),
    "too long": (fetch(1, rest=bytes(FETCH_BYTES_MAX - 39)), "above the limit"),
    "flipped bit": (fetch(1)[:70] + b"\1" + fetch(1)[71:], "bad checksum"),
    "half of one": (fetch(1)[:-1], "handshake took too long"),
    "a hello as long as a fetch": (encode_frame(1, 1, 2, 1, bytes(600)), "above the limit"),
    "another frame of a transfer": (encode_frame(7, 1, 2, 1, bytes(60)), "no place here"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_not_handed_over(door: tuple[TransportDoor, int], name: str) -> None:
    two, port = door
    before = len(os.listdir("/dev/fd"))
    data, reason = BAD[name]
    talk(two, port, data)
    settle(two, turns=3)
    lines = two.lines()
    assert [reason in line for line in lines] == [True], lines
    assert two.handed() == []
    assert two.status()["connections"] == 0
    assert len(os.listdir("/dev/fd")) == before


def test_a_store_that_is_not_known_is_refused(door: tuple[TransportDoor, int]) -> None:
    two, port = door
    two.refuse(1)
    assert b"another store" in talk(two, port, fetch(1))
    assert two.handed() == []


def test_a_fetch_after_a_hello_has_no_place(door: tuple[TransportDoor, int]) -> None:
    two, port = door
    talk(two, port, hello(1, dest=2) + fetch(1))
    assert two.changes() == [(1, True), (1, False)]
    assert two.handed() == []


def test_nobody_who_was_dialled_fetches(no_leaks: None) -> None:
    """Whom this node dials says HELLO."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = TransportDoor(1)
        try:
            one.set_peer(2, server.getsockname()[1])
            accepted = threading.Thread(target=lambda: calls.append(server.accept()[0]))
            calls: list[socket.socket] = []
            accepted.start()
            step(one, until=lambda: bool(calls))
            accepted.join(5)
            calls[0].sendall(fetch(2, dest=1))
            step(one, until=lambda: one.status()["connections"] == 0)
            assert one.handed() == []
            calls[0].close()
        finally:
            one.close()


def test_random_bytes_behind_a_good_head_hand_over_nothing(door: tuple[TransportDoor, int]) -> None:
    two, port = door
    chance = random.Random(5)
    for _ in range(30):
        said = bytearray(fetch(1, rest=chance.randbytes(chance.randint(0, 900))))
        for _ in range(chance.randint(1, 3)):
            said[chance.randrange(32, len(said))] ^= 1 << chance.randrange(8)
        if bytes(said) != fetch(1, rest=bytes(said[72:])):
            talk(two, port, bytes(said))
    assert two.handed() == []
    assert two.status()["connections"] == 0


# --- drivers


def own(lab: Lab, node: int, **changed: object) -> bytes:
    """What that node would say to node 2."""
    member = lab.members[node]
    facts: dict[str, object] = {
        "cluster": CLUSTER,
        "store_id": member.store_id,
        "incarnation": member.driver.incarnation,
    }
    return fetch(node, **facts | changed)  # type: ignore[arg-type]


def test_a_driver_hands_over_and_wakes_python(lab: Callable[..., Lab]) -> None:
    cluster = lab(3)
    cluster.start()
    cluster.wait_led()
    two = cluster.members[2]
    for node in (1, 3):
        said = own(cluster, node)
        while select.select([two.driver.fileno()], [], [], 0.2)[0]:
            two.pump()
        with stranger(two.port) as one:
            one.sendall(said)
            assert select.select([two.driver.fileno()], [], [], 5)[0], "Python is not woken"
            [(descriptor, peer, data)] = two.driver.handed()
            with socket.socket(fileno=descriptor):
                assert (peer, data) == (node, said)
    cluster.commit([b"a value"], 2)  # connections and engine go on


@pytest.mark.parametrize(
    "changed",
    [{"store_id": b"x" * 16}, {"incarnation": 0}, {"window": 7}, {"cluster": 5}, {"dest": 3}],
    ids=str,
)
def test_a_driver_refuses_who_is_not_whom_it_knows(
    lab: Callable[..., Lab], changed: dict[str, object]
) -> None:
    cluster = lab(3)
    cluster.start()
    cluster.wait_led()
    two = cluster.members[2]
    with stranger(two.port) as one:
        one.sendall(own(cluster, 1, **changed))
        while one.recv(4096):
            pass
    assert two.driver.handed() == []
    with stranger(two.port) as one:
        one.sendall(own(cluster, 1, incarnation=cluster.members[1].driver.incarnation + 1))
        found: list[tuple[int, int, bytes]] = []
        cluster.until(lambda: bool(found.extend(two.driver.handed()) or found))
        os.close(found[0][0])  # of a later life: it was not connected yet


def test_a_driver_refuses_who_was_never_connected(lab: Callable[..., Lab]) -> None:
    """It knows no store of that node."""
    cluster = lab(3)
    cluster.start(2)
    two = cluster.members[2]
    with stranger(two.port) as one:
        one.sendall(fetch(1, cluster=CLUSTER, store_id=cluster.members[1].store_id))
        assert b"another store" in one.recv(4096)
    assert two.driver.handed() == []


def test_a_driver_that_stops_closes_those_that_wait(lab: Callable[..., Lab]) -> None:
    cluster = lab(3)
    cluster.start()
    cluster.wait_led()
    two = cluster.members[2]
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(stranger(two.port)) for _ in range(WAITING_MAX + 4)]
        for one in lines:
            one.sendall(own(cluster, 1))
        for one in lines[WAITING_MAX:]:
            assert b"too many connections wait" in one.recv(4096)
        cluster.stop(2)
        for one in lines:
            assert one.recv(4096) == b""
    with pytest.raises(DriverError):
        two.driver.handed()


def test_connections_come_while_python_takes_and_the_driver_stops(
    lab: Callable[..., Lab],
) -> None:
    """From several threads at once; `no_leaks` counts descriptors afterwards."""
    cluster = lab(3)
    cluster.start()
    cluster.wait_led()
    two = cluster.members[2]
    taken, ending = [0], threading.Event()

    def call() -> None:
        while not ending.is_set():
            with contextlib.suppress(OSError), stranger(two.port) as one:
                one.sendall(said)
                one.recv(1)

    def take() -> None:
        with contextlib.suppress(DriverError):
            while not ending.is_set():
                for descriptor, _, _ in two.driver.handed():
                    os.close(descriptor)
                    taken[0] += 1

    said = own(cluster, 1)
    threads = [threading.Thread(target=call) for _ in range(4)]
    threads += [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        cluster.until(lambda: taken[0] >= 200)
        cluster.stop(2)
    finally:
        ending.set()
        for thread in threads:
            thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


# --- one number, one place


def test_the_transport_believes_as_much_of_a_fetch_as_is_said_there() -> None:
    core = Path(__file__).resolve().parents[2] / "phx" / "_core"
    found = re.search(r"FETCH_BYTES_MAX = (\d+)", (core / "transport.pxd").read_text())
    assert found is not None
    assert int(found[1]) == FETCH_BYTES_MAX
    kinds = re.findall(r"FRAME_([A-Z]+) = (\d+)", (core / "codec.pxd").read_text())
    ours = {name: int(number) for name, number in kinds if int(number) >= 3}
    ours = {name: number for name, number in ours.items() if hasattr(messages, name)}
    assert ours == {name: getattr(messages, name) for name in ours}
    # (Those of members travel between nodes' Python alone.)
    alone = {messages.MEMBERS, messages.CHANGE, messages.CHANGED}
    assert {*ours.values(), *alone} == {*messages.LIMITS}
