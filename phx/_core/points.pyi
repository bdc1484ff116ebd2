"""Native only: see points.pxd."""
