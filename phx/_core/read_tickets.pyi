from typing import Final

from phx._core.driver import Driver

TICKETS_MAX: Final[int]

class ReadTickets:
    """Read points of the groups of a driver (reads.pxd). Thread-safe."""

    def __init__(self, driver: Driver) -> None: ...
    def ask(self, group: int, ticket: int, deadline_us: int, quorum: bool = False) -> None:
        """Have the point of a read asked for that begins now.

        Guarantee: `take` gives its outcome once, by the deadline and a sixteenth of a heartbeat,
        unless the driver stops before.

        Args:
            ticket: given back as it is; the caller tells them apart.
            deadline_us: by ``Driver.now_us``.
            quorum: ask a majority of the members instead of the leader.

        Raises:
            DriverError: ERROR_OVERLOADED: TICKETS_MAX of them were not taken back yet;
                ERROR_CLOSED, ERROR_FORKED, ERROR_UNKNOWN_GROUP.
        """
    def take(self) -> list[tuple[int, int, int, int]]:
        """``(group, ticket, instance, verdict)`` of all since the last call; the driver's
        ``fileno`` is readable when there are any.

        Verdict 0: whoever has applied everything up to ``instance`` has seen all that anybody knew
        to be chosen when the read began. Else why there is none, as of EVENT_FAILED, and the
        instance is 0.
        """
