"""Everything that must hold in every run: the invariants. Those of checkpoints are in watch_kept.

The watch is told of every record that a node emits, makes durable and replays, of every frame that
leaves, of everything that is handed to machines and callers, and looks into the engines
themselves. Claims are checked when they are made (incrementally, on what was touched), and in full
every few hundred steps. The first one that does not hold ends the run.

    U1  one value per (group, instance); what is proposed above a decision is that decision
    U2  decided is what was proposed, unchanged, in its group, or a no-op
    U3  decided stays decided: nobody calls chosen what no quorum holds; no acceptance that
        counted is missing after a restart; a journal gives back what was written, where it was
    U4  a promise never falls, over restarts too, and is at least every accepted ballot
    U5  nothing leaves before what it exposes is durable; no mark runs ahead. Of relaxed groups what
        is acknowledged need only be written (watch_relaxed)
    U6  one value per (ballot, instance); a ballot belongs to one leadership of one life
    U7  applied in order, once, and what the log says, with what was packed
    U8  nobody who was told "rejected" is chosen; nobody is told twice, or what was not applied
    U9a what a floor gives up is in a checkpoint, and a machine can be built from it
    U9b what a node says of its floor is what its store keeps; what is below is chosen, and it says
        so; nothing below is supplied
    U9c a state that is kept or taken on (sessions, chain, machine) is the log's at its instance
    U9d an install takes no promise back, and no acceptance behind its frontier
    U9e a restored machine gets exactly the instances behind its checkpoint
    U9f what a machine is restored from is what some machine wrote, every byte of it
    U9h what takes the place of a damaged entry of a store is what was decided there
    U9i a replica that is odd is found by the comparison that can know it, and no other one stops;
        what it answers from then on, and what it took of its state, counts no more (watch_odd)
    U9g nothing counts as settled, in memory or in a record, but what the store's row says
    U10r who lost its journal, or of a relaxed group what was only written, is counted by nobody
        before it has led once, above all that it can have promised, with promises of enough others
        (watch_lost, watch_relaxed)
    U10 decided by the members of its instance, in their ballots, and all else of watch_members
    U11 nobody decides while somebody else holds the lease; nobody else holds it
    U14 a read point covers what anybody knew to be chosen when its read began; what a node
        publishes is what its engine believes (watch_reads)
    U15 nobody takes part in a created group before its store says so, or when it has dropped it
        (watch_lives)
    bounded   rings, caches and queues keep to their limits

(U12 is checked at the end of a run.)
"""

from phx._core.codec cimport RecordHeader
from phx._core.native cimport *
from phx._core.state cimport Engine, Replica
from phx.sim.clock cimport Clock
from phx.sim.reference cimport Cell, Reference, Vote
from phx.sim.watch_frames cimport Ballot
from phx.sim.watch_records cimport Records, Written

cdef enum:
    WATCH_TEXT_BYTES = 320
    WATCH_KIND_BYTES = 24

cdef struct Seat:                # one node in one group
    u64 promised                 # written in this life
    u64 seen                     # and in the engine's memory
    u64 durable                  # promised durably, in any life
    u64 exposed                  # highest ballot that a message told of
    u64 through                  # chosen_through seen in this life
    u64 handed                   # last instance that the machines have: given, or restored
    u64 restored                 # of that, from a checkpoint at the beginning of this life
    size_t applied               # entries of the log that the machines have
    u64 kept                     # the store's row: kept from here on
    u64 row                      # and settled up to here
    u64 told                     # the engine's floor
    u64 told_turn                # frames that were made in this turn or later say it
    u64 acked_ballot             # the last Accepted that left: verified up to acked_through
    u64 acked_first
    u64 acked_through
    u64 before                   # the highest ballot that it can have promised before a loss
    bint lost                    # its votes are, and nothing durable says that it is whole again
    u64 lost_in                  # the last life before; 0: the records of those are gone, too
    bint said                    # and its journal has it, durably
    bint suspect                 # so the engine says in this life
    u64 odd                      # its state is not what was decided, from here on; 0: it is
    bint found                   # and a comparison has said so in this life
    bint marked                  # it is to be made anew, durably
    bint renewed                 # and has another state since
    bint relaxed                 # it may tell what is only written,
    u64 relaxed_until            # or might, in frames that were made up to this turn
    bint row_relaxed             # its store knows that
    u64 version                  # of members that it knows durably; 0: it knows the first
    u64 row_version              # and that its store knows, without the journal
    bint ended_durably           # it is none of them, and says so
    u64 ended                    # since this turn it says so in this life; 0: not
    bint hosts                   # its store says so, of a created group
    bint gone                    # or did, and never will again
    bint dropped                 # and its engine has it no more,
    u64 dropped_turn             # but frames that were made up to this turn

