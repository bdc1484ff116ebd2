VERDICTS: dict[int, str]
UNKNOWN: frozenset[int]
