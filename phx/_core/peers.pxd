"""The other nodes that this one talks to: which there are, and who of them is connected.

A peer has a slot from peer_add to peer_drop (membership.pxd: slot_take). Of a store that was seen
behind a node id another module remembers for longer than the slot: whoever adds a peer says it.
"""

from phx._core.native cimport *
from phx._core.state cimport *

cdef enum PeerVerdict:
    PEER_DONE = 0
    PEER_CANNOT = 1              # no id of another node, or SLOTS_MAX of them are there
    PEER_MEMBER = 2              # it is a member of a group here
    PEER_GRANTED = 3             # it may lead under a grant of this node that has not run out
    PEER_UNKEPT = 4              # of the driver: its store is not the one that is remembered

# A slot for the node, unless it has one. `store_id`: 16 bytes, if it was met before; else NULL.
cdef int peer_add(Engine* e, u32 node, const u8* store_id) noexcept nogil
# Ends its connection and frees its slot. Nothing is done unless it returns PEER_DONE, which is
# also said of a node that has no slot.
cdef int peer_drop(Engine* e, u32 node) noexcept nogil
# engine_connected, engine_disconnected
cdef int peer_met(Engine* e, u32 node, u32 incarnation, const u8* store_id) noexcept nogil
cdef void peer_lost(Engine* e, u32 node) noexcept nogil
