"""Groups of an engine that come and go: made, at its birth or while it runs; dropped; and freed.

An id may be used again, under a higher *generation*; (group, generation) is one group, and never
made twice. Guarantee: nothing of one reaches another of the same id. Records and messages bear the
generation (`space` of their headers), claims and read points likewise. A message or point of
another one is not looked at; a claim of another one is kept, and refused in every acknowledgement,
so that its leader does not take silence for a grant; a record of an older one is passed over in a
replay, if whoever keeps the list of groups has told of the end of that one, and else is damage: to
pass over the votes of a group that is hosted would be to forget them (U4).

A group that is dropped leaves no trace but that: its place in `Engine.replicas` is a hole, which
the next one takes; its live records are carried over no more, and go with their segments. So it may
be dropped only when its votes are needed no more, or never: whoever asks for it answers for that.
"""

from phx._core.codec cimport RecordHeader
from phx._core.native cimport *
from phx._core.state cimport *

cdef enum:
    GENERATION_MAX = 65535       # of one id

# Other events are of the node: in `group` stands a node then, or nothing.
cdef inline bint event_of_group(u8 kind) noexcept nogil:
    return kind != EVENT_PEER_REFUSED and kind != EVENT_CEILING and kind < 64

# 0; or -1: there is one of that id, or there was one of that generation or a later one, or the
# numbers cannot be. Also in an engine that runs.
cdef int group_add(Engine* e, u32 group, u32 generation, u64 settled_through) noexcept nogil
# There never will be a group of this id and generation, or of an older one, any more.
cdef void group_gone(Engine* e, u32 group, u32 generation) noexcept nogil
# As engine_drop_group.
cdef void group_drop(Engine* e, Replica* r) noexcept nogil
# Appends (id << 32 | index) of every group, by ascending id (who came late has a high index); how
# many there are then.
cdef size_t groups_in_order(Engine* e, vector[u64]* out) noexcept nogil
# Whether a record that is replayed, of `r` or of no group that is hosted, is of a group that is
# gone: 1; of the one that is hosted: 0; or of none that should be there: -1.
cdef int record_of_other(Engine* e, Replica* r, const RecordHeader* header) noexcept nogil
# All that a replica owns, and itself.
cdef void replica_free(Engine* e, Replica* r) noexcept nogil

# The group of that index is dropped: it stands in this line no more.
cdef inline void index_purge(vector[u32]* line, u32 index) noexcept nogil:
    cdef size_t i, kept = 0
    for i in range(line.size()):
        if line[0][i] != index:
            line[0][kept] = line[0][i]
            kept += 1
    line.resize(kept)
