"""Native only: see routing.pxd."""
