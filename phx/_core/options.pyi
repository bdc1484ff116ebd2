OPTIONS: dict[str, int]  # every option with its default

class DriverError(Exception):
    """What the native half of a node refuses; ``code`` is one of driver.ERROR_*."""

    code: int
    message: str
    def __init__(self, code: int, message: str) -> None: ...
