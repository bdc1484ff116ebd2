"""Native only: see wire.pxd."""
