from phx._core.driver import Driver

class PeerTable:
    """The other nodes that a driver which runs is connected with. Thread-safe.

    Every method raises DriverError: CLOSED, FORKED, OVERLOADED (the command queue is full).
    """

    def __init__(self, driver: Driver) -> None: ...
    def add(
        self, node: int, host: str, port: int, *, named: bool = False, store_id: bytes | None = None
    ) -> None:
        """Connect with another node from now on; one that is known gets this address.

        Guarantee: it has a place when this returns, and no group counts it before some group's
        members name it. The one of the two with the lower id dials the other.

        Args:
            host: numeric; "": not known yet.
            named: the address is that of a name, to be looked up at every attempt (`lookups`).
            store_id: of the store that was seen behind this id before; another one is refused.

        Raises:
            DriverError: ERROR_OPTION: no id of another node, or 63 are there already.
        """
    def drop(self, node: int, kept: bytes | None = None) -> bool:
        """Let go of a node: its connection is closed, what is queued for it is dropped, its place
        is free. One that is not there is no error.

        Nothing here remembers its store id afterwards: let that be durable elsewhere before.

        Args:
            kept: the store id that is; b"": none is. None: whatever there is may be forgotten.

        Returns:
            False: another store than `kept` was met behind it. Nothing was done.

        Raises:
            DriverError: ERROR_MEMBER: it is a member of a group here; ERROR_GRANTED: it may lead
                under a grant of this node, for as long as a lease: try again. Nothing was done.
        """
    def set_address(self, node: int, host: str, port: int, *, named: bool = False) -> None:
        """Dial the node at this numeric address from now on.

        A connection that was dialled to another address is closed, and dialled anew. One that the
        other side has dialled stays: where the other node listens, it does not tell.

        Raises:
            DriverError: ERROR_OPTION: it is no peer, or the address is none.
        """
    def resolved(self, node: int, host: str, port: int) -> None:
        """What a look-up has found. Of a node that is connected it changes nothing until the next
        attempt; an attempt under way at another address is given up for this one."""
    def lookups(self, timeout_us: int) -> list[tuple[int, int]] | None:
        """Wait, GIL released, for names to be looked up: ``(node, attempts)``; attempts to connect
        that have failed since there was a connection. None: the driver stops."""
