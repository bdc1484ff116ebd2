"""Native only: see acceptor.pxd."""
