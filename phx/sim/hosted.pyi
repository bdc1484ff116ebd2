from phx.sim.host import Host

GENERATION: int

def row_says(host: Host, group: int, hosts: bool) -> None:
    """The watch hears what the store has, durably, of a created group."""

def remember(host: Host, group: int) -> None:
    """As `phx.node.lives.Lives.host`: the facts of its lives know the group. Raises StoreFailed."""

def prepare(host: Host, group: int) -> None:
    """As `phx.store_hosted.prepare`. Raises StoreFailed."""

def clean(host: Host, group: int) -> None:
    """As `phx.store_hosted.clean`. Raises StoreFailed."""

def begin(host: Host, group: int) -> None:
    """It takes part; its machine is made in a moment."""

def retire(host: Host, group: int) -> None:
    """Nothing of it is applied any more."""

def drop(host: Host, group: int) -> None:
    """Engine, machine, sessions: nothing of it runs any more; its callers are told so."""

def end(host: Host, group: int) -> bool:
    """Propose the group's last value, if the node leads it."""

def over(host: Host, group: int) -> bool:
    """The node knows that the last value is chosen."""

def hosts(host: Host, group: int) -> bool: ...
def settling(host: Host) -> bool:
    """Entries are being copied into the store."""
