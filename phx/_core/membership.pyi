"""Native only: see membership.pxd."""
