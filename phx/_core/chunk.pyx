# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Chunks of settled entries: their bytes stand in chunk.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcmp, memcpy, memset

from phx._core.codec cimport RECORD_HEADER_BYTES, RecordHeader, phx_crc32c, phx_crc32c_moved
from phx._core.members cimport Roster, roster_read
from phx._core.native cimport *

ctypedef const u8[::1] Bytes

cdef packed struct EntryKey:   # what an entry's checksum covers before its body
    u32 group
    u32 bytes
    u64 instance


cdef inline u32 key_crc(u32 group, u64 instance, u32 count) noexcept nogil:
    cdef EntryKey key
    key.group = group
    key.bytes = count
    key.instance = instance
    return phx_crc32c(0, &key, sizeof(EntryKey))


cdef inline u32 entry_crc(u32 group, u64 instance, const u8* body, u32 count) noexcept nogil:
    return phx_crc32c(key_crc(group, instance, count), body, count)


# ------------------------------------------------------------------------------------------ sizes

cdef inline u64 class_room(u64 class_bytes) noexcept nogil:
    """Bytes for entries and rows in a chunk of this class."""
    return class_bytes - CHUNK_PAGE_HEADER - sizeof(ChunkFooter)


cdef u64 chunk_value_bytes(u64 bytes, u64 first_bytes) noexcept nogil:
    cdef u64 class_bytes = CHUNK_LARGE
    if bytes <= class_room(CHUNK_SMALL) or bytes < CHUNK_MIDDLE // 2:
        class_bytes = CHUNK_SMALL
    elif bytes <= class_room(CHUNK_MIDDLE) or bytes < CHUNK_LARGE // 2:
        class_bytes = CHUNK_MIDDLE
    first_bytes += sizeof(ChunkRow)
    if first_bytes > class_room(class_bytes) and class_bytes == CHUNK_SMALL:
        class_bytes = CHUNK_MIDDLE
    if first_bytes > class_room(class_bytes) and class_bytes == CHUNK_MIDDLE:
        class_bytes = CHUNK_LARGE
    while first_bytes > class_room(class_bytes):
        class_bytes += CHUNK_LARGE
    return class_bytes - CHUNK_PAGE_HEADER


# ---------------------------------------------------------------------------------------- filling

cdef void chunk_begin(ChunkWriter* w, u8* data, u64 value_bytes, u64 id) noexcept nogil:
    w.data = data
    w.value_bytes = value_bytes
    w.id = id
    w.at = 0
    w.entries = 0
    w.rows.clear()


cdef bint chunk_breaks(const ChunkWriter* w, u32 group, u64 instance) noexcept nogil:
    if w.rows.empty():
        return True
    cdef const ChunkRow* row = &w.rows[w.rows.size() - 1]
    return (row.group != group or row.first + row.count != instance
            or row.bytes >= CHUNK_ROW_BYTES)


cdef bint chunk_add(ChunkWriter* w, u32 group, u64 instance, const u8* body,
                    u32 count) noexcept nogil:
    return add(w, group, instance, body, count, entry_crc(group, instance, body, count))


cdef bint chunk_add_record(ChunkWriter* w, const RecordHeader* record) noexcept nogil:
    cdef u32 count = record.body_bytes
    cdef u32 before = phx_crc32c(0, <const u8*>record + 4, RECORD_HEADER_BYTES - 4)
    before ^= key_crc(record.group, record.index, count)
    return add(w, record.group, record.index, <const u8*>record + RECORD_HEADER_BYTES, count,
               record.crc ^ phx_crc32c_moved(before, count))


