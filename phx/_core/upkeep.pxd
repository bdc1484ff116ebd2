"""Keeping the journal short: floors, settling into the store, pressure, poison.

A segment is given up only when what it holds is settled, carried over or dead, and the floor that
says so is durable. One plan is with the store at a time: while the journal holds more than
settle_bytes, one for its oldest segments; when nothing was chosen for settle_idle_us, or on
request, one for all.

Poll thread only.
"""

from phx._core.driver_state cimport DriverState
from phx._core.native cimport *
from phx._core.state cimport Effects

# After the turn's effects have been handed on.
cdef void upkeep_turn(DriverState* s, const Effects* effects) noexcept nogil
cdef u64 upkeep_deadline(DriverState* s) noexcept nogil
# The plan in flight has been settled, if it is the one up to `upto`; or could not be.
cdef void upkeep_settled(DriverState* s, u64 upto) noexcept nogil
cdef void upkeep_settle_failed(DriverState* s) noexcept nogil
# The group's row says: kept from `floor` on, settled through `settled`. The engine is told.
cdef void upkeep_floored(DriverState* s, u32 group, u64 floor, u64 settled) noexcept nogil
# The journal failed: stop voting, say so, once.
cdef void upkeep_poison(DriverState* s, int error) noexcept nogil
