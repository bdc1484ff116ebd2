"""Native only: see peers.pxd."""