cdef bint add(ChunkWriter* w, u32 group, u64 instance, const u8* body, u32 count,
              u32 crc) noexcept nogil:
    cdef u64 stride = chunk_stride(count)
    cdef bint breaks = chunk_breaks(w, group, instance)
    cdef u64 rows = w.rows.size() + (1 if breaks else 0)
    if w.at + stride + rows * sizeof(ChunkRow) + sizeof(ChunkFooter) > w.value_bytes:
        return False
    cdef ChunkRow fresh
    if breaks:
        fresh.group = group
        fresh.count = 0
        fresh.first = instance
        fresh.offset = w.at
        fresh.bytes = 0
        w.rows.push_back(fresh)
    cdef u8* at = w.data + w.at
    cdef ChunkEntry* entry = <ChunkEntry*>at
    memset(at + stride - 8, 0, 8)   # the body may end inside the last word
    entry.instance = instance
    entry.bytes = count
    entry.crc = crc
    memcpy(at + CHUNK_ENTRY_HEADER, body, count)
    cdef ChunkRow* row = &w.rows.back()
    row.count += 1
    row.bytes += stride
    w.at += stride
    w.entries += 1
    return True


cdef void chunk_end(ChunkWriter* w, const u8* store_id) noexcept nogil:
    cdef u64 rows_bytes = w.rows.size() * sizeof(ChunkRow)
    cdef u64 rows_at = w.value_bytes - sizeof(ChunkFooter) - rows_bytes
    cdef ChunkFooter* footer = <ChunkFooter*>(w.data + w.value_bytes - sizeof(ChunkFooter))
    memset(w.data + w.at, 0, rows_at - w.at)
    if rows_bytes != 0:
        memcpy(w.data + rows_at, w.rows.data(), rows_bytes)
    footer.magic = CHUNK_MAGIC
    footer.version = CHUNK_VERSION
    footer.flags = 0
    footer.rows = <u32>w.rows.size()
    footer.id = w.id
    footer.entries_bytes = w.at
    footer.entries = w.entries
    footer.value_bytes = w.value_bytes
    memcpy(footer.store_id, store_id, 16)
    footer.crc = phx_crc32c(0, w.data + rows_at, rows_bytes)
    footer.crc = phx_crc32c(footer.crc, <u8*>footer + 4, sizeof(ChunkFooter) - 4)


cdef u64 chunk_tail_bytes(const ChunkWriter* w) noexcept nogil:
    return w.rows.size() * sizeof(ChunkRow) + sizeof(ChunkFooter)


# ---------------------------------------------------------------------------------------- reading

cdef int tail_view(ChunkView* out, const u8* end, u64 tail_bytes, u64 id,
                   const u8* store_id) noexcept nogil:
    """The tail that ends at `end`, of which tail_bytes are at hand (entries may be among them)."""
    if tail_bytes < sizeof(ChunkFooter):
        return CHUNK_BAD_FOOTER
    cdef const ChunkFooter* footer = <const ChunkFooter*>(end - sizeof(ChunkFooter))
    if footer.magic != CHUNK_MAGIC or footer.value_bytes < sizeof(ChunkFooter):
        return CHUNK_BAD_FOOTER
    if footer.version != CHUNK_VERSION or footer.flags != 0:
        return CHUNK_BAD_VERSION
    if footer.id != id or memcmp(footer.store_id, store_id, 16) != 0:
        return CHUNK_BAD_ID
    cdef u64 rows_bytes = <u64>footer.rows * sizeof(ChunkRow)
    cdef u64 room = footer.value_bytes - sizeof(ChunkFooter)
    if (rows_bytes > tail_bytes - sizeof(ChunkFooter) or rows_bytes > room
            or footer.entries_bytes > room - rows_bytes):
        return CHUNK_BAD_FOOTER
    out.data = NULL
    out.footer = footer
    out.rows = <const ChunkRow*>(end - sizeof(ChunkFooter) - rows_bytes)
    out.n_rows = footer.rows
    out.entries_bytes = footer.entries_bytes
    return CHUNK_OK


