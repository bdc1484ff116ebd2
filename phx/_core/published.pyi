from collections.abc import Iterable

class ReadPoints:
    """What the poll thread publishes, for reads and gates here. Any thread; it never waits.

    Args:
        groups: ids, ascending, all of the node.
        members: node ids, ascending.
    """

    def __init__(self, groups: Iterable[int], members: Iterable[int]) -> None: ...
    def leased(self, group: int) -> int:
        """A read point of a group that is led here under a lease which runs now.

        Guarantee: at some moment after the call it is at least every instance that any node knows
        to be chosen. Whoever has applied it may answer.

        Returns:
            The instance; -1: led here, and the lease does not run; -2: not led here, or what the
            leadership before left open is not chosen yet.
        """
    def known(self, group: int) -> int:
        """The highest instance that this node knows to be chosen, here or elsewhere."""
    def heard_us(self, node: int) -> int:
        """When the last heartbeat of a member came in, by ``Driver.now_us``; 0: never."""
    def late_us(self) -> int:
        """How late the latest of the other nodes applies, of those whose callers wait for it."""
