"""A checkpoint of another node in the place of what this one had: promise, acceptances, callers."""

import gc
import random
import struct

import pytest
from harness import Cluster, Faults, Node
from script import Script
from trimmed import belows, lagging, recovering, settle, settled_records, trim

from phx._core import codec
from phx.sim.wire_text import FLAG_LAST, ballot, encode, runs_of

SECOND = 1_000_000


def install(s: Script, n: int, through: int, epoch: int = 0, source: int = 1) -> None:
    """What `source` has up to there is in the store of n now (trimmed), and the engine is told."""
    bodies = [s.find(source, 0, i) for i in range(1, through + 1)]
    s.settled[n][0] = [body or b"" for body in bodies]
    s.kept[n][0] = through + 1
    assert s.engines[n].install(0, through, epoch) == 0
    s.turn(n)


def promises(s: Script, n: int, since: int) -> list[str]:
    return [r.line() for r in s.journal[n] if r.lsn >= since and r.line().startswith("PROMISE")]


# --- the promise


def test_a_promise_above_the_epoch_stays() -> None:
    """The shortcut promised = epoch: 2 promised 9.3, and would then vote in 1.1 again."""
    s = lagging(4)
    first = s.status(1)["ballot"]
    s.pass_time(3 * SECOND, unless=lambda m: True)  # the grant of 2 ends
    s.connect(2, 3)
    s.drop()
    s.put(3, 2, encode("Prepare", 0, ballot(9, 3), first=1))
    since = s.end[2]
    install(s, 2, 4, first)
    assert s.status(2)["promised"] == ballot(9, 3)
    assert promises(s, 2, since) == []
    body = s.find(1, 0, 4) or b""
    s.drop()
    s.put(
        1, 2, encode("Accept", 0, first, body, instance=5, first=1, watermark=4, nbytes=len(body))
    )
    assert s.pick("2→1", "Refuse")
    assert not s.pick("2→1", "Accepted")


def test_a_promise_below_the_epoch_is_raised_and_durable_before_anything_says_so() -> None:
    s = lagging(4)
    since = s.end[3]
    assert s.status(3)["promised"] == s.status(1)["ballot"]
    s.lazy.add(3)
    install(s, 3, 4, ballot(5, 2))
    assert s.status(3)["promised"] == ballot(5, 2)
    assert promises(s, 3, since) == ["PROMISE g0 b(5.2)"]
    s.connect(1, 3)
    s.drop()
    s.put(1, 3, encode("Prepare", 0, ballot(3, 1), first=1))
    (refusal,) = s.pick("3→1", "Refuse")
    assert refusal.after > s.durable[3]


def test_a_ballot_that_nobody_can_have_reached_is_not_promised() -> None:
    s = lagging(4)
    before = s.status(3)["promised"]
    install(s, 3, 4, ballot(1 << 40, 2))
    status = s.status(3)
    assert (status["promised"], status["chosen_through"]) == (before, 4)


def test_a_poisoned_node_promises_nothing_and_may_still_be_told() -> None:
    s = lagging(4)
    s.engines[3].poison()
    since = s.end[3]
    install(s, 3, 4, ballot(5, 2))
    assert promises(s, 3, since) == []
    assert s.status(3)["chosen_through"] == 4


def test_nothing_is_installed_before_the_start_or_where_the_group_is_not_hosted() -> None:
    from phx._core.engine_door import Engine

    s = Script()
    assert s.engines[1].install(7, 5, 0) == -1
    early = Engine(1, [1, 2, 3], [0])
    assert early.install(0, 5, 0) == -1
    assert early.status(0)["chosen_through"] == 0


# --- acceptances