cdef int check_rows(const ChunkView* view) noexcept nogil:
    cdef u32 crc = phx_crc32c(0, view.rows, view.n_rows * sizeof(ChunkRow))
    crc = phx_crc32c(crc, <const u8*>view.footer + 4, sizeof(ChunkFooter) - 4)
    if crc != view.footer.crc:
        return CHUNK_BAD_CRC
    cdef u64 offset = 0, entries = 0
    cdef u32 n
    cdef const ChunkRow* row
    cdef const ChunkRow* before
    for n in range(view.n_rows):
        row = &view.rows[n]
        if (row.count == 0 or row.first == 0 or row.first + row.count < row.first
                or row.offset != offset or row.bytes > view.entries_bytes - offset
                or row.bytes < <u64>row.count * CHUNK_ENTRY_HEADER or row.bytes & 7):
            return CHUNK_BAD_ROWS
        if n > 0:
            before = &view.rows[n - 1]
            if (row.group < before.group
                    or (row.group == before.group and row.first < before.first + before.count)):
                return CHUNK_BAD_ROWS
        offset += row.bytes
        entries += row.count
    if offset != view.entries_bytes or entries != view.footer.entries:
        return CHUNK_BAD_ROWS
    return CHUNK_OK


cdef int chunk_open_tail(ChunkView* out, const u8* tail, u64 tail_bytes, u64 id,
                         const u8* store_id) noexcept nogil:
    cdef int verdict = tail_view(out, tail + tail_bytes, tail_bytes, id, store_id)
    if verdict == CHUNK_OK and out.n_rows * sizeof(ChunkRow) + sizeof(ChunkFooter) != tail_bytes:
        verdict = CHUNK_BAD_FOOTER
    return check_rows(out) if verdict == CHUNK_OK else verdict


cdef int chunk_view(ChunkView* out, const u8* data, u64 value_bytes, u64 id,
                    const u8* store_id) noexcept nogil:
    cdef int verdict = tail_view(out, data + value_bytes, value_bytes, id, store_id)
    if verdict == CHUNK_OK and out.footer.value_bytes != value_bytes:
        verdict = CHUNK_BAD_FOOTER
    out.data = data
    return verdict


cdef int chunk_open(ChunkView* out, const u8* data, u64 value_bytes, u64 id,
                    const u8* store_id) noexcept nogil:
    cdef int verdict = chunk_view(out, data, value_bytes, id, store_id)
    return check_rows(out) if verdict == CHUNK_OK else verdict


cdef const u8* chunk_entry(const u8* at, const u8* row_end, u32 group, u64 instance,
                           u32* count) noexcept nogil:
    cdef const ChunkEntry* entry = <const ChunkEntry*>at
    cdef u64 stride, n
    if <u64>(row_end - at) < CHUNK_ENTRY_HEADER or entry.instance != instance:
        return NULL
    count[0] = entry.bytes
    stride = chunk_stride(entry.bytes)
    if stride > <u64>(row_end - at):
        return NULL
    if entry_crc(group, instance, at + CHUNK_ENTRY_HEADER, entry.bytes) != entry.crc:
        return NULL
    for n in range(CHUNK_ENTRY_HEADER + <u64>entry.bytes, stride):   # they are served too
        if at[n] != 0:
            return NULL
    return at + CHUNK_ENTRY_HEADER


cdef bint chunk_next_seen(const ChunkRow* row, const u8* at, const u8* end,
                          u64 k) noexcept nogil:
    cdef u64 stride
    if <u64>(end - at) < CHUNK_ENTRY_HEADER:
        return False
    stride = chunk_stride((<const ChunkEntry*>at).bytes)
    if stride >= <u64>(end - at):
        return stride == <u64>(end - at) and k + 1 == row.count
    return (k + 1 < row.count and <u64>(end - at) - stride >= CHUNK_ENTRY_HEADER
            and (<const ChunkEntry*>(at + stride)).instance == row.first + k + 1)


cdef u32 row_of(const ChunkView* view, u32 low, u32 group, u64 instance) noexcept nogil:
    """The last row from `low` on that begins at or before (group, instance); n_rows if none."""
    cdef u32 begin = low, end = view.n_rows, middle
    cdef const ChunkRow* row
    while low < end:
        middle = low + (end - low) // 2
        row = &view.rows[middle]
        if row.group < group or (row.group == group and row.first <= instance):
            low = middle + 1
        else:
            end = middle
    return low - 1 if low > begin else view.n_rows


