"""What the documents say is true: their code runs, and their tables are those of the code."""

import dataclasses
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from phx import config, errors
from phx.cli.commands import phx as command

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    "README.md",
    "docs/tutorial.md",
    "docs/howto/write-a-state-machine.md",
    "docs/howto/handle-errors.md",
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PORT = re.compile(r"\b74\d\d\b")


def blocks(document: str, language: str) -> list[str]:
    found = BLOCK.findall((ROOT / document).read_text())
    return [text for kind, text in found if kind == language]


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that were all free a moment ago."""
    while True:
        first = random.randrange(10_000, 31_000)
        probes = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
        return first


def on_free_ports(program: str) -> str:
    """The same program with every port 74xx moved, so that it runs beside anything else."""
    used = sorted({int(port) for port in PORT.findall(program)})
    if not used:
        return program
    base = free_ports(used[-1] - used[0] + 4)
    return PORT.sub(lambda match: str(base + int(match[0]) - used[0]), program)


def python_blocks() -> list[object]:
    return [
        pytest.param(text, id=f"{document}-{number}")
        for document in DOCUMENTS
        for number, text in enumerate(blocks(document, "python"), 1)
    ]


@pytest.mark.processes
@pytest.mark.parametrize("program", python_blocks())
def test_python_blocks_run(program: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(on_free_ports(program))
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for value in re.findall(r"print\([^)]*\)\s*# (\w+)", program):
        assert value in done.stdout


def test_readme_begins_with_its_two_commands_and_has_a_short_example() -> None:
    (commands,) = blocks("README.md", "shell")
    lines = commands.splitlines()
    assert len(lines) == 2
    assert "pip install '.[cli]'" in lines[0]
    assert lines[0].endswith("phx demo")
    assert "pip install '.[test]'" in lines[1]
    assert lines[1].endswith("python -m pytest")
    (example,) = blocks("README.md", "python")
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 22


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            if not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def rows(document: str, heading: str | None = None) -> list[list[str]]:
    """Cells of every table row (of one section) whose first cell is `code`."""
    text = (ROOT / document).read_text()
    if heading is not None:
        text = re.split(r"^## ", text.split(f"\n## {heading}\n", 1)[1], flags=re.MULTILINE)[0]
    # A pipe inside code is written as \|.
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line] for line in lines]
    return [row for row in cells if row[0].startswith("`")]


@pytest.mark.parametrize("section", ["Timing", "Limits", "Journal"])
def test_configuration_reference_has_every_option_with_its_default_and_range(section: str) -> None:
    expected = [
        [f"`{one.name}`", f"{one.default:,}", f"{low:,} … {high:,}"]
        for one in dataclasses.fields(getattr(config, section))
        for low, high in [(one.metadata["low"], one.metadata["high"])]
    ]
    assert [row[:3] for row in rows("docs/reference/config.md", section.lower())] == expected


def test_configuration_reference_has_every_option_of_the_node() -> None:
    named = {row[0].strip("`") for row in rows("docs/reference/config.md", "The node")}
    sections = {"timing", "limits", "journal"}
    assert named == {one.name for one in dataclasses.fields(config.Config)} - sections


@pytest.mark.parametrize("outcome", ["Rejected", "Unknown"])
def test_errors_reference_has_every_error_under_what_it_means(outcome: str) -> None:
    root = getattr(errors, outcome)
    expected = {kind.__name__ for kind in errors.all_errors() if issubclass(kind, root)}
    named = {row[0].strip("`") for row in rows("docs/reference/errors.md", outcome)}
    assert named == expected - {outcome}


@pytest.mark.parametrize("name", sorted(command.commands))
def test_command_line_reference_has_every_option(name: str) -> None:
    assert isinstance(command.commands[name], click.Command)
    options = {
        option.opts[0]
        for option in command.commands[name].params
        if isinstance(option, click.Option) and option.opts[0] != "--version"
    }
    section = rows("docs/reference/cli.md", f"phx {name}")
    named = {row[0].strip("`").split()[0] for row in section if row[0].startswith("`--")}
    assert named == options
