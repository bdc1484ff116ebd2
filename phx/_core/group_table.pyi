from collections.abc import Sequence
from typing import Final

from phx._core.driver import Driver

END_UNDER_WAY: Final = 0
END_NOT_LEADING: Final = 1
END_BUSY: Final = 3

class GroupTable:
    """The groups of a driver that runs, as they come and go. One thread at a time.

    Every method raises DriverError: CLOSED, FORKED, OVERLOADED (the command queue is full).
    """

    def __init__(self, driver: Driver) -> None: ...
    def add(
        self,
        group: int,
        *,
        generation: int = 0,
        settled: int = 0,
        floor: int = 1,
        start: int | None = None,
        members: tuple[int, bytes, int, int, bool] | None = None,
    ) -> None:
        """Host one more group; it takes part from now on.

        Guarantee: it has its place when this returns. Votes of it, if this node ever gave some, are
        not known: only for a group that is new here. That it is hosted, and its generation, has to
        be durable before, or a restart would find its records and refuse to start.

        Args:
            group: id, 0 to 1,048,575.
            generation: how often the id was used before, 0 to 65,535; never one that was here.
            settled: highest instance in the store.
            floor: lowest instance that the store keeps.
            start: it is paused; its machine is to hold everything up to here (``Driver.resume``).
            members: (version, membership value, instance, floor, active) where they are not those
                of the driver's options, as ``engine_change_known``.

        Raises:
            DriverError: ERROR_OPTION: it is there, or was, in that generation or a later one, or
                the numbers cannot be. Nothing was done; (where the members cannot be, that
                generation is used up).
        """
    def drop(self, group: int) -> None:
        """Host a group no longer. On the thread that applies.

        Guarantee: when this returns, nothing of it comes out of the driver any more, its native
        memory is given back, and another group may have its id under a later generation. Whoever
        waits for one of its values is told nothing here; reads of it are refused. Its votes and
        values are forgotten: that they are needed no more has to be known, durably.

        Raises:
            DriverError: ERROR_UNKNOWN_GROUP: there is no such group.
        """
    def end(self, group: int) -> int:
        """Give a group that this node leads its last value: nothing comes after it, on any node.

        Returns:
            END_UNDER_WAY: when it is chosen, the group's status says ``ended``, here and wherever
            it is known; unless this node leads no longer before, which is to be asked again then.
            END_NOT_LEADING: this node does not lead it, or it has ended. END_BUSY: its members are
            being changed, or this was said already.

        Raises:
            DriverError: ERROR_UNKNOWN_GROUP: there is no such group.
        """
    def groups(self) -> Sequence[int]:
        """The ids, ascending."""