cdef inline bint row_sound(const ChunkView* view, const ChunkRow* row) noexcept nogil:
    return row.offset <= view.entries_bytes and row.bytes <= view.entries_bytes - row.offset


cdef int chunk_span(const ChunkView* view, u32 hint, u32 group, u64 first, u64 last, u64 bytes_max,
                    ChunkSpan* out) noexcept nogil:
    cdef u32 n = row_of(view, hint, group, first)
    if n >= view.n_rows:
        return CHUNK_NOT_HERE
    cdef const ChunkRow* row = &view.rows[n]
    if row.group != group or first < row.first or first - row.first >= row.count:
        return CHUNK_NOT_HERE
    if not row_sound(view, row):
        return CHUNK_BAD_ROWS
    cdef const u8* at = view.data + row.offset
    cdef const u8* end = at + row.bytes
    cdef u64 instance = row.first, stride
    out.at = NULL
    out.first = first
    out.bytes = 0
    out.count = 0
    while instance <= last:
        if at == end:   # the row is used up: the next one may go on where it ends
            n += 1
            if n >= view.n_rows:
                break
            row = &view.rows[n]
            if row.group != group or row.first != instance:
                break
            if not row_sound(view, row) or view.data + row.offset != end:
                return CHUNK_BAD_ROWS
            end = at + row.bytes
        if <u64>(end - at) < CHUNK_ENTRY_HEADER or (<const ChunkEntry*>at).instance != instance:
            return CHUNK_BAD_ENTRY
        stride = chunk_stride((<const ChunkEntry*>at).bytes)
        if stride > <u64>(end - at):
            return CHUNK_BAD_ENTRY
        if instance >= first:
            if out.count == 0:
                out.at = at
            elif out.bytes + stride > bytes_max:
                break
            out.bytes += stride
            out.count += 1
        at += stride
        instance += 1
    return CHUNK_OK if out.count != 0 else CHUNK_BAD_ROWS


cdef u64 chunk_copy(const ChunkSpan* span, u32 group, u8* out) noexcept nogil:
    memcpy(out, span.at, span.bytes)
    cdef u8* at = out
    cdef const u8* end = out + span.bytes
    cdef u64 n
    cdef u32 count = 0
    for n in range(span.count):
        if chunk_entry(at, end, group, span.first + n, &count) == NULL:
            return span.first + n
        (<ChunkEntry*>at).crc = 0
        at += chunk_stride(count)
    return 0


cdef bint all_zero(const u8* at, const u8* end) noexcept nogil:
    while at != end:
        if at[0] != 0:
            return False
        at += 1
    return True


cdef int chunk_verify(const ChunkView* view, u32* bad_group, u64* bad_instance) noexcept nogil:
    cdef u32 n, count = 0
    cdef u64 k
    cdef const ChunkRow* row
    cdef const u8* at
    cdef const u8* end
    for n in range(view.n_rows):
        row = &view.rows[n]
        at = view.data + row.offset
        end = at + row.bytes
        for k in range(row.count):
            if chunk_entry(at, end, row.group, row.first + k, &count) == NULL:
                bad_group[0] = row.group
                bad_instance[0] = row.first + k
                return CHUNK_BAD_ENTRY
            at += chunk_stride(count)
        if at != end:
            bad_group[0] = row.group
            bad_instance[0] = row.first
            return CHUNK_BAD_ROWS
    if not all_zero(view.data + view.entries_bytes, <const u8*>view.rows):
        return CHUNK_BAD_ZEROS
    return CHUNK_OK


# ------------------------------------------------------------------------------- the Python side

