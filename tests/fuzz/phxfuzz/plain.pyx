# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Targets for decoders of bytes; see plain.pxd."""

from libc.string cimport memcmp, memcpy

from phx._core.batch cimport *
from phx._core.chunk cimport *
from phx._core.codec cimport *
from phx._core.native cimport *
from phx._core.port cimport (
    PhxAddress, PhxFds, iovec, phx_fds_add, phx_fds_close, phx_send_gather, pollfd,
)
from phx._core.segment cimport *
from phx._core.session_codec cimport *
from phx._core.sessions cimport *
from phx._core.transport cimport *
from phxfuzz.script cimport *

cdef extern from "<sys/socket.h>" nogil:
    int AF_UNIX
    int SOCK_STREAM
    int SOCK_NONBLOCK
    int socketpair(int family, int kind, int protocol, int* pair)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef enum:
    CLUSTER = 7
    NODE = 2
    PEER = 1
    PAYLOAD_MAX = 4096
    BODY_MAX = 2048
    HEADER_CRC_AT = 88
    VERDICT_LAST = 9
    CHUNK_ID = 3


# --- frames

# Lengths that lead outside are cut and checksums put right, so that what is behind them is reached.
cdef void mend_frames(u8* data, u64 count, u32 source, bint mend_names) noexcept nogil:
    cdef FrameHeader* header
    cdef u64 at = 0
    while count - at >= FRAME_HEADER_BYTES:
        header = <FrameHeader*>(data + at)
        header.magic = FRAME_MAGIC
        header.version = PROTOCOL_VERSION
        if mend_names:
            header.kind = FRAME_JOIN if header.kind % 8 == 7 else 1 + header.kind % 4
            header.source = source
            header.dest = NODE
            header.cluster = CLUSTER
        if header.payload_bytes > count - at - FRAME_HEADER_BYTES:
            header.payload_bytes = <u32>((count - at - FRAME_HEADER_BYTES) & 0xFF8)
        header.crc = 0
        header.crc = phx_crc32c(phx_crc32c(0, header, FRAME_HEADER_BYTES),
                                data + at + FRAME_HEADER_BYTES, header.payload_bytes)
        at += FRAME_HEADER_BYTES + <u64>header.payload_bytes


cdef struct Heard:
    u64 frames
    u64 bytes
    u64 ups
    u64 downs
    u64 handed
    PhxFds* fds
    u64 refuse                   # every so many handshakes is refused; 0: none


cdef int heard_connected(void* context, u32 peer, u32 incarnation,
                         const u8* store_id) noexcept nogil:
    cdef Heard* heard = <Heard*>context
    demand(peer == PEER, b"a handshake of a node that nobody knows was taken")
    heard.ups += 1
    return -1 if heard.refuse and heard.ups % heard.refuse == 0 else 0


cdef void heard_disconnected(void* context, u32 peer) noexcept nogil:
    (<Heard*>context).downs += 1


cdef void heard_frame(void* context, u32 peer, const u8* payload, u64 count) noexcept nogil:
    cdef Heard* heard = <Heard*>context
    cdef u8 folded = 0
    cdef u64 i
    demand(heard.ups != 0 and peer == PEER, b"a frame was handed on before a handshake")
    demand(count <= PAYLOAD_MAX, b"a frame above the limit was handed on")
    for i in range(count):
        folded ^= payload[i]     # every byte of it may be read
    heard.frames += 1
    heard.bytes += count + (folded & 1)


cdef void heard_log(void* context, int level, const char* text) noexcept nogil:
    demand(text[0] != 0, b"an empty log line")


cdef int heard_known(void* context, u32 peer, u32 incarnation, const u8* store_id) noexcept nogil:
    cdef Heard* heard = <Heard*>context
    if heard.refuse and incarnation % heard.refuse == 0:
        return -1
    return 0 if peer == PEER else 1


