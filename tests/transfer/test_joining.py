"""Who is there? The bytes of the question and of its answer, and both sides without a socket."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phx._core.codec import encode_frame
from phx.errors import ConfigError
from phx.node.joining import Joiner, welcome
from phx.node.line import now_us
from phx.transfer.changing import ask_who
from phx.transfer.messages import (
    ADDRESS_BYTES_MAX,
    JOIN,
    LIMITS,
    PEERS,
    PEERS_MAX,
    REFUSED,
    Cut,
    Declined,
    Ends,
    Greeting,
    Hostile,
    Stalled,
    join_store,
    kind_of,
    pack_join,
    pack_peers,
    pack_refused,
    unpack_peers,
)

CLUSTER = 7
STORE = b"store id of four"
GREETING = Greeting(incarnation=1, store_id=STORE, window=64)
ASKED, ASKER = Ends(CLUSTER, 1, 4), Ends(CLUSTER, 4, 0)
THERE = {1: "10.0.0.1:7000", 2: "two.test:7000", 3: "[fd00::3]:7000"}


def question() -> bytes:
    return ASKER.frame(JOIN, pack_join(GREETING))


def test_it_is_the_question_that_is_asked() -> None:
    assert ask_who(ASKER, GREETING, now_us()).hello == question()


def test_the_question_says_whose_store_asks() -> None:
    assert kind_of(question()) == JOIN
    assert join_store(question() + b"more") == STORE


def test_the_answer_says_where_everybody_is() -> None:
    answer = welcome(question(), ASKED, lambda node: None, THERE)
    asking = ask_who(ASKER, GREETING, now_us())
    assert asking.feed(answer, now_us()) == b""
    assert asking.answer is not None
    assert unpack_peers(asking.answer) == THERE


@pytest.mark.parametrize("size", [1, 3, 31, 33])
def test_the_answer_may_come_in_pieces(size: int) -> None:
    answer = welcome(question(), ASKED, {4: STORE}.get, THERE)
    asking = ask_who(ASKER, GREETING, now_us())
    for at in range(0, len(answer), size):
        assert asking.answer is None
        asking.feed(answer[at : at + size], now_us())
    assert asking.answer is not None
    assert unpack_peers(asking.answer) == THERE


def test_a_node_id_that_was_used_with_another_store_is_refused() -> None:
    answer = welcome(question(), ASKED, {4: b"another store id"}.get, THERE)
    with pytest.raises(Declined, match="used with another store"):
        ask_who(ASKER, GREETING, now_us()).feed(answer, now_us())


def test_there_is_no_answer_for_too_long() -> None:
    asking = ask_who(ASKER, GREETING, now_us())
    with pytest.raises(Stalled):
        asking.feed(b"", asking.due_us)


def test_the_longest_answer_has_room() -> None:
    address = "x" * (ADDRESS_BYTES_MAX - 5) + ":7000"
    most = {1_048_575 - n: address for n in range(PEERS_MAX)}
    packed = pack_peers(most)
    assert len(packed) <= LIMITS[PEERS]
    assert unpack_peers(packed) == most
    assert len(unpack_peers(pack_peers(dict.fromkeys(range(1, 99), "a:1")))) == PEERS_MAX
    assert unpack_peers(pack_peers({1: "x" + address, 2: "a:1"})) == {2: "a:1"}


HOSTILE = {
    "nothing": b"",
    "no msgpack": b"\xc1",
    "no map": msgpack.packb([1]),
    "another key": msgpack.packb({"peers": [], "more": 1}),
    "no list": msgpack.packb({"peers": {}}),
    "too many": msgpack.packb({"peers": [[n, "a:1"] for n in range(1, PEERS_MAX + 2)]}),
    "a deep one": msgpack.packb({"peers": [[[[[1]]], "a:1"]]}),
    "three parts": msgpack.packb({"peers": [[1, "a:1", 2]]}),
    "no number": msgpack.packb({"peers": [["1", "a:1"]]}),
    "a switch": msgpack.packb({"peers": [[True, "a:1"]]}),
    "node 0": msgpack.packb({"peers": [[0, "a:1"]]}),
    "no node id": msgpack.packb({"peers": [[1_048_576, "a:1"]]}),
    "below 0": msgpack.packb({"peers": [[-1, "a:1"]]}),
    "twice": msgpack.packb({"peers": [[1, "a:1"], [1, "a:2"]]}),
    "bytes": msgpack.packb({"peers": [[1, b"a:1"]]}),
    "no address": msgpack.packb({"peers": [[1, ""]]}),
    "no port": msgpack.packb({"peers": [[1, "a"]]}),
    "port 0": msgpack.packb({"peers": [[1, "a:0"]]}),
    "a high port": msgpack.packb({"peers": [[1, "a:65536"]]}),
    "a blank": msgpack.packb({"peers": [[1, "a b:1"]]}),
    "a line": msgpack.packb({"peers": [[1, "a\nb:1"]]}),
    "no ASCII": msgpack.packb({"peers": [[1, "\u00e4:1"]]}),
    "a long one": msgpack.packb({"peers": [[1, "x" * ADDRESS_BYTES_MAX + ":1"]]}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_refused(name: str) -> None:
    with pytest.raises(Hostile):
        unpack_peers(HOSTILE[name])


@given(st.binary(max_size=200))
def test_any_answer_is_peers_or_refused(payload: bytes) -> None:
    try:
        found = unpack_peers(payload)
    except Hostile:
        return
    assert all(0 < node <= 1_048_575 and address for node, address in found.items())


@given(st.binary(max_size=200), st.sampled_from([PEERS, REFUSED, JOIN, 2, 77]))
def test_whatever_comes_back_is_an_answer_or_a_cut(payload: bytes, kind: int) -> None:
    asking = ask_who(ASKER, GREETING, now_us())
    try:
        asking.feed(encode_frame(kind, 1, 4, CLUSTER, payload), now_us())
    except Cut:
        assert asking.answer is None
    else:
        assert kind == PEERS
        assert asking.answer == payload


# --- the asking thread


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """A node that answers each connection so, once it has heard a question."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                with one:
                    one.settimeout(5)
                    one.sendall(answer(one.recv(4096)))

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def joiner(*addresses: str, until: int = 3) -> tuple[Joiner, dict[int, str]]:
    """One that is connected as soon as it knows so many."""
    found: dict[int, str] = {}
    made = Joiner(
        CLUSTER,
        4,
        GREETING,
        addresses,
        add=found.__setitem__,
        connected=lambda: len(found) >= until,
        timeout_us=1_000_000,
    )
    return made, found