VERDICTS = (
    "sound",
    "its footer is not that of a chunk",
    "its format version is not known",
    "it belongs to another store or to another place in this one",
    "the checksum of its index is wrong",
    "its index cannot be",
    "an entry does not fit its checksum",
    "an entry is not where the index says",
    "an instance is missing or is there twice",
    "the table of groups does not fit the chunks",
    "bytes between its parts are not zero",
)
CLASS_BYTES = (CHUNK_SMALL, CHUNK_MIDDLE, CHUNK_LARGE)
PAGE_HEADER_BYTES = CHUNK_PAGE_HEADER


class ChunkDamage(Exception):
    def __init__(self, verdict, chunk, group, instance):
        super().__init__(verdict, chunk, group, instance)
        self.verdict = verdict
        self.chunk = chunk
        self.group = group
        self.instance = instance

    def __str__(self):
        where = [f"chunk {self.chunk}"] if self.chunk else []
        if self.instance:
            where.append(f"group {self.group} instance {self.instance}")
        return f"{', '.join(where) or 'store'}: {VERDICTS[self.verdict]}"


cdef int raise_damage(int verdict, u64 chunk, u32 group, u64 instance) except -1:
    raise ChunkDamage(verdict, chunk, group, instance)


cdef class Gather:
    def __init__(self, bytes store_id, u32 group, u64 first, u64 last, u64 bytes_max):
        self.store_id = store_id
        self.group = group
        self.next = first
        self.last = last
        self.left = bytes_max
        self.total = 0

    def add(self, u64 chunk, Bytes value, u32 row):
        cdef ChunkView view
        cdef ChunkSpan span
        cdef int verdict
        cdef const u8* store_id = <const u8*>PyBytes_AS_STRING(self.store_id)
        with nogil:
            verdict = chunk_view(&view, &value[0] if value.shape[0] else NULL, value.shape[0],
                                 chunk, store_id)
            if verdict == CHUNK_OK:
                verdict = chunk_span(&view, row, self.group, self.next, self.last, self.left, &span)
        if verdict != CHUNK_OK:
            raise_damage(verdict, chunk, self.group, self.next)
        if not self.spans.empty() and span.bytes > self.left:
            self.left = 0
            return False
        self.spans.push_back(span)
        self.chunks.push_back(chunk)
        self.total += span.bytes
        self.left -= min(self.left, span.bytes)
        self.next += span.count
        return self.left > 0 and self.next <= self.last

    @property
    def wanted(self):
        return self.next

    def take(self):
        cdef bytes found = PyBytes_FromStringAndSize(NULL, self.total)
        cdef u8* out = <u8*>PyBytes_AS_STRING(found)
        cdef u64 bad = 0
        cdef size_t n = 0
        with nogil:
            while n < self.spans.size():
                bad = chunk_copy(&self.spans[n], self.group, out)
                if bad != 0:
                    break
                out += self.spans[n].bytes
                n += 1
        if bad != 0:
            raise_damage(CHUNK_BAD_ENTRY, self.chunks[n], self.group, bad)
        return found


cdef void damaged_in_row(const ChunkRow* row, const u8* at,
                         vector[DamagedSpan]* out) noexcept nogil:
    cdef const u8* end = at + row.bytes
    cdef DamagedSpan span
    cdef u32 count = 0
    cdef u64 k
    span.group = row.group
    for k in range(row.count):
        if chunk_entry(at, end, row.group, row.first + k, &count) != NULL:
            at += chunk_stride(count)
            continue
        span.first = span.last = row.first + k
        if not chunk_next_seen(row, at, end, k):
            span.last = row.first + row.count - 1
            out.push_back(span)
            return
        out.push_back(span)
        at += chunk_stride((<const ChunkEntry*>at).bytes)


