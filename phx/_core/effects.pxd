"""How the engine's rooms write their effects: records, messages, events, timers.

Two lanes lead to each peer. `now` needs no record of ours to be durable first: Accepts, questions,
answers that expose nothing. `later` leaves once everything emitted so far is durable: whatever
exposes a promise or an acceptance, and a Prepare, which must not outrun the sender's own promise
(rule 1 of ARCHITECTURE.md).
"""

from phx._core.native cimport *
from phx._core.state cimport *

cdef enum:
    ANSWER_BYTES_MAX = 33554432  # long answers to one peer in one turn; the last may go beyond

cdef enum Lane:
    LANE_NOW = 0
    LANE_LATER = 1

# Append a record; its position. *lsn_end (if given) is the position after it. A mark precedes the
# first record of a turn when there is news about durability.
cdef u64 emit_record(Engine* e, u8 kind, u32 group, u64 index, u64 ballot, const void* body,
                     u32 nbytes,
                     u64* lsn_end) noexcept nogil
# For another kind of emitting: the mark, and a record of which nothing is noted.
cdef void mark_first(Engine* e) noexcept nogil
cdef u64 put_record(Engine* e, u8 kind, u32 group, u64 index, u64 ballot, const void* body,
                    u32 nbytes) noexcept nogil
# Room for what is about to be filled, from what the last ones took: so that it need not be moved
# while it grows. It forgets a large one in a few turns.
cdef u64 hint(u64 before, u64 took) noexcept nogil
# The mark that ends a busy period: written, but nobody waits for it.
cdef void emit_idle_mark(Engine* e) noexcept nogil
cdef void send(Engine* e, Peer* p, int lane, u8 kind, u8 flags, u32 group, u64 ballot,
               const void* fixed, u32 nfixed, const void* body, u64 nbody) noexcept nogil
# May another long answer to this peer be begun in this turn? Otherwise it is as good as lost, and
# the peer asks again: a short question may cost a long answer, but not memory without end.
cdef inline bint answer_room(Peer* p) noexcept nogil:
    return p.answer_bytes < ANSWER_BYTES_MAX
# To every connected peer, as one shared frame.
cdef void broadcast(Engine* e, int lane, u8 kind, u8 flags, u32 group, u64 ballot,
                    const void* fixed, u32 nfixed, const void* body, u64 nbody) noexcept nogil
# To those of the slots in `to` that are connected: as one shared frame if no other peer is.
cdef void cast(Engine* e, u64 to, int lane, u8 kind, u8 flags, u32 group, u64 ballot,
               const void* fixed, u32 nfixed, const void* body, u64 nbody) noexcept nogil
# Close all frames being filled (end of the turn).
cdef void seal_frames(Engine* e) noexcept nogil
cdef void emit_event(Engine* e, u8 kind, u8 verdict, u32 group, u64 first_seq, u32 count,
                     u32 leader) noexcept nogil
# Tell callers when the group's leader is not the one they were told.
cdef void tell_leader(Engine* e, Replica* r) noexcept nogil

cdef void role_timer(Engine* e, Replica* r, u64 at_us) noexcept nogil
cdef void callers_timer(Engine* e, Replica* r, u64 at_us) noexcept nogil
cdef void learn_timer(Engine* e, Replica* r, u64 at_us) noexcept nogil
# 0 .. below-1, from the seed alone.
cdef u64 random_below(Engine* e, u64 below) noexcept nogil
# A protocol invariant broke: this group stops voting here, loudly; the others go on (rule 8).
cdef void halt_group(Engine* e, Replica* r, u8 why) noexcept nogil

cdef enum HaltReason:
    HALT_NEXT_BALLOT = 1         # no ballot is left
    HALT_CHOSEN_DIFFERS = 2      # two values chosen for one instance
    HALT_CHOSEN_EMPTY = 3        # an instance was counted as chosen that has no value here
    HALT_BAD_BODY = 4            # a chosen value that cannot be read, or cannot be chosen there
    HALT_SLOTS = 5               # members for whom no slot is left: engine_drop_peer of others
