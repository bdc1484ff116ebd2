"""Native only: see driver_status.pxd."""
