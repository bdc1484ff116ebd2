"""What a node says of itself: its status, which of its groups are not ready, which are gone."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from phx.errors import NotInCluster
from phx.types import NodeStatus

if TYPE_CHECKING:
    from phx.node.room import Room

__all__ = ["forgetting", "status_of", "unready"]

# How long an acceptance of unknown fate, beyond everything known to be chosen, keeps a group
# unready.
DOUBT_S = 1.0


def unready(room: Room, groups: Iterable[int] | None) -> list[int]:
    """Those of `groups` (default: all) without a leader or not applied up to what is chosen.

    An acceptance beyond everything known to be chosen may be chosen, too: it is given a second
    to turn out so, counted from the first time that a leader was known.
    """
    wanted = None if groups is None else set(groups)
    unknown = [group for group in wanted or () if group not in room.states]
    if unknown:
        raise NotInCluster(f"group {min(unknown)} is not hosted by node {room.config.node}")
    found, now = [], time.monotonic()
    # The other groups have a leader, and all that they know of is applied.
    for group, leader, chosen_through, accepted_last in room.opened().busy_groups():
        state = room.states.get(group)
        if state is None or state.parked or state.stopped is not None:
            continue
        if wanted is not None and group not in wanted:
            continue
        if not leader:
            state.led_since = 0.0
        elif not state.led_since:
            state.led_since = now
        doubt = accepted_last > chosen_through and now < state.led_since + DOUBT_S
        paused = room._restorer is not None and group in room._restorer.paused
        if paused or not leader or state.applied < chosen_through or doubt:
            found.append(group)
    if room._transfers is not None:
        fetched = set(room._transfers.fetcher.wanted()) - set(found)
        found += sorted(fetched if wanted is None else fetched & wanted)
    return found


def status_of(room: Room) -> NodeStatus:
    driver = room.opened()
    found: dict[str, Any] = dict(driver.status())
    assert room._keeper is not None
    return NodeStatus(
        cluster=room.config.cluster,
        node=room.config.node,
        incarnation=driver.incarnation,
        port=driver.port,
        groups=len(room.states),
        leading=found["leading"],
        stopped=tuple(sorted(room.applier.stopped)),
        removed=tuple(sorted(room._memberships.removed)),
        waiting_values=room.waiters.count,
        waiting_bytes=room.waiters.held_bytes,
        flow=room.waiters.gates_now(),
        poisoned=bool(found["journal"]["poisoned"]),
        store_error=room._keeper.error,
        journal_error=room.door.pressure.error,
        peers=room.peers.statuses(found),
        counters=found["engine"],
        journal=found["journal"],
        queues=found["queues"],
        cpu_ns={
            **found["cpu_ns"],
            **{f"poll.{name}": ns for name, ns in found["layers_ns"].items()},
        },
        settle=found["settle"],
        store=asdict(room._store.stats()),
        applier=room.applier.counters(),
        checkpoints=room._snapshots.numbers() if room._snapshots else {},
        checkpoint_error=room._snapshots.error if room._snapshots else None,
        transfers=room._transfers.counters() if room._transfers else {},
        damage=room._doctor.status(),
    )


def forgetting(node: weakref.ref[Any]) -> Callable[[int], None]:
    """For `Room.on_gone`, which must not keep the node: it gives no such group any more."""

    def forget(group: int) -> None:
        if (there := node()) is not None:
            there._groups.pop(group, None)

    return forget
