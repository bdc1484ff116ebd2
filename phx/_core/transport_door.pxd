"""Transport for Python: one node's connections, driven by hand, without engine or thread.

For tests alone: what is sent, held back, dropped and refused can be seen frame by frame.
"""

from phx._core.handover cimport Handover
from phx._core.native cimport *
from phx._core.port cimport PhxFds, pollfd
from phx._core.transport cimport Transport, TransportHooks, TransportOptions

cdef struct Heard:
    u32 peer
    Block* payload

cdef struct Door:
    Transport* transport
    PhxFds fds
    vector[pollfd] watched
    vector[Heard] frames
    vector[u32] ups              # peers connected and disconnected, in order: node, or node | LOST
    vector[Block*] lines
    Handover handover
    u32 refuse                   # a peer that is not taken
    vector[u32] dialing

cdef class TransportDoor:
    cdef Door* door
    cdef u64 cluster
    cdef u32 node
