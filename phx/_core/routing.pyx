# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Routing of messages; see routing.pxd."""

from libc.string cimport memcpy

from phx._core.ballot cimport ballot_hostile, ballot_node
from phx._core.barrier cimport on_config, on_config_ask, other_version
from phx._core.learner cimport note_watermark, on_learn, on_learn_ask, want
from phx._core.liveness cimport on_beat, on_beat_ack, on_rejoin
from phx._core.membership cimport is_removed, knows_below, votes_in
from phx._core.native cimport *
from phx._core.points cimport on_read_ask
from phx._core.proposals cimport on_forward, on_forward_reply
from phx._core.proposer cimport (
    on_accept, on_accepted, on_confirm, on_prepare, on_prevote, on_prevote_reply, on_promise,
    on_refuse, on_transfer,
)
from phx._core.reads cimport on_read_point
from phx._core.state cimport *
from phx._core.wire cimport *

# The fixed part of a message, copied out: bytes may be unaligned.
cdef union Fixed:
    PrevoteBody prevote
    PrevoteReplyBody prevote_reply
    PrepareBody prepare
    PromiseBody promise
    AcceptBody accept
    AcceptedBody accepted
    RefuseBody refuse
    ChosenBody chosen
    LearnAskBody learn_ask
    LearnBody learn
    ForwardBody forward
    ForwardReplyBody forward_reply
    HeartbeatBody heartbeat
    HeartbeatAckBody heartbeat_ack
    RejoinBody rejoin
    ReadAskBody read_ask
    ReadPointBody read_point
    ConfigBody config


cdef u64 rest_wanted(u8 kind, Fixed* f) noexcept nogil:
    """Bytes that must follow the fixed part."""
    if kind == MSG_PREPARE:
        return <u64>f.prepare.holds * sizeof(HoldRange)
    if kind == MSG_ACCEPT:
        return f.accept.body_bytes
    if kind == MSG_FORWARD:
        return f.forward.items_bytes
    if kind == MSG_HEARTBEAT:
        return <u64>f.heartbeat.claims * sizeof(ClaimChange)
    if kind == MSG_HEARTBEAT_ACK:
        return <u64>f.heartbeat_ack.refused * 4
    if kind == MSG_READ_ASK:
        return <u64>f.read_ask.groups * sizeof(GroupAsked)
    if kind == MSG_READ_POINT:
        return <u64>f.read_point.points * sizeof(PointAnswer)
    if kind == MSG_CONFIG:
        return f.config.bytes
    return 0


cdef void route_vote(Engine* e, Replica* r, Peer* p, MessageHeader* h, Fixed* f, const u8* rest,
                     u64 left) noexcept nogil:
    """Messages of phase 1 and 2: only for a node that may vote."""
    if h.kind == MSG_PREVOTE:
        on_prevote(e, r, p, h.ballot, &f.prevote)
    elif h.kind == MSG_PREVOTE_REPLY:
        on_prevote_reply(e, r, p, h.ballot, h.flags, &f.prevote_reply)
    elif h.kind == MSG_PREPARE:
        on_prepare(e, r, p, h.ballot, &f.prepare, rest)
    elif h.kind == MSG_PROMISE:
        on_promise(e, r, p, h.ballot, h.flags, &f.promise, rest, left)
    elif h.kind == MSG_ACCEPT:
        on_accept(e, r, p, h.ballot, h.flags, &f.accept, rest)
    elif h.kind == MSG_ACCEPTED:
        on_accepted(e, r, p, h.ballot, &f.accepted)
    elif h.kind == MSG_REFUSE:
        on_refuse(e, r, p, h.ballot, &f.refuse)
    elif h.kind == MSG_CONFIRM:
        on_confirm(e, r, p, h.ballot, h.flags, f.chosen.through)
    elif h.kind == MSG_TRANSFER:
        on_transfer(e, r, p, h.ballot, h.flags)
    elif h.kind == MSG_REJOIN:
        on_rejoin(e, r, p, h.ballot, &f.rejoin)


cdef bint route_suspect(Engine* e, Replica* r, Peer* p, MessageHeader* h, Fixed* f) noexcept nogil:
    """What a replica that may have forgotten votes hears of others' ballots, and does not answer.
    False: of its own leadership, to be routed as ever."""
    if h.kind != MSG_PREVOTE and h.kind != MSG_PREPARE and h.kind != MSG_ACCEPT:
        return False
    if h.kind == MSG_PREVOTE:
        return True
    if ballot_node(h.ballot) != p.node or ballot_hostile(h.ballot, r.highest_seen):
        e.counters.hostile_messages += 1
        return True
    # (Its next ballot is above: one that is lower would only be refused.)
    if h.ballot > r.highest_seen:
        r.highest_seen = h.ballot
    if h.kind == MSG_ACCEPT and r.role != ROLE_LEADING:
        note_watermark(e, r, h.ballot, f.accept.watermark)
    return True


