"""Native only: see relaxed.pxd."""
