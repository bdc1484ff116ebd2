"""Native only: see proposer.pxd."""
