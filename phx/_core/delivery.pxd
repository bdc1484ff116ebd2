"""From chosen bodies to applied entries and woken callers: what Python sees of the log.

Sessions  the replicated de-duplication table of every group, asked in log order before apply
Entry     one value as apply sees it; Batch, a contiguous stretch of one group's log
Waiters   this node's callers by (group, sequence), resolved thousands at a time in native loops
Result    what a caller gets back

Everything here runs with the GIL held, on the thread that applies.
"""

from cpython.ref cimport PyObject
from phx._core.native cimport *
from phx._core.sessions cimport SessionTable

# A stretch of one group's log as the driver hands it over: bodies[i] is instance first + i.
# `bodies` is malloc'ed; the array and one reference to each block belong to whoever takes it.
cdef struct Delivered:
    u32 group
    u32 count
    u64 first
    Block** bodies

# Gives back the references and the array of one Delivered that nobody takes.
cdef void delivered_free(Delivered* taken) noexcept nogil

cdef class Sessions:
    cdef readonly u32 node
    cdef public u32 incarnation          # of this node; set by the driver before the first take
    cdef vector[SessionTable*] tables    # ascending groups
    cdef SessionTable* find(self, u32 group) noexcept
    # Takes all of `taken` (references, arrays): one Batch for each, in that order. An unsound body
    # or a gap ends its Batch, which carries `error`; the others are whole.
    cdef list batches(self, vector[Delivered]* taken)
    cdef Batch _batch(self, Delivered* taken)

cdef class Entry:
    cdef readonly u32 group
    cdef readonly u32 index              # position among all values of the instance
    cdef readonly u32 machine
    cdef readonly u32 node               # that took the proposal
    cdef readonly u64 instance
    cdef readonly u64 epoch              # ballot of the leader that packed it: the fencing token
    cdef readonly u64 time_us            # wall clock of that leader
    cdef readonly u64 sequence           # of this node's own caller in this incarnation; else 0
    cdef readonly bytes value

cdef class Batch:
    cdef readonly u32 group
    cdef readonly u32 digest             # the group's chained checksum after `last`
    cdef readonly u64 first
    cdef readonly u64 last               # first - 1: nothing
    cdef readonly list entries           # of Entry: duplicates are left out
    cdef readonly int machine            # the one machine of all entries; -1: several, or none
    cdef readonly Py_ssize_t own         # entries that a caller of this node may wait for
    cdef readonly list dropped           # own sequences that are not applied: (sequence, Admission)
    cdef readonly object error           # None, or what is wrong at instance last + 1
    cdef public Py_ssize_t done          # entries applied so far; the applier's own mark

cdef class Result:
    cdef readonly u64 instance
    cdef readonly object value

# A result that is an error: set as the exception of the caller's future.
cdef class Refusal:
    cdef readonly object error

cdef struct WaiterSlot:
    PyObject* waiter                     # owned; NULL: resolved
    u32 bytes
    u32 index                            # position in the run of a propose_many

cdef struct WaiterRing:
    u32 group
    WaiterSlot* slots                    # sequence s stands at s & (capacity - 1)
    u64 capacity
    u64 low                              # lowest sequence not resolved
    u64 next
    u64 count                            # not resolved
    u64 bytes

cdef class Waiters:
    cdef readonly u64 count
    cdef readonly u64 held_bytes
    cdef u64 group_values_max
    cdef u64 group_bytes_max
    cdef u64 node_values_max
    cdef u64 node_bytes_max
    cdef u64 value_bytes_max
    cdef object partly
    cdef object submit                   # of the driver, and its clock: set by connect()
    cdef object now_us
    cdef vector[WaiterRing] rings        # ascending groups; never moves after __init__
    cdef WaiterRing* find(self, u32 group) except NULL
    cdef int grow(self, WaiterRing* ring, u64 count) except -1
    cdef u64 enter(self, WaiterRing* ring, object waiter, u64 nbytes) except? 0
    cdef object take(self, WaiterRing* ring, u64 sequence, u32* index)
    cdef int settle(self, object waiter, u32 index, object value, bint failed) except -1
