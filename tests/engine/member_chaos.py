"""Members that change at random, among nodes that crash and links that lose, repeat and reorder.

The reference sees every record as it becomes durable, and knows the log before any node does. It
decides an instance when a quorum of the members of its version has synced an acceptance in one
ballot, and *cumulatively*: only in a ballot of which everything below is decided as that ballot has
it (docs/design/membership.md, section 2). Whoever counts instances one at a time would call decided
what nobody can ever learn, and would take a right run for a wrong one.

U1   one value per instance, whoever decides       U10  decided by the members of its version alone
U3   what a node announces is decided              U4   no promise that was told is taken back
epoch: whoever leads under newer members does so in a higher ballot than all before
"""

import struct
from collections import defaultdict
from collections.abc import Callable

from member_lab import LEARNER, MEMBERSHIP, UNDER_WAY, Changing
from weather import Violation, Weather

from phx._core import members
from phx._core.engine_door import Engine
from phx.sim.wire_text import ACCEPT, Message, Record, ballot_text

FAILED, LEADER, HALTED, BELOW = 1, 2, 3, 5
FIRST = (1, 2, 3)


def kind_of(body: bytes) -> int:
    return body[0]


def epoch_of(body: bytes) -> int:
    (epoch,) = struct.unpack_from("<Q", body, 8)
    assert isinstance(epoch, int)
    return epoch


def roles_of(value: bytes) -> dict[int, int]:
    read = members.read(value)
    assert read is not None
    return {node: role for node, role, _ in read[3]}


class Reference:
    """What is decided, by what is durable."""

    def __init__(self, first: tuple[int, ...]) -> None:
        self.log: list[bytes] = []
        self.ballots: list[int] = []  # in which each was decided
        self.voters = {1: set(first)}  # by version
        self.since = {1: 0}  # the instance that ended the version before
        self.version = 1
        self.proposed: dict[int, dict[int, bytes]] = defaultdict(dict)  # ballot: instance: value
        self.votes: dict[tuple[int, int], set[int]] = defaultdict(set)
        self.epochs: dict[int, set[int]] = defaultdict(set)  # version: ballots that were led in
        self.promised: dict[int, int] = defaultdict(int)  # told by a node, in any message

    def version_of(self, instance: int) -> int:
        return max(v for v, i in self.since.items() if i < instance)

    def emitted(self, r: Record) -> None:
        if r.kind == ACCEPT:
            known = self.proposed[r.ballot].setdefault(r.index, r.body)
            if known != r.body:
                raise Violation(f"U6: two values at {r.index} in {ballot_text(r.ballot)}")

    def synced(self, node: int, r: Record) -> None:
        if r.kind != ACCEPT:
            return
        self.emitted(r)
        self.votes[r.index, r.ballot].add(node)
        self.look(r.index, r.ballot)
        while self.further():
            pass

    def counts(self, instance: int, number: int) -> bool:
        voters = self.voters[self.version_of(instance)]
        return 2 * len(self.votes[instance, number] & voters) > len(voters)

    def fits(self, instance: int, number: int) -> bool:
        """Everything that this ballot has proposed below is what was decided."""
        return all(
            self.log[i - 1] == body for i, body in self.proposed[number].items() if i < instance
        )

    def look(self, instance: int, number: int) -> None:
        if instance > len(self.log) or self.log[instance - 1] == self.proposed[number][instance]:
            return
        if self.counts(instance, number) and self.fits(instance, number):
            raise Violation(
                f"U1: another value is decided at {instance}, in {ballot_text(number)} after "
                f"{ballot_text(self.ballots[instance - 1])}, version {self.version_of(instance)}"
            )

    def further(self) -> bool:
        at = len(self.log) + 1
        for number, values in self.proposed.items():
            if at in values and self.counts(at, number) and self.fits(at, number):
                self.log.append(values[at])
                self.ballots.append(number)
                if kind_of(values[at]) == MEMBERSHIP:
                    self.changed(at, values[at])
                return True
        return False

    def changed(self, at: int, value: bytes) -> None:
        read = members.read(value)
        assert read is not None
        if read[0] != self.version + 1:
            raise Violation(f"version {read[0]} is decided after {self.version}")
        self.version += 1
        self.since[self.version] = at
        self.voters[self.version] = {n for n, role, _ in read[3] if role != LEARNER}

    def announced(self, node: int, instance: int, body: bytes | None) -> None:
        if instance > len(self.log):
            raise Violation(
                f"U3, U10: node {node} announces {instance}, which no quorum of version "
                f"{self.version_of(instance)} holds"
            )
        if body is not None and body != self.log[instance - 1]:
            raise Violation(f"U1: node {node} announces another value at {instance}")

    def leads(self, node: int, version: int, epoch: int) -> None:
        for other, seen in self.epochs.items():
            for number in seen:
                if (other < version and number >= epoch) or (other > version and number <= epoch):
                    raise Violation(
                        f"epoch: node {node} leads version {version} in {ballot_text(epoch)}, "
                        f"and somebody led {other} in {ballot_text(number)}"
                    )
        self.epochs[version].add(epoch)

    def leaves(self, m: Message) -> None:
        if m.name in ("Promise", "Accepted", "Prepare"):
            self.promised[m.source] = max(self.promised[m.source], m.ballot)


