"""Which faults a run has, and how large it is: a profile and a seed make a plan.

`default` mixes everything that leaves the guarantees whole; every other profile has one kind of
fault alone, or one kind of cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from phx.sim.act_kind import Shape
from phx.sim.acts import ACTS, BEYOND_THE_BOUND
from phx.sim.plan import SECOND, Act, Plan

__all__ = ["PROFILES", "Profile", "plan_of"]

KIB = 1 << 10
FIRST_FAULT_US = SECOND

Settings = dict[str, int]

# Small enough that segments fill up, are settled and used again within a minute.
USUAL: Settings = {"value_bytes_max": 16 * KIB}
LIMITS: list[tuple[Settings, float]] = [
    (USUAL, 4),
    ({**USUAL, "window": 8, "batch_bytes_max": 512}, 1),
    ({**USUAL, "window_bytes": 32 * KIB, "pending_bytes_max": 48 * KIB}, 1),
    ({**USUAL, "journal_bytes_max": 8 << 16}, 1),
    ({**USUAL, "journal_bytes_max": 10 << 16}, 0.5),
    ({**USUAL, "cache_bytes_max": 4 * KIB, "frame_bytes_max": 4 * KIB}, 1),
    ({**USUAL, "atom": 4096, "balance": 0}, 1),
    ({**USUAL, "checkpoints_kept": 1, "hold_instances": 0}, 1),
    # A journal may be lost only where the store knows of the lives of its node.
    ({**USUAL, "rejoin": 1}, 1.5),
]

FLASH: Settings = {
    "turn_us_max": 40, "write_us_max": 60, "sync_us_min": 80, "sync_us_max": 900,
    "slow_sync_ppm": 2_000, "slow_sync_us": 60_000, "apply_us_max": 300, "commit_us_max": 9_000,
    "inline_ppm": 300_000, "settle_idle_us": 2 * SECOND, "settle_bytes": 2 << 16,
}  # fmt: skip
SPINNING: Settings = {
    **FLASH, "sync_us_min": 2_000, "sync_us_max": 12_000, "inline_ppm": 0, "commit_us_max": 40_000,
}  # fmt: skip
PACES: list[tuple[Settings, float]] = [(FLASH, 3), (SPINNING, 1)]

RACK: Settings = {"delay_us_min": 80, "delay_us_max": 500}
REGION: Settings = {"delay_us_min": 1_000, "delay_us_max": 6_000}
LINKS: list[tuple[Settings, float]] = [(RACK, 3), (REGION, 1)]
# An answer takes longer than half a heartbeat: then a read point is asked for again.
FAR: list[tuple[Settings, float]] = [({"delay_us_min": 55_000, "delay_us_max": 130_000}, 1)]


@dataclass(frozen=True, slots=True)
class Profile:
    """How plans are made.

    Attributes:
        says: what it is for, in a line.
        weights: of the kinds of acts.
        nodes: sizes of the cluster, one of which is drawn.
        acts: how many, at least and at most.
        seconds: simulated.
        damaging: in so many of a hundred runs disks may be damaged, of a minority of the nodes.
    """

    says: str
    weights: dict[str, float]
    nodes: tuple[int, ...] = (3, 5)
    groups: int = 4
    clients: int = 2
    acts: tuple[int, int] = (8, 16)
    seconds: int = 30
    damaging: int = 0
    limits: list[tuple[Settings, float]] = field(default_factory=lambda: LIMITS)
    links: list[tuple[Settings, float]] = field(default_factory=lambda: LINKS)


MIX: dict[str, float] = {
    "loss": 3, "duplicate": 2, "reorder": 3, "delay": 2, "slow-link": 1.5, "flip-frames": 1.5,
    "one-way": 3, "apart": 2, "silent": 2, "chain": 1.5, "bridge": 1.5, "reset": 3,
    "crash": 4, "power": 4, "crash-operation": 2, "power-operation": 4,
    "crash-starting": 0.8, "power-starting": 1.2, "blackout": 1.2, "last-words": 3,
    "fail-write": 1.2, "fail-sync": 1.2, "fail-make": 0.6, "full-disk": 1.2, "fail-store": 1,
    "flip-journal": 0.6, "flip-store": 0.6, "slow-disk": 2, "drift": 2, "wall": 1,
    "pause": 3, "block": 2, "raise": 1.2, "burst": 2.5, "late-votes": 1.5, "settle": 2,
    "resign": 3, "checkpoint": 1.5, "crash-keep": 1, "power-keep": 1.5, "full-keep": 0.8,
    "flip-checkpoint": 1, "two-behind": 1.2, "cut-transfer": 1.2, "provider-gone": 1,
    "flip-staging": 1.2, "trimmed-and-stopped": 0.6,
    "lose-journal": 0.8, "lose-store": 0.4, "old-store": 0.4,
}  # fmt: skip

READS: dict[str, float] = {
    "transfer": 3, "last-words": 3, "resign": 2, "crash": 3, "power": 2, "blackout": 0.5,
    "pause": 3, "drift": 3, "wall": 0.5, "one-way": 2, "apart": 2, "silent": 2, "chain": 1,
    "bridge": 1, "loss": 1, "duplicate": 1, "reorder": 2, "delay": 1, "reset": 2,
    "late-votes": 2, "slow-disk": 1, "block": 1, "raise": 0.5, "burst": 1,
    "two-behind": 0.5,
}  # fmt: skip


# Which of a cluster's faculties a run has: what is taken from one, another may need.
FACULTIES: list[tuple[Settings, float]] = [
    ({"members": 5, "created": 6, "rejoin": 1, "relaxed": 50}, 3),
    ({"members": 3, "created": 6, "rejoin": 1, "relaxed": 70}, 2),
    ({"members": 3, "rejoin": 1}, 1),
    ({"members": 5, "created": 6}, 1),
    ({"rejoin": 1, "relaxed": 50, "agreed_every": 16, "compare_us": SECOND}, 2),
    ({"agreed_every": 8, "compare_us": SECOND}, 1),
]
# And how much room its windows, journals and caches have.
ROOMS: list[tuple[Settings, float]] = [
    (USUAL, 3),
    ({**USUAL, "window": 8, "batch_bytes_max": 512}, 1),
    ({**USUAL, "journal_bytes_max": 8 << 16}, 1),
    ({**USUAL, "checkpoint_us": 600_000, "hold_instances": 0}, 1),
    ({**USUAL, "cache_bytes_max": 4 * KIB, "frame_bytes_max": 4 * KIB}, 0.5),
]

EVERYTHING: dict[str, float] = {
    **MIX, "transfer": 3, "prefer": 1, "lose-journal": 2.5, "switch-durability": 4,
    "odd-machine": 4, "repair": 1, "create-group": 5, "delete-group": 3, "cut-hosting": 3,
    "join": 3, "leave": 2.5, "replace": 4, "reshape": 2.5, "retire": 2, "rivals": 2.5,
    "cut-change": 4, "long-away": 1.5,
}  # fmt: skip


def alone(says: str, *kinds: str, **settings: int) -> Profile:
    return Profile(says, dict.fromkeys(kinds, 1.0), damaging=settings.get("damaging", 0))


PROFILES: dict[str, Profile] = {
    "default": Profile(
        "everything at once, within the bound of clocks",
        MIX, nodes=(5, 5, 5, 7), groups=8, acts=(24, 40), seconds=60, damaging=25,
    ),
    "sizes": Profile(
        "everything at once in clusters of 1, 3, 4, 5 and 7",
        MIX, nodes=(1, 3, 4, 5, 7), groups=4, acts=(12, 24), seconds=40, damaging=25,
    ),
    "everything": Profile(
        "all that any other profile has, but clocks beyond the bound: members, groups, reads, "
        "losses, odd machines, while all else fails",
        EVERYTHING, nodes=(7, 7, 8), groups=2, clients=4, acts=(30, 50), seconds=50, damaging=25,
        limits=[
            ({**room, **faculty}, share * weight)
            for room, share in ROOMS for faculty, weight in FACULTIES
        ],
    ),
    "calm": Profile("no fault at all", {}, acts=(0, 0)),
    "loss": alone("frames are lost", "loss"),
    "duplication": alone("frames arrive twice", "duplicate"),
    "reordering": alone("frames overtake each other", "reorder"),
    "delay": alone("frames take long", "delay"),
    "slow-links": alone("links carry few bytes", "slow-link"),
    "flipped-frames": alone("bits of frames flip", "flip-frames"),
    "one-way": alone("one direction swallows everything", "one-way"),
    "partial": alone("chains and bridges", "chain", "bridge"),
    "partition": alone("two halves, told or silent", "apart", "silent", "reset"),
    "crash": alone("processes die", "crash", "crash-operation", "crash-starting"),
    "last-words": alone("what a leader says last reaches some only; then it dies", "last-words"),
    "power": alone(
        "power fails, of one node or of all",
        "power", "power-operation", "power-starting", "blackout",
    ),
    "disk-errors": alone(
        "writes, syncs and transactions fail", "fail-write", "fail-sync", "fail-make", "fail-store"
    ),
    "full-disk": alone("the disk is full for a while", "full-disk"),
    "damage": alone(
        "bits flip on disks of a minority", "flip-journal", "flip-store", "crash", damaging=100
    ),
    "mending": Profile(
        "entries of stores are damaged, found and fetched, while links and nodes fail",
        {
            "flip-store": 9, "settle": 6, "crash": 2, "power": 1, "crash-starting": 0.7,
            "flip-frames": 2, "loss": 1, "apart": 1, "silent": 0.5, "reset": 1, "slow-link": 0.7,
            "two-behind": 1.5, "fail-store": 1.5, "checkpoint": 1, "burst": 2, "late-votes": 0.7,
        },
        nodes=(3, 5, 5), acts=(16, 30), damaging=100,
        limits=[
            (USUAL, 2),
            ({**USUAL, "checkpoint_us": 2 * SECOND, "hold_instances": 0}, 1),
            ({**USUAL, "cache_bytes_max": 4 * KIB, "journal_bytes_max": 8 << 16}, 1),
        ],
    ),
    "checkpoints": Profile(
        "checkpoints all the time, and the log goes: nodes die while they take, fetch, install",
        {
            "checkpoint": 4, "crash-keep": 3, "power-keep": 4, "full-keep": 2, "flip-checkpoint": 3,
            "two-behind": 4, "cut-transfer": 2.5, "provider-gone": 3, "flip-staging": 2,
            "trimmed-and-stopped": 2, "flip-frames": 1, "slow-link": 0.7,
            "crash": 2, "power": 2, "blackout": 0.5, "crash-starting": 1, "power-starting": 1,
            "late-votes": 1, "last-words": 1, "apart": 1, "settle": 1, "burst": 1, "raise": 0.5,
        },
        acts=(16, 30),
        limits=[
            ({**USUAL, "checkpoint_us": SECOND}, 2),
            ({**USUAL, "checkpoint_us": 300_000, "checkpoints_kept": 1, "hold_instances": 0}, 2),
            ({**USUAL, "checkpoint_us": 600_000, "hold_instances": 50}, 1),
            ({**USUAL, "checkpoint_us": 2 * SECOND, "journal_bytes_max": 8 << 16}, 1),
        ],
    ),
    "divergence": Profile(
        "machines make something else of a value, are found and made anew, while all else fails",
        {
            "odd-machine": 10, "repair": 2.5, "checkpoint": 3, "crash": 2, "power": 1.5,
            "crash-keep": 1, "power-keep": 1.5, "full-keep": 0.5, "crash-starting": 1,
            "two-behind": 2, "cut-transfer": 1, "provider-gone": 1.5, "flip-staging": 0.7,
            "apart": 1, "silent": 0.7, "loss": 1, "reset": 1, "transfer": 1, "settle": 1,
            "late-votes": 0.7, "block": 1, "pause": 0.7, "burst": 1, "fail-store": 0.7,
        },
        nodes=(3, 5, 5), acts=(16, 30),
        limits=[
            ({**USUAL, "agreed_every": 8, "compare_us": SECOND, "checkpoint_us": 2 * SECOND}, 2),
            ({**USUAL, "agreed_every": 16, "compare_us": 2 * SECOND, "checkpoint_us": SECOND,
              "checkpoints_kept": 1, "hold_instances": 0}, 1),
            ({**USUAL, "agreed_every": 4, "compare_us": SECOND // 3, "checkpoint_us": 600_000,
              "journal_bytes_max": 8 << 16}, 1),
        ],
    ),
    "rejoin": Profile(
        "journals are lost, and their nodes vote again, while links and nodes fail",
        {
            "lose-journal": 9, "crash": 2, "power": 2, "power-operation": 1, "blackout": 0.4,
            "crash-starting": 0.7, "last-words": 1.5, "late-votes": 1.5, "transfer": 1, "loss": 1,
            "reorder": 1, "one-way": 1, "apart": 1.5, "silent": 1, "chain": 0.7, "pause": 1,
            "slow-disk": 1, "drift": 1, "fail-store": 1, "fail-sync": 0.5, "full-disk": 0.5,
            "two-behind": 1, "settle": 1, "resign": 0.7, "burst": 1,
        },
        nodes=(3, 3, 4, 5, 5, 7),
        acts=(14, 26),
        limits=[
            ({**USUAL, "rejoin": 1}, 3),
            ({**USUAL, "rejoin": 1, "checkpoint_us": SECOND}, 1),
            ({**USUAL, "rejoin": 1, "window": 8, "batch_bytes_max": 512}, 1),
            ({**USUAL, "rejoin": 1, "journal_bytes_max": 8 << 16}, 1),
        ],
    ),
    "relaxed": Profile(
        "groups say what is only written, at some nodes or at all, while power, disks, links fail",
        {
            "power": 6, "power-operation": 4, "power-starting": 1.5, "blackout": 1.5, "crash": 3,
            "crash-operation": 2, "crash-starting": 1.5, "power-keep": 0.7, "last-words": 1.5,
            "switch-durability": 6, "lose-journal": 1.5, "fail-write": 0.7, "fail-sync": 1.2,
            "fail-store": 2, "full-disk": 0.7, "slow-disk": 3, "late-votes": 2, "transfer": 1.5,
            "loss": 1.5, "duplicate": 1.5, "reorder": 1.5, "delay": 0.7, "one-way": 1, "apart": 1.5,
            "silent": 1, "chain": 0.7, "reset": 1, "pause": 1.5, "drift": 1, "two-behind": 1,
            "checkpoint": 1, "settle": 1.5, "resign": 0.7, "burst": 2,
        },
        nodes=(3, 3, 4, 5, 5, 7), acts=(16, 30),
        limits=[
            ({**USUAL, "rejoin": 1, "relaxed": 100}, 2),
            ({**USUAL, "rejoin": 1, "relaxed": 50}, 2),
            ({**USUAL, "rejoin": 1, "relaxed": 80, "window": 8, "batch_bytes_max": 512}, 1),
            ({**USUAL, "rejoin": 1, "relaxed": 70, "journal_bytes_max": 8 << 16}, 1),
            ({**USUAL, "rejoin": 1, "relaxed": 80, "checkpoint_us": SECOND}, 1),
        ],
    ),
    "stores": Profile(
        "stores are lost, or older copies put back, while links and nodes fail",
        {
            "lose-store": 5, "old-store": 5, "settle": 4, "crash": 2, "power": 2, "blackout": 0.4,
            "crash-starting": 1, "power-starting": 1, "checkpoint": 2, "two-behind": 1.5,
            "late-votes": 1, "last-words": 1, "apart": 1, "loss": 1, "burst": 1,
            "provider-gone": 1, "cut-transfer": 1,
        },
        acts=(14, 26),
        limits=[
            ({**USUAL, "checkpoint_us": 2 * SECOND}, 2),
            ({**USUAL, "checkpoint_us": SECOND, "journal_bytes_max": 8 << 16}, 1),
            ({**USUAL, "journal_bytes_max": 8 << 16}, 1),
        ],
    ),
    "members": Profile(
        "members of groups change, and nodes join and are deleted, while links and nodes fail",
        {
            "join": 5, "leave": 4, "replace": 6, "reshape": 4, "retire": 3, "rivals": 4,
            "cut-change": 7, "long-away": 2.5, "transfer": 1.5, "crash": 2, "power": 2,
            "power-operation": 1, "blackout": 0.4, "last-words": 1.5, "late-votes": 1.5,
            "loss": 1.5, "reorder": 1.5, "duplicate": 1, "delay": 1, "one-way": 1.5, "apart": 2,
            "silent": 1.5, "chain": 1, "bridge": 1, "reset": 1, "pause": 1.5, "slow-disk": 1,
            "drift": 1, "two-behind": 1, "checkpoint": 1.5, "settle": 1, "resign": 0.7,
            "burst": 1, "block": 0.7, "fail-sync": 0.5, "crash-starting": 0.7,
        },
        nodes=(7, 8, 9), groups=2, clients=4, acts=(20, 36), seconds=40,
        limits=[
            ({**USUAL, "members": 3}, 3),
            ({**USUAL, "members": 5}, 1),
            ({**USUAL, "members": 1}, 0.5),
            ({**USUAL, "members": 3, "checkpoint_us": 600_000, "hold_instances": 0}, 1.5),
            ({**USUAL, "members": 3, "window": 8, "batch_bytes_max": 512}, 1),
            ({**USUAL, "members": 3, "journal_bytes_max": 8 << 16}, 1),
        ],
    ),
    "groups": Profile(
        "groups are created on some of the nodes, and deleted, while links, nodes and disks fail",
        {
            "create-group": 9, "delete-group": 6, "cut-hosting": 6, "lose-journal": 2, "crash": 3,
            "power": 3,
            "power-operation": 1.5, "crash-starting": 1, "power-starting": 1, "blackout": 0.6,
            "power-keep": 1, "last-words": 1.5, "late-votes": 1, "transfer": 1, "fail-store": 2,
            "full-disk": 0.7, "fail-sync": 0.7, "loss": 1.5, "reorder": 1.5, "duplicate": 1,
            "delay": 1, "one-way": 1.5, "apart": 2, "silent": 1, "chain": 1, "reset": 1,
            "pause": 2, "slow-disk": 1.5, "drift": 1, "two-behind": 1.5, "checkpoint": 1.5,
            "settle": 2, "resign": 0.7, "burst": 1.5, "block": 0.7, "cut-transfer": 0.7,
        },
        nodes=(5,), groups=2, clients=3, acts=(24, 40), seconds=40,
        limits=[
            ({**USUAL, "members": 5, "created": 8}, 3),
            ({**USUAL, "members": 5, "created": 8, "checkpoint_us": 600_000,
              "hold_instances": 0}, 2),
            ({**USUAL, "members": 5, "created": 8, "window": 8, "batch_bytes_max": 512}, 1),
            ({**USUAL, "members": 5, "created": 8, "journal_bytes_max": 8 << 16}, 1),
            ({**USUAL, "members": 5, "created": 8, "rejoin": 1}, 3),
        ],
    ),
    "transfers": Profile(
        "leaderships are moved to and fro, while links and nodes fail",
        {
            "transfer": 8, "prefer": 4, "crash": 2, "power": 2, "loss": 1, "reorder": 1,
            "one-way": 1, "apart": 1, "pause": 1, "slow-disk": 1, "drift": 1, "late-votes": 1,
            "raise": 0.5,
        },
        acts=(14, 26),
    ),
    "reads": Profile(
        "clients read by read points, at all nodes, while leaders change and links and clocks fail",
        READS, nodes=(3, 3, 5), clients=4, acts=(16, 30),
    ),
    "far-reads": Profile(
        "the same over links on which an answer takes longer than half a heartbeat",
        READS, nodes=(3, 3, 5), clients=4, acts=(10, 20), links=FAR,
    ),
    "slow-disks": alone("disks take long", "slow-disk"),
    "drift": alone("clocks drift within the bound of leases", "drift", "wall"),
    "clocks": alone(
        "clocks race, jump and stand still: leases are not claimed", "race", "stand", "jump", "wall"
    ),
    "pause": alone("processes stand still for seconds", "pause"),
    "machines": alone("state machines block and raise", "block", "raise"),
    "overload": alone("more is asked than limits allow", "burst", "slow-disk"),
}  # fmt: skip


def pick(chance: Random, choices: list[tuple[Settings, float]]) -> Settings:
    return chance.choices([one for one, _ in choices], [weight for _, weight in choices])[0]


def plan_of(seed: int, profile: str = "default") -> Plan:
    """The plan of a seed: the same wherever and whenever it is asked for.

    Raises KeyError for a profile that there is not.
    """
    how = PROFILES[profile]
    chance = Random(f"{profile} {seed}")
    nodes = chance.choice(how.nodes)
    victims: tuple[int, ...] = ()
    if chance.randrange(100) < how.damaging:
        victims = tuple(sorted(chance.sample(range(1, nodes + 1), (nodes - 1) // 2)))
    plan = Plan(
        seed=seed,
        profile=profile,
        nodes=nodes,
        groups=how.groups,
        duration_us=how.seconds * SECOND,
        clients=how.clients,
        limits=tuple(pick(chance, how.limits).items()),
        pace=tuple(pick(chance, PACES).items()),
        link=tuple(pick(chance, how.links).items()),
        drift=not BEYOND_THE_BOUND & set(how.weights),
    )
    # With the log trimmed, what all have lost is lost.
    few = Random(f"decaying {seed}").sample(range(1, nodes + 1), (nodes - 1) // 2)
    decaying = victims or tuple(sorted(few))
    shape = Shape(nodes, how.groups, victims, decaying)
    return plan.with_acts(tuple(acts_of(chance, how, shape, plan)))


def acts_of(chance: Random, how: Profile, shape: Shape, plan: Plan) -> list[Act]:
    """Drawn one after the other; each ends before the quiet time."""
    kinds, weights = list(how.weights), list(how.weights.values())
    acts: list[Act] = []
    wanted = chance.randint(*how.acts)
    tries = 0
    while len(acts) < wanted and tries < 20 * wanted:
        tries += 1
        kind = chance.choices(kinds, weights)[0]
        # A stream for each act: what one kind draws does not move the others.
        own = Random(chance.getrandbits(64))
        at = own.randrange(FIRST_FAULT_US, plan.faults_end_us)
        made = ACTS[kind].make(own, shape)
        if made is None:
            continue
        args, lasts = made
        until = min(at + lasts, plan.faults_end_us)
        acts.append(Act(at, until, kind, tuple(args.items())))
    return sorted(acts)