cdef void route_accept_for_none(Engine* e, Replica* r, Peer* p, MessageHeader* h,
                                Fixed* f) noexcept nogil:
    """This node has no vote there, or does not know yet what is below it: it learns."""
    if h.kind == MSG_ACCEPT and ballot_node(h.ballot) == p.node:
        note_watermark(e, r, h.ballot, f.accept.watermark)
    if not knows_below(r):
        want(e, r, r.members.instance, p.node)


cdef void route_member(Engine* e, Replica* r, Peer* p, MessageHeader* h, Fixed* f, const u8* rest,
                       u64 left) noexcept nogil:
    """What is said among members of one version (M3); a forward is of none."""
    cdef u64 through = f.accept.watermark if h.kind == MSG_ACCEPT else 0
    if (h.config != r.version or is_removed(r)) and not other_version(e, r, p, h, through):
        return
    # (The old leader of a disjoint change gives the group to one of members that it is none of.)
    if not config_has(r, p.slot) and h.kind != MSG_TRANSFER:
        e.counters.hostile_messages += 1
    elif h.kind == MSG_FORWARD:
        on_forward(e, r, p, &f.forward, rest)
    elif h.kind == MSG_FORWARD_REPLY:
        on_forward_reply(e, r, p, &f.forward_reply)
    elif r.halted or e.poisoned:
        return
    elif (h.kind == MSG_PREVOTE or h.kind == MSG_PREPARE or h.kind == MSG_ACCEPT) and not votes_in(
            e, r):
        route_accept_for_none(e, r, p, h, f)
    elif not (r.suspect and route_suspect(e, r, p, h, f)):
        route_vote(e, r, p, h, f, rest, left)


cdef void route_group(Engine* e, Replica* r, Peer* p, MessageHeader* h, Fixed* f, const u8* rest,
                      u64 left) noexcept nogil:
    """What is chosen is told by anybody, to anybody: also to who is no member yet, or any more."""
    if h.kind == MSG_LEARN_ASK:
        # A halted group may hold what others know to be wrong: it supplies nothing.
        if not r.halted:
            on_learn_ask(e, r, p, &f.learn_ask)
    elif h.kind == MSG_LEARN:
        # A leader learns nothing from elsewhere: what it has proposed, it hears of by acceptances.
        if r.role != ROLE_LEADING:
            on_learn(e, r, p, h.ballot, &f.learn, rest, left)
    elif h.kind == MSG_CHOSEN:
        if ballot_node(h.ballot) != p.node:
            e.counters.hostile_messages += 1
        elif r.role != ROLE_LEADING and not r.halted and not is_removed(r):
            if h.config > r.version:
                other_version(e, r, p, h, f.chosen.through)
            note_watermark(e, r, h.ballot, f.chosen.through)
            r.confirm_due = True
            touch(e, r)
    elif h.kind == MSG_CONFIG:
        on_config(e, r, p, h, &f.config, rest)
    elif h.kind == MSG_CONFIG_ASK:
        on_config_ask(e, r, p, h)
    else:
        route_member(e, r, p, h, f, rest, left)


cdef void route(Engine* e, Peer* p, const u8* data, u32 length) noexcept nogil:
    cdef MessageHeader h
    cdef Fixed f
    cdef u32 fixed
    cdef const u8* rest
    cdef u64 left
    cdef Replica* r
    memcpy(&h, data, sizeof(h))
    fixed = message_fixed_bytes(h.kind)
    memcpy(&f, data + MESSAGE_HEADER_BYTES, fixed)
    rest = data + MESSAGE_HEADER_BYTES + fixed
    left = length - MESSAGE_HEADER_BYTES - fixed
    if rest_wanted(h.kind, &f) > left:
        e.counters.hostile_messages += 1
        return
    if h.kind == MSG_HEARTBEAT:
        on_beat(e, p, h.flags, &f.heartbeat, rest)
        return
    if h.kind == MSG_HEARTBEAT_ACK:
        on_beat_ack(e, p, h.flags, &f.heartbeat_ack, rest)
        return
    if h.kind == MSG_READ_ASK:
        on_read_ask(e, p, h.flags, &f.read_ask, rest)
        return
    if h.kind == MSG_READ_POINT:
        on_read_point(e, p, h.flags, &f.read_point, rest)
        return
    r = find_group(e, h.group)
    if r == NULL or h.space != r.generation:
        # Not hosted here, or not yet, or not any more (groups.pxd).
        e.counters.refused_messages += 1
        return
    if h.config == 0:
        e.counters.hostile_messages += 1
        return
    route_group(e, r, p, &h, &f, rest, left)
