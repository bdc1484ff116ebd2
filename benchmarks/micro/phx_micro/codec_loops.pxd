"""What other loops take from codec_loops: bodies of values."""

from phx._core.native cimport *
from phx_micro.measure cimport Loop

cdef class Values(Loop):
    cdef u32 size
    cdef u32 per_body
    cdef Block* items                # of one body
    cdef Block* body
    cdef Block* packed(self, Block* out) noexcept
