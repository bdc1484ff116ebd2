"""The acceptor: what this node has promised and accepted, and what it says about it.

A promise is one ballot for the whole group; it only grows (rule 3). Every answer that exposes
a promise or an acceptance waits for its record (`later` lane), and so does the answer to a
duplicate. Lamport, Paxos Made Simple, section 2.2: P1a, P2c; the acknowledgement is cumulative.
"""

from phx._core.codec cimport RecordHeader
from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport AcceptBody, PrepareBody

# Promise `ballot` (higher than any before) in this group; the record is emitted.
cdef void promise(Engine* e, Replica* r, u64 ballot) noexcept nogil
# Send what was accepted from max(first, chosen_through + 1) on, in pages.
cdef void report(Engine* e, Replica* r, Peer* p, u64 ballot, const PrepareBody* ask,
                 const u8* holds) noexcept nogil
# Store a value under `ballot` (which is promised); the record is emitted. Position after it.
cdef u64 accept(Engine* e, Replica* r, u64 ballot, u64 instance, Block* body) noexcept nogil
# An Accept whose ballot may be followed: promise it, take the value, remember to acknowledge.
cdef void follow(Engine* e, Replica* r, Peer* p, u64 ballot, const AcceptBody* a,
                 const u8* body) noexcept nogil
# One cumulative Accepted for everything followed in this turn.
cdef void acknowledge(Engine* e, Replica* r) noexcept nogil
cdef void refuse(Engine* e, Replica* r, Peer* p, u64 ballot, u32 reason, u32 leader) noexcept nogil

cdef int replay(Engine* e, Replica* r, const RecordHeader* header, const u8* body,
                u64 lsn) noexcept nogil
# Emit again whatever live state stands in records below `lsn`.
cdef void carry_over(Engine* e, Replica* r, u64 lsn) noexcept nogil
