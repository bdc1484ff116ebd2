# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Transport for Python; see transport_door.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset, strlen

from phx._core.codec cimport FRAME_ENGINE, frame_begin, frame_seal
from phx._core.handover cimport *
from phx._core.native cimport *
from phx._core.port cimport PhxAddress, phx_address, phx_now_us, poll
from phx._core.sending cimport transport_release, transport_send
from phx._core.transport cimport *

cdef enum:
    LOST = 0x80000000


cdef int door_connected(void* context, u32 peer, u32 incarnation,
                        const u8* store_id) noexcept nogil:
    cdef Door* door = <Door*>context
    if peer == door.refuse:
        return -1
    door.ups.push_back(peer)
    return 0


cdef void door_disconnected(void* context, u32 peer) noexcept nogil:
    cdef u32 lost = peer | <u32>LOST
    (<Door*>context).ups.push_back(lost)


cdef void door_frame(void* context, u32 peer, const u8* payload, u64 count) noexcept nogil:
    cdef Heard heard
    heard.peer = peer
    heard.payload = block_copy(payload, count)
    (<Door*>context).frames.push_back(heard)


cdef void door_log(void* context, int level, const char* text) noexcept nogil:
    cdef Block* line = block_copy(text, strlen(text))
    (<Door*>context).lines.push_back(line)


cdef int door_known(void* context, u32 peer, u32 incarnation, const u8* store_id) noexcept nogil:
    cdef Door* door = <Door*>context
    if peer == door.refuse:
        return -1
    return 0 if transport_link(door.transport, peer) != NULL else 1


cdef int door_handed(void* context, int fd, u32 peer, Block* said) noexcept nogil:
    return 0 if handover_push(&(<Door*>context).handover, fd, peer, said) else -1


cdef void door_dialing(void* context, u32 peer, u32 attempts) noexcept nogil:
    (<Door*>context).dialing.push_back(peer)


cdef bytes taken(Block* block):
    cdef bytes made = PyBytes_FromStringAndSize(<char*>block.data, block.size)
    block_unref(block)
    return made


