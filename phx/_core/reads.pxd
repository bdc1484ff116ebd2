"""Read points: up to which instance a linearizable read has to see the log.

A point is at least every instance that any node knew to be chosen at some moment at or after the
read began. It comes from the leader, whose chosen_through is one while nothing above its ballot is
chosen: under its lease, or when a majority has granted its claim in a heartbeat that was sent after
the question came. Or, as a quorum read, from a majority itself: nothing is chosen above the last
instance that each of them accepted. docs/design/reads.md has the argument.

Who asks sends one question to each leader at a time, for all groups. Reads that begin meanwhile are
in the next one: an answer that is on its way when a read begins may be too old for it.
"""

from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport HeartbeatAckBody, ReadAskBody, ReadPointBody

cdef enum:
    READS_MAX = 65536            # tickets of this node's callers

cdef enum ReadFlag:
    READ_QUORUM = 1              # ask a majority: it takes no leader to know the point

# 0, or a Verdict.
cdef int read_take(Engine* e, Replica* r, u64 ticket, u32 flags, u64 deadline_us) noexcept nogil
# Something of the group has changed: its reads are looked at in this turn. It has some.
cdef void reads_line(Engine* e, Replica* r) noexcept nogil
cdef void on_read_ask(Engine* e, Peer* p, u8 flags, const ReadAskBody* ask,
                      const u8* groups) noexcept nogil
cdef void on_read_point(Engine* e, Peer* p, u8 flags, const ReadPointBody* told,
                        const u8* points) noexcept nogil
# A heartbeat was answered, by the newest answer so far that says what is not granted.
cdef void reads_acked(Engine* e, Peer* p, const HeartbeatAckBody* ack) noexcept nogil
# The connection has ended, and with it what was asked over it.
cdef void reads_lost(Engine* e, Peer* p) noexcept nogil
# After everything that was told in this turn, before the heartbeats.
cdef void reads_turn(Engine* e) noexcept nogil
# The next time at which reads_turn has something to do.
cdef u64 reads_at(Engine* e) noexcept nogil
cdef void reads_free(Engine* e) noexcept nogil
