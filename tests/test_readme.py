"""The code in the documents runs, and their links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import neighbours

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


def on_free_ports(program: str) -> str:
    """The same program with every port 74xx moved, so that it runs beside anything else."""
    used = sorted({int(port) for port in PORT.findall(program)})
    if not used:
        return program
    base = neighbours(used[-1] - used[0] + 4)
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
    assert lines[1].endswith("python -m pytest -n 4")
    (example,) = blocks("README.md", "python")
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 22


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            if not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []
