"""Who should lead a group, and when it is this node's turn to try.

Every group has its own order of preference over the members, a permutation computed from its id, so
that leaders are spread evenly, and the groups of a node that fails spread evenly over the others.
Members of a higher priority come before all of that; each says its own in its heartbeats. A node
tries the later, the more live nodes stand before it, and one of priority 0 later still; every
failed attempt doubles the pause, with jitter, so that duels end (Kirsch & Amir 2008: liveness rests
on the election). Safety rests on none of this: nodes may believe what they like of priorities.
"""

from phx._core.native cimport *
from phx._core.state cimport *

cdef enum:
    GIVEN_DOUBLINGS = 6          # of the pause after a transfer that was not taken

# It was a member, and may not forget the group before those that are now are active.
cdef inline bint leaves(Replica* r) noexcept nogil:
    return r.members != NULL and r.members.flags & (MEMBERS_LEFT | MEMBERS_ACTIVE) == MEMBERS_LEFT

# How much the member wants to lead this group. (A witness has no machine: if nobody else does.)
cdef inline u32 wish(Engine* e, Replica* r, u32 slot) noexcept nogil:
    return 0 if r.config.witnesses >> slot & 1 else e.priorities[slot]

# This node may campaign in this group now.
cdef bint can_lead(Engine* e, Replica* r) noexcept nogil
# The live member that should lead this group (this node counts as live); 0: none.
cdef u32 preferred_leader(Engine* e, Replica* r, u32 besides) noexcept nogil
# Who should lead this group, first to last: order[0 .. n_voters-1], slots.
cdef void preference(Engine* e, Replica* r, u32* order) noexcept nogil
# This node, or one that is there, as far as is known here.
cdef bint live(Engine* e, u32 slot) noexcept nogil
# This leader gives that member the group, and its ballot up.
cdef void note_given(Engine* e, Replica* r, u32 at) noexcept nogil
# That member has not taken what this node gave it in `ballot`; and nobody was promised the group
# since.
cdef bint not_taken(Replica* r, u32 at, u64 ballot) noexcept nogil
# It was given the group, did not take it, and is not given it again for a pause, which doubles each
# time, and so often at most.
cdef bint put_off(Engine* e, Replica* r, u32 at, u32 doublings) noexcept nogil
# Of this leadership: that member grants it, as far as is known, and is not put off.
cdef bint may_take(Engine* e, Replica* r, u32 at, u32 doublings) noexcept nogil
# The live member, not this node, that should lead this group and may take it; 0: none.
cdef u32 preferred_taker(Engine* e, Replica* r) noexcept nogil
# Set the time of the next attempt, or none where somebody leads.
cdef void schedule_campaign(Engine* e, Replica* r, u64 extra_us) noexcept nogil
# Pause before the next step of an attempt that has failed `failures` times.
cdef u64 backoff_us(Engine* e, Replica* r) noexcept nogil
# Time that one step of phase 1 may take: a round trip, and a sync at either end. On slow disks a
# shorter one would end every attempt before its answers are there.
cdef u64 step_us(Engine* e) noexcept nogil
# Set the leader from the claims heard; callers and campaigns follow it.
cdef void refresh_leader(Engine* e, Replica* r) noexcept nogil
