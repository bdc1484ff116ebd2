# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""What a driver says of itself, as Python's values; see driver_status.pxd."""

from cpython.bytes cimport PyBytes_FromStringAndSize

from phx._core.driver_state cimport DriverState, NodeStatus, PeerStatus
from phx._core.native cimport *
from phx._core.port cimport phx_thread_cpu_ns
from phx._core.queues cimport GroupRow

_LAYER_NAMES = ("network", "submit", "engine", "send", "deliver", "journal")


cdef dict row_of(GroupRow* row):
    cdef dict found = row.status
    return {**found, "group": row.group, "handed_through": row.handed}


cdef dict peer_of(PeerStatus* peer, u64 now_us):
    return {
        "node": peer.node, "connected": bool(peer.connected), "incarnation": peer.incarnation,
        "heard_us_ago": now_us - peer.heard_us if peer.heard_us else None,
        "refused": peer.refused, "since_us_ago": now_us - min(peer.since_us, now_us),
        "queued_bytes": peer.queued_bytes, "frames_sent": peer.frames_sent,
        "bytes_sent": peer.bytes_sent, "frames_received": peer.frames_received,
        "bytes_received": peer.bytes_received, "frames_dropped": peer.frames_dropped,
        "connects": peer.connects,
        "store_id": PyBytes_FromStringAndSize(<char*>peer.store_id, 16) if peer.known else None,
    }


cdef dict status_of(DriverState* s, NodeStatus* status):
    cdef size_t i
    cdef dict journal = status.journal
    cdef dict cpu = {"poll": phx_thread_cpu_ns(s.thread), "journal": phx_load(&s.writer.cpu_ns)}
    journal.update(
        durable_lsn=status.durable_lsn, written_lsn=status.written_lsn, floor_lsn=status.floor_lsn,
        poisoned=bool(status.poisoned), pressure=status.pressure,
        queued_bytes=phx_load(&s.writer.queued_bytes), inlined=phx_load(&s.writer.inlined),
    )
    return {
        "node": s.options.engine.node, "incarnation": s.incarnation, "port": s.port,
        "peers": [peer_of(&status.peers[i], status.now_us) for i in range(status.n_peers)],
        "engine": status.engine,
        "journal": journal,
        "queues": {
            "handed_bytes": phx_load(&s.outbox.handed_bytes),
            "backlog_groups": status.backlog_groups,
            "submitted_bytes": phx_load(&s.inbox.submitted_bytes),
        },
        "settle": {
            "pending": bool(status.settle_wanted or status.settle_running),
            "plans": status.settle_plans, "entries": status.settle_entries,
        },
        "leading": status.leading,
        "turns": status.turns,
        "connections": status.connections,
        "rejected_connections": status.rejected,
        # of threads: CPU; of the poll thread's layers: time passed inside them
        "cpu_ns": cpu,
        "layers_ns": {name: status.layers_ns[i] for i, name in enumerate(_LAYER_NAMES)},
    }
