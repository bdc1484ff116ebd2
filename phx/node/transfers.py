"""What comes and goes between this node and its peers besides the protocol: both directions."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from phx._core.driver import Driver
from phx.applier import Applier, GroupState
from phx.checkpoint.catalog import Catalog
from phx.checkpoint.digests import Verdict
from phx.checkpoint.manifest import Manifest
from phx.checkpoint.rebuild import mark, unmark
from phx.config import Config
from phx.errors import CheckpointFailed, Closed, PhxError
from phx.machine import StateMachine
from phx.node.addresses import Addresses
from phx.node.divergence import Divergence, set_aside, stopped_by
from phx.node.fetcher import Fetcher, Peers
from phx.node.installer import Installer
from phx.node.keeper import Keeper
from phx.node.line import Ending
from phx.node.machine_files import durable_in
from phx.node.memberships import Memberships
from phx.node.provider import Provider
from phx.node.snapshots import Snapshots
from phx.stops import same_stop
from phx.store import Store
from phx.transfer.messages import Ends, Greeting

__all__ = ["Transfers"]

log = logging.getLogger("phx")


class Transfers:
    """Installer, fetcher, provider and divergence of one node.

    Args:
        factory: makes the machines of a group anew.
        paused: groups of which the driver delivers nothing.
        addresses: where the other nodes are.
        welcome: the answer to who asks who is there.
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
        memberships: Memberships,
        *,
        factory: Callable[[int], dict[int, StateMachine]],
        paused: set[int],
        addresses: Addresses,
        welcome: Callable[[bytes, Ends], bytes],
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
            memberships,
            factory,
            paused,
            closing,
            threads=options.restore_threads,
        )
        peers = self.peers = self._peers(config, store, addresses, memberships.most)
        self.fetcher = Fetcher(
            self.installer,
            peers,
            lambda group, error: halt(states[group], error),
            fetches_max=options.fetches_max,
            reserve_bytes=options.reserve_bytes,
        )
        self.divergence = Divergence(
            memberships.most, peers=peers.known, ask=self.fetcher.digests, odd=self._odd
        )
        self.provider = Provider(
            catalog,
            states,
            driver,
            store,
            snapshots.ask,
            self.divergence.noted,
            cluster=config.cluster_id,
            node=config.node,
            transfers_max=options.transfers_max,
            bytes_per_s=options.transfer_bytes_per_s,
        )
        self.provider.welcome = welcome
        self._catalog = catalog
        self._anew: dict[int, list[Future[None]]] = {}  # marked; who waits for it
        self._marked: set[int] = set()  # by who found it odd
        # Those that are not to be believed, and could not be put aside. On the thread of snapshots.
        self._left: dict[int, list[Manifest]] = {}
        self._swaps: Counter[int] = Counter()  # so often a group got another state
        self._lock = threading.Lock()
        self._connect(applier, snapshots)

    def _connect(self, applier: Applier, snapshots: Snapshots) -> None:
        """Who is told of what."""
        # A group has another state, or goes on from it. Any thread.
        self.on_replaced: Callable[[int], None] = lambda group: None
        applier.on_below = self.fetcher.below
        applier.on_handed = self.provider.handed
        applier.on_agreed = self.divergence.note
        snapshots.on_drop = self.provider.pins.expire
        self.fetcher.noted = self.divergence.noted
        self.fetcher.on_unfit = self._unfit
        self.fetcher.awaited = self._anew.__contains__
        self.provider.doubted = self._doubted
        self.installer.on_swapped = self._swapped
        self.installer.on_told = self._installed

    def _peers(
        self, config: Config, store: Store, addresses: Addresses, most: Callable[[], int]
    ) -> Peers:
        return Peers(
            cluster=config.cluster_id,
            node=config.node,
            members=most,
            greeting=Greeting(
                incarnation=self._driver.incarnation,
                store_id=store.identity.store_id,
                now_us=time.time_ns() // 1000,
                window=config.limits.window,
            ),
            addresses=lambda: dict(addresses.known),
            reach=addresses.reach,
            connected=self._connected,
            timeout_us=config.timing.connect_timeout_us,
        )

    def _connected(self) -> set[int]:
        peers: Any = self._driver.status()["peers"]
        return {peer["node"] for peer in peers if peer["connected"]}

    def _odd(self, group: int, verdict: Verdict) -> None:
        """Stop a group whose replica here is not what its log says, and what came of it."""
        installer, state = self.installer, self._states[group]

        def stop() -> None:
            if not self.divergence.stands(group, verdict):
                return  # it goes on from another state
            if state.stopped is None:
                installer.applier.halt(state, stopped_by(state, verdict), None)
            # Now: later a checkpoint of another node may be among them.
            spared = installer.installing.get(group, b"")
            victims = installer.snapshots.condemn(group, verdict.equal, spared)
            swaps = self._swaps[group]
            installer.snapshots.between(lambda: tidy(victims, swaps))

        def tidy(victims: list[Manifest], swaps: int) -> None:
            self._set_aside(group, victims)
            # Its own files have the state, and a start would go on from them. Machines in memory
            # are made of what was equal, and of the log.
            if self._swaps[group] == swaps and durable_in(state.machines):
                self._marked.add(group)
                self._mark(group)

        installer.applier.soon(stop)
        self._driver.poke()

    def rebuild(self, group: int) -> Future[None]:
        """Make a group's state anew from a checkpoint of another node, whatever it is here, also if
        the group stopped; done when it goes on. Any thread; raises OSError, DriverError, Closed."""
        self._mark(group)
        if group not in self._paused:
            try:
                self.installer.pause(group)
            except Ending:
                raise Closed("the node is closed") from None
        future: Future[None] = Future()
        with self._lock:
            self._anew.setdefault(group, []).append(future)
        self.fetcher.anew(group)
        if self._states[group].removed:  # since it was asked for
            self.gone(group)
        return future

    def _mark(self, group: int) -> None:
        for _ in mark(self._catalog.files, self._catalog.root, group):
            pass

    def rebuild_marked(self, groups: Iterable[int]) -> None:
        """These were found marked at the start; the driver pauses them."""
        for group in groups:
            with self._lock:
                self._anew.setdefault(group, [])
            log.warning("group %d is made anew from a checkpoint of another node", group)
            self.fetcher.anew(group)

    def _swapped(self, manifest: Manifest) -> None:
        """The group has the state of it from now on. On the applying thread."""
        group, snapshots = manifest.group, self.installer.snapshots
        self._swaps[group] += 1
        self._marked.discard(group)
        self.divergence.forget(group)
        if group in self._anew:  # all else is of a state that is not to be believed
            victims = snapshots.condemn(group, -1, manifest.content)
            snapshots.between(lambda: self._set_aside(group, victims))
        self.on_replaced(group)

    def _set_aside(self, group: int, victims: list[Manifest]) -> None:
        """These, and those that could not be put aside before: the catalog has them no more."""
        victims = self._left.pop(group, []) + victims
        if left := set_aside(self._catalog, victims, self.installer.installing):
            self._left[group] = left

    def _doubted(self, group: int) -> bool:
        """Whether no checkpoint that is here of a group is for others. Any thread."""
        return group in self._marked or group in self._anew

    def _installed(self, manifest: Manifest) -> None:
        """The group goes on from it."""
        group = manifest.group
        self.on_replaced(group)
        with self._lock:
            waiting = self._anew.pop(group, None)
        if waiting is None:
            return

        def tidy() -> None:
            catalog = self._catalog
            if group in self._left:  # a start would take the newest of them
                log.error("group %d was made anew, and stays marked: a start does it again", group)
                return
            for _ in unmark(catalog.files, catalog.root, group):
                pass

        self.installer.snapshots.between(tidy)
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def _unfit(self, group: int, error: BaseException) -> None:
        """Its machines take nothing that is offered: who waits is told so. It stays marked."""
        with self._lock:
            waiting = self._anew.get(group, [])
            if waiting:
                self._anew[group] = []
        for future in waiting:
            if future.set_running_or_notify_cancel():
                failed = CheckpointFailed(f"group {group}: {type(error).__name__}: {error}")
                failed.__cause__ = error
                future.set_exception(failed)

    def gone(self, group: int) -> None:
        """This node is no member of it any more (`GroupState.removed`): nothing more of it comes.
        Any thread."""
        self.fetcher.gone(group)
        stopped = self._states[group].stopped
        assert stopped is not None
        self._tell_waiting(group, lambda: same_stop(stopped))

    def let_go(self, group: int) -> bool:
        """Nothing of the group comes or goes any more; whether something is on its way still."""
        if self.fetcher.let_go(group) or group in self.installer.installing:
            return True
        self._tell_waiting(group, lambda: CheckpointFailed(f"group {group} was deleted"))
        self._marked.discard(group)
        self._left.pop(group, None)
        self._swaps.pop(group, None)
        self.divergence.forget(group)
        return False

    def _tell_waiting(self, group: int, make: Callable[[], PhxError]) -> None:
        """Whoever waits for it to be made anew."""
        with self._lock:
            waiting = self._anew.pop(group, [])
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(make())

    def restoring(self, group: int) -> bool:
        """Whether the group's machines wait for a checkpoint, of this node or of another."""
        state = self._states.get(group)
        paused = group in self._paused and state is not None and state.stopped is None
        return paused or group in self.fetcher

    def counters(self) -> dict[str, int]:
        """For the status of the node."""
        return {
            **self.divergence.counters,
            "wanted": len(self.fetcher.wanted()),
            **self.fetcher.counters,
            **self.installer.counters,
            **self.provider.counters,
            "held": len(self.provider.pins),
        }

    def end(self, wait_s: float | None = None) -> None:
        """Stop all three, and wait for their threads, at most `wait_s` each."""
        for each_s in (0.0, wait_s):  # told first, for they wait in each other's connections
            self.divergence.end(each_s)
            self.fetcher.end(each_s)
            self.provider.end(each_s)
        with self._lock:
            left = [future for waiting in self._anew.values() for future in waiting]
            self._anew.clear()
        for future in left:
            if future.set_running_or_notify_cancel():
                future.set_exception(Closed("the node is closed"))

    def forget(self) -> None:
        """In a forked child: the connections are the parent's."""
        self.fetcher.forget()
        self.provider.forget()
