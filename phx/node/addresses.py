"""Where the members of a cluster are: names made numbers, also later, when they have some."""

from __future__ import annotations

import logging
import socket

from phx._core.driver import Driver
from phx.config import Config, split_address
from phx.errors import NotInCluster, SystemFailure

log = logging.getLogger("phx")


class Addresses:
    """Of one node: its own, and those of the other members."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._unresolved: dict[int, tuple[str, int]] = {}
        self.known: dict[int, tuple[str, int]] = {}  # of the others

    def members(self) -> list[tuple[int, str, int]]:
        """Members with numeric addresses; an address that is not known yet is empty."""
        found = []
        own = self._config.node
        for node, address in sorted(self._config.members.items()):
            host, port = split_address(address)
            numeric = resolve(host) if port or node == own else ""
            if not numeric and port:
                if node == own:
                    raise SystemFailure(f"members.{node}: {host} has no address")
                log.warning("node %d: %s has no address yet", node, host)
                self._unresolved[node] = (host, port)
            found.append((node, numeric, port if numeric else 0))
            self._note(node, numeric, port)
        return found

    def bind(self) -> tuple[str, int]:
        """Where this node listens. Raises SystemFailure if that has no address."""
        own = self._config.bind or self._config.members[self._config.node]
        host, port = split_address(own)
        numeric = resolve(host)
        if not numeric:
            raise SystemFailure(f"{own}: {host} has no address")
        return numeric, port

    def numeric(self, node: int, address: str) -> tuple[str, int]:
        """A new address of a member. Raises NotInCluster, SystemFailure."""
        if node not in self._config.members:
            raise NotInCluster(f"node {node} is no member of {self._config.cluster}")
        host, port = split_address(address)
        numeric = resolve(host)
        if not numeric:
            raise SystemFailure(f"{address}: {host} has no address")
        return numeric, port

    def changed(self, node: int, numeric: str, port: int) -> None:
        """The driver knows the new address of a member."""
        self._note(node, numeric, port)
        self._unresolved.pop(node, None)

    def resolve_late(self, driver: Driver) -> bool:
        """Look again for addresses that were not found; False while some are missing."""
        for node, (host, port) in list(self._unresolved.items()):
            if numeric := resolve(host):
                driver.set_address(node, numeric, port)
                self.changed(node, numeric, port)
        return not self._unresolved

    def _note(self, node: int, numeric: str, port: int) -> None:
        if numeric and port and node != self._config.node:
            self.known[node] = numeric, port


def resolve(host: str) -> str:
    """The first numeric address of a host; "" if it has none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    return str(found[0][4][0]) if found else ""
