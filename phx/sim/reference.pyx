# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Bodies, votes, decisions, and the log as the rules say it is applied; see reference.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcpy, memset

from phx._core.batch cimport (
    BODY_HEADER_BYTES, BODY_MEMBERSHIP, BODY_NOOP, BodyHeader, ITEM_HEADER_BYTES, ItemHeader,
    RunIterator, body_check, run_begin, run_next,
)
from phx._core.members cimport MEMBER_LEARNER, MEMBER_WITNESS, Roster, roster_read
from phx._core.native cimport *
from phx._core.session_codec cimport TABLE_OK, table_decode
from phx._core.sessions cimport SessionRow, SessionTable, session_done, sessions_free
from phx.sim.chance cimport chance_mix

cdef enum:
    IN_FLIGHT_MAX = 65536        # protocol.md, "Exactly once"
    PLACES_AT_FIRST = 1024       # for bodies, by hash; a power of two


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


def bytes_hash(bytes data not None):
    return hash_bytes(<const u8*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


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
        ref.logs[group].members = ~<u32>0
        ref.logs[group].cells.reserve(1024)
    ref.ops.push_back(op)
    ref.values.push_back(none)
    ref.changes.resize(1)
    ref.by_hash.resize(PLACES_AT_FIRST)
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


# Values by hash: a table of their numbers, at most half full; a free place is 0.
cdef inline u64 place_by_hash(const Reference* ref, u64 h) noexcept nogil:
    cdef u64 at = h & (ref.by_hash.size() - 1)
    while ref.by_hash[at] and ref.values[ref.by_hash[at]].hash != h:
        at = (at + 1) & (ref.by_hash.size() - 1)
    return at


cdef inline u32 value_known(const Reference* ref, u64 h) noexcept nogil:
    return ref.by_hash[place_by_hash(ref, h)]


cdef void value_note(Reference* ref, u32 number) noexcept nogil:
    cdef u32 n
    if 2 * ref.values.size() > ref.by_hash.size():
        n = <u32>(2 * ref.by_hash.size())
        ref.by_hash.clear()
        ref.by_hash.resize(n)
        for n in range(1, number):
            ref.by_hash[place_by_hash(ref, ref.values[n].hash)] = n
    ref.by_hash[place_by_hash(ref, ref.values[number].hash)] = number


# What a sound body says of members: its number.
cdef u32 take_change(Reference* ref, const u8* data, u64 count) noexcept nogil:
    cdef Roster roster
    cdef Change change
    cdef u32 i, bit
    memset(&change, 0, sizeof(change))
    roster_read(&roster, data, count)
    change.version = roster.version
    for i in range(roster.count):
        bit = 0
        if 1 <= roster.members[i].node <= 32:
            bit = <u32>1 << (roster.members[i].node - 1)
        change.members |= bit
        if roster.members[i].role != MEMBER_LEARNER:
            change.voters |= bit
        if roster.members[i].role == MEMBER_WITNESS:
            change.witnesses |= bit
    ref.changes.push_back(change)
    return <u32>(ref.changes.size() - 1)


cdef u32 reference_value(Reference* ref, u32 group, const u8* data, u64 count,
                         const char** why) noexcept nogil:
    cdef u64 h = chance_mix(hash_bytes(data, count) ^ group)
    cdef BodyHeader header
    cdef RunIterator it
    cdef Value value
    cdef u32 known = value_known(ref, h)
    why[0] = NULL
    if known:
        return known
    if not body_check(data, count):
        why[0] = b"a body that cannot be read"
        return 0
    memcpy(&header, data, BODY_HEADER_BYTES)
    value.hash = h
    value.epoch = header.epoch
    value.time_us = header.time_us
    value.items = ref.items.size()
    value.change = take_change(ref, data, count) if header.kind == BODY_MEMBERSHIP else 0
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
    value_note(ref, <u32>(ref.values.size() - 1))
    return <u32>(ref.values.size() - 1)


cdef u64 reference_op(Reference* ref) noexcept nogil:
    cdef Op op
    memset(&op, 0, sizeof(op))
    ref.ops.push_back(op)
    return ref.ops.size() - 1


cdef void reference_named(Reference* ref, u32 node, u32 incarnation, u32 group, u64 sequence,
                          const u8* value, u64 count) noexcept nogil:
    cdef u64 number
    cdef Op* op
    memcpy(&number, value, 8)
    op = &ref.ops[number]
    op.node = node
    op.group = group
    op.incarnation = incarnation
    op.sequence = sequence
    op.hash = hash_bytes(value, count)


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
    vote.held = vote.synced = vote.written = vote.counted = 0
    cell.votes.push_back(vote)
    return &cell.votes.back()


cdef bint vote_counted(Reference* ref, Vote* vote, u32 node) noexcept nogil:
    cdef u32 bits, count = 0
    if vote.counted & (<u32>1 << (node - 1)):
        return False
    vote.counted |= <u32>1 << (node - 1)
    bits = vote.counted
    while bits:
        bits &= bits - 1
        count += 1
    return count == ref.quorum


cdef u64 cell_kept_ballot(const Cell* cell, u32 node) noexcept nogil:
    cdef u64 ballot = 0
    cdef size_t i
    for i in range(cell.votes.size()):
        if (cell.votes[i].synced | cell.votes[i].written) & (<u32>1 << (node - 1)):
            ballot = max(ballot, cell.votes[i].ballot)
    return ballot


# NULL: nobody has accepted anything there in that ballot.
cdef const Vote* vote_in(const Cell* cell, u64 ballot) noexcept nogil:
    cdef size_t i
    for i in range(cell.votes.size()):
        if cell.votes[i].ballot == ballot:
            return &cell.votes[i]
    return NULL


cdef bint cell_synced_in(const Cell* cell, u64 ballot, u32 node) noexcept nogil:
    cdef const Vote* vote = vote_in(cell, ballot)
    return vote != NULL and vote.synced & (<u32>1 << (node - 1)) != 0


cdef bint cell_written_in(const Cell* cell, u64 ballot, u32 node) noexcept nogil:
    cdef const Vote* vote = vote_in(cell, ballot)
    return vote != NULL and vote.written & (<u32>1 << (node - 1)) != 0


cdef bint reference_only_written(const Reference* ref, u32 node, u32 group) noexcept nogil:
    cdef u32 bit = <u32>1 << (node - 1)
    cdef const Log* log = &ref.logs[group]
    cdef size_t i, v
    for i in range(log.cells.size()):
        for v in range(log.cells[i].votes.size()):
            if log.cells[i].votes[v].written & ~log.cells[i].votes[v].synced & bit:
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


# (What it accepted was accepted, and counts for what is decided.)
cdef void reference_lost(Reference* ref, u32 node) noexcept nogil:
    cdef u32 bit = <u32>1 << (node - 1)
    cdef Log* log
    cdef size_t group, i, v
    for group in range(ref.logs.size()):
        log = &ref.logs[group]
        for i in range(log.cells.size()):
            log.cells[i].known &= ~bit
            log.cells[i].heard &= ~bit
            for v in range(log.cells[i].votes.size()):
                log.cells[i].votes[v].synced &= ~bit
                log.cells[i].votes[v].written &= ~bit


# (Likewise. What is there all the same is durable once it was replayed.)
cdef u64 reference_power(Reference* ref, u32 node) noexcept nogil:
    cdef u32 bit = <u32>1 << (node - 1)
    cdef Log* log
    cdef Vote* vote
    cdef u64 lost = 0
    cdef size_t group, i, v
    for group in range(ref.logs.size()):
        log = &ref.logs[group]
        for i in range(log.cells.size()):
            log.cells[i].heard &= ~bit
            for v in range(log.cells[i].votes.size()):
                vote = &log.cells[i].votes[v]
                lost += vote.written & ~vote.synced & bit != 0
                vote.written &= ~bit
    return lost


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


# The sessions of who is no member any more end, in log order.
cdef void rows_left(vector[Row]* rows, u32 members) noexcept nogil:
    cdef u32 i
    for i in range(rows.size()):
        if not members >> i & 1:
            rows[0][i].incarnation = 0
            rows[0][i].base = 0
            rows[0][i].done.clear()


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
        if not log.members >> (item.node - 1) & 1:
            continue
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
    if value.change:
        log.members = ref.changes[value.change].members
        rows_left(&log.rows, log.members)
    elif value.count == 0:
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


# --- states at an instance

cdef inline u64 place_of(u32 group, u64 instance) noexcept nogil:
    return <u64>group << 40 | instance


cdef size_t log_applied(const Log* log, u64 through) noexcept nogil:
    cdef size_t low = 0, high = log.applied.size(), middle
    while low < high:
        middle = (low + high) // 2
        if log.applied[middle].instance <= through:
            low = middle + 1
        else:
            high = middle
    return low


# Does the table say of each of a node's sequences what the log says?
cdef const char* same_row(Row* want, const SessionRow* row) noexcept nogil:
    cdef u64 base = max(want.base, <u64>1), at
    cdef bint done
    if row.incarnation != want.incarnation:
        return b"a session of another life"
    while base < want.done.size() and want.done[base]:
        base += 1
    if row.base != base:
        return b"a session that begins elsewhere"
    for at in range(base + 1, max(<u64>want.done.size(), base + row.capacity)):
        done = at < base + row.capacity and session_done(row, at)
        if done != (at < want.done.size() and want.done[at] != 0):
            return b"another value done, or not done, than the log says"
    return NULL


cdef const char* same_rows(Reference* ref, u32 group, u64 through,
                           const SessionTable* table) noexcept nogil:
    cdef const Log* log = &ref.logs[group]
    cdef const Value* value
    cdef const Item* item
    cdef const char* why = NULL
    cdef vector[Row] rows
    cdef u64 instance, epoch = 0
    cdef u32 members = ~<u32>0
    cdef size_t i, met = 0
    rows.resize(ref.nodes)
    for instance in range(max(log.base, <u64>1), through + 1):
        value = &ref.values[log.cells[instance].decided]
        if instance > log.base:
            epoch = max(epoch, value.epoch)
        if value.change:
            members = ref.changes[value.change].members
            rows_left(&rows, members)
        for i in range(value.count):
            item = &ref.items[value.items + i]
            if members >> (item.node - 1) & 1:
                admit(&rows[item.node - 1], item)
    if table.epoch != epoch:
        return b"another epoch than that of the log"
    for i in range(ref.nodes):
        if rows[i].incarnation == 0:
            continue
        if met == table.rows.size() or table.rows[met].node != i + 1:
            return b"a session is missing"
        why = same_row(&rows[i], &table.rows[met])
        if why != NULL:
            return why
        met += 1
    if met != table.rows.size():
        return b"a session that the log does not have"
    return NULL


cdef const char* reference_table(Reference* ref, u32 group, u64 through, const u8* data, u64 count,
                                 u32* chain) noexcept nogil:
    cdef u64 hash = hash_bytes(data, count), at = place_of(group, through)
    cdef SessionTable* table = phx_new[SessionTable]()
    cdef const char* why = b"a session table of another instance or group, or none"
    if table_decode(data, count, table) == TABLE_OK and table.group == group \
            and table.next == through + 1:
        chain[0] = table.digest
        why = NULL
        if not ref.tables.count(at) or ref.tables[at] != hash:
            why = same_rows(ref, group, through, table)
            ref.tables[at] = hash
    sessions_free(table)
    phx_delete(table)
    return why


cdef bint reference_chain(Reference* ref, u32 group, u64 instance, u32 chain) noexcept nogil:
    cdef Cell* cell = reference_cell(ref, group, instance)
    if not cell.chained:
        cell.chained = True
        cell.chain = chain
    return cell.chain == chain


cdef bint reference_state(Reference* ref, u32 group, u64 instance, u64 state) noexcept nogil:
    cdef u64 at = place_of(group, instance)
    if not ref.states.count(at):
        ref.states[at] = state
    return ref.states[at] == state


cdef void reference_wrote(Reference* ref, u32 group, u64 hash) noexcept nogil:
    ref.written[hash + group] = group + 1


cdef bint reference_loaded(Reference* ref, u32 group, u64 hash) noexcept nogil:
    return ref.written.count(hash + group) and ref.written[hash + group] == group + 1
