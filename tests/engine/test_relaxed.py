"""Relaxed durability: what is only written is told, and nothing but acceptances is."""

import random

import pytest
from harness import Cluster, Faults, Node
from lossy import SECOND, Lossy, LossyChecker, LossyCluster, LossyNode, storm
from member_lab import Changing
from script import Script

from phx._core.engine_door import Engine
from phx.sim.wire_text import ACCEPT, CHOSEN, PROMISE, Message, Record, ballot, encode

NO_SYNC = 0xFFFFFFFFFFFFFFFF


class Written(Script):
    """A script in which a node's records may be written, and not yet durable."""

    def write(self, n: int) -> None:
        self.engines[n].written(self.end[n])
        self.turn(n)

    def relax(self, *nodes: int, group: int = 0, within_us: int = NO_SYNC) -> None:
        for n in nodes or self.nodes:
            assert self.engines[n].durability(group, within_us) > 0
            self.turn(n)

    def left(self, *what: str) -> list[Message]:
        return [m for m in self.pick(*what) if self.ready(m)]


def relaxed(groups: int = 1) -> Written:
    """1 leads group 0, all that it has said is durable, and nothing is synced by itself."""
    s = Written(groups=groups)
    s.elect(1)
    s.relax()
    s.flow()
    s.lazy = {1, 2, 3}
    s.syncs.clear()
    return s


def test_an_acceptance_is_told_once_it_is_written_and_a_value_chosen_without_a_sync() -> None:
    s = relaxed()
    s.submit(1, b"v")
    s.deliver("Accept", "→2")
    s.deliver("Accept", "→3")
    assert not s.left("Accepted")
    s.write(2)
    assert s.left("2→1", "Accepted")
    assert not s.left("3→1", "Accepted")
    s.deliver("2→1", "Accepted")
    assert s.chosen[1] == []  # its own vote is not written yet
    s.write(1)
    assert s.chosen[1] == [(0, 1, 1)]
    s.write(3)
    s.flow()
    assert [s.status(n)["chosen_through"] for n in s.nodes] == [1, 1, 1]
    assert s.syncs == []


def test_a_promise_is_told_when_it_is_durable_and_not_when_it_is_written() -> None:
    s = relaxed()
    s.crash(1, power=False)
    s.advance(5 * SECOND)
    above = ballot(7_000, 2)
    s.drop()
    s.put(2, 3, encode("Prepare", 0, above, first=1, start=1, released=0, holds=0))
    assert s.status(3)["promised"] == above
    s.write(3)
    assert s.pick("3→2", "Promise")
    assert not s.left("3→2", "Promise")
    s.sync(3)
    assert s.left("3→2", "Promise")


def test_an_acceptance_waits_for_the_promise_of_its_ballot() -> None:
    """The Prepare was lost: the Accept raises the promise. Whoever counts it counts the promise."""
    s = relaxed()
    s.crash(1, power=False)
    s.advance(5 * SECOND)
    above = ballot(7_000, 2)
    s.drop()
    value = body_of(s)
    s.put(2, 3, accept(above, 1, value))
    s.write(3)
    assert s.pick("3→2", "Accepted")
    assert not s.left("3→2", "Accepted")
    s.put(2, 3, accept(above, 2, value))  # before the promise is durable
    s.write(3)
    assert not s.left("3→2", "Accepted")
    s.sync(3)
    assert s.left("3→2", "Accepted")
    s.drop()
    s.put(2, 3, accept(above, 3, value))
    assert [m.through for m in s.left("3→2", "Accepted")] == [2]
    s.write(3)
    assert [m.through for m in s.left("3→2", "Accepted")] == [2, 3]


def test_what_a_frame_that_waits_has_said_is_not_said_by_one_that_does_not() -> None:
    """Two acceptances wait with the promise; the promise and the first one become durable. Then the
    first one comes again, and a third one, and their answers need not wait: the second one is not
    even written."""
    s = relaxed()
    s.crash(1, power=False)
    s.advance(5 * SECOND)
    above = ballot(7_000, 2)
    s.drop()
    value = body_of(s)
    s.put(2, 3, accept(above, 1, value))
    first = s.end[3]
    s.put(2, 3, accept(above, 2, value))
    assert [m.through for m in s.pick("3→2", "Accepted")] == [1, 2]
    s.drop()
    s.durable[3] = first
    s.engines[3].durable(first)
    s.turn(3)
    s.put(2, 3, accept(above, 1, value))
    s.put(2, 3, accept(above, 3, value))
    assert [m.through for m in s.left("3→2", "Accepted") if m.through > 1] == []
    s.write(3)
    assert [m.through for m in s.left("3→2", "Accepted")][-1] == 3


