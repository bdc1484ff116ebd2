"""Named leases: exclusion under clocks that drift, the state that replicas share, hostile bytes."""

import io
from random import Random

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phx.errors import Damaged
from phx.machines import Leases, lease
from phx.machines.kv import Malformed
from phx.machines.lease import (
    Full,
    Granted,
    Held,
    Holding,
    encode_acquire,
    encode_forget,
    encode_get,
    encode_release,
    encode_renew,
    margin_us,
)
from phx.testing.simulation import simulate
from phx.types import Entry

TTL = 1_000_000
DRIFT = 0.007


class Clock:
    """Counts from anywhere, at a rate of its own."""

    def __init__(self, rate=1.0, first_us=0):
        self.rate = rate
        self.first_us = first_us
        self.true_us = 0

    def __call__(self):
        return int(self.first_us + self.true_us * self.rate)


def alone(clock=None):
    machine = Leases(clock=clock or Clock())
    return machine, lambda command: machine.apply(Entry(value=machine.prepare(command)))


# --- what commands do


def test_a_lease_is_held_by_one_until_it_is_released():
    machine, do = alone()
    assert do(encode_acquire("a", "x", TTL)) == Granted(1)
    assert do(encode_acquire("a", "y", TTL)) == Held("a", "x")
    assert do(encode_get("a")) == Holding("x", 1, TTL) == machine.get("a")
    assert do(encode_release("a", 2)) is False
    assert do(encode_renew("a", 2, TTL)) is False
    assert do(encode_renew("a", 1, TTL)) is True
    assert do(encode_release("a", 1)) is True
    assert do(encode_get("a")) is None
    token = do(encode_acquire("a", "y", TTL)).token
    assert token > 1
    assert do(encode_renew("a", 1, TTL)) is False, "the old token is worth nothing"
    assert len(machine) == 1


def test_a_lease_can_be_taken_when_it_has_run_out_and_a_margin_has_gone_by():
    clock = Clock()
    machine, do = alone(clock)
    do(encode_acquire("a", "x", TTL))
    clock.true_us = TTL + margin_us(TTL) - 1
    assert do(encode_acquire("a", "y", TTL)) == Held("a", "x")
    assert machine.wait_us("a", "y") == 1
    clock.true_us += 1
    assert machine.wait_us("a", "y") == 0
    assert do(encode_acquire("a", "y", TTL)) == Granted(2)
    assert do(encode_renew("a", 1, TTL)) is False


def test_it_can_be_renewed_after_it_ran_out_if_nobody_took_it():
    clock = Clock()
    _, do = alone(clock)
    do(encode_acquire("a", "x", TTL))
    clock.true_us = 10 * TTL
    assert do(encode_renew("a", 1, TTL)) is True
    assert do(encode_acquire("a", "y", TTL)) == Held("a", "x")


def test_a_word_given_before_a_renewal_does_not_end_the_lease():
    clock = Clock()
    machine, do = alone(clock)
    do(encode_acquire("a", "x", TTL))
    clock.true_us = 2 * TTL
    word = machine.prepare(encode_acquire("a", "y", TTL))
    assert do(encode_renew("a", 1, TTL)) is True
    assert machine.apply(Entry(value=word)) == Held("a", "x")


def test_a_word_says_nothing_of_what_was_not_in_the_way_when_it_was_given():
    clock = Clock()
    machine, do = alone(clock)
    above = do(encode_acquire("a", "A", 100 * TTL)).token
    middle = do(encode_acquire("a/b", "B", TTL, above)).token
    word = machine.prepare(encode_acquire("a/b/c", "C", TTL, middle))
    again = machine.prepare(encode_acquire("a/b", "B", TTL))
    do(encode_release("a/b", middle))
    assert machine.apply(Entry(value=word)) == Held("a", "A")
    assert machine.apply(Entry(value=again)) == Held("a", "A")


def test_an_older_renewal_that_comes_late_does_not_shorten_a_newer_one():
    clock = Clock()
    _, do = alone(clock)
    do(encode_acquire("a", "x", TTL))
    do(encode_renew("a", 1, 50 * TTL))
    do(encode_renew("a", 1, TTL))  # proposed before the other, chosen after it
    clock.true_us = 40 * TTL
    assert do(encode_acquire("a", "y", TTL)) == Held("a", "x")