cdef struct Kept:                # an acceptance, before an install
    u64 instance
    u64 ballot
    u64 hash

cdef struct NodeWatch:
    u32 node
    u32 incarnation
    u64 life
    u64 durable                  # position
    Engine* engine               # NULL: it is down
    Clock* clock
    Records records              # in all lives
    u64 made                     # in which turn the frame was that leaves
    u64 turn                     # the last one, where members may change
    u64 ceiling                  # of its promises' counters, as its store has it
    u64 above                    # the same when this life began
    bint relaxes                 # groups of it may be relaxed
    vector[Seat] seats
    vector[vector[Ballot]] ballots   # by group

cdef struct MemberCounts:        # what happened to members, over all groups
    u64 changes                  # decided
    u64 adopted                  # by another leader than the one that packed it
    u64 disjoint                 # no voter before is one after
    u64 promoted                 # learners became voters
    u64 removed                  # members
    u64 leaders_left             # whoever had it decided is no voter any more
    u64 active
    u64 ended                    # replicas that heard that they are none any more
    u64 told_late                # of which: had not passed the change
    u64 tombstones               # answers of who ended
    u64 wiped                    # nodes

cdef struct Watch:
    Reference* ref
    u32 nodes
    u32 groups
    u32 configured               # of them; those above come and go
    u64 now_us
    u64 leases_from_us           # U11 is checked from then on (clocks were out of bounds before)
    bint leases_void
    vector[NodeWatch] node
    u64 value_bytes_max
    u64 checks
    vector[u64] known            # by group: the highest instance that any node took for chosen,
    vector[u64] announced        # and handed on, in the turn in which anybody can first hear of it
    u64 rejoin_asks
    u64 written_lost             # acceptances that were only written when the power went
    u64 promised                 # before the install under way
    vector[Kept] held            # likewise, above its frontier
    bint changing                # members of groups may change: see watch_members
    MemberCounts members
    # the first violation
    bint failed
    char kind[WATCH_KIND_BYTES]
    char text[WATCH_TEXT_BYTES]

cdef Watch* watch_new(u32 nodes, u32 groups) noexcept nogil
cdef void watch_free(Watch* w) noexcept nogil
cdef void watch_fail(Watch* w, const char* kind, const char* text) noexcept nogil
cdef void fail_at(Watch* w, const char* kind, u32 node, u32 group, u64 instance, u64 ballot,
                  const char* text) noexcept nogil
cdef inline NodeWatch* of(Watch* w, u32 node) noexcept nogil:
    return &w.node[node - 1]

# An acceptance is in the node's journal, durably or (of a relaxed group) at least written.
cdef void accepted(Watch* w, u32 node, u32 group, u64 instance, u64 ballot,
                   bint durably) noexcept nogil
# An instance is decided: the vote's value, in its ballot.
cdef void decide(Watch* w, u32 node, u32 group, u64 instance, Cell* cell,
                 Vote* vote) noexcept nogil

# --- a node's life
cdef void watch_replayed(Watch* w, u32 node, const RecordHeader* header, const u8* body,
                         u64 lsn) noexcept nogil

# --- its journal and its frames
cdef void watch_emitted(Watch* w, u32 node, const u8* data, u64 count, u64 lsn) noexcept nogil
cdef void watch_durable(Watch* w, u32 node, u64 lsn) noexcept nogil
# A frame leaves that was made in the node's turn `made`.
cdef void watch_sent(Watch* w, u32 node, const u8* frame, u64 count, u64 made) noexcept nogil

# --- its state, after a step that touched the group; and everything
cdef void watch_step(Watch* w, u32 node, u32 group) noexcept nogil
cdef void watch_full(Watch* w) noexcept nogil
cdef void watch_leases(Watch* w) noexcept nogil

# --- machines
cdef void watch_chosen(Watch* w, u32 node, u32 group, u64 instance, const u8* body,
                       u64 count) noexcept nogil
cdef void watch_applied(Watch* w, u32 node, u32 group, u64 instance, u32 index, u64 op, u64 epoch,
                        u64 time_us) noexcept nogil
# The chained checksum after an instance.
cdef void watch_chain(Watch* w, u32 node, u32 group, u64 instance, u32 chain) noexcept nogil
