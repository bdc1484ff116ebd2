# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The arguments of a Driver, checked and turned into native structs; see options.pxd."""

import os

from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memcpy, memset

from phx._core.driver_state cimport DriverOptions
from phx._core.life cimport LIFE_OPTION
from phx._core.native cimport *
from phx._core.port cimport PhxAddress, phx_address
from phx._core.state cimport PRIORITY_MAX, PRIORITY_USUAL
from phx._core.transport cimport PEERS_MAX

_MIB = 1 << 20

# Every option with its default; what they mean stands in phx.config.
OPTIONS = {
    "heartbeat_us": 100_000, "lease_us": 800_000, "election_us": 100_000, "resend_us": 300_000,
    "connect_timeout_us": 2_000_000, "silence_us": 0, "backoff_min_us": 20_000,
    "backoff_max_us": 1_000_000,
    "value_bytes_max": _MIB, "window": 1024, "window_bytes": 16 * _MIB,
    "batch_bytes_max": _MIB // 4,
    "frame_bytes_max": _MIB, "pending_bytes_max": 64 * _MIB, "cache_bytes_max": 64 * _MIB,
    "delivery_bytes_max": 64 * _MIB, "peer_queue_bytes_max": 32 * _MIB,
    "segment_bytes": 32 * _MIB, "journal_bytes_max": 1024 * _MIB, "settle_bytes": 128 * _MIB,
    "settle_idle_us": 2_000_000, "journal_queue_bytes_max": 64 * _MIB, "inline_bytes_max": 65536,
    "balance": 1, "priority": PRIORITY_USUAL, "seed": 0,
}

cdef enum:
    BODY_OVERHEAD = 4096         # of a batch beyond its values: headers of body, run, item
    FORWARD_BYTES = 262144       # a forwarded run, see proposals


class DriverError(Exception):
    """What the native half refuses; ``code`` is one of ERROR_*."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code
        self.message = message


cdef int address_of(PhxAddress* out, host, port) except -1:
    cdef bytes text = str(host).encode("ascii", "replace")
    if not 0 <= port <= 65535:
        raise DriverError(LIFE_OPTION, f"{port} is not a port")
    if not text:
        memset(out, 0, sizeof(PhxAddress))
    elif phx_address(out, text, port) != 0:
        raise DriverError(LIFE_OPTION, f"{host!r} is not a numeric address")
    return 0


cdef dict option_values(options):
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise DriverError(LIFE_OPTION, f"unknown options: {', '.join(unknown)}")
    values = {**OPTIONS, **options}
    for name, value in values.items():
        if type(value) is not int or not 0 <= value < 1 << 62:
            raise DriverError(LIFE_OPTION, f"{name}: {value!r} is not a number of that kind")
    if values["seed"] == 0:
        values["seed"] = int.from_bytes(os.urandom(7), "little")
    if values["silence_us"] == 0:
        values["silence_us"] = max(4 * values["lease_us"], 2_000_000)
    return values


cdef int engine_options(DriverOptions* o, dict v, list ids) except -1:
    cdef u32 i
    o.engine.n_members = <u32>len(ids)
    for i in range(o.engine.n_members):
        o.engine.members[i] = ids[i]
    o.engine.seed = v["seed"]
    o.engine.window = v["window"]
    o.engine.window_bytes = v["window_bytes"]
    o.engine.batch_bytes_max = v["batch_bytes_max"]
    o.engine.heartbeat_us = v["heartbeat_us"]
    o.engine.lease_us = v["lease_us"]
    o.engine.election_us = v["election_us"]
    o.engine.resend_us = v["resend_us"]
    o.engine.pending_bytes_max = v["pending_bytes_max"]
    o.engine.cache_bytes_max = v["cache_bytes_max"]
    o.engine.frame_bytes_max = v["frame_bytes_max"]
    o.engine.value_bytes_max = v["value_bytes_max"]
    o.engine.balance = v["balance"] != 0
    return 0


cdef int driver_options(DriverOptions* o, dict v) except -1:
    # A batch below its limit still takes one more value, whatever its size.
    cdef u64 body_bytes_max = v["batch_bytes_max"] + v["value_bytes_max"] + BODY_OVERHEAD
    o.transport.payload_bytes_max = v["frame_bytes_max"] + body_bytes_max + FORWARD_BYTES
    o.transport.peer_queue_bytes_max = v["peer_queue_bytes_max"]
    o.transport.handshake_us = v["connect_timeout_us"]
    o.transport.silence_us = v["silence_us"]
    o.transport.backoff_min_us = v["backoff_min_us"]
    o.transport.backoff_max_us = v["backoff_max_us"]
    o.transport.seed = v["seed"]
    o.journal.segment_bytes = v["segment_bytes"]
    o.journal.journal_bytes_max = v["journal_bytes_max"]
    o.journal.body_bytes_max = body_bytes_max
    o.inbox_bytes_max = v["pending_bytes_max"]
    o.delivery_bytes_max = v["delivery_bytes_max"]
    o.settle_bytes = v["settle_bytes"]
    o.settle_idle_us = v["settle_idle_us"]
    o.journal_queue_bytes_max = v["journal_queue_bytes_max"]
    o.inline_bytes_max = v["inline_bytes_max"]
    o.priority = min(v["priority"], PRIORITY_MAX)
    return 0


cdef int identity(DriverOptions* o, u64 cluster, u32 node, bytes store_id) except -1:
    if len(store_id) != 16:
        raise DriverError(LIFE_OPTION, "a store id has 16 bytes")
    o.engine.cluster = cluster
    o.engine.node = node
    o.transport.cluster = cluster
    o.transport.node = node
    memcpy(o.transport.store_id, PyBytes_AS_STRING(store_id), 16)
    o.journal.cluster = cluster
    o.journal.node = node
    memcpy(o.journal.store_id, PyBytes_AS_STRING(store_id), 16)
    return 0


cdef int former_facts(DriverOptions* o, facts, bint lost) except -1:
    cdef bytes store_id
    cdef u32 i
    o.ceiling = facts.ceiling
    o.lost_before = 0 if lost else facts.lost
    o.incarnation = max(o.incarnation, facts.incarnation - 1)
    if lost:
        o.lease_bound_us = facts.lease_us
    for i in range(o.n_peers):
        store_id = facts.peers.get(o.peers[i])
        if store_id is not None and len(store_id) == 16:
            o.known[o.n_known] = o.peers[i]
            memcpy(o.known_ids[o.n_known], PyBytes_AS_STRING(store_id), 16)
            o.n_known += 1
    return 0


cdef int peer_addresses(DriverOptions* o, u32 node, members, peers, named, bind) except -1:
    cdef u32 n = 0
    for member, host, port in [*members, *peers]:
        if member != node:
            if n == PEERS_MAX or member in [o.peers[i] for i in range(n)]:
                raise DriverError(LIFE_OPTION, f"node {member}: given twice, or one too many")
            o.peers[n] = member
            o.named[n] = member in named
            address_of(&o.addresses[n], host, port)
            if port == 0:
                o.addresses[n].bytes = 0
            n += 1
        elif bind is None:
            bind = (host, port)
    o.n_peers = n
    address_of(&o.bind, bind[0], bind[1])
    if o.bind.bytes == 0:
        raise DriverError(LIFE_OPTION, "there is no address to listen at")
    return 0
