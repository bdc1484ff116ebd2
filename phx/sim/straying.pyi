from phx.sim.world import World

def stray(world: World, node: int, group: int, log: bool, how: int) -> bool:
    """Its machine applies the next value differently, or (`log`) its chained checksum becomes
    another. False: nobody compares (the limit `compare_us` is 0), the group does not run there,
    or a majority of the group would not be left that was right in all of the run, or nobody of it
    has what is in no log any more."""

def rebuild(world: World, node: int, group: int, dying: bool) -> bool:
    """Its group is made anew, as if somebody had asked for it; `dying`: it is marked, the process
    dies, and the next start sees to it. False: as of `stray`."""

def astray(world: World) -> list[tuple[int, int]]:
    """(node, group) of replicas that are not what was decided, or are being made anew."""

def unfound(world: World) -> list[tuple[int, int]]:
    """(node, group) of those that no comparison has found, and nobody makes anew yet."""