def test_an_acceptance_above_the_frontier_stays_and_decides() -> None:
    """The shortcut "all slots are cleared": v at 7 is chosen by 1 and 2; 2 installs 1 to 5; 1 dies;
    3 prepares with 2 and must hear of v, or it has another value chosen at 7 (U1, U4)."""
    s = lagging(6)
    s.submit(1, b"v")
    s.deliver("1→2", "Accept")
    s.deliver("2→1", "Accepted")
    assert s.status(1)["chosen_through"] == 7  # 2 does not know
    s.drop()
    settle(s, 2, through=3)
    s.restart(2)
    s.drop()
    assert s.status(2)["chosen_through"] == 3
    install(s, 2, 5, s.status(1)["ballot"])
    status = s.status(2)
    assert (status["chosen_through"], status["accepted_last"]) == (5, 7)
    s.crash(1)
    s.pass_time(3 * SECOND, unless=lambda m: True)
    s.connect(2, 3)
    s.drop()
    s.put(3, 2, encode("Prepare", 0, ballot(9, 3), first=1))
    (promise,) = s.pick("2→3", "Promise")
    assert (promise.fixed["chosen"], promise.fixed["floor"]) == (5, 6)
    found = {entry.instance: entry for entry in promise.entries()}
    assert sorted(found) == [6, 7]
    assert runs_of(found[7].body)[0].values == [b"v"]


def test_an_acceptance_at_or_below_the_frontier_goes_and_never_passes_for_chosen() -> None:
    """The run of flow.pxd, to its end: 3 holds v at 1, accepted alone; w is chosen there."""
    s = Script()
    s.elect(1)
    s.disconnect(2, 3)
    s.disconnect(1, 2)
    s.submit(1, b"v")
    s.deliver("1→3", "Accept")
    s.disconnect(1, 3)
    assert s.status(3)["accepted_last"] == 1
    s.crash(3)
    s.crash(1)
    s.start(1)
    s.connect(1, 2)
    s.journal[1] = [r for r in s.journal[1] if not r.line().startswith("ACCEPT")]
    s.restart(1)
    s.start(3)
    s.pass_time(3 * SECOND)
    leader = 1 if s.status(1)["leading"] else 2
    s.submit(leader, b"w")
    s.pass_time(SECOND)
    assert s.values(2) == [[b"w"]]
    install(s, 3, 1, s.status(leader)["ballot"], source=2)
    assert (s.status(3)["chosen_through"], s.status(3)["accepted_last"]) == (1, 1)
    assert s.body(3, 1) is None
    assert s.engines[3].settle_plan(s.end[3]) == []
    s.connect(2, 3)
    s.submit(leader, b"x")
    s.pass_time(2 * SECOND)
    assert s.status(3)["chosen_through"] == 2
    assert s.chosen[3] == [(0, 2, 2)]


def test_values_that_go_give_their_memory_back() -> None:
    gc.collect()
    before = codec.blocks_live()
    s = lagging(6)
    settle(s, 2, through=2)
    s.restart(2)
    s.drop()
    held = codec.blocks_live()
    assert s.status(2)["accepted_last"] == 6
    install(s, 2, 5)
    assert codec.blocks_live() <= held - 3  # 3, 4 and 5; 6 is above
    s.pass_time(2 * SECOND)
    s.submit(1, b"on")
    s.pass_time(2 * SECOND)
    assert s.status(2)["chosen_through"] == 7
    del s
    gc.collect()
    assert codec.blocks_live() == before


def test_what_was_learned_ahead_follows_at_once() -> None:
    """Values marked chosen above what is known (of a former life) become chosen behind K."""
    s = lagging(6)
    s.connect(1, 3)
    s.flow()
    s.pass_time(SECOND)  # 3 learns 1 to 6: CHOSEN records
    assert s.status(3)["chosen_through"] == 6
    s.crash(3, power=False)
    s.journal[3] = [r for r in s.journal[3] if not (r.line().startswith("CHOSEN") and r.index <= 3)]
    s.disconnect(1, 2)
    s.start(3)
    assert s.status(3)["chosen_through"] == 0
    install(s, 3, 3)
    assert s.status(3)["chosen_through"] == 6
    assert s.chosen[3][-1] == (0, 4, 6)
    assert [s.body(3, i) == s.find(1, 0, i) for i in (4, 5, 6)] == [True] * 3
    assert [(g, i) for g, i, _ in s.engines[3].settle_plan(s.end[3])] == [(0, 4), (0, 5), (0, 6)]


