"""Where segments lie: a table of functions over one folder, and three of them.

    disk_folder_open   a real folder; write loops over short writes, sync reaches the device
    disk_folder_look   the same folder to look at: nothing in it is changed, nobody is locked out
    memory_disk        a simulated one that loses power, tears writes, fails, fills up: memdisk.pxd

Every function of the table may be called from several threads at once, never twice at once for
one handle's close. Files are flat names, no folders.
"""

from phx._core.native cimport *

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, const void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, const void*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)

# Every function returns >= 0, or -errno. `file` is a handle that `open` gave.
cdef struct DiskApi:
    void* context
    i64 (*open)(void* context, const char* name, bint create) noexcept nogil
    int (*close)(void* context, i64 file) noexcept nogil
    # All of it or an error: a short write is carried on. Returns `count`.
    i64 (*write)(void* context, i64 file, const u8* data, u64 count, u64 offset) noexcept nogil
    # As much as there is: fewer than `count` only at the end of the file.
    i64 (*read)(void* context, i64 file, u8* data, u64 count, u64 offset) noexcept nogil
    int (*sync)(void* context, i64 file) noexcept nogil          # fdatasync / F_FULLFSYNC
    int (*sync_folder)(void* context) noexcept nogil
    i64 (*size)(void* context, i64 file) noexcept nogil
    # names of existing files: calls back once for each, in no particular order
    int (*list)(void* context, void* arg,
                void (*each)(void* arg, const char* name) noexcept nogil) noexcept nogil
    int (*remove)(void* context, const char* name) noexcept nogil
    # Closes the disk itself (folder and lock), after the last file; NULL: nothing to do.
    void (*release)(void* context) noexcept nogil

# A table over the folder at `path` (made if `create` and not there), which is locked against every
# other opener, of this process or another. 0 or -errno; -EWOULDBLOCK: somebody else has it.
cdef int disk_folder_open(DiskApi* out, const char* path, bint create) noexcept nogil
# The lock goes with `release`, which journal_close calls.

# A table over the folder at `path` to look at: files are opened for reading; making one fails with
# -EROFS; write, sync and remove do nothing and say that they did. For what judges a journal by the
# code that opens one, and must leave it as it is. 0 or -errno.
cdef int disk_folder_look(DiskApi* out, const char* path) noexcept nogil
