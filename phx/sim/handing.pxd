"""Chosen entries on their way out of a simulated host: to its machines, and to peers that lag."""

from phx._core.native cimport *
from phx._core.state cimport ChosenRange, Fetch
from phx.sim.host cimport Host, LogFlow

cdef enum BodyFrom:
    BODY_HERE = 0
    BODY_SETTLED = 1         # the store has it
    BODY_NOT_YET = 2         # its record is queued and not written
    BODY_BAD = 3             # the journal cannot give it: damaged on purpose

# The machine of the group fails.
cdef void stop(Host h, LogFlow* flow, str why)
cdef void flow_chosen(Host h, const ChosenRange* chosen)
# A peer wants old entries: from memory and the journal at once, from the store a little later.
cdef void question(Host h, const Fetch* fetch)
cdef void answer(Host h, u64 number)          # AT_FETCH
# Chosen values from `first` on, as far as they are here, as `phx.store.Store.read` packs them.
cdef bytes entries_of(Host h, u32 group, u64 first, u64 last)
# What was damaged is mended: whoever waits for that goes on.
cdef void go_on(Host h)
# One slice of every group: what was chosen is handed to the machines, and callers hear of it.
cdef void apply(Host h)                       # AT_APPLY
# Callers whose values are not waited for any longer: by verdicts of the engine, and of groups whose
# machine has failed.
cdef void fail_calls(Host h)
cdef void fail_call(Host h, call, int verdict)
