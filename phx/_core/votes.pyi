"""Native only: see votes.pxd."""