def body_of(s: Script) -> bytes:
    """Some value, as a leader packs it."""
    one = Script()
    one.elect(1)
    one.submit(1, b"v")
    (found,) = [r for r in one.journal[1] if r.kind == ACCEPT and b"v" in r.body]
    return found.body


def accept(number: int, instance: int, value: bytes) -> bytes:
    return encode("Accept", 0, number, value, instance=instance, first=1, nbytes=len(value))


def test_what_a_promise_tells_of_was_synced() -> None:
    """More is accepted in a ballot after its promise; asked again, the answer tells of it."""
    s = relaxed()
    number = s.status(1)["ballot"]
    s.submit(1, b"v")
    s.deliver("Accept", "→2")
    s.write(2)
    assert s.left("2→1", "Accepted")
    s.put(1, 2, encode("Prepare", 0, number, first=1, start=1, released=0, holds=0))
    (told,) = s.pick("2→1", "Promise")
    assert [entry.instance for entry in told.entries()] == [1]
    assert not s.ready(told)
    assert s.syncs == [2]
    s.sync(2)
    assert s.ready(told)


def two_groups(within_us: int = NO_SYNC) -> Written:
    """1 leads group 0, which is relaxed; 3 leads group 1, which is not."""
    s = Written(groups=2)
    s.elect(1)
    s.elect(3, group=1)
    s.relax(group=0, within_us=within_us)
    s.flow()
    s.lazy = {1, 2, 3}
    s.syncs.clear()
    return s


def test_a_group_that_syncs_waits_for_its_sync_beside_one_that_does_not() -> None:
    s = two_groups()
    s.submit(1, b"relaxed")
    s.submit(3, b"sync", group=1)
    s.deliver("Accept", "→2")
    s.write(2)
    assert [(m.group, m.dest) for m in s.left("2→", "Accepted")] == [(0, 1)]
    assert sorted((m.group, m.dest) for m in s.pick("2→", "Accepted")) == [(0, 1), (1, 3)]
    s.sync(2)
    assert len(s.left("2→", "Accepted")) == 2


def test_back_to_sync_all_that_was_told_is_synced_before_anything_else_is() -> None:
    s = relaxed()
    s.submit(1, b"v")
    (asked,) = s.deliver("Accept", "→2")
    s.write(2)
    s.drop("2→1", "Accepted")
    assert s.syncs == []
    position = s.engines[2].durability(0, 0)
    s.turn(2)
    assert s.syncs == [2]
    written = [r for r in s.journal[2] if r.kind == ACCEPT][-1]
    assert s.durable[2] < written.lsn + len(written.raw) <= position
    s.put(1, 2, asked.raw)  # once more: the answer waits, too
    assert s.pick("2→1", "Accepted")
    assert not s.left("2→1", "Accepted")
    s.sync(2)
    assert s.durable[2] >= position
    assert s.left("2→1", "Accepted")
    s.submit(1, b"w")
    s.deliver("Accept", "→2", instance=2)
    s.drop("2→1", "Accepted")
    s.write(2)
    assert not s.left("2→1", "Accepted")


def test_an_own_vote_that_was_only_to_be_written_is_counted_once_durable_after_the_change() -> None:
    s = relaxed()
    s.submit(1, b"v")
    s.deliver("Accept", "→2")
    s.write(2)
    s.deliver("2→1", "Accepted")
    s.engines[1].durability(0, 0)
    s.turn(1)
    s.write(1)
    assert s.chosen[1] == []
    s.sync(1)
    assert s.chosen[1] == [(0, 1, 1)]


def test_from_sync_to_relaxed_what_was_emitted_before_is_durable_before_it_is_told() -> None:
    s = Written()
    s.elect(1)
    s.flow()
    s.lazy = {1, 2, 3}
    s.submit(1, b"v")
    s.deliver("Accept", "→2")
    s.relax()
    s.write(2)
    assert not s.left("2→1", "Accepted")
    s.sync(2)
    assert s.left("2→1", "Accepted")


def test_an_interval_syncs_so_long_after_a_value_was_written_at_latest_and_not_without_one() -> (
    None
):
    s = relaxed()
    s.relax(2, within_us=5_000)
    s.submit(1, b"v")
    s.deliver("Accept", "→2")
    s.deliver("Accept", "→3")
    assert s.wake[2] <= s.now + 5_000
    s.advance(4_999)
    assert s.syncs == []
    s.advance(1)
    assert s.syncs == [2]
    s.sync(2)
    s.write(3)
    s.write(1)
    s.pass_time(10 * SECOND)
    assert s.syncs == [2]  # 1 and 3 never, for their own sake; 2 not again for nothing


