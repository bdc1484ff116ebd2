"""Does the faults: kills, stops, cuts off, fills, unplugs; and takes each of them back."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from phx.testing.processes import Cluster, Worker, WorkerFailed
from phx.testing.proxy import Mesh
from phx.testing.strace import Strace
from phx.testing.torture.changes import Changes
from phx.testing.torture.disks import Machines, PowerDisk, SmallDisk
from phx.testing.torture.groups import Groups
from phx.testing.torture.losses import (
    allow_rejoin,
    flip_some,
    give_back,
    lose_journal,
    take_away,
)
from phx.testing.torture.schedule import GROUPS, LOSING, MEMBERS, Episode, Fault
from phx.testing.torture.tasks import together, whole
from phx.types import DURABILITIES

SLOW_US = (20_000, 400_000)
DELAY_US = (10_000, 300_000)
CUT_EVERY_S = (0.05, 0.7)
FORGET_AFTER_S = (0.05, 0.6)
"""Soon all clients wait for the node that is cut off, and nothing new is said."""
ELECTED_S = 3.0
POISON_WITHIN_S = 5.0
RECOVER_WITHIN_S = 40.0
REJOIN_WITHIN_S = 60.0
"""With all others there, and nothing in their way: so long a node that lost its journal may need
until it votes in every group again."""
LAG_WITHIN_S = 20.0
LAG_PUSHES, LAG_BYTES = 5, 100
POLL_S = 0.1
PUSHED_BYTES = 60_000


class Nemesis:
    """What goes wrong in a cluster, and what is noticed about it.

    Args:
        relaxing: some groups say what is only written: what takes that away makes a node suspect.

    Attributes:
        done: faults by kind.
        noticed: what nodes said of themselves, counted: "poisoned", "store error", "journal full",
            "rejoined", "below the floors", ...
        findings: in words.
        changes: of members.
        groups: that come and go.
    """

    def __init__(
        self,
        cluster: Cluster,
        machines: Machines,
        say: Callable[[str], None],
        *,
        relaxing: bool = False,
    ) -> None:
        assert cluster.mesh is not None
        self.done: Counter[str] = Counter()
        self.noticed: Counter[str] = Counter()
        self.findings: list[str] = []
        self.restarts = 0
        self._cluster, self._disks, self._say = cluster, machines.disks, say
        self._mesh: Mesh = cluster.mesh
        self._watches: dict[Worker, asyncio.Task[None]] = {}
        self._ours: set[Worker] = set()  # we ended them
        self._traces: list[Strace] = []
        self._relaxing = relaxing
        self._suspect: set[int] = set()
        self.changes = Changes(self, cluster, machines, say)
        self.groups = Groups(self, cluster, say)

    async def run(self, episode: Episode) -> None:
        """Let an episode happen; when this returns every node runs and the network is whole."""
        alone = len(episode.faults) == 1
        if self._relaxing:
            await self._switch(random.Random(episode.faults[0].seed))
        try:
            await together(self._fault(fault, alone) for fault in episode.faults)
        finally:
            self._mesh.heal_all()
        await self._rejoined()

    async def _rejoined(self) -> None:
        """Who lost its journal, or what was only written to it, votes again before anybody else
        loses anything."""
        until = time.monotonic() + REJOIN_WITHIN_S
        before: list[int] = []
        while self._suspect:
            (node,) = self._suspect
            left = (await self._cluster[node].call("health"))["suspect"]
            if left != before:
                self._say(f"node {node} is to rejoin groups {left}")
                before = left
            if not left:
                self._suspect.clear()
                self.noticed["rejoined"] += 1
            elif time.monotonic() > until:
                self.findings.append(f"suspect: node {node} did not rejoin groups {left}")
                break
            else:
                await asyncio.sleep(POLL_S)

    async def _switch(self, chance: random.Random) -> None:
        """Another durability of some group at one node, while it runs."""
        node = chance.choice(sorted(self._cluster.workers))
        group = chance.choice(self._cluster.groups)
        mode = chance.choice(DURABILITIES)
        why = await self._cluster[node].call("durability", group=group, mode=mode)
        self._say(f"node {node}, group {group}: {mode}{why and ' was refused: '}{why}")
        self.noticed["switched" if not why else "not switched"] += 1

    async def _fault(self, fault: Fault, alone: bool) -> None:
        await asyncio.sleep(fault.at_s)
        places = self.changes.places
        nodes = [places[one] for one in fault.nodes]
        if fault.leader_first:
            nodes = await self._leader_first(nodes)
        self.done[fault.kind] += 1
        self._say(f"{fault.kind} {'+'.join(map(str, nodes))} for {fault.lasts_s} s")
        chance = random.Random(fault.seed)
        if fault.kind in MEMBERS:
            hit = [place for place, node in places.items() if node in nodes]
            await getattr(self.changes, fault.kind)(hit, fault.lasts_s, chance, alone)
            return
        if fault.kind in GROUPS:
            kind = fault.kind.removeprefix("group-")
            await self.groups.run(kind, nodes, fault.lasts_s, chance)
            return
        if fault.kind in LOSING:
            await self.groups.spare(nodes[0])
        action: Callable[[list[int], float, random.Random], Awaitable[None]]
        action = getattr(self, f"_{fault.kind.replace('-', '_')}")
        await action(nodes, fault.lasts_s, chance)

    async def _leader_first(self, nodes: list[int]) -> list[int]:
        led: dict[int, int] = {}
        for node, worker in list(self._cluster.workers.items()):
            if not worker.stopped and node in self.changes.places.values():
                with suppress(WorkerFailed):
                    led[node] = len(await worker.call("led", 2.0))
        best = max(led, key=lambda node: led[node], default=nodes[0])
        return [best, *(node for node in nodes if node != best)][: len(nodes)]

    # --- starting and ending processes

    async def start(self, *nodes: int) -> None:
        """Start these nodes, and watch that none of them ends unless it is made to."""
        try:
            await whole(self._cluster.start(*nodes))
        finally:
            for node in nodes:
                if worker := self._cluster.workers.get(node):
                    self._watches[worker] = asyncio.create_task(self._watch(worker))
        self.restarts += len(nodes)

    async def _watch(self, worker: Worker) -> None:
        code = await worker.wait()
        if worker not in self._ours:
            self.findings.append(f"died: node {worker.spec.node} ended by itself, code {code}")

    async def kill(self, *nodes: int) -> None:
        """SIGKILL these, and wait until they are gone."""
        workers = [
            self._cluster.workers.pop(node) for node in nodes if node in self._cluster.workers
        ]
        self._ours.update(workers)
        for worker in workers:
            worker.kill()
        for worker in workers:
            await worker.wait()

    async def close(self, *nodes: int) -> None:
        """Close these cleanly; one that cannot be is a finding."""
        workers = [self._cluster.workers.pop(node) for node in nodes]
        self._ours.update(workers)
        await asyncio.gather(*(worker.close() for worker in workers))
        for worker in workers:
            if code := await worker.wait():
                self.findings.append(f"died: node {worker.spec.node} did not close, code {code}")

    async def end(self) -> None:
        """Stop watching and tracing; the nodes may end now."""
        for trace in self._traces:
            await asyncio.to_thread(trace.end, kindly=False)
        for watch in self._watches.values():
            watch.cancel()
        await asyncio.gather(*self._watches.values(), return_exceptions=True)

    # --- faults of processes, each named as in schedule.KINDS

    async def _kill(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        await self.kill(*nodes)
        await asyncio.sleep(lasts_s if chance.random() < 0.7 else 0)
        if chance.random() < 0.4:  # and again, while it replays and joins
            starting = await self.begun(nodes, chance)
            await self.kill(*nodes)
            with suppress(WorkerFailed):
                await starting
        await self.start(*nodes)

    async def begun(self, nodes: list[int], chance: random.Random) -> asyncio.Task[None]:
        """These nodes are being started, for about a second."""
        starting = asyncio.create_task(self.start(*nodes))
        for _ in range(500):
            if all(node in self._cluster.workers for node in nodes):
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(chance.uniform(0.0, 1.2))
        return starting

    async def _close(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        await self.close(*nodes)
        await asyncio.sleep(lasts_s)
        await self.start(*nodes)

    async def _wipe(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        """It must have all of it again before the next one loses its own."""
        (node,) = nodes
        await self.kill(node)
        folder = self._cluster.folder / f"node{node}"
        names = ("store", "checkpoints") if chance.random() < 0.7 else ("store",)
        taken = await asyncio.to_thread(take_away, folder, names)
        try:
            await self.start(node)
        except WorkerFailed:
            if not self.groups.book.lives:
                raise
            # Only the store knew which created groups are here: it must not go on without it.
            if (code := await self._gone(node)) < 0:
                self.findings.append(f"died: node {node} crashed without its store, code {code}")
            self.noticed["wipe refused"] += 1
            await asyncio.to_thread(give_back, folder, taken)
            await self.start(node)
        await asyncio.to_thread(shutil.rmtree, taken)
        self._doubt([node])  # the store alone knew in which run its groups were relaxed
        health = await self._complete("wipe", node, lasts_s)
        self.noticed["store made anew"] += health["damage"] > 0

    async def _complete(self, kind: str, node: int, lasts_s: float) -> dict[str, Any]:
        """The node has its machines and its log again, or that is a finding; its health."""
        until = time.monotonic() + lasts_s + RECOVER_WITHIN_S
        while True:
            waiting = await self._cluster[node].call("incomplete")
            health: dict[str, Any] = await self._cluster[node].call("health")
            if not waiting and not health["holes"]:
                return health
            if time.monotonic() > until:
                self.findings.append(
                    f"{kind}: node {node} did not get groups {waiting} back, with "
                    f"{health['holes']} holes"
                )
                return health
            await asyncio.sleep(POLL_S)

    async def _wipe_journal(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        """The other members have all of theirs, and must have had it since the last loss."""
        (node,) = nodes
        await self.kill(node)
        folder = self._cluster.folder / f"node{node}"
        if how := await asyncio.to_thread(lose_journal, folder, chance):
            self._say(f"node {node} loses of its journal: {how}")
            await self._refused(node)
            if not await asyncio.to_thread(allow_rejoin, folder):
                self.findings.append(f"wipe-journal: node {node} may not rejoin, after {how}")
            self._suspect.add(node)
        await asyncio.sleep(lasts_s if chance.random() < 0.3 else 0)
        if chance.random() < 0.4:
            starting = await self.begun(nodes, chance)
            await self.kill(node)
            with suppress(WorkerFailed):
                await starting
            # Its new journal may be torn, and leave is given for one start.
            await asyncio.to_thread(allow_rejoin, folder)
        await self.start(node)

    async def _refused(self, node: int) -> None:
        """By itself it does not start: its votes may be lost."""
        try:
            await self.start(node)
        except WorkerFailed:
            await self._gone(node)
            return
        self.findings.append(f"wipe-journal: node {node} started without its journal, unasked")
        await self.kill(node)

    async def _gone(self, node: int) -> int:
        """The exit code of a node that did not start."""
        worker = self._cluster.workers.pop(node)
        self._ours.add(worker)
        worker.kill()  # if it hangs
        return await worker.wait()

    async def _flip(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        """It repairs, or it refuses to start; then its disk is made good again."""
        (node,) = nodes
        await self.kill(node)
        folder = self._cluster.folder / f"node{node}"
        before = await asyncio.to_thread(flip_some, folder, chance)
        self._say(f"node {node}: bits of {', '.join(path.name for path in before)} are flipped")
        try:
            await self.start(node)
        except WorkerFailed:
            if (code := await self._gone(node)) < 0:
                self.findings.append(f"died: node {node} crashed on flipped bits, code {code}")
            self.noticed["flip refused"] += 1
            for path, content in before.items():
                await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
                await asyncio.to_thread(path.write_bytes, content)
            await self.start(node)
        health = await self._complete("flip", node, lasts_s)
        self.noticed["flip found"] += health["damage"] > 0

    async def _lag(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        """Away until some group's log of the others begins above all that it knows to be chosen."""
        (node,) = nodes
        worker = self._cluster[node]
        known = {int(g): at[1] for g, at in (await worker.call("positions")).items()}
        stopped = chance.random() < 0.5
        if stopped:
            worker.pause()
        else:
            await self.kill(node)
        below = False
        until = time.monotonic() + lasts_s + LAG_WITHIN_S
        try:
            while not below and time.monotonic() < until:
                below = await self._trimmed_past(node, known)
                await asyncio.sleep(POLL_S)
        finally:
            if stopped:
                worker.resume()
        self.noticed["below the floors"] += below
        if not stopped:
            await self.start(node)
        await self._caught_up(node, lasts_s)
        health = await self._complete("lag", node, lasts_s)
        self.noticed["fetched a checkpoint"] += health["fetched"] > 0

    async def _caught_up(self, node: int, lasts_s: float) -> None:
        """It has applied what the others know to be chosen now, or that is a finding."""
        wanted: Counter[int] = Counter()
        for other in self._others(node):
            worker = self._cluster.workers.get(other)
            if worker is not None and not worker.stopped:
                with suppress(WorkerFailed):
                    for group, at in (await worker.call("positions")).items():
                        wanted[int(group)] = max(wanted[int(group)], at[1])
        until = time.monotonic() + lasts_s + RECOVER_WITHIN_S
        while True:
            found = await self._cluster[node].call("positions")
            behind = [group for group, at in wanted.items() if found[str(group)][0] < at]
            if not behind:
                return
            if time.monotonic() > until:
                self.findings.append(f"lag: node {node} did not catch up in groups {behind}")
                return
            await asyncio.sleep(POLL_S)

    async def _trimmed_past(self, node: int, known: dict[int, int]) -> bool:
        """Values that nobody waits for; do all others keep less than it needs of some group?"""
        floors = []
        for other in self._others(node):
            worker = self._cluster.workers.get(other)
            if worker is None or worker.stopped:
                return False
            try:
                found = await worker.call("floors", 2.0)
            except WorkerFailed:
                return False
            floors.append({int(group): floor for group, floor in found.items()})
            for group in self._cluster.groups:
                for _ in range(LAG_PUSHES):
                    self._push(worker, group, LAG_BYTES)
        return any(min(one[group] for one in floors) > known[group] + 1 for group in known)

    async def _stop(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        workers = [self._cluster[node] for node in nodes]
        for worker in workers:
            worker.pause()
        try:
            await asyncio.sleep(lasts_s)
        finally:
            for worker in workers:
                worker.resume()

    # --- faults of the network

    def _others(self, node: int) -> list[int]:
        return [other for other in self._cluster.ids if other != node]

    async def _drop(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        for node in nodes:
            self._mesh.isolate(node)
        await asyncio.sleep(lasts_s)
        for node in nodes:
            self._mesh.heal(node)

    async def _oneway(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        outwards = chance.random() < 0.5
        others = self._others(nodes[0])
        for other in chance.sample(others, chance.randint(1, len(others))):
            self._mesh.drop(*((nodes[0], other) if outwards else (other, nodes[0])))
        await asyncio.sleep(lasts_s)
        self._mesh.heal(nodes[0])

    async def _partial(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        others = self._others(nodes[0])
        for other in others[: max(1, len(others) // 2)]:
            self._mesh.drop(nodes[0], other)
            self._mesh.drop(other, nodes[0])
        await asyncio.sleep(lasts_s)
        self._mesh.heal(nodes[0])

    async def _delay(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        pairs = [(node, other) for node in nodes for other in self._others(node)]
        for node, other in pairs:
            self._mesh.delay(node, other, chance.randint(*DELAY_US))
        await asyncio.sleep(lasts_s)
        for node, other in pairs:
            self._mesh.delay(node, other, 0)

    async def _cut(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        until = time.monotonic() + lasts_s
        while time.monotonic() < until:
            for node in nodes:
                self._mesh.cut(node, chance.choice(self._others(node)))
            await asyncio.sleep(chance.uniform(*CUT_EVERY_S))

    # --- faults of disks

    async def _trace(self, node: int, inject: str) -> Strace:
        trace = await asyncio.to_thread(Strace, self._cluster[node].pid, inject)
        self._traces.append(trace)
        return trace

    async def _slow(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        inject = f"delay_enter={chance.randint(*SLOW_US)}"
        traces = [await self._trace(node, inject) for node in nodes]
        await asyncio.sleep(lasts_s)
        for trace in traces:
            await asyncio.to_thread(trace.end)

    async def _eio(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        # Once: whoever tries again is told that all is well. Or every time, until it is given up.
        when = chance.randint(1, 6) if chance.random() < 0.5 else 0
        await asyncio.gather(*(self._eio_at(node, lasts_s, when) for node in nodes))
        if chance.random() < 0.7 and all(isinstance(self._disks[n], PowerDisk) for n in nodes):
            # What a sync that failed was for is lost, as on a real disk.
            await self.power_goes(nodes, chance.getrandbits(32), 0.0)
        else:
            await self.kill(*nodes)
        await self.start(*nodes)
        self._doubt(nodes)

    async def _eio_at(self, node: int, lasts_s: float, when: int) -> None:
        """A failed sync: the node must say so, acknowledge nothing more, and be started again.

        `when`: which sync of each thread fails; 0: all do.
        """
        worker = self._cluster[node]
        trace = await self._trace(node, f"error=EIO:when={when}" if when else "error=EIO")
        before = await worker.call("health")
        until = time.monotonic() + lasts_s + POISON_WITHIN_S
        while not (health := await worker.call("health"))["poisoned"]:
            if time.monotonic() > until:
                break
            await asyncio.sleep(POLL_S)
        await asyncio.to_thread(trace.end)
        if health["poisoned"]:
            self.noticed["poisoned"] += 1
            await self._poisoned(node, worker)
        elif not when and health["syncs"] > before["syncs"] + 1:  # one may have begun before
            self.findings.append(f"failed syncs were taken for good on node {node}: {health}")
        if health["store_error"]:
            self.noticed["store error"] += 1

    async def _poisoned(self, node: int, worker: Worker) -> None:
        """The disk works again, but nobody knows what it holds: the node must stay out of it."""
        answers = [
            await worker.call("operate", group=group, kind="put", key="_poisoned",
                              argument=["poisoned", 0], timeout_s=1.0)
            for group in self._cluster.groups[:2]
        ]  # fmt: skip
        for answer in answers:
            if answer["error"] not in ("NodeFailed", "NodeFailedUnknown"):
                self.findings.append(f"node {node} is poisoned and answers {answer}")
        if led := await worker.call("led"):
            self.findings.append(f"node {node} is poisoned and leads groups {led}")
        if not (await worker.call("health"))["poisoned"]:
            self.findings.append(f"node {node} was poisoned and is not any more")

    async def _full(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        (node,) = nodes
        disk, worker = self._disks[node], self._cluster[node]
        assert isinstance(disk, SmallDisk)
        await asyncio.to_thread(disk.fill)
        hurt: set[str] = set()
        until = time.monotonic() + 2 * lasts_s
        while time.monotonic() < until:
            health = await worker.call("health")
            hurt |= {"store error"} if health["store_error"] else set()
            if (health["journal_error"] or "").startswith("the disk is full"):
                hurt.add("journal full")
            for group in self._cluster.groups:  # or the journal would hardly need another segment
                self._push(worker, group)
            await asyncio.sleep(POLL_S)
        self.noticed.update(hurt)
        refused = chance.random() < 0.3 and not await self._starts_full(node)
        disk.free()
        if refused:
            await self.start(node)
        worker = self._cluster[node]
        until = time.monotonic() + RECOVER_WITHIN_S
        while (health := await worker.call("health"))["store_error"] or health["pressure"]:
            if time.monotonic() > until:
                self.findings.append(
                    f"full: node {node} did not recover from a full disk: {health}"
                )
                break
            await asyncio.sleep(POLL_S)
        if health["poisoned"]:
            self.findings.append(f"full: node {node} was poisoned by a full disk: {health}")
            await self.kill(node)
            await self.start(node)

    async def _starts_full(self, node: int) -> bool:
        """Kill it and start it while the disk is full. It may refuse; it may not crash."""
        await self.kill(node)
        try:
            await self.start(node)
        except WorkerFailed:
            if (code := await self._gone(node)) < 0:
                self.findings.append(f"died: node {node} crashed on a full disk, code {code}")
            self.noticed["did not start"] += 1
            return False
        self.noticed["started full"] += 1
        return True

    @staticmethod
    def _push(worker: Worker, group: int, size: int = PUSHED_BYTES) -> None:
        """A value, large if nothing else is said, that nobody waits for."""
        pushed = worker.ask(
            "operate", group=group, kind="put", key="_full",
            argument=["full", size], timeout_s=1.0,
        )  # fmt: skip
        pushed.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _power(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        keep = chance.choice((0.0, 0.0, 0.3, 0.7, 0.95))
        await self.power_goes(nodes, chance.getrandbits(32), keep)
        await asyncio.sleep(min(1.0, lasts_s))
        if chance.random() < 0.3:  # and again, while it starts
            starting = await self.begun(nodes, chance)
            await self.power_goes(nodes, chance.getrandbits(32), keep)
            with suppress(WorkerFailed):
                await starting
        await self.start(*nodes)
        self._doubt(nodes)

    async def _forget(self, nodes: list[int], lasts_s: float, chance: random.Random) -> None:
        """Whoever is left makes a majority, with one that may lack what it said: it was synced, or
        they must not go on without those that have it."""
        behind = (len(nodes) - 1) // 2
        apart, (doubtful, *killed) = nodes[:behind], nodes[behind:]
        for node in apart:
            self._mesh.isolate(node)
        await asyncio.sleep(chance.uniform(*FORGET_AFTER_S))
        await together([
            self.power_goes([doubtful], chance.getrandbits(32), 0.0), self.kill(*killed)
        ])  # fmt: skip
        for node in apart:
            for other in self._others(node):
                self._mesh.cut(node, other)  # or what was held back would be delivered
            self._mesh.heal(node)
        await self.start(doubtful)
        left = (await self._cluster[doubtful].call("health"))["suspect"]
        self._say(f"node {doubtful} may lack something of groups {left}")
        await asyncio.sleep(lasts_s + ELECTED_S)
        await self.start(*killed)
        self._doubt([doubtful])

    def _doubt(self, nodes: list[int]) -> None:
        if self._relaxing:
            self._suspect.update(nodes)

    async def power_goes(self, nodes: list[int], seed: int, keep: float) -> None:
        """All processes end at once, and with them what was not durable at that moment.

        Told to end, it goes on to its own: who waits for a sync of a disk without power cannot
        even be killed before the disk is released.
        """
        await whole(self._power_goes(nodes, seed, keep))

    async def _power_goes(self, nodes: list[int], seed: int, keep: float) -> None:
        disks = [self._disks[node] for node in nodes]
        powered = [disk for disk in disks if isinstance(disk, PowerDisk)]
        assert len(powered) == len(disks)
        await asyncio.gather(*(asyncio.to_thread(disk.off) for disk in powered))
        for node in nodes:
            self._ours.add(self._cluster[node])
            self._cluster[node].kill()
            self._cluster.reboot(node)
        await asyncio.gather(*(asyncio.to_thread(disk.release) for disk in powered))
        await self.kill(*nodes)
        for at, disk in enumerate(powered):
            await asyncio.to_thread(disk.cut, seed + at, keep)
