"""What phase 1 finds: by instance what was accepted or is chosen, and when that is enough to lead.

What only acceptances know: leading where no log says what somebody knows to be chosen.

A member may know that instances are chosen and not say any more what they are: it settled them
and lost its store, or trimmed them under a checkpoint that is gone. If those that accepted them
never heard that they were chosen (all power failed), no log supplies them, no checkpoint reaches
so far, and whoever leads is to learn them before it proposes. But a quorum may still report what
it accepted there. Phase 1 over that quorum alone, without those that only say "chosen", is phase
1 as in Lamport 2001 ("Paxos Made Simple", section 2.2, P2c): the value of the highest ballot that
it reports is proposed again. The argument is in docs/design/protocol.md, "What only acceptances
know".

It is done only by who is stranded (learner.pxd), as to learn is cheaper; and only if there is
something to adopt at each instance in question: where there is none, a ballot above this one
chose it, and this leadership stands back.
"""

from phx._core.state cimport *

# Where what is reported of an instance is gathered. Valid until the next call.
cdef Reported* reported_at(Phase1* phase1, u64 instance) noexcept nogil
# One report more: the value of the highest ballot counts, a chosen one before any (P2c).
cdef void weigh(Reported* best, u64 ballot, bint chosen, Block* value) noexcept nogil

cdef enum AfterPhase1:
    AFTER_WAIT = 0               # for what others know, or for promises that are still to come
    AFTER_LEAD = 1
    AFTER_GIVE_UP = 2

# Of who is stranded: so many members that have not trimmed what comes next are connected that a
# phase 1 may find out what it is.
cdef bint may_be_told(Engine* e, Replica* r) noexcept nogil
# Of who has a quorum's promises (ROLE_LEARNING): what comes of it. An attempt that failed is
# counted.
cdef AfterPhase1 after_phase1(Engine* e, Replica* r) noexcept nogil
