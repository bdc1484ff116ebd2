"""The door of the simulated cluster; what the fields and calls promise is said in world.pyx."""

from collections.abc import Callable
from typing import Any

from phx.machine import StateMachine
from phx.sim.directory import Directory
from phx.sim.host import Host
from phx.store_mend import Hole

VERDICTS: dict[int, str]
UNKNOWN: frozenset[int]

class World:
    """A cluster: nodes 1 .. `nodes`, groups 0 .. `groups` - 1, none of them started yet.

    Args:
        seed: of every stream of chance inside (links, disks, hosts). What Python decides must
            come from the seed too.
        machines: called with (node, group) at each start of a node.
        limits: engine and journal limits, by the names of `LIMITS`.
    """

    def __init__(
        self,
        seed: int,
        nodes: int,
        groups: int,
        *,
        machines: Callable[[int, int], StateMachine],
        limits: dict[str, int] | None = None,
    ) -> None: ...
    @property
    def now_us(self) -> int: ...
    @property
    def steps(self) -> int: ...
    tracing: bool
    """Keep the last `TRACE_EVENTS` events; before anything is started."""
    def run(self, until_us: int) -> None:
        """Everything that happens up to then. Raises Violation."""
    def call_at(self, at_us: int, what: Callable[[], None]) -> None: ...

    # --- callers
    def submit(
        self, node: int, group: int, values: list[bytes], timeout_us: int, calls: list[Any]
    ) -> int:
        """Propose values at a node; one call object for each. 0, or a verdict: nothing was taken.

        A value is what the machine's `apply` will see. A call object gets exactly one of

            done(now_us, result)     applied here: what apply returned
            lost(now_us)             applied (or left out as a duplicate) and the result not kept
            failed(now_us, verdict)  see VERDICTS; in UNKNOWN: it may still be applied
            died(now_us)             its node crashed: it may still be applied

        or nothing as long as nothing is decided.
        """

    # --- faults; all of them end with `heal`, except damage, poison and what is down
    def start(self, node: int) -> bool: ...
    def crash(self, node: int, power: bool) -> None: ...
    def crash_at_operation(self, node: int, operation: int, power: bool) -> None:
        """It dies in the middle of its n-th changing disk operation from now on."""
    def link(self, source: int, dest: int, **settings: int) -> None:
        """Of one direction: delay_us_min, delay_us_max, loss_ppm, twice_ppm, late_ppm, late_us,
        flip_ppm, bytes_per_ms, blocked (swallows silently)."""
    def apart(self, a: int, b: int, apart: bool) -> None:
        """Both ends know: the connection breaks and none can be made."""
    def wire(self, source: int, dest: int, nbytes: int) -> int:
        """See `phx.sim.pipes.Wires`."""
    def reset(self, a: int, b: int) -> None:
        """The connection breaks and is made again at once."""
    def pause(self, node: int, us: int) -> None:
        """The whole process stands still (SIGSTOP); clocks go on."""
    def block_machines(self, node: int, us: int) -> None:
        """Python is busy: nothing is applied; the engine goes on."""
    def clock(
        self, node: int, rate_ppm: int = 1_000_000, jump_us: int = 0, wall_us: int = 0
    ) -> None:
        """Rate of its monotonic clock (a million: right), a jump forward of it at once, and what
        its wall clock is off from now on."""
    def pace(self, node: int, **settings: int) -> None:
        """turn_us_max, write_us_max, sync_us_min, sync_us_max, slow_sync_ppm, slow_sync_us,
        apply_us_max, commit_us_max, inline_ppm, settle_idle_us, settle_bytes."""
    def fail_disk(self, node: int, kind: str, after: int, error: int) -> None:
        """The after-th operation of that kind ("write", "sync", "make", "any") fails once."""
    def fill_disk(self, node: int, bytes_free: int) -> None:
        """From now on so many bytes more fit; 0: no limit (any more)."""
    def fail_store(self, node: int, times: int) -> None:
        """So many of its next store transactions fail."""
    def flip_journal(self, node: int, which: int, bit: int) -> bool:
        """Flip a bit at a position that a mark calls durable; False: there is none. The node then
        counts as damaged: it may refuse to start and stay away."""
    def lose_journal(self, node: int, damaged: bool, which: int, bit: int) -> bool:
        """Its process dies, and its journal is gone, or has a bad bit where a start finds it.

        False, and nothing is done, if its journal may not be lost now (the limit `rejoin` is 0), or
        if a majority would not be left of nodes that have all their votes."""
    def lose_store(self, node: int) -> None:
        """Its process dies and its store is gone; a new one is made when it starts."""
    def copy_store(self, node: int) -> None: ...
    def put_store_back(self, node: int) -> None:
        """Its process dies, and the copy is what it has; nothing, if none was taken."""
    def flip_store(self, node: int, which: int, bit: int) -> bool:
        """Flip a bit of an entry in its store; False: there is none."""
    def scrub(self, node: int) -> None:
        """All chunks of its store are looked through; what is damaged is found."""
    def checkpoint(self, node: int, group: int) -> None:
        """Take one of the group soon, if something was applied; nothing if it takes one already."""
    def crash_at_keep(self, node: int, effect: int, power: bool) -> None:
        """It dies in the middle of its n-th effect on the disk of checkpoints from now on."""
    def crash_at_hosting(self, node: int, step: int, power: bool) -> None:
        """It dies behind its n-th step of hosting, ending or dropping groups from now on."""
    def fill_keep(self, node: int, bytes_free: int) -> None:
        """As `fill_disk`, of the disk of checkpoints."""
    def flip_checkpoint(self, node: int, which: int, bit: int) -> bool:
        """Flip a bit of one of its checkpoints. False: there is none, or nobody else has what it
        stands for."""
    def flip_staging(self, node: int, which: int, bit: int) -> bool:
        """Flip a bit of what it has received in part. False: nothing, and it will be one of what
        comes next; or what has come is being verified."""
    def providing(self) -> list[int]:
        """Nodes from which a checkpoint is being fetched."""
    def cut_transfers(self, node: int) -> int:
        """Cut all connections over which one is fetched from it; how many."""
    def stop_machine(self, node: int, group: int) -> None:
        """Its machine fails: it applies nothing more, until the next start."""
    def settle(self, node: int) -> None: ...
    def transfer(self, node: int, group: int, to: int) -> None:
        """Have a node give the leadership of a group to another, 0: to any; if it leads."""
    def priority(self, node: int, priority: int) -> None:
        """How much it wants to lead from now on, in this life."""
    def resign(self, node: int) -> None: ...
    def heal(self, node: int) -> None:
        """Links from and to it, clock rate, pace, disk limits as they were at first."""

    # --- questions
    @property
    def directory(self) -> Directory | None:
        """Which groups there are; None: none are created (the limit `created` is 0)."""
    def group_created(self, group: int, roster: bytes) -> None:
        """The directory says so; the watch hears it."""
    def group_over(self, group: int, node: int) -> None:
        """The same, as that node says."""
    def host(self, node: int) -> Host: ...
    def runs(self, node: int, group: int) -> bool:
        """It runs, and the group there."""
    def alive(self, node: int) -> bool:
        """It runs, and is not poisoned."""
    def running(self, node: int) -> bool: ...
    def damaged(self, node: int) -> bool: ...
    def holes(self) -> dict[int, list[Hole]]:
        """What nodes that run, and whose journals nobody damaged, have found damaged in their
        stores and not mended yet, though another one that runs has it."""
    def stopped_groups(self, node: int) -> list[int]:
        """Groups whose machine raised here in this life."""
    def machine(self, node: int, group: int) -> StateMachine: ...
    def status(self, node: int, group: int) -> dict[str, int]:
        """GroupStatus of a node that runs: leader, leading, stopped, halted, promised, ballot,
        chosen_through, applied_through, settled_through, accepted_last, waiting_values."""
    def leaders(self, group: int) -> list[int]:
        """The nodes that run and believe that they lead the group."""
    def decided_through(self, group: int) -> int:
        """Every instance up to it is decided: a quorum has synced an acceptance."""
    def decided_values(self) -> int: ...
    def check(self) -> None:
        """All invariants over everything, now. Raises Violation."""
    def counters(self) -> dict[str, int]:
        """Over all nodes and lives: of engines, hosts, the network and the reference."""
    def digest(self) -> int:
        """Of everything that ever happened, 64 bits. Same seed, same calls: same digest."""
    def trace(self) -> list[str]:
        """The last events, a readable line each."""
    def memory(self) -> dict[str, int]:
        """Live blocks and bytes held by engines, queues and links: for bounds."""
    def close(self) -> None: ...

LIMITS: dict[str, int]
LINK: dict[str, int]
PACE: dict[str, int]
TRACE_EVENTS: int
