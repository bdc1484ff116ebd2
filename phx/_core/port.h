/* The operating system, as far as Linux and macOS differ or Cython cannot say it: clocks, wakers,
 * threads, sockets. Every descriptor is close-on-exec, every socket non-blocking; no call here
 * raises a signal. Functions return >= 0, or -errno.
 */
#ifndef PHX_PORT_H
#define PHX_PORT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

/* --- clocks */

#ifdef CLOCK_BOOTTIME
#define PHX_CLOCK CLOCK_BOOTTIME /* counts the time a machine was suspended: leases need that */
#else
#define PHX_CLOCK CLOCK_MONOTONIC
#endif

static inline uint64_t phx_clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
static inline uint64_t phx_now_us(void) { return phx_clock_ns(PHX_CLOCK) / 1000u; }
static inline uint64_t phx_wall_us(void) { return phx_clock_ns(CLOCK_REALTIME) / 1000u; }
/* For measuring spans: cheap everywhere. */
static inline uint64_t phx_span_ns(void) { return phx_clock_ns(CLOCK_MONOTONIC); }

/* CPU time that a running thread has used; 0 where the system cannot say. */
static inline uint64_t phx_thread_cpu_ns(pthread_t thread) {
#ifdef __linux__
    clockid_t clock;
    if (pthread_getcpuclockid(thread, &clock) != 0) return 0;
    return phx_clock_ns(clock);
#else
    (void)thread;
    return 0;
#endif
}

/* A store and a later load by this thread are seen in that order by all (sleep flags need it). */
static inline void phx_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* --- descriptors: a fixed table, so that a forked child can close them without any lock */

#define PHX_FDS_MAX 320 /* 63 peers twice, 64 strangers, what is handed over, and some more */
typedef struct PhxFds {
    int64_t fds[PHX_FDS_MAX]; /* descriptor + 1, 0 for a free place */
} PhxFds;

static inline void phx_fds_add(PhxFds *table, int fd) {
    for (int i = 0; i < PHX_FDS_MAX; i++) {
        int64_t none = 0;
        if (__atomic_compare_exchange_n(&table->fds[i], &none, (int64_t)fd + 1, 0,
                                        __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            return;
    }
}

/* It is somebody else's now. */
static inline void phx_fds_forget(PhxFds *table, int fd) {
    for (int i = 0; i < PHX_FDS_MAX; i++) {
        int64_t it = (int64_t)fd + 1;
        if (__atomic_compare_exchange_n(&table->fds[i], &it, (int64_t)0, 0, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            break;
    }
}

static inline void phx_fds_close(PhxFds *table, int fd) {
    phx_fds_forget(table, fd);
    close(fd);
}

static inline void phx_fds_close_all(PhxFds *table) {
    for (int i = 0; i < PHX_FDS_MAX; i++) {
        int64_t it = __atomic_exchange_n(&table->fds[i], (int64_t)0, __ATOMIC_ACQ_REL);
        if (it > 0) close((int)it - 1);
    }
}

static inline int phx_fd_flags(int fd) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return -errno;
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) return -errno;
    return 0;
}

/* --- wakers: readable from the first signal until cleared; one write however many signals */

typedef struct PhxWaker {
    int read_fd;
    int write_fd;
    int64_t signalled;
} PhxWaker;

static inline int phx_waker_open(PhxWaker *w, PhxFds *table) {
    w->signalled = 0;
#ifdef __linux__
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd < 0) return -errno;
    w->read_fd = w->write_fd = fd;
    phx_fds_add(table, fd);
#else
    int pair[2];
    if (pipe(pair) < 0) return -errno;
    phx_fd_flags(pair[0]);
    phx_fd_flags(pair[1]);
    w->read_fd = pair[0];
    w->write_fd = pair[1];
    phx_fds_add(table, pair[0]);
    phx_fds_add(table, pair[1]);
#endif
    return 0;
}

static inline void phx_waker_close(PhxWaker *w, PhxFds *table) {
    if (w->read_fd < 0) return;
    phx_fds_close(table, w->read_fd);
    if (w->write_fd != w->read_fd) phx_fds_close(table, w->write_fd);
    w->read_fd = w->write_fd = -1;
}

static inline void phx_waker_signal(PhxWaker *w) {
    uint64_t one = 1;
    if (__atomic_exchange_n(&w->signalled, (int64_t)1, __ATOMIC_SEQ_CST) != 0) return;
    while (write(w->write_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

/* What is queued after this returns signals again; what was queued before is seen by the caller. */
static inline void phx_waker_clear(PhxWaker *w) {
    uint64_t words[8];
    while (read(w->read_fd, words, sizeof words) < 0 && errno == EINTR) {
    }
    __atomic_store_n(&w->signalled, (int64_t)0, __ATOMIC_SEQ_CST);
    phx_fence();
}

/* --- threads */

/* Every signal is blocked in the new thread, before it runs: Python's handlers are Python's. */
static inline int phx_thread_start(pthread_t *thread, void *(*run)(void *), void *arg) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -failed;
}

static inline void phx_thread_name(const char *name) {
#ifdef __linux__
    pthread_setname_np(pthread_self(), name);
#elif defined(__APPLE__)
    pthread_setname_np(name);
#endif
}

/* Of another thread, where that can be named from outside. */
static inline void phx_thread_name_of(pthread_t thread, const char *name) {
#ifdef __linux__
    pthread_setname_np(thread, name);
#else
    (void)thread;
    (void)name;
#endif
}

static inline void phx_cond_init(pthread_cond_t *cond) {
#ifdef __APPLE__
    pthread_cond_init(cond, NULL);
#else
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
#endif
}

/* Wait for at most that long; may return early, as condition variables do. */
static inline void phx_cond_wait_us(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t us) {
    struct timespec t;
#ifdef __APPLE__
    t.tv_sec = (time_t)(us / 1000000u);
    t.tv_nsec = (long)(us % 1000000u) * 1000;
    pthread_cond_timedwait_relative_np(cond, lock, &t);
#else
    clock_gettime(CLOCK_MONOTONIC, &t);
    uint64_t ns = (uint64_t)t.tv_nsec + (us % 1000000u) * 1000u;
    t.tv_sec += (time_t)(us / 1000000u) + (time_t)(ns / 1000000000u);
    t.tv_nsec = (long)(ns % 1000000000u);
    pthread_cond_timedwait(cond, lock, &t);
#endif
}

/* --- sockets */

typedef struct PhxAddress {
    struct sockaddr_storage at;
    socklen_t bytes; /* 0: no address */
} PhxAddress;

/* Numeric IPv4 or IPv6 only: looking a name up blocks, and is Python's business. */
static inline int phx_address(PhxAddress *out, const char *host, int port) {
    memset(out, 0, sizeof *out);
    struct sockaddr_in *v4 = (struct sockaddr_in *)&out->at;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&out->at;
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        out->bytes = sizeof *v4;
        return 0;
    }
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET6, host, &v6->sin6_addr) != 1) return -EINVAL;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)port);
    out->bytes = sizeof *v6;
    return 0;
}

