"""Native only: see liveness.pxd."""