def test_a_sync_for_another_group_takes_it_along() -> None:
    s = two_groups(within_us=50_000)
    s.submit(1, b"relaxed")
    s.deliver("Accept", "→2")
    assert s.syncs.count(2) == 0
    s.submit(3, b"sync", group=1)
    s.deliver("Accept", "→2")
    assert s.syncs.count(2) == 1
    s.sync(2)
    s.advance(60_000, 2)
    assert s.syncs.count(2) == 1


def test_a_change_of_members_is_durable_before_it_is_told() -> None:
    s = Changing()
    s.elect(1)
    s.learners(1, 4)
    for n in (1, 2, 3):
        assert s.engines[n].durability(0, NO_SYNC) > 0
        s.turn(n)
    s.flow()
    s.lazy = {2, 3}
    s.change(1, (1, 2, 4))
    s.deliver("Accept", "→2")
    s.engines[2].written(s.end[2])
    s.turn(2)
    assert s.pick("2→1", "Accepted")
    assert not [m for m in s.pick("2→1", "Accepted") if s.ready(m)]
    s.sync(2)
    assert [m for m in s.pick("2→1", "Accepted") if s.ready(m)]


def test_a_suspect_replica_is_whole_when_what_it_was_told_is_durable() -> None:
    """And not when it is written: until then it knows less than it may have told of."""
    s = Lossy()
    s.elect(1)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    s.submit(1, b"v")
    s.deliver("1→2", "Accept")
    s.drop("2→")  # accepted by both, and not known to be chosen
    s.cuts.clear()
    s.lose_journal(2)
    assert s.engines[2].durability(0, NO_SYNC) > 0
    s.connect(1, 3)
    s.lazy.add(2)
    for _ in range(2000):
        s.advance(10_000)
        s.flow(lambda m: m.name == "Accept")
        if s.status(2)["leading"]:
            break
        if s.status(2)["accepted_last"] == 0:  # all but what its own phase 1 found
            s.sync(2)
    assert s.status(2)["leading"]
    assert s.status(2)["accepted_last"] >= 1
    s.engines[2].written(s.end[2])
    s.turn(2)
    assert s.suspects() == [2]
    s.sync(2)
    assert s.suspects() == []


def test_a_dropped_group_leaves_nothing_that_waits() -> None:
    s = relaxed(groups=2)
    s.submit(1, b"v")
    s.deliver("Accept", "→2")
    for n in (1, 2):
        s.engines[n].drop_group(0)
        s.turn(n)
        s.write(n)
        s.sync(n)
    assert not s.left("Accepted")


# --- at random


