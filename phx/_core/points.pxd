"""Read points that are told: to other members, and to this node itself.

Guarantee. A point is at least every instance that any node knew to be chosen at some moment at or
after its question came. A leader names its chosen_through, which is one while nothing above its
ballot is chosen: under its lease, or when a majority has granted its claim in a heartbeat that was
sent after the question came. A member that votes names the last instance that it has accepted, for
a quorum read. docs/design/reads.md has the argument.

An answer names the question that it is to. Of each member the leader has one check at a time under
way, and finishes it; what that member asks meanwhile is in the next one.
"""

from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport HeartbeatAckBody, ReadAskBody

# It is answered in this turn, by the clock as it is then.
cdef void on_read_ask(Engine* e, Peer* p, u8 flags, const ReadAskBody* ask,
                      const u8* groups) noexcept nogil
# Answer what came in this turn.
cdef void points_turn(Engine* e) noexcept nogil
# The member at that slot asks: it gets its answer, or waits for it. This node itself finds it in
# GroupReads.own; then the group has reads.
cdef void points_asked(Engine* e, Replica* r, u32 at, u64 round) noexcept nogil
# Answer whoever can be answered now. The group has reads.
cdef void points_serve(Engine* e, Replica* r) noexcept nogil
# That member waits no more. The group has reads.
cdef void points_drop(Engine* e, Replica* r, u32 at) noexcept nogil
# It counts in majorities, and has forgotten no acceptance.
cdef bint may_vouch(Engine* e, Replica* r) noexcept nogil
# Nothing above is accepted here, and what is chosen is known to be up to here.
cdef u64 accepted_through(Replica* r) noexcept nogil
# A heartbeat was answered, by the newest answer so far that says what is not granted.
cdef void reads_acked(Engine* e, Peer* p, const HeartbeatAckBody* ack) noexcept nogil
# Somebody may wait for a heartbeat that was not sent yet: it goes out at once, unless the last one
# is still on its way to those that count; then soon (leases.heartbeats).
cdef void beat_for_checks(Engine* e) noexcept nogil
# Hand what was answered in this turn to the frame.
cdef void seal_points(Engine* e, Peer* p) noexcept nogil
# The connection has ended, and with it what was asked over it.
cdef void points_lost(Engine* e, Peer* p) noexcept nogil
