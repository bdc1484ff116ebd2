"""The micro-benchmarks still do what they are for; how long it takes is no test's business."""

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

MICRO = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "micro"


def module(name: str):
    """One of benchmarks/micro, under a name of its own."""
    known = f"phx_micro_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, MICRO / f"{name}.py")
        made = importlib.util.module_from_spec(spec)
        sys.modules[known] = made
        before = list(sys.path)
        try:
            spec.loader.exec_module(made)
        finally:
            sys.path[:] = before
    return sys.modules[known]


@pytest.fixture(scope="module")
def benches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHX_MICRO_FLAGS", "-O0")  # sooner compiled, and nobody looks at the clock
        return module("suite").BENCHES


@pytest.fixture
def compare(benches, monkeypatch):
    made = module("compare")
    monkeypatch.setitem(sys.modules, "suite", module("suite"))
    return made


@pytest.mark.timeout(300)  # the loops are compiled first
def test_every_loop_does_what_it_is_for(benches, tmp_path):
    assert len(benches) > 50
    for at, bench in enumerate(benches.values()):
        loop = bench.loop(2 * bench.least, tmp_path / str(at))
        assert loop.count == 2 * bench.least
        assert loop.run() > 0, bench.name
        try:
            loop.check()
        except AssertionError as problem:
            raise AssertionError(bench.name) from problem


# Whether nothing was done can be told for all but those whose state is one from the beginning.
@pytest.mark.parametrize(
    "name",
    [
        "ballot",
        "record encode 100 B",
        "record check 100 B",
        "frame check 100 B",
        "message check 100 B",
        "batch pack 100 x 100 B",
        "batch check 100 x 100 B",
        "engine round, 100 groups, 1 values",
        "engine accepts, 100 groups",
        "settle plan, 100 groups",
        "journal append 100 B, memory",
        "journal replay 100 B, memory",
        "settle 100 B",
        "window",
        "timers",
        "submissions, 64 together",
        "handing over, 100 groups",
        "chores",
        "sessions, out of order",
        "completion, run",
    ],
)
@pytest.mark.timeout(300)
def test_a_loop_that_did_nothing_is_found_out(benches, tmp_path, name):
    loop = benches[name].loop(2 * benches[name].least, tmp_path)
    with pytest.raises((AssertionError, IndexError)):
        loop.check()


def base_of(compare, **figures: float) -> dict:
    return {"setting": compare.setting(), "benchmarks": {"ring": figures}}


LIMITS = Namespace(instructions_max=3, time_max=15)


@pytest.mark.timeout(300)
def test_what_became_slower_is_told(compare, capsys):
    base = base_of(compare, instructions=100.0, ns=10.0, ns_best=9.0)
    same = {"ring": {"instructions": 102.9, "ns": 11.4, "ns_best": 10.0}}
    assert compare.verdict(LIMITS, base, same) == 0
    assert "slower" not in capsys.readouterr().out
    assert compare.verdict(LIMITS, base, {"ring": {"instructions": 103.1}}) == 1
    assert "slower: ring" in capsys.readouterr().out
    assert compare.verdict(LIMITS, base, {"ring": {"ns": 11.6, "ns_best": 10.5}}) == 1
    # A machine that was busy has slow medians; its fastest round is as fast as ever.
    assert compare.verdict(LIMITS, base, {"ring": {"ns": 20.0, "ns_best": 9.1}}) == 0


@pytest.mark.timeout(300)
def test_another_compiler_is_said_and_fails_nothing(compare, capsys):
    base = base_of(compare, instructions=100.0)
    base["setting"]["compiler"] = "another one"
    assert compare.verdict(LIMITS, base, {"ring": {"instructions": 200.0}}) == 0
    said = capsys.readouterr().out
    assert "another one" in said
    assert "slower: ring" in said


@pytest.mark.timeout(300)
def test_an_update_keeps_what_was_not_measured_if_it_is_of_the_same_setting(compare, tmp_path):
    path = tmp_path / "baseline.json"
    base = base_of(compare, instructions=100.0)
    compare.update(path, base, {"window": {"ns": 4.0}})
    written = json.loads(path.read_text())
    assert written["benchmarks"]["ring"]["instructions"] == 100.0
    assert written["benchmarks"]["window"] == {"ns": 4.0, "per": "instance"}
    base["setting"]["cython"] = "0"
    compare.update(path, base, {"window": {"ns": 4.0}})
    assert set(json.loads(path.read_text())["benchmarks"]) == {"window"}


@pytest.mark.timeout(300)
def test_the_baseline_knows_every_benchmark(benches):
    base = json.loads((MICRO / "baseline.json").read_text())
    assert list(base["benchmarks"]) == list(benches)
    for name, figures in base["benchmarks"].items():
        assert figures["instructions"] > 0, name
        assert figures["ns"] > 0, name
    assert {"compiler", "cython", "processor"} <= set(base["setting"])