cdef int heard_handed(void* context, int fd, u32 peer, Block* said) noexcept nogil:
    cdef Heard* heard = <Heard*>context
    cdef FrameHeader header
    demand(heard.ups == 0, b"a connection was handed on that says something else")
    demand(said.size >= FRAME_HEADER_BYTES + HELLO_BYTES
           and said.size <= FRAME_HEADER_BYTES + FETCH_BYTES_MAX, b"what was read of it")
    memcpy(&header, said.data, FRAME_HEADER_BYTES)
    demand(header.kind == FRAME_JOIN or (header.kind == FRAME_FETCH and peer == PEER),
           b"a connection of nobody was handed on that asks for something else")
    demand(header.source == peer and peer != 0 and peer != NODE
           and frame_check(said.data, said.size, FETCH_BYTES_MAX, CLUSTER, NODE, peer) == FRAME_OK,
           b"a frame was handed on that is none")
    if heard.refuse and said.size % 2:
        return -1
    heard.handed += 1
    phx_fds_close(heard.fds, fd)
    block_unref(said)
    return 0


cdef void heard_dialing(void* context, u32 peer, u32 attempts) noexcept nogil:
    demand(False, b"a peer without a name is looked up")


cdef Transport* open_transport(Heard* heard, PhxFds* fds, int fd) noexcept nogil:
    cdef TransportOptions o
    cdef TransportHooks hooks
    cdef PhxAddress none
    cdef Transport* t
    cdef Connection* c
    memset(&o, 0, sizeof(o))
    memset(&none, 0, sizeof(none))
    o.cluster = CLUSTER
    o.node = NODE
    o.incarnation = 1
    o.payload_bytes_max = PAYLOAD_MAX
    o.peer_queue_bytes_max = 1 << 16
    o.handshake_us = 1000
    o.silence_us = 1000
    o.backoff_min_us = 10
    o.backoff_max_us = 1000
    o.window = 64
    hooks.context = heard
    hooks.connected = heard_connected
    hooks.disconnected = heard_disconnected
    hooks.frame = heard_frame
    hooks.log = heard_log
    hooks.known = heard_known
    hooks.handed = heard_handed
    hooks.dialing = heard_dialing
    heard.fds = fds
    t = transport_new(&o, &hooks, fds)
    transport_set_peer(t, PEER, &none, 0, 0)
    # As transport.connection_new makes it for a connection that was accepted.
    c = phx_new[Connection]()
    memset(c, 0, sizeof(Connection))
    phx_fds_add(fds, fd)
    c.fd = fd
    c.state = CONNECTION_HELLO
    c.inbound = True
    c.poll_index = -1
    c.deadline_us = 1000
    c.capacity = FRAME_HEADER_BYTES + HELLO_BYTES_MAX
    c.buffer = <u8*>phx_malloc(c.capacity)
    t.connections.push_back(c)
    return t


cdef void one_turn(Transport* t, vector[pollfd]* fds, u64 now_us, bint readable) noexcept nogil:
    cdef size_t i
    fds.clear()
    transport_watch(t, fds, now_us)
    for i in range(fds.size()):
        fds[0][i].revents = fds[0][i].events if readable else 0
    transport_turn(t, fds, now_us)
    transport_flush(t, now_us)
    for i in range(t.connections.size()):
        demand(t.connections[i].end <= t.connections[i].capacity
               and t.connections[i].start <= t.connections[i].end, b"a buffer's bounds")
        demand(t.connections[i].capacity <= 65536, b"a buffer grew beyond its limit")


cdef Block* hello(u32 window) noexcept nogil:
    cdef Hello said
    cdef Block* out = frame_begin(block_new(128))
    memset(&said, 0, sizeof(said))
    said.version_min = PROTOCOL_VERSION
    said.version_max = PROTOCOL_VERSION
    said.incarnation = 1
    said.window = window
    out = block_append(out, &said, sizeof(said))
    frame_seal(out, 0, FRAME_HELLO, PEER, NODE, CLUSTER)
    return out


