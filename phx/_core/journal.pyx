# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Appending, syncing, rolling, recycling and reading; see journal.pxd. Opening: replay.pyx."""

from libc.errno cimport EIO
from libc.string cimport memcpy, memset

from phx._core.native cimport *
from phx._core.codec cimport (
    RECORD_HEADER_BYTES, RecordHeader, phx_crc32c, record_check, record_salt, record_stride)
from phx._core.disk cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock)
from phx._core.replay cimport (
    journal_blame, replay_headers, replay_records, segment_capacity, segment_close, segment_remove)
from phx._core.segment cimport (
    SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MOST, SEGMENT_HEADER_BYTES, SegmentHeader, segment_fit,
    segment_salt, segment_seal)
from phx._core.shelf cimport shelf_give, shelf_header, shelf_take, shelf_tend, shelf_wants

cdef extern from "<time.h>" nogil:
    ctypedef struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec* out)

cdef enum:
    READ_FIRST_BYTES = 4096
    FREE_SEGMENTS_DEFAULT = 8


cdef i64 now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <i64>t.tv_sec * 1000000000 + t.tv_nsec


cdef inline void bump(i64* counter, i64 by) noexcept nogil:
    # One thread writes each counter, any may read it.
    phx_store(counter, phx_load(counter) + by)


# For ever: nobody knows what of the unsynced bytes is on the medium, and a second sync may say that
# all is well when it is not.
cdef int poison(Journal* j, int code, Segment* s, i64 result, const char* reason) noexcept nogil:
    if result < 0:
        phx_store(&j.errno_seen, -result)
    journal_blame(j, code, s.number if s != NULL else 0, j.next_lsn, reason)
    phx_store(&j.poisoned, 1)
    return code


# --- life

cdef Journal* journal_new(const DiskApi* api, const JournalOptions* options) noexcept nogil:
    cdef Journal* j = phx_new[Journal]()
    j.disk = api[0]
    j.options = options[0]
    if j.options.segment_bytes == 0:
        j.options.segment_bytes = SEGMENT_BYTES_DEFAULT
    if j.options.free_segments_max == 0:
        j.options.free_segments_max = FREE_SEGMENTS_DEFAULT
    if j.options.free_segments_max < JOURNAL_SPARES:
        j.options.free_segments_max = JOURNAL_SPARES
    pthread_mutex_init(&j.lock, NULL)
    # Number 0 is never used, so that 0 can mean none.
    j.next_number = 1
    return j


cdef void close_all(Journal* j, vector[Segment*]* segments) noexcept nogil:
    cdef size_t at
    for at in range(segments.size()):
        segment_close(j, segments[0][at])
    segments.clear()


cdef void journal_close(Journal* j) noexcept nogil:
    close_all(j, &j.live)
    close_all(j, &j.free)
    close_all(j, &j.suspects)
    close_all(j, &j.taken)
    if j.disk.release != NULL:
        j.disk.release(j.disk.context)
    block_unref(j.scratch)
    pthread_mutex_destroy(&j.lock)
    phx_delete(j)


cdef void journal_abandon(Journal* j) noexcept nogil:
    cdef size_t at
    for at in range(j.live.size()):
        j.disk.close(j.disk.context, j.live[at].file)
    for at in range(j.free.size()):
        j.disk.close(j.disk.context, j.free[at].file)
    if j.disk.release != NULL:
        j.disk.release(j.disk.context)


cdef bint options_sound(const JournalOptions* o) noexcept nogil:
    return (o.segment_bytes % 4096 == 0 and o.segment_bytes > SEGMENT_HEADER_BYTES
            and o.segment_bytes <= SEGMENT_BYTES_MOST
            and o.journal_bytes_max // 3 >= o.segment_bytes
            and record_stride(o.body_bytes_max) <= o.segment_bytes - SEGMENT_HEADER_BYTES)


cdef int journal_open(Journal* j, bint create) noexcept nogil:
    cdef int code
    if not options_sound(&j.options):
        return journal_blame(j, JOURNAL_INVALID, 0, 0, b"impossible sizes")
    code = replay_headers(j)
    if code != JOURNAL_OK:
        return code
    if create:
        if j.live.size() != 0 or j.suspects.size() != 0:
            return journal_blame(j, JOURNAL_EXISTS, 0, 0, b"there is a journal already")
        return begin_new(j)
    if j.live.size() == 0 and j.suspects.size() != 0:
        return journal_blame(j, JOURNAL_DAMAGED, j.suspects[0].number, 0, b"no header is good")
    if j.live.size() == 0:
        return journal_blame(j, JOURNAL_MISSING, 0, 0, b"there is no journal")
    return JOURNAL_OK


