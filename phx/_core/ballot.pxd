"""Packed ballots: a 44-bit counter above a 20-bit node id, compared as one unsigned word.

0 is "none". Counter 0 with a node is reserved for ballots owned without a phase 1 (other kinds).
A counter grows by one at a time; at the top it is refused, never wrapped (ballot_next gives 0).
"""

from phx._core.native cimport u32, u64

cdef enum:
    BALLOT_NODE_BITS = 20
    NODE_ID_MAX = 0xFFFFF

cdef inline u64 ballot_make(u64 counter, u32 node) noexcept nogil:
    return (counter << BALLOT_NODE_BITS) | node

cdef inline u64 ballot_counter(u64 ballot) noexcept nogil:
    return ballot >> BALLOT_NODE_BITS

cdef inline u32 ballot_node(u64 ballot) noexcept nogil:
    return <u32>(ballot & NODE_ID_MAX)

# The lowest ballot of `node` with a higher counter than `above`; 0 when there is none left.
cdef u64 ballot_next(u64 above, u32 node) noexcept nogil

# A counter this far above the highest known one is hostile: one corrupt maximal ballot would
# otherwise brick a group for ever (docs/design/protocol.md).
cdef inline bint ballot_hostile(u64 ballot, u64 highest_known) noexcept nogil:
    return ballot_counter(ballot) > ballot_counter(highest_known) + (<u64>1 << 32)
