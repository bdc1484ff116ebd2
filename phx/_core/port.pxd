"""Clocks, wakers, threads and sockets of the operating system; what each promises is in port.h."""

from phx._core.native cimport i64, u64

cdef extern from "port.h" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* lock, void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* lock)
    int pthread_mutex_lock(pthread_mutex_t* lock)
    int pthread_mutex_unlock(pthread_mutex_t* lock)
    int pthread_cond_destroy(pthread_cond_t* cond)
    int pthread_cond_signal(pthread_cond_t* cond)
    int pthread_cond_broadcast(pthread_cond_t* cond)
    int pthread_join(pthread_t thread, void** result)

    struct iovec:
        void* iov_base
        size_t iov_len

    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout_ms)
    enum:
        POLLIN
        POLLOUT
        POLLERR
        POLLHUP
        POLLNVAL
        EINTR
        EMFILE
        ENFILE
        ENOENT
        EWOULDBLOCK

    u64 phx_now_us()
    u64 phx_wall_us()
    u64 phx_span_ns()
    u64 phx_thread_cpu_ns(pthread_t thread)
    void phx_fence()

    enum:
        PHX_FDS_MAX
    ctypedef struct PhxFds:
        i64 fds[320]
    void phx_fds_add(PhxFds* table, int fd)
    int phx_close "close"(int fd)
    void phx_fds_forget(PhxFds* table, int fd)
    void phx_fds_close(PhxFds* table, int fd)
    void phx_fds_close_all(PhxFds* table)

    ctypedef struct PhxWaker:
        int read_fd
        int write_fd
        i64 signalled
    int phx_waker_open(PhxWaker* w, PhxFds* table)
    void phx_waker_close(PhxWaker* w, PhxFds* table)
    void phx_waker_signal(PhxWaker* w)
    void phx_waker_clear(PhxWaker* w)

    int phx_thread_start(pthread_t* thread, void* (*run)(void*) noexcept nogil, void* arg)
    void phx_thread_name(const char* name)
    void phx_cond_init(pthread_cond_t* cond)
    void phx_cond_wait_us(pthread_cond_t* cond, pthread_mutex_t* lock, u64 us)

    ctypedef struct PhxSockaddr "struct sockaddr_storage":
        pass
    ctypedef struct PhxAddress:
        PhxSockaddr at
        int bytes
    int phx_address(PhxAddress* out, const char* host, int port)
    void phx_address_text(const PhxAddress* a, char* out, size_t size)
    int phx_listen(const PhxAddress* a, int backlog)
    int phx_bound_port(int fd)
    int phx_accept(int listener, PhxAddress* from_)
    int phx_dial(const PhxAddress* a)
    int phx_socket_error(int fd)
    i64 phx_receive(int fd, void* to, u64 count)
    i64 phx_send_gather(int fd, iovec* parts, int count)
    bint phx_again(i64 error)