static inline void phx_address_text(const PhxAddress *a, char *out, size_t size) {
    char host[INET6_ADDRSTRLEN] = "?";
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)&a->at;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&a->at;
    if (a->at.ss_family == AF_INET) {
        inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host);
        snprintf(out, size, "%s:%d", host, ntohs(v4->sin_port));
    } else if (a->at.ss_family == AF_INET6) {
        inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host);
        snprintf(out, size, "[%s]:%d", host, ntohs(v6->sin6_port));
    } else {
        snprintf(out, size, "?");
    }
}

static inline int phx_socket_ready(int fd) {
    int one = 1;
    int bad = phx_fd_flags(fd);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
#ifdef SO_NOSIGPIPE
    setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &one, sizeof one);
#endif
    return bad;
}

static inline int phx_listen(const PhxAddress *a, int backlog) {
    int one = 1;
    int fd = socket(a->at.ss_family, SOCK_STREAM, 0);
    if (fd < 0) return -errno;
    int bad = phx_fd_flags(fd);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bad == 0 && bind(fd, (const struct sockaddr *)&a->at, a->bytes) < 0) bad = -errno;
    if (bad == 0 && listen(fd, backlog) < 0) bad = -errno;
    if (bad == 0) return fd;
    close(fd);
    return bad;
}

static inline int phx_bound_port(int fd) {
    PhxAddress a;
    a.bytes = sizeof a.at;
    if (getsockname(fd, (struct sockaddr *)&a.at, &a.bytes) < 0) return -errno;
    if (a.at.ss_family == AF_INET6) return ntohs(((struct sockaddr_in6 *)&a.at)->sin6_port);
    return ntohs(((struct sockaddr_in *)&a.at)->sin_port);
}

static inline int phx_accept(int listener, PhxAddress *from) {
    from->bytes = sizeof from->at;
#ifdef __linux__
    int fd = accept4(listener, (struct sockaddr *)&from->at, &from->bytes,
                     SOCK_NONBLOCK | SOCK_CLOEXEC);
#else
    int fd = accept(listener, (struct sockaddr *)&from->at, &from->bytes);
#endif
    if (fd < 0) return -errno;
    phx_socket_ready(fd);
    return fd;
}

/* A socket on its way to `a`; writable when it is there, or failed (phx_socket_error). */
static inline int phx_dial(const PhxAddress *a) {
#ifdef SOCK_CLOEXEC
    int fd = socket(a->at.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
#else
    int fd = socket(a->at.ss_family, SOCK_STREAM, 0);
#endif
    if (fd < 0) return -errno;
    phx_socket_ready(fd);
    if (connect(fd, (const struct sockaddr *)&a->at, a->bytes) == 0 || errno == EINPROGRESS)
        return fd;
    int bad = -errno;
    close(fd);
    return bad;
}

static inline int phx_socket_error(int fd) {
    int error = 0;
    socklen_t bytes = sizeof error;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) < 0) return -errno;
    return -error;
}

static inline int64_t phx_receive(int fd, void *to, uint64_t count) {
    int64_t got = recv(fd, to, count, 0);
    return got < 0 ? -(int64_t)errno : got;
}

static inline int64_t phx_send_gather(int fd, struct iovec *parts, int count) {
    struct msghdr message;
    memset(&message, 0, sizeof message);
    message.msg_iov = parts;
    message.msg_iovlen = count;
#ifdef MSG_NOSIGNAL
    int64_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
#else
    int64_t sent = sendmsg(fd, &message, 0);
#endif
    return sent < 0 ? -(int64_t)errno : sent;
}

static inline int phx_again(int64_t error) {
    return error == -EAGAIN || error == -EWOULDBLOCK || error == -EINTR;
}

#endif