cdef class TransportDoor:
    def __cinit__(self, node, *, cluster=1, payload_bytes_max=65536, peer_queue_bytes_max=1 << 20,
                  handshake_us=500_000, silence_us=5_000_000, backoff_min_us=1_000,
                  backoff_max_us=20_000, incarnation=1, refuse=0):
        cdef TransportOptions o
        cdef TransportHooks hooks
        memset(&o, 0, sizeof(o))
        o.cluster = cluster
        o.node = node
        o.incarnation = incarnation
        memset(o.store_id, node & 0xFF, 16)
        o.payload_bytes_max = payload_bytes_max
        o.peer_queue_bytes_max = peer_queue_bytes_max
        o.handshake_us = handshake_us
        o.silence_us = silence_us
        o.backoff_min_us = backoff_min_us
        o.backoff_max_us = backoff_max_us
        o.seed = node
        self.door = phx_new[Door]()
        self.door.refuse = refuse
        self.cluster = cluster
        self.node = node
        hooks.context = self.door
        hooks.connected = door_connected
        hooks.disconnected = door_disconnected
        hooks.frame = door_frame
        hooks.log = door_log
        hooks.known = door_known
        hooks.handed = door_handed
        hooks.dialing = door_dialing
        handover_init(&self.door.handover)
        self.door.transport = transport_new(&o, &hooks, &self.door.fds)

    def __dealloc__(self):
        self.close()

    def close(self):
        if self.door != NULL:
            transport_free(self.door.transport)
            handover_close(&self.door.handover, &self.door.fds)
            handover_destroy(&self.door.handover)
            for i in range(self.door.frames.size()):
                block_unref(self.door.frames[i].payload)
            for i in range(self.door.lines.size()):
                block_unref(self.door.lines[i])
            phx_delete(self.door)
            self.door = NULL

    def refuse(self, node):
        """From now on, a handshake of this node is refused."""
        self.door.refuse = node

    def listen(self, host="127.0.0.1", port=0):
        cdef PhxAddress address
        if phx_address(&address, host.encode(), port) != 0:
            raise ValueError(host)
        found = transport_listen(self.door.transport, &address)
        if found < 0:
            raise OSError(-found, "listen")
        return found

    def set_peer(self, node, port, host="127.0.0.1", *, named=False, looked_up=False):
        """Port 0: a peer that is known, but not dialled."""
        cdef PhxAddress address
        memset(&address, 0, sizeof(address))
        if port and phx_address(&address, host.encode(), port) != 0:
            raise ValueError(host)
        transport_set_peer(self.door.transport, node, &address,
                           PEER_NAMED * bool(named) + PEER_LOOKED_UP * bool(looked_up),
                           phx_now_us())

    def drop_peer(self, node):
        transport_drop_peer(self.door.transport, node)

    def dialing(self):
        """Peers with names that were about to be dialled, since the last call."""
        found = [self.door.dialing[i] for i in range(self.door.dialing.size())]
        self.door.dialing.clear()
        return found

    def step(self, wait_ms=0):
        """One turn: wait for at most so long, read, dial, time out, write."""
        cdef u64 now_us = phx_now_us()
        cdef u64 at_us = transport_deadline(self.door.transport)
        cdef int wait = wait_ms
        if at_us <= now_us:
            wait = 0
        elif at_us - now_us < <u64>wait * 1000:
            wait = <int>((at_us - now_us) // 1000 + 1)
        self.door.watched.clear()
        transport_watch(self.door.transport, &self.door.watched, now_us)
        with nogil:
            poll(self.door.watched.data(), self.door.watched.size(), wait)
        now_us = phx_now_us()
        transport_turn(self.door.transport, &self.door.watched, now_us)
        transport_flush(self.door.transport, now_us)

    def send(self, peer, bytes payload not None, after=0):
        cdef Block* frame = frame_begin(block_new(64))
        frame = block_append(frame, PyBytes_AS_STRING(payload), len(payload))
        frame_seal(frame, 0, FRAME_ENGINE, self.node, peer, self.cluster)
        transport_send(self.door.transport, peer, after, frame)

    def release(self, lsn):
        transport_release(self.door.transport, lsn)

    def frames(self):
        """Payloads that arrived since the last call, as (peer, payload)."""
        found = [(self.door.frames[i].peer, taken(self.door.frames[i].payload))
                 for i in range(self.door.frames.size())]
        self.door.frames.clear()
        return found

    def handed(self):
        """Connections taken out since the last call, as (descriptor, peer, bytes)."""
        cdef vector[HandedOver] out
        handover_take(&self.door.handover, &self.door.fds, &out)
        return [(out[i].fd, out[i].peer, taken(out[i].said)) for i in range(out.size())]

    def changes(self):
        """(peer, connected) since the last call."""
        found = [(self.door.ups[i] & ~<u32>LOST, not self.door.ups[i] & <u32>LOST)
                 for i in range(self.door.ups.size())]
        self.door.ups.clear()
        return found

    def lines(self):
        """Log lines since the last call."""
        found = [taken(self.door.lines[i]).decode() for i in range(self.door.lines.size())]
        self.door.lines.clear()
        return found

    def status(self):
        """What the transport holds: connections, their buffers, and each peer's queue."""
        cdef Transport* t = self.door.transport
        cdef size_t i
        links = {}
        for i in range(t.links.size()):
            links[t.links[i].node] = {
                "connected": t.links[i].connection != NULL,
                "ready": t.links[i].ready.size(), "held": t.links[i].held.size(),
                "queued_bytes": t.links[i].queued_bytes, "dropped": t.links[i].frames_dropped,
                "sent": t.links[i].frames_sent, "connects": t.links[i].connects,
                "refused": t.links[i].refused, "since_us": t.links[i].since_us,
            }
        return {
            "connections": t.connections.size(), "rejected": t.rejected,
            "buffer_bytes": sum([t.connections[i].capacity for i in range(t.connections.size())]),
            "links": links,
        }
