from typing import Any

class Host:
    """One node of a simulated cluster; made and driven by a World."""

    poisoned: bool
    why: str
    tracing: Any
    digests: Any
    machine: dict[int, Any]
    waiting: dict[int, Any]
    @property
    def node(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def life(self) -> int: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def refused(self) -> bool: ...
    @property
    def disk(self) -> Any: ...
    @property
    def store(self) -> Any: ...
