"""What the poll thread publishes: of its groups, for reads that ask nobody (docs/design/reads.md);
of other nodes, how late they apply, for the gates (docs/design/flow.md).

Guarantee: `published_point` gives an instance R only if, at some moment after it was called, this
node held the lease of the group and R covered every instance that any node knew to be chosen.

    written   by the poll thread, after the engine's turn and before anything of it leaves
    read      by any thread, without a lock

Of a node: until when each peer granted, and the version of the led set that it has acknowledged.
Of a group: what is chosen, and whether it is led here. So a heartbeat costs the same whatever the
number of groups, and a group is written only when something of it changed. Each part has a sequence
that is odd while it is written. A group is looked at before the node and again after it: groups are
written first, so what is seen together is of one turn, or the lease is older than the group.
"""

from phx._core.native cimport *
from phx._core.state cimport SLOTS_MAX, Engine, leading_zeros

cdef enum:
    POINT_NOT_LED = 0            # or led and not ready: what phase 1 found is not chosen yet
    POINT_NO_LEASE = 1           # led, but a majority has not granted it, or not for long enough
    POINT_OK = 2

cdef struct PublishedNode:
    i64 sequence
    i64 own_slot
    i64 slots                    # of these; 0: nothing was published yet
    i64 until_us[SLOTS_MAX]      # of each peer's grant to this node
    i64 acked[SLOTS_MAX]         # version of the led set that it has acknowledged
    i64 heard_us[SLOTS_MAX]      # when its last heartbeat came in; 0: never
    i64 late_us[SLOTS_MAX]       # how late it applies; 0: in time, or it is not alive

cdef struct PublishedGroup:
    i64 sequence
    i64 leads                    # and everything that its phase 1 found is chosen
    i64 chosen_through
    i64 known_through            # what this node knows to be chosen anywhere
    i64 claim_version            # of the led set that has this leadership
    i64 refusing                 # members that do not grant it, as bits
    i64 voters                   # whose grants count, as bits
    i64 quorum                   # and how many

cdef enum:
    LATER_BITS = 6               # 2**6 groups in the first of these pieces; each has twice as many
    LATER_MAX = 16

cdef struct Published:
    i64 refs
    u32 count
    PublishedNode node
    PublishedGroup* groups       # by Replica.index,
    # and those beyond `count`: pieces that stay where they are, for somebody may be reading
    PublishedGroup* later[LATER_MAX]

cdef inline PublishedGroup* published_at(Published* p, u32 index) noexcept nogil:
    cdef u32 piece
    if index < p.count:
        return &p.groups[index]
    index -= p.count
    piece = 63 - <u32>leading_zeros((<u64>index >> LATER_BITS) + 1)
    return &p.later[piece][index - (((<u32>1 << piece) - 1) << LATER_BITS)]

# With one reference. Nothing is led before the first publish.
cdef Published* published_new(u32 groups) noexcept nogil
cdef Published* published_ref(Published* p) noexcept nogil
cdef void published_unref(Published* p) noexcept nogil
# Poll thread: there is a group with that index, or none any more; either way nothing is led there.
cdef void published_blank(Published* p, u32 index) noexcept nogil
# What has changed in this turn (Effects.republish), and then the node's grants. The engine was told
# nothing since that turn.
cdef void publish(Published* p, Engine* e, const vector[u32]* changed) noexcept nogil
# Until when the lease runs of what is led here, as it is published; a verdict. R: chosen_through.
# The caller reads the clock *after* this, and the lease runs if it shows less. POINT_NOT_LED, too,
# where it is written all the time that this looks: a few microseconds.
cdef int published_look(Published* p, u32 index, u64* chosen_through, u64* until_us) noexcept nogil
# A read point at the clock that `now_us` gives when it is called; a verdict.
cdef int published_point(Published* p, u32 index, u64 (*now_us)(void*) noexcept nogil,
                         void* context, u64* point) noexcept nogil

cdef class ReadPoints:
    cdef Published* p
    cdef dict index_of           # group: index
    cdef dict member_of          # node: index among the members