def test_one_after_the_other_is_asked_until_somebody_answers(no_leaks: None) -> None:
    answer = welcome(question(), ASKED, lambda node: None, {**THERE, 4: "10.0.0.4:1"})
    with (
        answering(lambda said: b"GET / HTTP/1.1\r\n\r\n" * 9) as talks,
        answering(lambda said: ASKED.frame(REFUSED, pack_refused(5, "busy"))) as busy,
        answering(lambda said: answer if said == question() else b"") as good,
    ):
        asking, found = joiner("127.0.0.1:1", "no.such.host.invalid:1", talks, busy, good)
        asking.start()
        asking.join(20)
        assert not asking.is_alive()
        assert found == THERE, "itself is no peer"


def test_those_that_are_named_are_asked_too(no_leaks: None, caplog) -> None:
    caplog.set_level(logging.ERROR)
    with answering(lambda said: welcome(said, ASKED, lambda node: None, THERE)) as last:
        first_answers = [ASKED.frame(PEERS, pack_peers({2: last}))]
        with answering(lambda said: first_answers.pop() if first_answers else b"") as first:
            asking, found = joiner(first)
            asking.start()
            asking.join(20)
            assert not asking.is_alive()
            assert found == THERE


def test_who_asks_in_vain_can_be_told_to_end(no_leaks: None) -> None:
    asking, found = joiner("127.0.0.1:1")
    asking.end()  # before it began
    asking, found = joiner("127.0.0.1:1")
    asking.start()
    asking.end(10)
    asking.end(10)
    assert not asking.is_alive()
    assert found == {}


def test_a_resolver_that_hangs_keeps_nobody_from_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, freed = threading.Event(), threading.Event()

    def hangs(host: str) -> list[str]:
        asked.set()
        freed.wait(20)
        return []

    monkeypatch.setattr("phx.node.joining.resolve", hangs)
    asking, _ = joiner("one.test:1")
    asking.start()
    try:
        assert asked.wait(10)
        since = time.monotonic()
        asking.end()
        assert time.monotonic() < since + 5
    finally:
        freed.set()
        asking.join(10)
    assert not asking.is_alive()


def test_one_that_cannot_be_taken_keeps_nobody_from_the_others(no_leaks: None, caplog) -> None:
    with answering(lambda said: welcome(said, ASKED, lambda node: None, THERE)) as good:
        asking, found = joiner(good, until=len(THERE) - 1)

        def take(node: int, address: str) -> None:
            if node == min(THERE):
                raise ConfigError(["it cannot be"])
            found[node] = address

        asking._add = take
        asking.start()
        asking.join(10)
        assert not asking.is_alive()
    assert found == {node: at for node, at in THERE.items() if node != min(THERE)}
    assert "it cannot be" in caplog.text
