"""Native only: see hosting.pxd."""
