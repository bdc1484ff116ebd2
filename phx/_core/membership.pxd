"""Who the members of a group are, and the slots of the nodes that may be some.

A `Config` says who votes, by slots of the node's peers, and what follows from that: how many make a
quorum, in which order they are preferred as leaders. Groups with the same members share one, which
lives as long as some group has it; so a group pays for a pointer. What differs between such groups
(since which instance they have it, above which ballot) does not stand in it.
"""

from phx._core.native cimport *
from phx._core.state cimport *

# The node's peers, as its options have them: a slot for each.
cdef void slots_begin(Engine* e) noexcept nogil
# The slot of the node; the lowest that is free if it has none. -1: that is no node's id, or there
# are SLOTS_MAX.
cdef int slot_take(Engine* e, u32 node) noexcept nogil
# Whether some group counts the node at this slot among its members.
cdef bint slot_used(Engine* e, u32 slot) noexcept nogil
# Nothing is remembered of the node that had it, which is not connected and a member of no group.
cdef void slot_free(Engine* e, u32 slot) noexcept nogil
# The group has these members from now on, slots as bits: `voters` (1 to MEMBERS_MAX of them, the
# witnesses too), and `learners`, none of which votes. Not while this node leads the group.
cdef void config_set(Engine* e, Replica* r, u64 voters, u64 witnesses, u64 learners) noexcept nogil
# The group goes.
cdef void config_drop(Engine* e, Replica* r) noexcept nogil
# Voters that are connected, this node not among them.
cdef u32 voters_connected(Engine* e, Replica* r) noexcept nogil
# Zeroed memory of so many elements of `size` bytes; phx_free.
cdef void* by_slot(u32 width, u64 size) noexcept nogil
