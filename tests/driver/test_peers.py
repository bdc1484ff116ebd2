"""Peers of running drivers: they come, move and go, and nobody else notices."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from driver_lab import US, Lab, Member

from phx._core.codec import blocks_live
from phx._core.driver import ERROR_CLOSED, ERROR_MEMBER, ERROR_OPTION, DriverError
from phx._core.peer_table import PeerTable
from phx.testing.trace import check
from phx.testing.trace_file import Kind, read

UNKNOWN = 6  # REFUSED_UNKNOWN


def peers(member: Member) -> dict[int, dict[str, Any]]:
    status: dict[str, Any] = dict(member.driver.status())
    return {one["node"]: one for one in status["peers"]}


def connected(member: Member, node: int) -> bool:
    found = peers(member).get(node)
    return found is not None and found["connected"]


def meet(lab: Lab, node: int) -> None:
    """Everybody who runs adds this one, and is added by it."""
    new = lab.members[node]
    for one in lab.running():
        if one.node != node:
            one.peers.add(node, "127.0.0.1", new.port)
            new.peers.add(one.node, "127.0.0.1", one.port)


@pytest.fixture
def guest(lab: Callable[..., Lab], tmp_path: Path) -> Lab:
    """Three members that run, and a fourth node that hosts nothing and knows nobody."""
    made = lab(3)
    made.start()
    made.wait_led()
    made.members[4] = Member(4, tmp_path, [4], groups=0)
    made.members[4].start()
    made.up.add(4)
    return made


def test_a_node_comes_and_goes_while_values_are_chosen(guest: Lab) -> None:
    four = guest.members[4]
    for round_ in range(3):
        meet(guest, 4)
        guest.until(lambda: all(connected(guest.members[n], 4) for n in (1, 2, 3)))
        guest.until(lambda: all(connected(four, n) for n in (1, 2, 3)))
        # Heartbeats go both ways.
        guest.until(lambda: all(one["frames_received"] > 2 for one in peers(four).values()))
        guest.until(lambda: peers(guest.members[1])[4]["frames_received"] > 2)
        guest.commit_at([1, 2, 3], [b"with %d" % round_])
        for node in (1, 2, 3):
            guest.members[node].peers.drop(4)
            four.peers.drop(node)
            assert 4 not in peers(guest.members[node])
        assert peers(four) == {}
        guest.commit_at([2, 1, 3], [b"without %d" % round_])
    for node in (1, 2, 3):
        status: dict[str, Any] = dict(guest.members[node].driver.status())
        assert status["connections"] == 2
        assert status["engine"]["hostile_messages"] == 0


def test_who_is_not_known_is_told_so_and_waits(guest: Lab) -> None:
    one, four = guest.members[1], guest.members[4]
    # The lower id dials: node 1 is refused by node 4 first, as it does not know node 1.
    one.peers.add(4, "127.0.0.1", four.port)
    guest.until(lambda: peers(one)[4]["refused"] == UNKNOWN)
    assert not connected(one, 4)
    guest.until(lambda: any("known here" in line for line in one.lines))
    since = peers(one)[4]["since_us_ago"]
    guest.until(lambda: peers(one)[4]["since_us_ago"] > since + 50_000)
    four.peers.add(1, "", 0)  # it need not know where: it is dialled
    guest.until(lambda: connected(one, 4) and connected(four, 1))
    assert peers(one)[4]["refused"] == 0
    assert peers(one)[4]["since_us_ago"] < 15 * US


def test_a_member_is_not_let_go_of(guest: Lab) -> None:
    with pytest.raises(DriverError) as caught:
        guest.members[1].peers.drop(2)
    assert caught.value.code == ERROR_MEMBER
    assert connected(guest.members[1], 2)
    guest.commit_at([1, 2, 3], [b"as before"])


def test_what_cannot_be_a_peer(guest: Lab) -> None:
    table = guest.members[1].peers
    for node, host in ((1, "127.0.0.1"), (0, "127.0.0.1"), (1 << 20, "127.0.0.1"), (9, "nowhere")):
        with pytest.raises(DriverError) as caught:
            table.add(node, host, 7000)
        assert caught.value.code == ERROR_OPTION
    for act in (lambda: table.set_address(9, "127.0.0.1", 1), lambda: table.drop(1)):
        with pytest.raises(DriverError) as caught:
            act()
        assert caught.value.code == ERROR_OPTION
    assert set(peers(guest.members[1])) == {2, 3}
    for node in range(4, 65):
        table.add(node, "", 0)
    with pytest.raises(DriverError) as caught:
        table.add(65, "", 0)
    assert caught.value.code == ERROR_OPTION
    assert len(peers(guest.members[1])) == 63
    guest.commit_at([1, 2, 3], [b"as before"])


def test_another_store_under_a_node_id_that_is_known_is_refused(guest: Lab) -> None:
    one, four = guest.members[1], guest.members[4]
    four.peers.add(1, "", 0)
    one.peers.add(4, "127.0.0.1", four.port, store_id=b"another store id")
    guest.until(lambda: any("another store" in line for line in one.lines))
    assert not connected(one, 4)
    one.peers.drop(4)
    one.peers.add(4, "127.0.0.1", four.port, store_id=four.store_id)
    guest.until(lambda: connected(one, 4))


@contextmanager
def forwarding(port: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """A port that leads to another one; and what lets bytes through."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.setblocking(False)
        pairs: list[tuple[socket.socket, socket.socket]] = []

        def pump() -> None:
            try:
                taken, _ = server.accept()
                onward = socket.create_connection(("127.0.0.1", port))
                for end in (taken, onward):
                    end.setblocking(False)
                pairs.append((taken, onward))
            except BlockingIOError:
                pass
            for a, b in pairs:
                for x, y in ((a, b), (b, a)):
                    try:
                        y.sendall(x.recv(1 << 20))
                    except OSError:
                        continue

        try:
            yield int(server.getsockname()[1]), pump
        finally:
            for pair in pairs:
                for end in pair:
                    end.close()


