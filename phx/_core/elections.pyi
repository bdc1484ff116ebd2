"""Native only: see elections.pxd."""
