LINK: dict[str, int]
