from phx._core.driver import Driver

class SegmentCheck:
    """Reads the closed segments of a running driver's journal. Any thread, one at a time.

    Keeps the journal open until it is closed.
    """

    def __init__(self, driver: Driver) -> None: ...
    def close(self) -> None:
        """Let go of the journal. Idempotent."""
    def segments(self) -> list[tuple[int, int]]:
        """(first position that counts, end) of every closed segment, oldest first."""
    def check(self, lsn: int, bytes_max: int) -> int:
        """Read the records from `lsn` on, at most so many bytes, at least one record.

        Returns:
            How many bytes were sound; -1: the record at `lsn` is not what was written; 0: it is
            not there any more.
        """
