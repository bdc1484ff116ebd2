"""Target for a journal that was tampered with: journal_open and journal_replay.

The journals are real: written through journal_append with rolls, marks, floors, recycled segments
and a torn tail. An input is a script of edits to their files. What must hold afterwards:

    every record that is handed on has a good checksum, lies above the one before it, and stands
    where and as the original wrote it, unless checksums were put right by the script
    if no checksum was put right, and the newest header and a mark are untouched, then all the
    original held from the floor up to that mark is handed on, or replay refuses
"""

from phx._core.native cimport *

# Writes the journals that are tampered with. Once, before the first run. 0, or -1.
cdef int make_journals() noexcept nogil
cdef void free_journals() noexcept nogil
cdef void run_journal(const u8* data, u64 count) noexcept nogil
