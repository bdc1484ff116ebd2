"""Habits of every command: --help, --version, exit codes, what goes to stdout."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import phx
from phx.cli.commands import phx as command

COMMANDS = sorted(command.commands)


def test_there_are_these_commands() -> None:
    made = ["bench", "checkpoint", "decommission", "demo", "drain", "groups", "init", "inspect"]
    last = ["member", "node", "peers", "recover", "repair", "sim", "torture", "verify"]
    assert [*made, "join", *last] == COMMANDS


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_and_version(name: str) -> None:
    words = [name] if name else []
    for option in ("--help", "-h"):
        shown = CliRunner().invoke(command, [*words, option])
        assert shown.exit_code == 0
        assert shown.stdout.startswith(f"Usage: phx {name}".rstrip())
        assert "--version" in shown.stdout
    version = CliRunner().invoke(command, [*words, "--version"])
    assert version.exit_code == 0
    assert phx.__version__ in version.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_report_as_json(name: str) -> None:
    below = getattr(command.commands[name], "commands", {}) if name in ("groups", "member") else {}
    for words in [[name, one] for one in below] or [[name]]:
        assert "--json" in CliRunner().invoke(command, [*words, "--help"]).stdout


@pytest.mark.parametrize(
    "words",
    [
        ["nothing"],
        ["--nothing"],
        ["node"],
        ["node", "--config", "missing.toml"],
        ["join"],
        ["join", "--config", "missing.toml", "127.0.0.1:1"],
        ["demo", "--groups", "0"],
        ["demo", "--groups", "many"],
        ["demo", "--seconds", "0"],
        ["demo", "--fault", "earthquake"],
        ["demo", "extra"],
        ["bench", "--groups", "1,x"],
        ["bench", "--groups", "0"],
        ["bench", "--groups", ""],
        ["bench", "--mode", "guess"],
        ["bench", "--inflight", "0"],
        ["bench", "--value-bytes", "3"],
        ["bench", "--at", "sea"],
        ["checkpoint", "nothing"],
        ["checkpoint", "list"],
        ["checkpoint", "verify", "missing"],
        ["checkpoint", "export", ".", "-1", "x"],
        ["checkpoint", "export", ".", "many", "x"],
        ["checkpoint", "import", "missing", "."],
        ["init"],
        ["init", "--dir", "x", "--nodes", "16"],
        ["torture", "--faults", "earthquake"],
        ["torture", "--faults", ""],
        ["torture", "--minutes", "0"],
        ["torture", "--nodes", "2"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(words: list[str]) -> None:
    shown = CliRunner().invoke(command, words)
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert "Error" in shown.stderr


def test_init_writes_what_config_reads_and_never_overwrites(tmp_path: Path) -> None:
    words = ["init", "--dir", str(tmp_path), "--groups", "7", "--cluster", 'a "b" \\ c']
    shown = CliRunner().invoke(command, [*words, "--json"])
    assert shown.exit_code == 0
    paths = [Path(path) for path in json.loads(shown.stdout)["files"]]
    assert [path.name for path in paths] == ["node1.toml", "node2.toml", "node3.toml"]
    configs = [phx.Config.from_toml(path) for path in paths]
    assert [config.node for config in configs] == [1, 2, 3]
    assert {config.cluster for config in configs} == {'a "b" \\ c'}
    assert {len(config.group_ids) for config in configs} == {7}
    assert len({config.dir for config in configs}) == 3
    before = paths[1].read_text()
    again = CliRunner().invoke(command, words)
    assert again.exit_code == 1
    assert "exists" in again.stderr
    assert paths[1].read_text() == before
    assert tomllib.loads(before)["node"] == 2


def node_toml(folder: Path, **changed: object) -> Path:
    path = folder / "node.toml"
    text = 'cluster = "t"\nnode = 1\ndir = "data"\n[members]\n1 = "127.0.0.1:0"\n'
    path.write_text(text + "".join(f"{name} = {value}\n" for name, value in changed.items()))
    return path


def test_join_wants_to_know_whom(tmp_path: Path) -> None:
    shown = CliRunner().invoke(command, ["join", "--config", str(node_toml(tmp_path))])
    assert shown.exit_code == 2
    assert "which nodes does it join?" in shown.stderr
    shown = CliRunner().invoke(command, ["join", "--config", str(node_toml(tmp_path)), "nowhere"])
    assert shown.exit_code == 2
    assert "join[0]" in shown.stderr


def test_node_lists_every_mistake_in_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('node = 0\ndir = "x"\nwhat = 1\n[members]\n1 = "here"\n')
    shown = CliRunner().invoke(command, ["node", "--config", str(path)])
    assert shown.exit_code == 2
    for mistake in ("cluster: missing", "what: unknown", "node:", "members.1:"):
        assert mistake in shown.stderr


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ("nocolon", "module:factory"),
        ("no.such.module:x", "no.such"),
        ("phx.machines:Missing", "Missing"),
        ("phx.machines:__doc__", "cannot be called"),
    ],
)
def test_node_with_a_wrong_machine_is_wrong_usage(machine: str, says: str, tmp_path: Path) -> None:
    words = ["node", "--config", str(node_toml(tmp_path)), "--machine", machine]
    shown = CliRunner().invoke(command, words)
    assert shown.exit_code == 2
    assert says in shown.stderr


def test_node_that_cannot_be_opened_is_a_finding(tmp_path: Path) -> None:
    shown = CliRunner().invoke(command, ["node", "--config", str(node_toml(tmp_path))])
    assert shown.exit_code == 1
    assert "NotBootstrapped" in shown.stderr
    assert shown.stdout == ""
