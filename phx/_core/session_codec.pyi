def table_facts(table: bytes) -> tuple[int, int, int, int]:
    """What a session table is of: (group, frontier, chain, epoch). ValueError if it is unsound."""

def table_incarnation(table: bytes, node: int) -> int:
    """The highest incarnation of a node in a table; 0: none. ValueError if it is unsound."""
