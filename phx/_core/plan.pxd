"""A settle plan: which chosen entries are to be copied from the journal into the store next.

The driver makes one at a time and hands it to the store thread as an opaque object; the chunk
builder reads the entries it lists natively, GIL released, and the driver gets it back when the
store has committed. A plan keeps the journal open for reading, whatever the driver does meanwhile:
the last holder closes it.
"""

from phx._core.native cimport i64, u64, vector
from phx._core.state cimport SettleItem
from phx._core.journal cimport Journal

# The open journal, counted: one reference for the driver, one for each plan.
cdef struct JournalHold:
    i64 refs
    Journal* journal
    bint owned

# One reference, for the caller. The last one closes the journal, unless it is only borrowed
# (`owned` False: it belongs to somebody who outlives every reference).
cdef JournalHold* hold_new(Journal* journal, bint owned) noexcept nogil
cdef JournalHold* hold_ref(JournalHold* hold) noexcept nogil
cdef void hold_unref(JournalHold* hold) noexcept nogil

cdef class SettlePlan:
    cdef vector[SettleItem] items     # in order of group, then instance
    cdef readonly u64 upto_lsn        # the journal may forget everything below once this is settled
    cdef JournalHold* hold            # owned reference; NULL in a plan made by hand
