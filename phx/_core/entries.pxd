"""Values as apply sees them: made, one by one, from the bodies of chosen instances.

Entry     one value
Passage   the bodies of a stretch of one group's log, and where the values that were admitted stand
Entries   a Sequence of Entry over (a part of) a passage; nothing is copied before it is looked at

A machine that walks over thousands of entries so uses the same few objects again and again, and one
that looks at none pays for none.
"""

from phx._core.native cimport *

cdef class Entry:
    cdef readonly u32 group
    cdef readonly u32 index              # position among all values of the instance
    cdef readonly u32 machine
    cdef readonly u32 node               # that took the proposal
    cdef readonly u64 instance
    cdef readonly u64 epoch              # ballot of the leader that packed it: the fencing token
    cdef readonly u64 time_us            # wall clock of that leader
    cdef readonly u64 sequence           # of this node's own caller in this incarnation; else 0
    cdef readonly bytes value

# Consecutive values of one run of one instance, all admitted.
cdef struct Stretch:
    u64 instance
    u64 epoch
    u64 time_us
    u64 sequence         # of the first, in this incarnation of this node; 0: nobody waits here
    size_t first         # place of the first among the passage's items
    u32 count
    u32 index            # of the first among all values of the instance
    u32 node

cdef class Passage:
    cdef u32 group
    cdef vector[Block*] bodies           # a reference to each
    cdef vector[const u8*] items         # in the bodies
    cdef vector[Stretch] stretches       # ascending; together they are all items
    cdef void hold(self, Block* body) noexcept
    # The next items are of this stretch; its `first` and `count` are filled in here.
    cdef void begin(self, const Stretch* stretch) noexcept
    cdef inline void add(self, const u8* item) noexcept:
        cdef Stretch* last = &self.stretches.back()
        self.items.push_back(item)
        last.count += 1
    cdef size_t stretch_of(self, size_t at) noexcept
    cdef Entry entry(self, size_t at, const Stretch* stretch)

cdef class Entries:
    cdef Passage passage
    cdef size_t start
    cdef size_t stop

cdef Entries entries_of_passage(Passage passage, size_t start, size_t stop)
