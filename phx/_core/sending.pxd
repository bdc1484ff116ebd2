"""What leaves: a queue of frames for each peer.

A frame becomes free to go once the journal is durable up to its `after`. A queue is bounded; what
finds it full, or no connection, is dropped. The sockets are transport's.
"""

from phx._core.native cimport *
from phx._core.port cimport iovec
from phx._core.transport cimport Link, Transport

cdef enum:
    GATHER_MAX = 64              # frames in one send

# Takes the caller's reference. peer 0: every connected peer. Unconnected: dropped.
cdef void transport_send(Transport* t, u32 peer, u64 after, Block* frame) noexcept nogil
# The journal is durable up to `lsn`: what waited for that may go.
cdef void transport_release(Transport* t, u64 lsn) noexcept nogil
# Everything that waits for this peer is gone.
cdef void queue_drop(Link* link) noexcept nogil
# What is free to go, from parts[n] on; how many parts there are then, at most GATHER_MAX.
cdef int queue_gather(Transport* t, Link* link, iovec* parts, int n) noexcept nogil
# So many bytes of that are with the socket.
cdef void queue_sent(Link* link, u64 count) noexcept nogil