# Spares of a create that was cut short are used up first; their size is not trusted.
cdef int begin_new(Journal* j) noexcept nogil:
    cdef Segment* s
    cdef int code
    while j.free.size() != 0:
        s = j.free.back()
        j.free.pop_back()
        if segment_remove(j, s) < 0:
            return journal_blame(j, JOURNAL_IO, 0, 0, b"an old spare cannot be removed")
    j.next_lsn = JOURNAL_FIRST_LSN
    j.next_generation = 1
    code = shelf_take(j, True)
    if code == JOURNAL_OK:
        code = roll(j, j.taken.back())
    if code != JOURNAL_OK:
        return journal_blame(j, JOURNAL_IO, 0, 0, b"the first segment cannot be made")
    j.taken.clear()
    publish(j)
    phx_store(&j.written_lsn, <i64>j.next_lsn)
    j.replayed = True
    return JOURNAL_OK


cdef int journal_replay(Journal* j, ReplayRecord callback, void* arg) noexcept nogil:
    cdef int code
    if j.replayed:
        return JOURNAL_OK if j.current != NULL else JOURNAL_INVALID
    if j.live.size() == 0:
        return JOURNAL_INVALID
    code = replay_records(j, callback, arg)
    if code == JOURNAL_OK:
        j.floor_written = j.floor_lsn
        publish(j)
        j.starting = True
        phx_store(&j.written_lsn, <i64>j.next_lsn)
        j.replayed = True
    return code


cdef u64 journal_next_lsn(Journal* j) noexcept nogil:
    return j.next_lsn


# --- journal thread

# Everything before next_lsn is durable now.
cdef void publish(Journal* j) noexcept nogil:
    phx_store(&j.durable_lsn, <i64>j.next_lsn)
    if <i64>j.floor_written > phx_load(&j.floor_durable):
        phx_store(&j.floor_durable, <i64>j.floor_written)
        j.starting = False


cdef i64 timed_sync(Journal* j, Segment* s) noexcept nogil:
    cdef i64 start = now_ns()
    cdef i64 result = j.disk.sync(j.disk.context, s.file)
    cdef i64 took = now_ns() - start
    bump(&j.counters.syncs, 1)
    bump(&j.counters.sync_sum_ns, took)
    phx_store(&j.counters.sync_last_ns, took)
    if took > phx_load(&j.counters.sync_max_ns):
        phx_store(&j.counters.sync_max_ns, took)
    return result


# What was written to the current segment becomes durable.
cdef int settle_current(Journal* j) noexcept nogil:
    cdef i64 result
    if j.dirty:
        result = timed_sync(j, j.current)
        if result < 0:
            return poison(j, JOURNAL_IO, j.current, result, b"a sync failed")
        j.dirty = False
    publish(j)
    return JOURNAL_OK


# Goes on in `fresh`, from next_lsn. The order is the guarantee: all before is durable, then the
# header is written, and is durable before any record follows it.
cdef int roll(Journal* j, Segment* fresh) noexcept nogil:
    cdef u8 bytes[SEGMENT_HEADER_BYTES]
    cdef SegmentHeader header
    cdef Segment* previous = NULL
    cdef i64 result
    cdef int code = settle_current(j)
    if code != JOURNAL_OK:
        return code
    # The last segment stays the last one, but a recycling may be moving the table under it.
    pthread_mutex_lock(&j.lock)
    if j.live.size() != 0:
        previous = j.live.back()
    pthread_mutex_unlock(&j.lock)
    shelf_header(j, &header)
    header.generation = j.next_generation
    header.base_lsn = j.next_lsn
    if previous != NULL:
        header.previous_generation = previous.generation
        header.previous_end_lsn = previous.end_lsn if j.current == NULL else j.next_lsn
    segment_seal(&header, bytes)
    result = j.disk.write(j.disk.context, fresh.file, bytes, SEGMENT_HEADER_BYTES, 0)
    if result >= 0:
        result = timed_sync(j, fresh)
    if result < 0:
        return poison(j, JOURNAL_IO, fresh, result, b"the header of a segment cannot be written")
    pthread_mutex_lock(&j.lock)
    if j.current != NULL:
        j.current.end_lsn = j.next_lsn
    fresh.generation = header.generation
    fresh.base_lsn = header.base_lsn
    fresh.end_lsn = header.base_lsn
    fresh.previous_generation = header.previous_generation
    fresh.previous_end_lsn = header.previous_end_lsn
    j.live.push_back(fresh)
    j.live_bytes += fresh.bytes
    j.making_bytes -= fresh.bytes
    j.current = fresh
    pthread_mutex_unlock(&j.lock)
    j.next_generation += 1
    bump(&j.counters.rolls, 1)
    return JOURNAL_OK