# --- the way back


def test_a_stranded_node_goes_on_behind_the_checkpoint_and_can_lead() -> None:
    s = lagging(6)
    trim(s, 1, 6)
    trim(s, 2, 6)
    s.connect(1, 3)
    s.connect(2, 3)
    s.pass_time(SECOND)
    assert belows(s, 3)
    install(s, 3, 5, s.status(1)["ballot"])
    s.events[3].clear()
    s.flow()  # the tail is asked for at once
    status = s.status(3)
    assert (status["chosen_through"], status["settled_through"], status["floor"]) == (6, 5, 6)
    assert s.chosen[3] == [(0, 6, 6)]
    s.submit(1, b"on")
    s.pass_time(2 * SECOND)
    assert s.status(3)["chosen_through"] == 7
    assert belows(s, 3) == []
    s.crash(1)
    s.engines[2].restoring(0, True)
    s.pass_time(5 * SECOND)
    assert s.status(3)["leading"]


def test_an_answer_to_the_question_before_it_disturbs_nothing() -> None:
    s = lagging(6)
    s.connect(1, 3)
    s.drop()
    s.put(1, 3, encode("Chosen", 0, s.status(1)["ballot"], through=6))
    (ask,) = s.pick("3→1", "LearnAsk")
    s.deliver("3→1", "LearnAsk")
    old = s.pick("1→3", "Learn")[0]
    install(s, 3, 4)
    s.drop()
    s.put(1, 3, old.raw)  # 1 to 6: of use from 5 on
    assert ask.fixed["first"] == 1
    assert s.status(3)["chosen_through"] == 6
    assert s.chosen[3] == [(0, 5, 6)]


def test_a_frontier_that_the_log_has_passed_raises_the_floor_and_nothing_else() -> None:
    s = lagging(6)
    before = s.status(1)
    since = s.end[1]
    assert s.engines[1].install(0, 3, 1) == 0
    s.turn(1)
    after = s.status(1)
    assert (after["floor"], after["settled_through"]) == (4, 3)
    changed = {"floor", "settled_through"}
    assert all(after[name] == before[name] for name in before if name not in changed)
    assert after["leading"]
    assert promises(s, 1, since) == []
    assert s.find(1, 0, 4) is not None


def test_a_leader_gives_up_before_it_goes_on_elsewhere() -> None:
    s = recovering()
    s.engines[1].install(0, 4, 0)
    s.turn(1)
    assert not s.status(1)["leading"]
    s.pass_time(5 * SECOND)
    s.engines[2].install(0, 4, 0)
    s.pass_time(5 * SECOND)
    assert s.status(1)["chosen_through"] == s.status(2)["chosen_through"] == 6
    assert s.body(1, 5) == s.body(2, 5) is not None


def test_a_leader_whose_ballot_is_over_gives_up() -> None:
    s = lagging(3)
    number = s.status(1)["ballot"]
    install(s, 1, 2, ballot(9, 3))
    assert not s.status(1)["leading"]
    assert s.status(1)["promised"] == ballot(9, 3) > number
    s.pass_time(5 * SECOND)
    s.submit(1, b"on")
    s.pass_time(SECOND)
    assert s.status(1)["chosen_through"] >= 4


def test_acknowledgements_say_known_chosen_up_to_the_frontier() -> None:
    s = lagging(6)
    number = s.status(1)["ballot"]
    s.connect(1, 3)
    s.drop()
    body = s.find(1, 0, 6) or b""

    def accept(instance: int) -> bytes:
        return encode(
            "Accept", 0, number, body, instance=instance, first=1, watermark=0, nbytes=len(body)
        )

    s.put(1, 3, accept(6))
    assert s.pick("3→1", "Accepted")[-1].fixed["through"] == 0
    install(s, 3, 5, number)
    s.drop()
    s.put(1, 3, accept(6))
    (ack,) = s.pick("3→1", "Accepted")
    assert (ack.fixed["first"], ack.fixed["through"], ack.fixed["chosen"]) == (1, 6, 5)


