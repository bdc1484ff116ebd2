# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Opening a journal that exists; see replay.pxd."""

from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset

from phx._core.native cimport *
from phx._core.codec cimport RECORD_HEADER_BYTES, RecordHeader, record_check, record_salt
from phx._core.journal cimport (
    JOURNAL_DAMAGED, JOURNAL_FOREIGN, JOURNAL_IO, JOURNAL_OK, JOURNAL_TEXT_BYTES, JOURNAL_VERSION,
    Segments)
from phx._core.segment cimport (
    SEGMENT_BAD, SEGMENT_BLANK, SEGMENT_BYTES_MOST, SEGMENT_FOREIGN_VERSION, SEGMENT_HEADER_BYTES,
    SEGMENT_NAME_BYTES, SegmentHeader, SegmentScan, segment_belongs, segment_name, segment_number,
    segment_parse, segment_scan)

cdef enum:
    # A header that was lost may have been followed by others that were lost as well.
    GENERATIONS_TRIED = 64
    READ_WORDS = 4096

cdef u64 POSITION_MAX = <u64>1 << 62

ctypedef vector[u32] Numbers


cdef int journal_blame(Journal* j, int code, u32 number, u64 lsn,
                       const char* reason) noexcept nogil:
    cdef char name[SEGMENT_NAME_BYTES]
    segment_name(number, name)
    if number == 0:
        snprintf(j.text, JOURNAL_TEXT_BYTES, b"%s", reason)
    elif lsn == 0:
        snprintf(j.text, JOURNAL_TEXT_BYTES, b"%s: %s", name, reason)
    else:
        snprintf(j.text, JOURNAL_TEXT_BYTES, b"%s, position %llu: %s", name,
                 <unsigned long long>lsn, reason)
    return code


cdef int blame_io(Journal* j, u32 number, i64 result, const char* what) noexcept nogil:
    phx_store(&j.errno_seen, -result)
    return journal_blame(j, JOURNAL_IO, number, 0, what)


cdef void segment_close(Journal* j, Segment* s) noexcept nogil:
    j.disk.close(j.disk.context, s.file)
    phx_delete(s)


cdef i64 segment_remove(Journal* j, Segment* s) noexcept nogil:
    cdef char name[SEGMENT_NAME_BYTES]
    segment_name(s.number, name)
    segment_close(j, s)
    return j.disk.remove(j.disk.context, name)


# --- headers

cdef void note_name(void* arg, const char* name) noexcept nogil:
    cdef u32 number
    if segment_number(name, &number):
        (<Numbers*>arg).push_back(number)


cdef void sort_segments(Segments* segments) noexcept nogil:
    # By generation, then number: nothing may depend on the order in which a folder is listed.
    cdef size_t at, hole
    cdef Segment* s
    at = 1
    while at < segments.size():
        s = segments[0][at]
        hole = at
        while hole > 0 and (segments[0][hole - 1].generation > s.generation
                            or (segments[0][hole - 1].generation == s.generation
                                and segments[0][hole - 1].number > s.number)):
            segments[0][hole] = segments[0][hole - 1]
            hole -= 1
        segments[0][hole] = s
        at += 1


# No record was ever written after that header: it was torn when the first one of a file was made.
cdef bint nothing_stored(Journal* j, Segment* s) noexcept nogil:
    cdef u64 words[READ_WORDS]
    cdef u64 at = SEGMENT_HEADER_BYTES
    cdef i64 got
    cdef size_t word
    while True:
        memset(words, 0, sizeof(words))
        got = j.disk.read(j.disk.context, s.file, <u8*>words, sizeof(words), at)
        if got <= 0:
            return got == 0
        for word in range(<size_t>READ_WORDS):
            if words[word] != 0:
                return False
        at += <u64>got


