"""Makes driver_lab importable for the tests in this folder, and cleans up after it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent))

from driver_lab import Lab


@pytest.fixture
def lab(no_leaks: None, tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Makes clusters in this process, and stops them."""
    made: list[Lab] = []

    def make(nodes: int, **options: int) -> Lab:
        made.append(Lab(tmp_path, nodes, **options))
        return made[-1]

    yield make
    for one in made:
        for member in one.members.values():
            member.stop()
