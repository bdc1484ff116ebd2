"""Connections of peers that came for a checkpoint or for values, on their way to Python.

Such a connection says FETCH where others say HELLO. It is checked like one, taken out of the
transport's table, and waits here with what was read of it until Python takes it. The poll thread
moves none of its bytes.

Payload of a FETCH frame: HELLO's 40 bytes, then what is wanted (docs/reference/transfer.md).
"""

from phx._core.codec cimport FrameHeader
from phx._core.native cimport *
from phx._core.port cimport PhxFds, pthread_mutex_t
from phx._core.transport cimport Hello, Transport

cdef enum:
    HANDED_MAX = 16              # connections that wait for Python; more are closed

cdef struct HandedOver:
    int fd                       # still in the table of descriptors
    u32 peer
    Block* said                  # the FETCH frame, and what came behind it

cdef struct Handover:            # one lock, held for a few moves of memory
    pthread_mutex_t lock
    vector[HandedOver] waiting

cdef void handover_init(Handover* q) noexcept nogil
# Nobody takes them any more: closes those that wait.
cdef void handover_close(Handover* q, PhxFds* fds) noexcept nogil
cdef void handover_destroy(Handover* q) noexcept nogil
# Poll thread. Takes descriptor and reference, or (False: too many wait) neither.
cdef bint handover_push(Handover* q, int fd, u32 peer, Block* said) noexcept nogil
# Python. All that wait; descriptors and references are the caller's, and out of the table.
cdef void handover_take(Handover* q, PhxFds* fds, vector[HandedOver]* out) noexcept nogil

# --- what both kinds of connection begin with

cdef Block* hello_frame(Transport* t, u32 dest, u64 now_us) noexcept nogil
# What the transport itself can hold against who says this: 0, or REFUSED_* and why. A node dials
# those above it for HELLO (`dials`), and anybody for FETCH.
cdef u32 hello_refused(Transport* t, const FrameHeader* header, const Hello* hello, bint dials,
                       const char** why) noexcept nogil
cdef const char* verdict_text(int verdict) noexcept nogil
