"""Stores that are lost, or that an older copy was put in the place of: `phx.node.doctor` for a host
whose journal is on a simulated disk."""

from phx.sim.host cimport Host

# Before a start: what the journal says is settled becomes the store's row, where that is behind it.
# False: the journal cannot be read at the moment, and there is no start; a replay, a moment later,
# might find it sound.
cdef bint raise_old_rows(Host h) except -1
