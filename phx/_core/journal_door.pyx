# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The journal for Python; see journal_door.pxd. Input and output happen without the GIL."""

import os

cimport cython
from libc.string cimport memcpy, memset

from phx._core.native cimport *
from phx._core.codec cimport RECORD_ACCEPT, RECORD_FLOOR, RecordHeader, record_append
from phx._core.disk cimport (
    DiskApi, disk_folder_open, pthread_mutex_lock, pthread_mutex_unlock)
from phx._core.journal cimport (
    JOURNAL_DAMAGED, JOURNAL_EXISTS, JOURNAL_FOREIGN, JOURNAL_FULL, JOURNAL_GONE, JOURNAL_INVALID,
    JOURNAL_IO, JOURNAL_MISSING, JOURNAL_NOT_YET, JOURNAL_OK, JOURNAL_POISONED, JOURNAL_VERSION,
    JournalCounters, JournalOptions, Segment, journal_abandon, journal_append, journal_close,
    journal_counters, journal_durable, journal_new, journal_next_lsn, journal_open,
    journal_poisoned, journal_prepare_spare, journal_pressure, journal_read, journal_read_span,
    journal_recycle, journal_replay, journal_sync, journal_wants_spare)
from phx._core.journal_limits cimport JournalRoom, room_pressure
from phx._core.memdisk cimport MemoryDisk, memory_disk_api
from phx._core.writer cimport (
    writer_durable, writer_error, writer_free, writer_idle, writer_inline, writer_new, writer_push,
    writer_retry, writer_start, writer_stop)

cdef extern from "<time.h>" nogil:
    ctypedef struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec* out)

CODES = {JOURNAL_IO: "io", JOURNAL_DAMAGED: "damaged", JOURNAL_FOREIGN: "foreign",
         JOURNAL_VERSION: "version", JOURNAL_FULL: "full", JOURNAL_POISONED: "poisoned",
         JOURNAL_GONE: "gone", JOURNAL_EXISTS: "exists", JOURNAL_MISSING: "missing",
         JOURNAL_NOT_YET: "not yet", JOURNAL_INVALID: "invalid"}

ctypedef vector[RecordHeader] Headers
ctypedef vector[u64] Positions


class JournalFailure(Exception):
    """``code``: one of the values of CODES; ``text``: segment, position and reason, or ""."""

    def __init__(self, code, text=""):
        super().__init__(f"{code}: {text}" if text else code)
        self.code = code
        self.text = text


cdef object failure(NativeJournal* j, int code):
    return JournalFailure(CODES.get(code, str(code)), j.text.decode() if j != NULL else "")


cdef struct Replayed:
    Positions* positions
    Headers* headers
    Block* bodies
    i64 refuse_after           # the record that the caller refuses; negative: none


cdef int note_record(void* arg, const RecordHeader* header, const u8* body, u64 lsn) noexcept nogil:
    cdef Replayed* found = <Replayed*>arg
    if found.refuse_after == <i64>found.positions.size():
        return -1
    found.positions.push_back(lsn)
    found.headers.push_back(header[0])
    found.bodies = block_append(found.bodies, body, header.body_bytes)
    return 0


cdef list records_of(Replayed* found):
    cdef size_t at
    cdef u64 start = 0
    cdef RecordHeader h
    records = []
    for at in range(found.positions.size()):
        h = found.headers[0][at]
        records.append((found.positions[0][at], h.kind, h.group, h.index, h.ballot,
                        found.bodies.data[start:start + h.body_bytes]))
        start += h.body_bytes
    return records


cdef i64 now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <i64>t.tv_sec * 1000000000 + t.tv_nsec


