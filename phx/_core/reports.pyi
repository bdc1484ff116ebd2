"""Native only: see reports.pxd."""
