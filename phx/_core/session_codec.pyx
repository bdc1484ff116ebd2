# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The bytes of a session table. See session_codec.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy, memset

from phx._core.native cimport *
from phx._core.codec cimport phx_crc32c
from phx._core.sessions cimport (
    SEQUENCES_MAX, SESSION_ROWS_MAX, SessionRow, SessionTable, sessions_free,
)

cdef extern from *:
    int leading_zeros "__builtin_clzll" (unsigned long long word) nogil
    int ones "__builtin_popcountll" (unsigned long long word) nogil

_WHY = (
    "sound", "shorter than it says", "the checksum does not fit", "of another version",
    "a number out of its range", "rows out of order", "bits that do not fit their span",
    "padding that is not zero", "longer than it says",
)


# --- bits: word j of the encoded row has sequences base + 1 + 64j and on

# The ring reaches to base + capacity - 1, and base itself is never done: no sequence stands in two
# of the row's capacity / 64 words, and behind the last one that is done there are zeros.
cdef inline u64 word_of(const SessionRow* row, u64 j) noexcept nogil:
    cdef u64 at = (row.base + 1 + (j << 6)) & (row.capacity - 1)
    cdef u64 next = ((at >> 6) + 1) & ((row.capacity >> 6) - 1)
    cdef u64 shift = at & 63
    if shift == 0:
        return row.bits[at >> 6]
    return row.bits[at >> 6] >> shift | row.bits[next] << (64 - shift)


cdef inline void word_put(SessionRow* row, u64 j, u64 word) noexcept nogil:
    cdef u64 at = (row.base + 1 + (j << 6)) & (row.capacity - 1)
    cdef u64 next = ((at >> 6) + 1) & ((row.capacity >> 6) - 1)
    cdef u64 shift = at & 63
    row.bits[at >> 6] |= word << shift
    if shift:
        row.bits[next] |= word >> (64 - shift)


cdef inline u64 words_of(u64 span) noexcept nogil:
    return (span + 63) >> 6


cdef u64 span_of(const SessionRow* row) noexcept nogil:
    cdef u64 words = row.capacity >> 6
    cdef u64 word
    if row.n_set == 0:
        return 0
    while words:
        words -= 1
        word = word_of(row, words)
        if word:
            return (words << 6) + 64 - leading_zeros(word)
    return 0


# --- encoding

cdef u64 table_size(const SessionTable* table) noexcept nogil:
    cdef u64 size = TABLE_HEADER_BYTES
    cdef size_t i
    for i in range(table.rows.size()):
        size += TABLE_ROW_BYTES + (words_of(span_of(&table.rows[i])) << 3)
    return size


cdef void table_encode(const SessionTable* table, u8* out) noexcept nogil:
    cdef TableHeader header
    cdef TableRow one
    cdef const SessionRow* row
    cdef u8* at = out + TABLE_HEADER_BYTES
    cdef u64 word, j
    cdef size_t i
    for i in range(table.rows.size()):
        row = &table.rows[i]
        one.node = row.node
        one.incarnation = row.incarnation
        one.base = row.base
        one.span = <u32>span_of(row)
        one.pad = 0
        memcpy(at, &one, TABLE_ROW_BYTES)
        at += TABLE_ROW_BYTES
        for j in range(words_of(one.span)):
            word = word_of(row, j)
            memcpy(at, &word, 8)
            at += 8
    header.crc = 0
    header.version = TABLE_VERSION
    header.group = table.group
    header.rows = <u32>table.rows.size()
    header.next = table.next
    header.chain = table.digest
    header.pad = 0
    header.epoch = table.epoch
    memcpy(out, &header, TABLE_HEADER_BYTES)
    header.crc = phx_crc32c(0, out + 4, at - out - 4)
    memcpy(out, &header, 4)


# --- decoding

cdef int header_check(const TableHeader* header) noexcept nogil:
    if header.version != TABLE_VERSION:
        return TABLE_BAD_VERSION
    if header.rows > SESSION_ROWS_MAX or header.next == 0:
        return TABLE_BAD_NUMBER
    if header.next == 1 and (header.rows or header.chain or header.epoch):
        return TABLE_BAD_NUMBER
    return TABLE_BAD_PADDING if header.pad else TABLE_OK


cdef int row_check(const TableRow* row, const SessionTable* before) noexcept nogil:
    cdef size_t n = before.rows.size()
    if row.base == 0 or row.span >= SEQUENCES_MAX:
        return TABLE_BAD_NUMBER
    # No body has the last of all sequences (body_check): behind it, base would begin again at 0.
    if row.span and row.span >= ~row.base:
        return TABLE_BAD_NUMBER
    if n and before.rows[n - 1].node >= row.node:
        return TABLE_BAD_ORDER
    return TABLE_BAD_PADDING if row.pad else TABLE_OK


