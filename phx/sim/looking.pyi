from collections.abc import Callable
from typing import Any

from phx.sim.world import World

class LeaseRead:
    """A lease read of `key` at a node, which begins at once, or when the node's process goes on.

    Guarantee: `done(read, value, now_us)` is called at most once, with what the machine answered
    from a state that a linearizable read may see; a node that does not lead under a lease, dies,
    or whose machine stops, never calls it. A read point that is too low is a violation of U14.

    Args:
        pause_us: 0: look and clock together; else the clock so much later.
    """

    called_us: int
    def begin(self) -> None: ...
    def judge(self) -> None: ...
    def found(self) -> None: ...
    def answer(self) -> None: ...
    def __init__(
        self,
        world: World,
        node: int,
        group: int,
        key: int,
        pause_us: int,
        done: Callable[[LeaseRead, Any, int], None],
    ) -> None: ...
