"""A disk in memory that behaves as badly as a disk may; for tests and the simulator.

Each file has two contents: what a reader sees (page cache), and what is on the medium; the
difference is a list of writes in the order in which they were made. A sync moves them all over.

    process crash    handles die; what readers see stays; what is unsynced stays unsynced
    power loss       of every unsynced write each `atom` bytes (a sector) land or not, each for
                     itself, by a seed; so do names made or removed since the folder was synced
    failed sync      the error is told once; the writes count as clean and never reach the medium
                     (what a kernel does that drops dirty pages whose writing failed)
    crash_at(n)      the n-th changing operation from now on stops half way, and all after it
                     fail, until one of the two crashes is carried out

Any number of threads.
"""

from phx._core.native cimport *
from phx._core.disk cimport DiskApi, pthread_mutex_t

cdef enum:
    MEMORY_NAME_BYTES = 32

cdef struct MemoryWrite:
    u64 offset
    vector[u8] data

cdef struct MemoryFile:
    char name[MEMORY_NAME_BYTES]
    bint seen                  # there for readers
    bint kept                  # there on the medium
    vector[u8] now
    vector[u8] medium
    vector[MemoryWrite] unsynced

cdef struct MemoryHandle:
    MemoryFile* file           # NULL: closed

cdef enum MemoryOperation:
    MEMORY_ANY = 0
    MEMORY_WRITE = 1
    MEMORY_SYNC = 2
    MEMORY_MAKE = 3            # a new name
    MEMORY_REMOVE = 4
    MEMORY_SYNC_FOLDER = 5

cdef struct MemoryDiskState:
    pthread_mutex_t lock
    vector[MemoryFile*] files
    vector[MemoryHandle] handles
    u64 random
    u64 atom                   # bytes that land together or not at all
    u64 bytes_max              # of all files; 0: no limit
    u64 operations             # changing ones, so far
    u64 syncs
    u64 crash_operation        # 0: none
    bint dead
    int fail_kind              # MemoryOperation whose fail_after-th use from now on fails, once
    u64 fail_after             # 0: none
    int fail_errno
    u32 sync_us                # a sync takes at least so long

cdef void memory_disk_api(MemoryDiskState* disk, DiskApi* out) noexcept nogil
cdef void memory_process_crash(MemoryDiskState* disk) noexcept nogil
cdef void memory_power_loss(MemoryDiskState* disk, u64 seed) noexcept nogil

# The Python door; tables over it stay good only as long as it lives.
cdef class MemoryDisk:
    cdef MemoryDiskState* state
    cdef void _lock(self)
    cdef void _unlock(self)
    cdef MemoryFile* _file(self, str name) except NULL
