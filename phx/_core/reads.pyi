"""Native only: see reads.pxd."""
