"""A node that waits to be a member: whom it asks, and what it takes from those who answer."""

import socket
import struct
import threading
from contextlib import contextmanager

import pytest

from phx.config import Config
from phx.errors import Closed
from phx.node import joining
from phx.node.joining import Admission, welcome
from phx.transfer import messages
from phx.transfer.changing import LEFT_MAX, pack_members
from phx.transfer.messages import MEMBERS, PEERS, PEERS_MAX, Ends, join_group, pack_peers
from tests.checkpoint.checkpoint_lab import membership
from tests.transfer.test_joining import answering, joiner

STORE = b"store id of four"
WITH_US = membership(10, 2, (1, 2, 4), active=True)


def config(folder, *join):
    return Config(
        cluster="test", node=4, members={4: "127.0.0.1:7004"}, dir=folder, groups=1, join=join
    )


def ends(folder):
    return Ends(config(folder, "a:1").cluster_id, 1, 4)


def honest(folder, *, left=(), peers=None):
    page = pack_members([(0, WITH_US, left)])

    def answer(said):
        return welcome(said, ends(folder), lambda node: None, peers or {}, lambda group: page)

    return answer


@contextmanager
def waiting(folder, *join):
    """An admission at it, in a thread of its own; what it ended with."""
    made, found = Admission(config(folder, *join), [0], 1, STORE), []

    def run():
        try:
            made.wait()
            found.append(None)
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield made, found, thread
    finally:
        made.end()
        thread.join(20)
        assert not thread.is_alive()


def test_of_a_name_every_address_is_asked(no_leaks, tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "resolve", lambda host: ["127.0.0.2", "127.0.0.1"])
    with answering(honest(tmp_path)) as at:
        port = at.rpartition(":")[2]
        with waiting(tmp_path, f"one.test:{port}") as (made, found, thread):
            thread.join(20)
            assert found == [None]
            assert made.members == {0: WITH_US}


@pytest.mark.parametrize(
    "page",
    [
        struct.pack("<IIQ", 0, 0, 0),
        struct.pack("<IIQ", 7, 0, 0),
        pack_members([(0, WITH_US, [3] * (LEFT_MAX + 1))]),
        pack_members([(0, WITH_US, [3, 3])]),
        pack_members([(0, WITH_US, [0])]),
    ],
    ids=["to where it was", "on without a row", "too many left", "twice", "no node"],
)
def test_a_page_that_cannot_be_ends_that_round_of_questions(no_leaks, tmp_path, page):
    asked = []

    def answer(said):
        if join_group(said) is None:
            return ends(tmp_path).frame(PEERS, pack_peers({}))
        asked.append(join_group(said))
        return ends(tmp_path).frame(MEMBERS, page)

    with answering(answer) as at, waiting(tmp_path, at) as (made, found, thread):
        thread.join(1.5)
        made.end()
        thread.join(20)
        assert isinstance(found[0], Closed)
        assert made.members == {}
        assert set(asked) == {0}
        assert len(asked) < 20, "there is a pause between two rounds"


def test_a_page_goes_on_behind_what_was_asked_for(no_leaks, tmp_path):
    """Whoever answers a question from group 8 on with group 0 would be asked for ever."""
    asked = []

    def answer(said):
        if join_group(said) is None:
            return ends(tmp_path).frame(PEERS, pack_peers({}))
        asked.append(join_group(said))
        page = bytearray(pack_members([(7, WITH_US, ())]))
        page[:4] = struct.pack("<I", 8)
        return ends(tmp_path).frame(MEMBERS, bytes(page))

    with answering(answer) as at, waiting(tmp_path, at) as (made, _, thread):
        thread.join(1.5)
        made.end()
        thread.join(20)
        assert set(asked) == {0, 8}
        assert len(asked) < 40


def naming(folder, count):
    """Answers each time with so many nodes that it has not named before."""
    first = [100]

    def answer(said):
        if join_group(said) is not None:
            return ends(folder).frame(MEMBERS, pack_members([]))
        nodes = range(first[0], first[0] + count)
        first[0] += count
        return ends(folder).frame(PEERS, pack_peers({n: f"127.0.0.1:{n % 80 + 1}" for n in nodes}))

    return answer


def test_who_names_ever_more_nodes_is_not_believed(no_leaks, tmp_path, caplog):
    with (
        answering(naming(tmp_path, 40)) as wild,
        waiting(tmp_path, wild) as (made, _, thread),
    ):
        thread.join(2)
        assert len(made.peers) == 40
        assert "more nodes than" in caplog.text
        with answering(honest(tmp_path, peers={1: "127.0.0.1:1"})) as good:
            made._whom.add(good)
            thread.join(20)
    assert made.members == {0: WITH_US}


def test_a_joiner_learns_of_no_more_nodes_than_there_can_be(no_leaks, tmp_path, caplog):
    with answering(naming(tmp_path, PEERS_MAX)) as wild:
        asking, found = joiner(wild, until=1 << 20)
        asking._ends = Ends(ends(tmp_path).cluster, 4, 0)
        for _ in range(8):
            asking._learn(wild)
    assert len(found) == len(asking.learned) <= 4 * PEERS_MAX
    assert "more nodes than" in caplog.text


def test_addresses_that_were_learned_give_way_to_newer_ones():
    whom = joining.Whom(["a:1", "b:1", "a:1"])
    for port in range(1, 2000):
        whom.add(f"c:{port}")
        whom.add("a:1")
    assert list(whom)[:2] == ["a:1", "b:1"]
    assert len(list(whom)) == 2 + joining.ADDRESSES_MAX
    assert list(whom)[-1] == "c:1999"


def test_who_left_is_no_longer_list_than_there_can_be(no_leaks, tmp_path):
    """Of several that answer, each with others."""
    some, more = range(5, 5 + LEFT_MAX // 2 + 1), range(LEFT_MAX, LEFT_MAX + LEFT_MAX // 2 + 1)
    with (
        answering(honest(tmp_path, left=some)) as one,
        answering(honest(tmp_path, left=more)) as two,
        waiting(tmp_path, one, two) as (made, found, thread),
    ):
        thread.join(20)
        assert found == [None]
        assert made.rows()[0].left == tuple(some)


def test_who_is_silent_keeps_nobody_from_the_others(no_leaks, tmp_path, monkeypatch):
    """A node that is stopped takes the connection, and says nothing; nobody waits for it as long as
    for a transfer."""
    monkeypatch.setattr(messages, "SILENCE_US", 3600 * 1_000_000)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        answering(honest(tmp_path)) as at,
        waiting(tmp_path, f"127.0.0.1:{silent.getsockname()[1]}", at) as (made, found, thread),
    ):
        thread.join(20)
        assert found == [None]
        assert made.members == {0: WITH_US}
