"""The learner: what is chosen, in order; what a peer that lags is told; what is kept in memory.

A watermark is (ballot b,
                instance c). It makes i <= c chosen here only where this node accepted i in
exactly ballot b; elsewhere the value is asked for. (Otherwise a follower that missed an Accept of
b would apply the value of another ballot that it holds, older or newer.) Catch-up carries only
values that are
chosen; a learned value is stored as chosen and touches neither the promise nor the accepted
ballot (docs/design/protocol.md, "Learning").
"""

from phx._core.codec cimport RecordHeader
from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport LearnAskBody, LearnBody

# Everything up to `through` is chosen and stands in the window: hand it on.
cdef void advance_chosen(Engine* e, Replica* r, u64 through) noexcept nogil
# Also over instances that were learned ahead of the others (after a restart).
cdef void advance_known(Engine* e, Replica* r) noexcept nogil
cdef void note_watermark(Engine* e, Replica* r, u64 ballot, u64 through) noexcept nogil
# Ask somebody for what is chosen up to `through` and missing here.
cdef void want(Engine* e, Replica* r, u64 through, u32 prefer) noexcept nogil
cdef void learn_tick(Engine* e, Replica* r) noexcept nogil
# No log brings this node on: of the members that are connected each has trimmed what comes next
# here, knows no more, or never says what it has; and one has trimmed it. Only a checkpoint does, or
# somebody who returns.
cdef bint stranded(Engine* e, Replica* r) noexcept nogil
# A member was connected, and may have what the others have trimmed: it is asked first.
cdef void peer_renewed(Engine* e, Replica* r, Peer* p) noexcept nogil
cdef void on_learn_ask(Engine* e, Replica* r, Peer* p, const LearnAskBody* ask) noexcept nogil
# `floor`: of the sender's members.
cdef void on_learn(Engine* e, Replica* r, Peer* p, u64 floor, const LearnBody* learn,
                   const u8* entries, u64 nbytes) noexcept nogil
# Send chosen entries (in the form of engine_supply) to a peer.
cdef void supply(Engine* e, Replica* r, Peer* p, u64 first, const u8* entries,
                 u64 nbytes) noexcept nogil
# One that has just been chosen, unasked.
cdef void supply_one(Engine* e, Replica* r, Peer* p, u64 instance, Block* body) noexcept nogil
# The body of a chosen instance, if in memory.
cdef Block* tail_entry(Replica* r, u64 instance) noexcept nogil
cdef void settled(Engine* e, Replica* r, u64 through) noexcept nogil
# Everything up to `through` (above chosen_through) is chosen, and stands in a checkpoint and not
# here: go on behind it. What is held up to there is forgotten, chosen or not; promise and
# acceptances above stay. Nothing of it is announced. The node must not lead the group.
cdef void jump(Engine* e, Replica* r, u64 through) noexcept nogil
# The last chosen instances are kept in memory no longer.
cdef void tail_drop(Engine* e, Replica* r) noexcept nogil
# Chosen since the settle plan was made, and still below `lsn`: emit them from memory, if `emit`.
# -1: one is not there any more.
cdef int carry_chosen(Engine* e, Replica* r, u64 lsn, bint emit) noexcept nogil
# What is settled is said again if it has grown, or if that was said below `lsn`: it is all that a
# store that is lost, or put back from a copy, leaves behind.
cdef void carry_settled(Engine* e, Replica* r, u64 lsn) noexcept nogil
# 0, or -1 for one that cannot be. The highest one counts, whatever the order of records.
cdef int replay_settled(Engine* e, Replica* r, const RecordHeader* header, u64 lsn) noexcept nogil
