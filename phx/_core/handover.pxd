"""Connections of nodes that came for a checkpoint, for values, or to ask who is there, on their way
to Python.

Such a connection says FETCH or JOIN where others say HELLO. It is checked like one (handshake.pxd),
taken out of the transport's table, and waits here with what was read of it until Python takes it.
The poll thread moves none of its bytes.

Payload of a FETCH frame: HELLO's 40 bytes, then what is wanted (docs/reference/transfer.md). Of a
JOIN: HELLO's 40 bytes; more are ignored.
"""

from phx._core.native cimport *
from phx._core.port cimport PhxFds, pthread_mutex_t

cdef enum:
    HANDED_MAX = 16              # connections that wait for Python; more are refused

cdef struct HandedOver:
    int fd                       # still in the table of descriptors
    u32 peer
    Block* said                  # that frame, and what came behind it

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