# Closing needs the disk, and the writer's end the journal, also when a cycle is collected.
@cython.no_gc_clear
cdef class Journal:
    def __init__(self, where, *, bint create=False, u64 cluster=1, u32 node=1,
                 bytes store_id=bytes(16), u64 segment_bytes=8192, u64 journal_bytes_max=1 << 40,
                 u32 body_bytes_max=2048, u32 free_segments_max=0, i64 refuse_after=-1):
        cdef DiskApi api
        cdef JournalOptions options
        cdef bytes path
        cdef int code
        if self.j != NULL:
            raise ValueError("opened already")
        if len(store_id) != 16:
            raise ValueError("a store id has 16 bytes")
        memset(&options, 0, sizeof(options))
        options.cluster = cluster
        options.node = node
        memcpy(options.store_id, <const char*>store_id, 16)
        options.segment_bytes = segment_bytes
        options.journal_bytes_max = journal_bytes_max
        options.body_bytes_max = body_bytes_max
        options.free_segments_max = free_segments_max
        self.replayed = []
        if isinstance(where, MemoryDisk):
            self.disk = where
            memory_disk_api((<MemoryDisk>where).state, &api)
        else:
            path = os.fsencode(where)
            code = disk_folder_open(&api, path, create)
            if code < 0:
                raise OSError(-code, os.strerror(-code), where)
        self.j = journal_new(&api, &options)
        try:
            self._start(create, refuse_after)
        except BaseException:
            self.close()
            raise

    def _start(self, bint create, i64 refuse_after):
        cdef Replayed found
        cdef int code
        found.positions = phx_new[Positions]()
        found.headers = phx_new[Headers]()
        found.bodies = block_new(64)
        found.refuse_after = refuse_after
        try:
            with nogil:
                code = journal_open(self.j, create)
                if code == JOURNAL_OK:
                    code = journal_replay(self.j, note_record, &found)
            if code != JOURNAL_OK:
                raise failure(self.j, code)
            self.replayed = records_of(&found)
        finally:
            phx_delete(found.positions)
            phx_delete(found.headers)
            block_unref(found.bodies)

    def __dealloc__(self):
        if self.j != NULL:
            journal_close(self.j)

    cdef NativeJournal* _open(self) except NULL:
        if self.j == NULL:
            raise ValueError("the journal is closed")
        return self.j

    def close(self):
        """Idempotent. The caller sees to it that no other thread is inside."""
        if self.j != NULL:
            journal_close(self.j)
            self.j = NULL

    def abandon(self):
        """What a forked child does: close descriptors, nothing else."""
        journal_abandon(self._open())
        self.j = NULL

    @property
    def next_lsn(self):
        return journal_next_lsn(self._open())

    @property
    def durable_lsn(self):
        return journal_durable(self._open())

    @property
    def floor_lsn(self):
        return self._open().floor_lsn

    @property
    def poisoned(self):
        return bool(journal_poisoned(self._open()))

    @property
    def errno(self):
        return self._open().errno_seen

    @property
    def text(self):
        return self._open().text.decode()

    def append(self, bytes records not None, *, lsn=None, bint urgent=False, bint shared=False):
        """Appends encoded records at next_lsn (or ``lsn``); their first position."""
        cdef NativeJournal* j = self._open()
        cdef u64 first = journal_next_lsn(j) if lsn is None else lsn
        cdef Block* block = block_copy(<const char*>records, len(records))
        cdef int code
        if shared:
            block_ref(block)
        with nogil:
            code = journal_append(j, block, first, urgent)
        try:
            if shared and block.data[:block.size] != records:
                raise AssertionError("a block that others hold was changed")
        finally:
            block_unref(block)
            if shared:
                block_unref(block)
        if code != JOURNAL_OK:
            raise failure(j, code)
        return first

    def sync(self):
        """The durable position."""
        cdef NativeJournal* j = self._open()
        cdef i64 lsn
        with nogil:
            lsn = journal_sync(j)
        if lsn < 0:
            raise failure(j, <int>lsn)
        return lsn

    def recycle(self, u64 floor_lsn):
        """The number of segments freed."""
        return journal_recycle(self._open(), floor_lsn)

    def read(self, u64 lsn):
        """(kind, group, index, ballot, body) of the record at ``lsn``."""
        cdef NativeJournal* j = self._open()
        cdef RecordHeader h
        cdef Block* body = NULL
        cdef int code
        with nogil:
            code = journal_read(j, lsn, &body, &h)
        if code != JOURNAL_OK:
            raise failure(j, code)
        try:
            return h.kind, h.group, h.index, h.ballot, body.data[:body.size]
        finally:
            block_unref(body)

    def read_span(self, u64 lsn, u64 bytes_max):
        """Whole records from ``lsn`` on, as they were appended."""
        cdef NativeJournal* j = self._open()
        cdef Block* span = NULL
        cdef int code
        with nogil:
            code = journal_read_span(j, lsn, bytes_max, &span)
        if code != JOURNAL_OK:
            raise failure(j, code)
        try:
            return span.data[:span.size]
        finally:
            block_unref(span)

    def pin(self, u64 lsn, int by):
        """Pretends that a reader went into (1) or out of (-1) the segment that holds ``lsn``."""
        cdef NativeJournal* j = self._open()
        cdef Segment* found = NULL
        cdef Segment* s
        cdef size_t at
        for at in range(j.live.size() + j.free.size()):
            s = j.live[at] if at < j.live.size() else j.free[at - j.live.size()]
            if s.generation != 0 and s.base_lsn <= lsn and (
                    found == NULL or found.base_lsn < s.base_lsn):
                found = s
        if found == NULL:
            raise ValueError("no segment holds that position")
        found.pins += by

    def wants_spare(self):
        return bool(journal_wants_spare(self._open()))

    def prepare_spare(self):
        """Whether to call again."""
        cdef NativeJournal* j = self._open()
        cdef int code
        with nogil:
            code = journal_prepare_spare(j)
        if code < 0:
            raise failure(j, code)
        return bool(code)

    def pressure(self):
        """(bytes live, bytes at most)."""
        cdef u64 live, most
        journal_pressure(self._open(), &live, &most)
        return live, most

    def counters(self):
        cdef JournalCounters counters
        journal_counters(self._open(), &counters)
        return counters

    def segments(self):
        """(number, generation, base_lsn, end_lsn) of the live ones, oldest first."""
        cdef NativeJournal* j = self._open()
        cdef vector[Segment] copied
        cdef size_t at
        with nogil:
            pthread_mutex_lock(&j.lock)
            for at in range(j.live.size()):
                copied.push_back(j.live[at][0])
            pthread_mutex_unlock(&j.lock)
        return [(copied[at].number, copied[at].generation, copied[at].base_lsn, copied[at].end_lsn)
                for at in range(copied.size())]

    def free_numbers(self):
        cdef NativeJournal* j = self._open()
        cdef vector[u32] copied
        cdef size_t at
        with nogil:
            pthread_mutex_lock(&j.lock)
            for at in range(j.free.size()):
                copied.push_back(j.free[at].number)
            pthread_mutex_unlock(&j.lock)
        return sorted(copied[at] for at in range(copied.size()))

    def time_appends(self, double seconds, u32 records, u32 body_bytes, u32 keep=8):
        """Appends and syncs for so long; (syncs, ns). Records are dead ``keep`` segments later."""
        cdef NativeJournal* j = self._open()
        cdef i64 start = now_ns(), until = start + <i64>(seconds * 1e9), syncs = 0, lsn = 0
        cdef u64 floor_lsn
        cdef Block* body = block_new(body_bytes)
        cdef Block* block
        cdef u32 at
        memset(body.data, 0x5A, body_bytes)
        with nogil:
            while now_ns() < until and lsn >= 0:
                block = block_new(records * <u64>(body_bytes + 64))
                for at in range(records):
                    block = record_append(block, RECORD_ACCEPT, at, syncs, 1, body.data, body_bytes)
                lsn = journal_append(j, block, journal_next_lsn(j), False)
                block_unref(block)
                if lsn == JOURNAL_OK:
                    lsn = journal_sync(j)
                syncs += 1
                if lsn > 0 and j.live.size() > keep:
                    floor_lsn = j.live[j.live.size() - keep].base_lsn
                    block = record_append(block_new(64), RECORD_FLOOR, 0, floor_lsn, 0, NULL, 0)
                    lsn = journal_append(j, block, journal_next_lsn(j), True)
                    block_unref(block)
                    if lsn == JOURNAL_OK:
                        lsn = journal_sync(j)
                    journal_recycle(j, floor_lsn)
        block_unref(body)
        if lsn < 0:
            raise failure(j, <int>lsn)
        return syncs, now_ns() - start


