"""What a host is made of: everything of it that outlives its lives."""

from phx._core.native cimport *
from phx.sim.host cimport Host, Pace

cdef enum:
    CLUSTER = 0x5EED

# A host that has its node, index, groups, agenda and watch. Raises KeyError for a limit that is
# not there.
cdef void equip(Host host, u64 seed, u32 nodes, dict limits, machines) except *
cdef Pace pace_of(dict values)