cdef int sort_in(Journal* j, Segment* s, int verdict, SegmentHeader* header) noexcept nogil:
    cdef u32 number
    cdef i64 result
    if verdict == SEGMENT_FOREIGN_VERSION:
        j.suspects.push_back(s)
        return journal_blame(j, JOURNAL_VERSION, s.number, 0,
                             b"written by another version of the format")
    if verdict == SEGMENT_BAD and nothing_stored(j, s):
        verdict = SEGMENT_BLANK
    if verdict == SEGMENT_BLANK:
        number = s.number
        result = segment_remove(j, s)
        return blame_io(j, number, result, b"cannot be removed") if result < 0 else JOURNAL_OK
    if verdict == SEGMENT_BAD:
        j.suspects.push_back(s)
        return JOURNAL_OK
    s.generation = header.generation
    s.base_lsn = header.base_lsn
    s.end_lsn = header.base_lsn
    s.previous_generation = header.previous_generation
    s.previous_end_lsn = header.previous_end_lsn
    if s.generation != 0:
        # Its size is the one it was made with: what a file has lost at its end reads as zeros.
        s.bytes = header.segment_bytes
        j.live.push_back(s)
    else:
        j.free.push_back(s)
    if (header.cluster != j.options.cluster or header.node != j.options.node
            or memcmp(header.store_id, j.options.store_id, 16) != 0):
        return journal_blame(j, JOURNAL_FOREIGN, s.number, 0,
                             b"belongs to another cluster, node or store")
    if s.generation != 0 and (s.bytes <= SEGMENT_HEADER_BYTES or s.bytes % 4096 != 0
                              or s.bytes > SEGMENT_BYTES_MOST):
        return journal_blame(j, JOURNAL_DAMAGED, s.number, 0, b"impossible size in its header")
    # Positions and generations are added to, and told as signed numbers.
    if (s.generation > POSITION_MAX or s.base_lsn > POSITION_MAX or s.base_lsn & 7 != 0
            or s.previous_end_lsn > s.base_lsn):
        return journal_blame(j, JOURNAL_DAMAGED, s.number, 0, b"impossible position in its header")
    return JOURNAL_OK


cdef int open_one(Journal* j, u32 number) noexcept nogil:
    cdef char name[SEGMENT_NAME_BYTES]
    cdef u8 data[SEGMENT_HEADER_BYTES]
    cdef SegmentHeader header
    cdef Segment* s
    cdef i64 file, size, got
    segment_name(number, name)
    file = j.disk.open(j.disk.context, name, False)
    if file < 0:
        return blame_io(j, number, file, b"cannot be opened")
    s = phx_new[Segment]()
    memset(s, 0, sizeof(Segment))
    s.file = file
    s.number = number
    size = j.disk.size(j.disk.context, file)
    got = j.disk.read(j.disk.context, file, data, SEGMENT_HEADER_BYTES, 0)
    if size < 0 or got < 0:
        segment_close(j, s)
        return blame_io(j, number, size if size < 0 else got, b"cannot be read")
    s.bytes = <u64>size
    return sort_in(j, s, segment_parse(data, <u64>got, &header), &header)


cdef int replay_headers(Journal* j) noexcept nogil:
    cdef Numbers* numbers = phx_new[Numbers]()
    cdef size_t at
    cdef int code = JOURNAL_OK
    cdef int result = j.disk.list(j.disk.context, numbers, note_name)
    if result < 0:
        code = blame_io(j, 0, result, b"the folder cannot be listed")
    for at in range(numbers.size()):
        if code == JOURNAL_OK:
            code = open_one(j, numbers[0][at])
        if numbers[0][at] >= j.next_number:
            j.next_number = numbers[0][at] + 1
    phx_delete(numbers)
    sort_segments(&j.live)
    sort_segments(&j.free)
    at = 1
    while at < j.live.size() and code == JOURNAL_OK:
        if j.live[at].generation == j.live[at - 1].generation:
            code = journal_blame(j, JOURNAL_DAMAGED, j.live[at].number, 0,
                                 b"its generation exists twice")
        at += 1
    return code


# --- judging

# The bytes after the header; what the file lacks is zero.
cdef int read_segment(Journal* j, Segment* s, u8* buffer, u64 count) noexcept nogil:
    cdef i64 got = j.disk.read(j.disk.context, s.file, buffer, count, SEGMENT_HEADER_BYTES)
    if got < 0:
        return blame_io(j, s.number, got, b"cannot be read")
    if <u64>got < count:
        memset(buffer + got, 0, count - <u64>got)
    return JOURNAL_OK


cdef int judge_suspects(Journal* j, u8* buffer, u64 capacity) noexcept nogil:
    cdef u64 newest = j.live.back().generation
    cdef u64 count
    cdef size_t at
    cdef Segment* s
    cdef int code
    for at in range(j.suspects.size()):
        s = j.suspects[at]
        count = s.bytes - SEGMENT_HEADER_BYTES if s.bytes > SEGMENT_HEADER_BYTES else 0
        if count > capacity:
            count = capacity
        code = read_segment(j, s, buffer, count)
        if code != JOURNAL_OK:
            return code
        if segment_belongs(buffer, count, newest + 1, newest + GENERATIONS_TRIED) != 0:
            return journal_blame(j, JOURNAL_DAMAGED, s.number, 0,
                                 b"bad header of the newest segment")
    return JOURNAL_OK


