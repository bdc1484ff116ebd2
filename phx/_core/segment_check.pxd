"""Reading the closed segments of a running node's journal again, to see that they are whole.

Any thread; GIL released while it reads. The journal stays open as long as the check is, whatever
the driver does.
"""

from phx._core.native cimport *
from phx._core.plan cimport JournalHold

cdef class SegmentCheck:
    cdef JournalHold* hold    # owned reference; NULL once closed
