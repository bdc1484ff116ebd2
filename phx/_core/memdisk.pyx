# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""A simulated disk; see memdisk.pxd."""

from libc.errno cimport EBADF, EEXIST, EIO, ENOENT, ENOSPC
from libc.string cimport memcpy, strcmp, strlen
from posix.unistd cimport usleep

from phx._core.native cimport *
from phx._core.disk cimport (
    DiskApi, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock)


# --- inside the lock

cdef u64 random_word(MemoryDiskState* disk) noexcept nogil:
    # splitmix64 (Steele, Lea, Flood 2014)
    cdef u64 z
    disk.random += <u64>0x9E3779B97F4A7C15
    z = disk.random
    z = (z ^ (z >> 30)) * <u64>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <u64>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef MemoryFile* find_file(MemoryDiskState* disk, const char* name) noexcept nogil:
    cdef size_t at
    for at in range(disk.files.size()):
        if strcmp(disk.files[at].name, name) == 0:
            return disk.files[at]
    return NULL


cdef MemoryFile* file_of(MemoryDiskState* disk, i64 handle) noexcept nogil:
    if handle < 0 or <size_t>handle >= disk.handles.size():
        return NULL
    return disk.handles[<size_t>handle].file


cdef void put(vector[u8]* content, const u8* data, u64 count, u64 offset) noexcept nogil:
    if count == 0:
        return
    if content.size() < offset + count:
        content.resize(offset + count)
    memcpy(content.data() + offset, data, count)


# Counts a changing operation: 0 go on, -errno fail, 1 stop half way (then everything is dead).
cdef int begin(MemoryDiskState* disk, int kind) noexcept nogil:
    if disk.dead:
        return -EIO
    disk.operations += 1
    if disk.fail_after != 0 and (disk.fail_kind == MEMORY_ANY or disk.fail_kind == kind):
        disk.fail_after -= 1
        if disk.fail_after == 0:
            return -disk.fail_errno
    if disk.operations == disk.crash_operation:
        disk.dead = True
        return 1
    return 0


# Each atom of a write lands on the medium or not.
cdef void land_some(MemoryDiskState* disk, MemoryFile* file, MemoryWrite* item) noexcept nogil:
    cdef u64 at = 0, count, offset
    while at < item.data.size():
        offset = item.offset + at
        count = disk.atom - offset % disk.atom
        if count > item.data.size() - at:
            count = item.data.size() - at
        if random_word(disk) & 1:
            put(&file.medium, item.data.data() + at, count, offset)
        at += count


cdef u64 bytes_of_all(MemoryDiskState* disk) noexcept nogil:
    cdef size_t at
    cdef u64 total = 0
    for at in range(disk.files.size()):
        if disk.files[at].seen:
            total += disk.files[at].now.size()
    return total


# --- the table

cdef i64 memory_open(void* context, const char* name, bint create) noexcept nogil:
    cdef MemoryDiskState* disk = <MemoryDiskState*>context
    cdef MemoryFile* file
    cdef MemoryHandle handle
    cdef int stop = 0
    cdef i64 given = -EIO
    pthread_mutex_lock(&disk.lock)
    file = find_file(disk, name)
    if create:
        stop = begin(disk, MEMORY_MAKE)
    if disk.dead and stop != 1:
        given = -EIO
    elif stop < 0:
        given = stop
    elif create and file != NULL and file.seen:
        given = -EEXIST
    elif not create and (file == NULL or not file.seen):
        given = -ENOENT
    elif strlen(name) >= MEMORY_NAME_BYTES:
        given = -ENOENT
    else:
        if file == NULL:
            file = phx_new[MemoryFile]()
            memcpy(file.name, name, strlen(name) + 1)
            disk.files.push_back(file)
        elif not file.seen:
            file.unsynced.clear()
            file.now.clear()
        file.seen = True
        handle.file = file
        disk.handles.push_back(handle)
        given = <i64>disk.handles.size() - 1 if stop == 0 else -EIO
    pthread_mutex_unlock(&disk.lock)
    return given


