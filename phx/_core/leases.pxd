"""Heartbeats: one per peer, carrying every group led here; and the grants that answer them.

A node claims the groups it leads as a set of (group, ballot), told in full once and then by
changes. A peer that hears the claim grants it for the lease length, except in groups where its own
promise is not exactly the claimed ballot: those it lists. While a grant runs, the granter promises
that group to nobody else, itself included. The holder counts from the time at which it sent the
heartbeat, the granter from the time at which it came in, so the holder's belief ends first (Gray &
Cheriton 1989; Lampson 1996; docs/design/protocol.md, "Leases and elections").
"""

from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport HeartbeatAckBody, HeartbeatBody

cdef enum:
    GRANT_MARGIN = 8             # a granter waits an eighth longer than it says

# Our own led set: what a peer is told of it are the groups that it is a member of.
cdef void claim_add(Engine* e, Replica* r, u64 ballot) noexcept nogil
cdef void claim_drop(Engine* e, Replica* r) noexcept nogil
# Send heartbeats that are due.
cdef void heartbeats(Engine* e) noexcept nogil
# False: it answers nothing that this node has said in this life.
cdef bint on_heartbeat_ack(Engine* e, Peer* p, u8 flags, const HeartbeatAckBody* ack) noexcept nogil
# True: the claims changed; what elections must look at is in Replica.claim.
cdef bint on_heartbeat(Engine* e, Peer* p, u8 flags, const HeartbeatBody* beat,
                       const u8* changes) noexcept nogil
# The group has other members: who of them claims it, above the floor of their ballots.
cdef void claims_recount(Engine* e, Replica* r) noexcept nogil
# The group is new here: what the peers claim of it was told before.
cdef void claims_begin(Engine* e, Replica* r) noexcept nogil
# The peer's leaderships are over (grant run out, or a new incarnation): forget its claims.
cdef void claims_forget(Engine* e, Peer* p) noexcept nogil
# Time until which a quorum of these members, this node included, answers our heartbeats; 0: none.
cdef u64 lease_until(Engine* e, Config* config) noexcept nogil
# Time until which a quorum has granted this very leadership: its claim acknowledged, not refused.
cdef u64 group_lease_until(Engine* e, Replica* r) noexcept nogil
# A grant of this node to somebody other than `candidate` still runs in this group.
cdef bint grant_runs(Engine* e, Replica* r, u32 candidate, u64 released) noexcept nogil
# Some live node other than this one leads this group, as far as is known here.
cdef bint hears_leader(Engine* e, Replica* r) noexcept nogil