cdef void over_socket(u8 mode, u8 step, u8* stream, u64 count) noexcept nogil:
    cdef Heard heard
    cdef PhxFds fds
    cdef vector[pollfd] watched
    cdef Transport* t
    cdef Block* first
    cdef iovec part
    cdef int pair[2]
    cdef u64 at = 0, now_us = 1, some
    memset(&heard, 0, sizeof(heard))
    memset(&fds, 0, sizeof(fds))
    heard.refuse = 1 + (mode >> 6) if mode & 32 else 0
    if socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) != 0:
        return
    t = open_transport(&heard, &fds, pair[0])
    if mode & 4:
        first = hello(64 if mode & 8 else 0)
        part.iov_base = first.data
        part.iov_len = first.size
        phx_send_gather(pair[1], &part, 1)
        block_unref(first)
    while at < count:
        some = min(count - at, <u64>step * (16 if mode & 16 else 1) + 1)
        part.iov_base = stream + at
        part.iov_len = some
        if phx_send_gather(pair[1], &part, 1) < 0:
            break
        at += some
        one_turn(t, &watched, now_us, True)
        now_us += step & 3
    one_turn(t, &watched, now_us, True)
    demand(heard.frames * FRAME_HEADER_BYTES + heard.bytes <= count + heard.frames,
           b"more was handed on than came in")
    close(pair[1])
    one_turn(t, &watched, now_us + 1, True)
    one_turn(t, &watched, now_us + 5000, False)
    demand(t.connections.size() == 0, b"a dead connection is kept")
    transport_free(t)


cdef void run_frame(const u8* data, u64 count) noexcept nogil:
    cdef Script s
    cdef u8 mode, step
    cdef u8* stream
    cdef FrameHeader header
    cdef int verdict
    s.at = data
    s.left = count
    mode = take_u8(&s)
    step = take_u8(&s)
    stream = exact(s.at, s.left)
    if mode & 1:
        mend_frames(stream, s.left, PEER, mode & 2)
    verdict = frame_check(stream, s.left, PAYLOAD_MAX, CLUSTER, NODE, PEER if mode & 2 else 0)
    if verdict == FRAME_OK:
        memcpy(&header, stream, FRAME_HEADER_BYTES)
        demand(header.payload_bytes <= PAYLOAD_MAX
               and FRAME_HEADER_BYTES + <u64>header.payload_bytes <= s.left,
               b"a frame that is not all there was taken")
        demand(header.cluster == CLUSTER and (header.dest == 0 or header.dest == NODE),
               b"a frame of another cluster or for another node was taken")
    over_socket(mode, step, stream, s.left)
    free(stream)


# --- records and segments

cdef void mend_records(u8* data, u64 count, u32 salt) noexcept nogil:
    cdef RecordHeader* header
    cdef u64 at = 0, stride, end
    while count - at >= RECORD_HEADER_BYTES:
        header = <RecordHeader*>(data + at)
        header.kind = 1 + header.kind % 9
        if record_stride(header.body_bytes) > count - at:
            header.body_bytes = <u32>((count - at - RECORD_HEADER_BYTES) & 0x78)
        stride = record_stride(header.body_bytes)
        end = RECORD_HEADER_BYTES + <u64>header.body_bytes
        memset(data + at + end, 0, stride - end)
        header.crc = salt ^ phx_crc32c(0, data + at + 4, end - 4)
        at += stride