cdef bint journal_fits(Journal* j, u64 count) noexcept nogil:
    return (j.current != NULL
            and count <= segment_capacity(j.current) - (j.next_lsn - j.current.base_lsn))


# Where the block has to be split, and a segment in j.taken for each split.
cdef int plan_splits(Journal* j, Block* block, bint urgent) noexcept nogil:
    cdef u64 room = 0, at = 0, count
    cdef int code = JOURNAL_OK
    j.splits.clear()
    if journal_fits(j, block.size):
        return JOURNAL_OK
    if j.current != NULL:
        room = segment_capacity(j.current) - (j.next_lsn - j.current.base_lsn)
    while True:
        count = segment_fit(block.data + at, block.size - at, room)
        at += count
        if at == block.size:
            break
        if count == 0 and j.splits.size() != 0:
            return JOURNAL_INVALID
        j.splits.push_back(at)
        room = j.options.segment_bytes - SEGMENT_HEADER_BYTES
    while code == JOURNAL_OK and j.taken.size() < j.splits.size():
        code = shelf_take(j, urgent)
    if code != JOURNAL_OK:
        while j.taken.size() != 0:
            shelf_give(j, j.taken.back())
            j.taken.pop_back()
    if code == JOURNAL_IO:
        return poison(j, JOURNAL_IO, NULL, 0, b"no segment can be made")
    return code


# Whole records, all into the current segment, in one write.
cdef int write_part(Journal* j, u8* data, u64 count) noexcept nogil:
    cdef i64 result, records = 0
    cdef u64 floor_lsn = j.floor_written
    cdef u64 offset = SEGMENT_HEADER_BYTES + (j.next_lsn - j.current.base_lsn)
    if not segment_salt(data, count, j.next_lsn, record_salt(j.current.generation),
                        j.options.body_bytes_max, &records, &floor_lsn):
        return poison(j, JOURNAL_INVALID, j.current, 0, b"asked to write what is no record")
    j.dirty = True
    result = j.disk.write(j.disk.context, j.current.file, data, count, offset)
    if result != <i64>count:
        return poison(j, JOURNAL_IO, j.current, result if result < 0 else -EIO,
                      b"a write failed")
    j.floor_written = floor_lsn
    j.next_lsn += count
    phx_store(&j.written_lsn, <i64>j.next_lsn)
    bump(&j.counters.records, records)
    bump(&j.counters.writes, 1)
    bump(&j.counters.bytes_written, <i64>count)
    return JOURNAL_OK


# A block that somebody else holds is immutable: salt a copy.
cdef u8* salted_place(Journal* j, Block* block) noexcept nogil:
    if phx_load(&block.refs) == 1:
        return block.data
    if j.scratch == NULL:
        j.scratch = block_new(block.size)
    j.scratch.size = 0
    j.scratch = block_append(j.scratch, block.data, block.size)
    return j.scratch.data


cdef int journal_append(Journal* j, Block* block, u64 lsn_first, bint urgent) noexcept nogil:
    cdef size_t split = 0
    cdef u64 at = 0, end
    cdef u8* data
    cdef int code
    if journal_poisoned(j):
        return JOURNAL_POISONED
    if not j.replayed or lsn_first != j.next_lsn or block.size == 0 or block.size & 7:
        return JOURNAL_INVALID
    code = plan_splits(j, block, urgent)
    if code != JOURNAL_OK:
        return code
    data = salted_place(j, block)
    while at < block.size and code == JOURNAL_OK:
        end = j.splits[split] if split < j.splits.size() else block.size
        if end > at:
            code = write_part(j, data + at, end - at)
            at = end
        if split < j.splits.size() and code == JOURNAL_OK:
            code = roll(j, j.taken[split])
            if code == JOURNAL_OK:
                split += 1
    # After a failure some were not reached: nobody will need them, but they are to be closed.
    while split < j.taken.size():
        shelf_give(j, j.taken[split])
        split += 1
    j.taken.clear()
    return code


