# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Connections to the peers; see transport.pxd."""

from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memmove, strerror

from phx._core.codec cimport (
    FRAME_BAD_CLUSTER, FRAME_ENGINE, FRAME_FETCH, FRAME_HEADER_BYTES, FRAME_HELLO, FRAME_JOIN,
    FRAME_OK, FRAME_REFUSED, FRAME_SHORT, FrameHeader, frame_begin, frame_check, frame_seal,
    frame_verdict_text,
)
from phx._core.handshake cimport hello_frame, hello_refused
from phx._core.native cimport *
from phx._core.port cimport *
from phx._core.sending cimport GATHER_MAX, queue_drop, queue_gather, queue_sent

cdef enum:
    BUFFER_BYTES = 65536         # of a connection at first
    ACCEPT_MAX = 16              # in one turn
    ATTEMPTS_SLOW = 20           # from so many on, the back-off is the longest
    TEXT_BYTES = 240
    LOG_TOKENS_MAX = 10
    LOG_REFILL_US = 1000000
    DESCRIPTORS_US = 200000      # pause of the listener when there are no descriptors left

cdef u64 NEVER = 0xFFFFFFFFFFFFFFFF


# --- small things

cdef u64 random_below(Transport* t, u64 below) noexcept nogil:
    t.random_state ^= t.random_state << 13
    t.random_state ^= t.random_state >> 7
    t.random_state ^= t.random_state << 17
    return t.random_state % below if below else 0


cdef void say(Transport* t, int level, const char* text) noexcept nogil:
    t.hooks.log(t.hooks.context, level, text)


# About connections that anybody can make: LOG_TOKENS_MAX lines at once, then one a second.
cdef void say_limited(Transport* t, const char* text, u64 now_us) noexcept nogil:
    cdef char line[TEXT_BYTES]
    cdef u64 earned = (now_us - t.log_refill_us) // LOG_REFILL_US
    if earned:
        t.log_tokens = min(<u64>LOG_TOKENS_MAX, t.log_tokens + earned)
        t.log_refill_us += earned * LOG_REFILL_US
    if t.log_tokens == 0:
        t.log_skipped += 1
        return
    t.log_tokens -= 1
    if t.log_skipped:
        snprintf(line, TEXT_BYTES, "%s (and %llu lines like this before)", text,
                 <unsigned long long>t.log_skipped)
        t.log_skipped = 0
        say(t, LOG_WARNING, line)
    else:
        say(t, LOG_WARNING, text)


