import os
from collections.abc import Mapping

class Survey:
    """What the journal in a folder holds; nothing in the folder is changed, nobody is locked out.

    Args:
        where: the folder ``journal`` of a node that does not run.
        cluster, node, store_id: whose it should be; another's is a verdict.
        above: an instance by group; missing: 0. The values above these are wanted, too.

    Raises:
        OSError: there is no such folder, or it cannot be opened.
    """

    verdict: tuple[str, str] | None
    """None: a node would start with it. Else one of journal_door.CODES, and segment, position and
    reason."""
    segments: list[tuple[str, int, int, int, int]]
    """Written segments that count, oldest first: (name, generation, base, end, bytes)."""
    free: list[tuple[str, int, int, int, int]]
    suspects: list[tuple[str, int, int, int, int]]
    """Files whose header is neither sound nor blank; a start would take them as free."""
    cut_bytes: int
    """Of a torn tail, which was never acknowledged."""
    records: int
    odd_records: int
    """Sound records of no kind that this version knows."""
    counter: int
    """No promise or acceptance of which the journal knows has a higher one; what a journal that was
    lost before it may have promised counts, too (RECORD_SUSPECT)."""
    floor_lsn: int
    first_lsn: int
    end_lsn: int
    incarnation: int
    lease_bound_us: int
    groups: list[tuple[int, int, int, int, tuple[int, int] | None, tuple[int, int] | None, int]]
    """(group, highest ballot promised or accepted, records, bytes of bodies, first and last
    instance accepted, first and last instance learned as chosen, highest instance that a record
    says is settled; 0: none does)."""
    doubtful: list[int]
    """Groups that may lack what this node has accepted: they are suspect (RECORD_SUSPECT), and
    nothing says that they are whole again; ascending."""
    members: dict[int, tuple[int, int, int, bytes]]
    """Of each group whose members a record says, by the last change: its instance, the floor of
    their ballots, flags (1: active, 4: this node was one, and is none of these), and the value that
    says who they are; nobody has checked that."""
    values: list[tuple[int, int, int, bytes]]
    """Those that were wanted, (group, instance, ballot, body), in the order of the records: all
    acceptances, and what was learned as chosen, with ballot 0. None of a journal with a verdict."""
    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        cluster: int,
        node: int,
        store_id: bytes,
        above: Mapping[int, int] | None = None,
    ) -> None: ...
