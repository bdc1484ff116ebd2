"""From a message's bytes to the room it belongs to. Lengths are checked here, once, for all."""

from phx._core.native cimport *
from phx._core.state cimport *

# A message that message_check has measured.
cdef void route(Engine* e, Peer* p, const u8* data, u32 length) noexcept nogil
