"""Ports for nodes whose addresses are known before they listen."""

import os
import random
import socket

LOWEST, HIGHEST = 10_000, 32_000
"""Below the kernel's range for outgoing connections: any of those could take a port while the node
that it is for is not there, and who dials such a port may end up connected to himself."""
SHARES = 16
SHARE = (HIGHEST - LOWEST) // SHARES

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SHARES
_first = LOWEST + _worker * SHARE
_next = random.randrange(SHARE)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, at all addresses of this machine.

    No two of these are the same, nor the same as any that this process was given before (until its
    share is used up); and workers that run side by side have each a share of their own
    (what a program under test draws for itself, as `phx torture` does, is by chance). A port that
    is bound, told and let go is given to the next who asks now and then, by the kernel too.
    """
    global _next
    ports: list[int] = []
    while len(ports) < count:
        port = _first + _next
        _next = (_next + 1) % SHARE
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        ports.append(port)
    return ports


def neighbours(count: int) -> int:
    """The first of `count` such ports in a row."""
    while True:
        ports = free_ports(count)
        if ports == list(range(ports[0], ports[0] + count)):
            return ports[0]


def at_ports(*nodes: int) -> dict[int, str]:
    """An address on this machine for each of these nodes."""
    return {node: free_address() for node in nodes}


def free_address() -> str:
    (port,) = free_ports(1)
    return f"127.0.0.1:{port}"
