"""Stores that are lost, or that an older copy was put in the place of: `phx.node.doctor` for a host
whose journal is on a simulated disk."""

from phx.sim.host cimport Host

# Before a start: what the journal says is settled becomes the store's row, where that is behind it.
cdef void raise_old_rows(Host h) except *
