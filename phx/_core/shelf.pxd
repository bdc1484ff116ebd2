"""Segments not in use: making them, taking them, keeping some ready.

A new segment is filled with zeros and synced, and only then gets the header of a spare: writing
over it later changes no metadata (1.7 to 2.3 times faster than a file that grows), and a file
without that header was being made when the lights went out.

The reserve: the last free segment, and the last one of the budget, are for urgent blocks alone,
because giving up what is not live (carry-over, floor) must itself be written first.
"""

from phx._core.native cimport *
from phx._core.journal cimport Journal, Segment
from phx._core.segment cimport SegmentHeader

cdef enum:
    # A start writes again what is live, and only then may the old segments go: a journal that is
    # full needs its bytes twice for that moment, and so many segments more for starts that died.
    SHELF_OVER_AT_START = 8

# What every header of this journal has.
cdef void shelf_header(Journal* j, SegmentHeader* header) noexcept nogil
# Journal thread: one more segment at the end of j.taken, or JOURNAL_FULL (also: the disk is full or
# there are no descriptors; see full_errno), or JOURNAL_IO.
cdef int shelf_take(Journal* j, bint urgent) noexcept nogil
# One that was taken and is not needed.
cdef void shelf_give(Journal* j, Segment* s) noexcept nogil
# See journal_wants_spare, journal_prepare_spare.
cdef bint shelf_wants(Journal* j) noexcept nogil
cdef int shelf_tend(Journal* j) noexcept nogil
