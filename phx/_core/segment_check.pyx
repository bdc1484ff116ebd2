# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Closed segments, read again; see segment_check.pxd."""

from phx._core.disk cimport pthread_mutex_lock, pthread_mutex_unlock
from phx._core.driver cimport Driver
from phx._core.journal cimport (
    JOURNAL_DAMAGED, JOURNAL_IO, JOURNAL_OK, Journal, journal_read_span,
)
from phx._core.native cimport *
from phx._core.plan cimport hold_ref, hold_unref


cdef class SegmentCheck:
    def __init__(self, Driver driver not None):
        if self.hold == NULL and driver.s != NULL and driver.s.hold != NULL:
            self.hold = hold_ref(driver.s.hold)

    def __dealloc__(self):
        hold_unref(self.hold)

    def close(self):
        hold_unref(self.hold)
        self.hold = NULL

    def segments(self):
        cdef Journal* j
        cdef size_t n
        found = []
        if self.hold == NULL:
            return found
        j = self.hold.journal
        pthread_mutex_lock(&j.lock)
        n = 0
        while n + 1 < j.live.size():
            if j.live[n].end_lsn > j.floor_lsn:
                found.append((max(j.live[n].base_lsn, j.floor_lsn), j.live[n].end_lsn))
            n += 1
        pthread_mutex_unlock(&j.lock)
        return found

    def check(self, u64 lsn, u64 bytes_max):
        cdef Block* block = NULL
        cdef JournalHold* hold
        cdef u64 count = 0
        cdef int code
        if self.hold == NULL:
            return 0
        hold = hold_ref(self.hold)
        with nogil:
            code = journal_read_span(hold.journal, lsn, bytes_max, &block)
            if code == JOURNAL_OK:
                count = block.size
                block_unref(block)
            hold_unref(hold)
        if code == JOURNAL_OK:
            return count
        if code == JOURNAL_DAMAGED or code == JOURNAL_IO:
            return -1
        return 0
