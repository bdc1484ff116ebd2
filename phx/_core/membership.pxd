"""Who the members of a group are, since when, and the slots of the nodes that may be some.

A `Config` says who votes, by slots of the node's peers, and what follows from that: how many make a
quorum, in which order they are preferred as leaders. Groups with the same members share one, which
lives as long as some group has it; so a group pays for a pointer. What differs between such groups
(since which instance they have it, above which ballot) does not stand in it, but in `Membership`,
which only groups have whose members were ever changed.

A value that changes the members is a barrier at its instance i: up to i the members before decide,
above i these, in ballots above a floor (docs/design/membership.md, sections 2 and 3). What a node
does when it passes i stands here; what is said about it in barrier.pxd.
"""

from phx._core.batch cimport BODY_MEMBERSHIP
from phx._core.codec cimport RecordHeader
from phx._core.members cimport Roster
from phx._core.native cimport *
from phx._core.state cimport *

# Everything below what made its members is known here: else this node has no say above (M4).
cdef inline bint knows_below(Replica* r) noexcept nogil:
    return r.members == NULL or r.chosen_through >= r.members.instance

# Nothing but a tombstone is left of it here: the group goes on without this node.
cdef inline bint is_removed(Replica* r) noexcept nogil:
    return (r.members != NULL
            and r.members.flags & (MEMBERS_ACTIVE | MEMBERS_LEFT) == MEMBERS_ACTIVE | MEMBERS_LEFT)

# Its last value is chosen. Whoever has passed it, or was told of it as barrier.pxd says, has left;
# it keeps log and votes for those that have not, until the group is dropped.
cdef inline bint is_ended(Replica* r) noexcept nogil:
    return r.members != NULL and r.members.flags & MEMBERS_ENDED != 0

# This node may promise and accept in the group, as far as its members go.
cdef inline bint votes_in(Engine* e, Replica* r) noexcept nogil:
    return has_vote(r, e.own_slot) and knows_below(r) and not is_removed(r)

# Ballots up to here are of members before these.
cdef inline u64 floor_of(Replica* r) noexcept nogil:
    return 0 if r.members == NULL else r.members.floor

# Its leader has proposed other members: that is not known to be chosen yet.
cdef inline bint changing(Replica* r) noexcept nogil:
    return r.members != NULL and r.members.change != 0

# Peers that may have its log.
cdef inline u64 sources(Replica* r) noexcept nogil:
    if r.members == NULL:
        return r.config.members
    return r.config.members | r.members.before | r.members.tellers

# This node leads only to have a membership value chosen that its phase 1 found.
cdef inline bint only_ends(Replica* r) noexcept nogil:
    return r.lead != NULL and r.lead.claim_version == NO_CLAIM

# The node's peers, as its options have them: a slot for each.
cdef void slots_begin(Engine* e) noexcept nogil
# The slot of the node; the lowest that is free if it has none. -1: that is no node's id, or there
# are SLOTS_MAX.
cdef int slot_take(Engine* e, u32 node) noexcept nogil
# Whether some group counts the node at this slot among its members.
cdef bint slot_used(Engine* e, u32 slot) noexcept nogil
# Nothing is remembered of the node that had it, which is not connected and a member of no group.
cdef void slot_free(Engine* e, u32 slot) noexcept nogil
# The group has these members from now on, slots as bits: `voters` (1 to MEMBERS_MAX of them, the
# witnesses too), and `learners`, none of which votes. Not while this node leads the group.
cdef void config_set(Engine* e, Replica* r, u64 voters, u64 witnesses, u64 learners) noexcept nogil
# The group goes.
cdef void config_drop(Engine* e, Replica* r) noexcept nogil
# Voters that are connected, this node not among them.
cdef u32 voters_connected(Engine* e, Replica* r) noexcept nogil
# What there is to remember, from now on.
cdef Membership* membership_of(Replica* r) noexcept nogil
cdef void membership_free(Replica* r) noexcept nogil
# A leadership ends: what it was to propose is dropped.
cdef void change_dropped(Replica* r) noexcept nogil
# MEMBERS_LEFT if this node was a member and is none of these, else 0; of no members MEMBERS_ENDED,
# too, and MEMBERS_ACTIVE: there is nobody to wait for.
cdef u8 left_flag(Engine* e, Replica* r, const Roster* roster) noexcept nogil
# The slots of these members; who has none is given one: who votes is known from now on, and whoever
# hears of it connects with them (EVENT_MEMBERS). False: there are none left for some of them.
cdef bint roster_slots(Engine* e, const Roster* roster, u64* voters, u64* witnesses,
                       u64* learners) noexcept nogil

# --- passing the barrier
cdef enum Passing:
    PASS_PLAIN = 0               # it changes nothing that is not known here
    PASS_NEXT = 1                # then members_pass
    PASS_NOT = 2                 # not now: a leader or candidate ends first; or the group is halted

# The value at the next instance is chosen. May it be passed?
cdef inline bint is_change(Block* body) noexcept nogil:
    return body.data[0] == BODY_MEMBERSHIP

cdef int passing(Engine* e, Replica* r, u64 instance, Block* body) noexcept nogil
# It was, and is the last one: its members are those of the group from now on; durably, in the
# record that is emitted here, before this node votes above. Nothing accepted above is kept, and the
# promise is at least the floor: the ballot in which the value was counted as chosen (M4).
cdef void members_pass(Engine* e, Replica* r, u64 instance, Block* body) noexcept nogil
# These are the members, as a store, a checkpoint or a tombstone says. Theirs are newer than those
# known here, and have slots unless MEMBERS_LEFT is among the flags; the group is not led from here.
cdef void members_set(Engine* e, Replica* r, const Roster* roster, Block* value, u64 instance,
                      u64 floor, u8 flags) noexcept nogil
# More is chosen: what follows for the members. (Above their instance only they choose: M6.)
cdef void members_advanced(Engine* e, Replica* r) noexcept nogil
cdef void members_active(Engine* e, Replica* r) noexcept nogil
# What the record of a chosen value says beside it: with one that changes members the floor.
cdef u64 floor_with(Replica* r, Block* body) noexcept nogil

cdef void members_status(Replica* r, GroupMembers* out) noexcept nogil

# --- records
# 0, or -1 for one that cannot be. The highest version counts, whatever the order of records.
cdef int replay_members(Engine* e, Replica* r, const RecordHeader* header, const u8* body,
                        u64 lsn) noexcept nogil
# A store or a checkpoint says this, before the start.
cdef void members_told(Replica* r, const Roster* roster, Block* value, u64 instance, u64 floor,
                       u8 flags) noexcept nogil
# All is replayed. Of what was accepted here: it is chosen up to the instance if a record of these
# members says that all of it was here, and gone above it in ballots of the members before.
cdef void members_begin(Engine* e, Replica* r) noexcept nogil
# Like a promise; behind the values.
cdef void carry_members(Engine* e, Replica* r, u64 lsn) noexcept nogil

# Zeroed memory of so many elements of `size` bytes; phx_free.
cdef void* by_slot(u32 width, u64 size) noexcept nogil
