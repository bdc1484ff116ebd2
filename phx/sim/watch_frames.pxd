"""What leaves a node, as bookkeeping: the entries of a Promise and of a Learn, and whose ballots.

It says what stands in a message; what may stand in it is claimed in invariants.
"""

from phx._core.native cimport *

cdef struct Entry:               # of a Promise (reported) or of a Learn (supplied; ballot, flags 0)
    u64 instance
    u64 ballot
    u32 flags
    u32 body_bytes
    const u8* body

cdef struct Entries:             # those that were not looked at yet
    const u8* at
    const u8* end
    u32 left

cdef struct Ballot:              # used in a Prepare or an Accept that left
    u64 ballot
    u64 life                     # in which it was used first
    u32 promised                 # nodes that promised it, as bits

# The next entry of a Promise, and of a Learn; False: there is none (any more).
cdef bint next_reported(Entries* entries, Entry* out) noexcept nogil
cdef bint next_supplied(Entries* entries, Entry* out) noexcept nogil
# What is known of a ballot; it is used in this life, if it was not before.
cdef Ballot* ballot_used(vector[Ballot]* used, u64 ballot, u64 life) noexcept nogil
