"""Native only: see barrier.pxd."""
