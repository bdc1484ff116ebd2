"""Named cases and sets; what of the command line reaches a row; what cannot be measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from phx.bench import run
from phx.bench.case import CASES, MATRICES, Case, problem, rows_of
from phx.cli.commands import phx as command


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[run.Options]:
    """What the command would have measured."""
    found: list[run.Options] = []

    def measure(options: run.Options, progress: object) -> dict[str, Any]:
        found.append(options)
        raise run.DiskFull("nothing is measured here")

    monkeypatch.setattr(run, "run", measure)
    return found


def rows(asked: list[run.Options], *words: str) -> list[Case]:
    shown = CliRunner().invoke(command, ["bench", *words])
    assert shown.exit_code == 1, shown.output
    assert "nothing is measured here" in shown.stderr
    return list(asked[-1].cases)


def test_without_options_there_are_four_rows_of_awaited_calls(asked: list[run.Options]) -> None:
    assert rows(asked) == [Case(groups=groups) for groups in (1, 20, 50, 100)]


def test_lists_are_crossed_and_every_option_reaches_the_row(asked: list[run.Options]) -> None:
    made = rows(
        asked,
        *[
            "--groups",
            "2,30",
            "--value-bytes",
            "16,2048",
            "--inflight",
            "1,10",
            "--mode",
            "propose_many",
        ],
        *[
            "--batch",
            "3",
            "--rate",
            "500",
            "--at",
            "follower",
            "--leaders",
            "one",
            "--nodes",
            "5",
            "--machine",
            "dict",
        ],
        *[
            "--skew",
            "zipf",
            "--load-groups",
            "1",
            "--large-groups",
            "1",
            "--large-bytes",
            "999",
            "--large-rate",
            "5",
        ],
        *[
            "--gil-s",
            "2",
            "--checkpoint-s",
            "1",
            "--seconds",
            "7",
            "--warmup",
            "0.5",
            "--loop",
            "asyncio",
        ],
    )
    assert len(made) == 8
    assert made[0] == Case(
        groups=2, value_bytes=16, inflight=1, mode="propose_many", batch=3, rate=500,
        at="follower", leaders="one", nodes=5, machine="dict", skew="zipf", load_groups=1,
        large_groups=1, large_bytes=999, large_rate=5, gil_s=2, checkpoint_s=1, seconds=7,
        warmup=0.5, loop="asyncio",
    )  # fmt: skip
    assert {(one.groups, one.value_bytes, one.inflight) for one in made} == {
        (groups, size, inflight)
        for groups in (2, 30)
        for size in (16, 2048)
        for inflight in (1, 10)
    }


def test_a_case_is_changed_by_options_that_are_given_only(asked: list[run.Options]) -> None:
    (made,) = rows(asked, "--case", "many-100", "--seconds", "3")
    assert made == Case(name="many-100", mode="propose_many", inflight=10_000, seconds=3)
    made_many = rows(asked, "--case", "one-caller", "--matrix", "load")
    assert len(made_many) == 6


@pytest.mark.parametrize("name", CASES)
def test_every_named_case_can_be_measured_and_knows_its_name(name: str) -> None:
    assert CASES[name].says
    for row in CASES[name].rows:
        assert row.name == name
        assert problem(row) == ""


@pytest.mark.parametrize("name", MATRICES)
def test_every_set_can_be_measured_and_has_no_row_twice(name: str) -> None:
    made = MATRICES[name][1]
    assert made == rows_of([], [name])
    assert [problem(row) for row in made] == [""] * len(made)


def test_the_sets_reach_every_size_and_number_of_groups() -> None:
    assert {row.groups for row in MATRICES["groups"][1]} == {1, 20, 50, 100, 1000, 10_000}
    assert {row.value_bytes for row in MATRICES["sizes"][1]} == {16, 100, 2048, 102_400}
    assert set(CASES) == {row.name for row in MATRICES["targets"][1]}


def test_all_groups_prefer_one_node_if_leaders_are_to_be_on_one() -> None:
    assert Case(groups=4, nodes=5, leaders="one").ids == [0, 5, 10, 15]
    assert Case(groups=4, nodes=5).ids == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "words",
    [
        "--groups 5 --load-groups 6",
        "--groups 5 --large-groups 5 --large-rate 1",
        "--groups 5 --large-groups 1",
        "--groups 5 --large-rate 10",
        "--groups 100000 --leaders one --nodes 15",
        "--gil-s 9",
        "--gil-s 2 --nodes 1",
        "--at follower --nodes 1",
        "--case nothing",
        "--matrix nothing",
        "--value-bytes 15",
        "--inflight 1,x",
    ],
)
def test_what_cannot_be_measured_is_wrong_usage(words: str, asked: list[run.Options]) -> None:
    shown = CliRunner().invoke(command, ["bench", *words.split()])
    assert shown.exit_code == 2, shown.output
    assert asked == []


def test_cases_are_listed() -> None:
    shown = CliRunner().invoke(command, ["bench", "--list-cases"])
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in [*CASES, *MATRICES])
    listed = json.loads(
        CliRunner().invoke(command, ["bench", "--list-cases", "--json", "-"]).stdout
    )
    assert set(listed["cases"]) == set(CASES)


def test_a_long_row_does_not_begin_without_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 20_000_000_000

    monkeypatch.setattr(run.shutil, "disk_usage", lambda place: Usage)
    run._check_room(Case(seconds=10), tmp_path)
    with pytest.raises(run.DiskFull, match="20 GB are free"):
        run._check_room(Case(seconds=90), tmp_path)


def test_reads_under_a_lease_are_measured_at_leaders_and_by_themselves() -> None:
    assert problem(Case(reads="stale", at="any")) == ""
    assert problem(Case(reads="lease")) == ""
    assert problem(Case(reads="linearizable", at="follower")) == ""
    for case in (Case(reads="lease", at="any"), Case(reads="lease", at="follower")):
        assert "at leaders" in problem(case)
    assert "by themselves" in problem(Case(reads="stale", rate=100))
    assert Case(reads="lease", groups=2, inflight=5).label == "2 groups, read lease, 5 open"
