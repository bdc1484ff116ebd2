"""Native only: see groups.pxd."""