def test_a_node_that_moves_is_dialled_anew_while_values_are_chosen(guest: Lab) -> None:
    one, two = guest.members[1], guest.members[2]
    guest.until(lambda: connected(one, 2))
    before = peers(one)[2]["connects"]
    with forwarding(two.port) as (port, pump):
        one.peers.set_address(2, "127.0.0.1", port)
        assert not connected(one, 2), "it was elsewhere"

        def there() -> bool:
            pump()
            return connected(one, 2) and connected(two, 1)

        guest.until(there)
        assert peers(one)[2]["connects"] == before + 1
        one.peers.set_address(2, "127.0.0.1", port)  # where it is
        two.peers.set_address(1, "127.0.0.1", one.port)
        assert connected(one, 2), "nothing has changed"
        one.peers.set_address(2, "127.0.0.1", two.port)
    guest.until(lambda: connected(one, 2) and connected(two, 1))
    assert peers(one)[2]["connects"] == before + 2
    guest.commit_at([1, 2, 3], [b"as before"])


def test_a_thousand_peers_come_and_go_and_nothing_is_left(guest: Lab) -> None:
    one, four = guest.members[1], guest.members[4]
    with closing(socket.socket()) as nobody:  # bound, and does not listen
        nobody.bind(("127.0.0.1", 0))
        nowhere = nobody.getsockname()[1]
        four.peers.add(1, "", 0)

        def cycle(number: int) -> None:
            node = 10 + number % 60
            one.peers.add(node, "127.0.0.1", nowhere if number % 3 else 0, named=number % 2 == 0)
            if number % 50 == 0:
                one.peers.add(4, "127.0.0.1", four.port)
                guest.until(lambda: connected(one, 4) and connected(four, 1))
                one.peers.drop(4)
                guest.until(lambda: not connected(four, 1))
            one.peers.drop(node)
            one.peers.lookups(0)

        cycle(0)
        guest.pause()
        before = blocks_live()
        for number in range(1, 1001):
            cycle(number)
        guest.pause()
        guest.until(lambda: blocks_live() <= before)
    status: dict[str, Any] = dict(one.driver.status())
    assert status["connections"] == 2
    assert set(peers(one)) == {2, 3}
    guest.commit_at([1, 2, 3], [b"as before"])


def test_a_name_is_to_be_looked_up_at_every_attempt_and_the_answer_is_followed(guest: Lab) -> None:
    one, four = guest.members[1], guest.members[4]
    four.peers.add(1, "", 0)
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        one.peers.add(4, "127.0.0.1", nobody.getsockname()[1], named=True)
        wanted: list[tuple[int, int]] = []
        while len(wanted) < 3:
            found = one.peers.lookups(5 * US)
            assert found, "an attempt without a question"
            wanted += found
        assert [node for node, _ in wanted] == [4, 4, 4]
        assert wanted[0][1] == 0
        assert wanted[-1][1] >= 2
        one.peers.resolved(4, "127.0.0.1", four.port)
        guest.until(lambda: connected(one, 4) and connected(four, 1))
        one.peers.lookups(0)
        # Of one that is connected it is for the next time.
        one.peers.resolved(4, "127.0.0.1", nobody.getsockname()[1])
        guest.commit_at([1, 2, 3], [b"meanwhile"])
        assert connected(one, 4)
        assert peers(one)[4]["connects"] == 1
        assert one.peers.lookups(0) == []
        one.peers.resolved(9, "127.0.0.1", four.port)  # it was dropped: nobody's
        assert 9 not in peers(one)


def test_a_name_without_an_address_is_looked_up_until_it_has_one(guest: Lab) -> None:
    one, four = guest.members[1], guest.members[4]
    four.peers.add(1, "", 0)
    one.peers.add(4, "", 0, named=True)
    assert one.peers.lookups(5 * US) == [(4, 0)]
    assert one.peers.lookups(5 * US)
    one.peers.resolved(4, "127.0.0.1", four.port)
    guest.until(lambda: connected(one, 4))


def test_after_the_end(guest: Lab) -> None:
    table: PeerTable = guest.members[4].peers
    guest.stop(4)
    assert table.lookups(60 * US) is None
    for act in (
        lambda: table.add(5, "", 0),
        lambda: table.drop(5),
        lambda: table.set_address(5, "", 0),
        lambda: table.resolved(5, "127.0.0.1", 1),
    ):
        with pytest.raises(DriverError) as caught:
            act()
        assert caught.value.code == ERROR_CLOSED
    del guest.members[4]


def test_what_peers_come_and_go_is_in_the_trace_and_replays(
    lab: Callable[..., Lab], tmp_path: Path
) -> None:
    made = lab(2)
    one = made.members[1]
    one.trace_path = str(tmp_path / "one.trace")
    made.start()
    made.wait_led()
    made.members[4] = Member(4, tmp_path, [4], groups=0)
    made.members[4].start()
    made.up.add(4)
    meet(made, 4)
    made.until(lambda: connected(one, 4))
    made.commit_at([1, 2], [b"with"])
    with pytest.raises(DriverError):
        one.peers.drop(2)
    one.peers.drop(4)
    one.peers.add(5, "", 0, store_id=b"another store id")
    made.commit_at([1, 2], [b"without"])
    made.stop()
    report = check(one.trace_path)
    assert report.closed
    kinds = [event.kind for event in read(one.trace_path)]
    assert (kinds.count(Kind.ADD_PEER), kinds.count(Kind.DROP_PEER)) == (2, 2)