# The bits of a row that has been checked; all of their bytes are there.
cdef int bits_decode(SessionRow* row, const u8* data, u32 span) noexcept nogil:
    cdef u64 words = words_of(span)
    cdef u64 word, j
    memcpy(&word, data + ((words - 1) << 3), 8)
    if word == 0 or ((words - 1) << 6) + 64 - leading_zeros(word) != span:
        return TABLE_BAD_BITS
    row.capacity = 64
    while row.capacity <= span:
        row.capacity *= 2
    row.bits = <u64*>phx_calloc(row.capacity >> 6, 8)
    if row.bits == NULL:
        phx_fatal("out of memory")
    for j in range(words):
        memcpy(&word, data + (j << 3), 8)
        word_put(row, j, word)
        row.n_set += ones(word)
    return TABLE_OK


cdef int rows_decode(const u8* at, const u8* end, u32 rows, SessionTable* out) noexcept nogil:
    cdef TableRow one
    cdef SessionRow row
    cdef u64 size
    cdef int verdict
    cdef u32 i
    for i in range(rows):
        if end - at < TABLE_ROW_BYTES:
            return TABLE_SHORT
        memcpy(&one, at, TABLE_ROW_BYTES)
        at += TABLE_ROW_BYTES
        verdict = row_check(&one, out)
        if verdict != TABLE_OK:
            return verdict
        size = words_of(one.span) << 3
        if <u64>(end - at) < size:
            return TABLE_SHORT
        memset(&row, 0, sizeof(row))
        row.node = one.node
        row.incarnation = one.incarnation
        row.base = one.base
        if one.span:
            verdict = bits_decode(&row, at, one.span)
            if verdict != TABLE_OK:
                return verdict
        out.rows.push_back(row)
        at += size
    return TABLE_OK if at == end else TABLE_LONG


cdef int table_decode(const u8* data, u64 count, SessionTable* out) noexcept nogil:
    cdef TableHeader header
    cdef int verdict
    if count < TABLE_HEADER_BYTES:
        return TABLE_SHORT
    if count > TABLE_BYTES_MAX:
        return TABLE_LONG
    memcpy(&header, data, TABLE_HEADER_BYTES)
    if header.crc != phx_crc32c(0, data + 4, count - 4):
        return TABLE_BAD_CRC
    verdict = header_check(&header)
    if verdict == TABLE_OK:
        verdict = rows_decode(data + TABLE_HEADER_BYTES, data + count, header.rows, out)
    if verdict != TABLE_OK:
        sessions_free(out)
        return verdict
    out.group = header.group
    out.next = header.next
    out.digest = header.chain
    out.epoch = header.epoch
    return TABLE_OK


# --- for Python

cdef object table_error(int verdict):
    return ValueError(f"not a session table: {_WHY[verdict]}")


cdef bytes table_to_bytes(const SessionTable* table):
    cdef bytes made = PyBytes_FromStringAndSize(NULL, table_size(table))
    table_encode(table, <u8*>PyBytes_AS_STRING(made))
    return made


def table_facts(bytes table not None):
    """What a session table is of: (group, frontier, chain, epoch). Guarantee: all of it is sound.

    Args:
        table: as ``Sessions.table`` and ``Batch.table`` give it; at most 514 KiB, the caller's.

    Returns:
        the group; the last instance that it has seen (0: none); the chained checksum after that;
        the highest epoch up to there.

    Raises:
        ValueError: these bytes are no session table, and why. Nothing was taken from them.
    """
    cdef SessionTable* made = phx_new[SessionTable]()
    cdef int verdict
    try:
        verdict = table_decode(<const u8*>PyBytes_AS_STRING(table), PyBytes_GET_SIZE(table), made)
        if verdict != TABLE_OK:
            raise table_error(verdict)
        return made.group, made.next - 1, made.digest, made.epoch
    finally:
        sessions_free(made)
        phx_delete(made)


def table_incarnation(bytes table not None, u32 node):
    """The highest incarnation of a node that a session table has seen; 0: none. As table_facts."""
    cdef SessionTable* made = phx_new[SessionTable]()
    cdef int verdict
    cdef size_t i
    cdef u32 found = 0
    try:
        verdict = table_decode(<const u8*>PyBytes_AS_STRING(table), PyBytes_GET_SIZE(table), made)
        if verdict != TABLE_OK:
            raise table_error(verdict)
        for i in range(made.rows.size()):
            if made.rows[i].node == node:
                found = made.rows[i].incarnation
        return found
    finally:
        sessions_free(made)
        phx_delete(made)
