"""Run a state machine of yours in simulated clusters with faults: are its replicas always equal?

    from phx.testing.simulation import simulate

    def test_ledger_is_deterministic():
        simulate(lambda group: Ledger(), lambda chance: b"%d" % chance.randrange(1000))

Everything below the machine is phx itself: engine, journal, replay, sessions. Only time, network
and disk are simulated; nodes crash, lose power, are cut off and come back, so the machine is made
anew and fed its log again in batches of other sizes. One that offers views (`freeze`, `snapshot`,
`restore`) has checkpoints, and goes on from them. See docs/howto/test-your-machine.md.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

from phx.machine import Reader, StateMachine, View, Writer, has_views
from phx.sim import verdicts
from phx.sim.client_kinds import ClientKind
from phx.sim.machine import MachineSpoilt
from phx.sim.plan import Plan
from phx.sim.profiles import plan_of
from phx.sim.run import Outcome, play
from phx.sim.verdicts import Broken
from phx.sim.workload import Call, Client, Workload
from phx.sim.world import World
from phx.types import Entry

__all__ = ["SimulationFailed", "simulate"]

Factory = Callable[[int], StateMachine]
Command = Callable[[Random], bytes]

ONLY_WITH_CHECKPOINTS = frozenset({"lose-store", "old-store"})
"""Acts after which a machine needs what only a checkpoint of another node has."""

BURST = ClientKind(0, timeout_us=(200_000, 2_000_000))


class SimulationFailed(AssertionError):
    """Replicas differ, a machine raised, or phx itself broke a promise.

    Attributes:
        seed: of the run; `simulate(…, first=seed, seeds=1)` repeats it.
        invariant: "machine": it raised, or gave another number of results; "U7": replicas differ;
            "U9c": what it restored is not what it wrote; anything else is phx's.
        message: what was seen.
    """

    def __init__(self, seed: int, invariant: str, message: str) -> None:
        super().__init__(f"seed {seed}: {invariant}: {message}")
        self.seed = seed
        self.invariant = invariant
        self.message = message


def simulate(
    machine: Factory,
    command: Command,
    *,
    seeds: int = 10,
    first: int = 1,
    profile: str = "default",
) -> int:
    """Run a machine through seeds; the number of values applied by all clusters together.

    Guarantee: if it returns, then in every run all replicas had equal digests whenever they had
    applied the same instances at the end, and no machine raised. The same arguments give the same
    runs.

    Args:
        machine: called with a group id at every start of a node. It must offer a `digest`, and
            share nothing with other machines.
        command: makes a value, at most 16,000 bytes, from nothing but the random numbers it is
            given.
        seeds, first: how many runs, from which on; one takes about a quarter of a second and a
            minute of simulated time.
        profile: of faults, as for `phx sim`.

    Raises:
        SimulationFailed: names the seed and what was seen.
        ValueError: the machine offers no digest; a value is too large; no such profile.
    """
    one = machine(0)
    if not one.digest():
        raise ValueError("the machine offers no digest: how would replicas be compared?")
    applied = 0
    for seed in range(first, first + seeds):
        try:
            plan = plan_of(seed, profile)
        except KeyError:
            raise ValueError(f"no profile {profile!r}") from None
        if not has_views(one):
            left = (act for act in plan.acts if act.kind not in ONLY_WITH_CHECKPOINTS)
            plan = plan.with_acts(tuple(left))
        applied += run_one(machine, command, plan).chosen_values
    return applied


def run_one(machine: Factory, command: Command, plan: Plan) -> Outcome:
    """One seed; raises SimulationFailed."""
    errors: list[str] = []
    outcome = play(
        plan,
        machines=lambda node, group: Watched(machine(group), errors),
        load=lambda world, plan: UserLoad(world, plan, command),
    )
    if errors:
        raise SimulationFailed(plan.seed, "machine", errors[0])
    if outcome.violation is not None:
        violation = outcome.violation
        raise SimulationFailed(plan.seed, violation.invariant, violation.message)
    return outcome


class Watched(StateMachine):
    """A machine of the user's, which may be told to fail as a fault; its own errors are kept."""

    def __init__(self, inner: StateMachine, errors: list[str]) -> None:
        self.inner = inner
        self.errors = errors
        self.spoilt = False

    def apply(self, entry: Entry) -> Any:
        return self.apply_batch([entry])[0]

    def apply_batch(self, entries: Sequence[Entry]) -> Sequence[Any]:
        if self.spoilt:
            raise MachineSpoilt("as planned")
        with kept(self.errors):
            results = self.inner.apply_batch(entries)
        if len(results) != len(entries):
            self.errors.append(f"apply_batch of {len(entries)} gave {len(results)} results")
        return results

    def digest(self) -> bytes:
        return self.inner.digest()

    def freeze(self) -> View | None:
        with kept(self.errors):
            view = self.inner.freeze()
        return None if view is None else WatchedView(view, self.errors)

    def restore(self, reader: Reader) -> None:
        with kept(self.errors):
            self.inner.restore(reader)


class WatchedView:
    """A view of a user's machine; its own errors are kept."""

    def __init__(self, inner: View, errors: list[str]) -> None:
        self.inner = inner
        self.errors = errors

    def snapshot(self, writer: Writer, /) -> None:
        with kept(self.errors):
            self.inner.snapshot(writer)

    def close(self) -> None:
        self.inner.close()


@contextmanager
def kept(errors: list[str]) -> Iterator[None]:
    """Keep what is raised, but for a disk that is full on purpose."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            errors.append(traceback.format_exc())
        raise


class UserClient(Client):
    """A session that asks for commands of the user's."""

    __slots__ = ()

    def new_calls(self, now_us: int) -> list[Call]:
        count = 1 + int(self.chance.random() * self.kind.batch)
        return [self.call(now_us) for _ in range(count)]

    def call(self, now_us: int) -> Call:
        load = self.load
        assert isinstance(load, UserLoad)
        return Call(self, self.group, "command", None, load.value(self.chance), now_us)


class UserLoad(Workload):
    """Sessions that ask for commands of the user's, and no claim about their results."""

    def __init__(self, world: World, plan: Plan, command: Command) -> None:
        self.command = command
        super().__init__(world, plan, UserClient)

    def value(self, chance: Random) -> bytes:
        made = self.command(chance)
        if len(made) > self.value_bytes_max:
            raise ValueError(f"a value of {len(made)} bytes; at most {self.value_bytes_max}")
        return made

    def probe(self) -> bytes:
        return self.value(Random(self.plan.seed))

    def spoil(self, machine: Any, how: int) -> None:
        machine.spoilt = how >= 0

    def burst(self, node: int, group: int, values: int, value_bytes: int) -> None:
        client = UserClient(self, self.bursts, group, BURST)
        self.bursts += 1
        calls = [client.call(self.world.now_us) for _ in range(values)]
        self.submit(client, node, calls, 1_000_000)

    def broken(self, machines: dict[int, Any]) -> Broken | None:
        return verdicts.settled(self.unheard())