cdef void run_record(const u8* data, u64 count) noexcept nogil:
    cdef Script s
    cdef u8 mode
    cdef u8* bytes_
    cdef u64 stride, generation, at, floor_lsn = 0
    cdef i64 records = 0
    cdef u32 salt
    cdef RecordHeader header
    cdef SegmentHeader parsed
    cdef SegmentScan scan
    s.at = data
    s.left = count
    mode = take_u8(&s)
    generation = take_word(&s, 1)
    salt = record_salt(generation)
    bytes_ = exact(s.at, s.left)
    if mode & 1:
        mend_records(bytes_, s.left, salt)
    elif mode & 2 and s.left >= SEGMENT_HEADER_USED:
        (<SegmentHeader*>bytes_).crc = phx_crc32c(0, bytes_, HEADER_CRC_AT)
    stride = record_check(bytes_, s.left, salt, BODY_MAX)
    if stride:
        memcpy(&header, bytes_, RECORD_HEADER_BYTES)
        demand(stride <= s.left and header.body_bytes <= BODY_MAX and header.kind != 0,
               b"a record that is not all there was taken")
        demand(phx_crc32c(0, bytes_ + 4, RECORD_HEADER_BYTES - 4 + header.body_bytes)
               == header.crc ^ salt, b"a record with a bad checksum was taken")
    segment_scan(bytes_, s.left, 4096, generation, mode & 4, &scan)
    demand(scan.end_lsn >= 4096 and scan.end_lsn - 4096 <= s.left
           and scan.dirt_end_lsn >= scan.end_lsn and scan.dirt_end_lsn - 4096 <= s.left,
           b"a scan went past the end")
    demand(scan.floor_lsn <= scan.end_lsn, b"a floor that speaks of what comes after it")
    demand(segment_belongs(bytes_, s.left, generation, generation + 3) <= generation + 3,
           b"records of a generation that was not asked for")
    segment_parse(bytes_, s.left, &parsed)
    at = segment_fit(bytes_, s.left, mode * <u64>16)
    demand(at <= s.left and at <= mode * <u64>16, b"more fits than there is room for")
    # Last, for it changes them.
    if segment_salt(bytes_, s.left, 4096, salt, BODY_MAX, &records, &floor_lsn):
        demand(<u64>records * RECORD_HEADER_BYTES <= s.left, b"more records than bytes")
    free(bytes_)


# --- bodies

cdef void admit(const u8* body, u64 count, SessionTable* table) noexcept nogil:
    cdef RunIterator it
    cdef SessionRow* row
    cdef u64 sequence, first, at
    cdef u32 i
    cdef int why = 0, verdict
    run_begin(&it, body, count)
    while run_next(&it):
        demand(it.items >= body and it.items + it.run.bytes <= body + count,
               b"a run that leaves its body")
        demand(items_prefix(it.items, it.run.bytes, it.run.count) == it.run.bytes,
               b"the items of a checked run do not add up")
        row = session_enter(table, it.run.node, it.run.incarnation, it.run.low_water, &why)
        if row == NULL:
            continue
        first = it.run.first_seq
        for i in range(it.run.count):
            sequence = first + i
            verdict = session_admit(row, sequence)
            if verdict == ADMIT_APPLY:
                demand(session_admit(row, sequence) != ADMIT_APPLY, b"applied twice")
            demand(row.capacity <= SEQUENCES_MAX and row.n_set <= row.capacity,
                   b"a session's table grew beyond its limit")
        demand(row.base >= it.run.low_water, b"a low water above the base")
    demand(table.rows.size() <= SESSION_ROWS_MAX, b"too many sessions")
    for at in range(1, table.rows.size()):
        demand(table.rows[at - 1].node < table.rows[at].node, b"sessions out of order")


# Lengths and counts are put right, so that the runs are reached.
cdef void mend_body(u8* data, u64 count) noexcept nogil:
    cdef BodyHeader* header = <BodyHeader*>data
    cdef RunHeader* run
    cdef u64 at = BODY_HEADER_BYTES, item, left
    cdef u32 payload
    if count < BODY_HEADER_BYTES + RUN_HEADER_BYTES + ITEM_HEADER_BYTES:
        return
    header.kind = BODY_BATCH
    header.version = BODY_VERSION
    header.runs = 0
    header.values = 0
    while count - at >= RUN_HEADER_BYTES + ITEM_HEADER_BYTES:
        run = <RunHeader*>(data + at)
        at += RUN_HEADER_BYTES
        left = count - at
        if run.bytes < ITEM_HEADER_BYTES or run.bytes > left or left - run.bytes < 40:
            run.bytes = <u32>left
        run.count = 0
        item = 0
        while run.bytes - item >= ITEM_HEADER_BYTES:
            memcpy(&payload, data + at + item, 4)
            left = run.bytes - item - ITEM_HEADER_BYTES
            if payload > left or left - payload < ITEM_HEADER_BYTES:
                payload = <u32>left
                memcpy(data + at + item, &payload, 4)
            item += ITEM_HEADER_BYTES + <u64>payload
            run.count += 1
        header.runs += 1
        header.values += run.count
        at += run.bytes


