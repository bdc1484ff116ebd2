# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The journal thread; see writer.pxd."""

from phx._core.native cimport *
from phx._core.disk cimport (
    pthread_cond_destroy, pthread_cond_init, pthread_cond_signal, pthread_cond_wait,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock, pthread_t)
from phx._core.journal cimport (
    JOURNAL_FULL, JOURNAL_OK, journal_append, journal_durable, journal_fits, journal_sync)

cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <signal.h>
    #include <time.h>

    /* The thread inherits the mask, so that there is no moment in which a signal could reach it. */
    static int phx_thread_start(pthread_t *thread, void *(*run)(void *), void *arg) {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int result = pthread_create(thread, NULL, run, arg);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return -result;
    }

    /* 1: the time is up. The wall clock may jump; then this is a little early or late. */
    static int phx_wait_ms(pthread_cond_t *wake, pthread_mutex_t *lock, int ms) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += ms / 1000;
        until.tv_nsec += (long)(ms % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
        return pthread_cond_timedwait(wake, lock, &until) == ETIMEDOUT;
    }

    static int64_t phx_thread_cpu_ns(void) {
        struct timespec t;
        if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) != 0) return 0;
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    """
    int phx_thread_start(pthread_t* thread, void* (*run)(void*) noexcept nogil, void* arg) nogil
    i64 phx_thread_cpu_ns() nogil
    int phx_wait_ms(pthread_cond_t* wake, pthread_mutex_t* lock, int ms) nogil
    int pthread_join(pthread_t thread, void** result) nogil

cdef enum:
    RETRY_MS = 1000

ctypedef vector[WriterItem] Items


cdef int sync_all(JournalWriter* w) noexcept nogil:
    cdef i64 lsn = journal_sync(w.journal)
    if lsn < 0:
        return <int>lsn
    w.unsynced = False
    phx_store(&w.durable_lsn, lsn)
    return 1


# Writes items until one finds the journal full, then syncs if one of them wants it. *done: how many
# were written (their references are gone). 1: what somebody waits for is so; 0: nobody does; or an
# error.
cdef int run_items(JournalWriter* w, WriterItem* items, size_t count, WriterNotify notify,
                   size_t* done) noexcept nogil:
    cdef bint sync = False, write = False
    cdef size_t at, urgent = 0
    cdef int code = JOURNAL_OK
    cdef i64 lsn
    # What stands before an urgent block is as urgent as it is: the stream has no gaps.
    for at in range(count):
        if items[at].urgent:
            urgent = at + 1
    done[0] = 0
    while done[0] < count and code == JOURNAL_OK:
        at = done[0]
        code = journal_append(w.journal, items[at].block, items[at].lsn_first, at < urgent)
        if code == JOURNAL_OK:
            sync = sync or items[at].sync
            write = write or items[at].write
            phx_add(&w.queued_bytes, -<i64>items[at].block.size)
            block_unref(items[at].block)
            done[0] += 1
    if code != JOURNAL_OK and code != JOURNAL_FULL:
        return code
    if sync:
        if write and notify != NULL:
            notify(w.context)
        return sync_all(w)
    if not write:
        return 0
    # (A new segment was begun: everything before it is durable.)
    w.unsynced = True
    lsn = <i64>journal_durable(w.journal)
    if lsn > phx_load(&w.durable_lsn):
        phx_store(&w.durable_lsn, lsn)
    return 1


cdef void drop(JournalWriter* w, Items* items, size_t first) noexcept nogil:
    cdef size_t at
    for at in range(first, items.size()):
        phx_add(&w.queued_bytes, -<i64>items[0][at].block.size)
        block_unref(items[0][at].block)
    items.clear()


# Under the lock. What the batch has left goes before whatever was pushed meanwhile.
cdef void put_back(JournalWriter* w, Items* batch, size_t first) noexcept nogil:
    cdef size_t at, kept = batch.size() - first
    for at in range(kept):
        batch[0][at] = batch[0][at + first]
    batch.resize(kept)
    # An urgent block that came in between changes what may be taken.
    w.stuck = True
    for at in range(w.queue.size()):
        if w.queue[at].urgent:
            w.stuck = False
        batch.push_back(w.queue[at])
    w.queue.swap(batch[0])
    batch.clear()


# Under the lock, which is let go of in between. One batch; whether there is news to tell.
cdef bint run_batch(JournalWriter* w, Items* batch) noexcept nogil:
    cdef size_t done = 0
    cdef int code
    cdef bint news
    batch.swap(w.queue)
    w.busy = True
    pthread_mutex_unlock(&w.lock)
    code = run_items(w, batch.data(), batch.size(), w.notify, &done)
    phx_store(&w.cpu_ns, phx_thread_cpu_ns())
    pthread_mutex_lock(&w.lock)
    w.busy = False
    news = code != 0
    if code < 0:
        phx_store(&w.error, code)
        drop(w, batch, done)
        drop(w, &w.queue, 0)
    elif done < batch.size():
        put_back(w, batch, done)
        news = news or phx_load(&w.full) == 0
        phx_store(&w.full, 1)
    else:
        phx_store(&w.full, 0)
        batch.clear()
    return news


# Under the lock. Nothing wakes an idle writer; one that found the journal full tries again.
cdef void wait_for_work(JournalWriter* w) noexcept nogil:
    if not w.stuck:
        pthread_cond_wait(&w.wake, &w.lock)
    elif phx_wait_ms(&w.wake, &w.lock, RETRY_MS):
        w.stuck = False


cdef void* writer_run(void* arg) noexcept nogil:
    cdef JournalWriter* w = <JournalWriter*>arg
    cdef Items* batch = phx_new[Items]()
    pthread_mutex_lock(&w.lock)
    while True:
        while w.busy or ((w.queue.empty() or w.stuck) and not w.stopping):
            wait_for_work(w)
        if w.queue.empty() or w.stuck:
            break
        if run_batch(w, batch) and w.notify != NULL:
            pthread_mutex_unlock(&w.lock)
            w.notify(w.context)
            pthread_mutex_lock(&w.lock)
    drop(w, &w.queue, 0)
    pthread_mutex_unlock(&w.lock)
    phx_delete(batch)
    return NULL


cdef JournalWriter* writer_new(Journal* journal, WriterNotify notify, void* context) noexcept nogil:
    cdef JournalWriter* w = phx_new[JournalWriter]()
    w.journal = journal
    w.notify = notify
    w.context = context
    w.durable_lsn = <i64>journal_durable(journal)
    pthread_mutex_init(&w.lock, NULL)
    pthread_cond_init(&w.wake, NULL)
    return w


cdef int writer_start(JournalWriter* w) noexcept nogil:
    cdef int result = phx_thread_start(&w.thread, writer_run, w)
    w.running = result == 0
    return result


cdef void writer_push(JournalWriter* w, Block* block, u64 lsn_first, u64 lsn_end, bint sync,
                      bint write, bint urgent) noexcept nogil:
    cdef WriterItem item
    item.block = block
    item.lsn_first = lsn_first
    item.lsn_end = lsn_end
    item.sync = sync
    item.write = write
    item.urgent = urgent
    pthread_mutex_lock(&w.lock)
    if phx_load(&w.error) != 0 or w.stopping:
        block_unref(block)
    else:
        phx_add(&w.queued_bytes, <i64>block.size)
        w.queue.push_back(item)
        if urgent:
            w.stuck = False
        if not w.busy:
            pthread_cond_signal(&w.wake)
    pthread_mutex_unlock(&w.lock)


cdef int writer_inline(JournalWriter* w, Block* block, u64 lsn_first, u64 lsn_end, bint sync,
                       bint write, bint urgent) noexcept nogil:
    cdef WriterItem item
    cdef size_t done = 0
    cdef int code
    pthread_mutex_lock(&w.lock)
    code = <int>phx_load(&w.error)
    if code != 0:
        block_unref(block)
    if (code != 0 or w.busy or not w.queue.empty() or w.stopping
            or not journal_fits(w.journal, block.size)):
        pthread_mutex_unlock(&w.lock)
        return code
    w.busy = True
    pthread_mutex_unlock(&w.lock)
    item.block = block
    item.lsn_first = lsn_first
    item.lsn_end = lsn_end
    item.sync = sync
    item.write = write
    item.urgent = urgent
    phx_add(&w.queued_bytes, <i64>block.size)
    code = run_items(w, &item, 1, NULL, &done)
    phx_add(&w.inlined, 1)
    pthread_mutex_lock(&w.lock)
    w.busy = False
    if code < 0:
        phx_store(&w.error, code)
        if done == 0:
            phx_add(&w.queued_bytes, -<i64>block.size)
            block_unref(block)
    if w.stopping:
        pthread_cond_signal(&w.wake)
    pthread_mutex_unlock(&w.lock)
    return code if code < 0 else 1


cdef bint writer_idle(JournalWriter* w) noexcept nogil:
    cdef bint idle
    pthread_mutex_lock(&w.lock)
    idle = w.queue.empty() and not w.busy and not w.stopping
    pthread_mutex_unlock(&w.lock)
    return idle


cdef void writer_retry(JournalWriter* w) noexcept nogil:
    pthread_mutex_lock(&w.lock)
    if w.stuck:
        w.stuck = False
        pthread_cond_signal(&w.wake)
    pthread_mutex_unlock(&w.lock)


cdef u64 writer_durable(JournalWriter* w) noexcept nogil:
    return <u64>phx_load(&w.durable_lsn)


cdef int writer_error(JournalWriter* w) noexcept nogil:
    return <int>phx_load(&w.error)


cdef void writer_stop(JournalWriter* w) noexcept nogil:
    cdef int code
    pthread_mutex_lock(&w.lock)
    w.stopping = True
    w.stuck = False
    pthread_cond_signal(&w.wake)
    pthread_mutex_unlock(&w.lock)
    if w.running:
        pthread_join(w.thread, NULL)
        w.running = False
    drop(w, &w.queue, 0)
    if w.unsynced and phx_load(&w.error) == 0:
        code = sync_all(w)
        if code < 0:
            phx_store(&w.error, code)


cdef void writer_free(JournalWriter* w) noexcept nogil:
    writer_stop(w)
    pthread_cond_destroy(&w.wake)
    pthread_mutex_destroy(&w.lock)
    phx_delete(w)
