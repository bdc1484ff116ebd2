"""Native only: see phase2.pxd."""
