def table_facts(table: bytes) -> tuple[int, int, int, int]:
    """What a session table is of: (group, frontier, chain, epoch). ValueError if it is unsound."""