def test_a_holder_gets_what_it_holds_again_and_not_for_a_shorter_time():
    clock = Clock()
    _, do = alone(clock)
    do(encode_acquire("a", "x", 50 * TTL))
    assert do(encode_acquire("a", "x", TTL)) == Granted(2)
    clock.true_us = 40 * TTL
    assert do(encode_acquire("a", "y", TTL)) == Held("a", "x")


def test_names_above_and_below_exclude_each_other_but_for_whom_the_holder_lets_in():
    machine, do = alone()
    above = do(encode_acquire("a", "A", TTL)).token
    assert do(encode_acquire("a/b", "B", TTL)) == Held("a", "A")
    assert do(encode_acquire("a/b/c/d", "B", TTL)) == Held("a", "A")
    assert do(encode_acquire("ab", "B", TTL)) == Granted(2)
    assert do(encode_acquire("a/b", "A", TTL)) == Granted(3), "its own"
    assert do(encode_acquire("a/c/d", "C", TTL, above)) == Granted(4)
    assert do(encode_acquire("a/c/d/e", "D", TTL, above)) == Held("a/c/d", "C")
    assert do(encode_acquire("a/c/d/e", "D", TTL, 4)) == Granted(5)
    assert do(encode_acquire("a/c", "E", TTL, above)) == Held("a/c/d", "C")
    assert do(encode_release("a", above)) is True
    assert do(encode_acquire("a", "F", TTL)) == Held("a/b", "A"), "those below outlast it"
    assert do(encode_acquire("a", "A", TTL)) == Held("a/c/d", "C")
    for name, token in (("a/b", 3), ("a/c/d", 4), ("a/c/d/e", 5), ("ab", 2)):
        assert do(encode_release(name, token)) is True
    assert do(encode_acquire("a", "F", TTL)) == Granted(6)
    assert machine._below == {}


def test_what_has_run_out_is_forgotten_when_somebody_asks():
    clock = Clock()
    machine, do = alone(clock)
    for n in range(1_500):
        do(encode_acquire(f"{n}", "x", TTL))
    do(encode_acquire("long", "x", 100 * TTL))
    assert do(encode_forget()) == 0
    clock.true_us = 2 * TTL
    assert [do(encode_forget()) for _ in range(3)] == [1_000, 500, 0]
    assert len(machine) == 1


def test_there_are_only_so_many(monkeypatch):
    monkeypatch.setattr(lease, "LEASES_MAX", 3)
    clock = Clock()
    _, do = alone(clock)
    for name in "abc":
        do(encode_acquire(name, "x", TTL))
    assert do(encode_acquire("d", "x", TTL)) == Full(3)
    assert do(encode_acquire("c", "x", TTL)) == Granted(4)
    clock.true_us = 2 * TTL
    assert do(encode_acquire("c", "y", TTL)) == Granted(5), "in the place of the other"
    assert do(encode_forget()) == 2
    assert do(encode_acquire("d", "x", TTL)) == Granted(6)


def test_what_the_clock_says_is_not_taken_from_a_caller():
    machine, _ = alone()
    for command in (["acquire", "a", "x", TTL, 0, [1]], ["forget", [1]]):
        with pytest.raises(ValueError, match="not given by the caller"):
            machine.prepare(msgpack.packb(command))


