"""How full a journal may become, and what may be given up of it: what an upkeep goes by.

That of a driver (upkeep.pyx) and that of a simulated host (phx/sim/upkeep.pyx). Why, and by how
much: docs/design/journal.md, "Giving space back".
"""

from phx._core.journal cimport Journal
from phx._core.native cimport *

# How much a journal holds, with what waits to be written to it, and may hold.
cdef struct JournalRoom:
    u64 live_bytes
    u64 queued_bytes
    u64 bytes_max
    u64 segment_bytes

# The pressure on the engine (PRESSURE_*), if it was `before`. turn_bytes: what one turn may emit.
cdef int room_pressure(const JournalRoom* room, u64 turn_bytes, u64 pending_bytes_max,
                       int before) noexcept nogil
# Could all of so many bytes below a new floor be carried over?
cdef bint room_fits(const JournalRoom* room, u64 below_bytes) noexcept nogil
# End of the oldest segments that are durable, about goal_bytes of them, but at least one; 0: none.
cdef u64 old_segments_end(Journal* j, u64 floor_lsn, u64 durable_lsn,
                          u64 goal_bytes) noexcept nogil
