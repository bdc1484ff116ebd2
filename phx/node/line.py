"""One connection of a transfer: a socket, and one of `phx.transfer`'s sides at this end of it."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from phx.transfer.messages import Cut, Patience

__all__ = ["Ending", "Lines", "Question", "Side", "now_us"]

RECV_BYTES = 256 << 10
SEND_BYTES = 256 << 10
SLICE_US = 100_000
"""How long nothing is looked at while nothing comes: a node that closes waits for that."""


class Ending(Exception):
    """The node closes."""


class Side(Protocol):
    """A Sender, a Receiver or an Asker."""

    @property
    def due_us(self) -> int: ...
    def feed(self, data: bytes, now_us: int) -> bytes: ...


class Question(Side, Protocol):
    """A side that sends one question, and is over with the answer."""

    hello: bytes
    answer: bytes | None


def now_us() -> int:
    """The clock of transfers."""
    return time.monotonic_ns() // 1000


class Lines:
    """The connections of one kind that a node has open, each served by a thread of its own.

    Guarantee: no call waits for a socket longer than `Patience` has for who is at the other end:
    not to connect, not to send, not to receive; and none goes on for longer than SLICE_US once the
    node closes.
    """

    def __init__(self) -> None:
        self.ending = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def adopt(self, one: socket.socket) -> socket.socket:
        """It is ours from now on; `close` it."""
        one.setblocking(False)
        with self._lock:
            self._open.add(one)
        return one

    def dial(self, host: str, port: int, timeout_us: int) -> socket.socket:
        """Connect to a numeric address. Raises OSError, Cut, Ending."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        one = self.adopt(socket.socket(family, socket.SOCK_STREAM))
        try:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            failed = one.connect_ex((host, port))
            if failed not in (0, errno.EINPROGRESS):
                raise OSError(failed, os.strerror(failed))
            until_us = now_us() + timeout_us
            while not self._wait(one, select.POLLOUT, until_us):
                if now_us() >= until_us:
                    raise Cut("it could not be connected in time")
            if failed := one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(failed, os.strerror(failed))
        except BaseException:
            self.close(one)
            raise
        return one

    def close(self, one: socket.socket) -> None:
        """Idempotent."""
        with self._lock:
            self._open.discard(one)
        one.close()

    def forget(self) -> None:
        """In a forked child: close our copies, whoever held the lock."""
        for one in list(self._open):
            one.close()

    def send(self, one: socket.socket, data: bytes) -> None:
        """All of it. Raises Cut (`Stalled` if too little of it goes), OSError, Ending."""
        patience, left = Patience(now_us()), memoryview(data)
        while left:
            if self._wait(one, select.POLLOUT, patience.due_us):
                with suppress(BlockingIOError):
                    sent = one.send(left[:SEND_BYTES])
                    left = left[sent:]
                    patience.moved(sent, now_us())
            patience.check(now_us(), "too little was taken")

    def run(self, one: socket.socket, side: Side, over: Callable[[], bool], out: bytes) -> None:
        """Send `out`, and talk until it is over.

        Raises Cut, OSError, Ending, and whatever the side raises.
        """
        while True:
            self.send(one, out)
            if over():
                return
            data = b""
            if self._wait(one, select.POLLIN, side.due_us):
                with suppress(BlockingIOError):
                    data = one.recv(RECV_BYTES)
                    if not data:
                        raise Cut("the other side closed the connection")
            at_us = now_us()
            out = side.feed(data, at_us) if data or at_us >= side.due_us else b""

    def ask(
        self, one: socket.socket, question: Question, moot: Callable[[], bool] = lambda: False
    ) -> bytes:
        """The answer; the connection is closed.

        Args:
            moot: nobody wants to know any more; looked at every SLICE_US, and before any answer.

        Raises Cut (also: it is moot), OSError, Ending, and whatever the question raises.
        """

        def over() -> bool:
            if question.answer is None and moot():
                raise Cut("it need not be known any more")
            return question.answer is not None

        try:
            self.run(one, question, over, question.hello)
        finally:
            self.close(one)
        assert question.answer is not None
        return question.answer

    def _wait(self, one: socket.socket, what: int, until_us: int) -> bool:
        """Until it is ready, or until then, or a slice at most."""
        if self.ending.is_set():
            raise Ending
        wait_us = max(0, min(until_us - now_us(), SLICE_US))
        poll = select.poll()
        poll.register(one, what)
        return bool(poll.poll((wait_us + 999) // 1000))
