"""From chosen bodies to entries that may be applied: what Python sees of the log.

Sessions  the replicated de-duplication table of every group, asked in log order before apply
Batch     a contiguous stretch of one group's log

Everything here runs with the GIL held, on the thread that applies.
"""

from phx._core.native cimport *
from phx._core.entries cimport Entries
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
    cdef readonly u64 agreed_every       # agreed instances are its multiples
    cdef vector[SessionTable*] tables    # ascending groups
    cdef SessionTable* find(self, u32 group) noexcept
    # Takes all of `taken` (references, arrays): for each, in that order, one Batch, and one more
    # for each agreed instance that it goes on past, where a Batch ends. An unsound body or a gap
    # is the end of its Delivered, and its last Batch carries `error`; the others are whole.
    cdef list batches(self, vector[Delivered]* taken)
    cdef bint _unknown_to(self, SessionTable* table, Block* body) noexcept
    cdef int _cut(self, Delivered* taken, list out) except -1
    # From bodies[at] to the end or to an agreed instance; `at` is then behind it.
    cdef Batch _batch(self, SessionTable* table, Delivered* taken, u32* at)
    cdef SessionTable* _hosted(self, u32 group) except NULL

cdef class Batch:
    cdef readonly u32 group
    cdef readonly u32 digest             # the group's chained checksum after `last`
    cdef readonly u64 first
    cdef readonly u64 last               # first - 1: nothing
    cdef readonly u64 log_bytes          # of its bodies, duplicates with it
    cdef readonly Entries entries        # duplicates are left out
    cdef readonly int machine            # the one machine of all entries; -1: several, or none
    cdef readonly Py_ssize_t own         # entries that a caller of this node may wait for
    cdef readonly bytes table            # after `last`, if it was wanted; else None
    cdef readonly list dropped           # own sequences that are not applied: (sequence, Admission)
    cdef readonly object error           # None, or what is wrong at instance last + 1
    cdef public Py_ssize_t done          # entries applied so far; the applier's own mark
