"""Callers, and what they get back.

Waiters   this node's callers by (group, sequence), resolved thousands at a time in native loops
Result    what a caller gets back

Everything here runs with the GIL held, on the thread that applies.
"""

from cpython.ref cimport PyObject
from phx._core.native cimport *
from phx._core.entries cimport Entries
from phx._core.gate cimport Gate

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
    u64 since_us                         # when it came, on the driver's clock; 0: not said

cdef struct WaiterRing:
    u32 group
    WaiterSlot* slots                    # sequence s stands at s & (capacity - 1)
    u64 capacity
    u64 low                              # lowest sequence not resolved
    u64 next
    u64 count                            # not resolved
    u64 bytes
    u64 turned_away
    Gate* gate                           # owned; NULL without a bound

cdef class Waiters:
    cdef readonly u64 count
    cdef readonly u64 held_bytes
    cdef u64 group_values_max
    cdef u64 group_bytes_max
    cdef u64 node_values_max
    cdef u64 node_bytes_max
    cdef u64 value_bytes_max
    cdef u64 wait_us_max                 # 0: the gates are not asked, and not told
    cdef Gate gate                       # of the node
    cdef readonly u64 turned_away
    cdef u64 shut                        # how many gates are
    cdef u64 active                      # groups in which somebody waits
    cdef u64 came_us                     # of whoever was taken last
    cdef u64 taken_bytes                 # of all that ever were
    cdef u64 clock_us                    # as due() saw it
    cdef object partly
    cdef object submit                   # of the driver, and its clock: set by connect()
    cdef object now_us
    cdef object behind_us                # by how much another node applies later than this one
    cdef object turning_away             # is told whether any gate is shut
    cdef bint told_shut
    cdef vector[WaiterRing*] rings       # ascending groups; a ring stays where it is, until it goes
    cdef WaiterRing* find(self, u32 group) except NULL
    cdef int grow(self, WaiterRing* ring, u64 count) except -1
    cdef Gate* gate_of(self, WaiterRing* ring) noexcept
    cdef bint held_up(self, WaiterRing* ring) except? True
    cdef u64 later_us(self) except? 0
    cdef int open_idle(self, Gate* gate, u64 waiting) except -1
    cdef int left(self, WaiterRing* ring, u64 count, u64 nbytes) except -1
    cdef void emptied(self, WaiterRing* ring) noexcept
    cdef u64 due(self, object timeout) except? 0
    cdef bint send(self, WaiterRing* ring, u64 first, u16 machine, list values,
                   u64 due_us) except -1
    cdef u64 enter(self, WaiterRing* ring, object waiter, u64 nbytes, u64 now_us) except? 0
    cdef object take(self, WaiterRing* ring, u64 sequence, u32* index)
    cdef int settle(self, object waiter, u32 index, object value, bint failed) except -1
    cdef u64 enter_run(self, WaiterRing* ring, object future, list values, u64 nbytes,
                       u64 now_us) except? 0
    cdef int resolve(self, WaiterRing* ring, u64 sequence, u64 instance, object value) except -1
    cdef Py_ssize_t complete_passage(self, WaiterRing* ring, Entries entries, list results,
                                     Py_ssize_t start) except -1