cdef void dial_later(Transport* t, Link* link, u64 now_us) noexcept nogil:
    cdef u64 delay = t.options.backoff_max_us
    if link.attempts < ATTEMPTS_SLOW:
        delay = min(delay, t.options.backoff_min_us << link.attempts)
    link.attempts += 1
    # Half of it is jitter, so that peers that lost each other at once do not meet in step.
    link.dial_at_us = now_us + delay - random_below(t, delay // 2 + 1)


# --- making and closing connections

cdef Connection* connection_new(Transport* t, int fd, u8 state, u64 now_us) noexcept nogil:
    cdef Connection* c = phx_new[Connection]()
    phx_fds_add(t.fds, fd)
    c.fd = fd
    c.state = state
    c.poll_index = -1
    c.heard_us = now_us
    c.deadline_us = now_us + t.options.handshake_us
    c.capacity = FRAME_HEADER_BYTES + HELLO_BYTES_MAX
    c.buffer = <u8*>phx_malloc(c.capacity)
    if c.buffer == NULL:
        phx_fatal("out of memory")
    t.connections.push_back(c)
    return c


cdef void connection_free(Connection* c) noexcept nogil:
    block_unref(c.control)
    phx_free(c.buffer)
    phx_delete(c)


cdef void connection_close(Transport* t, Connection* c, u64 now_us) noexcept nogil:
    cdef Link* link = transport_link(t, c.peer) if c.peer else NULL
    if c.state == CONNECTION_CLOSED:
        return
    phx_fds_close(t.fds, c.fd)
    c.state = CONNECTION_CLOSED
    if link == NULL:
        return
    if link.dialing == c:
        link.dialing = NULL
        dial_later(t, link, now_us)
    if link.connection == c:
        link.connection = NULL
        link.since_us = now_us
        queue_drop(link)
        dial_later(t, link, now_us)
        t.hooks.disconnected(t.hooks.context, link.node)


# Close with a line that says who and why; `why` is printed after the peer's name.
cdef void connection_fail(Transport* t, Connection* c, const char* why, u64 now_us) noexcept nogil:
    cdef char line[TEXT_BYTES]
    cdef char where[64]
    cdef Link* link = transport_link(t, c.peer) if c.peer else NULL
    if c.state == CONNECTION_CLOSED:
        return
    phx_address_text(&c.address, where, 64)
    if link == NULL:
        t.rejected += 1
        snprintf(line, TEXT_BYTES, "connection from %s closed: %s", where, why)
        say_limited(t, line, now_us)
    elif c.state == CONNECTION_UP or not link.quiet:
        # A peer that stays away is worth one line, not one for each attempt to reach it.
        link.quiet = True
        snprintf(line, TEXT_BYTES, "connection to node %u (%s) closed: %s", link.node, where, why)
        say_limited(t, line, now_us)
    connection_close(t, c, now_us)


# Tell the other side why, as far as its socket takes it at once, and close. `cluster`: its own, or
# it would not understand.
cdef void connection_refuse(Transport* t, Connection* c, u32 dest, u64 cluster, u32 reason,
                            const char* why, u64 now_us) noexcept nogil:
    cdef u32 words[2]
    cdef iovec part
    cdef u64 count = 0
    cdef Block* out = frame_begin(block_new(256))
    while why[count] != 0 and count < 128:
        count += 1
    words[0] = reason
    words[1] = 0
    out = block_append(out, words, 8)
    out = block_append(out, why, count)
    frame_seal(out, 0, FRAME_REFUSED, t.options.node, dest, cluster)
    if c.control == NULL or c.control_sent == c.control.size:
        part.iov_base = out.data
        part.iov_len = out.size
        phx_send_gather(c.fd, &part, 1)
    block_unref(out)
    connection_fail(t, c, why, now_us)


cdef void dial(Transport* t, Link* link, u64 now_us) noexcept nogil:
    cdef Connection* c
    cdef int fd = -1
    if link.named and not link.looked_up:
        t.hooks.dialing(t.hooks.context, link.node, link.attempts)
    link.looked_up = False
    if link.address.bytes:
        fd = phx_dial(&link.address)
    if fd < 0:
        dial_later(t, link, now_us)
        return
    c = connection_new(t, fd, CONNECTION_DIALING, now_us)
    c.peer = link.node
    c.address = link.address
    c.want_write = True
    link.dialing = c


# It waits for its time to be dialled.
cdef inline bint undialled(Transport* t, Link* link) noexcept nogil:
    return (link.node > t.options.node and (link.address.bytes or link.named)
            and link.connection == NULL and link.dialing == NULL)


cdef void dialled(Transport* t, Connection* c, u64 now_us) noexcept nogil:
    cdef int error = phx_socket_error(c.fd)
    if error < 0:
        connection_fail(t, c, strerror(-error), now_us)
        return
    c.state = CONNECTION_HELLO
    c.want_write = False
    c.control = hello_frame(t, c.peer, now_us)


# The oldest unfinished handshake makes room: an honest peer finishes its own in a moment.
cdef void bound_pending(Transport* t, u64 now_us) noexcept nogil:
    cdef size_t i
    cdef u32 pending = 0
    cdef Connection* oldest = NULL
    for i in range(t.connections.size()):
        if t.connections[i].state == CONNECTION_HELLO and t.connections[i].inbound:
            pending += 1
            if oldest == NULL:
                oldest = t.connections[i]
    if pending >= PENDING_MAX:
        connection_fail(t, oldest, "too many unfinished handshakes", now_us)


cdef void accept_some(Transport* t, u64 now_us) noexcept nogil:
    cdef PhxAddress address
    cdef Connection* c
    cdef int fd, i
    for i in range(ACCEPT_MAX):
        fd = phx_accept(t.listener, &address)
        if fd == -EMFILE or fd == -ENFILE:
            t.listen_at_us = now_us + DESCRIPTORS_US
            say_limited(t, "out of descriptors: no connection can be accepted", now_us)
            return
        if fd < 0:
            return
        bound_pending(t, now_us)
        c = connection_new(t, fd, CONNECTION_HELLO, now_us)
        c.inbound = True
        c.address = address


# --- what arrives

# A newer connection takes the place of this one; whoever listens knows already.
cdef void replace(Transport* t, Link* link, u64 now_us) noexcept nogil:
    cdef Connection* old = link.connection
    link.connection = NULL
    queue_drop(link)
    connection_fail(t, old, "replaced by a newer one", now_us)


cdef void greet(Transport* t, Connection* c, const FrameHeader* header, const u8* payload,
                u64 now_us) noexcept nogil:
    cdef Hello hello
    cdef char line[TEXT_BYTES]
    cdef char where[64]
    cdef const char* why = NULL
    cdef u32 reason
    cdef Link* link = transport_link(t, header.source)
    if header.payload_bytes < sizeof(Hello):
        connection_fail(t, c, "a hello that is too short", now_us)
        return
    memcpy(&hello, payload, sizeof(Hello))
    reason = hello_refused(t, header, &hello, c.inbound, &why)
    if reason != 0:
        connection_refuse(t, c, header.source, header.cluster, reason, why, now_us)
        return
    c.peer = link.node
    if t.hooks.connected(t.hooks.context, link.node, hello.incarnation, hello.store_id) != 0:
        link.attempts = ATTEMPTS_SLOW
        connection_refuse(t, c, link.node, header.cluster, REFUSED_STORE,
                          "another store, or an older incarnation, than this node had", now_us)
        return
    if link.connection != NULL:
        # The peer would not have come again if it still held the old one.
        replace(t, link, now_us)
    if c.inbound:
        c.control = hello_frame(t, link.node, now_us)
    if link.dialing == c:
        link.dialing = NULL
    link.connection = c
    link.since_us = now_us
    link.refused = 0
    link.attempts = 0
    link.quiet = False
    link.incarnation = hello.incarnation
    link.connects += 1
    c.state = CONNECTION_UP
    phx_address_text(&c.address, where, 64)
    snprintf(line, TEXT_BYTES, "connected to node %u (%s), incarnation %u", link.node, where,
             hello.incarnation)
    say(t, LOG_INFO, line)


# Somebody who came for a checkpoint, or to ask who is there: the connection goes to Python with all
# that was read of it.
cdef void visited(Transport* t, Connection* c, const FrameHeader* header, const u8* payload,
                  u64 now_us) noexcept nogil:
    cdef Hello hello
    cdef const char* why = NULL
    cdef const u8* frame = payload - FRAME_HEADER_BYTES
    cdef Block* said
    cdef u32 reason
    cdef int known
    if header.payload_bytes < sizeof(Hello):
        connection_fail(t, c, "a question that is too short", now_us)
        return
    memcpy(&hello, payload, sizeof(Hello))
    reason = hello_refused(t, header, &hello, False, &why)
    known = t.hooks.known(t.hooks.context, header.source, hello.incarnation, hello.store_id)
    if reason == 0 and (known < 0 or (known > 0 and header.kind == FRAME_FETCH)):
        reason = REFUSED_STORE
        why = "another store, or an older incarnation, than this node had"
    if reason != 0:
        connection_refuse(t, c, header.source, header.cluster, reason, why, now_us)
        return
    said = block_copy(frame, <u64>(c.buffer + c.end - frame))
    if t.hooks.handed(t.hooks.context, c.fd, header.source, said) != 0:
        block_unref(said)
        connection_refuse(t, c, header.source, header.cluster, REFUSED_BUSY,
                          "too many connections wait", now_us)
        return
    c.state = CONNECTION_CLOSED  # and the descriptor is somebody else's


cdef void refused(Transport* t, Connection* c, const u8* payload, u64 count,
                  u64 now_us) noexcept nogil:
    cdef char line[TEXT_BYTES]
    cdef u64 i = 0
    cdef char text[129]
    cdef Link* link = transport_link(t, c.peer)
    if count >= 4:
        if link.refused == 0 and link.connection == NULL:
            link.since_us = now_us
        memcpy(&link.refused, payload, 4)
    while i < 128 and 8 + i < count and 32 <= payload[8 + i] < 127:
        text[i] = payload[8 + i]
        i += 1
    text[i] = 0
    snprintf(line, TEXT_BYTES, "refused by the other side: %s", text)
    link.attempts = ATTEMPTS_SLOW
    connection_fail(t, c, line, now_us)


cdef void handle(Transport* t, Connection* c, const FrameHeader* header, const u8* payload,
                 u64 now_us) noexcept nogil:
    cdef Link* link
    if header.kind == FRAME_REFUSED and c.peer != 0:
        refused(t, c, payload, header.payload_bytes, now_us)
    elif c.state == CONNECTION_HELLO and header.kind == FRAME_HELLO:
        greet(t, c, header, payload, now_us)
    elif c.state == CONNECTION_HELLO and c.inbound and (
            header.kind == FRAME_FETCH or header.kind == FRAME_JOIN):
        visited(t, c, header, payload, now_us)
    elif c.state == CONNECTION_UP and header.kind == FRAME_ENGINE:
        link = transport_link(t, c.peer)
        link.frames_received += 1
        t.hooks.frame(t.hooks.context, c.peer, payload, header.payload_bytes)
    else:
        connection_fail(t, c, "a frame that has no place here", now_us)


# The longest payload that is believed of the first frame.
cdef u32 first_bytes_max(const u8* data, u64 count) noexcept nogil:
    cdef FrameHeader header
    if count < FRAME_HEADER_BYTES:
        return HELLO_BYTES_MAX
    memcpy(&header, data, FRAME_HEADER_BYTES)
    return FETCH_BYTES_MAX if header.kind == FRAME_FETCH else HELLO_BYTES_MAX


cdef void parse(Transport* t, Connection* c, u64 now_us) noexcept nogil:
    cdef FrameHeader header
    cdef int verdict
    cdef u32 limit
    cdef const u8* at
    while c.state == CONNECTION_HELLO or c.state == CONNECTION_UP:
        at = c.buffer + c.start
        limit = t.options.payload_bytes_max
        if c.state == CONNECTION_HELLO:
            limit = first_bytes_max(at, c.end - c.start)
        verdict = frame_check(at, c.end - c.start, limit, t.options.cluster, t.options.node, c.peer)
        if verdict == FRAME_SHORT:
            break
        if verdict != FRAME_SHORT:
            memcpy(&header, at, FRAME_HEADER_BYTES)
        if verdict == FRAME_BAD_CLUSTER and c.state == CONNECTION_HELLO and c.inbound:
            connection_refuse(t, c, header.source, header.cluster, REFUSED_CLUSTER,
                              frame_verdict_text(verdict), now_us)
            return
        if verdict != FRAME_OK:
            connection_fail(t, c, frame_verdict_text(verdict), now_us)
            return
        c.start += FRAME_HEADER_BYTES + <u64>header.payload_bytes
        handle(t, c, &header, at + FRAME_HEADER_BYTES, now_us)
    if c.start == c.end:
        c.start = 0
        c.end = 0


# Room for more bytes: what is parsed goes, and the buffer doubles only when it is full of bytes
# that really came, never beyond one frame of the largest size allowed in this state.
cdef void make_room(Transport* t, Connection* c) noexcept nogil:
    cdef u64 limit
    cdef u64 capacity = c.capacity
    cdef u8* buffer
    if c.state == CONNECTION_UP:
        limit = max(<u64>BUFFER_BYTES, FRAME_HEADER_BYTES + <u64>t.options.payload_bytes_max)
        if c.capacity < BUFFER_BYTES:
            capacity = BUFFER_BYTES
        elif c.end - c.start == c.capacity:
            capacity = min(limit, c.capacity * 2)
    elif c.end - c.start == c.capacity:
        limit = FRAME_HEADER_BYTES + <u64>first_bytes_max(c.buffer + c.start, c.end - c.start)
        capacity = max(capacity, limit)
    if c.start != 0 and (c.end == c.capacity or capacity != c.capacity):
        memmove(c.buffer, c.buffer + c.start, c.end - c.start)
        c.end -= c.start
        c.start = 0
    if capacity != c.capacity:
        buffer = <u8*>phx_malloc(capacity)
        if buffer == NULL:
            phx_fatal("out of memory")
        memcpy(buffer, c.buffer, c.end)
        phx_free(c.buffer)
        c.buffer = buffer
        c.capacity = capacity


cdef void read_some(Transport* t, Connection* c, u64 now_us) noexcept nogil:
    cdef u64 budget = READ_BYTES
    cdef u64 room
    cdef i64 got
    cdef Link* link
    while c.state == CONNECTION_HELLO or c.state == CONNECTION_UP:
        make_room(t, c)
        room = c.capacity - c.end
        got = phx_receive(c.fd, c.buffer + c.end, room)
        if got == 0:
            connection_fail(t, c, "by the other side", now_us)
            return
        if got < 0:
            if not phx_again(got):
                connection_fail(t, c, strerror(<int>-got), now_us)
            return
        c.end += <u64>got
        c.heard_us = now_us
        if c.state == CONNECTION_UP:
            link = transport_link(t, c.peer)
            link.bytes_received += <u64>got
            link.heard_us = now_us
        parse(t, c, now_us)
        if <u64>got < room or <u64>got >= budget:
            return
        budget -= <u64>got


# --- what leaves

cdef int gather(Transport* t, Connection* c, Link* link, iovec* parts) noexcept nogil:
    cdef int n = 0
    if c.control != NULL:
        parts[0].iov_base = c.control.data + c.control_sent
        parts[0].iov_len = c.control.size - c.control_sent
        n = 1
    return n if link == NULL else queue_gather(t, link, parts, n)


cdef void flush_one(Transport* t, Connection* c) noexcept nogil:
    cdef iovec parts[GATHER_MAX]
    cdef Link* link = transport_link(t, c.peer) if c.state == CONNECTION_UP else NULL
    cdef i64 sent
    cdef u64 control
    cdef int n
    while True:
        n = gather(t, c, link, parts)
        if n == 0:
            return
        if t.trace != NULL and link != NULL:
            note_sending(t, link, <u32>(n - 1 if c.control != NULL else n))
        sent = phx_send_gather(c.fd, parts, n)
        if sent < 0:
            if phx_again(sent):
                c.want_write = True
            else:
                c.broken = True
            return
        if c.control != NULL:
            control = min(<u64>sent, c.control.size - c.control_sent)
            c.control_sent += control
            sent -= control
            if c.control_sent == c.control.size:
                block_unref(c.control)
                c.control = NULL
        if link != NULL:
            queue_sent(link, <u64>sent)


cdef void transport_flush(Transport* t, u64 now_us) noexcept nogil:
    cdef size_t i
    cdef Connection* c
    for i in range(t.connections.size()):
        c = t.connections[i]
        if (c.state == CONNECTION_UP or c.state == CONNECTION_HELLO) and not (
                c.want_write or c.broken):
            flush_one(t, c)


# --- the turn

cdef void transport_watch(Transport* t, vector[pollfd]* fds, u64 now_us) noexcept nogil:
    cdef size_t i
    cdef Connection* c
    cdef pollfd entry
    entry.revents = 0
    t.listener_index = -1
    if t.listener >= 0 and now_us >= t.listen_at_us:
        t.listener_index = <i64>fds.size()
        entry.fd = t.listener
        entry.events = POLLIN
        fds.push_back(entry)
    for i in range(t.connections.size()):
        c = t.connections[i]
        c.poll_index = <i64>fds.size()
        entry.fd = c.fd
        entry.events = POLLIN if c.state != CONNECTION_DIALING else 0
        if c.want_write:
            entry.events |= POLLOUT
        fds.push_back(entry)


cdef u64 transport_deadline(Transport* t) noexcept nogil:
    cdef u64 at = NEVER
    cdef size_t i
    cdef Connection* c
    if t.listener >= 0 and t.listen_at_us:
        at = t.listen_at_us
    for i in range(t.connections.size()):
        c = t.connections[i]
        if c.broken:
            return 0
        at = min(at, c.heard_us + t.options.silence_us if c.state == CONNECTION_UP
                 else c.deadline_us)
    for i in range(t.links.size()):
        if undialled(t, t.links[i]):
            at = min(at, t.links[i].dial_at_us)
    return at


cdef void time_out(Transport* t, u64 now_us) noexcept nogil:
    cdef size_t i
    cdef Connection* c
    cdef Link* link
    if now_us >= t.listen_at_us:
        t.listen_at_us = 0
    for i in range(t.connections.size()):
        c = t.connections[i]
        if c.broken:
            connection_fail(t, c, "sending failed", now_us)
        elif c.state == CONNECTION_UP and now_us >= c.heard_us + t.options.silence_us:
            connection_fail(t, c, "nothing was heard for too long", now_us)
        elif c.state != CONNECTION_UP and now_us >= c.deadline_us:
            connection_fail(t, c, "the handshake took too long", now_us)
    for i in range(t.links.size()):
        link = t.links[i]
        if undialled(t, link) and now_us >= link.dial_at_us:
            dial(t, link, now_us)


cdef void reap(Transport* t) noexcept nogil:
    cdef size_t i, kept = 0
    for i in range(t.connections.size()):
        if t.connections[i].state == CONNECTION_CLOSED:
            connection_free(t.connections[i])
        else:
            t.connections[kept] = t.connections[i]
            kept += 1
    t.connections.resize(kept)


cdef void transport_turn(Transport* t, vector[pollfd]* fds, u64 now_us) noexcept nogil:
    cdef size_t i, n = t.connections.size()
    cdef Connection* c
    cdef pollfd* entry
    for i in range(n):
        c = t.connections[i]
        if c.poll_index < 0 or c.state == CONNECTION_CLOSED:
            continue
        entry = &fds[0][<size_t>c.poll_index]
        c.poll_index = -1
        if entry.revents == 0:
            continue
        if c.state == CONNECTION_DIALING:
            dialled(t, c, now_us)
            continue
        if entry.revents & POLLOUT:
            c.want_write = False
        if entry.revents & ~POLLOUT:
            read_some(t, c, now_us)
    if t.listener_index >= 0 and fds[0][<size_t>t.listener_index].revents:
        accept_some(t, now_us)
    time_out(t, now_us)
    reap(t)


# --- life

cdef Transport* transport_new(const TransportOptions* options, const TransportHooks* hooks,
                              PhxFds* fds) noexcept nogil:
    cdef Transport* t = phx_new[Transport]()
    t.options = options[0]
    t.hooks = hooks[0]
    t.fds = fds
    t.listener = -1
    t.listener_index = -1
    t.random_state = options.seed * 2 + 1
    t.log_tokens = LOG_TOKENS_MAX
    return t


cdef void transport_free(Transport* t) noexcept nogil:
    cdef size_t i
    if t == NULL:
        return
    for i in range(t.connections.size()):
        if t.connections[i].state != CONNECTION_CLOSED:
            phx_fds_close(t.fds, t.connections[i].fd)
        connection_free(t.connections[i])
    for i in range(t.links.size()):
        queue_drop(t.links[i])
        phx_delete[Link](t.links[i])
    if t.listener >= 0:
        phx_fds_close(t.fds, t.listener)
    phx_delete(t)


cdef Link* link_new(Transport* t, u32 node, u64 now_us) noexcept nogil:
    cdef Link* link = phx_new[Link]()
    cdef size_t at = t.links.size()
    link.node = node
    link.since_us = now_us
    t.links.push_back(link)
    while at > 0 and t.links[at - 1].node > node:
        t.links[at] = t.links[at - 1]
        at -= 1
    t.links[at] = link
    return link


cdef bint same_address(const PhxAddress* a, const PhxAddress* b) noexcept nogil:
    return a.bytes == b.bytes and memcmp(&a.at, &b.at, a.bytes) == 0


cdef void transport_set_peer(Transport* t, u32 node, const PhxAddress* address, u32 how,
                             u64 now_us) noexcept nogil:
    cdef Link* link = transport_link(t, node)
    cdef Connection* dialing
    cdef bint looked_up = how & PEER_LOOKED_UP, moved
    if link == NULL and looked_up:
        return
    if link == NULL:
        if t.links.size() == PEERS_MAX:
            return
        link = link_new(t, node, now_us)
    moved = not same_address(&link.address, address)
    link.address = address[0]
    if not looked_up:
        link.named = how & PEER_NAMED
        link.attempts = 0
        link.quiet = False
    elif not moved:
        return
    link.looked_up = looked_up
    link.dial_at_us = 0
    if not moved:
        return
    dialing = link.dialing
    if dialing != NULL:
        link.dialing = NULL
        connection_close(t, dialing, now_us)
    if link.connection != NULL and not link.connection.inbound and not looked_up:
        connection_fail(t, link.connection, "it is somewhere else now", now_us)
        link.dial_at_us = 0
    reap(t)


cdef void transport_drop_peer(Transport* t, u32 node) noexcept nogil:
    cdef Link* link = transport_link(t, node)
    cdef size_t i, kept = 0
    if link == NULL:
        return
    for i in range(t.links.size()):
        if t.links[i] != link:
            t.links[kept] = t.links[i]
            kept += 1
    t.links.resize(kept)
    for i in range(t.connections.size()):
        if t.connections[i].peer == node:
            connection_close(t, t.connections[i], 0)  # of nobody: no more than that
    queue_drop(link)
    phx_delete(link)
    reap(t)


cdef int transport_listen(Transport* t, const PhxAddress* address) noexcept nogil:
    cdef int fd = phx_listen(address, 128)
    if fd < 0:
        return fd
    phx_fds_add(t.fds, fd)
    t.listener = fd
    return phx_bound_port(fd)
