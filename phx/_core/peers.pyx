# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Peers of a node; see peers.pxd."""

from libc.string cimport memcmp, memcpy

from phx._core.codec cimport RECORD_PEER
from phx._core.effects cimport emit_event, emit_record
from phx._core.learner cimport peer_renewed
from phx._core.leases cimport claims_forget
from phx._core.liveness cimport refresh_all
from phx._core.membership cimport slot_free, slot_take, slot_used
from phx._core.native cimport *
from phx._core.proposals cimport callers_requeue
from phx._core.proposer cimport peer_returned
from phx._core.reads cimport reads_lost
from phx._core.state cimport *


cdef int peer_add(Engine* e, u32 node, const u8* store_id) noexcept nogil:
    cdef int at = slot_take(e, node)
    cdef Peer* p
    if at < 0 or node == e.options.node:
        return PEER_CANNOT
    p = &e.peers[at]
    if store_id != NULL and not p.known:
        p.known = True
        memcpy(p.store_id, store_id, 16)
        if e.started:  # else it is carried over by the start
            p.peer_lsn = emit_record(e, RECORD_PEER, node, 0, 0, store_id, 16, &p.store_lsn)
    return PEER_DONE


cdef int peer_drop(Engine* e, u32 node) noexcept nogil:
    cdef int at = slot_of(e, node)
    cdef Peer* p
    if at < 0:
        return PEER_DONE
    if node == e.options.node:
        return PEER_CANNOT
    p = &e.peers[at]
    if slot_used(e, at):
        return PEER_MEMBER
    # (Its claims are of groups that it was a member of. They end with its own word, or by `watch`.)
    if not p.claims.empty() and p.grant_until_us > e.now_us:
        return PEER_GRANTED
    peer_lost(e, node)
    claims_forget(e, p)
    e.lease_version += 1
    refresh_all(e)
    slot_free(e, at)
    return PEER_DONE


cdef int peer_met(Engine* e, u32 node, u32 incarnation, const u8* store_id) noexcept nogil:
    cdef int at = slot_of(e, node)
    cdef Peer* p
    cdef size_t i
    if at < 0 or node == e.options.node or not e.started:
        return -1
    p = &e.peers[at]
    if p.known and memcmp(p.store_id, store_id, 16) != 0:
        emit_event(e, EVENT_PEER_REFUSED, 0, node, 0, 0, 0)
        return -1
    if incarnation < p.incarnation:
        return -1
    if not p.known:
        p.known = True
        memcpy(p.store_id, store_id, 16)
        p.peer_lsn = emit_record(e, RECORD_PEER, node, 0, 0, store_id, 16, &p.store_lsn)
    if p.connected:
        peer_lost(e, node)
    if incarnation != p.incarnation:
        # Another life: all its leaderships are over, and so is what it granted.
        claims_forget(e, p)
        p.incarnation = incarnation
        p.lease_until_us = 0
        e.lease_version += 1
        p.heard_seq = 0
        p.alive = False
        refresh_all(e)
    p.connected = True
    p.connected_us = e.now_us
    p.acked_version = 0
    e.connected += 1
    e.beat_now = True
    for i in range(e.replicas.size()):
        if e.replicas[i] != NULL and config_has(e.replicas[i], p.slot):
            peer_renewed(e, e.replicas[i], p)
            peer_returned(e, e.replicas[i], p)
    return 0


cdef void peer_lost(Engine* e, u32 node) noexcept nogil:
    cdef int at = slot_of(e, node)
    cdef Peer* p
    cdef size_t i
    if at < 0 or not e.peers[at].connected:
        return
    p = &e.peers[at]
    p.connected = False
    p.late_us = 0
    e.connected -= 1
    block_unref(p.now)
    block_unref(p.later)
    p.now = NULL
    p.later = NULL
    reads_lost(e, p)
    for i in range(e.replicas.size()):
        if e.replicas[i] != NULL and e.replicas[i].leader == node:
            callers_requeue(e, e.replicas[i])


