# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The de-duplication table of a group. See sessions.pxd."""

from libc.string cimport memcpy, memset

from phx._core.native cimport *


cdef inline void bit_flip(SessionRow* row, u64 sequence) noexcept nogil:
    cdef u64 at = sequence & (row.capacity - 1)
    row.bits[at >> 6] ^= <u64>1 << (at & 63)


cdef void bits_drop(SessionRow* row) noexcept nogil:
    phx_free(row.bits)
    row.bits = NULL
    row.capacity = 0
    row.n_set = 0


# Everything from base on that is already done moves below base. An empty ring is given back.
cdef void base_settle(SessionRow* row) noexcept nogil:
    while row.n_set and session_done(row, row.base):
        bit_flip(row, row.base)
        row.n_set -= 1
        row.base += 1
    if row.n_set == 0 and row.capacity:
        bits_drop(row)


# The ring reaches up to base + span afterwards.
cdef void bits_grow(SessionRow* row, u64 span) noexcept nogil:
    cdef SessionRow wider
    cdef u64 sequence
    wider.base = row.base
    wider.capacity = 64
    while wider.capacity <= span:
        wider.capacity *= 2
    wider.bits = <u64*>phx_calloc(wider.capacity >> 6, 8)
    if wider.bits == NULL:
        phx_fatal("out of memory")
    if row.n_set:
        for sequence in range(row.base + 1, row.base + row.capacity):
            if session_done(row, sequence):
                bit_flip(&wider, sequence)
    phx_free(row.bits)
    row.bits = wider.bits
    row.capacity = wider.capacity


cdef void session_raise(SessionRow* row, u64 low_water) noexcept nogil:
    if low_water <= row.base:
        return
    if row.n_set == 0 or low_water - row.base >= row.capacity:
        bits_drop(row)
        row.base = low_water
        return
    while row.base < low_water:
        if session_done(row, row.base):
            bit_flip(row, row.base)
            row.n_set -= 1
        row.base += 1
    base_settle(row)


cdef int session_admit(SessionRow* row, u64 sequence) noexcept nogil:
    if sequence < row.base:
        return ADMIT_STALE
    if sequence == row.base:
        row.base += 1
        if row.n_set:
            base_settle(row)
        return ADMIT_APPLY
    if sequence - row.base >= SEQUENCES_MAX:
        return ADMIT_BEYOND
    if sequence - row.base >= row.capacity:
        bits_grow(row, sequence - row.base)
    elif session_done(row, sequence):
        return ADMIT_DUPLICATE
    bit_flip(row, sequence)
    row.n_set += 1
    return ADMIT_APPLY


cdef bint member_of(const SessionTable* table, u32 node) noexcept nogil:
    cdef u32 i
    if table.members == NULL:
        return True
    for i in range(table.members[0]):
        if table.members[1 + i] == node:
            return True
    return False


cdef void session_members(SessionTable* table, const u32* nodes, u32 count) noexcept nogil:
    cdef size_t i, kept = 0
    phx_free(table.members)
    table.members = NULL
    if count == 0:
        return
    table.members = <u32*>phx_malloc((1 + <u64>count) * sizeof(u32))
    if table.members == NULL:
        phx_fatal("out of memory")
    table.members[0] = count
    memcpy(table.members + 1, nodes, count * sizeof(u32))
    for i in range(table.rows.size()):
        if member_of(table, table.rows[i].node):
            table.rows[kept] = table.rows[i]
            kept += 1
        else:
            phx_free(table.rows[i].bits)
    table.rows.resize(kept)


cdef SessionRow* session_enter(SessionTable* table, u32 node, u32 incarnation, u64 low_water,
                               int* why) noexcept nogil:
    cdef SessionRow* row
    cdef SessionRow fresh
    cdef size_t at = 0
    cdef size_t i
    if not member_of(table, node):
        why[0] = ADMIT_STALE
        return NULL
    while at < table.rows.size() and table.rows[at].node < node:
        at += 1
    if at == table.rows.size() or table.rows[at].node != node:
        if table.rows.size() == SESSION_ROWS_MAX:
            why[0] = ADMIT_BEYOND
            return NULL
        memset(&fresh, 0, sizeof(SessionRow))
        fresh.node = node
        fresh.incarnation = incarnation
        fresh.base = 1
        table.rows.push_back(fresh)
        i = table.rows.size() - 1
        while i > at:
            table.rows[i] = table.rows[i - 1]
            i -= 1
        table.rows[at] = fresh
    row = &table.rows[at]
    if incarnation < row.incarnation:
        why[0] = ADMIT_STALE
        return NULL
    if incarnation > row.incarnation:
        bits_drop(row)
        row.incarnation = incarnation
        row.base = 1
    session_raise(row, low_water)
    return row


cdef void sessions_agree(SessionTable* table, u64 every) noexcept nogil:
    if table.agreed == NULL:
        table.agreed = <u32*>phx_calloc(AGREED_MAX, sizeof(u32))
        if table.agreed == NULL:
            phx_fatal("out of memory")
    table.agreed[((table.next - 1) // every) & (AGREED_MAX - 1)] = table.digest
    if table.n_agreed < AGREED_MAX:
        table.n_agreed += 1


cdef void sessions_free(SessionTable* table) noexcept nogil:
    cdef size_t i
    for i in range(table.rows.size()):
        phx_free(table.rows[i].bits)
    table.rows.clear()
    phx_free(table.agreed)
    table.agreed = NULL
    table.n_agreed = 0
    phx_free(table.members)
    table.members = NULL
