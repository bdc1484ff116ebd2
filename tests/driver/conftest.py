"""Makes driver_lab importable for the tests in this folder, and cleans up after it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent))

from driver_lab import Lab

from phx._core.transport_door import TransportDoor
from tests.ports import free_ports


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


@pytest.fixture
def make(no_leaks) -> Iterator[Callable[..., TransportDoor]]:
    doors: list[TransportDoor] = []

    def made(node: int, **options: int) -> TransportDoor:
        doors.append(TransportDoor(node, **options))
        return doors[-1]

    yield made
    for door in doors:
        door.close()


@pytest.fixture
def port() -> int:
    (one,) = free_ports(1)
    return one