cdef void run_body(const u8* data, u64 count) noexcept nogil:
    cdef Script s
    cdef u8 mode, cut
    cdef u8* body
    cdef const u8* part
    cdef u64 size, used = 0
    cdef SessionTable* table = phx_new[SessionTable]()
    cdef bint sound
    s.at = data
    s.left = count
    while s.left:
        mode = take_u8(&s)
        cut = take_u8(&s)
        size = take_bytes(&s, s.left if mode & 2 else take_word(&s, 2) & 0x3FF, &part)
        body = exact(part, size)
        if mode & 1:
            mend_body(body, size)
        sound = body_check(body, size)
        if sound:
            demand(size >= BODY_HEADER_BYTES, b"a body without a header is sound")
            admit(body, size, table)
        items_fit(body, size, cut, cut * <u64>4, &used)
        demand(used <= size, b"more items fit than there are bytes")
        demand(items_prefix(body, size, cut) <= size, b"a prefix longer than its items")
        if items_check(body, size, cut):
            demand(<u64>cut * ITEM_HEADER_BYTES <= size, b"more items than bytes")
        free(body)
    sessions_free(table)
    phx_delete(table)


# --- session tables

# Rows for as long as there are bytes, and the checksum; how many bytes it has then.
cdef u64 mend_table(u8* data, u64 count) noexcept nogil:
    cdef TableHeader* header = <TableHeader*>data
    cdef TableRow* row
    cdef u64 at = TABLE_HEADER_BYTES, room, last
    cdef u32 node = 0
    if count < TABLE_HEADER_BYTES:
        return count
    header.version = TABLE_VERSION
    header.next |= 2
    header.pad = 0
    header.rows = 0
    while count - at >= TABLE_ROW_BYTES and header.rows < SESSION_ROWS_MAX:
        row = <TableRow*>(data + at)
        at += TABLE_ROW_BYTES
        node += 1 + (row.node & 7)
        row.node = node
        row.pad = 0
        room = min((count - at) & ~<u64>7, <u64>(SEQUENCES_MAX // 8 - 8)) * 8
        row.span = <u32>min(<u64>row.span & 0x3FF, room)
        row.base = min(max(row.base, <u64>1), ~<u64>row.span - 1)
        if row.span:
            at += (row.span - 1) // 64 * 8
            memcpy(&last, data + at, 8)
            last |= <u64>1 << ((row.span - 1) & 63)
            last &= ~<u64>0 >> (63 - ((row.span - 1) & 63))
            memcpy(data + at, &last, 8)
            at += 8
        header.rows += 1
    header.crc = phx_crc32c(0, data + 4, at - 4)
    return at


cdef u8* table_written(SessionTable* table, u64* size) noexcept nogil:
    cdef u8* made
    size[0] = table_size(table)
    demand(size[0] <= TABLE_BYTES_MAX, b"a table larger than any can be")
    made = <u8*>malloc(size[0])
    table_encode(table, made)
    return made


cdef void same_bytes(SessionTable* one, SessionTable* other) noexcept nogil:
    cdef u64 size, other_size
    cdef u8* bytes_ = table_written(one, &size)
    cdef u8* others = table_written(other, &other_size)
    demand(size == other_size and memcmp(bytes_, others, size) == 0,
           b"two tables that admitted the same have other bytes")
    free(bytes_)
    free(others)


# One sequence, mostly near what the row of `like` holds, of each table that is there.
cdef void admit_in_both(Script* s, SessionTable* like, SessionTable* other) noexcept nogil:
    cdef u8 how = take_u8(s)
    cdef u32 node = take_u8(s), incarnation = take_u8(s) & 3
    cdef u64 low = take_u8(s), sequence = take_word(s, 2)
    cdef SessionTable* table
    cdef SessionRow* row
    cdef int verdicts[2]
    cdef int why = 0, i
    if how & 1 and like.rows.size():
        row = &like.rows[node % like.rows.size()]
        node = row.node
        incarnation = row.incarnation + (incarnation & 1 if how & 2 else 0)
        low = row.base + low if how & 4 else 0
        sequence += row.base
    if sequence == ~<u64>0:      # no body has it
        return
    for i in range(2):
        table = other if i else like
        if table == NULL:
            return
        row = session_enter(table, node, incarnation, low, &why)
        verdicts[i] = 16 + why if row == NULL else session_admit(row, sequence)
    demand(verdicts[0] == verdicts[1], b"a table that was written and read admits something else")


cdef void run_table(const u8* data, u64 count) noexcept nogil:
    cdef SessionTable* table = phx_new[SessionTable]()
    cdef SessionTable* copy = phx_new[SessionTable]()
    cdef Script s
    cdef const u8* part
    cdef u8* bytes_
    cdef u8* written
    cdef u64 size, written_size, i, most
    cdef u8 mode
    s.at = data
    s.left = count
    mode = take_u8(&s)
    size = take_bytes(&s, take_word(&s, 2), &part)
    bytes_ = exact(part, size)
    if mode & 1:
        written_size = mend_table(bytes_, size)
        written = exact(bytes_, written_size)
        free(bytes_)
        bytes_ = written
        size = written_size
    if table_decode(bytes_, size, table) == TABLE_OK:
        written = table_written(table, &written_size)
        demand(written_size == size and memcmp(written, bytes_, size) == 0,
               b"bytes were taken that no encoder writes")
        free(written)
        demand(table.next != 0, b"a table of a time before all instances")
    else:
        demand(table.rows.size() == 0 and table.next == 0, b"something is left of what is unsound")
        demand(mode & 1 == 0 or size < TABLE_HEADER_BYTES, b"a sound table was refused")
    free(bytes_)
    table.next = max(table.next, <u64>2)
    most = take_u8(&s)
    for i in range(most):
        admit_in_both(&s, table, NULL)
    bytes_ = table_written(table, &size)
    demand(table_decode(bytes_, size, copy) == TABLE_OK, b"a table cannot be read again")
    free(bytes_)
    same_bytes(table, copy)
    while s.left:
        admit_in_both(&s, table, copy)
    same_bytes(table, copy)
    sessions_free(table)
    sessions_free(copy)
    phx_delete(table)
    phx_delete(copy)


# --- chunks

cdef void mend_chunk(u8* data, u64 count, bint entries) noexcept nogil:
    cdef ChunkFooter* footer
    cdef ChunkRow* rows
    cdef ChunkEntry* entry
    cdef u64 rows_bytes, at, n
    cdef u32 i
    cdef u32 key[2]
    if count < sizeof(ChunkFooter):
        return
    footer = <ChunkFooter*>(data + count - sizeof(ChunkFooter))
    footer.magic = CHUNK_MAGIC
    footer.version = CHUNK_VERSION
    footer.flags = 0
    footer.id = CHUNK_ID
    footer.value_bytes = count
    memset(footer.store_id, 9, 16)
    footer.rows = <u32>min(<u64>footer.rows & 7, (count - sizeof(ChunkFooter)) // sizeof(ChunkRow))
    rows_bytes = footer.rows * sizeof(ChunkRow)
    rows = <ChunkRow*>(data + count - sizeof(ChunkFooter) - rows_bytes)
    if entries:
        # Rows side by side, with entries that say what the row says.
        at = 0
        footer.entries = 0
        for i in range(footer.rows):
            rows[i].offset = at
            rows[i].bytes = min(rows[i].bytes & 0xF8, count - sizeof(ChunkFooter) - rows_bytes - at)
            rows[i].bytes &= ~<u64>7
            n = 0
            rows[i].count = 0
            while rows[i].bytes - n >= CHUNK_ENTRY_HEADER:
                entry = <ChunkEntry*>(data + at + n)
                entry.instance = rows[i].first + rows[i].count
                entry.bytes &= 0x1F
                if chunk_stride(entry.bytes) > rows[i].bytes - n or (
                        rows[i].bytes - n - chunk_stride(entry.bytes) < CHUNK_ENTRY_HEADER):
                    entry.bytes = <u32>(rows[i].bytes - n - CHUNK_ENTRY_HEADER)
                memset(data + at + n + CHUNK_ENTRY_HEADER + entry.bytes, 0,
                       chunk_stride(entry.bytes) - CHUNK_ENTRY_HEADER - entry.bytes)
                key[0] = rows[i].group
                key[1] = entry.bytes
                entry.crc = phx_crc32c(0, key, 8)
                entry.crc = phx_crc32c(entry.crc, &entry.instance, 8)
                entry.crc = phx_crc32c(entry.crc, data + at + n + CHUNK_ENTRY_HEADER, entry.bytes)
                n += chunk_stride(entry.bytes)
                rows[i].count += 1
            at += rows[i].bytes
            footer.entries += rows[i].count
        footer.entries_bytes = at
    footer.crc = phx_crc32c(0, rows, rows_bytes)
    footer.crc = phx_crc32c(footer.crc, <u8*>footer + 4, sizeof(ChunkFooter) - 4)


cdef void serve(const ChunkView* view, Script* s, const u8* value, u64 count) noexcept nogil:
    cdef ChunkSpan span
    cdef const ChunkRow* row
    cdef u32 n, body = 0
    cdef u64 first, last, most, bad
    cdef u8* out
    for n in range(view.n_rows):
        row = &view.rows[n]
        first = row.first + (take_u8(s) & 3)
        last = first + (take_u8(s) & 15)
        most = take_word(s, 2)
        if chunk_span(view, take_u8(s) & 3, row.group, first, last, most, &span) != CHUNK_OK:
            continue
        demand(span.at >= value and span.bytes <= count
               and span.at + span.bytes <= value + count, b"a span that leaves its chunk")
        demand(span.count != 0 and span.count * CHUNK_ENTRY_HEADER <= span.bytes,
               b"a span with more entries than bytes")
        out = exact(span.at, span.bytes)
        bad = chunk_copy(&span, row.group, out)
        demand(bad == 0 or first <= bad < first + span.count, b"damage outside of a span")
        free(out)


cdef void run_chunk(const u8* data, u64 count) noexcept nogil:
    cdef Script s
    cdef u8 mode
    cdef u8 store_id[16]
    cdef u8* value
    cdef u8* tail
    cdef ChunkView view
    cdef u64 size, bad_instance = 0, tail_bytes
    cdef u32 bad_group = 0
    cdef const u8* part
    s.at = data
    s.left = count
    mode = take_u8(&s)
    size = take_bytes(&s, take_word(&s, 2), &part)
    memset(store_id, 9, 16)
    value = exact(part, size)
    if mode & 1:
        mend_chunk(value, size, mode & 2)
    if chunk_open(&view, value, size, CHUNK_ID, store_id) == CHUNK_OK:
        demand(view.entries_bytes <= size and view.n_rows * sizeof(ChunkRow) <= size,
               b"an index larger than its chunk")
        chunk_verify(&view, &bad_group, &bad_instance)
        serve(&view, &s, value, size)
        tail_bytes = view.n_rows * sizeof(ChunkRow) + sizeof(ChunkFooter)
        tail = exact(value + size - tail_bytes, tail_bytes)
        demand(chunk_open_tail(&view, tail, tail_bytes, CHUNK_ID, store_id) == CHUNK_OK,
               b"the tail of a sound chunk is unsound")
        free(tail)
    # Damaged after it was opened: nothing vouches for its rows any more.
    if chunk_view(&view, value, size, CHUNK_ID, store_id) == CHUNK_OK:
        serve(&view, &s, value, size)
    free(value)
