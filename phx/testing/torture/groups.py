"""Groups that come and go under faults: created, stopped, moved, deleted, and created again.

Each id has a *story* at a time, one call after the other, and each call is asked for at whatever
node runs, sometimes at two, until somebody says that it is done; who is asked may be killed in the
middle of it, or be hit by another fault of the episode. So after each call it is known what there
is to be (book.py), and every answer can be held against it.

What was asked for and got no answer may still be done, once: a call to create may be done after the
group was deleted. Such calls are *loose*, for a while, and what they explain is no finding.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from phx.testing.processes import Cluster, Worker, WorkerFailed, now_us
from phx.testing.torture.book import Book, Life, Seen, differences, leaks
from phx.testing.torture.clients import ACKNOWLEDGED, UNKNOWN
from phx.testing.torture.tasks import together

DONE_WITHIN_S = 60.0
"""So long after it was first asked for a call is done, other faults being over long before."""
AGREED_WITHIN_S = 40.0
"""So long after the faults have ended all nodes are as they are to be."""
LATE_S = 60.0
"""So long what got no answer may still be done."""
STABLE_S = 2.0
ASK_S = (2.0, 10.0)
HASTY_S = (0.002, 0.2)
KILL_AFTER_S = (0.0, 0.3)
POLL_S = 0.1
IDS = range(10_000, 10_006)
CYCLED_ID = IDS.stop
CYCLES = 12
WHOLE = 3
"""A group with fewer members cannot lose what one of them had."""


class Ends(Protocol):
    """What the nemesis does for it, with its own books."""

    noticed: Counter[str]
    findings: list[str]

    async def start(self, *nodes: int) -> None: ...
    async def kill(self, *nodes: int) -> None: ...


class Stuck(Exception):
    """It was not done in time, which is a finding."""


@dataclass(frozen=True)
class Call:
    """`how` names a method of phx.Node: ``create`` for ``create_group``."""

    how: str
    group: int
    members: frozenset[int] = frozenset()

    def __str__(self) -> str:
        of = f" of nodes {sorted(self.members)}" if self.members else ""
        return f"{self.how} group {self.group}{of}"


@dataclass(frozen=True)
class Answer:
    """What a node said to a call, see the worker's ``group``; of a process that ended: unknown.

    Attributes:
        generation, members: of the group as the call left it.
        hosted: generation that the node hosts then; 0: none.
        files: what is left of it there, if it hosts none.
        refused: after a stop: the error that a value got there.
        closing: it closes, and hosts nothing any more.
        said_us: when it knew; 0: it said nothing.
    """

    node: int
    outcome: str = UNKNOWN
    error: str = ""
    text: str = ""
    generation: int = 0
    members: tuple[int, ...] = ()
    hosted: int = 0
    files: tuple[str, ...] = ()
    refused: str = ""
    closing: bool = False
    said_us: int = 0


@dataclass(frozen=True)
class Loose:
    """A call that got no answer, and may still be done until then."""

    call: Call
    generation: int
    asked_us: int
    until_s: float = field(default_factory=lambda: time.monotonic() + LATE_S)


class Groups:
    """Has them come and go.

    Attributes:
        book: what there is to be.
        calls: those that were done, by kind.
        took_us: from when each was first asked for until somebody said that it was done.
    """

    def __init__(self, ends: Ends, cluster: Cluster, say: Callable[[str], None]) -> None:
        self.book = Book()
        self.calls: Counter[str] = Counter()
        self.took_us: list[int] = []
        self._ends, self._cluster, self._say = ends, cluster, say
        self._loose: list[Loose] = []
        self._may_die: Collection[int] = ()
        self._dying = asyncio.Lock()

    async def run(
        self, kind: str, may_die: Collection[int], lasts_s: float, chance: random.Random
    ) -> None:
        """Some stories at a time, each of which begins with a call of that kind.

        Args:
            kind: "create", "delete", "stop" or "move".
            may_die: nodes that no other fault of the process or disk has.
        """
        self._may_die = may_die
        tell = {
            "create": self._creates, "delete": self._deletes, "stop": self._stops,
            "move": self._moves,
        }[kind]  # fmt: skip
        there = [life.group for life in self.book.there()]
        free = [group for group in IDS if group not in there]
        pool = (free or there) if kind == "create" else (there or free)
        chosen = chance.sample(pool, min(len(pool), chance.choice((1, 2, 3))))
        until = time.monotonic() + lasts_s
        seeds = [(group, chance.getrandbits(32)) for group in chosen]
        await together(self._told(tell(group, until, random.Random(seed))) for group, seed in seeds)

    @staticmethod
    async def _told(story: Coroutine[Any, Any, None]) -> None:
        with suppress(Stuck):
            await story

    # --- stories

    async def _creates(self, group: int, until: float, chance: random.Random) -> None:
        while True:
            if self.book.now(group) is not None and not await self._end(group, chance):
                return  # it was rejected, and the group is still there
            if await self._make(group, chance) and chance.random() < 0.4:
                await self._is_taken(group, chance)
            await asyncio.sleep(chance.uniform(0.0, 1.0))
            if time.monotonic() > until:
                return

    async def _deletes(self, group: int, until: float, chance: random.Random) -> None:
        while True:
            if self.book.now(group) is None and not await self._make(group, chance):
                return
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            if await self._end(group, chance) and chance.random() < 0.7:
                await self._make(group, chance)
            if time.monotonic() > until:
                return

    async def _stops(self, group: int, until: float, chance: random.Random) -> None:
        while True:
            life = await self._live(group, chance)
            if life is None or not await self._turn("stop", life, chance):
                return
            await asyncio.sleep(chance.uniform(0.0, max(0.0, until - time.monotonic())))
            then = chance.choices(("resume", "delete", "stay"), (5, 2, 3))[0]
            if then == "resume":
                await self._turn("resume", life, chance)
            elif then == "delete":
                await self._end(group, chance)
            if then == "stay" or time.monotonic() > until:
                return

    async def _moves(self, group: int, until: float, chance: random.Random) -> None:
        while True:
            life = await self._live(group, chance)
            if life is None:
                return
            members = self._elsewhere(life, chance)
            if members is None:  # whoever left does not come back to it
                await self._end(group, chance)
            else:
                await self._reach([Call("move", group, members)], chance)
                self.book.moved(life, members)
            if time.monotonic() > until:
                return

    def _some(self, chance: random.Random) -> frozenset[int]:
        nodes = sorted(self._cluster.ids)
        return frozenset(chance.sample(nodes, chance.randint(1, len(nodes))))

    def _elsewhere(self, life: Life, chance: random.Random) -> frozenset[int] | None:
        """Members that it can have and has not."""
        fresh = set(self._cluster.ids) - life.members - life.left
        pool = sorted(life.members | fresh)
        if len(pool) == 1:
            return None
        while True:
            members = frozenset(chance.sample(pool, chance.randint(1, len(pool))))
            if members != life.members:
                return members

    # --- one step of a story

    async def _make(self, group: int, chance: random.Random) -> bool:
        """Whether there is a group of that id now; at times two ask for different ones."""
        calls = [Call("create", group, self._some(chance))]
        if chance.random() < 0.2:
            calls.append(Call("create", group, self._some(chance)))
        began_us, wanted = now_us(), self.book.next_generation(group)
        done = await self._reach(calls, chance)
        if done is None:
            return self.book.now(group) is not None
        call, answer = done
        if answer.generation != wanted:
            self._found(f"create: {call} made generation {answer.generation}, after {wanted - 1}")
        self.book.made(group, answer.generation, call.members, began_us)
        return True

    async def _is_taken(self, group: int, chance: random.Random) -> None:
        """An id that is in use is not given to another group; the same one was created."""
        life = self.book.now(group)
        running = self._running()
        if life is None or not running:
            return
        for members in (self._some(chance), life.first):
            call = Call("create", group, members)
            answer = await self._ask(chance.choice(running), call, chance.uniform(*ASK_S))
            if answer.outcome == ACKNOWLEDGED and (
                members != life.first or answer.generation != life.generation
            ):
                self._found(f"create: node {answer.node} says to {call} that it did, and {life}")
            elif members == life.first and answer.error == "GroupExists":
                self._found(f"create: node {answer.node} says to {call} that {life} is another")

    async def _live(self, group: int, chance: random.Random) -> Life | None:
        """That takes values."""
        if self.book.now(group) is None and not await self._make(group, chance):
            return None
        life = self.book.now(group)
        assert life is not None
        if life.phase == "stopped" and not await self._turn("resume", life, chance):
            return None
        return life

    async def _turn(self, how: str, life: Life, chance: random.Random) -> bool:
        if await self._reach([Call(how, life.group)], chance) is None:
            return False
        life.phase = "stopped" if how == "stop" else "live"
        return True

    async def _end(self, group: int, chance: random.Random) -> bool:
        life = self.book.now(group)
        assert life is not None
        done = await self._reach([Call("delete", group)], chance)
        if done is None:
            return False
        self.book.ended(life, done[1].said_us)
        return True

    # --- calls

    def _running(self) -> list[int]:
        return [node for node, worker in self._cluster.workers.items() if not worker.stopped]

    def _askable(self, call: Call) -> list[int]:
        """Who is moved has to be asked where it is, or is to be."""
        life = self.book.now(call.group)
        if call.how != "move" or life is None:
            return self._running()
        return [node for node in self._running() if node in life.members | call.members]

    async def _reach(self, calls: list[Call], chance: random.Random) -> tuple[Call, Answer] | None:
        """Ask one node after the other, sometimes two at a time, until it is done; if there are two
        calls each is asked for at first. None: it was rejected, nothing was done, and it is left at
        that. Raises Stuck."""
        call, perhaps, began_us, why = calls[0], False, now_us(), "nobody could be asked"
        hasty = chance.random() < 0.15 and call.how != "move"  # of a move, some may be done
        until = time.monotonic() + DONE_WITHIN_S
        while time.monotonic() < until:
            running = self._askable(call)
            asked = chance.sample(
                running, min(len(running), max(len(calls), chance.choice((1, 1, 2))))
            )
            timeout_s = chance.uniform(*(HASTY_S if hasty else ASK_S))
            pairs = [(node, calls[at % len(calls)]) for at, node in enumerate(asked)]
            answers = await self._ask_all(pairs, timeout_s, chance)
            if done := self._done(
                list(zip([call for _, call in pairs], answers, strict=True)), perhaps
            ):
                self.calls[call.how] += 1
                self.took_us.append(now_us() - began_us)
                took_s = (now_us() - began_us) / 1e6
                self._say(f"{done[0]} is done, by node {done[1].node}, after {took_s:.2f} s")
                return done
            perhaps |= any(one.outcome == UNKNOWN for one in answers)
            why = "; ".join(f"node {one.node}: {one.error} {one.text}" for one in answers) or why
            if call.how == "create" and any(one.error == "GroupExists" for one in answers):
                if await self._came(call.group, began_us):
                    return None
            elif hasty and answers and not perhaps:
                self._ends.noticed["group calls given up"] += 1
                return None
            calls, hasty = [call], False
            await asyncio.sleep(POLL_S)
        self._found(f"{call.how}: {call} was not done in {DONE_WITHIN_S} s: {why}")
        raise Stuck

    async def _ask_all(
        self, pairs: list[tuple[int, Call]], timeout_s: float, chance: random.Random
    ) -> list[Answer]:
        """All of them at a time; one of them may be killed meanwhile, and is started again."""
        victims = [node for node, _ in pairs if node in self._may_die]
        killed = None
        if victims and chance.random() < 0.2 and not self._dying.locked():
            killed = asyncio.create_task(self._cut(victims[0], chance.uniform(*KILL_AFTER_S)))
        answers = await asyncio.gather(*(self._ask(node, one, timeout_s) for node, one in pairs))
        if killed is not None:
            await killed
        return answers

    async def _cut(self, node: int, after_s: float) -> None:
        async with self._dying:
            await asyncio.sleep(after_s)
            self._say(f"node {node}, which was asked, is killed")
            self._ends.noticed["killed when asked"] += 1
            await self._ends.kill(node)
            await self._ends.start(node)

    async def _ask(self, node: int, call: Call, timeout_s: float) -> Answer:
        asked_us = now_us()
        try:
            said = await self._cluster[node].call(
                "group", timeout_s + 2, how=call.how, group=call.group,
                members=sorted(call.members), timeout_s=timeout_s,
            )  # fmt: skip
        except (WorkerFailed, KeyError) as error:  # (It may be gone by now.)
            answer = Answer(node, text=str(error).partition("\n")[0])
        else:
            members, files = tuple(said.pop("members")), tuple(said.pop("files"))
            answer = Answer(node, members=members, files=files, **said)
        self._check(call, answer)
        if answer.outcome == UNKNOWN:
            life = self.book.now(call.group)
            generation = life.generation if life else self.book.next_generation(call.group)
            self._loose.append(Loose(call, generation, asked_us))
        return answer

    def _check(self, call: Call, answer: Answer) -> None:
        """Who says that it is done has done it itself, as far as it is concerned."""
        if answer.outcome != ACKNOWLEDGED or answer.closing:
            return
        node, why = answer.node, ""
        if call.how == "create" and node in call.members and answer.hosted < answer.generation:
            why = f"it hosts generation {answer.hosted}"
        elif call.how == "delete" and (answer.hosted or answer.files):
            why = f"it hosts generation {answer.hosted}, and has {answer.files}"
        elif call.how == "move" and set(answer.members) != call.members:
            why = f"its members are {answer.members}"
        elif call.how == "stop" and answer.hosted and answer.refused != "GroupStopped":
            why = f"a value was answered there with {answer.refused!r}"
        if why and not self._may_come(call.group, "create", "resume"):
            self._found(f"untrue: node {node} says that it did {call}, and {why}")

    def _done(self, said: list[tuple[Call, Answer]], perhaps: bool) -> tuple[Call, Answer] | None:
        """Whoever says that it is done, the first of those."""
        said = sorted(said, key=lambda one: one[1].said_us)
        done = [(call, answer) for call, answer in said if answer.outcome == ACKNOWLEDGED]
        if len({(call.members, answer.generation) for call, answer in done}) > 1:
            self._found(f"untrue: each of these is said to be done: {done}")
        none = [(call, one) for call, one in said if "there is no group" in one.text]
        if none and not done:
            gone = none[0][0].how == "delete" and bool(self._may_come(none[0][0].group, "delete"))
            if gone or perhaps:
                return none[0] if gone else None
            self._found(f"untrue: node {none[0][1].node} says to {none[0][0]}: {none[0][1].text}")
        return done[0] if done else None

    # --- what was done though nobody said so

    def _may_come(self, group: int, *hows: str) -> list[Loose]:
        now = time.monotonic()
        self._loose = [one for one in self._loose if one.until_s > now]
        return [one for one in self._loose if one.call.group == group and one.call.how in hows]

    async def _came(self, group: int, began_us: int) -> bool:
        """Whether the id is in use because a call was done that got no answer."""
        for node in self._running():
            with suppress(WorkerFailed, KeyError):
                self._explain(group, await self._seen_by(self._cluster[node]))
            if self.book.now(group) is not None:
                return True
        return False

    def _explain(self, group: int, seen: Seen) -> None:
        """If a loose call explains what is listed there, it was done."""
        last = self.book.last(group)
        if group not in seen.listed:
            return
        generation, phase, members = seen.listed[group]
        if last is None or (not last.there and generation == last.generation + 1):
            for one in self._may_come(group, "create"):
                if one.call.members == members and one.generation == generation:
                    self._ends.noticed["group calls done later"] += 1
                    self.book.made(group, generation, members, one.asked_us)
                    return
        elif last.generation == generation and last.there and last.phase != phase:
            how = {"live": "resume", "stopped": "stop", "gone": "delete"}.get(phase, "")
            if self._may_come(group, how):
                self._ends.noticed["group calls done later"] += 1
                if how == "delete":
                    self.book.ended(last, now_us())
                else:
                    last.phase = phase

    # --- what must hold after the faults

    async def _seen_by(self, worker: Worker) -> Seen:
        return Seen.of(await worker.call("created", 5.0))

    async def agree(self, when: str) -> None:
        """All nodes have what there is to be, and nothing else, or that is a finding."""
        until = time.monotonic() + AGREED_WITHIN_S
        same_s, why = time.monotonic(), ["nobody could be asked"]
        answers: dict[int, Any] = {}
        while time.monotonic() < until:
            try:
                answers = await self._cluster.call("created", 5.0)
            except WorkerFailed as error:
                why = [str(error)]
                await asyncio.sleep(POLL_S)
                continue
            seen = {node: Seen.of(answer) for node, answer in answers.items()}
            why = differences(self.book, seen)
            if not why:
                return
            if len({one.digest for one in seen.values()}) > 1:
                same_s = time.monotonic()
            elif time.monotonic() > same_s + STABLE_S:
                for group in next(iter(seen.values())).listed:
                    self._explain(group, next(iter(seen.values())))
            await asyncio.sleep(POLL_S)
        failed = {node: answer["failed"] for node, answer in answers.items() if answer["failed"]}
        for one in why[:10]:
            self._found(f"{one} (for {AGREED_WITHIN_S} s {when}; failed: {failed})")

    async def spare(self, node: int) -> None:
        """It is about to lose what it has: those groups go that have too few members for that."""
        for life in self.book.there():
            if node in life.members and len(life.members) < WHOLE:
                with suppress(Stuck):
                    done = await self._until_done(Call("delete", life.group))
                    self.book.ended(life, done.said_us)

    async def resume_all(self) -> None:
        """Those that were stopped still are, at all of their members; then they go on."""
        for life in self.book.there():
            if life.phase != "stopped":
                continue
            for node in sorted(life.members):
                answer = await self._cluster[node].call(
                    "operate", group=life.group, generation=life.generation, kind="put",
                    key="_stopped", argument=["stopped", 0], timeout_s=1.0,
                )  # fmt: skip
                if answer["error"] != "GroupStopped":
                    self._found(f"stopped: node {node} says to a value of {life}: {answer}")
            with suppress(Stuck):
                await self._until_done(Call("resume", life.group))
                life.phase = "live"

    async def _until_done(self, call: Call) -> Answer:
        """Nobody is killed for it, and it is not given up. Raises Stuck."""
        self._may_die = ()
        while True:
            if done := await self._reach([call], random.Random(0)):
                return done[1]

    async def cycles(self) -> None:
        """Groups come and go, nothing else happens: nothing is left of them in any process."""
        before: dict[int, Any] = {}
        for at in range(3 + CYCLES):
            if at == 3:
                before = await self._counts()
            await self._cycle(at)
        after = await self._counts()
        for one in leaks(before, after, CYCLES):
            self._found(one)

    async def _cycle(self, at: int) -> None:
        nodes = sorted(self._cluster.workers)
        worker = self._cluster[nodes[at % len(nodes)]]
        for how in ("create", "delete"):
            said = await worker.call(
                "group", DONE_WITHIN_S + 2, how=how, group=CYCLED_ID, members=nodes,
                timeout_s=DONE_WITHIN_S,
            )  # fmt: skip
            if said["outcome"] != ACKNOWLEDGED:
                self._found(f"{how}: in peace node {worker.spec.node} says: {said}")
            if how == "create":
                await worker.call(
                    "operate", group=CYCLED_ID, kind="put", key="_cycled",
                    argument=["cycled", 0], timeout_s=10.0,
                )  # fmt: skip

    async def _counts(self) -> dict[int, dict[str, int]]:
        """At rest: nobody has anything left to do."""
        until = time.monotonic() + AGREED_WITHIN_S
        while time.monotonic() < until:
            seen = [Seen.of(one) for one in (await self._cluster.call("created", 5.0)).values()]
            if not any(CYCLED_ID in one.hosted or one.files for one in seen):
                break
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(0.5)
        return await self._cluster.call("counts")

    # --- what is done later with what was found

    def _found(self, text: str) -> None:
        self._say(text)
        self._ends.findings.append(text)
