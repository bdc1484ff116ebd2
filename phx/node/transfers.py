"""What comes and goes between this node and its peers besides the protocol: both directions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from phx._core.driver import Driver
from phx.applier import Applier, GroupState
from phx.checkpoint.catalog import Catalog
from phx.config import Config
from phx.machine import StateMachine
from phx.node.fetcher import Fetcher, Peers
from phx.node.installer import Installer
from phx.node.keeper import Keeper
from phx.node.provider import Provider
from phx.node.snapshots import Snapshots
from phx.store import Store
from phx.transfer.messages import Greeting

__all__ = ["Transfers"]


class Transfers:
    """Installer, fetcher and provider of one node.

    Args:
        factory: makes the machines of a group anew.
        paused: groups of which the driver delivers nothing.
        addresses: (numeric host, port) of the other members, as far as they are known.
        closing: whether values are not taken any more.
        halt: stops a group that has no machines, and cannot get any.
    """

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        states: Mapping[int, GroupState],
        driver: Driver,
        keeper: Keeper,
        store: Store,
        applier: Applier,
        snapshots: Snapshots,
        *,
        factory: Callable[[int], dict[int, StateMachine]],
        paused: set[int],
        addresses: Mapping[int, tuple[str, int]],
        closing: Callable[[], bool],
        halt: Callable[[GroupState, BaseException], None],
    ) -> None:
        options = config.checkpoints
        self._driver = driver
        self._states = states
        self._paused = paused
        self.installer = Installer(
            catalog,
            Path(config.dir),
            states,
            driver,
            keeper,
            applier,
            snapshots,
            factory,
            paused,
            closing,
            threads=options.restore_threads,
        )
        peers = Peers(
            cluster=config.cluster_id,
            node=config.node,
            greeting=Greeting(
                incarnation=driver.incarnation,
                store_id=store.identity.store_id,
                now_us=time.time_ns() // 1000,
                window=config.limits.window,
            ),
            addresses=lambda: dict(addresses),
            connected=self._connected,
            timeout_us=config.timing.connect_timeout_us,
        )
        self.fetcher = Fetcher(
            self.installer,
            peers,
            lambda group, error: halt(states[group], error),
            fetches_max=options.fetches_max,
            reserve_bytes=options.reserve_bytes,
        )
        self.provider = Provider(
            catalog,
            states,
            driver,
            store,
            snapshots.ask,
            cluster=config.cluster_id,
            node=config.node,
            transfers_max=options.transfers_max,
            bytes_per_s=options.transfer_bytes_per_s,
        )
        snapshots.on_drop = self.provider.pins.expire
        applier.on_below = self.fetcher.below
        applier.on_handed = self.provider.handed

    def _connected(self) -> set[int]:
        peers: Any = self._driver.status()["peers"]
        return {peer["node"] for peer in peers if peer["connected"]}

    def restoring(self, group: int) -> bool:
        """Whether the group's machines wait for a checkpoint, of this node or of another."""
        paused = group in self._paused and self._states[group].stopped is None
        return paused or group in self.fetcher

    def counters(self) -> dict[str, int]:
        """For the status of the node."""
        return {
            "wanted": len(self.fetcher.wanted()),
            **self.fetcher.counters,
            **self.installer.counters,
            **self.provider.counters,
            "held": len(self.provider.pins),
        }

    def end(self, wait_s: float | None = None) -> None:
        """Stop both, and wait for their threads, at most `wait_s` each."""
        self.fetcher.end(wait_s)
        self.provider.end(wait_s)

    def forget(self) -> None:
        """In a forked child: the connections are the parent's."""
        self.fetcher.forget()
        self.provider.forget()
