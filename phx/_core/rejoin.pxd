"""Rejoin: how a replica that may have lost promises or acceptances votes again.

A replica is *suspect* when its journal was lost: it may have promised, accepted and granted what it
does not know of. It answers no PreVote, Prepare or Accept and grants nothing; it learns, supplies
what it knows chosen, and takes values of its callers. It becomes whole by leading once, in a ballot
above all that it can ever have promised, after phase 1 with promises of so many *others* that every
majority which it may have belonged to has a member among them, and after it has accepted, durably,
all that they told. The proof is in docs/design/protocol.md, "Rejoin".

The *ceiling* makes it possible: a counter that no promise of this node, in any group, is above,
kept outside the journal and durable before the first promise that needs it. Paxos Made Live
(Chandra, Griesemer, Redstone 2007, section 5.1) lets such a replica vote again once it has seen an
instance decided; that is not safe here (the model in docs/design/model shows a run).
"""

from phx._core.codec cimport RecordHeader
from phx._core.native cimport *
from phx._core.state cimport *

cdef enum:
    CEILING_STEP = 1048576       # the ceiling is raised by so much, when half of it is left

# May this ballot be promised? If not it is put off: whoever asked asks again. Says when the ceiling
# should be raised (EVENT_CEILING).
cdef bint under_ceiling(Engine* e, u64 ballot) noexcept nogil
# What a ballot of this replica's own must be above, besides what it has promised and seen.
cdef u64 ballot_base(Engine* e, Replica* r) noexcept nogil
# The ballot in which this replica would lead next; 0: there is none left.
cdef u64 own_ballot(Engine* e, Replica* r) noexcept nogil
# Members that must answer before phase 1, or a pre-vote, has succeeded; this node is one of them.
cdef u32 answers_needed(Replica* r) noexcept nogil
# A suspect replica may campaign: its ceiling is known, and there are others.
cdef bint may_rejoin(Engine* e, Replica* r) noexcept nogil
# When a suspect replica that hears a leader looks again; 0: it is not suspect.
cdef u64 rejoin_at(Engine* e, Replica* r) noexcept nogil
# The leader, which is heard, is to hand over: asked as soon as enough members have said that they
# can follow the ballot that comes of it. (Else those that do could go back to no other, and those
# that do not be no majority with them.)
cdef void rejoin_ask(Engine* e, Replica* r) noexcept nogil
# What a PreVote of this replica says of the ballot in which it would lead.
cdef u64 asked_ballot(Engine* e, Replica* r) noexcept nogil
# At a suspect replica: a member has answered such a PreVote.
cdef void rejoin_answered(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags) noexcept nogil
# May it begin phase 1? Also of one that is not suspect.
cdef bint may_prepare(Engine* e, Replica* r) noexcept nogil
# At a suspect leader, whenever something has become durable or chosen: is it whole?
cdef void rejoin_done(Engine* e, Replica* r) noexcept nogil

cdef int replay_suspect(Replica* r, const RecordHeader* header, const u8* body,
                        u64 lsn) noexcept nogil
# Emit again that a group is suspect, if its record lies below `lsn`.
cdef void carry_suspect(Engine* e, Replica* r, u64 lsn) noexcept nogil