# Leaves the newest segment's bytes in `buffer`.
cdef int judge_newest(Journal* j, u8* buffer, SegmentScan* scan) noexcept nogil:
    cdef Segment* s = j.live.back()
    cdef int code = read_segment(j, s, buffer, segment_capacity(s))
    if code != JOURNAL_OK:
        return code
    segment_scan(buffer, segment_capacity(s), s.base_lsn, s.generation, True, scan)
    s.end_lsn = scan.end_lsn
    if scan.mark_lsn > scan.end_lsn:
        return journal_blame(j, JOURNAL_DAMAGED, s.number, scan.end_lsn,
                             b"bad bytes at a position that was durable")
    j.counters.cut_bytes = <i64>(scan.dirt_end_lsn - scan.end_lsn)
    return JOURNAL_OK


cdef int judge_earlier(Journal* j, Segment* s, u64 end_lsn, u8* buffer,
                       u64* floor_lsn) noexcept nogil:
    cdef SegmentScan scan
    cdef int code
    s.end_lsn = end_lsn
    if end_lsn < s.base_lsn or end_lsn - s.base_lsn > segment_capacity(s):
        return journal_blame(j, JOURNAL_DAMAGED, s.number, end_lsn,
                             b"the next segment states an impossible end for it")
    code = read_segment(j, s, buffer, end_lsn - s.base_lsn)
    if code != JOURNAL_OK:
        return code
    segment_scan(buffer, end_lsn - s.base_lsn, s.base_lsn, s.generation, False, &scan)
    if scan.end_lsn != end_lsn:
        return journal_blame(j, JOURNAL_DAMAGED, s.number, scan.end_lsn,
                             b"bad bytes at a position that was durable")
    if scan.floor_lsn > floor_lsn[0]:
        floor_lsn[0] = scan.floor_lsn
    return JOURNAL_OK


# Moves all segments that are not in the chain from live to free. first: the chain's oldest one.
cdef void keep_chain(Journal* j, size_t first) noexcept nogil:
    cdef Segments* chain = phx_new[Segments]()
    cdef size_t at
    for at in range(j.live.size()):
        if at >= first:
            chain.push_back(j.live[at])
        else:
            j.free.push_back(j.live[at])
    j.live.swap(chain[0])
    phx_delete(chain)


# From the newest back. Generations stand in order in j.live, so the one before must be the next.
cdef int judge_chain(Journal* j, u8* buffer, u64* floor_lsn) noexcept nogil:
    cdef size_t at = j.live.size() - 1
    cdef Segment* s
    cdef int code
    while True:
        s = j.live[at]
        if s.previous_generation == 0 or s.previous_end_lsn <= floor_lsn[0]:
            break
        if (at == 0 or j.live[at - 1].generation != s.previous_generation
                or j.live[at - 1].base_lsn >= s.base_lsn):
            return journal_blame(j, JOURNAL_DAMAGED, s.number, s.previous_end_lsn,
                                 b"the segment before it is missing")
        code = judge_earlier(j, j.live[at - 1], s.previous_end_lsn, buffer, floor_lsn)
        if code != JOURNAL_OK:
            return code
        at -= 1
    keep_chain(j, at)
    return JOURNAL_OK


# --- handing on

# buffer: the newest segment, as judge_newest has left it. All below its last mark is durable.
cdef int make_durable(Journal* j, const u8* buffer, u64 mark_lsn) noexcept nogil:
    cdef Segment* s = j.live.back()
    cdef u8 header[SEGMENT_HEADER_BYTES]
    cdef u64 start = mark_lsn if mark_lsn > s.base_lsn else s.base_lsn
    cdef i64 result = j.disk.read(j.disk.context, s.file, header, SEGMENT_HEADER_BYTES, 0)
    if result == SEGMENT_HEADER_BYTES:
        result = j.disk.write(j.disk.context, s.file, header, SEGMENT_HEADER_BYTES, 0)
    if result >= 0 and start < s.end_lsn:
        result = j.disk.write(j.disk.context, s.file, buffer + (start - s.base_lsn),
                              s.end_lsn - start, SEGMENT_HEADER_BYTES + (start - s.base_lsn))
    if result >= 0:
        result = j.disk.sync(j.disk.context, s.file)
    if result >= 0:
        # The name of a segment was durable before its header; unless somebody copied the folder.
        result = j.disk.sync_folder(j.disk.context)
    if result < 0:
        return blame_io(j, s.number, result, b"cannot be made durable")
    return JOURNAL_OK


