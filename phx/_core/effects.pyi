"""Native only: see effects.pxd."""
