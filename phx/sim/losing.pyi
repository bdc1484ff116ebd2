from phx.sim.world import World

COUNTED: tuple[str, ...]

def lasting(world: World, group: int, voters: list[int]) -> bool:
    """Whether none of these has a journal that fails by an act that has begun (with relaxed groups
    that takes votes along), or a majority of them have all their votes in spite of it."""

def switch(world: World, node: int, group: int, within_us: int) -> None:
    """Somebody calls `Group.set_durability` at the node, if it runs: 0: it syncs; else as
    engine_durability. Nothing happens where groups cannot be relaxed (the limit `relaxed` is 0)."""

def switches(world: World) -> dict[str, int]:
    """How many of them were done, and failed; how often a journal that failed was noted."""
