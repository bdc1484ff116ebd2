from collections.abc import Iterable

class SettlePlan:
    """Chosen entries to be copied from the journal into the store; see ``Driver.store_work``."""

    def __init__(self, items: Iterable[tuple[int, int, int]] = (), upto_lsn: int = 0) -> None:
        """For tests: a plan over ``(group, instance, lsn)`` items that belongs to no driver."""
    def __len__(self) -> int: ...
    upto_lsn: int
    """Position below which the journal may forget everything once the plan is settled."""

    def entries(self) -> list[tuple[int, int, int]]:
        """The entries as ``(group, instance, lsn)``, in order of group and instance."""
    def through(self) -> dict[int, int]:
        """Group to the highest instance that the plan settles."""
