"""Targets for decoders of bytes: frames, records, bodies, session tables, chunks."""

from phx._core.native cimport *

# Frame decoding, and the transport's reassembly over a socket pair.
cdef void run_frame(const u8* data, u64 count) noexcept nogil
# A record, a run of records in a segment, a segment's header.
cdef void run_record(const u8* data, u64 count) noexcept nogil
# The body of an instance, its runs and items, and the de-duplication table that reads them.
cdef void run_body(const u8* data, u64 count) noexcept nogil
# The bytes of a de-duplication table, and what it admits after it went through them.
cdef void run_table(const u8* data, u64 count) noexcept nogil
# A chunk of the store: footer, rows, entries.
cdef void run_chunk(const u8* data, u64 count) noexcept nogil
