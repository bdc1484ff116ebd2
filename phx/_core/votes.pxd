"""What waits for the journal besides frames: own votes, and acknowledgements of relaxed groups."""

from phx._core.native cimport *
from phx._core.state cimport *

# Everything up to `lsn` is durable: own votes are counted.
cdef void votes_durable(Engine* e, u64 lsn) noexcept nogil
# Everything up to `lsn` is written: what only waited for that is counted, or acknowledged at the
# end of the turn. As engine_written.
cdef void votes_written(Engine* e, u64 lsn) noexcept nogil
# This replica goes. What remains is in order.
cdef void votes_drop(Engine* e, u32 index) noexcept nogil
