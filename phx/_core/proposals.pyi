"""Native only: see proposals.pxd."""
