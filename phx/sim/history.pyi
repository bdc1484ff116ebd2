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

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Final, Protocol

STEPS_MAX: Final = 500_000

class _Mark: ...

UNSEEN: Final[_Mark]
"""As a result: the operation did take effect before it returned; what it gave is not known."""
IMPOSSIBLE: Final[_Mark]
"""From `_Model.step`: the operation cannot have had its result in that state."""

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

    client: Hashable
    key: Hashable
    kind: str
    argument: Any
    result: Any
    called_us: int
    returned_us: int | None
    def __init__(
        self,
        client: Hashable,
        key: Hashable,
        kind: str,
        argument: Any,
        result: Any,
        called_us: int,
        returned_us: int | None,
    ) -> None: ...

class _Model(Protocol):
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

    initial: Hashable
    def step(self, state: Any, operation: Operation) -> Any: ...
    def changes(self, operation: Operation) -> bool: ...
    def waits(self, state: Any, operation: Operation, kinds: set[str]) -> bool: ...

class Finding:
    """Why a history is not accepted; `str` of it is for a reader.

    Attributes:
        kind: "linearizable" (it is not), or "undecided".
        key: on which.
        message: what cannot be, in a sentence.
        window: the operations around it, by time of call.
    """

    kind: str
    key: Hashable
    message: str
    window: list[Operation]
    def __init__(
        self, kind: str, key: Hashable, message: str, window: Sequence[Operation]
    ) -> None: ...

def check_history(
    operations: Iterable[Operation], model: _Model | None = None, *, steps_max: int = STEPS_MAX
) -> Finding | None:
    """None: linearizable. A key that is not comes before one that could not be decided.

    Args:
        operations: in any order.
        model: of one key; default: KeyValueModel.
        steps_max: of the model, for each key.

    A call and a return at the same time are taken as concurrent.
    """
