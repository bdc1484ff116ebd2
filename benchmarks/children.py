"""Nodes in processes of their own, for a script that starts itself once for each of them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from phx.testing.processes import free_ports


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of a child, and where the folders are. In a child, `node` is not None."""
    parser.add_argument("--dir", help="where the folders are made")
    parser.add_argument("--node", help=argparse.SUPPRESS, type=int)
    parser.add_argument("--ports", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)


@contextmanager
def command(name: str, nodes: int, where: str | None) -> Iterator[tuple[ExitStack, list[str]]]:
    """What ends the children, and what starts one, but for its --node: in a folder that goes at the
    end, with a port for each."""
    with tempfile.TemporaryDirectory(prefix=f"phx-{name}-", dir=where) as folder:
        ports = json.dumps(free_ports(nodes))
        with ExitStack() as stack:
            yield stack, [sys.executable, *sys.argv, "--ports", ports, "--folder", folder]


class Child:
    """A node's process: lines to it, JSON from it. It is killed with the stack."""

    def __init__(self, stack: ExitStack, common: list[str], node: int, *more: str) -> None:
        self.process = stack.enter_context(
            subprocess.Popen(
                [*common, "--node", str(node), *more],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(self.process.kill)

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a node has died")
        return json.loads(line)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0
