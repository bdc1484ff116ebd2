"""Liveness of nodes: who is alive, whose leaderships are over, where leaderships should be.

Failure detection is per node and follows the grants: a peer whose grant has run out is not alive,
and every group that it claimed looks for a leader. A leader that a quorum does not grant steps
down. Leaderships return to the preferred node once it is alive and has caught up, and go to any of
a higher priority.
"""

from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport HeartbeatAckBody, HeartbeatBody, RejoinBody

cdef void on_beat(Engine* e, Peer* p, u8 flags, const HeartbeatBody* beat,
                  const u8* changes) noexcept nogil
cdef void on_beat_ack(Engine* e, Peer* p, u8 flags, const HeartbeatAckBody* ack,
                      const u8* refused) noexcept nogil
cdef void on_rejoin(Engine* e, Replica* r, Peer* p, u64 ballot,
                    const RejoinBody* ask) noexcept nogil
# In every group: who leads it?
cdef void refresh_all(Engine* e) noexcept nogil
# Before the time is this: how long a sync takes, if one is under way or has just ended.
cdef void time_sync(Engine* e, u64 now_us) noexcept nogil
# Look at everything that depends on time alone.
cdef void watch(Engine* e) noexcept nogil
# The next time at which watch has something to do.
cdef u64 watch_at(Engine* e) noexcept nogil
# Give this leadership to that member, 0: to the one that should have it next; a TransferVerdict. It
# stays there until it ends; but one that a node of priority 0 gives to anybody is balanced on.
cdef int give_to(Engine* e, Replica* r, u32 to) noexcept nogil
# Whom to give the group to if this leader can lead it no longer: the first that can lead at once,
# else the first that is there; 0: nobody is.
cdef u32 successor(Engine* e, Replica* r) noexcept nogil
# Give every leadership to the member that should have it instead of this node.
cdef void hand_over(Engine* e) noexcept nogil
