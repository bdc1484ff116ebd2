# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Bodies, votes, decisions, and the log as the rules say it is applied; see reference.pxd."""

from libc.string cimport memcpy, memset

from phx._core.batch cimport (
    BODY_HEADER_BYTES, BODY_NOOP, BodyHeader, ITEM_HEADER_BYTES, ItemHeader, RunIterator,
    body_check, run_begin, run_next,
)
from phx._core.native cimport *
from phx.sim.chance cimport chance_mix

cdef enum:
    IN_FLIGHT_MAX = 65536        # protocol.md, "Exactly once"


# Two lanes, so that the multiplications overlap; every body is read once a node and life.
cdef u64 hash_bytes(const u8* data, u64 count) noexcept nogil:
    cdef u64 one = count, other = <u64>0x9E3779B97F4A7C15, at = 0
    cdef u64 word[2]
    while at + 16 <= count:
        memcpy(word, data + at, 16)
        one = (one ^ word[0]) * <u64>0xBF58476D1CE4E5B9
        other = (other ^ word[1]) * <u64>0x94D049BB133111EB
        one ^= one >> 32
        other ^= other >> 29
        at += 16
    if at < count:
        word[0] = word[1] = 0
        memcpy(word, data + at, count - at)
        one = (one ^ word[0]) * <u64>0xBF58476D1CE4E5B9
        other = (other ^ word[1]) * <u64>0x94D049BB133111EB
    return chance_mix(one) ^ chance_mix(other + 1)


cdef Reference* reference_new(u32 nodes, u32 groups) noexcept nogil:
    cdef Reference* ref = phx_new[Reference]()
    cdef Op op
    cdef Value none
    cdef u32 group
    memset(&op, 0, sizeof(op))
    memset(&none, 0, sizeof(none))
    ref.nodes = nodes
    ref.quorum = nodes // 2 + 1
    ref.logs.resize(groups)
    for group in range(groups):
        ref.logs[group].rows.resize(nodes)
        ref.logs[group].cells.reserve(1024)
    ref.ops.push_back(op)
    ref.values.push_back(none)
    return ref


cdef void reference_free(Reference* ref) noexcept nogil:
    phx_delete(ref)


# --- bodies

# One run of a body: its values are known, and are where and whose they were.
cdef const char* take_run(Reference* ref, u32 group, const RunIterator* it) noexcept nogil:
    cdef const u8* at = it.items
    cdef ItemHeader header
    cdef Item item
    cdef Op* op
    cdef u32 i
    for i in range(it.run.count):
        memcpy(&header, at, sizeof(header))
        if header.bytes < 8:
            return b"a value that nobody proposed"
        memcpy(&item.op, at + ITEM_HEADER_BYTES, 8)
        if item.op == 0 or item.op >= ref.ops.size():
            return b"a value that nobody proposed"
        op = &ref.ops[item.op]
        if op.group != group:
            return b"a value of another group"
        if op.hash != hash_bytes(at + ITEM_HEADER_BYTES, header.bytes):
            return b"a value that is not what was proposed"
        item.sequence = it.run.first_seq + i
        item.node = it.run.node
        item.incarnation = it.run.incarnation
        item.low_water = it.run.low_water
        if op.node != item.node or op.incarnation != item.incarnation \
                or op.sequence != item.sequence:
            return b"a value under another name than it was proposed under"
        ref.items.push_back(item)
        at += ITEM_HEADER_BYTES + <u64>header.bytes
    return NULL


cdef u32 reference_value(Reference* ref, u32 group, const u8* data, u64 count,
                         const char** why) noexcept nogil:
    cdef u64 h = chance_mix(hash_bytes(data, count) ^ group)
    cdef BodyHeader header
    cdef RunIterator it
    cdef Value value
    why[0] = NULL
    if ref.by_hash.count(h):
        return ref.by_hash[h]
    if not body_check(data, count):
        why[0] = b"a body that cannot be read"
        return 0
    memcpy(&header, data, BODY_HEADER_BYTES)
    value.hash = h
    value.epoch = header.epoch
    value.time_us = header.time_us
    value.items = ref.items.size()
    run_begin(&it, data, count)
    while run_next(&it):
        why[0] = take_run(ref, group, &it)
        if why[0] != NULL:
            return 0
    value.count = <u32>(ref.items.size() - value.items)
    if header.kind != BODY_NOOP and value.count != header.values:
        why[0] = b"a body with another number of values than it says"
        return 0
    ref.values.push_back(value)
    ref.by_hash[h] = <u32>(ref.values.size() - 1)
    return <u32>(ref.values.size() - 1)


