"""What Python needs of the bare cluster; limit.pxd says what a node does.

Futures of one group are completed in the order in which their values were taken, so native code
knows of them by number only: it says how many more are done in which group.
"""

from cpython.object cimport PyObject

from phx._core.disk cimport DiskApi
from phx._core.native cimport *
from phx.bench.limit cimport Entry, Limit

cdef struct Futures:             # of one group, in the order in which their values were taken
    PyObject** cells             # a reference each; a ring of mask + 1 cells
    u32 mask
    u32 first
    u32 last
    u32 pending                  # values in `block`
    Block* block                 # taken since the last flush, or NULL

cdef class File:
    cdef DiskApi disk
    cdef i64 file
    cdef u64 nbytes

cdef class Node:
    cdef Limit* n
    cdef File file
    cdef vector[Futures] futures
    cdef vector[u32] dirty       # groups with pending values
    cdef vector[Entry] taken
    cdef bint running
    cdef bint flushing
    cdef object create, soon, flush_, loop  # None but while attached
    cdef void _stop_journal(self)
