# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""A real folder behind the table of functions of disk.pxd."""

from phx._core.native cimport *

cdef extern from *:
    """
    #include <dirent.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <sys/file.h>
    #include <sys/stat.h>
    #include <unistd.h>

    static int phx_folder_open(const char *path, int create) {
        if (create && mkdir(path, 0700) != 0 && errno != EEXIST) return -errno;
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0) return -errno;
        if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            close(fd);
            return -EWOULDBLOCK;
        }
        /* A file system without locks is let through: the lock guards against a mistake. */
        return fd;
    }

    static int phx_folder_look(const char *path) {
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 ? -errno : fd;
    }

    static int phx_file_look(int folder, const char *name) {
        int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        return fd < 0 ? -errno : fd;
    }

    static int phx_file_open(int folder, const char *name, int create) {
        int fd = openat(folder, name, O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0), 0600);
        return fd < 0 ? -errno : fd;
    }

    static int64_t phx_file_write(int fd, const uint8_t *data, uint64_t count, uint64_t offset) {
        uint64_t done = 0;
        while (done < count) {
            ssize_t n = pwrite(fd, data + done, count - done, (off_t)(offset + done));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) return -errno;
            if (n == 0) return -EIO;
            done += (uint64_t)n;
        }
        return (int64_t)done;
    }

    static int64_t phx_file_read(int fd, uint8_t *data, uint64_t count, uint64_t offset) {
        uint64_t done = 0;
        while (done < count) {
            ssize_t n = pread(fd, data + done, count - done, (off_t)(offset + done));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) return -errno;
            if (n == 0) break;
            done += (uint64_t)n;
        }
        return (int64_t)done;
    }

    /* fsync on macOS stops at the drive's cache; F_FULLFSYNC goes through it. */
    static int phx_file_sync(int fd) {
    #if defined(F_FULLFSYNC)
        if (fcntl(fd, F_FULLFSYNC) == 0) return 0;
        if (errno != ENOTSUP && errno != EINVAL) return -errno;
        return fsync(fd) == 0 ? 0 : -errno;
    #else
        return fdatasync(fd) == 0 ? 0 : -errno;
    #endif
    }

    /* Some file systems cannot sync a folder and say EINVAL: there is nothing more to be done. */
    static int phx_folder_sync(int fd) {
        if (fsync(fd) == 0 || errno == EINVAL) return 0;
        return -errno;
    }

    static int64_t phx_file_size(int fd) {
        struct stat st;
        return fstat(fd, &st) == 0 ? (int64_t)st.st_size : -errno;
    }

    static int phx_folder_list(int folder, void *arg, void (*each)(void *, const char *)) {
        int fd = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0) return -errno;
        DIR *dir = fdopendir(fd);
        if (dir == NULL) {
            int seen = errno;
            close(fd);
            return -seen;
        }
        struct dirent *entry;
        errno = 0;
        while ((entry = readdir(dir)) != NULL) {
            if (entry->d_name[0] != '.') each(arg, entry->d_name);
            errno = 0;
        }
        int seen = errno;
        closedir(dir);
        return -seen;
    }

    static int phx_file_remove(int folder, const char *name) {
        return unlinkat(folder, name, 0) == 0 || errno == ENOENT ? 0 : -errno;
    }

    static int phx_fd_close(int fd) {
        /* Never again on EINTR: the descriptor is gone, and its number may be somebody else's. */
        return close(fd) == 0 || errno == EINTR ? 0 : -errno;
    }
    """
    int EROFS
    int phx_folder_open(const char* path, int create) nogil
    int phx_folder_look(const char* path) nogil
    int phx_file_look(int folder, const char* name) nogil
    int phx_file_open(int folder, const char* name, int create) nogil
    i64 phx_file_write(int fd, const u8* data, u64 count, u64 offset) nogil
    i64 phx_file_read(int fd, u8* data, u64 count, u64 offset) nogil
    int phx_file_sync(int fd) nogil
    int phx_folder_sync(int fd) nogil
    i64 phx_file_size(int fd) nogil
    int phx_folder_list(int folder, void* arg,
                        void (*each)(void*, const char*) noexcept nogil) nogil
    int phx_file_remove(int folder, const char* name) nogil
    int phx_fd_close(int fd) nogil

cdef struct Folder:
    int fd


cdef i64 folder_open(void* context, const char* name, bint create) noexcept nogil:
    return phx_file_open((<Folder*>context).fd, name, create)


cdef int folder_close(void* context, i64 file) noexcept nogil:
    return phx_fd_close(<int>file)


cdef i64 folder_write(void* context, i64 file, const u8* data, u64 count,
                      u64 offset) noexcept nogil:
    return phx_file_write(<int>file, data, count, offset)


cdef i64 folder_read(void* context, i64 file, u8* data, u64 count, u64 offset) noexcept nogil:
    return phx_file_read(<int>file, data, count, offset)


cdef int folder_sync(void* context, i64 file) noexcept nogil:
    return phx_file_sync(<int>file)


cdef int folder_sync_folder(void* context) noexcept nogil:
    return phx_folder_sync((<Folder*>context).fd)


cdef i64 folder_size(void* context, i64 file) noexcept nogil:
    return phx_file_size(<int>file)


cdef int folder_list(void* context, void* arg,
                     void (*each)(void* arg, const char* name) noexcept nogil) noexcept nogil:
    return phx_folder_list((<Folder*>context).fd, arg, each)


cdef int folder_remove(void* context, const char* name) noexcept nogil:
    return phx_file_remove((<Folder*>context).fd, name)


cdef void folder_release(void* context) noexcept nogil:
    phx_fd_close((<Folder*>context).fd)
    phx_delete(<Folder*>context)


cdef void fill(DiskApi* out, int fd) noexcept nogil:
    cdef Folder* folder = phx_new[Folder]()
    folder.fd = fd
    out.context = folder
    out.open = folder_open
    out.close = folder_close
    out.write = folder_write
    out.read = folder_read
    out.sync = folder_sync
    out.sync_folder = folder_sync_folder
    out.size = folder_size
    out.list = folder_list
    out.remove = folder_remove
    out.release = folder_release


cdef int disk_folder_open(DiskApi* out, const char* path, bint create) noexcept nogil:
    cdef int fd = phx_folder_open(path, create)
    if fd < 0:
        return fd
    fill(out, fd)
    return 0


# --- to look at

cdef i64 look_open(void* context, const char* name, bint create) noexcept nogil:
    return -EROFS if create else phx_file_look((<Folder*>context).fd, name)


cdef i64 look_write(void* context, i64 file, const u8* data, u64 count,
                    u64 offset) noexcept nogil:
    return <i64>count


cdef int look_sync(void* context, i64 file) noexcept nogil:
    return 0


cdef int look_sync_folder(void* context) noexcept nogil:
    return 0


cdef int look_remove(void* context, const char* name) noexcept nogil:
    return 0


cdef int disk_folder_look(DiskApi* out, const char* path) noexcept nogil:
    cdef int fd = phx_folder_look(path)
    if fd < 0:
        return fd
    fill(out, fd)
    out.open = look_open
    out.write = look_write
    out.sync = look_sync
    out.sync_folder = look_sync_folder
    out.remove = look_remove
    return 0