def test_an_attempt_under_way_ends_and_the_next_one_begins_behind() -> None:
    s = lagging(4)
    s.crash(1)
    s.engines[2].restoring(0, True)
    s.pass_time(3 * SECOND)  # its grant to 1 ends
    s.connect(2, 3)
    for _ in range(300):
        s.pass_time(10_000, unless=lambda m: m.name in ("Promise", "Learn"))
        if s.status(3)["ballot"]:
            break
    number = s.status(3)["ballot"]
    assert number
    s.engines[3].install(0, 3, 0)
    s.turn(3)
    assert s.status(3)["ballot"] == 0
    s.put(2, 3, encode("Promise", 0, number, flags=FLAG_LAST, first=1, chosen=4))
    assert not s.status(3)["leading"]
    s.pass_time(5 * SECOND)
    assert s.status(3)["leading"]
    assert s.status(2)["chosen_through"] == s.status(3)["chosen_through"] >= 4


# --- callers


def test_values_that_are_applied_are_tried_no_more_and_the_others_are() -> None:
    s = lagging(3)
    s.submit(3, b"in it", b"in it, too", b"not in it")
    assert s.status(3)["waiting_values"] == 3
    install(s, 3, 3)
    s.engines[3].done(0, 1, 2)
    s.turn(3)
    assert s.status(3)["waiting_values"] == 1
    s.engines[3].done(0, 1, 2)
    s.engines[3].done(5, 1, 2)
    s.engines[2].done(0, 1, 2)  # nobody ever submitted anything there
    s.lines.clear()
    s.connect(1, 3)
    s.connect(2, 3)
    s.pass_time(3 * SECOND)
    forwarded = [line for line in s.said("Forward") if line.startswith("3→")]
    assert forwarded
    assert all("first_seq=3 count=1" in line for line in forwarded)
    assert s.values(1)[-1] == [b"not in it"]
    assert s.status(3)["waiting_values"] == 0
    assert [e for e in s.events[3] if e[0] == 1] == []


def test_a_part_of_a_run_that_was_sent_can_be_done() -> None:
    s = Script()
    s.elect(1)
    s.submit(3, b"a", b"b", b"c", b"d")
    s.drop("Forward")
    s.engines[3].done(0, 2, 2)
    assert s.status(3)["waiting_values"] == 2
    s.pass_time(5 * SECOND)
    done = [value for one in s.values(1) for value in one]
    assert sorted(done) == [b"a", b"d"]


# --- the next life


def test_a_restart_knows_what_its_row_says_and_the_journal_does_too() -> None:
    s = lagging(6)
    install(s, 3, 5, s.status(1)["ballot"])
    s.restart(3)
    status = s.status(3)
    assert (status["chosen_through"], status["settled_through"], status["floor"]) == (5, 5, 6)
    assert settled_records(s.journal[3])[-1] == (0, 5, 6)
    assert s.chosen[3][-1] == (0, 1, 5)
    s.connect(1, 3)
    s.pass_time(SECOND)
    assert s.status(3)["chosen_through"] == 6


def test_a_retire_after_it_carries_what_is_above_and_says_what_is_settled() -> None:
    s = lagging(6)
    settle(s, 2, through=3)
    s.restart(2)
    s.drop()
    install(s, 2, 5)
    lsn = s.end[2]
    assert s.engines[2].retire(lsn) == 0
    s.turn(2)
    made = [r for r in s.journal[2] if r.lsn >= lsn]
    assert [(r.index) for r in made if r.line().startswith("ACCEPT")] == [6]
    assert settled_records(made) == [(0, 5, 6)]


# --- at random