# --- votes

cdef Cell* reference_cell(Reference* ref, u32 group, u64 instance) noexcept nogil:
    cdef Log* log = &ref.logs[group]
    if instance >= log.cells.size():
        log.cells.resize(instance + 1)
    return &log.cells[instance]


cdef Vote* cell_vote(Cell* cell, u64 ballot, u32 value) noexcept nogil:
    cdef Vote vote
    cdef size_t i = cell.votes.size()
    while i:
        i -= 1
        if cell.votes[i].ballot == ballot:
            return &cell.votes[i]
    vote.ballot = ballot
    vote.value = value
    vote.held = vote.synced = 0
    cell.votes.push_back(vote)
    return &cell.votes.back()


cdef bint vote_synced(Reference* ref, Vote* vote, u32 node) noexcept nogil:
    cdef u32 bits, count = 0
    if vote.synced & (<u32>1 << (node - 1)):
        return False
    vote.synced |= <u32>1 << (node - 1)
    bits = vote.synced
    while bits:
        bits &= bits - 1
        count += 1
    return count == ref.quorum


cdef u64 cell_synced_ballot(const Cell* cell, u32 node) noexcept nogil:
    cdef u64 ballot = 0
    cdef size_t i
    for i in range(cell.votes.size()):
        if cell.votes[i].synced & (<u32>1 << (node - 1)):
            ballot = max(ballot, cell.votes[i].ballot)
    return ballot


cdef bint cell_synced_in(const Cell* cell, u64 ballot, u32 node) noexcept nogil:
    cdef size_t i
    for i in range(cell.votes.size()):
        if cell.votes[i].ballot == ballot and cell.votes[i].synced & (<u32>1 << (node - 1)):
            return True
    return False


cdef void reference_forget(Reference* ref, u32 node) noexcept nogil:
    cdef Log* log
    cdef size_t group, i, v
    for group in range(ref.logs.size()):
        log = &ref.logs[group]
        for i in range(log.cells.size()):
            for v in range(log.cells[i].votes.size()):
                log.cells[i].votes[v].held &= ~(<u32>1 << (node - 1))


# --- the log

# Does the log apply this value? And from now on it has.
cdef bint admit(Row* row, const Item* item) noexcept nogil:
    if item.incarnation < row.incarnation:
        return False
    if item.incarnation > row.incarnation:
        row.incarnation = item.incarnation
        row.base = 1
        row.done.clear()
    if item.low_water > row.base:
        row.base = item.low_water
    if item.sequence < row.base or item.sequence >= row.base + IN_FLIGHT_MAX:
        return False
    if item.sequence >= row.done.size():
        row.done.resize(item.sequence + 64)
    if row.done[item.sequence]:
        return False
    row.done[item.sequence] = 1
    return True


cdef const char* extend(Reference* ref, Log* log, u64 instance) noexcept nogil:
    cdef const Value* value = &ref.values[log.cells[instance].decided]
    cdef const Item* item
    cdef Applied applied
    cdef Op* op
    cdef u32 i
    for i in range(value.count):
        item = &ref.items[value.items + i]
        op = &ref.ops[item.op]
        op.decided = True
        if op.verdict == OP_REJECTED:
            return b"a value is chosen that was rejected"
        if not admit(&log.rows[item.node - 1], item):
            ref.duplicates += 1
            continue
        if op.applied:
            return b"a value is applied twice"
        op.applied = True
        applied.instance = instance
        applied.op = item.op
        applied.index = i
        log.applied.push_back(applied)
        ref.values_decided += 1
    if value.count == 0:
        ref.noops_decided += 1
    return NULL


cdef const char* reference_decide(Reference* ref, u32 group, u64 instance, u64 ballot,
                                  u32 value) noexcept nogil:
    cdef Log* log = &ref.logs[group]
    cdef Cell* cell = reference_cell(ref, group, instance)
    cdef const char* why
    cdef size_t i
    if cell.decided:
        if cell.decided != value:
            return b"another value was decided before"
        if ballot < cell.decided_ballot:
            cell.decided_ballot = ballot
        return NULL
    cell.decided = value
    cell.decided_ballot = ballot
    log.decided += 1
    for i in range(cell.votes.size()):
        if cell.votes[i].ballot > ballot:
            ref.late_decisions += 1
            break
    while log.end + 1 < log.cells.size() and log.cells[log.end + 1].decided:
        log.end += 1
        why = extend(ref, log, log.end)
        if why != NULL:
            return why
    return NULL
