"""The command line: ``phx node``, ``phx init``, ``phx demo``, ``phx bench``.

Results go to stdout, progress to stderr; exit codes are 0 (success), 1 (a finding) and 2 (wrong
usage). Nothing in the library imports this package.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``phx`` command."""
    try:
        from phx.cli.commands import phx
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        print(f"the phx command needs {error.name}: pip install 'phx-paxos[cli]'", file=sys.stderr)
        sys.exit(1)
    phx()