cdef i64 journal_sync(Journal* j) noexcept nogil:
    cdef int code
    if journal_poisoned(j):
        return JOURNAL_POISONED
    code = settle_current(j)
    return code if code != JOURNAL_OK else <i64>j.next_lsn


# --- any thread

cdef bint journal_poisoned(Journal* j) noexcept nogil:
    return phx_load(&j.poisoned) != 0


cdef u64 journal_durable(Journal* j) noexcept nogil:
    return <u64>phx_load(&j.durable_lsn)


cdef int journal_recycle(Journal* j, u64 floor_lsn) noexcept nogil:
    cdef u64 allowed = <u64>phx_load(&j.floor_durable)
    cdef size_t freed = 0, at
    if floor_lsn > allowed:
        floor_lsn = allowed
    pthread_mutex_lock(&j.lock)
    if floor_lsn > j.floor_lsn:
        j.floor_lsn = floor_lsn
    while freed + 1 < j.live.size() and j.live[freed].end_lsn <= floor_lsn:
        j.live_bytes -= j.live[freed].bytes
        j.free_bytes += j.live[freed].bytes
        j.free.push_back(j.live[freed])
        freed += 1
    if freed != 0:
        for at in range(j.live.size() - freed):
            j.live[at] = j.live[at + freed]
        j.live.resize(j.live.size() - freed)
    pthread_mutex_unlock(&j.lock)
    return <int>freed


# The segment that holds lsn, with a pin on it, and the end of what may be read there.
cdef int pin_segment(Journal* j, u64 lsn, Segment** out, u64* end_lsn) noexcept nogil:
    cdef size_t low = 0, high, middle
    cdef int code = JOURNAL_GONE
    cdef Segment* s
    if lsn & 7:
        return JOURNAL_GONE
    pthread_mutex_lock(&j.lock)
    end_lsn[0] = <u64>phx_load(&j.written_lsn)
    if lsn >= end_lsn[0]:
        code = JOURNAL_NOT_YET
    elif lsn >= j.floor_lsn and j.live.size() != 0 and lsn >= j.live[0].base_lsn:
        high = j.live.size()
        while high - low > 1:
            middle = (low + high) // 2
            if j.live[middle].base_lsn <= lsn:
                low = middle
            else:
                high = middle
        s = j.live[low]
        if s != j.current:
            end_lsn[0] = s.end_lsn
        # Between the end of a segment that was cut and the base of the next one there is nothing.
        if lsn < end_lsn[0]:
            s.pins += 1
            out[0] = s
            code = JOURNAL_OK
    pthread_mutex_unlock(&j.lock)
    return code


cdef void unpin(Journal* j, Segment* s) noexcept nogil:
    pthread_mutex_lock(&j.lock)
    s.pins -= 1
    pthread_mutex_unlock(&j.lock)


cdef int read_pinned(Journal* j, Segment* s, u64 lsn, u64 room, Block** body,
                     RecordHeader* out) noexcept nogil:
    cdef u8 first[READ_FIRST_BYTES]
    cdef u64 offset = SEGMENT_HEADER_BYTES + (lsn - s.base_lsn)
    cdef u64 count = room if room < READ_FIRST_BYTES else READ_FIRST_BYTES
    cdef u64 wanted, here
    cdef u32 crc
    cdef Block* made
    cdef i64 got = j.disk.read(j.disk.context, s.file, first, count, offset)
    if got < 0:
        return JOURNAL_IO
    if <u64>got < count or count < RECORD_HEADER_BYTES:
        return JOURNAL_DAMAGED
    memcpy(out, first, RECORD_HEADER_BYTES)
    out.crc ^= record_salt(s.generation)
    wanted = out.body_bytes
    if out.kind == 0 or wanted > room - RECORD_HEADER_BYTES:
        return JOURNAL_DAMAGED
    made = block_new(wanted)
    made.size = wanted
    here = count - RECORD_HEADER_BYTES
    if here > wanted:
        here = wanted
    memcpy(made.data, first + RECORD_HEADER_BYTES, here)
    if here < wanted:
        got = j.disk.read(j.disk.context, s.file, made.data + here, wanted - here, offset + count)
    crc = phx_crc32c(0, first + 4, RECORD_HEADER_BYTES - 4)
    if got < 0 or phx_crc32c(crc, made.data, wanted) != out.crc:
        block_unref(made)
        return JOURNAL_IO if got < 0 else JOURNAL_DAMAGED
    body[0] = made
    return JOURNAL_OK


