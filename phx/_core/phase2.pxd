"""Phase 2 at the leader: batches into instances, acceptances counted, what is missing sent again.

Batches fill while a sync is in flight: a new instance is opened when the last one is durable here
or chosen, or when a whole batch has collected. So one caller waits for nobody, and many share a
sync.
"""

from phx._core.native cimport *
from phx._core.state cimport *

cdef void propose_what_can_be(Engine* e, Replica* r) noexcept nogil
# Chosen: accepted by a quorum up to there, this node's own durable vote included.
cdef void compute_chosen(Engine* e, Replica* r) noexcept nogil
# A watermark that no Accept is about to carry goes out by itself.
cdef void tell_watermark(Engine* e, Replica* r) noexcept nogil
cdef void resend_what_is_missing(Engine* e, Replica* r) noexcept nogil
# `width`: of the group's Config. Freed by phase1_free, through the Lead that it is put into, and by
# lead_free.
cdef Phase1* phase1_new(u32 width) noexcept nogil
cdef Lead* lead_new(u32 width) noexcept nogil
cdef void phase1_free(Lead* lead) noexcept nogil
cdef void lead_free(Replica* r) noexcept nogil
