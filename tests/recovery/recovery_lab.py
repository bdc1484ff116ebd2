"""Clusters that lose their majority, and what is made of them."""

import hashlib
from pathlib import Path

from click.testing import CliRunner

import phx
from phx.cli.commands import phx as command
from phx.recovery.making import make_folder, plan
from phx.recovery.seen import survivors
from tests.api.cluster import config_of
from tests.ports import at_ports

NEW = 11
NAME = "test, recovered"
LOCKS = {"lock", "owner.lock", "lock.mdb"}


def new_config(folder: Path, node: int = NEW, **changes: object) -> phx.Config:
    """Of the first node of the new cluster."""
    given: dict[str, object] = {
        "cluster": NAME,
        "dir": folder / f"new{node}",
        "members": at_ports(node),
    }
    return config_of(folder, node, **(given | changes))


def write_toml(path: Path, config: phx.Config) -> Path:
    members = "\n".join(f'{node} = "{at}"' for node, at in config.members.items())
    groups = config.groups if isinstance(config.groups, int) else list(config.groups)
    path.write_text(
        f'cluster = "{config.cluster}"\nnode = {config.node}\ndir = "{config.dir}"\n'
        f"groups = {groups}\n[members]\n{members}\n"
    )
    return path


def recover(*words: object) -> object:
    return CliRunner().invoke(command, ["recover", *(str(one) for one in words)])


def made(folders: list[Path], config: phx.Config) -> None:
    """By the rooms, without the command."""
    with survivors(folders) as found:
        for _ in make_folder(plan(config, found, 1)):
            pass


def content(folder: Path) -> dict[str, str]:
    """Every file but locks."""
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in LOCKS
    }
