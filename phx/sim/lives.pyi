from phx.sim.host import Host

def raise_ceiling(h: Host, counter: int) -> None:
    """The store has a higher ceiling, and the engine is told; tried again where it cannot."""
