"""What must hold of an engine after every turn, whatever came in."""

from phx._core.native cimport *
from phx._core.state cimport Engine, MEMBERS_MAX

cdef enum:
    GROUPS = 4
    SELF = 2
    CLUSTER = 7

cdef struct World:
    Engine* e
    Block* payload               # messages for the next frame
    Block* log                   # every record emitted
    u64 now_us
    u64 promised[GROUPS]
    u64 chosen[GROUPS]
    u64 emitted[GROUPS]          # highest promise in a record
    u64 sequence[GROUPS]
    u64 replayed_last[GROUPS]
    u32 beaten[MEMBERS_MAX]
    bint poisoned

# All groups, the claims, and what is counted over all of them.
cdef void check_engine(World* w) noexcept nogil
# A turn, and everything it gives: records that a replay takes, frames that a peer takes, bounds.
cdef void drain(World* w) noexcept nogil
