"""Makes crew and worker importable for the tests in this folder; ends what they start."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent))

from crew import Crew
from dying import Lives


@pytest.fixture(scope="module")
def lives(request: pytest.FixtureRequest) -> Iterator[Lives]:
    """Of the test module's WORKER."""
    made = Lives(request.module.WORKER)
    yield made
    made.close()


@pytest.fixture
def crew(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Crew]]:
    """Makes clusters of real processes. A test that fails shows the ends of their logs."""
    made: list[Crew] = []

    def make(nodes: int = 3, *, folder: Path = tmp_path, **options: Any) -> Crew:
        made.append(Crew(folder, nodes, **options))
        return made[-1]

    yield make
    for one in made:
        one.end()
    for log in sorted(tmp_path.glob("**/node*.log")):
        print(f"--- {log.relative_to(tmp_path)}")
        print("\n".join(log.read_text(errors="replace").splitlines()[-20:]))