cdef void count_notice(void* context) noexcept nogil:
    phx_add(<i64*>context, 1)


@cython.no_gc_clear
cdef class Writer:
    def __init__(self, Journal journal not None):
        cdef int code
        if self.w != NULL:
            raise ValueError("started already")
        self.journal = journal
        self.w = writer_new(journal._open(), count_notice, &self.notified)
        code = writer_start(self.w)
        if code < 0:
            raise OSError(-code, os.strerror(-code))

    def __dealloc__(self):
        if self.w != NULL:
            writer_free(self.w)

    def push(self, u64 lsn, bytes records not None, *, bint sync=True, bint write=False,
             bint urgent=False, bint inline=False):
        """The position after the records; with ``inline``, whether the writer was idle."""
        cdef Block* block = block_copy(<const char*>records, len(records))
        cdef u64 end = lsn + block.size
        cdef int done
        if not inline:
            writer_push(self.w, block, lsn, end, sync, write, urgent)
            return end
        with nogil:
            done = writer_inline(self.w, block, lsn, end, sync, write, urgent)
        if done == 0:
            block_unref(block)
        if done < 0:
            raise failure(self.w.journal, done)
        return bool(done)

    def retry(self):
        writer_retry(self.w)

    def stop(self):
        """Idempotent."""
        with nogil:
            writer_stop(self.w)

    @property
    def idle(self):
        return bool(writer_idle(self.w))

    @property
    def durable_lsn(self):
        return writer_durable(self.w)

    @property
    def error(self):
        code = writer_error(self.w)
        return CODES[code] if code else None

    @property
    def full(self):
        return bool(phx_load(&self.w.full))

    @property
    def queued_bytes(self):
        return phx_load(&self.w.queued_bytes)

    @property
    def notices(self):
        return phx_load(&self.notified)

    @property
    def inlined(self):
        return phx_load(&self.w.inlined)

    @property
    def cpu_ns(self):
        return phx_load(&self.w.cpu_ns)

    def time_round_trips(self, double seconds, u32 body_bytes, bint inline):
        """One record at a time until it is durable, for so long; (round trips, ns)."""
        cdef NativeJournal* j = self.journal._open()
        cdef u64 lsn = journal_next_lsn(j)
        cdef i64 start, until, done = 0, seen
        cdef Block* body = block_new(body_bytes)
        cdef Block* block
        cdef int code
        memset(body.data, 0x5A, body_bytes)
        start = now_ns()
        until = start + <i64>(seconds * 1e9)
        with nogil:
            while now_ns() < until and writer_error(self.w) == 0:
                block = record_append(block_new(body_bytes + 64), RECORD_ACCEPT, 1, done, 1,
                                      body.data, body_bytes)
                lsn += block.size
                seen = phx_load(&self.notified)
                code = 0
                if inline:
                    code = writer_inline(self.w, block, lsn - block.size, lsn, True, False, False)
                if code == 0:
                    writer_push(self.w, block, lsn - block.size, lsn, True, False, False)
                    while writer_durable(self.w) < lsn and writer_error(self.w) == 0:
                        wait_for_change(&self.notified, seen)
                done += 1
        block_unref(body)
        return done, now_ns() - start


cdef extern from *:
    """
    #include <sched.h>
    /* Polling costs a core, and measures the thread rather than another wake-up. */
    static void wait_for_change(int64_t *word, int64_t seen) {
        for (int i = 0; i < 200 && __atomic_load_n(word, __ATOMIC_ACQUIRE) == seen; i++) {
            __asm__ __volatile__("" ::: "memory");
        }
        if (__atomic_load_n(word, __ATOMIC_ACQUIRE) == seen) sched_yield();
    }
    """
    void wait_for_change(i64* word, i64 seen) nogil


def pressure(u64 held_bytes, u64 bytes_max, u64 segment_bytes, u64 turn_bytes,
             u64 pending_bytes_max, int before):
    """What a journal that holds so much puts on the engine: one of PRESSURE_*."""
    cdef JournalRoom room
    room.live_bytes = held_bytes
    room.queued_bytes = 0
    room.bytes_max = bytes_max
    room.segment_bytes = segment_bytes
    return room_pressure(&room, turn_bytes, pending_bytes_max, before)


def blocks_live():
    """Native blocks as this module counts them."""
    return phx_blocks_live()


def allocations_live():
    """All that native code holds in this process: blocks, structs, and memory of any other kind."""
    return phx_blocks_live() + phx_others_live()
