"""What the commands share: habits, options, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

import click

from phx._version import __version__

__all__ = [
    "GROUPS_MAX",
    "LOOP",
    "SETTINGS",
    "check_loop",
    "command",
    "fail",
    "numbers",
    "printable",
]

FINDING = 1
SETTINGS = {"help_option_names": ["-h", "--help"]}
GROUPS_MAX = 100_000

LOOP = click.option(
    "--loop",
    type=click.Choice(["auto", "uvloop", "asyncio"]),
    default="auto",
    show_default=True,
    help="Event loop of the node; auto: uvloop where it is installed.",
)


def command(group: click.Group, name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A subcommand that answers --version as well, and -h."""

    def decorate(function: Callable[..., None]) -> click.Command:
        versioned = click.version_option(__version__, prog_name=f"phx {name}")(function)
        return group.command(name, context_settings=SETTINGS)(versioned)

    return decorate


def printable(text: str) -> str:
    """One line without surprises, whatever the names of files are."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def numbers(low: int, high: int) -> Callable[[click.Context, click.Parameter, str], list[int]]:
    """A callback for comma-separated whole numbers within a range."""

    def parse(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
        try:
            found = [int(one) for one in value.split(",")]
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list of whole numbers") from None
        if not all(low <= one <= high for one in found):
            raise click.BadParameter(f"every number must be {low} to {high}")
        return found

    return parse


def check_loop(loop: str) -> None:
    """Wrong usage rather than a failure in three processes."""
    from phx.testing.loops import uvloop_found

    if loop == "uvloop" and not uvloop_found():
        raise click.UsageError("uvloop is not installed")


def fail(why: str) -> NoReturn:
    """A finding: say what, on stderr, and exit with 1."""
    click.echo(why, err=True)
    sys.exit(FINDING)