MALFORMED = [
    b"",
    b"\xc1",
    msgpack.packb(5),
    msgpack.packb(["acquire", "a", "x", TTL, 0]),  # not prepared
    msgpack.packb(["acquire", "", "x", TTL, 0, []]),
    msgpack.packb(["acquire", "a//b", "x", TTL, 0, []]),
    msgpack.packb(["acquire", "/a", "x", TTL, 0, []]),
    msgpack.packb(["acquire", "a" * 513, "x", TTL, 0, []]),
    msgpack.packb(["acquire", "/".join("a" * 17), "x", TTL, 0, []]),
    msgpack.packb(["acquire", b"a", "x", TTL, 0, []]),
    msgpack.packb(["acquire", "a", "", TTL, 0, []]),
    msgpack.packb(["acquire", "a", "x" * 257, TTL, 0, []]),
    msgpack.packb(["acquire", "a", "x", 999, 0, []]),
    msgpack.packb(["acquire", "a", "x", (1 << 63), 0, []]),
    msgpack.packb(["acquire", "a", "x", True, 0, []]),
    msgpack.packb(["acquire", "a", "x", TTL, -1, []]),
    msgpack.packb(["acquire", "a", "x", TTL, 0, [1.5]]),
    msgpack.packb(["acquire", "a", "x", TTL, 0, [1] * 1_001]),
    msgpack.packb(["acquire", "a", "x", TTL, 0, 1]),
    msgpack.packb(["renew", "a", 1, 0]),
    msgpack.packb(["renew", "a", "1", TTL]),
    msgpack.packb(["release", "a"]),
    msgpack.packb(["forget", [None]]),
    msgpack.packb(["forget"]),
]


@pytest.mark.parametrize("value", MALFORMED)
def test_what_is_no_command_changes_nothing_and_says_so(value):
    machine, do = alone()
    do(encode_acquire("z", "x", TTL))
    before = machine.digest()
    assert isinstance(machine.apply(Entry(value=value)), Malformed)
    assert machine.digest() == before


@given(st.binary(max_size=60))
def test_no_bytes_make_it_raise(value):
    machine, _ = alone()
    for head in (b"", b"\x96\xa7acquire", b"\x94\xa5renew", b"\x92\xa6forget"):
        machine.apply(Entry(value=head + value))
        machine.digest()


# --- replicas, snapshots

NAMES = st.sampled_from(["a", "a/b", "a/b/c", "a/c", "d", "d/e"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("acquire"), NAMES, st.sampled_from("xyz"), st.integers(0, 12)),
        st.tuples(st.just("renew"), NAMES, st.integers(1, 12)),
        st.tuples(st.just("release"), NAMES, st.integers(1, 12)),
        st.tuples(st.just("forget")),
        st.tuples(st.just("wait"), st.integers(0, 2 * TTL)),
    ),
    max_size=40,
)


def commands_of(steps, machine, clock):
    """Each step as a value that is prepared with this machine's clock, and applied to it."""
    for kind, *rest in steps:
        match kind, rest:
            case "wait", [us]:
                clock.true_us += us
                continue
            case "acquire", [name, holder, under]:
                command = encode_acquire(name, holder, TTL, under)
            case "renew", [name, token]:
                command = encode_renew(name, token, TTL)
            case "release", [name, token]:
                command = encode_release(name, token)
            case _:
                command = encode_forget()
        value = machine.prepare(command)
        yield value, machine.apply(Entry(value=value))


def snapshot_of(machine):
    out = io.BytesIO()
    view = machine.freeze()
    view.snapshot(out)
    return out.getvalue()


@given(STEPS, STEPS)
@settings(max_examples=200)
def test_replicas_agree_whatever_their_clocks_say_also_after_a_snapshot(before, after):
    clock = Clock()
    source = Leases(clock=clock)
    replica = Leases(clock=lambda: 1 << 40)  # its clock stands still, elsewhere
    for value, result in commands_of(before, source, clock):
        assert replica.apply(Entry(value=value)) == result
    made = Leases(clock=lambda: 5)
    made.restore(io.BytesIO(snapshot_of(source)))
    assert snapshot_of(made) == snapshot_of(source) == snapshot_of(replica)
    for value, result in commands_of(after, source, clock):
        entry = Entry(value=value)
        assert replica.apply(entry) == made.apply(entry) == result
        assert replica.digest() == made.digest() == source.digest()
        assert made._below == source._below


def test_a_restored_machine_begins_to_wait_when_it_is_restored():
    clock = Clock()
    source, do = alone(clock)
    do(encode_acquire("a", "x", TTL))
    clock.true_us = 5 * TTL
    made = Leases(clock=clock)
    made.restore(io.BytesIO(snapshot_of(source)))
    assert made.wait_us("a", "y") == TTL + margin_us(TTL)
    assert source.wait_us("a", "y") == 0


