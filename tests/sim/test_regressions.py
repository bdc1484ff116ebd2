"""Plans that once broke something, kept when the seed that made them makes another plan now.

A file's name says what went wrong; CHANGELOG.md has the story.
"""

from pathlib import Path

import pytest

from phx.sim.plan import Plan
from phx.sim.run import run_seed

PLANS = sorted(Path(__file__).with_name("plans").glob("*.json"))


@pytest.mark.parametrize("path", PLANS, ids=[path.stem for path in PLANS])
def test_it_does_not_happen_again(path: Path) -> None:
    plan = Plan.from_json(path.read_text())
    outcome = run_seed(plan.seed, plan=plan)
    assert outcome.violation is None, outcome.violation
    assert outcome.chosen_values > 0


def test_there_are_plans() -> None:
    assert PLANS
