"""The proposer: campaign, phase 1, adoption, phase 2, and the end of a leadership.

Phase 1 runs once per leadership for all instances from the first unchosen one. Where a promise
tells of an accepted value, the value of the highest ballot is proposed again (Paxos Made Simple,
section 2.2: P2c); a value told to be chosen beats any ballot; gaps below the last such value are
filled with no-ops (section 3). Phase 2 is pipelined in a bounded window. The leader counts only
what is durable, its own vote included.
"""

from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport (
    AcceptBody, AcceptedBody, PrepareBody, PrevoteBody, PrevoteReplyBody, PromiseBody, RefuseBody,
)

cdef void campaign(Engine* e, Replica* r) noexcept nogil
# Run phase 1 under a new ballot. `released`: the ballot whose holder asked us to take over, or 0.
cdef void prepare(Engine* e, Replica* r, u64 released) noexcept nogil
cdef void on_prevote(Engine* e, Replica* r, Peer* p, u64 ballot,
                     const PrevoteBody* ask) noexcept nogil
cdef void on_prevote_reply(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags,
                           const PrevoteReplyBody* reply) noexcept nogil
cdef void on_prepare(Engine* e, Replica* r, Peer* p, u64 ballot, const PrepareBody* ask,
                     const u8* holds) noexcept nogil
cdef void on_promise(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags, const PromiseBody* head,
                     const u8* entries, u64 nbytes) noexcept nogil
cdef void on_accept(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags, const AcceptBody* a,
                    const u8* body) noexcept nogil
cdef void on_accepted(Engine* e, Replica* r, Peer* p, u64 ballot,
                      const AcceptedBody* a) noexcept nogil
cdef void on_refuse(Engine* e, Replica* r, Peer* p, u64 ballot,
                    const RefuseBody* refusal) noexcept nogil
cdef void on_confirm(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags,
                     u64 through) noexcept nogil
cdef void on_transfer(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags) noexcept nogil
# One of this node's own records has become durable.
cdef void vote_durable(Engine* e, const Vote* vote) noexcept nogil
# The timer of the role has run out.
cdef void role_tick(Engine* e, Replica* r) noexcept nogil
# Propose what can be proposed, tell what is chosen (end of a turn).
cdef void pump(Engine* e, Replica* r) noexcept nogil
cdef void step_down(Engine* e, Replica* r) noexcept nogil
# Give the leadership to another member.
cdef void transfer(Engine* e, Replica* r, u32 to) noexcept nogil
# FLAG_KEPT among `flags`: balance leaves it there.
cdef void transfer_as(Engine* e, Replica* r, u32 to, u8 flags) noexcept nogil
# A member's grant is missing because its promise is another: ask for the promise again.
cdef void prepare_again(Engine* e, Replica* r, Peer* p) noexcept nogil
# A member's connection is new: what it knows chosen is uncertain.
cdef void peer_returned(Engine* e, Replica* r, Peer* p) noexcept nogil
