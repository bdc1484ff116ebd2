"""``phx sim``: results, exit codes, and a failure that can be run again."""

import json

import pytest
from click.testing import CliRunner

from phx.cli.commands import phx
from phx.sim.plan import SECOND, Act, Plan
from phx.sim.profiles import PROFILES, plan_of

pytestmark = pytest.mark.processes


def sim(*arguments):
    return CliRunner().invoke(phx, ["sim", *arguments])


def test_seeds_that_hold_are_counted_and_exit_with_0():
    done = sim("--seeds", "3", "--from", "5", "--profile", "crash", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["profile"], result["first"], result["seeds"]) == ("crash", 5, 3)
    assert result["failed"] == []
    assert result["coverage"]["crashes"] > 0
    assert result["chosen_values"] >= 3 * result["chosen_values_min"] > 0
    assert len(result["digest"]) == 16


def test_the_table_marks_what_never_happened():
    done = sim("--seeds", "2", "--profile", "calm")
    assert done.exit_code == 0, done.output
    assert "0  <- never" in done.stdout
    assert "nothing broke" in done.stdout
    assert "2 seeds of profile calm from 1" in done.stdout


def test_a_failure_exits_with_1_is_kept_and_can_be_run_again(tmp_path):
    plan = plan_of(3, "calm").with_acts((Act(SECOND, SECOND, "no such act"),))
    (tmp_path / "bad.json").write_text(plan.to_json())
    kept = tmp_path / "kept"
    done = sim("--plan", str(tmp_path / "bad.json"), "--keep", str(kept), "--json")
    assert done.exit_code == 1
    (failed,) = json.loads(done.stdout)["failed"]
    assert failed["seed"] == 3
    assert failed["invariant"] == "error"
    assert failed["replay"] == f"phx sim --plan {kept}/calm-3.json --trace"
    assert Plan.from_json((kept / "calm-3.json").read_text()) == plan
    again = sim(*failed["replay"].split()[2:])
    assert again.exit_code == 1
    assert "seed 3 broke error" in again.stdout


def test_the_seed_of_a_failure_is_in_the_command_that_runs_it_again():
    from phx.cli.sim import Options, replay
    from phx.sim.fleet import Failure

    plan = plan_of(9, "power")
    options = Options("power", 1, 20, 1, True, False, 10, None, None)
    command = replay(options, Failure(plan, "U1", "planted", 7, 3))
    assert command == "phx sim --seeds 1 --from 9 --profile power --trace"


@pytest.mark.parametrize(
    "arguments", [["--profile", "nonsense"], ["--seeds", "0"], ["--jobs", "0"], ["--plan", "none"]]
)
def test_wrong_usage_exits_with_2(arguments):
    assert sim(*arguments).exit_code == 2


def test_a_file_that_is_no_plan_is_wrong_usage(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    done = sim("--plan", str(tmp_path / "x.json"))
    assert done.exit_code == 2
    assert "not a plan" in done.output


def test_profiles_are_listed():
    done = sim("--profile", "list")
    assert done.exit_code == 0
    assert all(name in done.stdout for name in PROFILES)
