"""Native only: see watch_reads.pxd."""
