"""Native only: see rejoin.pxd."""
