"""Native only: see leases.pxd."""