class RelaxedNode(LossyNode):
    """Group 0 is relaxed and group 1 is not; the store knows of it, and of the machine's run."""

    def __init__(self, cluster: Cluster, ident: int) -> None:
        super().__init__(cluster, ident)
        self.boot = 1
        self.kept_boot = 0  # of the store's row; 0: none is relaxed
        self.begun = False
        self.wiped = 0

    def remember(self, engine: Engine) -> None:
        super().remember(engine)
        self.begun = False
        if self.kept_boot not in (0, self.boot):
            assert engine.suspect(0) == 0
            self.wiped += 1

    def crash(self, power: bool) -> None:
        super().crash(power)
        if power:
            self.boot += 1
            if self.kept_boot:
                self.checker.wiped(self.id)

    @property
    def checker(self) -> "RelaxedChecker":
        checker = self.cluster.checker
        assert isinstance(checker, RelaxedChecker)
        return checker

    def turn(self) -> None:
        super().turn()
        assert self.engine is not None
        if not self.begun and self.durable > self.first_lsn:
            # What is doubtful is so in the journal by now.
            self.begun = True
            self.kept_boot = self.boot
            within_us = self.cluster.random.choice([5_000, 50_000, NO_SYNC])
            assert self.engine.durability(0, within_us) > 0
            self.poke()
        if self.begun and self.journal.emitted and not self.syncing:
            self.io(sync=False)

    def sync(self) -> None:
        self.sync_due = False
        self.io(sync=True)

    def io(self, sync: bool) -> None:
        c, f = self.cluster, self.cluster.faults
        batch = list(self.journal.emitted)
        end = batch[-1].lsn + len(batch[-1].raw)
        self.syncing = True
        wait = c.random.randrange(*f.sync_us)
        if sync and c.random.random() < f.slow_sync:
            wait = c.random.randrange(300_000)

        def written() -> None:
            assert self.engine is not None
            self.journal.kept.extend(batch)
            del self.journal.emitted[: len(batch)]
            for record in batch:
                self.checker.record_written(
                    self.id,
                    record,
                    self.engine.status(record.group) if record.kind == ACCEPT else None,
                )
            self.engine.written(end)
            self.poke()
            if not sync:
                self.syncing = False

        def synced() -> None:
            for record in self.journal.kept:
                if self.first_lsn <= record.lsn < end and not record.synced:
                    record.synced = True
                    c.checker.record_synced(self.id, record)
            self.syncing = False
            self.durable = end
            assert self.engine is not None
            self.engine.durable(end)
            self.drop_dead()
            self.send()
            self.poke()

        self.at(c.now + wait // 4, written)
        if sync:
            self.at(c.now + wait, synced)


class RelaxedChecker(LossyChecker):
    """Of group 0 what is written counts as a vote; all else of it is durable, like group 1."""

    def __init__(self, cluster: LossyCluster) -> None:
        super().__init__(cluster)
        self.written: set[tuple[int, int, int, int]] = set()
        self.learned: set[tuple[int, int, int]] = set()
        self.restored: dict[tuple[int, int], int] = {}  # what the journal says of a promise
        self.unsynced = 0  # votes that were told before they were durable

    def wiped(self, node: int) -> None:
        """The power of its machine went, and with it what was only written."""
        self.before[node, 0] = self.ever.get((node, 0), 0)
        self.suspect.add((node, 0))
        self.written = {key for key in self.written if key[0] != node}
        self.learned = {key for key in self.learned if key[0] != node}

    def restarted(self, node: int, group: int, promised: int) -> None:
        super().restarted(node, group, promised)
        self.restored[node, group] = promised

    def record_emitted(self, node: int, r: Record) -> None:
        key = (node, r.group)
        before = self.before.get(key, 0)
        if r.kind in (PROMISE, ACCEPT) and r.ballot <= self.restored.get(key, 0):
            self.before[key] = 0  # it says again what it says already
        super().record_emitted(node, r)
        self.before[key] = before

    def record_written(self, node: int, r: Record, status: dict[str, int] | None) -> None:
        if r.group == 0 and r.kind == ACCEPT:
            self.written.add((node, r.group, r.index, r.ballot))
            if status is not None and status["leading"] and status["ballot"] == r.ballot:
                self.vote(node, r.group, r.index, r.ballot)
        elif r.group == 0 and r.kind == CHOSEN:
            self.learned.add((node, r.group, r.index))

    def vote(self, node: int, group: int, instance: int, number: int) -> None:
        key = (group, instance, number)
        votes = self.votes[key]
        self.unsynced += (node, *key) not in self.synced
        votes.add(node)
        if len(votes) == self.quorum:
            record = Record.__new__(Record)
            record.kind, record.group, record.index, record.ballot = ACCEPT, group, instance, number
            record.body = self.bodies[key]
            self.decide(record)

    def leaves(self, node: int, m: Message, chosen_through: int) -> None:
        if m.name != "Accepted" or m.group != 0:
            super().leaves(node, m, chosen_through)
            return
        told = m.through
        m.fixed["through"] = m.first - 1
        super().leaves(node, m, chosen_through)  # its promise is durable
        m.fixed["through"] = told
        for instance in range(m.first, told + 1):
            key = (node, 0, instance, m.ballot)
            if key in self.written or key in self.synced:
                self.vote(node, 0, instance, m.ballot)
                continue
            known = instance <= chosen_through and (0, instance) in self.decided
            known = known or (node, 0, instance) in self.learned | self.synced_chosen
            assert known, f"U5: {m.line()}: {instance} is not written in this ballot"


class RelaxedCluster(LossyCluster):
    def make_node(self, n: int) -> Node:
        if not isinstance(self.checker, RelaxedChecker):
            self.checker = RelaxedChecker(self)
        return RelaxedNode(self, n)


@pytest.mark.parametrize("seed", range(12))
def test_power_fails_at_random_and_every_claim_holds(seed: int) -> None:
    """U1 to U7, the leases, and that nobody votes who may lack votes; group 1 forgets nothing."""
    dice = random.Random(seed)
    c = RelaxedCluster(
        seed, nodes=5 if seed % 3 == 0 else 3, faults=Faults(loss=0.03, twice=0.02, slow_sync=0.02)
    )

    def cut_power(n: int) -> None:
        c.crash(n, power=True, restart_us=dice.randrange(1, SECOND))

    storm(c, dice, lambda: False, 0.1, cut_power)
    checker = c.checker
    assert isinstance(checker, RelaxedChecker)
    assert checker.unsynced, "nothing was ever told before it was durable: this shows nothing"
    assert sum(c.lossy(n).wiped for n in c.nodes)  # type: ignore[attr-defined]
    assert checker.rejoins
