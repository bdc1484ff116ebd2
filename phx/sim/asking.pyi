from typing import Any

from phx.sim.world import World

def read(world: World, node: int, group: int, quorum: bool, timeout_us: int, call: Any) -> int:
    """Read `call.key` at a node that runs, when it has applied everything that a read point says.

    The call object gets exactly one of ``done(now_us, value)``, ``failed(now_us, verdict)``,
    ``died(now_us)``.

    Returns:
        0, or a verdict: nothing was asked.
    """
