from typing import Final

from phx._core.driver import Driver

# what change() says (barrier.pxd)
CHANGE_UNDER_WAY: Final = 0
CHANGE_NOT_LEADING: Final = 1
CHANGE_CONFLICT: Final = 2  # the version is not the one after that of the members there are
CHANGE_BUSY: Final = 3  # one is under way, or not active yet
CHANGE_NOT_CAUGHT_UP: Final = 4  # no quorum of the new voters is known to be near
CHANGE_NO_SLOT: Final = 5  # a node that is no peer: PeerTable.add
CHANGE_UNSOUND: Final = 6

class MemberTable:
    """Who the members of a driver's groups are, for the engine and by the engine. Thread-safe.

    A roster is a value of `phx._core.members`. Methods raise DriverError: UNKNOWN_GROUP; of a
    driver that is to run: CLOSED, FORKED, OVERLOADED (the command queue is full).
    """

    def __init__(self, driver: Driver) -> None: ...
    def known(
        self, group: int, version: int, roster: bytes, instance: int, floor: int, active: bool
    ) -> None:
        """Tell the engine who the members are above ``instance``, as disk or a checkpoint says.

        Guarantee: of a driver that is not started, the engine knows it before it votes; of one that
        runs, when this returns, and so before an `install` that is called then. Older members than
        it knows change nothing. All nodes named must be peers by then (``Driver``'s `peers`,
        `PeerTable.add`), or the group halts here: it does not guess who votes.

        Args:
            instance: where the roster was chosen, from 1 on.
            floor: a ballot in which a leader counted it as chosen; at least that of the packer.
            active: those before may be forgotten.

        Raises:
            DriverError: ERROR_START: that cannot be. (Before a start: that, or ``Driver.start``.)
        """
    def change(self, group: int, roster: bytes) -> int:
        """Ask for other members of a group that this node leads; the roster has the version after
        that of the members there are. Ballot and time are put in by the engine.

        Returns:
            CHANGE_UNDER_WAY: it is proposed as soon as all that is open is chosen, unless this node
            leads no longer then; `take` has the news. Anything else: nothing was done.
        """
    def of(self, group: int) -> tuple[bytes, int, int, bool, bool] | None:
        """``(roster, instance, floor, active, left)``, the newest that are known here; None: they
        never changed. ``left``: this node was a member before, and is none of them."""
    def told(self) -> int:
        """How many notes for `take` there have ever been. Costs nothing; never raises."""
    def take(self) -> list[tuple[int, bytes, int, int, bool, bool]]:
        """``(group, *of(group))`` of changes since the last call: whenever a membership value is
        chosen, or members are told, and again when they are active. Never raises DriverError.

        Guarantee: whoever has taken an entry above ``instance`` (``Driver.take``) finds the note
        here, or has taken it before; and so does who has got a plan to settle it. Of the changes
        that came in one turn each is told, in order; those before the newest without what is not in
        the log: as floor the ballot of the packer. (Those that the journal had at the start: the
        newest alone.) ``Driver.fileno`` is readable when there are any.
        """
