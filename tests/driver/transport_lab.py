"""Transports without an engine: turned by hand, and talked to by socket."""

import socket
import time
from collections.abc import Callable

from phx._core.transport_door import TransportDoor

HELLO, ENGINE, REFUSED = 1, 2, 3


def step(*doors: TransportDoor, until: Callable[[], bool], seconds: float = 5.0) -> None:
    """Turn the doors until it is so."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it did not happen in time"
        for door in doors:
            door.step(1)


def settle(*doors: TransportDoor, turns: int = 30) -> None:
    for _ in range(turns):
        for door in doors:
            door.step(1)


def connected(door: TransportDoor, peer: int) -> bool:
    return bool(door.status()["links"][peer]["connected"])


def talk(door: TransportDoor, port: int, data: bytes) -> bytes:
    """Say it; what comes back until the door closes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.setblocking(False)
        left = data
        end = time.monotonic() + 5
        while time.monotonic() < end:
            door.step(1)
            try:
                if left:
                    left = left[stranger.send(left) :]
                got = stranger.recv(65536)
                if not got:
                    return answer
                answer += got
            except BlockingIOError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                return answer
    raise AssertionError("the connection was not closed")
