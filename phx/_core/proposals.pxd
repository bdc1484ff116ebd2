"""Values of this node's callers: kept, forwarded, tried again, until chosen or given up.

Any node takes proposals. A value keeps its (session, sequence) however often it is tried, so that
it is applied once; its bytes stay here until it is seen chosen. *Rejected* is said only of a value
that never entered a record or an Accept; everything else that is given up is *unknown* (rule 6 of
ARCHITECTURE.md; docs/design/protocol.md, "Exactly once").
"""

from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport ForwardBody, ForwardReplyBody, MessageHeader

# 0, or a Verdict: rejected.
cdef int callers_submit(Engine* e, Replica* r, u64 first_seq, u32 count, Block* block, u64 offset,
                        u64 nbytes, u64 deadline_us) noexcept nogil
# A chosen body: what of it is ours is done.
cdef void callers_chosen(Engine* e, Replica* r, Block* body) noexcept nogil
# These sequences are done: nothing is known of them any more.
cdef void callers_done(Replica* r, u64 first_seq, u32 count) noexcept nogil
# Instances were passed over that a checkpoint holds: some of these values may be among them.
cdef void callers_unsure(Replica* r) noexcept nogil
# These sequences are about to enter a record of ours.
cdef void callers_entered(Replica* r, u64 first_seq, u32 count) noexcept nogil
# Hand everything that nobody has to the leader known: our own proposer, or a forward.
cdef void callers_flush(Engine* e, Replica* r) noexcept nogil
# Whoever had our values may have lost them (leader changed, link cut): hand them out again.
cdef void callers_requeue(Engine* e, Replica* r) noexcept nogil
cdef void callers_tick(Engine* e, Replica* r) noexcept nogil
# Give up all of them.
cdef void callers_stop(Engine* e, Replica* r) noexcept nogil
cdef void callers_free(Replica* r) noexcept nogil
cdef void forwards_free(Replica* r) noexcept nogil
# Lowest sequence that is still outstanding.
cdef u64 callers_low_water(Replica* r) noexcept nogil

# At the leader: take a forwarded run, or say no; each piece of an attempt once.
cdef void on_forward(Engine* e, Replica* r, Peer* p, const ForwardBody* f,
                     const u8* items) noexcept nogil
cdef void on_forward_reply(Engine* e, Replica* r, Peer* p, const ForwardReplyBody* f) noexcept nogil
# The first of the values that wait at this leader is forgotten; its reference must have been given
# back.
cdef void pending_pop(Lead* lead) noexcept nogil
# A new ballot of this node: its own callers' values are handed out afresh.
cdef void pending_drop_own(Engine* e, Replica* r) noexcept nogil
# The leadership ends: say so to whoever forwarded what is still waiting.
cdef void pending_drop(Engine* e, Replica* r) noexcept nogil