def damaged_entries(u64 chunk, Bytes value, Bytes tail, bytes store_id not None):
    cdef ChunkView view
    cdef vector[DamagedSpan] spans
    cdef DamagedSpan span
    cdef const u8* data = &value[0] if value.shape[0] else NULL
    cdef u32 n
    cdef int verdict
    cdef const u8* sid = <const u8*>PyBytes_AS_STRING(store_id)
    with nogil:
        verdict = chunk_open_tail(&view, &tail[0] if tail.shape[0] else NULL, tail.shape[0], chunk,
                                  sid)
        if verdict == CHUNK_OK:
            for n in range(view.n_rows):
                if <u64>value.shape[0] == view.footer.value_bytes:
                    damaged_in_row(&view.rows[n], data + view.rows[n].offset, &spans)
                else:
                    span.group = view.rows[n].group
                    span.first = view.rows[n].first
                    span.last = span.first + view.rows[n].count - 1
                    spans.push_back(span)
    if verdict != CHUNK_OK:
        raise_damage(verdict, chunk, 0, 0)
    return [(spans[n].group, spans[n].first, spans[n].last) for n in range(<u32>spans.size())]


def verify_chunk(u64 chunk, Bytes value, bytes store_id not None):
    cdef ChunkView view
    cdef u32 group = 0
    cdef u64 instance = 0
    cdef int verdict
    cdef const u8* sid = <const u8*>PyBytes_AS_STRING(store_id)
    with nogil:
        verdict = chunk_open(&view, &value[0] if value.shape[0] else NULL, value.shape[0],
                             chunk, sid)
        if verdict == CHUNK_OK:
            verdict = chunk_verify(&view, &group, &instance)
    if verdict != CHUNK_OK:
        raise_damage(verdict, chunk, group, instance)
    return view.footer.entries


def rosters_of(u64 chunk, Bytes value, bytes store_id not None):
    cdef ChunkView view
    cdef Roster roster
    cdef const ChunkRow* row
    cdef const u8* at
    cdef const u8* end
    cdef const u8* body
    cdef u32 n, count = 0
    cdef u64 k
    cdef int verdict = chunk_open(&view, &value[0] if value.shape[0] else NULL, value.shape[0],
                                  chunk, <const u8*>PyBytes_AS_STRING(store_id))
    if verdict != CHUNK_OK:
        raise_damage(verdict, chunk, 0, 0)
    found = []
    for n in range(view.n_rows):
        row = &view.rows[n]
        at = view.data + row.offset
        end = at + row.bytes
        for k in range(row.count):
            body = chunk_entry(at, end, row.group, row.first + k, &count)
            if body == NULL:
                raise_damage(CHUNK_BAD_ENTRY, chunk, row.group, row.first + k)
            if roster_read(&roster, body, count):
                found.append((row.group, row.first + k,
                              PyBytes_FromStringAndSize(<const char*>body, count)))
            at += chunk_stride(count)
    return found


def chunk_rows(u64 chunk, Bytes value, bytes store_id not None):
    cdef ChunkView view
    cdef u32 n
    cdef int verdict = chunk_open(&view, &value[0] if value.shape[0] else NULL, value.shape[0],
                                  chunk, <const u8*>PyBytes_AS_STRING(store_id))
    if verdict != CHUNK_OK:
        raise_damage(verdict, chunk, 0, 0)
    return [(view.rows[n].group, view.rows[n].first, view.rows[n].count, view.rows[n].offset,
             view.rows[n].bytes) for n in range(view.n_rows)]


def build_chunk(u64 chunk, u64 value_bytes, bytes store_id not None, entries):
    """A chunk of as many of the ascending (group, instance, body) as fit, and how many."""
    cdef ChunkWriter w
    cdef bytearray value = bytearray(value_bytes)
    cdef u8[::1] room = value
    cdef bytes body
    cdef u64 taken = 0
    if len(store_id) != 16 or value_bytes < sizeof(ChunkFooter):
        raise ValueError("a store id has 16 bytes, and a chunk at least a footer")
    chunk_begin(&w, &room[0], value_bytes, chunk)
    for group, instance, body in entries:
        if not chunk_add(&w, group, instance, <const u8*>PyBytes_AS_STRING(body), <u32>len(body)):
            break
        taken += 1
    chunk_end(&w, <const u8*>PyBytes_AS_STRING(store_id))
    return bytes(value), taken


def value_bytes(u64 total, u64 first=0):
    return chunk_value_bytes(total, first)
