"""Native only: see learner.pxd."""
