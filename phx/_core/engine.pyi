"""Native only: see engine.pxd."""
