"""Is a history of clients' operations linearizable? Outcomes may be unknown.

Guarantee: None is returned only if every key has an order of its operations that respects real time
(an operation takes effect between its call and its return), gives every result that was seen, and
in which an operation whose outcome is unknown takes effect once, at any time after its call, or
never. What cannot be decided within `steps_max` is a Finding of kind "undecided", never a success.

The method is that of Wing and Gong (1993) with Lowe's just-in-time linearization (2017), for each
key alone (Herlihy and Wing: linearizability is local). Operations are gone through in the order of
their returns. A *configuration* is what may have happened so far: the state, and which of the calls
that are still open have taken effect. At each return every configuration is extended by open calls
in every order until the one that returns has taken effect; those that cannot are given up. No
configuration left: no order explains the history.

Of two configurations with the same state and the same known calls done, the one that has used fewer
calls of unknown outcome can do all that the other can, so only the lesser is kept. That is what
keeps calls whose outcome never becomes known, open for ever, from doubling the work each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, Protocol

__all__ = [
    "IMPOSSIBLE",
    "UNSEEN",
    "Finding",
    "KeyValueModel",
    "Model",
    "Operation",
    "check_history",
]

STEPS_MAX = 500_000
WINDOW_BEFORE = 6
"""Operations shown in a finding that had returned before the one in question was called."""
SHOWN_STATES = 6
SHOWN_BYTES = 32


class _Mark:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


UNSEEN: Final = _Mark("UNSEEN")
"""As a result: the operation did take effect before it returned; what it gave is not known."""
IMPOSSIBLE: Final = _Mark("IMPOSSIBLE")
"""From `Model.step`: the operation cannot have had its result in that state."""


class Operation:
    """One call of one client.

    Args:
        client: who called; for the reader of a finding.
        key: operations on different keys do not touch each other.
        kind: "get", "put", "cas", "append" or "delete" for the default model.
        argument: of the call; for cas a pair (expected, new).
        result: what was returned; UNSEEN if that is not known; not looked at if `returned_us` is
            None.
        called_us: when, by a clock that all clients share.
        returned_us: when; None: the outcome is unknown, the operation may take effect at any time
            after the call, or never. A call that was *rejected* does not belong into a history.
    """

    __slots__ = ("argument", "called_us", "client", "key", "kind", "result", "returned_us")

    def __init__(
        self,
        client: Hashable,
        key: Hashable,
        kind: str,
        argument: Any,
        result: Any,
        called_us: int,
        returned_us: int | None,
    ) -> None:
        self.client = client
        self.key = key
        self.kind = kind
        self.argument = argument
        self.result = result
        self.called_us = called_us
        self.returned_us = returned_us

    def __repr__(self) -> str:
        """One readable line."""
        call = f"{self.called_us:>12} "
        if self.returned_us is None:
            until, gave = "           ? ", "unknown"
        else:
            until, gave = f"{self.returned_us:>12} ", _short(self.result)
        argument = "" if self.argument is None else _short(self.argument)
        return f"{call}..{until} client {self.client}: {self.kind}({argument}) -> {gave}"


class Model(Protocol):
    """What the operations on one key do."""

    initial: Hashable
    """The state of a key before its first operation."""

    def step(self, state: Any, operation: Operation) -> Any:
        """The state after an operation in `state`; IMPOSSIBLE if it cannot have its result there.

        The result is not to be looked at if `operation.returned_us` is None, or it is UNSEEN.
        """

    def changes(self, operation: Operation) -> bool:
        """May it change the state? One that does not and whose result is unknown is left out."""

    def waits(self, state: Any, operation: Operation, kinds: set[str]) -> bool:
        """May operations of those kinds, before this one, give it its result, from `state`?

        True is always right. False saves work: calls of unknown outcome are then not tried before
        it. It may be False, too, where this one succeeds in every state and leaves the same state
        whatever came before.
        """


class KeyValueModel:
    """A register of bytes: None, or a value.

    kind     argument          result           effect
    get      -                 value or None    none
    put      value             (not looked at)  the value
    cas      (expected, new)   True or False    `new`, if the value was `expected`
    append   more              the new value    the old value (or b"") and `more`
    delete   -                 was it there?    None
    """

    __slots__ = ()
    initial: Hashable = None

    def step(self, state: Any, operation: Operation) -> Any:
        kind = operation.kind
        result = UNSEEN if operation.returned_us is None else operation.result
        if kind == "get":
            return state if result == state or result is UNSEEN else IMPOSSIBLE
        if kind == "put":
            return operation.argument
        if kind == "append":
            made = (state or b"") + operation.argument
            return made if result is UNSEEN or result == made else IMPOSSIBLE
        if kind == "cas":
            expected, new = operation.argument
            if state == expected:
                return new if result is UNSEEN or result else IMPOSSIBLE
            return state if result is UNSEEN or not result else IMPOSSIBLE
        if kind == "delete":
            return None if result is UNSEEN or result == (state is not None) else IMPOSSIBLE
        raise ValueError(f"an operation that the model does not know: {kind!r}")

    def changes(self, operation: Operation) -> bool:
        return operation.kind != "get"

    def waits(self, state: Any, operation: Operation, kinds: set[str]) -> bool:
        kind, result = operation.kind, operation.result
        if kind == "put":
            return False
        if result is not UNSEEN and kinds <= _GROWING and kind in _GROWING:
            # A value that only grows never becomes one that it is no beginning of.
            return result is not None and result.startswith(state or b"")
        return True


_GROWING = {"get", "append"}


class Finding:
    """Why a history is not accepted; `str` of it is for a reader.

    Attributes:
        kind: "linearizable" (it is not), or "undecided".
        key: on which.
        message: what cannot be, in a sentence.
        window: the operations around it, by time of call.
    """

    __slots__ = ("key", "kind", "message", "window")

    def __init__(self, kind: str, key: Hashable, message: str, window: Sequence[Operation]) -> None:
        self.kind = kind
        self.key = key
        self.message = message
        self.window = list(window)

    def __str__(self) -> str:
        lines = [f"{self.kind}: key {self.key!r}: {self.message}"]
        return "\n".join(lines + [f"  {operation!r}" for operation in self.window])


def check_history(
    operations: Iterable[Operation], model: Model | None = None, *, steps_max: int = STEPS_MAX
) -> Finding | None:
    """None: linearizable. A key that is not comes before one that could not be decided.

    Args:
        operations: in any order.
        model: of one key; default: KeyValueModel.
        steps_max: of the model, for each key.

    A call and a return at the same time are taken as concurrent.
    """
    model = KeyValueModel() if model is None else model
    keys: dict[Hashable, list[Operation]] = {}
    for operation in operations:
        if operation.returned_us is not None and operation.returned_us < operation.called_us:
            raise ValueError(f"returned before it was called: {operation!r}")
        keys.setdefault(operation.key, []).append(operation)
    undecided = None
    for key, history in keys.items():
        search = _Search(key, history, model, steps_max)
        try:
            found = search.run()
        except _TooMany:
            undecided = undecided or search.undecided()
            continue
        if found is not None:
            return found
    return undecided


class _TooMany(Exception):
    pass


class _Search:
    """The configurations of one key, from return to return.

    An open call has a slot, a bit: in a configuration's mask the bit says that it took effect.
    """

    def __init__(
        self, key: Hashable, history: list[Operation], model: Model, steps_max: int
    ) -> None:
        self.key = key
        self.history = history
        self.model = model
        self.step: Callable[[Any, Operation], Any] = model.step
        self.steps_left = steps_max
        self.steps_max = steps_max
        self.open: dict[int, Operation] = {}  # bit -> a call whose outcome is known
        self.unknown: dict[int, Operation] = {}  # bit -> one whose outcome is not
        self.unknown_mask = 0
        self.states: list[tuple[int, Any]] = [(0, model.initial)]
        self.at: Operation | None = None

    def run(self) -> Finding | None:
        changes = self.model.changes
        calls = sorted(self.history, key=attrgetter("called_us"))
        returns = [
            one
            for one in self.history
            if one.returned_us is not None and (one.result is not UNSEEN or changes(one))
        ]
        returns.sort(key=attrgetter("returned_us", "called_us"))
        bits: dict[int, int] = {}
        free: list[int] = []
        slots = 0
        at = 0
        for operation in returns:
            now = operation.returned_us
            assert now is not None
            while at < len(calls) and calls[at].called_us <= now:
                call = calls[at]
                at += 1
                unknown = call.returned_us is None
                if (unknown or call.result is UNSEEN) and not changes(call):
                    continue
                if free:
                    bit = free.pop()
                else:
                    bit = 1 << slots
                    slots += 1
                if unknown:
                    self.unknown[bit] = call
                    self.unknown_mask |= bit
                else:
                    self.open[bit] = call
                    bits[id(call)] = bit
            bit = bits.pop(id(operation))
            before = self.states
            self.at = operation
            self.finish(operation, bit)
            if not self.states:
                return self.finding(operation, before)
            free.append(bit)
        return None

    def finish(self, operation: Operation, bit: int) -> None:
        """`operation` returns: keep what can have happened by then."""
        del self.open[bit]
        states = self.states
        if len(states) == 1 and not self.open and not self.unknown:  # alone: the usual case
            mask, state = states[0]
            if not mask & bit:
                self.count(1)
                state = self.step(state, operation)
            self.states = [] if state is IMPOSSIBLE else [(0, state)]
            return
        done = _Least(self.unknown_mask)
        todo: list[tuple[int, Any]] = []
        for mask, state in states:
            if mask & bit:
                done.add(mask & ~bit, state)
            else:
                todo.append((mask, state))
        if todo:
            self.extend(todo, done, operation)
        self.states = done.all()

    def extend(self, todo: list[tuple[int, Any]], done: _Least, operation: Operation) -> None:
        """Let open calls take effect, in every order, until `operation` does."""
        seen = _Least(self.unknown_mask)
        for mask, state in todo:
            seen.add(mask, state)
        todo = seen.all()
        step, waits, known, unknown = self.step, self.model.waits, self.open, self.unknown
        kinds = {one.kind for calls in (known, unknown) for one in calls.values()}
        while todo:
            mask, state = todo.pop()
            if not seen.has(mask, state):
                continue  # a lesser one came up meanwhile
            self.count(1 + len(known))
            made = step(state, operation)
            if made is not IMPOSSIBLE:
                done.add(mask, made)
            helps = waits(state, operation, kinds)
            for bit, other in known.items():
                if mask & bit:
                    continue
                helps = helps or waits(state, other, kinds)
                made = step(state, other)
                if made is not IMPOSSIBLE and seen.add(mask | bit, made):
                    todo.append((mask | bit, made))
            if not helps:
                continue
            self.count(len(unknown))
            for bit, other in unknown.items():
                if mask & bit:
                    continue
                made = step(state, other)
                if made is not IMPOSSIBLE and seen.add(mask | bit, made):
                    todo.append((mask | bit, made))

    def count(self, steps: int) -> None:
        self.steps_left -= steps
        if self.steps_left < 0:
            raise _TooMany

    # --- what is said

    def finding(self, operation: Operation, before: list[tuple[int, Any]]) -> Finding:
        values = sorted({_short(state) for _, state in before})
        shown = ", ".join(values[:SHOWN_STATES])
        if len(values) > SHOWN_STATES:
            shown += f" and {len(values) - SHOWN_STATES} more"
        message = (
            f"no order of the operations explains what {operation.kind} of client "
            f"{operation.client} returned at {operation.returned_us}: {_short(operation.result)}; "
            f"without it the value was {shown}, or what the open calls made of that"
        )
        return Finding("linearizable", self.key, message, self.window(operation))

    def undecided(self) -> Finding:
        assert self.at is not None
        message = (
            f"not decided within {self.steps_max} steps; "
            f"{len(self.open)} open calls and {len(self.unknown)} of unknown outcome "
            f"when {self.at.kind} of client {self.at.client} returned at {self.at.returned_us}"
        )
        return Finding("undecided", self.key, message, self.window(self.at))

    def window(self, operation: Operation) -> list[Operation]:
        """What overlaps the operation, some that came just before, and who wrote what it saw."""
        end = operation.returned_us
        assert end is not None
        chosen = [operation]
        earlier = []
        for other in self.history:
            if other is operation or other.called_us > end:
                continue
            wrote = other.kind != "get" and other.argument == operation.result
            if wrote or other.returned_us is None or other.returned_us >= operation.called_us:
                chosen.append(other)
            else:
                earlier.append(other)
        earlier.sort(key=attrgetter("returned_us"))
        chosen += earlier[-WINDOW_BEFORE:]
        chosen.sort(key=attrgetter("called_us"))
        return chosen


class _Least:
    """Configurations, of which only those remain that used the fewest unknown calls."""

    __slots__ = ("found", "unknown_mask")

    def __init__(self, unknown_mask: int) -> None:
        self.unknown_mask = unknown_mask
        self.found: dict[tuple[int, Any], list[int]] = {}

    def add(self, mask: int, state: Any) -> bool:
        """False: one that can do as much is there already."""
        used = mask & self.unknown_mask
        place = mask & ~self.unknown_mask, state
        least = self.found.get(place)
        if least is None:
            self.found[place] = [used]
            return True
        for other in least:
            if other & ~used == 0:
                return False
        least[:] = [other for other in least if used & ~other]
        least.append(used)
        return True

    def has(self, mask: int, state: Any) -> bool:
        return (mask & self.unknown_mask) in self.found[mask & ~self.unknown_mask, state]

    def all(self) -> list[tuple[int, Any]]:
        return [
            (known | used, state) for (known, state), least in self.found.items() for used in least
        ]


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_short(one) for one in value)
    if isinstance(value, bytes) and len(value) > SHOWN_BYTES:
        return f"{value[:SHOWN_BYTES]!r}… ({len(value)} bytes)"
    return repr(value)
