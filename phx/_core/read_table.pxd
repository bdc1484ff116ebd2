"""Which groups have reads that wait, this node's own or other members': a silent group has none."""

from phx._core.native cimport *
from phx._core.state cimport *

# What waits of that group; from now on it is one of those with reads.
cdef GroupReads* reads_of(Engine* e, Replica* r) noexcept nogil
# It is none of them any more, if nothing waits.
cdef void reads_leave(Engine* e, Replica* r) noexcept nogil
# Then a question that was not answered is asked again.
cdef u64 pause_us(Engine* e) noexcept nogil
# The group has other members: every quorum read is asked again, of these (reads.md, section 5).
cdef void reads_again(Engine* e, Replica* r) noexcept nogil
