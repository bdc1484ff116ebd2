"""Python's door to the groups of a driver that come and go; see group_table.pyi."""

from phx._core.driver cimport Driver
from phx._core.driver_state cimport GroupWanted
from phx._core.native cimport *

cdef class GroupTable:
    cdef Driver driver
    cdef int put(self, u32 group, GroupWanted* wanted, object start) except -1
