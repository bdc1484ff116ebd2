"""The journal and its thread for Python: the same compiled code, for tests and the simulator."""

from phx._core.native cimport i64
from phx._core.journal cimport Journal as NativeJournal
from phx._core.writer cimport JournalWriter


cdef class Journal:
    cdef NativeJournal* j
    cdef object disk               # the MemoryDisk under it, kept alive
    cdef readonly list replayed    # (lsn, kind, group, index, ballot, body), in order
    cdef NativeJournal* _open(self) except NULL


cdef class Writer:
    cdef JournalWriter* w
    cdef Journal journal
    cdef i64 notified
