"""The runner of the planted bugs: what it takes for a kill, and what it must not."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "design" / "mutants.md"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("phx_mutants_run", HERE / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run = load()
MUTANTS = run.mutants()
NAMES = [one.name for one in MUTANTS]

# Every one that the field knows, and which of the patches it is.
KNOWN = {
    "reply before durable": "reply_before_durable",
    "promise forgotten on restart": "promise_forgotten_on_restart",
    "promise forgotten on learning": "promise_forgotten_on_learning",
    "majority minus one": "majority_minus_one",
    "ballot reused after restart": "ballot_reused_after_restart",
    "value of the wrong ballot adopted": "lowest_ballot_adopted",
    "phase 1 skipped after losing leadership": "phase1_skipped_by_a_former_leader",
    "gap left unfilled": "gap_left_unfilled",
    "chosen watermark ahead of the quorum": "watermark_ahead_of_the_quorum",
    "duplicate applied after leader change": "duplicate_taken_for_in_order",
    "session table not part of state": "session_table_of_this_life_only",
    "torn tail accepted": "torn_tail_accepted",
    "stale record of a reused segment replayed": "stale_record_of_a_reused_segment",
    "CRC not checked": "crc_not_checked",
    "sync failure ignored": "sync_failure_ignored",
    "message sent before its after": "after_of_the_turn_before",
    "group ids mixed": "group_ids_mixed",
    "old leader's late acceptance counted": "late_acceptance_counted",
    "applied out of order": "applied_out_of_order",
    "watermark applied over an entry of an older ballot": "watermark_over_an_older_ballot",
    "watermark from a superseded leader": "watermark_of_a_superseded_leader",
    "acknowledgement across a hole": "acknowledgement_across_a_hole",
    "duplicate Accept acknowledged before durable": "duplicate_accept_answered_at_once",
    "Prepare before the own promise is durable": "prepare_before_own_promise",
    "Promise counted with pages missing": "promise_with_pages_missing",
    "ring slot overwritten": "ring_slot_overwritten",
    "carry-over appended stale with last-wins replay": "last_promise_wins",
    "append after a cut in the same generation": "appended_in_the_cut_generation",
    "replayed state exposed unsynced": "replayed_state_exposed_unsynced",
    "ballot of the record passed to apply": "adopted_value_stamped_anew",
    "highest-sequence-only de-duplication": "highest_sequence_only",
    "grant counted for a group promised to somebody else": "grant_of_a_group_promised_elsewhere",
    "old members freed before the new ones are active": "returned_before_active",
    "adopted membership, later instances under old members": "adopted_membership_goes_on",
    "restart ignores the grants it gave": "quiet_time_skipped",
    "lease from wall clock": "grant_counted_by_the_wall_clock",
    "holder longer than granter": "grant_no_longer_than_the_lease",
    "lease kept after resigning": "lease_read_after_resigning",
    "read without a check": "read_without_a_check",
    "read of a new leader before its first own value is chosen": "read_before_recovered",
    "follower read before applied": "read_before_applied",
    "configuration effective too early": "configuration_effective_too_early",
    "old quorum used after the barrier": "old_quorum_after_the_barrier",
    "removed node's vote counted": "removed_vote_counted",
    "id reused": "id_of_who_left_taken_again",
    "learner counted as voter": "learner_counted",
    "stale fencing token accepted": "renewed_under_an_old_token",
}


# --- the patches


def test_all_that_the_field_knows_are_here() -> None:
    assert len(MUTANTS) >= 40
    assert set(KNOWN.values()) <= set(NAMES)
    assert len(set(KNOWN.values())) == len(KNOWN)


def test_at_least_half_are_to_die_in_the_simulator() -> None:
    killed = [one for one in MUTANTS if one.killers[0].kind == "sim"]
    assert 2 * len(killed) >= len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=NAMES)
def test_every_patch_applies_to_this_tree_and_changes_the_product(
    mutant: "run.Mutant", tmp_path: Path
) -> None:
    assert all(re.fullmatch(r"phx/[\w/]+\.(pyx|py)", name) for name in mutant.files())
    for name in mutant.files():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    run.apply_patch(tmp_path, mutant.path)
    for name in mutant.files():
        assert (tmp_path / name).read_bytes() != (ROOT / name).read_bytes()


@pytest.mark.parametrize("mutant", MUTANTS, ids=NAMES)
def test_every_named_test_exists(mutant: "run.Mutant") -> None:
    for killer in mutant.killers:
        if killer.kind == "test":
            path, name = killer.what.split("::")
            assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_the_page_has_a_row_for_every_mutant_and_it_says_what_the_patch_says() -> None:
    rows = {}
    page = PAGE.read_text(encoding="utf-8").split("\n## The mutants\n")[1].split("\n## ")[0]
    for line in page.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[cells[0].strip("`")] = cells[1:]
    assert sorted(rows) == sorted(NAMES)
    for one in MUTANTS:
        assert rows[one.name] == run.row_of(one)[1:], f"write again: {one.name}"


def test_seeds_that_moved_are_written_into_patch_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = tmp_path / "odd.patch"
    patch.write_text(
        "Title: odd\nBreaks: U1\nRule: none\nWhere: here\nKiller: sim default U1 seed=3\n"
        "Killer: test tests/a.py::test_b\n\n--- a/x\n+++ b/x\n"
    )
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n| mutant |\n|---|\n| `old` | 1 |\n| `older` | 2 |\n\n| `kept` | 3 |\n"
    )
    monkeypatch.setattr(run, "mutants", lambda: [run.Mutant.read(patch)])
    killed = run.Outcome("odd", killed=True, killer=run.Killer("sim", "default", "U4", 17))
    run.update([killed], page)
    assert run.Mutant.read(patch).killers == (
        run.Killer("sim", "default", "U4", 17),
        run.Killer("test", "tests/a.py::test_b"),
    )
    assert page.read_text() == (
        "# Page\n\n| mutant |\n|---|\n| `odd` | odd | U1 | `here` | U4 | default 17 |\n\n"
        "| `kept` | 3 |\n"
    )


def test_the_short_run_is_a_few_that_die_at_once() -> None:
    fast = [one for one in MUTANTS if one.fast]
    assert 6 <= len(fast) <= 10
    assert all(one.killers[0].kind == "test" or one.killers[0].seed for one in fast)


@pytest.mark.parametrize(
    "text", ["sim default", "test tests/a.py", "sim default U1 7", "look at it", ""]
)
def test_a_killer_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        run.Killer.parse(text)


def test_a_head_without_its_lines_is_an_error(tmp_path: Path) -> None:
    patch = tmp_path / "odd.patch"
    patch.write_text("Title: odd\nBreaks: U1\nKiller: sim default U1\n\n--- a/x\n+++ b/x\n")
    with pytest.raises(ValueError, match="no line Rule"):
        run.Mutant.read(patch)


# --- trees


def small_tree(root: Path, setup: str = "") -> Path:
    """A checkout with one module to compile, and one that is not."""
    (root / "phx" / "_core").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "setup.py").write_text(setup)
    (root / "phx" / "one.py").write_text("a = 1\nb = 2\nc = 3\n")
    (root / "phx" / "_core" / "two.pyx").write_text("x = 1\n")
    (root / "phx" / "_core" / "two.cpython-311.so").write_text("old")
    (root / "phx" / "_core" / "three.pyx").write_text("y = 1\n")
    (root / "phx" / "_core" / "three.cpython-311.so").write_text("kept")
    return root


def a_mutant(folder: Path, file: str, before: str, after: str, *rest: str) -> "run.Mutant":
    """A patch of the first line of a file; `rest` are the lines behind it."""
    path = folder / "odd.patch"
    count = 1 + len(rest)
    path.write_text(
        "Title: odd\nBreaks: U1\nRule: none\nWhere: here\nKiller: sim default U1\n\n"
        f"--- a/{file}\n+++ b/{file}\n@@ -1,{count} +1,{count} @@\n-{before}\n+{after}\n"
        + "".join(f" {line}\n" for line in rest)
    )
    return run.Mutant.read(path)


def test_a_patch_that_does_not_apply_is_no_survivor_and_no_kill(tmp_path: Path) -> None:
    root = small_tree(tmp_path / "root")
    mutant = a_mutant(tmp_path, "phx/one.py", "a = 7", "a = 8")
    with pytest.raises(run.Broken, match="does not apply"):
        run.prepare(mutant, tmp_path / "work", root)


def test_judging_one_that_does_not_apply_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutant = a_mutant(tmp_path, "phx/applier.py", "no such line", "another")
    outcome = run.judge(mutant, 1, tmp_path / "work")
    assert not outcome.killed
    assert "does not apply" in outcome.broken
    monkeypatch.setattr(run, "mutants", lambda: [mutant])
    monkeypatch.setattr(run, "WORK", tmp_path / "work")
    monkeypatch.setattr(run, "control", lambda outcomes: [])
    monkeypatch.setattr(run, "judge", lambda one, seeds: outcome)
    assert run.main(["--jobs", "1"]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_the_checkout_is_not_changed_by_a_mutant_of_it(tmp_path: Path) -> None:
    root = small_tree(tmp_path / "root")
    mutant = a_mutant(tmp_path, "phx/one.py", "a = 1", "a = 9", "b = 2", "c = 3")
    tree = run.prepare(mutant, tmp_path / "work", root)
    assert (tree / "phx" / "one.py").read_text() == "a = 9\nb = 2\nc = 3\n"
    assert (root / "phx" / "one.py").read_text() == "a = 1\nb = 2\nc = 3\n"
    assert (tree / "phx" / "_core" / "two.cpython-311.so").read_text() == "old"


def test_only_what_the_patch_touches_is_compiled_and_once(tmp_path: Path) -> None:
    setup = (
        "from pathlib import Path\n"
        "for source in Path('phx').rglob('*.pyx'):\n"
        "    text = 'made of ' + source.read_text()\n"
        "    source.with_suffix('.cpython-311.so').write_text(text)\n"
    )
    root = small_tree(tmp_path / "root", setup)
    mutant = a_mutant(tmp_path, "phx/_core/two.pyx", "x = 1", "x = 2")
    for _ in range(2):
        tree = run.prepare(mutant, tmp_path / "work", root)
        assert (tree / "phx" / "_core" / "two.cpython-311.so").read_text() == "made of x = 2\n"
        assert (tree / "phx" / "_core" / "three.cpython-311.so").read_text() == "kept"
        assert not (tree / "phx" / "_core" / "three.pyx").exists()
    assert (root / "phx" / "_core" / "two.cpython-311.so").read_text() == "old"
    assert len(list((tmp_path / "work" / "built").iterdir())) == 1


@pytest.mark.parametrize("setup", ["raise SystemExit('no compiler')", ""])
def test_what_does_not_build_is_no_kill(tmp_path: Path, setup: str) -> None:
    root = small_tree(tmp_path / "root", setup)
    mutant = a_mutant(tmp_path, "phx/_core/two.pyx", "x = 1", "x = 2")
    with pytest.raises(run.Broken, match="does not build"):
        run.prepare(mutant, tmp_path / "work", root)


# --- what is a kill


def said(*failed: tuple[int, str]) -> str:
    return json.dumps(
        {"failed": [{"seed": seed, "invariant": kind, "message": "m"} for seed, kind in failed]}
    )


@pytest.mark.parametrize("kind", ["U1", "U11", "linearizable", "exactly-once", "liveness"])
def test_a_broken_claim_is_a_kill(kind: str) -> None:
    found = run.judge_simulation(1, said((9, kind), (4, kind)), "", "default 1")
    assert (found.invariant, found.seed, found.note) == (kind, 4, "")


@pytest.mark.parametrize("kind", ["died", "hang", "error", "digest", "transcript", "U1 and more"])
def test_anything_else_that_the_simulator_reports_is_none(kind: str) -> None:
    found = run.judge_simulation(1, said((4, kind)), "", "default 1")
    assert found.invariant == ""
    assert kind in found.note


@pytest.mark.parametrize(
    ("code", "out"), [(-6, ""), (-11, '{"failed": ['), (1, "Traceback"), (2, "[]"), (0, "{}")]
)
def test_a_simulator_that_crashed_killed_nothing(code: int, out: str) -> None:
    found = run.judge_simulation(code, out, "Aborted (core dumped)", "default 1")
    assert found.invariant == ""
    assert found.note


def test_no_failure_is_no_kill_and_no_note() -> None:
    assert run.judge_simulation(0, said(), "", "default 1") == run.Run()


CASES = """
import os, pytest