def sealed(*objects):
    from zlib import crc32

    body = b"".join(map(msgpack.packb, objects))
    return body + crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    "objects",
    [
        [],
        [["phx leases 2", 0, 0]],
        [["phx leases 1", 5, 2], ["a", "x", 1, TTL, 5]],
        [["phx leases 1", 5, 1], ["a", "x", 1, TTL, 6]],
        [["phx leases 1", 5, 1], ["a", "x", 6, TTL, 5]],
        [["phx leases 1", 5, 1], ["a", "x", 0, TTL, 5]],
        [["phx leases 1", 5, 1], ["a//b", "x", 1, TTL, 5]],
        [["phx leases 1", 5, 1], ["a", "x", 1, 1, 5]],
        [["phx leases 1", 5, 2], ["a", "x", 1, TTL, 5], ["b", "x", 1, TTL, 4]],
        [["phx leases 1", 5, 2], ["a", "x", 1, TTL, 4], ["a", "x", 1, TTL, 5]],
        [["phx leases 1", 5, 1], ["a", "x", 1, TTL]],
    ],
)
def test_snapshots_that_no_machine_wrote_are_refused(objects):
    machine, do = alone()
    do(encode_acquire("z", "x", TTL))
    before = machine.digest()
    for data in (sealed(*objects), sealed(*objects)[:-1]):
        with pytest.raises(Damaged):
            machine.restore(io.BytesIO(data))
    assert machine.digest() == before


# --- exclusion, against what holders believe


class World:
    """Nodes with clocks of their own; a log; holders that believe by their own clocks.

    True time passes for all at once. A proposal takes time to the log, gets there in any order, and
    each replica applies the log when it comes to it.
    """

    def __init__(self, chance, nodes=3):
        self.chance = chance
        self.clocks = [
            Clock(1 + chance.uniform(-DRIFT, DRIFT), chance.randrange(1 << 40))
            for _ in range(nodes)
        ]
        self.machines = [Leases(clock=clock) for clock in self.clocks]
        self.log, self.applied = [], [0] * nodes
        self.flight = []  # (node, value, what to do with the result)
        self.handles = []
        self.granted = 0

    def pass_time(self, us):
        for clock in self.clocks:
            clock.true_us += us

    def propose(self, node, command, then):
        self.flight.append((node, self.machines[node].prepare(command), then))

    def choose(self):
        if self.flight:
            self.log.append(self.flight.pop(self.chance.randrange(len(self.flight))))

    def apply(self, node):
        if self.applied[node] == len(self.log):
            return
        origin, value, then = self.log[self.applied[node]]
        self.applied[node] += 1
        result = self.machines[node].apply(Entry(value=value))
        if origin == node:
            then(result)
            self.check()

    def check(self):
        """No two that believe now exclude each other."""
        believing = [one for one in self.handles if one.believes()]
        for one in believing:
            for other in believing:
                related = f"{other.name}/".startswith(f"{one.name}/")
                if related and one.holder != other.holder:
                    assert one.holder in other.let_in, (vars(one), vars(other))


class Handle:
    """A holder's end of a lease, as phx.machines.lease.Lease has it."""

    def __init__(self, world, node, name, holder, under=None):
        self.world, self.node, self.name, self.holder = world, node, name, holder
        self.until_us, self.token, self.over = 0, 0, False
        # Whoever let it in, and whoever let them in.
        self.let_in = {under.holder, *under.let_in} if under else set()
        world.handles.append(self)
        self.ask(encode_acquire(name, holder, self.some_ttl(), under.token if under else 0))

    def some_ttl(self):
        self.ttl_us = self.world.chance.choice((20_000, 100_000, 400_000))
        return self.ttl_us

    def believes(self):
        return self.world.clocks[self.node]() < self.until_us

    def ask(self, command):
        since_us, ttl_us = self.world.clocks[self.node](), self.ttl_us

        def then(result):
            if isinstance(result, Granted):
                self.token = result.token
                self.world.granted += 1
            if (isinstance(result, Granted) or result is True) and not self.over:
                self.until_us = max(self.until_us, since_us + ttl_us)
            elif result is False:
                self.until_us = 0

        self.world.propose(self.node, command, then)

    def step(self):
        if self.token and self.world.chance.random() < 0.3:
            self.over, self.until_us = True, 0
            self.world.propose(self.node, encode_release(self.name, self.token), lambda _: None)
        elif self.token:
            self.ask(encode_renew(self.name, self.token, self.some_ttl()))


