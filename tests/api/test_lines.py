"""Connections of transfers: nobody is waited for longer than he may take."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest

from phx._core.codec import encode_frame
from phx.node.line import SLICE_US, Ending, Lines, now_us
from phx.transfer import messages
from phx.transfer.messages import Cut, Ends, Fetch, Greeting, Stalled
from phx.transfer.receiver import Asker

pytestmark = pytest.mark.usefixtures("no_leaks")

FETCH = Fetch("offer", 0)
GREETING = Greeting(1, b"s" * 16)


@contextmanager
def pair(lines):
    here, there = socket.socketpair()
    with there:
        there.setblocking(False)
        yield lines.adopt(here), there
        lines.close(here)


@pytest.fixture
def lines(monkeypatch):
    monkeypatch.setattr(messages, "SILENCE_US", 300_000)
    return Lines()


def asker():
    return Asker(Ends(1, 1, 2), FETCH, now_us())


def talk(lines, one, side):
    lines.run(one, side, lambda: side.ended, side.hello(GREETING))


def test_who_says_nothing_is_given_up(lines):
    with pair(lines) as (one, _):
        began = time.monotonic()
        with pytest.raises(Stalled):
            talk(lines, one, asker())
        assert 0.25 < time.monotonic() - began < 5


def test_who_takes_nothing_is_given_up(lines):
    """Also of what is not acknowledged: values of the log."""
    with pair(lines) as (one, _):
        began = time.monotonic()
        with pytest.raises(Stalled, match="taken"):
            lines.send(one, bytes(32 << 20))
        assert 0.25 < time.monotonic() - began < 5


def test_who_takes_it_slowly_gets_it_all(lines):
    data = bytes(range(256)) * 8192
    found = bytearray()

    def take(there):
        while len(found) < len(data):
            try:
                found.extend(there.recv(100_000))
            except BlockingIOError:
                time.sleep(0.001)
            time.sleep(0.005)

    with pair(lines) as (one, there):
        thread = threading.Thread(target=take, args=(there,))
        thread.start()
        lines.send(one, data)
        thread.join()
    assert bytes(found) == data


def test_who_hangs_up_is_noticed_at_once(lines):
    with pair(lines) as (one, there):
        there.close()
        with pytest.raises((Cut, OSError)):
            talk(lines, one, asker())


def test_an_answer_ends_it(lines):
    with pair(lines) as (one, there):
        offer = messages.pack_offer(messages.Offer(floor=7))
        there.send(encode_frame(messages.OFFER, 2, 1, 1, offer))
        side = asker()
        talk(lines, one, side)
        assert side.offer.floor == 7


@pytest.mark.parametrize("what", ["receives", "sends"])
def test_a_node_that_closes_waits_for_nobody(what):
    lines = Lines()
    with pair(lines) as (one, _):
        threading.Timer(0.1, lines.ending.set).start()
        began = time.monotonic()
        calls = {
            "receives": lambda: talk(lines, one, asker()),
            "sends": lambda: lines.send(one, bytes(32 << 20)),
        }
        with pytest.raises(Ending):
            calls[what]()
        assert time.monotonic() - began < 2 + SLICE_US / 1e6


def test_dialing(lines):
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = lines.dial("127.0.0.1", server.getsockname()[1], 1_000_000)
        server.accept()[0].close()
        lines.close(one)
        port = server.getsockname()[1]
    with pytest.raises(OSError):
        lines.dial("127.0.0.1", port, 1_000_000)


def test_dialing_who_does_not_answer(lines):
    """A listener whose queue is full lets everybody wait."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        for _ in range(8):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(server.getsockname())
            waiting.append(one)
        began = time.monotonic()
        with pytest.raises(Cut, match="connected"):
            lines.dial(*server.getsockname(), 300_000)
        assert 0.25 < time.monotonic() - began < 5
        for one in waiting:
            one.close()