cdef int hand_on(Journal* j, Segment* s, u8* buffer, u64 floor_lsn, ReplayRecord callback,
                 void* arg) noexcept nogil:
    cdef u32 salt = record_salt(s.generation)
    cdef u64 at = 0, stride, count = s.end_lsn - s.base_lsn
    cdef RecordHeader header
    cdef int code = read_segment(j, s, buffer, count)
    if code != JOURNAL_OK:
        return code
    while at < count:
        stride = record_check(buffer + at, count - at, salt, <u32>0xFFFFFFFF)
        if stride == 0:
            return journal_blame(j, JOURNAL_DAMAGED, s.number, s.base_lsn + at,
                                 b"bytes changed while they were read")
        if s.base_lsn + at >= floor_lsn:
            memcpy(&header, buffer + at, RECORD_HEADER_BYTES)
            header.crc ^= salt
            if callback(arg, &header, buffer + at + RECORD_HEADER_BYTES, s.base_lsn + at) != 0:
                return journal_blame(j, JOURNAL_DAMAGED, s.number, s.base_lsn + at,
                                     b"a record that cannot be")
            j.counters.replayed_records += 1
        at += stride
    return JOURNAL_OK


# Files that may be taken again: only whole ones of the present size, and none with a bad header.
cdef int tidy(Journal* j) noexcept nogil:
    cdef Segments* found = phx_new[Segments]()
    cdef size_t at
    cdef Segment* s
    cdef i64 size, result = 0
    found.swap(j.free)
    j.free_bytes = 0
    for at in range(j.suspects.size()):
        found.push_back(j.suspects[at])
        j.suspects[at].bytes = 0
    j.suspects.clear()
    for at in range(found.size()):
        s = found[0][at]
        size = j.disk.size(j.disk.context, s.file)
        if s.bytes == j.options.segment_bytes and size == <i64>s.bytes:
            j.free.push_back(s)
            j.free_bytes += s.bytes
        elif result >= 0:
            result = segment_remove(j, s)
            j.counters.segments_removed += 1
        else:
            segment_close(j, s)
    phx_delete(found)
    j.live_bytes = 0
    for at in range(j.live.size()):
        j.live_bytes += j.live[at].bytes
    if result < 0:
        return blame_io(j, 0, result, b"a file that is not needed cannot be removed")
    return JOURNAL_OK


cdef int judge_and_hand_on(Journal* j, u8* buffer, u64 capacity, ReplayRecord callback,
                           void* arg) noexcept nogil:
    cdef SegmentScan scan
    cdef u64 floor_lsn
    cdef size_t at
    cdef int code = judge_suspects(j, buffer, capacity)
    if code == JOURNAL_OK:
        code = judge_newest(j, buffer, &scan)
    if code == JOURNAL_OK:
        code = make_durable(j, buffer, scan.mark_lsn)
    if code != JOURNAL_OK:
        return code
    floor_lsn = scan.floor_lsn
    code = judge_chain(j, buffer, &floor_lsn)
    for at in range(j.live.size()):
        if code == JOURNAL_OK:
            code = hand_on(j, j.live[at], buffer, floor_lsn, callback, arg)
    if code == JOURNAL_OK:
        code = tidy(j)
    j.floor_lsn = floor_lsn
    return code


cdef int replay_records(Journal* j, ReplayRecord callback, void* arg) noexcept nogil:
    cdef u64 capacity = 0
    cdef size_t at
    cdef u8* buffer
    cdef int code
    for at in range(j.live.size()):
        if segment_capacity(j.live[at]) > capacity:
            capacity = segment_capacity(j.live[at])
    buffer = <u8*>phx_malloc(capacity)
    if buffer == NULL:
        phx_fatal(b"out of memory")
    code = judge_and_hand_on(j, buffer, capacity, callback, arg)
    phx_free(buffer)
    if code == JOURNAL_OK:
        j.next_generation = j.live.back().generation + 1
        j.next_lsn = j.live.back().base_lsn + segment_capacity(j.live.back())
    return code
