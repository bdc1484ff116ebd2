"""The reference: what was proposed, who accepted what, what is decided, what machines must see.

It is built from what the nodes write and send, never from what they believe: an instance is
decided as soon as a quorum of journals holds an acceptance of one value in one ballot, whether or
not any node knows. The invariants (invariants.pxd) compare the nodes with it. (Where the members
of groups change, who makes a quorum depends on the instance, and more is asked of a ballot:
configurations.pxd.)
"""

from phx._core.native cimport *
from phx._core.sessions cimport SessionTable

cdef extern from "<unordered_map>" namespace "std" nogil:
    cdef cppclass unordered_map[K, V]:
        unordered_map()
        V& operator[](const K&)
        size_t count(const K&)
        size_t size()

cdef enum OpVerdict:
    OP_OPEN = 0
    OP_REJECTED = 1
    OP_UNKNOWN = 2

cdef struct Op:                  # one proposed value; its number is in its first eight bytes
    u64 sequence
    u64 hash                     # of its bytes
    u32 group
    u32 node
    u32 incarnation
    u8 verdict
    bint decided                 # it stands in a decided instance
    bint applied                 # and the log applies it
    bint acked                   # and its caller was told

cdef struct Item:                # one value in a body
    u64 op
    u64 sequence
    u64 low_water
    u32 node
    u32 incarnation

cdef struct Value:               # a body
    u64 hash
    u64 epoch
    u64 time_us
    size_t items                 # in Reference.items
    u32 count
    u32 change                   # in Reference.changes; 0: it changes no members

cdef struct Vote:                # one ballot of an instance
    u64 ballot
    u32 value
    u32 held                     # nodes that have the acceptance in this life, as bits
    u32 synced                   # and that have it durably
    u32 written                  # or, in a group that was relaxed, have it written
    u32 counted                  # or once had, and lost it: with the journal, or as it was written

cdef struct Cell:                # one instance
    vector[Vote] votes
    u64 decided_ballot           # the first in which a quorum had it
    u32 decided                  # its value; 0: not decided
    u32 known                    # nodes that hold it durably as learned, as bits
    u32 heard                    # and, of relaxed ones, that have that written
    u32 chain                    # the chained checksum after it, as first seen
    bint chained                 # it was seen

cdef struct Row:                 # exactly once: one node's session
    vector[u8] done              # by sequence
    u64 base
    u32 incarnation

cdef struct Applied:             # what a machine must see, in this order
    u64 instance
    u64 op
    u32 index

cdef struct Change:              # a body that changes the members; nodes as bits
    u64 version
    u32 voters
    u32 witnesses                # of the voters
    u32 members                  # of any role

cdef struct Configuration:       # who decides above an instance
    u64 instance                 # of the value that made them; 0: they are the first
    Change who
    bint active                  # it was found to be
    u64 lowest_epoch             # of those that programs heard of; 0: none
    u64 highest_epoch

cdef struct Fate:                # of a ballot, where members may change
    u64 ballot
    u64 version                  # of the members whose leader uses it; 0: not known
    u64 differs                  # the first instance at which it proposed another value than is
                                 # decided; 0: none
    u64 change                   # the instance at which it proposed other members; 0: none

cdef struct Log:                 # of one group
    vector[Cell] cells           # by instance
    vector[Applied] applied
    vector[Row] rows             # by node index
    u64 base                     # it begins behind this instance, which says who its members are
    u64 end                      # everything up to here is decided
    u64 decided                  # instances, also beyond a gap
    u32 members                  # whose entries are applied from here on, as bits
    vector[Configuration] configurations  # by version; none: the members cannot change
    vector[Fate] fates

cdef struct Reference:
    u32 nodes
    u32 quorum
    vector[Log] logs             # by group
    vector[Op] ops
    vector[Item] items
    vector[Value] values         # [0] stands for none
    vector[Change] changes       # likewise
    vector[u32] by_hash          # numbers of values, in a table whose size is a power of two
    unordered_map[u64, u64] states   # by group and instance: a machine's digest, as first seen
    unordered_map[u64, u64] tables   # the same: hash of a session table that was found right
    unordered_map[u64, u64] written  # by hash of what machines wrote: of which group, plus one
    u64 duplicates               # left out by the log
    u64 values_decided
    u64 noops_decided
    u64 late_decisions           # in a ballot below the highest one proposed

cdef u64 hash_bytes(const u8* data, u64 count) noexcept nogil
cdef Reference* reference_new(u32 nodes, u32 groups) noexcept nogil
cdef void reference_free(Reference* ref) noexcept nogil
# The number of a body, which is taken in if it is new; 0, and *why, if it cannot be (U2).
cdef u32 reference_value(Reference* ref, u32 group, const u8* data, u64 count,
                         const char** why) noexcept nogil
cdef Cell* reference_cell(Reference* ref, u32 group, u64 instance) noexcept nogil
# The vote of this ballot, made if it is new, then with `value`.
cdef Vote* cell_vote(Cell* cell, u64 ballot, u32 value) noexcept nogil
# The node has the acceptance, and it counts: did that make a quorum just now?
cdef bint vote_counted(Reference* ref, Vote* vote, u32 node) noexcept nogil
# The highest ballot in which the node has an acceptance, durably or written; 0: in none.
cdef u64 cell_kept_ballot(const Cell* cell, u32 node) noexcept nogil
# In this one it has it durably. And: it has it written?
cdef bint cell_synced_in(const Cell* cell, u64 ballot, u32 node) noexcept nogil
cdef bint cell_written_in(const Cell* cell, u64 ballot, u32 node) noexcept nogil
# There is an acceptance of the node in the group that counts, and is only written.
cdef bint reference_only_written(const Reference* ref, u32 node, u32 group) noexcept nogil
# A life of the node is over: it holds nothing in memory. And: its journal is lost, too. Or, with
# the power of its machine, what was only written: so many acceptances.
cdef void reference_forget(Reference* ref, u32 node) noexcept nogil
cdef u64 reference_power(Reference* ref, u32 node) noexcept nogil
cdef void reference_lost(Reference* ref, u32 node) noexcept nogil
# The number of a new value; and who proposed it, under which name.
cdef u64 reference_op(Reference* ref) noexcept nogil
cdef void reference_named(Reference* ref, u32 node, u32 incarnation, u32 group, u64 sequence,
                          const u8* value, u64 count) noexcept nogil
# The instance is decided; the log grows if it was the next one. NULL, or what is broken by that.
cdef const char* reference_decide(Reference* ref, u32 group, u64 instance, u64 ballot,
                                  u32 value) noexcept nogil
# How many entries the log applies up to an instance.
cdef size_t log_applied(const Log* log, u64 through) noexcept nogil
# Are these the bytes of the group's session table after instance `through`, which is decided? NULL,
# or what differs; *chain is the checksum that they hold.
cdef const char* reference_table(Reference* ref, u32 group, u64 through, const u8* data, u64 count,
                                 u32* chain) noexcept nogil
# Is the chained checksum at an instance the one that was seen there first? And a machine's digest?
cdef bint reference_chain(Reference* ref, u32 group, u64 instance, u32 chain) noexcept nogil
cdef bint reference_state(Reference* ref, u32 group, u64 instance, u64 state) noexcept nogil
# A machine of the group wrote bytes of this hash. And: did one?
cdef void reference_wrote(Reference* ref, u32 group, u64 hash) noexcept nogil
cdef bint reference_loaded(Reference* ref, u32 group, u64 hash) noexcept nogil
