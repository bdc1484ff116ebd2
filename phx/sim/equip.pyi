PACE: dict[str, int]