class Chaos(Weather, Changing):
    def __init__(self, seed: int, nodes: int = 8) -> None:
        self.begin(seed)
        self.reference = Reference(FIRST)
        self.rows: dict[int, tuple[int, bytes, int, int, bool]] = {}  # stores: change_known's
        self.seen_events: dict[int, int] = defaultdict(int)
        self.seen_chosen: dict[int, int] = defaultdict(int)
        self.read: dict[int, int] = defaultdict(int)  # records of its journal that were looked at
        self.below: dict[int, int] = {}  # nodes that need a checkpoint: from whom
        super().__init__(nodes, FIRST, window=32)
        self.lazy = set(self.nodes)

    # --- what everybody sees

    def remember(self, n: int, engine: Engine) -> None:
        super().remember(n, engine)
        if n in self.rows:
            version, value, instance, floor, active = self.rows[n]
            assert engine.change_known(0, version, value, instance, floor, active) == 0
        self.seen_chosen[n] = len(self.chosen[n]) if hasattr(self, "chosen") else 0

    def start(self, n: int, **settled: int) -> int:
        self.read[n] = len(self.journal[n])
        incarnation = super().start(n)
        promised = self.status(n)["promised"]
        if promised < self.reference.promised[n]:
            raise Violation(f"U4: node {n} has promised {ballot_text(promised)} after a restart")
        return incarnation

    def turn(self, n: int) -> None:
        before = len(self.waiting)
        super().turn(n)
        for record in self.journal[n][self.read[n] :]:
            self.reference.emitted(record)
        self.read[n] = len(self.journal[n])
        self.watch(n)
        for m in self.waiting[before:]:
            m.meta["after"] = m.after

    def watch(self, n: int) -> None:
        for _, first, last in self.chosen[n][self.seen_chosen[n] :]:
            for i in range(first, last + 1):
                self.reference.announced(n, i, self.engines[n].entry(0, i))
        self.seen_chosen[n] = len(self.chosen[n])
        for kind, verdict, _, first, _, leader in self.events[n][self.seen_events[n] :]:
            if kind == HALTED:
                raise Violation(f"node {n} has halted: {verdict}")
            if kind == LEADER and leader == n:
                self.reference.leads(n, self.version(n), first)
            elif kind == BELOW:
                self.below[n] = leader
        self.seen_events[n] = len(self.events[n])

    def sync(self, n: int) -> None:
        since = self.durable[n]
        for record in reversed(self.journal[n]):
            if record.lsn < since:
                break
            self.reference.synced(n, record)
        super().sync(n)

    # --- what happens

    def some(self, of: list[int]) -> int:
        return self.random.choice(of)

    def fall(self) -> None:
        n = self.some(list(self.engines))
        if len(self.engines) > len(self.nodes) - len(self.gone) - 3:
            self.crash(n, power=self.random.random() < 0.7)
            self.counts["crashes"] += 1

    def rise(self) -> None:
        down = [n for n in self.nodes if n not in self.engines and n not in self.gone]
        if down:
            self.restart(self.some(down))

    def delete(self) -> None:
        """A call has returned: who is removed may be switched off, and its folder deleted."""
        for n in list(self.engines):
            if self.removed(n) and self.random.random() < 0.3 and len(self.engines) > 3:
                self.crash(n)
                self.gone.add(n)
                self.counts["deleted"] += 1

    def write(self) -> None:
        if leading := [n for n in self.engines if self.status(n)["leading"]]:
            self.submit(self.some(leading), b"%d" % self.random.randrange(1 << 30))

    def next_members(self, n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Some voters and learners; an id that was removed is never used again."""
        value = self.membership(n)["value"]
        roles = dict.fromkeys(FIRST, 1) if value is None else roles_of(value)
        known = set(roles)
        log = self.reference.log
        ever = set(FIRST).union(*(roles_of(b) for b in log if kind_of(b) == MEMBERSHIP))
        fresh = [x for x in self.nodes if x not in ever]
        if fresh and self.random.random() < 0.5:
            add = self.random.sample(fresh, min(len(fresh), self.random.choice((1, 2))))
            voters = [x for x, role in roles.items() if role != LEARNER]
            return tuple(sorted(voters)), tuple(sorted({*known, *add} - set(voters)))
        voters = self.random.sample(sorted(known), self.random.randint(1, len(known)))
        kept = [x for x in sorted(known - set(voters)) if self.random.random() < 0.6]
        return tuple(sorted(voters)), tuple(kept)

    def alter(self) -> None:
        leading = [n for n in self.engines if self.status(n)["leading"]]
        if not leading:
            return
        n = self.some(leading)
        voters, learners = self.next_members(n)
        verdict = self.change(n, voters, learners)
        self.counts["changes" if verdict == UNDER_WAY else "refused"] += 1

    def trim(self) -> None:
        n = self.some(list(self.engines))
        if (through := self.status(n)["chosen_through"]) > 3:
            self.engines[n].floor(0, through - 1)
            self.kept[n][0] = max(self.kept[n].get(0, 1), through - 1)
            self.turn(n)

    def install(self, n: int, source: int) -> None:
        """The checkpoint of another node, with its members, as far as the log goes there."""
        through = self.status(source)["chosen_through"]
        known = self.membership(source)
        if through <= self.status(n)["chosen_through"] or known["instance"] > through:
            return
        self.counts["installs"] += 1
        if known["value"] is not None:
            row = (known["version"], known["value"], known["instance"], known["floor"],
                   known["active"])  # fmt: skip
            self.rows[n] = row
            assert self.engines[n].change_known(0, *row) == 0
        self.kept[n][0] = max(self.kept[n].get(0, 1), through + 1)
        top = max(epoch_of(body) for body in self.reference.log[:through])
        assert self.engines[n].install(0, through, top) == 0
        self.turn(n)

    def catch_up(self) -> None:
        for n in list(self.below):
            there = [
                x for x in self.engines
                if x != n and self.status(x)["chosen_through"] > self.status(n)["chosen_through"]
            ] if n in self.engines else []  # fmt: skip
            if there:
                del self.below[n]
                self.install(n, self.some(there))

    def anything(self) -> None:
        if self.random.random() < 0.05 and len(self.engines) > 1:
            a, b = self.random.sample(sorted(self.engines), 2)
            self.install(a, b)

    def acts(self) -> list[tuple[Callable[[], None], float]]:
        return [
            (self.deliver_some, 50), (self.sync_one, 30 - 8 * self.bad), (self.time, 14),
            (self.write, 3), (self.alter, 2), (self.fall, 0.1 + 0.2 * self.bad), (self.rise, 1),
            (self.cut, 0.1 + 0.2 * self.bad), (self.trim, 0.4), (self.catch_up, 1),
            (self.anything, 3), (self.delete, 2),
        ]  # fmt: skip

    # --- and at the end

    def settle_down(self) -> None:
        """All are back, and nothing is lost any more: the members that there are go on."""
        self.clear_up()
        goal = len(self.reference.log) + 3
        for _ in range(4000):
            self.time()
            while any(self.ready(m) for m in self.waiting):
                self.deliver_one()
            self.catch_up()
            if len(self.reference.log) < goal and self.random.random() < 0.2:
                self.write()
            if len(self.reference.log) >= goal and self.all_have_it():
                return
        raise Violation(f"liveness: {self.where()}")

    def latest(self) -> dict[int, int]:
        for body in reversed(self.reference.log):
            if kind_of(body) == MEMBERSHIP:
                return roles_of(body)
        return dict.fromkeys(FIRST, 1)

    def all_have_it(self) -> bool:
        version = self.reference.version
        for n in self.nodes:
            if n in self.gone:
                if n in self.latest():
                    raise Violation(f"node {n} is a member, and took itself for removed")
            elif n in self.latest():
                if (self.status(n)["chosen_through"] < len(self.reference.log)
                        or self.version(n) != version):  # fmt: skip
                    return False
                if version > 1 and not self.membership(n)["active"]:
                    return False
                if self.removed(n):
                    raise Violation(f"node {n} is a member, and takes itself for removed")
            elif n in FIRST and not self.removed(n):
                return False
        return True

    def where(self) -> str:
        lines = [f"version {self.reference.version} of {self.latest()}, {len(self.reference.log)}"]
        for n in self.engines:
            s, m = self.status(n), self.membership(n)
            lines.append(
                f"{n}: v{m['version']}@{m['instance']} active={m['active']} left={m['left']} "
                f"chosen={s['chosen_through']} promised={ballot_text(s['promised'])} "
                f"leader={s['leader']} leading={s['leading']} floor={s['floor']}"
            )
        return "\n".join(lines)
