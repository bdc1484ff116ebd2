"""The claims about members that change (U10): docs/design/membership.md, section 2.

Decided is what a quorum of the configuration of that very instance has accepted, in a ballot of
that configuration, together with all that the ballot proposed below (configurations.pxd); so U1 and
U3 say of every version that nobody else has decided anything in it. Beside them:

    M1  other members are proposed when all below is decided, by a ballot that has proposed nothing
        above
    M2  and nothing is proposed above them in that ballot, by whoever proposes or adopts them
    M3  a ballot is one of one version; who votes in it has a vote there
    M4  what leaves about a version above the first: its sender knows that version durably
    M6  active: something is decided above i, and a quorum of the new voters holds everything up to
        i, durably
        whoever ended stays so, neither votes nor leads, and is no member by what is decided
        whoever leads has a vote
        an epoch of newer members is above all of older ones
    S1  a store that is settled through j knows the members that hold above j

Members that a node counts are always some that were decided, from the instance where they were.
"""

from phx._core.codec cimport RecordHeader
from phx._core.native cimport *
from phx._core.state cimport Replica
from phx._core.wire cimport MessageHeader
from phx.sim.invariants cimport NodeWatch, Watch
from phx.sim.reference cimport Vote
from phx.sim.watch_records cimport Written

# Members of groups may change; the first ones are these voters, as bits.
cdef void watch_members(Watch* w, u32 voters) noexcept nogil
# An acceptance is durable.
cdef void members_accepted(Watch* w, u32 node, u32 group, u64 instance, u64 ballot) noexcept nogil
# Somebody writes, sends or holds the value of a ballot.
cdef void members_proposed(Watch* w, u32 node, u32 group, u64 instance, Vote* vote) noexcept nogil
# A record, and what is kept of it. And: an acceptance that is new in this life.
cdef void members_emitted(Watch* w, NodeWatch* n, const RecordHeader* header, const u8* body,
                          Written* out) noexcept nogil
cdef void members_votes(Watch* w, NodeWatch* n, const RecordHeader* header) noexcept nogil
cdef void members_durable(NodeWatch* n, const Written* one) noexcept nogil
cdef void members_started(Watch* w, NodeWatch* n) noexcept nogil
cdef void members_sent(Watch* w, NodeWatch* n, const MessageHeader* m) noexcept nogil
cdef void members_step(Watch* w, NodeWatch* n, Replica* r) noexcept nogil
# The highest ballot in which the node must still hold its acceptance; 0: in none. Above the value
# by which its members became others, those in ballots of the members before are dropped.
cdef u64 members_kept(Watch* w, NodeWatch* n, Replica* r, u64 instance) noexcept nogil
# A node's program hears that it leads, in this epoch.
cdef void watch_leads(Watch* w, u32 node, u32 group, u64 epoch) noexcept nogil
# The store's row: settled through an instance, with the members of this version.
cdef void watch_members_row(Watch* w, u32 node, u32 group, u64 settled,
                            u64 version) noexcept nogil
# A store, a checkpoint or another node has told it of this version, and that is durable.
cdef void watch_members_told(Watch* w, u32 node, u32 group, u64 version) noexcept nogil
# It was a member of nothing any more, and all that it had is gone.
cdef void watch_wiped(Watch* w, u32 node) noexcept nogil