def play(seed, steps=600):
    chance = Random(seed)
    world = World(chance)
    names = ["a", "a/b", "a/b/c", "a/c", "d"]
    for _ in range(steps):
        what = chance.random()
        node = chance.randrange(3)
        if what < 0.12:
            name = chance.choice(names)
            above = [
                one
                for one in world.handles
                if name.startswith(f"{one.name}/") and one.token and not one.over
            ]
            under = chance.choice(above) if above and chance.random() < 0.5 else None
            Handle(world, node, name, f"h{chance.randrange(6)}@{node}", under)
        elif what < 0.25 and world.handles:
            chance.choice(world.handles).step()
        elif what < 0.27:
            world.propose(node, encode_forget(), lambda _: None)
        elif what < 0.45:
            world.choose()
        elif what < 0.75:
            world.apply(node)
        elif what < 0.77:  # a replica comes back from a snapshot of its own
            made = Leases(clock=world.clocks[node])
            made.restore(io.BytesIO(snapshot_of(world.machines[node])))
            world.machines[node] = made
        else:
            world.pass_time(int(chance.expovariate(1 / 30_000)))
            world.check()
    return world


@pytest.mark.parametrize("part", range(4))
def test_no_two_believe_what_excludes_each_other(part):
    granted = sum(play(seed).granted for seed in range(100 * part, 100 * part + 100))
    assert granted > 500


def half_the_time(ttl_us):
    return -ttl_us // 2


def not_below(self, name, holder, under, in_the_way=Leases._in_the_way):
    return (way for way in in_the_way(self, name, holder, under) if len(way) <= len(name))


def restored_long_ago(self, reader, restore=Leases.restore):
    restore(self, reader)
    self._known_us = dict.fromkeys(self._known_us, -(1 << 60))


@pytest.mark.parametrize(
    ("target", "name", "broken"),
    [
        (lease, "margin_us", half_the_time),
        (Leases, "_in_the_way", not_below),
        (Leases, "restore", restored_long_ago),
    ],
)
def test_the_world_finds_what_is_broken(monkeypatch, target, name, broken):
    monkeypatch.setattr(target, name, broken)

    def play_on():
        for seed in range(1_000):
            play(seed)

    with pytest.raises(AssertionError, match="let_in"):
        play_on()


@pytest.mark.parametrize("ttl_us", [lease.TTL_US_MIN, 20_000, 999_999, lease.TTL_US_MAX])
def test_the_margin_pays_for_the_slowest_holder_and_the_fastest_other(ttl_us):
    holder, other = Clock(1 - DRIFT), Clock(1 + DRIFT, 77)
    machine, do = alone(other)
    do(encode_acquire("a", "x", ttl_us))  # applied in the moment in which it is proposed
    while holder() < ttl_us:
        holder.true_us += 1 + int((ttl_us - holder()) / 2)
    other.true_us = holder.true_us  # the first moment in which the holder believes no more
    assert machine.wait_us("a", "y") > 0


# --- in simulated clusters


def stamped(chance):
    """Commands as they stand in the log, with words that any clock might have given."""
    name = chance.choice(["a", "a/b", "a/b/c", "a/c", "d"])
    what = chance.random()
    gone = sorted(chance.randrange(1, 60) for _ in range(chance.randrange(4)))
    if what < 0.5:
        under = chance.randrange(40)
        return msgpack.packb(["acquire", name, chance.choice("xyz"), TTL, under, gone])
    if what < 0.7:
        return encode_renew(name, chance.randrange(1, 60), TTL)
    if what < 0.9:
        return encode_release(name, chance.randrange(1, 60))
    return msgpack.packb(["forget", gone])


def test_replicas_are_equal_in_simulated_clusters():
    assert simulate(Leases, stamped, seeds=3) > 1_000
    assert simulate(Leases, stamped, seeds=2, first=40, profile="checkpoints") > 1_000
