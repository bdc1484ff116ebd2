"""``python -m phx.cli`` is ``phx``."""

from phx.cli import main

main()
