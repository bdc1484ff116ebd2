"""The acts of a plan: one row of ACTS for each kind of fault.

A row says how an act is made up (`make`), what is done when it begins and when it ends. A new kind
of fault is a new row here, and its weight in a profile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING

from phx.sim.act_kind import (
    ActKind,
    Args,
    Shape,
    between,
    nothing,
    one,
    where_members_stay,
)
from phx.sim.acts_groups import GROUP_ACTS
from phx.sim.acts_keep import KEEP_ACTS
from phx.sim.acts_lost import LOST_ACTS
from phx.sim.acts_members import MEMBER_ACTS
from phx.sim.acts_odd import ODD_ACTS
from phx.sim.acts_relaxed import RELAXED_ACTS
from phx.sim.acts_store import STORE_ACTS
from phx.sim.plan import SECOND, Act
from phx.types import PRIORITY_USUAL

if TYPE_CHECKING:
    from phx.sim.stage import Stage

__all__ = ["ACTS", "ActKind", "Shape"]

EIO = 5
ENOSPC = 28
NEVER = -1
RIGHT_PPM = 1_000_000
LAST_WORDS = 6
"""Less one: values that a leader takes before it dies."""
DRIFT_PPM = 50_000
"""Two clocks off by so much each, in opposite directions, are a ninth apart: within the bound."""

# --- links


def some_links(chance: Random, shape: Shape) -> Args:
    """All links, all of a node, or one direction of one pair: 0 stands for every node."""
    if shape.nodes == 1:
        return {"a": 0, "b": 0}
    how = chance.random()
    if how < 0.3:
        return {"a": 0, "b": 0}
    a, b = chance.sample(range(1, shape.nodes + 1), 2)
    if how < 0.65:
        return {"a": a, "b": 0}
    return {"a": a, "b": b}


def linked(nodes: int, a: int, b: int) -> Iterator[tuple[int, int]]:
    for source in range(1, nodes + 1):
        for dest in range(1, nodes + 1):
            if source == dest:
                continue
            if not a or (not b and a in (source, dest)) or (a == source and b == dest):
                yield source, dest


def link_act(settings: Callable[[Random], Args], low: float = 0.3, high: float = 8.0) -> ActKind:
    """Settings of links, for a while."""

    def make(chance: Random, shape: Shape) -> tuple[Args, int] | None:
        if shape.nodes == 1:
            return None
        return {**some_links(chance, shape), **settings(chance)}, between(chance, low, high)

    def begin(stage: Stage, act: Act) -> None:
        changed = {name: value for name, value in act.args if name not in ("a", "b")}
        for pair in linked(stage.plan.nodes, act.a, act.b):
            stage.links.put(pair, act, changed)

    return ActKind(make, begin, lambda stage, act: stage.links.take(act))


def loss(chance: Random) -> Args:
    return {"loss_ppm": chance.choice([1_000, 20_000, 100_000, 300_000, 700_000])}


def twice(chance: Random) -> Args:
    return {"twice_ppm": chance.choice([5_000, 100_000, 500_000])}


def late(chance: Random) -> Args:
    ppm = chance.choice([10_000, 200_000, 600_000])
    return {"late_ppm": ppm, "late_us": chance.choice([2_000, 20_000, 200_000, 1_500_000])}


def delay(chance: Random) -> Args:
    most = chance.choice([5_000, 40_000, 150_000, 600_000])
    return {"delay_us_min": most // chance.choice([2, 10]), "delay_us_max": most}


def slow(chance: Random) -> Args:
    return {"bytes_per_ms": chance.choice([5, 20, 100, 500])}


def end_slow(stage: Stage, act: Act) -> None:
    """What has piled up goes down with its connection; it would last for minutes."""
    stage.links.take(act)
    for a, b in linked(stage.plan.nodes, act.a, act.b):
        stage.world.reset(a, b)


def flip(chance: Random) -> Args:
    return {"flip_ppm": chance.choice([1_000, 20_000, 200_000])}


def block(chance: Random) -> Args:
    return {"blocked": 1}


# --- partitions


def cut(nodes: int, mask: int) -> Iterator[tuple[int, int]]:
    """Pairs with one end in the mask (bit n - 1: node n), each once."""
    for a in range(1, nodes + 1):
        for b in range(a + 1, nodes + 1):
            if (mask >> (a - 1) & 1) != (mask >> (b - 1) & 1):
                yield a, b


def halves(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    if shape.nodes == 1:
        return None
    return {"mask": chance.randrange(1, (1 << shape.nodes) - 1)}, between(chance, 0.3, 7.0)


def begin_apart(stage: Stage, act: Act) -> None:
    for a, b in cut(stage.plan.nodes, act.mask):
        stage.part(a, b, act)


def begin_silent(stage: Stage, act: Act) -> None:
    for a, b in cut(stage.plan.nodes, act.mask):
        stage.links.put((a, b), act, {"blocked": 1})
        stage.links.put((b, a), act, {"blocked": 1})


def partial(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    """`order` is the seed of an order of the nodes; `told`: both ends know."""
    if shape.nodes < 3:
        return None
    args = {"order": chance.randrange(1 << 30), "told": chance.randrange(2)}
    return args, between(chance, 1.0, 8.0)


def in_order(stage: Stage, act: Act) -> list[int]:
    nodes = list(range(1, stage.plan.nodes + 1))
    Random(act.order).shuffle(nodes)
    return nodes


def part_pairs(stage: Stage, act: Act, pairs: list[tuple[int, int]]) -> None:
    for a, b in pairs:
        if act.told:
            stage.part(a, b, act)
        else:
            stage.links.put((a, b), act, {"blocked": 1})
            stage.links.put((b, a), act, {"blocked": 1})


def begin_chain(stage: Stage, act: Act) -> None:
    """Everybody hears the neighbours in a row only."""
    row = in_order(stage, act)
    part_pairs(
        stage, act, [(row[i], row[j]) for i in range(len(row)) for j in range(i + 2, len(row))]
    )


def begin_bridge(stage: Stage, act: Act) -> None:
    """Two halves that hear one node in common, and not each other."""
    row = in_order(stage, act)[1:]
    half = len(row) // 2
    part_pairs(stage, act, [(a, b) for a in row[:half] for b in row[half:]])


def end_parted(stage: Stage, act: Act) -> None:
    stage.links.take(act)
    stage.join(act)


def two(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    if shape.nodes == 1:
        return None
    a, b = chance.sample(range(1, shape.nodes + 1), 2)
    return {"a": a, "b": b}, 0


# --- crashes


def crash(power: int) -> ActKind:
    def make(chance: Random, shape: Shape) -> tuple[Args, int] | None:
        return {"node": one(chance, shape), "power": power}, between(chance, 0.05, 6.0)

    def begin(stage: Stage, act: Act) -> None:
        stage.down(act.node, act.until_us)
        stage.crash(act.node, bool(act.power))

    return ActKind(make, begin, lambda stage, act: stage.keep())


def last_words(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    """What a node says last reaches some and not others; then its process dies."""
    if shape.nodes == 1:
        return None
    args = {"node": one(chance, shape), "loss_ppm": chance.choice([400_000, 600_000, 800_000])}
    return args, between(chance, 0.02, 0.3)


def one_value(stage: Stage, node: int, group: int) -> Callable[[], None]:
    return lambda: stage.load.burst(node, group, 1, 16)


def begin_last_words(stage: Stage, act: Act) -> None:
    """With values on their way in every group that it leads, each in an instance of its own: so
    there are gaps for the next leader to fill, and acceptances of a few for it to find."""
    world = stage.world
    for other in stage.nodes:
        if other != act.node:
            stage.links.put((act.node, other), act, {"loss_ppm": act.loss_ppm})
    if not world.running(act.node):
        return
    for group in range(stage.plan.groups):
        if world.status(act.node, group)["leading"]:
            for part in range(1, LAST_WORDS):
                at = act.at_us + (act.until_us - act.at_us) * part // LAST_WORDS
                world.call_at(at, one_value(stage, act.node, group))


def end_last_words(stage: Stage, act: Act) -> None:
    stage.links.take(act)
    stage.crash(act.node, False)
    stage.keep()


def crash_operation(power: int) -> ActKind:
    def make(chance: Random, shape: Shape) -> tuple[Args, int] | None:
        operation = chance.choice([1, 2, 3, 5, 10, 30]) + chance.randrange(3)
        args = {"node": one(chance, shape), "operation": operation, "power": power}
        return args, between(chance, 0.3, 4.0)

    def begin(stage: Stage, act: Act) -> None:
        if stage.world.running(act.node):
            stage.down(act.node, act.until_us)
            stage.world.crash_at_operation(act.node, act.operation, bool(act.power))

    return ActKind(make, begin, lambda stage, act: stage.keep())


def crash_starting(power: int) -> ActKind:
    """Down, and down again while it starts: what a start writes is written by halves."""

    def make(chance: Random, shape: Shape) -> tuple[Args, int] | None:
        operation = 1 + chance.randrange(8)
        args = {"node": one(chance, shape), "operation": operation, "power": power}
        return args, between(chance, 0.05, 3.0)

    def begin(stage: Stage, act: Act) -> None:
        stage.down(act.node, act.until_us)
        stage.crash(act.node, bool(act.power))

    def end(stage: Stage, act: Act) -> None:
        if not stage.world.running(act.node):
            stage.world.crash_at_operation(act.node, act.operation, bool(act.power))
        stage.keep()

    return ActKind(make, begin, end)


def blackout(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    return {"power": int(chance.random() < 0.8)}, between(chance, 0.05, 1.0)


def begin_blackout(stage: Stage, act: Act) -> None:
    for node in range(1, stage.plan.nodes + 1):
        stage.down(node, act.until_us)
        stage.crash(node, bool(act.power))


# --- disks


def disk_failure(kind: str, error: int) -> ActKind:
    """It is poisoned then, and its process is started again when the act ends."""

    def make(chance: Random, shape: Shape) -> tuple[Args, int] | None:
        args = {"node": one(chance, shape), "after": 1 + chance.randrange(12)}
        return args, between(chance, 0.3, 4.0)

    def begin(stage: Stage, act: Act) -> None:
        stage.sick(act.node, act.until_us)
        stage.world.fail_disk(act.node, kind, act.after, error)

    return ActKind(make, begin, lambda stage, act: stage.keep())


def full_disk(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    args = {"node": one(chance, shape), "bytes_free": chance.choice([1, 2_000, 30_000, 150_000])}
    return args, between(chance, 0.5, 6.0)


def begin_full_disk(stage: Stage, act: Act) -> None:
    stage.sick(act.node, act.until_us)
    stage.world.fill_disk(act.node, act.bytes_free)


def end_full_disk(stage: Stage, act: Act) -> None:
    stage.world.fill_disk(act.node, 0)
    stage.keep()


def fail_store(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    return {"node": one(chance, shape), "times": 1 + chance.randrange(4)}, 0


def damage(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    """Only what `Shape.victims` allows: a minority may be gone for good."""
    if not shape.victims:
        return None
    args = {
        "node": chance.choice(shape.victims),
        "which": chance.randrange(1 << 20),
        "bit": chance.randrange(1 << 20),
    }
    return args, between(chance, 0.05, 4.0)


def begin_flip_journal(stage: Stage, act: Act) -> None:
    """A bit that decays under a running process is seen at its next start."""
    if stage.world.flip_journal(act.node, act.which, act.bit):
        stage.damaged.add(act.node)
    stage.down(act.node, act.until_us)
    stage.crash(act.node, False)


def begin_flip_store(stage: Stage, act: Act) -> None:
    """Whoever reads there finds it; else the scrubber does, when the act ends."""
    stage.world.flip_store(act.node, act.which, act.bit)


def end_flip_store(stage: Stage, act: Act) -> None:
    stage.world.scrub(act.node)


def slow_disk(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    most = chance.choice([20_000, 100_000, 400_000, 1_200_000])
    args = {
        "node": one(chance, shape),
        "write_us_max": most // 20,
        "sync_us_min": most // 4,
        "sync_us_max": most,
        "commit_us_max": most,
    }
    return args, between(chance, 1.0, 8.0)


def begin_slow_disk(stage: Stage, act: Act) -> None:
    settings = {name: value for name, value in act.args if name != "node"}
    stage.paces.put(act.node, act, settings)


# --- clocks


def drift(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    rate = RIGHT_PPM + chance.randrange(-DRIFT_PPM, DRIFT_PPM + 1)
    return {"node": one(chance, shape), "rate_ppm": rate}, between(chance, 2.0, 15.0)


def race(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    rate = chance.choice([100_000, 500_000, 1_500_000, 4_000_000])
    return {"node": one(chance, shape), "rate_ppm": rate}, between(chance, 1.0, 6.0)


def stand(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    return {"node": one(chance, shape), "rate_ppm": 0}, between(chance, 0.5, 4.0)


def begin_rate(stage: Stage, act: Act) -> None:
    stage.clocks.put(act.node, act, {"rate_ppm": act.rate_ppm})


def jump(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    return {"node": one(chance, shape), "jump_us": between(chance, 0.01, 20.0)}, 0


def begin_jump(stage: Stage, act: Act) -> None:
    stage.clock(act.node, jump_us=act.jump_us)


def wall(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    seconds = chance.choice([-86_400, -60, -2, 2, 60, 86_400, 3_000_000])
    return {"node": one(chance, shape), "wall_us": seconds * SECOND}, between(chance, 1.0, 20.0)


def begin_wall(stage: Stage, act: Act) -> None:
    stage.clock(act.node, wall_us=act.wall_us)


def end_wall(stage: Stage, act: Act) -> None:
    stage.clock(act.node, wall_us=0)


# --- processes and machines


def pause(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    return {"node": one(chance, shape)}, between(chance, 0.05, 5.0)


def begin_pause(stage: Stage, act: Act) -> None:
    if stage.world.running(act.node):
        stage.world.pause(act.node, act.until_us - act.at_us)


def begin_block(stage: Stage, act: Act) -> None:
    if stage.world.running(act.node):
        stage.world.block_machines(act.node, act.until_us - act.at_us)


def raising(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    args = {"node": one(chance, shape), "group": chance.randrange(shape.groups)}
    return {**args, "how": chance.randrange(2)}, between(chance, 0.5, 5.0)


def begin_raise(stage: Stage, act: Act) -> None:
    if stage.world.running(act.node):
        stage.spoil(act.node, act.group, act.how)


def end_raise(stage: Stage, act: Act) -> None:
    """Only a new process applies again."""
    if stage.world.running(act.node):
        stage.spoil(act.node, act.group, NEVER)
        if stage.world.stopped_groups(act.node):
            stage.crash(act.node, False)
    stage.keep()


def burst(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    args = {
        "node": one(chance, shape),
        "group": chance.randrange(shape.groups),
        "values": chance.choice([20, 60, 200]),
        "value_bytes": chance.choice([16, 16, 600]),
    }
    return args, 0


def begin_burst(stage: Stage, act: Act) -> None:
    stage.load.burst(act.node, act.group, act.values, act.value_bytes)


# --- what is rare when nobody arranges it


def leader_of(stage: Stage, group: int) -> int:
    """Who leads at this moment; 0: nobody."""
    world = stage.world
    for node in stage.nodes:
        if world.alive(node) and world.status(node, group)["leading"]:
            return node
    return 0


def busy_leader(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    if shape.nodes < 3:
        return None
    args = {
        "group": chance.randrange(shape.groups),
        "values": chance.choice([60, 200]),
        "after_us": chance.choice([300, 1_000, 3_000, 10_000]),
        "order": chance.randrange(1 << 30),
    }
    return args, between(chance, 0.5, 3.0)


def begin_late_votes(stage: Stage, act: Act) -> None:
    """A leader hands over while its values are still on their way to slow disks: they are decided
    in its ballot when another has proposed them again."""
    leader = leader_of(stage, act.group)
    if not leader:
        return
    others = [node for node in stage.nodes if node != leader]
    Random(act.order).shuffle(others)
    for node in others[: len(others) // 2]:
        stage.paces.put(node, act, {"sync_us_min": 200_000, "sync_us_max": 600_000})
    stage.load.burst(leader, act.group, act.values, 600)
    stage.world.call_at(stage.world.now_us + act.after_us, lambda: stage.resign(leader))


def end_late_votes(stage: Stage, act: Act) -> None:
    stage.paces.take(act)
    for node in sorted(stage.resigned):
        stage.crash(node, False)
    stage.keep()


def moving(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    args = {
        "group": chance.randrange(shape.groups),
        "times": chance.choice([1, 4, 30]),
        "every_us": chance.choice([2_000, 30_000, 200_000]),
        "order": chance.randrange(1 << 30),
    }
    return args, 0


def begin_transfer(stage: Stage, act: Act) -> None:
    """Whoever leads is asked to hand over, to somebody or to anybody, again and again; values are
    on their way."""
    targets = Random(act.order)
    stage.load.burst(targets.choice(stage.nodes), act.group, 20, 16)

    def move() -> None:
        if leader := leader_of(stage, act.group):
            stage.world.transfer(leader, act.group, targets.choice([0, *stage.nodes]))

    for n in range(act.times):
        stage.world.call_at(stage.world.now_us + n * act.every_us, move)


def preferring(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    args = {"order": chance.randrange(1 << 30), "times": chance.choice([1, 3, 10])}
    return args, between(chance, 1.0, 8.0)


def begin_prefer(stage: Stage, act: Act) -> None:
    """Nodes want to lead more or less than before, again and again; some of them not at all."""
    wishes = Random(act.order)

    def wish() -> None:
        stage.world.priority(wishes.choice(stage.nodes), wishes.choice([0, 0, 50, 100, 150, 255]))

    for n in range(act.times):
        stage.world.call_at(stage.world.now_us + n * (act.until_us - act.at_us) // act.times, wish)


def end_prefer(stage: Stage, act: Act) -> None:
    """Half of the time they want it as at first again."""
    if act.order % 2:
        for node in stage.nodes:
            stage.world.priority(node, PRIORITY_USUAL)


def any_node(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    return {"node": one(chance, shape)}, 0


def begin_settle(stage: Stage, act: Act) -> None:
    if stage.world.running(act.node):
        stage.world.settle(act.node)


def resigning(chance: Random, shape: Shape) -> tuple[Args, int] | None:
    return {"node": one(chance, shape)}, between(chance, 0.2, 4.0)


def end_resign(stage: Stage, act: Act) -> None:
    """It is stopped and started again: that is what a node resigns for."""
    stage.crash(act.node, False)
    stage.keep()


def begin_reset(stage: Stage, act: Act) -> None:
    stage.world.reset(act.a, act.b)


def end_keep(stage: Stage, act: Act) -> None:
    stage.keep()


ACTS: dict[str, ActKind] = {
    "loss": link_act(loss),
    "duplicate": link_act(twice),
    "reorder": link_act(late),
    "delay": link_act(delay),
    "slow-link": link_act(slow)._replace(end=end_slow),
    "flip-frames": link_act(flip),
    "one-way": link_act(block, 0.3, 6.0),
    "apart": ActKind(halves, begin_apart, end_parted),
    "silent": ActKind(halves, begin_silent, end_parted),
    "chain": ActKind(partial, begin_chain, end_parted),
    "bridge": ActKind(partial, begin_bridge, end_parted),
    "reset": ActKind(two, begin_reset, nothing),
    "crash": crash(0),
    "power": crash(1),
    "last-words": ActKind(last_words, begin_last_words, end_last_words),
    "crash-operation": crash_operation(0),
    "power-operation": crash_operation(1),
    "crash-starting": crash_starting(0),
    "power-starting": crash_starting(1),
    "blackout": ActKind(blackout, begin_blackout, end_keep),
    "fail-write": disk_failure("write", EIO),
    "fail-sync": disk_failure("sync", EIO),
    "fail-make": disk_failure("make", ENOSPC),
    "full-disk": ActKind(full_disk, begin_full_disk, end_full_disk),
    "fail-store": ActKind(
        fail_store, lambda stage, act: stage.world.fail_store(act.node, act.times), nothing
    ),
    "flip-journal": where_members_stay(ActKind(damage, begin_flip_journal, end_keep)),
    "flip-store": where_members_stay(ActKind(damage, begin_flip_store, end_flip_store)),
    "slow-disk": ActKind(slow_disk, begin_slow_disk, lambda stage, act: stage.paces.take(act)),
    "drift": ActKind(drift, begin_rate, lambda stage, act: stage.clocks.take(act)),
    "race": ActKind(race, begin_rate, lambda stage, act: stage.clocks.take(act)),
    "stand": ActKind(stand, begin_rate, lambda stage, act: stage.clocks.take(act)),
    "jump": ActKind(jump, begin_jump, nothing),
    "wall": ActKind(wall, begin_wall, end_wall),
    "pause": ActKind(pause, begin_pause, nothing),
    "block": ActKind(pause, begin_block, nothing),
    "raise": ActKind(raising, begin_raise, end_raise),
    "burst": ActKind(burst, begin_burst, nothing),
    "late-votes": ActKind(busy_leader, begin_late_votes, end_late_votes),
    "transfer": ActKind(moving, begin_transfer, nothing),
    "prefer": ActKind(preferring, begin_prefer, end_prefer),
    "settle": ActKind(any_node, begin_settle, nothing),
    "resign": ActKind(resigning, lambda stage, act: stage.resign(act.node), end_resign),
    **KEEP_ACTS,
    **LOST_ACTS,
    **STORE_ACTS,
    **ODD_ACTS,
    **RELAXED_ACTS,
    **MEMBER_ACTS,
    **GROUP_ACTS,
}
"""What can happen to a cluster, by name."""

BEYOND_THE_BOUND = frozenset({"race", "stand", "jump"})
"""With these, clocks leave the bound that leases are built on: U11 is not claimed."""
