"""Read points that are asked for: up to which instance a linearizable read has to see the log.

Guarantee. A ticket is told once: a point that is at least every instance that any node knew to be
chosen at some moment at or after the ticket was taken, or a verdict. What vouches for a point is in
points.pxd; docs/design/reads.md has the argument.

Who asks sends one question at a time to each leader, for all groups; one of quorum reads goes to
all that vote. Questions of a life are numbered as they are sent, whoever they go to (rounds). A
ticket notes its *first*: the first question that was sent after it was taken. An answer to that one
or to a later one is good for it, however late it comes and whoever gave it: what it names was true
when the question came in, or after, and the ticket had been taken by then. An answer to an earlier
question may be too old. So a question that is asked again takes nothing from those before it, and
answers may take longer than the pause between two.
"""

from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport ReadPointBody

cdef enum:
    READS_MAX = 65536            # tickets of this node's callers

cdef enum ReadFlag:
    READ_QUORUM = 1              # ask a majority: it takes no leader to know the point

# 0, or a Verdict.
cdef int read_take(Engine* e, Replica* r, u64 ticket, u32 flags, u64 deadline_us) noexcept nogil
cdef void on_read_point(Engine* e, Peer* p, u8 flags, const ReadPointBody* told,
                        const u8* points) noexcept nogil
# The connection has ended, and with it what was asked over it.
cdef void reads_lost(Engine* e, Peer* p) noexcept nogil
# The group is hosted no more: what waits of it is refused, and asked for by nobody.
cdef void reads_drop(Engine* e, Replica* r) noexcept nogil
# After everything that was told in this turn, before the heartbeats.
cdef void reads_turn(Engine* e) noexcept nogil
# The next time at which reads_turn has something to do.
cdef u64 reads_at(Engine* e) noexcept nogil
cdef void reads_free(Engine* e) noexcept nogil
