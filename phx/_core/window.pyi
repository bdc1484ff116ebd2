"""Native only: see window.pxd."""
