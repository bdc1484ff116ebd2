"""The journal thread: collects blocks while a sync is in flight, writes them all, syncs once.

Blocks reach the journal in the order in which they were pushed. When a block that asked for a sync
is durable, the new position is published and `notify` called, once per batch, on the journal
thread; it must not block and not call back into the writer. Nothing lingers on a timer. A block of
which only the writing is waited for has `notify` called before the batch is synced, if it is.

One other thread (the poll thread) makes all calls here.
"""

from phx._core.native cimport *
from phx._core.disk cimport pthread_mutex_t, pthread_cond_t, pthread_t
from phx._core.journal cimport Journal

ctypedef void (*WriterNotify)(void* context) noexcept nogil

cdef struct WriterItem:
    Block* block
    u64 lsn_first
    u64 lsn_end
    bint sync
    bint write                 # somebody waits for it to be written
    bint urgent

cdef struct JournalWriter:
    Journal* journal
    WriterNotify notify
    void* context
    pthread_t thread
    pthread_mutex_t lock       # guards queue, busy, running, stopping, stuck
    pthread_cond_t wake
    vector[WriterItem] queue
    bint running
    bint stopping
    bint busy                  # somebody is inside the journal: the thread, or writer_inline
    bint stuck                 # the first block of the queue found the journal full
    bint unsynced              # whoever is inside: of what was written, some waited for no sync
    # --- published
    i64 durable_lsn            # through which a sync has returned
    i64 error                  # 0, or the JournalError that ended the writing, for ever
    i64 full                   # 1 while blocks wait for a recycle
    i64 queued_bytes           # pushed and not yet written
    i64 inlined                # batches written by writer_inline
    i64 cpu_ns                 # of the thread, brought up to date after each batch

# The journal must be open and replayed, and outlive the writer.
cdef JournalWriter* writer_new(Journal* journal, WriterNotify notify, void* context) noexcept nogil
# 0 or -errno. All signals are blocked in the thread.
cdef int writer_start(JournalWriter* w) noexcept nogil
# Takes the caller's reference. `sync` False: written, but waits for no sync. After an error the
# block is dropped.
cdef void writer_push(JournalWriter* w, Block* block, u64 lsn_first, u64 lsn_end, bint sync,
                      bint write, bint urgent) noexcept nogil
# The same by the calling thread itself, without the two thread switches, if the writer is idle and
# no new segment is needed (making one takes long). 1: done; the reference is taken, the position
# published, notify not called. 0: nothing is done, push instead. Else the JournalError that w.error
# has; the reference is taken.
cdef int writer_inline(JournalWriter* w, Block* block, u64 lsn_first, u64 lsn_end, bint sync,
                       bint write, bint urgent) noexcept nogil
cdef bint writer_idle(JournalWriter* w) noexcept nogil
# After journal_recycle: try a block that found the journal full once more. (The thread also tries
# by itself once a second: a full disk may have been cleared by somebody else.)
cdef void writer_retry(JournalWriter* w) noexcept nogil
cdef u64 writer_durable(JournalWriter* w) noexcept nogil
# 0, or the error that ended the writing.
cdef int writer_error(JournalWriter* w) noexcept nogil
# Writes (and if asked for, syncs) what is queued, then joins the thread. What was written and
# waited for no sync is synced, too. Blocks that still find the
# journal full are dropped. Idempotent; safe if never started.
cdef void writer_stop(JournalWriter* w) noexcept nogil
cdef void writer_free(JournalWriter* w) noexcept nogil
