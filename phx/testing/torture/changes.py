"""Changes of members under faults: nodes are replaced, come and go, and a cluster moves.

Whoever is asked may be killed, stopped or cut off meanwhile, by another fault of the episode; then
another node is asked the same, for to ask again is safe. What comes in may be killed while it
joins. What goes out is alive, killed, stopped or cut off; and in the moment in which it is said
that all groups have their new members its folder is deleted, or it comes back later, and must say
itself that it is a member of nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from phx.testing.processes import Cluster, Worker, WorkerFailed, now_us
from phx.testing.torture.disks import Machines

ACTIVE_WITHIN_S = 60.0
"""A change is active so long after it was first asked for, other faults being over long before."""
HEARD_WITHIN_S = 40.0
"""So long after it came back a node knows that it was removed."""
OPEN_WITHIN_S = 40.0
"""So long after the change a node that came in is open."""
ASK_S = (2.0, 10.0)
POLL_S = 0.1

Say = Callable[[str], None]
ALIVE, KILLED, STOPPED, DROPPED = "alive", "killed", "stopped", "dropped"


@dataclass(frozen=True)
class Change:
    """One that was active.

    Attributes:
        began_us, ended_us: from the first call to the return of the last.
        calm: nothing else went wrong in this episode.
    """

    kind: str
    began_us: int
    ended_us: int
    calm: bool


@dataclass(frozen=True)
class Goal:
    """A method of phx.Node, and its arguments; `learner`: the new one does not vote."""

    how: str
    arguments: list[Any]
    learner: bool = False


class Ends(Protocol):
    """What the nemesis does for it, with its own books."""

    noticed: Counter[str]
    findings: list[str]

    async def start(self, *nodes: int) -> None: ...
    async def kill(self, *nodes: int) -> None: ...
    async def begun(self, nodes: list[int], chance: random.Random) -> asyncio.Task[None]: ...


class Changes:
    """Makes them. One at a time.

    Attributes:
        places: the node in each place, 1 to n: who is replaced hands its number on.
        done: all changes so far.
        replaced: so many nodes are gone for good.
    """

    def __init__(self, ends: Ends, cluster: Cluster, machines: Machines, say: Say) -> None:
        assert cluster.mesh is not None
        self.places = {node: node for node in cluster.ids}
        self.done: list[Change] = []
        self.replaced = 0
        self._ends, self._cluster, self._machines, self._say = ends, cluster, machines, say
        self._mesh = cluster.mesh

    # --- kinds, each named as in schedule.KINDS

    async def replace(
        self, places: list[int], lasts_s: float, chance: random.Random, calm: bool
    ) -> None:
        (place,) = places
        old = self.places[place]
        how = await self._afflict(old, chance)
        new = await self._admit()
        goal = Goal("replace_member", [old, new, self._cluster.address(new)])
        if await self._reach("replace", goal, [new], chance, calm and how == ALIVE):
            self.places[place] = new
            await self._away({old: how}, chance, [old])

    async def move(
        self, places: list[int], lasts_s: float, chance: random.Random, calm: bool
    ) -> None:
        old = list(self.places.values())
        one = chance.choice(old)
        how = dict.fromkeys(old, ALIVE) | {one: await self._afflict(one, chance)}
        new = [await self._admit() for _ in old]
        goal = Goal("set_members", [[(node, self._cluster.address(node)) for node in new]])
        if await self._reach("move", goal, new, chance, calm and how[one] == ALIVE):
            self.places = dict(zip(self.places, new, strict=True))
            # Who did not hear of the new ones while others were there finds nobody who knows.
            await self._away(how, chance, [one] if calm and how[one] == ALIVE else [])

    async def grow(
        self, places: list[int], lasts_s: float, chance: random.Random, calm: bool
    ) -> None:
        """One more, perhaps as a learner first; then one less, whichever."""
        (place,) = places
        new = await self._admit()
        goal, coming = Goal("add_member", [new, self._cluster.address(new)]), [new]
        if chance.random() < 0.3:
            learner = replace(goal, learner=True)
            if not await self._reach("add a learner", learner, [new], chance, calm):
                return
            coming = []
        if not await self._reach("add", goal, coming, chance, calm):
            return
        await asyncio.sleep(lasts_s)
        old = chance.choice((self.places[place], self.places[place], new))
        how = await self._afflict(old, chance)
        goal = Goal("remove_member", [old])
        if await self._reach("remove", goal, [], chance, calm and how == ALIVE):
            if old != new:
                self.places[place] = new
            await self._away({old: how}, chance, [old])

    async def shrink(
        self, places: list[int], lasts_s: float, chance: random.Random, calm: bool
    ) -> None:
        """One less, then one more."""
        (place,) = places
        old = self.places[place]
        how = await self._afflict(old, chance)
        goal = Goal("remove_member", [old])
        if not await self._reach("remove", goal, [], chance, calm and how == ALIVE):
            return
        await self._away({old: how}, chance, [old])
        await asyncio.sleep(lasts_s)
        new = await self._admit()
        goal = Goal("add_member", [new, self._cluster.address(new)])
        if await self._reach("add", goal, [new], chance, calm):
            self.places[place] = new

    # --- who comes

    async def _admit(self) -> int:
        node = await self._cluster.admit()
        await asyncio.to_thread(self._machines.begin, node)
        return node

    async def _come(self, nodes: list[int], chance: random.Random) -> None:
        """They are started, perhaps killed while they join, and open as members."""
        await asyncio.sleep(chance.choice((0.0, chance.uniform(0.0, 1.0))))
        if chance.random() < 0.3:
            starting = await self._ends.begun(nodes, chance)
            await self._ends.kill(*nodes)
            with suppress(WorkerFailed):
                await starting
        await self._ends.start(*nodes)

    # --- who goes

    async def _afflict(self, node: int, chance: random.Random) -> str:
        """What has become of who is to go."""
        how = chance.choice((ALIVE, ALIVE, KILLED, STOPPED, DROPPED))
        if how == KILLED:
            await self._ends.kill(node)
        elif how == STOPPED:
            self._cluster[node].pause()
        elif how == DROPPED:
            self._mesh.isolate(node)
        self._say(f"node {node} is to go: {how}")
        return how

    async def _away(
        self, how: dict[int, str], chance: random.Random, may_return: Collection[int]
    ) -> None:
        """They are members of nothing: their folders go, now or after they have said so."""
        nodes = list(how)
        back = chance.choice([*may_return, None, None]) if may_return else None
        for node in nodes:
            if node != back:
                await self._delete(node)
        if back is None:
            return
        others = [node for node in self._cluster.ids if node not in nodes]
        worker = await self._back(back, how[back])
        until = time.monotonic() + HEARD_WITHIN_S
        while len(left := await self._removed_from(worker)) < len(self._cluster.groups):
            if time.monotonic() > until:
                self._ends.findings.append(
                    f"removed: node {back} came back ({how[back]}), and heard in "
                    f"{HEARD_WITHIN_S} s of groups {left} alone that it left them; "
                    f"nodes {others} are there"
                )
                break
            await asyncio.sleep(POLL_S)
        else:
            self._ends.noticed["removed says so"] += 1
        await self._delete(back)

    async def _back(self, node: int, how: str) -> Worker:
        if how == KILLED:
            await self._ends.start(node)
        elif how == STOPPED:
            self._cluster[node].resume()
        elif how == DROPPED:
            self._mesh.heal(node)
        return self._cluster[node]

    async def _removed_from(self, worker: Worker) -> list[int]:
        try:
            found: list[int] = await worker.call("removed", 5.0)
        except WorkerFailed:
            return []
        return found

    async def _delete(self, node: int) -> None:
        await self._ends.kill(node)
        self._say(f"node {node} is gone, with its folder")
        await asyncio.to_thread(self._machines.end, node)
        await self._cluster.forget(node)
        self.replaced += 1

    # --- the calls

    async def _reach(
        self,
        kind: str,
        goal: Goal,
        new: list[int],
        chance: random.Random,
        calm: bool,
    ) -> bool:
        """All groups have these members, and who is new is open; or that is a finding."""
        coming = asyncio.create_task(self._come(new, chance)) if new else None
        began_us = now_us()
        try:
            if not await self._asked(kind, goal, chance):
                return False
            self.done.append(Change(kind, began_us, now_us(), calm))
            self._say(f"{kind} is active, after {(now_us() - began_us) / 1e6:.2f} s")
            if coming is not None:
                await asyncio.wait_for(coming, OPEN_WITHIN_S)
        except TimeoutError:
            self._ends.findings.append(f"{kind}: nodes {new} are members, and do not open")
            return False
        finally:
            if coming is not None and not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
        return True

    async def _asked(self, kind: str, goal: Goal, chance: random.Random) -> bool:
        """Ask one node after the other, who is to go among them, sometimes two at a time, until
        all groups are there."""
        left, why = set(self._cluster.groups), "nobody could be asked"
        until = time.monotonic() + ACTIVE_WITHIN_S
        while left:
            if time.monotonic() > until:
                self._ends.findings.append(
                    f"{kind}: not active in groups {sorted(left)} after {ACTIVE_WITHIN_S} s: {why}"
                )
                return False
            nodes = [
                node
                for node, worker in self._cluster.workers.items()
                if not worker.stopped and node not in self._cluster.joining
            ]
            asked = chance.sample(nodes, min(len(nodes), chance.choice((1, 1, 2))))
            timeout_s = chance.uniform(*ASK_S)
            calls = [
                asyncio.create_task(self._ask(self._cluster[node], goal, timeout_s))
                for node in asked
            ]
            for answer in asyncio.as_completed(calls):
                done, failed = await answer
                left.difference_update(done)
                why = failed or why
                if not left:
                    break  # the other one may have been cut off
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            if left:
                await asyncio.sleep(POLL_S)
        return True

    async def _ask(self, worker: Worker, goal: Goal, timeout_s: float) -> tuple[list[int], str]:
        """Groups that are there, and why the others are not."""
        try:
            said = await worker.call("change", timeout_s + 2, **asdict(goal), timeout_s=timeout_s)
        except WorkerFailed as error:
            return [], str(error)
        return said["done"], said["failed"]
