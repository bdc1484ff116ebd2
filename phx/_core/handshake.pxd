"""What a connection begins with, for the engine (HELLO), a transfer (FETCH) or a question (JOIN).

What this node says of itself, and what it holds against who says so. The bytes: transport.pxd.
"""

from phx._core.codec cimport FrameHeader
from phx._core.native cimport *
from phx._core.transport cimport Hello, Transport

cdef Block* hello_frame(Transport* t, u32 dest, u64 now_us) noexcept nogil
# What the transport itself can hold against who says this: 0, or REFUSED_* and why. A node dials
# those above it for HELLO (`dials`), and anybody for FETCH and JOIN; JOIN is from anybody.
cdef u32 hello_refused(Transport* t, const FrameHeader* header, const Hello* hello, bint dials,
                       const char** why) noexcept nogil
