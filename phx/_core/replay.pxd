"""Opening a journal that exists: which segments count, where the log ends, what is damage.

From the newest segment back along previous_generation, until one that holds the highest FLOOR:

    newest segment     good records from its base on; the first bad place is the end. It is damage
                       if a MARK anywhere in the segment, also after the bad place, says that the
                       place was durable; otherwise a torn tail, cut there, even if good records
                       follow.
    earlier segments   good records exactly up to the end that the next header states, which was
                       durable when that header was written; anything less is damage
    a missing link     damage
    a bad header       of a file outside the chain: damage if its records belong to a generation
                       above the newest known (the header was durable before them)

What the newest segment holds beyond the last MARK may be page cache that a failed sync has left
clean: it is written again and synced, so that all that is handed on is durable.

A value that carries journal records inside, with the right generation, could pass for a mark only
inside a record that is itself torn; then a tail is called damage. Nothing is ever lost by that.
"""

from phx._core.native cimport *
from phx._core.journal cimport Journal, ReplayRecord, Segment

# Notes in Journal.text what is wrong and where (0: no segment, no position); returns `code`.
cdef int journal_blame(Journal* j, int code, u32 number, u64 lsn, const char* reason) noexcept nogil
# Opens every file: j.live gets all written segments in order of generation, j.free the spares,
# j.suspects those with a bad header; those that were being made are removed. 0 or a JournalError.
cdef int replay_headers(Journal* j) noexcept nogil
# Judges, hands on, makes durable; leaves the chain in j.live, the rest in j.free.
cdef int replay_records(Journal* j, ReplayRecord callback, void* arg) noexcept nogil
cdef void segment_close(Journal* j, Segment* s) noexcept nogil
# Closes and removes the file.
cdef i64 segment_remove(Journal* j, Segment* s) noexcept nogil
cdef inline u64 segment_capacity(Segment* s) noexcept nogil:
    return s.bytes - 4096