class Violation(AssertionError): ...
class Odd(Exception): ...

def test_rule(): assert 1 == 2, "U1"
def test_checker(): raise Violation("U5: leaves too early")
def test_nothing_raised():
    with pytest.raises(ValueError): pass
def test_exception(): raise Odd("assert")
def test_key(): {}["assert 1"]
def test_dies(): os.abort()
def test_hangs():
    import time
    time.sleep(60)
@pytest.fixture
def setup(): assert 0
def test_set_up(setup): pass
def test_good(): pass
"""


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("rule", True), ("checker", True), ("nothing_raised", True), ("exception", False),
        ("key", False), ("dies", False), ("hangs", False), ("set_up", False), ("good", False),
    ],
)  # fmt: skip
def test_only_a_failed_assertion_of_a_test_is_a_kill(
    tmp_path: Path, name: str, kills: bool
) -> None:
    (tmp_path / "test_cases.py").write_text(CASES)
    report = tmp_path / "report.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=2",
         f"--junitxml={report}", f"test_cases.py::test_{name}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    failed, note = run.judge_tests(done.returncode, report, done.stdout)
    assert bool(failed) == kills
    assert bool(note) == (not kills and name != "good")


def test_after_a_crash_the_seeds_behind_it_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def simulate(tree: Path, profile: str, first: int, count: int) -> "run.Run":
        asked.append((first, count))
        if first <= 5 < first + count:
            return run.Run(seed=5, note="died")
        if first <= 9 < first + count:
            return run.Run("U3", 9, "lost")
        return run.Run()

    monkeypatch.setattr(run, "simulate", simulate)
    outcome = run.Outcome("odd")
    assert run.try_simulator(Path(), run.Killer("sim", "default"), 2000, outcome)
    assert asked == [(1, 1), (2, 15), (6, 11)]
    assert outcome.how == "default 9"
    assert outcome.notes == ["died"]


def test_a_simulator_that_only_crashes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "simulate", lambda *of: run.Run(seed=of[2], note="died"))
    outcome = run.Outcome("odd")
    assert not run.try_simulator(Path(), run.Killer("sim", "default"), 2000, outcome)
    assert len(outcome.notes) == run.ODD_MAX


@pytest.mark.parametrize("seeds", [1, 15, 16, 17, 116, 2000])
def test_all_seeds_are_tried_once(seeds: int) -> None:
    tried = [
        seed for first, count in run.seed_blocks(seeds) for seed in range(first, first + count)
    ]
    assert tried == list(range(1, seeds + 1))


def test_the_control_fails_when_the_product_fails_what_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outcome = run.Outcome("odd", killed=True, killer=run.Killer("sim", "default", "U1", 7))
    monkeypatch.setattr(run, "simulate", lambda *of: run.Run())
    assert run.control([outcome], work=tmp_path) == []
    monkeypatch.setattr(run, "simulate", lambda *of: run.Run("U1", 7, "two values"))
    assert run.control([outcome], work=tmp_path) == ["default 7: U1 two values "]