cdef int journal_read(Journal* j, u64 lsn, Block** body, RecordHeader* out) noexcept nogil:
    cdef Segment* s = NULL
    cdef u64 end_lsn = 0
    cdef int code = pin_segment(j, lsn, &s, &end_lsn)
    if code == JOURNAL_OK:
        code = read_pinned(j, s, lsn, end_lsn - lsn, body, out)
        unpin(j, s)
    return code


# Keeps the whole, good records at the start of `block`, unsalted. The bytes wanted for the first
# one if not even that is whole, else 0; 1 if it is bad.
cdef u64 keep_whole(Block* block, u32 salt, u64 room) noexcept nogil:
    cdef u64 at = 0, stride = 0
    cdef RecordHeader* header = <RecordHeader*>block.data
    while at < block.size:
        stride = record_check(block.data + at, block.size - at, salt, <u32>0xFFFFFFFF)
        if stride == 0:
            break
        (<RecordHeader*>(block.data + at)).crc ^= salt
        at += stride
    if at == 0:
        stride = record_stride(header.body_bytes) if block.size >= RECORD_HEADER_BYTES else 32
        return stride if block.size < stride <= room else 1
    block.size = at
    return 0


cdef int journal_read_span(Journal* j, u64 lsn, u64 bytes_max, Block** out) noexcept nogil:
    cdef Segment* s = NULL
    cdef u64 end_lsn = 0, wanted = bytes_max
    cdef Block* block = NULL
    cdef i64 got
    cdef int code = pin_segment(j, lsn, &s, &end_lsn)
    if code != JOURNAL_OK:
        return code
    if wanted < RECORD_HEADER_BYTES:
        wanted = RECORD_HEADER_BYTES
    while wanted > 1:
        if wanted > end_lsn - lsn:
            wanted = end_lsn - lsn
        block_unref(block)
        block = block_new(wanted)
        got = j.disk.read(j.disk.context, s.file, block.data, wanted,
                          SEGMENT_HEADER_BYTES + (lsn - s.base_lsn))
        if got != <i64>wanted:
            code = JOURNAL_IO if got < 0 else JOURNAL_DAMAGED
            break
        block.size = wanted
        wanted = keep_whole(block, record_salt(s.generation), end_lsn - lsn)
    if code == JOURNAL_OK and wanted == 1:
        code = JOURNAL_DAMAGED
    unpin(j, s)
    if code == JOURNAL_OK:
        out[0] = block
    else:
        block_unref(block)
    return code


# --- housekeeping and reports

cdef bint journal_wants_spare(Journal* j) noexcept nogil:
    return not journal_poisoned(j) and shelf_wants(j)


cdef int journal_prepare_spare(Journal* j) noexcept nogil:
    return JOURNAL_POISONED if journal_poisoned(j) else shelf_tend(j)


cdef void journal_pressure(Journal* j, u64* bytes_live, u64* bytes_max) noexcept nogil:
    pthread_mutex_lock(&j.lock)
    bytes_live[0] = j.live_bytes
    bytes_max[0] = j.options.journal_bytes_max
    pthread_mutex_unlock(&j.lock)


cdef void journal_counters(Journal* j, JournalCounters* out) noexcept nogil:
    cdef const i64* counters = <const i64*>&j.counters
    cdef i64* copied = <i64*>out
    cdef size_t at
    for at in range(sizeof(JournalCounters) // sizeof(i64)):
        copied[at] = phx_load(&counters[at])
    pthread_mutex_lock(&j.lock)
    out.segments_live = <i64>j.live.size()
    out.segments_free = <i64>j.free.size()
    pthread_mutex_unlock(&j.lock)
