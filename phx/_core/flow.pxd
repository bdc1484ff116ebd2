"""Chosen entries on their way to the applier, and old entries for peers and readers.

The applier gets every chosen instance of a group once, in order, from instance 1 of a start on.
What waits for it in memory is bounded by delivery_bytes_max; the rest is a range per group, and is
read again from the engine's memory, the journal or the store when the applier has room.

Poll thread only.
"""

from phx._core.driver_state cimport DriverState
from phx._core.native cimport *
from phx._core.queues cimport Question
from phx._core.state cimport ChosenRange, Fetch

# One flow per group, ascending; everything settled is to be handed over first.
cdef void flow_add(DriverState* s, u32 group, u64 settled_through) noexcept nogil
cdef void flow_chosen(DriverState* s, const ChosenRange* chosen) noexcept nogil
# Hand over as much as there is room for; sets s.again when there is more to do at once.
cdef void flow_feed(DriverState* s) noexcept nogil
# The store's answer to a CHORE_LOAD; `entries` (borrowed) as for engine_supply, NULL for none.
cdef void flow_loaded(DriverState* s, u32 group, u64 first, Block* entries) noexcept nogil
cdef u64 flow_deadline(DriverState* s) noexcept nogil
# Supply a peer from memory or the journal, or ask the store.
cdef void flow_fetch(DriverState* s, const Fetch* fetch) noexcept nogil
# The store's answer to a CHORE_FETCH, as far as it is sound and fits in a frame; NULL for none.
cdef void flow_supply(DriverState* s, u32 group, u32 peer, u64 first,
                      Block* entries) noexcept nogil
# Fills in body and verdict.
cdef void flow_read(DriverState* s, Question* question) noexcept nogil