class Floors:
    """What a keeper does, by dice: nodes trim, lose stores, and install what others have."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.c = cluster
        self.dice = random.Random(seed)
        self.floor: dict[tuple[int, int], int] = {}
        self.wanted: set[tuple[int, int]] = set()
        self.installs = self.losses = 0
        for n in cluster.nodes:
            self.listen(cluster.node[n])

    def listen(self, node: Node) -> None:
        told, begun = node.event, node.start

        def event(kind: int, verdict: int, group: int, first: int, count: int, leader: int) -> None:
            if kind == 5:
                assert leader in self.c.nodes
                assert leader != node.id
                self.wanted.add((node.id, group))
            told(kind, verdict, group, first, count, leader)

        def start() -> None:
            begun()
            self.begin(node)

        node.event, node.start = event, start  # type: ignore[method-assign]

    def begin(self, node: Node) -> None:
        assert node.engine is not None
        for group in self.c.groups:
            self.wanted.discard((node.id, group))
            known = node.engine.status(group)["settled_through"]
            if known > len(node.store[group]):
                # The store was lost. A checkpoint of somebody is there in no time.
                self.losses += 1
                node.store[group] = self.bodies(group, known)
                node.announced[group] = known
                self.floor[node.id, group] = known + 1
                assert node.engine.status(group)["floor"] == known + 1
            node.engine.floor(group, self.floor.get((node.id, group), 1))

    def bodies(self, group: int, through: int) -> list[bytes]:
        return [self.c.checker.decided[group, i] for i in range(1, through + 1)]

    def trim(self, n: int, group: int) -> None:
        node = self.c.node[n]
        if node.engine is None or node.settling:
            return
        low, high = self.floor.get((n, group), 1), len(node.store[group]) + 1
        if low < high:
            self.floor[n, group] = self.dice.randrange(low, high) + 1
            node.engine.floor(group, self.floor[n, group])
            node.poke()

    def install(self, n: int, group: int) -> None:
        node = self.c.node[n]
        if node.engine is None or node.settling:
            return
        self.wanted.discard((n, group))
        provider = self.c.node[self.dice.choice([p for p in self.c.nodes if p != n])]
        through = provider.announced[group]
        if provider.engine is None or through <= node.announced[group]:
            return
        through = self.dice.randrange(node.announced[group], through) + 1
        bodies = self.bodies(group, through)
        epoch = max(struct.unpack_from("<Q", body, 8)[0] for body in bodies)
        node.store[group] = bodies
        self.floor[n, group] = through + 1
        promised = node.engine.status(group)["promised"]
        assert node.engine.install(group, through, epoch) == 0
        assert node.engine.status(group)["promised"] >= max(promised, epoch)
        node.announced[group] = through
        self.installs += 1
        for body in bodies:
            for run in runs_of(body):
                if (run.node, run.incarnation) == (n, node.incarnation):
                    node.engine.done(group, run.first_seq, len(run.values))
        node.watch_leadership()
        node.poke()


@pytest.mark.parametrize("seed", range(24))
def test_nodes_trim_lose_their_stores_and_install_at_random_and_every_claim_holds(
    seed: int,
) -> None:
    """The checker of the harness watches U1 to U7 and the leases; it raises where one breaks."""
    c = Cluster(seed, nodes=3 if seed % 3 else 5, faults=Faults(loss=0.02, twice=0.02))
    keeper = Floors(c, seed)
    dice = random.Random(seed)
    for number in range(250):
        n, group = dice.choice(c.nodes), dice.choice(c.groups)
        if c.alive(n):
            c.node[n].submit(group, [b"%d" % number], 20 * SECOND)
            if dice.random() < 0.5:
                c.node[n].settle()
        keeper.trim(dice.choice(c.nodes), group)
        if dice.random() < 0.1:
            keeper.install(n, group)  # also where nobody needs it
        for one in sorted(keeper.wanted):
            if dice.random() < 0.5:
                keeper.install(*one)
        if dice.random() < 0.06 and c.alive(n):
            lost = dice.random() < 0.4
            c.crash(n, power=dice.random() < 0.5, restart_us=dice.randrange(1, 3 * SECOND))
            if lost:
                c.node[n].store = {g: [] for g in c.groups}
                for g in c.groups:
                    keeper.floor.pop((n, g), None)
        c.run(dice.randrange(60_000))
    c.faults = Faults()

    def even() -> bool:
        for one in sorted(keeper.wanted):
            keeper.install(*one)
        return c.even()

    c.run_until(even, 90 * SECOND)
    assert keeper.installs
