"""Which groups a node hosts, while it runs: one comes, one goes.

Everything that is kept by a group's index (engine, flows, queues, what is published) grows by one
or gets back a place that a dropped group has left; the engine says which. Guarantee: after
hosting_drop nothing of that group comes out of the driver any more, not even what was on its way,
except for answers that its reads were refused; and nothing that Python or the store still has of it
reaches another group, also one of the same id: what has no generation with it was queued before the
drop, and is gone.

Poll thread only.
"""

from phx._core.driver_state cimport DriverState, GroupWanted, Opening
from phx._core.native cimport *

# A group of this driver from birth on: 0, or -1: it cannot be.
cdef int hosting_begin(DriverState* s, u32 group, const Opening* opening) noexcept nogil
# One more: 0, with the index that it got; or GROUP_NOT.
cdef int hosting_add(DriverState* s, u32 group, GroupWanted* wanted) noexcept nogil
# One less, if it is there. Whoever waits for a value of it is told nothing by this.
cdef void hosting_drop(DriverState* s, u32 group) noexcept nogil
# The group, led from here, is to have its last value (members.pxd); a ChangeVerdict.
cdef int hosting_end(DriverState* s, u32 group) noexcept nogil

cdef enum:
    GROUP_NOT = 1
