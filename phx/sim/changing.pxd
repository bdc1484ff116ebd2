"""Members of groups that change, at a simulated host: what its store keeps of them, what its engine
is told at a start and before an install, and what it tells. As `phx.node.memberships`, and the
store's part of `phx.store`, for a host without threads.

Members change only where `members` is among the limits of a world: then nodes 1 to that number are
the first ones of every group. All others may join; none of them starts before somebody wants it.
"""

from phx._core.native cimport *
from phx._core.state cimport Event
from phx.sim.host cimport Host, LogFlow

# The groups of an engine that has replayed nothing yet have their first members, or those that the
# store, a checkpoint, or whoever had it join says.
cdef void members_open(Host h)
# The engine is told of a group's members, which the node knows from now on.
cdef void members_told(Host h, u32 group, told)
# EVENT_MEMBERS.
cdef void members_changed(Host h, const Event* event)
# A checkpoint says these (a Membership, or None: they never changed), and is about to be installed.
cdef void members_known(Host h, u32 group, told)
# (known, a Membership or None): who they are at the instance that the machine has applied.
cdef tuple members_at(Host h, const LogFlow* flow)
# The floor is about to be raised to what a checkpoint covers: the store is to know its members.
cdef void members_covered(Host h, u32 group)
# The store says settled up to there; the watch hears whose members its row has.
cdef void members_row(Host h, u32 group, u64 settled)
# The value is chosen, and its node had left before: it is never applied.
cdef bint left_out(Host h, u32 group, u64 op)
