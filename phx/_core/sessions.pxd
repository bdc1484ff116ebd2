"""The replicated de-duplication table of one group (protocol.md, "Exactly once").

It is part of the replicated state: what it answers depends on the log alone, never on time or on
this node, so that every replica leaves out the same duplicates. Keeping only the highest sequence
of a session would lose 5 when 7 was chosen first; forgetting the session that was used least
recently would apply an old retry twice. Sessions end by log position: by a newer incarnation, and
where the group's members change, by their node being none of them any more.
"""

from phx._core.native cimport *

cdef enum:
    SEQUENCES_MAX = 65536        # of one node in one group, from the lowest outstanding one on
    SESSION_ROWS_MAX = 64        # nodes that ever proposed in a group
    AGREE = 4096                 # agreed instances: its multiples, the same on every node (or
                                 # those of Sessions.agreed_every)
    AGREED_MAX = 64              # of which the checksum is remembered

# What became of one sequence of one session (protocol.md, "Exactly once").
cdef enum Admission:
    ADMIT_APPLY = 0
    ADMIT_DUPLICATE = 1          # it was applied before
    ADMIT_STALE = 2              # below the low water, or of an older incarnation
    ADMIT_BEYOND = 3             # further above the low water than the table reaches

# One session: everything below `base` is done; above it, the ring of bits says what is.
cdef struct SessionRow:
    u32 node
    u32 incarnation
    u64 base                     # lowest sequence that may still be applied
    u64 n_set                    # bits set above base
    u64 capacity                 # bits: 0, or a power of two from 64 to SEQUENCES_MAX
    u64* bits                    # sequence s stands at bit s & (capacity - 1)

# Whether a table is to be copied when a Batch ends.
cdef enum Wanted:
    WANTED_NOT = 0
    WANTED_AGREED = 1            # at the next agreed instance
    WANTED_ANY = 2               # wherever the next Batch ends

cdef struct SessionTable:
    u32 group
    u32 digest                   # CRC-32C chained over everything admitted, in log order
    u64 next                     # instance expected next
    u64 epoch                    # highest BodyHeader.epoch of all instances before it
    u64 covered                  # up to here the table was loaded: bodies are passed over
    u32* agreed                  # digests; of the n-th agreed one at n & 63. NULL: none
    u8 n_agreed                  # how many of the agreed instances before `next` it has
    u8 wanted                    # Wanted
    u32* members                 # their number, then their ids; NULL: they never changed; owned
    vector[SessionRow] rows      # ascending nodes

# Whether the ring says that `sequence` is done: base < sequence < base + capacity.
cdef inline bint session_done(const SessionRow* row, u64 sequence) noexcept nogil:
    cdef u64 at = sequence & (row.capacity - 1)
    return (row.bits[at >> 6] >> (at & 63)) & 1

# Everything below low_water is done with, applied or given up.
cdef void session_raise(SessionRow* row, u64 low_water) noexcept nogil
# An Admission; ADMIT_APPLY marks the sequence as done.
cdef int session_admit(SessionRow* row, u64 sequence) noexcept nogil
# The row of the run's session, renewed for a newer incarnation, its base raised to low_water.
# NULL: an older incarnation, or no member (*why = ADMIT_STALE), or no room for one more node
# (ADMIT_BEYOND).
cdef SessionRow* session_enter(SessionTable* table, u32 node, u32 incarnation, u64 low_water,
                               int* why) noexcept nogil

# From the next instance on only these nodes are members, of whatever role: the rows of all others
# end, and nothing of theirs is admitted any more (docs/design/membership.md, "Sessions"). All of
# this follows from the log. count 0: the members never changed.
cdef void session_members(SessionTable* table, const u32* nodes, u32 count) noexcept nogil

# Remembers the digest of the instance before `next`, an agreed one: a multiple of `every`.
cdef void sessions_agree(SessionTable* table, u64 every) noexcept nogil

# Frees every row of a table, what it remembers of agreed instances, and its members.
cdef void sessions_free(SessionTable* table) noexcept nogil
