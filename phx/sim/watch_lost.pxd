"""The claims about journals that are lost (U10r): who may have forgotten votes is counted by nobody
before it has rejoined.

A *lost* seat is suspect in what it wrote: from the loss on, until the record by which it became
whole is durable.
"""

from phx._core.codec cimport RecordHeader
from phx._core.native cimport *
from phx._core.wire cimport MessageHeader
from phx.sim.invariants cimport NodeWatch, Seat, Watch

# No promise of the node is to have a counter above this, in any group, says its store.
cdef void watch_ceiling(Watch* w, u32 node, u64 counter) noexcept nogil
# All that the node's journal had is gone: between two lives.
cdef void watch_lost(Watch* w, u32 node) noexcept nogil
# In some group it is not whole yet.
cdef bint watch_losing(Watch* w, u32 node) noexcept nogil
cdef bint watch_losing_in(Watch* w, u32 node, u32 group) noexcept nogil

# A life begins, and the engine has started.
cdef void lost_started(Watch* w, NodeWatch* n) noexcept nogil
# It writes a ballot that it promises (`accepts`: with an acceptance that it does not have already);
# and how it stands with its votes.
cdef void lost_promises(Watch* w, NodeWatch* n, const RecordHeader* header,
                        bint accepts) noexcept nogil
cdef void lost_whole(Watch* w, NodeWatch* n, const RecordHeader* header) noexcept nogil
# It writes an acceptance in this ballot, or asks for promises of it.
cdef void lost_takes_part(Watch* w, NodeWatch* n, u32 group, u64 ballot) noexcept nogil
# A message of it leaves that others count: for good, or (a pre-vote) without durable effect.
cdef void lost_answers(Watch* w, NodeWatch* n, const MessageHeader* m) noexcept nogil
cdef void lost_prevotes(Watch* w, NodeWatch* n, const MessageHeader* m) noexcept nogil
# Somebody has promised this ballot to its node.
cdef void lost_promised(Watch* w, NodeWatch* n, const MessageHeader* m) noexcept nogil
cdef void lost_step(Watch* w, NodeWatch* n, u32 group) noexcept nogil