cdef int memory_close(void* context, i64 handle) noexcept nogil:
    cdef MemoryDiskState* disk = <MemoryDiskState*>context
    pthread_mutex_lock(&disk.lock)
    if file_of(disk, handle) != NULL:
        disk.handles[<size_t>handle].file = NULL
    pthread_mutex_unlock(&disk.lock)
    return 0


cdef i64 memory_write(void* context, i64 handle, const u8* data, u64 count,
                      u64 offset) noexcept nogil:
    cdef MemoryDiskState* disk = <MemoryDiskState*>context
    cdef MemoryFile* file
    cdef MemoryWrite item
    cdef i64 given = <i64>count
    cdef int stop
    cdef u64 part
    pthread_mutex_lock(&disk.lock)
    file = file_of(disk, handle)
    stop = begin(disk, MEMORY_WRITE)
    if file == NULL:
        stop = -EBADF
    elif (stop == 0 and disk.bytes_max != 0 and offset + count > file.now.size()
            and bytes_of_all(disk) + offset + count - file.now.size() > disk.bytes_max):
        stop = -ENOSPC
    if stop != 0:
        given = stop if stop < 0 else -EIO
        # What failed or was cut short may have been done in part.
        part = random_word(disk) % (count // 8 + 1) * 8
        count = part if stop == 1 or (stop != -EBADF and not disk.dead) else 0
    if file != NULL and count != 0:
        put(&file.now, data, count, offset)
        item.offset = offset
        file.unsynced.push_back(item)
        put(&file.unsynced.back().data, data, count, 0)
    pthread_mutex_unlock(&disk.lock)
    return given


cdef i64 memory_read(void* context, i64 handle, u8* data, u64 count, u64 offset) noexcept nogil:
    cdef MemoryDiskState* disk = <MemoryDiskState*>context
    cdef MemoryFile* file
    cdef i64 given
    pthread_mutex_lock(&disk.lock)
    file = file_of(disk, handle)
    if disk.dead:
        given = -EIO
    elif file == NULL:
        given = -EBADF
    elif offset >= file.now.size():
        given = 0
    else:
        if count > file.now.size() - offset:
            count = file.now.size() - offset
        memcpy(data, file.now.data() + offset, count)
        given = <i64>count
    pthread_mutex_unlock(&disk.lock)
    return given


cdef int memory_sync(void* context, i64 handle) noexcept nogil:
    cdef MemoryDiskState* disk = <MemoryDiskState*>context
    cdef MemoryFile* file
    cdef int stop
    cdef size_t at
    if disk.sync_us != 0:
        usleep(disk.sync_us)
    pthread_mutex_lock(&disk.lock)
    file = file_of(disk, handle)
    stop = begin(disk, MEMORY_SYNC)
    if file == NULL:
        stop = -EBADF
    elif stop == 1:
        for at in range(file.unsynced.size()):
            land_some(disk, file, &file.unsynced[at])
        stop = -EIO
    elif stop == 0:
        disk.syncs += 1
        for at in range(file.unsynced.size()):
            put(&file.medium, file.unsynced[at].data.data(), file.unsynced[at].data.size(),
                file.unsynced[at].offset)
        file.unsynced.clear()
    elif not disk.dead:
        file.unsynced.clear()
    pthread_mutex_unlock(&disk.lock)
    return stop


cdef int memory_sync_folder(void* context) noexcept nogil:
    cdef MemoryDiskState* disk = <MemoryDiskState*>context
    cdef int stop
    cdef size_t at
    pthread_mutex_lock(&disk.lock)
    stop = begin(disk, MEMORY_SYNC_FOLDER)
    if stop >= 0:
        for at in range(disk.files.size()):
            if stop == 0 or random_word(disk) & 1:
                disk.files[at].kept = disk.files[at].seen
    pthread_mutex_unlock(&disk.lock)
    return stop if stop <= 0 else -EIO


cdef i64 memory_size(void* context, i64 handle) noexcept nogil:
    cdef MemoryDiskState* disk = <MemoryDiskState*>context
    cdef MemoryFile* file
    cdef i64 given = -EBADF
    pthread_mutex_lock(&disk.lock)
    file = file_of(disk, handle)
    if file != NULL:
        given = <i64>file.now.size()
    pthread_mutex_unlock(&disk.lock)
    return given


cdef int memory_list(void* context, void* arg,
                     void (*each)(void* arg, const char* name) noexcept nogil) noexcept nogil:
    cdef MemoryDiskState* disk = <MemoryDiskState*>context
    cdef size_t at
    pthread_mutex_lock(&disk.lock)
    for at in range(disk.files.size()):
        if disk.files[at].seen:
            each(arg, disk.files[at].name)
    pthread_mutex_unlock(&disk.lock)
    return 0


cdef int memory_remove(void* context, const char* name) noexcept nogil:
    cdef MemoryDiskState* disk = <MemoryDiskState*>context
    cdef MemoryFile* file
    cdef int stop
    pthread_mutex_lock(&disk.lock)
    file = find_file(disk, name)
    stop = begin(disk, MEMORY_REMOVE)
    if stop == 0 and file == NULL:
        stop = -ENOENT
    elif stop >= 0 and file != NULL:
        file.seen = False
    pthread_mutex_unlock(&disk.lock)
    return stop if stop <= 0 else -EIO


cdef void memory_disk_api(MemoryDiskState* disk, DiskApi* out) noexcept nogil:
    out.context = disk
    out.open = memory_open
    out.close = memory_close
    out.write = memory_write
    out.read = memory_read
    out.sync = memory_sync
    out.sync_folder = memory_sync_folder
    out.size = memory_size
    out.list = memory_list
    out.remove = memory_remove
    out.release = NULL


# --- crashes

cdef void revive(MemoryDiskState* disk) noexcept nogil:
    disk.handles.clear()
    disk.dead = False
    disk.crash_operation = 0
    disk.fail_after = 0


cdef void memory_process_crash(MemoryDiskState* disk) noexcept nogil:
    pthread_mutex_lock(&disk.lock)
    revive(disk)
    pthread_mutex_unlock(&disk.lock)


cdef void memory_power_loss(MemoryDiskState* disk, u64 seed) noexcept nogil:
    cdef size_t at, item
    cdef MemoryFile* file
    pthread_mutex_lock(&disk.lock)
    disk.random = seed
    for at in range(disk.files.size()):
        file = disk.files[at]
        for item in range(file.unsynced.size()):
            land_some(disk, file, &file.unsynced[item])
        file.unsynced.clear()
        if file.seen != file.kept and random_word(disk) & 1:
            file.kept = file.seen
        file.seen = file.kept
        if not file.seen:
            file.medium.clear()
        file.now = file.medium
    revive(disk)
    pthread_mutex_unlock(&disk.lock)


# --- the door

KINDS = {"any": MEMORY_ANY, "write": MEMORY_WRITE, "sync": MEMORY_SYNC, "make": MEMORY_MAKE,
         "remove": MEMORY_REMOVE, "sync_folder": MEMORY_SYNC_FOLDER}


cdef class MemoryDisk:
    def __cinit__(self, *, u64 atom=512, u64 bytes_max=0, u64 seed=1):
        self.state = phx_new[MemoryDiskState]()
        pthread_mutex_init(&self.state.lock, NULL)
        if atom == 0:
            raise ValueError("atom is at least one byte")
        self.state.atom = atom
        self.state.bytes_max = bytes_max
        self.state.random = seed

    def __dealloc__(self):
        cdef size_t at
        for at in range(self.state.files.size()):
            phx_delete[MemoryFile](self.state.files[at])
        pthread_mutex_destroy(&self.state.lock)
        phx_delete(self.state)

    cdef void _lock(self):
        # Held with the GIL: whoever else holds it wants no GIL, and not for long.
        pthread_mutex_lock(&self.state.lock)

    cdef void _unlock(self):
        pthread_mutex_unlock(&self.state.lock)

    @property
    def operations(self):
        self._lock()
        operations = self.state.operations
        self._unlock()
        return operations

    @property
    def syncs(self):
        self._lock()
        syncs = self.state.syncs
        self._unlock()
        return syncs

    @property
    def dead(self):
        self._lock()
        dead = bool(self.state.dead)
        self._unlock()
        return dead

    def set_bytes_max(self, u64 bytes_max):
        self._lock()
        self.state.bytes_max = bytes_max
        self._unlock()

    def set_sync_us(self, u32 sync_us):
        """Before threads use the disk."""
        self.state.sync_us = sync_us

    def crash_at(self, u64 operation):
        """The ``operation``-th changing operation from now on stops half way; 0: none will."""
        self._lock()
        self.state.crash_operation = self.state.operations + operation if operation else 0
        self._unlock()

    def fail(self, str kind, u64 after=1, int error=EIO):
        """The ``after``-th operation of ``kind`` from now on fails with ``error``, once."""
        cdef int number = KINDS[kind]
        self._lock()
        self.state.fail_kind = number
        self.state.fail_errno = error
        self.state.fail_after = after
        self._unlock()

    def process_crash(self):
        memory_process_crash(self.state)

    def power_loss(self, u64 seed):
        memory_power_loss(self.state, seed)

    def names(self):
        self._lock()
        try:
            return sorted(self.state.files[at].name.decode()
                          for at in range(self.state.files.size()) if self.state.files[at].seen)
        finally:
            self._unlock()

    # Under the lock.
    cdef MemoryFile* _file(self, str name) except NULL:
        cdef bytes key = name.encode()
        cdef MemoryFile* file = find_file(self.state, key)
        if file == NULL or not file.seen:
            raise FileNotFoundError(name)
        return file

    def content(self, str name):
        """What a reader sees of the file."""
        self._lock()
        try:
            file = self._file(name)
            return (<char*>file.now.data())[:file.now.size()]
        finally:
            self._unlock()

    def medium(self, str name):
        """What is on the medium: what surely survives a loss of power."""
        self._lock()
        try:
            file = self._file(name)
            return (<char*>file.medium.data())[:file.medium.size()]
        finally:
            self._unlock()

    def put(self, str name, bytes content not None):
        """Makes the file exactly ``content``, synced: for planting damage."""
        cdef bytes key = name.encode()
        cdef MemoryFile* file
        if len(key) >= MEMORY_NAME_BYTES:
            raise ValueError(name)
        self._lock()
        file = find_file(self.state, key)
        if file == NULL:
            file = phx_new[MemoryFile]()
            memcpy(file.name, <char*>key, len(key) + 1)
            self.state.files.push_back(file)
        file.unsynced.clear()
        file.seen = True
        file.kept = True
        file.now.clear()
        put(&file.now, <const u8*><const char*>content, len(content), 0)
        file.medium = file.now
        self._unlock()

    def delete(self, str name):
        """Removes the file, surely."""
        self._lock()
        try:
            file = self._file(name)
            file.unsynced.clear()
            file.seen = False
            file.kept = False
            file.now.clear()
            file.medium.clear()
        finally:
            self._unlock()

    def copy(self):
        """Another disk in the same state, without its handles."""
        cdef MemoryDisk other = MemoryDisk(atom=self.state.atom, bytes_max=self.state.bytes_max)
        cdef size_t at
        cdef MemoryFile* file
        self._lock()
        for at in range(self.state.files.size()):
            file = phx_new[MemoryFile]()
            file[0] = self.state.files[at][0]
            other.state.files.push_back(file)
        self._unlock()
        return other
