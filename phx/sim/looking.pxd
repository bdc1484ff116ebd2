"""Reads of a simulated host under its lease, as `phx.reading` does them, and U14 (invariants.pxd).

    begins   at the host, and notes the highest instance that any node has announced
    looks    at what is published, then at the clock; between the two the process may stand still
    answers  when the host has applied the read point

A leadership is published in the turn, before its frames are taken (host.pyx), as the poll thread
does it.
"""

from phx._core.native cimport *
from phx.sim.host cimport Host
from phx.sim.world cimport World

cdef class LeaseRead:
    cdef Host host
    cdef u32 group
    cdef object key
    cdef u64 pause_us
    cdef object done
    cdef readonly u64 called_us
    cdef u64 known
    cdef u64 point
    cdef u64 until_us
    cdef int tries
    cdef bint claimed(self)
