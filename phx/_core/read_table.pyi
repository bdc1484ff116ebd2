"""Native only: see read_table.pxd."""
