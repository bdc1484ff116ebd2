# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Target for hostile messages; see engines.pxd."""

from phx._core.ballot cimport ballot_counter, ballot_make, ballot_node
from phx._core.batch cimport *
from phx._core.codec cimport *
from phx._core.engine cimport *
from phx._core.members cimport Roster, roster_write
from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.window cimport Slot, window_find
from phx._core.wire cimport *
from phxfuzz.oracles cimport *
from phxfuzz.script cimport *

cdef enum:
    WINDOW = 16
    OPS_MAX = 200
    SETUP_TURNS = 60
    INDEX_MAX = 2048             # of a replayed record: more is memory, not another path


# --- numbers near what the engine holds

cdef u64 number(Script* s, Replica* r) noexcept nogil:
    cdef u8 how = take_u8(s)
    cdef u64 near = how & 15
    if how < 32:
        return how
    if how < 112:
        return r.chosen_through + near - 3
    if how < 144:
        return r.accepted_last + near - 7
    if how < 176:
        return (r.lead.next if r.lead != NULL else r.chosen_through) + near - 7
    if how < 192:
        return r.chosen_through + WINDOW + near - 7
    if how < 200:
        return <u64>0 - near
    if how < 224:
        return <u64>1 << (how & 31) + (32 if how & 8 else 0)
    return take_word(s, 8)


cdef u64 ballot_of(Script* s, Replica* r, u32 peer) noexcept nogil:
    cdef u8 how = take_u8(s)
    if how < 64:
        return r.promised
    if how < 104:
        return r.lead.ballot if r.lead != NULL else r.promised
    if how < 200:
        return ballot_make(ballot_counter(r.highest_seen) + (how & 3), peer)
    if how < 216:
        return ballot_make(ballot_counter(r.promised) + (how & 3) - 1, 1 + (how & 7))
    if how < 224:
        return r.claim
    if how < 232:
        return 0
    return take_word(s, 8)


cdef Block* append_items(Script* s, Block* out, u32* count, u32* nbytes) noexcept nogil:
    cdef ItemHeader item
    cdef u32 i
    cdef const u8* data
    count[0] = 1 + (take_u8(s) & 3)
    nbytes[0] = 0
    for i in range(count[0]):
        memset(&item, 0, sizeof(item))
        item.bytes = <u32>take_bytes(s, take_u8(s) & 31, &data)
        out = block_append(out, &item, sizeof(item))
        out = block_append(out, data, item.bytes)
        nbytes[0] += <u32>sizeof(item) + item.bytes
    return out


# A body, appended to `out`: sound for most choices.
cdef Block* append_body(World* w, Script* s, Replica* r, Block* out) noexcept nogil:
    cdef u8 how = take_u8(s)
    cdef BodyHeader head
    cdef RunHeader run
    cdef Slot* slot
    cdef const u8* data
    cdef u64 start = out.size, run_at, size
    memset(&head, 0, sizeof(head))
    memset(&run, 0, sizeof(run))
    head.version = BODY_VERSION
    head.epoch = how
    if how < 48:
        head.kind = BODY_NOOP
        return block_append(out, &head, sizeof(head))
    if how < 80:
        slot = window_find(&r.window, r.chosen_through + 1 + (how & 3))
        if slot != NULL:
            return block_append(out, slot.value.data, slot.value.size)
    if how < 96:
        size = take_bytes(s, take_u8(s), &data)
        return block_append(out, data, size)
    head.kind = BODY_BATCH
    head.runs = 1
    out = block_append(out, &head, sizeof(head))
    run.node = SELF if how & 1 else 1 + (how & 2)
    run.incarnation = w.e.incarnation if how & 4 else 1
    run.low_water = take_u8(s)
    run.first_seq = w.sequence[r.index] - (how & 7) if how & 8 else number(s, r)
    run_at = out.size
    out = block_append(out, &run, sizeof(run))
    out = append_items(s, out, &run.count, &run.bytes)
    memcpy(out.data + run_at, &run, sizeof(run))
    head.values = run.count
    memcpy(out.data + start, &head, sizeof(head))
    return out


# --- messages

cdef Block* read_body(World* w, Script* s, Peer* p, u8 kind, u32 many, u8* fixed,
                      Block* body) noexcept nogil:
    cdef GroupAsked asked
    cdef PointAnswer point
    cdef u32 i
    if kind == MSG_READ_ASK:
        (<ReadAskBody*>fixed).groups = many
    else:
        (<ReadPointBody*>fixed).points = many
    for i in range(many):
        asked.group = point.group = take_u8(s) & 7
        asked.generation = 0
        if kind == MSG_READ_ASK:
            asked.ballot = ballot_of(s, w.e.replicas[asked.group & 3], SELF)
            body = block_append(body, &asked, sizeof(asked))
        else:
            point.verdict = take_u8(s) & 3
            point.instance = number(s, w.e.replicas[point.group & 3])
            point.ballot = ballot_of(s, w.e.replicas[point.group & 3], p.node)
            body = block_append(body, &point, sizeof(point))
    return body


cdef Block* append_groups(Script* s, Block* out, u32 many) noexcept nogil:
    cdef u32 i, group
    for i in range(many):
        group = take_u8(s) & 7
        out = block_append(out, &group, 4)
    return out


cdef Block* append_roster(Script* s, Block* out, u32 many, ConfigBody* fixed) noexcept nogil:
    """Some of the peers, in roles that need not be sound."""
    cdef Roster roster
    cdef Block* value
    cdef u32 i
    memset(&roster, 0, sizeof(roster))
    roster.version = 2
    roster.ballot = 1
    roster.count = many + 1
    for i in range(roster.count):
        roster.members[i].node = i + 1
        roster.members[i].role = take_u8(s) & 3
        roster.members[i].address_bytes = 1
        roster.members[i].address = <const u8*>b"x"
    value = roster_write(&roster)
    out = block_append(out, value.data, value.size)
    block_unref(value)
    fixed.bytes = <u32>out.size
    return out


# What a Promise reports, or a Learn supplies: so many as the lowest bits say.
cdef Block* entries_body(World* w, Script* s, Replica* r, Peer* p, u8 kind, u8 how,
                         Block* body) noexcept nogil:
    cdef u32 i
    cdef u64 at
    cdef ReportedEntry reported
    cdef SuppliedEntry supplied
    for i in range(how & 3):
        memset(&reported, 0, sizeof(reported))
        memset(&supplied, 0, sizeof(supplied))
        reported.instance = number(s, r)
        supplied.instance = r.chosen_through + 1 + i if how & 16 else reported.instance
        reported.ballot = ballot_of(s, r, p.node)
        reported.flags = take_u8(s) & 3
        at = body.size
        if kind == MSG_PROMISE:
            body = block_append(body, &reported, sizeof(reported))
        else:
            body = block_append(body, &supplied, sizeof(supplied))
        if kind == MSG_LEARN or not reported.flags & ENTRY_ELIDED:
            body = append_body(w, s, r, body)
        if kind == MSG_PROMISE:
            reported.body_bytes = <u32>(body.size - at - sizeof(reported))
            memcpy(body.data + at, &reported, sizeof(reported))
        else:
            supplied.body_bytes = <u32>(body.size - at - sizeof(supplied))
            memcpy(body.data + at, &supplied, sizeof(supplied))
        body = block_pad8(body)
    return body


cdef Block* message_body(World* w, Script* s, Replica* r, Peer* p, u8 kind, u8* fixed,
                         Block* body) noexcept nogil:
    cdef u8 how = take_u8(s)
    cdef u32 i, many = how & 3
    cdef u64 at
    cdef PrepareBody* prepare = <PrepareBody*>fixed
    cdef PromiseBody* promise = <PromiseBody*>fixed
    cdef LearnBody* learn = <LearnBody*>fixed
    cdef AcceptBody* accept = <AcceptBody*>fixed
    cdef ForwardBody* forward = <ForwardBody*>fixed
    cdef HeartbeatBody* beat = <HeartbeatBody*>fixed
    cdef HoldRange hold
    cdef ClaimChange change
    if kind == MSG_PREPARE:
        prepare.holds = many
        for i in range(many):
            hold.first = number(s, r)
            hold.last = number(s, r)
            hold.ballot = ballot_of(s, r, p.node)
            body = block_append(body, &hold, sizeof(hold))
    elif kind == MSG_ACCEPT:
        body = append_body(w, s, r, body)
        accept.body_bytes = <u32>body.size
    elif kind == MSG_PROMISE or kind == MSG_LEARN:
        body = entries_body(w, s, r, p, kind, how, body)
        if kind == MSG_PROMISE:
            promise.entries = many
        else:
            learn.entries = many
    elif kind == MSG_FORWARD:
        body = append_items(s, body, &forward.count, &forward.items_bytes)
    elif kind == MSG_HEARTBEAT:
        beat.claims = many
        for i in range(many):
            change.group = take_u8(s) & 7
            change.generation = 0
            change.ballot = ballot_of(s, w.e.replicas[change.group & 3], p.node)
            body = block_append(body, &change, sizeof(change))
    elif kind == MSG_HEARTBEAT_ACK:
        (<HeartbeatAckBody*>fixed).refused = many
        body = append_groups(s, body, many)
    elif kind == MSG_READ_ASK or kind == MSG_READ_POINT:
        body = read_body(w, s, p, kind, many, fixed, body)
    elif kind == MSG_CONFIG:
        body = append_roster(s, body, many, <ConfigBody*>fixed)
    if how & 0x80:               # a count that lies
        (<u32*>fixed)[take_u8(s) % max(message_fixed_bytes(kind) // 4, <u32>1)] += how & 7
    return body


cdef void message_fixed(World* w, Script* s, Replica* r, Peer* p, u8 kind,
                        u8* fixed) noexcept nogil:
    cdef Engine* e = w.e
    cdef Lead* lead = r.lead
    cdef Promised* promised
    cdef u32 words = message_fixed_bytes(kind) // 8, i
    cdef u8 how = take_u8(s)
    for i in range(words):
        (<u64*>fixed)[i] = number(s, r)
    if how & 0xC0 == 0xC0:
        return                   # as it came
    if kind == MSG_PREVOTE_REPLY:
        (<PrevoteReplyBody*>fixed).promised = ballot_of(s, r, p.node)
        (<PrevoteReplyBody*>fixed).verdict = 1 + how % 3
    elif kind == MSG_PREPARE:
        (<PrepareBody*>fixed).released = ballot_of(s, r, p.node)
    elif kind == MSG_PROMISE and lead != NULL and lead.phase1 != NULL:
        promised = &lead.phase1.promised[p.slot]
        (<PromiseBody*>fixed).first = lead.phase1.first
        (<PromiseBody*>fixed).start = promised.start if promised.start else lead.phase1.first
        (<PromiseBody*>fixed).page = promised.pages
        (<PromiseBody*>fixed).reply = promised.reply
        if how & 1:
            (<PromiseBody*>fixed).chosen_through = r.chosen_through
    elif kind == MSG_ACCEPT:
        (<AcceptBody*>fixed).first = max((<AcceptBody*>fixed).first, <u64>1)
        if how & 1:
            (<AcceptBody*>fixed).watermark = r.chosen_through
    elif kind == MSG_ACCEPTED and lead != NULL:
        (<AcceptedBody*>fixed).first = lead.first
    elif kind == MSG_REFUSE:
        (<RefuseBody*>fixed).promised = ballot_of(s, r, p.node)
        (<RefuseBody*>fixed).reason = how & 7
    elif kind == MSG_FORWARD:
        (<ForwardBody*>fixed).incarnation = p.incarnation
    elif kind == MSG_FORWARD_REPLY:
        (<ForwardReplyBody*>fixed).incarnation = e.incarnation
        (<ForwardReplyBody*>fixed).verdict = how & 15
        if r.callers != NULL and r.callers.head < r.callers.runs.size():
            (<ForwardReplyBody*>fixed).first_seq = r.callers.runs[r.callers.head].first_seq
            (<ForwardReplyBody*>fixed).count = 1 + (how & 3)
            (<ForwardReplyBody*>fixed).attempt = r.callers.attempts
    elif kind == MSG_HEARTBEAT:
        (<HeartbeatBody*>fixed).seq = p.heard_seq + 1 - (how & 1)
        (<HeartbeatBody*>fixed).base_version = p.claim_version
        (<HeartbeatBody*>fixed).version = p.claim_version + (how & 3)
        (<HeartbeatBody*>fixed).incarnation = p.incarnation
        (<HeartbeatBody*>fixed).lease_us = 800000
    elif kind == MSG_HEARTBEAT_ACK:
        (<HeartbeatAckBody*>fixed).seq = p.beat_seq
        (<HeartbeatAckBody*>fixed).version = e.claim_version - (how & 1)
        (<HeartbeatAckBody*>fixed).incarnation = e.incarnation
        (<HeartbeatAckBody*>fixed).lease_us = 800000
    elif kind == MSG_READ_POINT:
        (<ReadPointBody*>fixed).round = (
            e.reads.question.round if how & 1 else p.reads.question.round)


cdef void put_message(World* w, Script* s, Peer* p) noexcept nogil:
    cdef u8 which = take_u8(s)
    cdef u8 kind = 1 + which % 17 if which < 221 else 18 + (which & 3)
    cdef u8 flags = take_u8(s)
    cdef u8 group = take_u8(s)
    cdef Replica* r = w.e.replicas[group & 3]
    cdef u64 ballot = ballot_of(s, r, p.node)
    cdef u64 fixed[8]
    cdef u64 start = w.payload.size
    cdef Block* body
    cdef u32 nfixed = message_fixed_bytes(kind)
    if nfixed > sizeof(fixed):
        nfixed = 0               # no such kind
    memset(fixed, 0, sizeof(fixed))
    body = block_new(64)
    if nfixed:
        message_fixed(w, s, r, p, kind, <u8*>fixed)
        body = message_body(w, s, r, p, kind, <u8*>fixed, body)
    w.payload = message_append(w.payload, kind, flags & 15, 0,
                               group & 7 if group & 64 else group & 3, 1 + (group >> 7), ballot,
                               fixed, nfixed, body.data, body.size)
    block_unref(body)
    if flags >= 0xE0:            # and then something is wrong with it
        w.payload.data[start + take_word(s, 2) % (w.payload.size - start)] ^= take_u8(s)


cdef void deliver(World* w, u32 peer) noexcept nogil:
    cdef u8* data = exact(w.payload.data, w.payload.size)
    engine_receive(w.e, peer, data, w.payload.size)
    free(data)
    w.payload.size = 0


# --- setting up

cdef void connect(World* w, u32 peer, u32 incarnation) noexcept nogil:
    cdef u8 store[16]
    memset(store, <int>peer, 16)
    engine_connected(w.e, peer, incarnation, store)


cdef void advance(World* w, u64 by_us) noexcept nogil:
    w.now_us += by_us
    engine_advance(w.e, w.now_us, w.now_us)


cdef void answer(World* w, u8 kind, u8 flags, u32 group, u64 ballot, void* fixed) noexcept nogil:
    w.payload = message_append(w.payload, kind, flags, 0, group, 1, ballot, fixed,
                               message_fixed_bytes(kind), NULL, 0)


# An honest peer, as far as it takes to get this node into office: votes, promises, grants.
cdef void help(World* w, Peer* p, bint promise) noexcept nogil:
    cdef PrevoteReplyBody vote
    cdef PromiseBody promised
    cdef HeartbeatAckBody ack
    cdef Replica* r
    cdef size_t i
    for i in range(w.e.replicas.size()):
        r = w.e.replicas[i]
        if r.role == ROLE_PREVOTING:
            memset(&vote, 0, sizeof(vote))
            vote.verdict = PREVOTE_OK
            answer(w, MSG_PREVOTE_REPLY, 0, r.group, 0, &vote)
        elif r.role == ROLE_PREPARING and promise:
            memset(&promised, 0, sizeof(promised))
            promised.first = r.lead.phase1.first
            promised.start = promised.first
            promised.floor = 1
            answer(w, MSG_PROMISE, FLAG_LAST, r.group, r.lead.ballot, &promised)
    memset(&ack, 0, sizeof(ack))
    ack.seq = p.beat_seq
    ack.version = w.e.claim_version
    ack.lease_us = 800000
    ack.incarnation = w.e.incarnation
    answer(w, MSG_HEARTBEAT_ACK, 0, 0, 0, &ack)
    deliver(w, p.node)


# How many groups have come at least so far?
cdef u32 reached(World* w, u8 role) noexcept nogil:
    cdef u32 count = 0
    cdef size_t i
    for i in range(w.e.replicas.size()):
        count += 1 if w.e.replicas[i].role >= role else 0
    return count


cdef void set_up(World* w, u8 role) noexcept nogil:
    cdef u32 i, turns = 0
    for i in range(w.e.n_slots):
        if w.e.slot_node[i] != SELF:
            connect(w, w.e.slot_node[i], 1)
    drain(w)
    engine_durable(w.e, w.e.lsn_end)
    while role and reached(w, ROLE_LEADING if role == 2 else ROLE_PREPARING) < GROUPS:
        turns += 1
        if turns > SETUP_TURNS:
            break
        advance(w, 100000)
        for i in range(w.e.n_slots):
            if w.e.slot_node[i] != SELF:
                help(w, &w.e.peers[i], role == 2)
        drain(w)
        if role == 2 or reached(w, ROLE_PREPARING) < GROUPS:
            engine_durable(w.e, w.e.lsn_end)
    demand(role == 0 or turns <= SETUP_TURNS, b"this target could not set up its engine")


# --- what a driver does

cdef void submit(World* w, Script* s) noexcept nogil:
    cdef u32 group = take_u8(s) & 3, count = 0, nbytes = 0
    cdef Block* block = append_items(s, block_new(64), &count, &nbytes)
    if engine_submit(w.e, group, w.sequence[group], count, block, 0, nbytes,
                     w.now_us + take_word(s, 2) * 64) == 0:
        w.sequence[group] += count
    block_unref(block)


cdef void feed_entries(World* w, Script* s) noexcept nogil:
    cdef Replica* r = w.e.replicas[take_u8(s) & 3]
    cdef Block* out = block_new(64)
    cdef SuppliedEntry entry
    cdef u8* data
    cdef u64 first = number(s, r), at
    cdef u32 i
    for i in range(take_u8(s) & 3):
        memset(&entry, 0, sizeof(entry))
        entry.instance = first + i
        at = out.size
        out = block_append(out, &entry, sizeof(entry))
        out = append_body(w, s, r, out)
        entry.body_bytes = <u32>(out.size - at - sizeof(entry))
        memcpy(out.data + at, &entry, sizeof(entry))
        out = block_pad8(out)
    data = exact(out.data, out.size)
    engine_supply(w.e, r.group, 1 + (take_u8(s) & 3), first, data, out.size)
    free(data)
    block_unref(out)


cdef void rare(World* w, Script* s) noexcept nogil:
    cdef u8 what = take_u8(s)
    cdef Replica* r = w.e.replicas[take_u8(s) & 3]
    if what < 64:
        engine_settled(w.e, r.group, min(number(s, r), r.chosen_through))
    elif what < 128:
        engine_applied(w.e, r.group, min(number(s, r), r.chosen_through))
    elif what < 176:
        engine_retire(w.e, take_word(s, 2))
    elif what < 216:
        engine_pressure(w.e, what & 1)
    elif what < 232:
        engine_stop_group(w.e, r.group)
    elif what < 244:
        engine_resign(w.e)
    elif what < 248:
        engine_poison(w.e)
        w.poisoned = True


cdef void play(World* w, Script* s) noexcept nogil:
    cdef u32 ops = 0
    cdef u8 op
    cdef Peer* p
    cdef const u8* raw
    cdef u64 size
    while s.left and ops < OPS_MAX:
        ops += 1
        op = take_u8(s)
        p = &w.e.peers[(op >> 4) % w.e.n_slots]
        if p.node == SELF and op & 15 != 7:
            p = &w.e.peers[0]
        op &= 15
        if op < 7:
            put_message(w, s, p)
            if op < 5:
                deliver(w, p.node)
        elif op == 7:
            advance(w, take_word(s, 2) * 8)
        elif op == 8:
            engine_durable(w.e, w.e.lsn_end - (take_u8(s) & 0xF8 if op & 1 else 0))
        elif op < 11:
            drain(w)
        elif op == 11:
            submit(w, s)
        elif op == 12:
            feed_entries(w, s)
        elif op == 13:
            rare(w, s)
        elif op == 14:
            size = take_u8(s)
            if size & 1:
                engine_disconnected(w.e, p.node)
            if size & 2:
                connect(w, p.node, p.incarnation + (1 if size & 4 else 0))
            if size & 8:
                engine_read(w.e, take_u8(s) & 3, ops, size >> 4 & 1,
                            w.now_us + take_word(s, 2) * 64)
        else:
            size = take_bytes(s, take_u8(s), &raw)
            w.payload = block_append(w.payload, raw, size)
            deliver(w, p.node)
    deliver(w, 1)
    drain(w)


# --- life and after

cdef Engine* make_engine(u8 config) noexcept nogil:
    cdef EngineOptions o
    cdef u32 i
    cdef Engine* e
    memset(&o, 0, sizeof(o))
    o.node = SELF
    o.cluster = CLUSTER
    o.n_members = 5 if config & 4 else 3
    for i in range(o.n_members):
        o.members[i] = i + 1
    o.seed = 1
    o.window = WINDOW
    o.window_bytes = 4096
    o.batch_bytes_max = 256
    o.heartbeat_us = 100000
    o.lease_us = 800000
    o.election_us = 100000
    o.resend_us = 300000
    o.pending_bytes_max = 4096
    o.cache_bytes_max = 512 if config & 8 else 65536
    o.frame_bytes_max = 1024 if config & 16 else 65536
    o.value_bytes_max = 512
    o.balance = config & 32
    e = engine_new(&o)
    for i in range(GROUPS):
        engine_add_group(e, i, 0, 0)
    return e


# A journal that holds what a hostile peer brought about must open again.
cdef void check_restart(World* w, u8 config) noexcept nogil:
    cdef Engine* again = make_engine(config)
    cdef RecordHeader h
    cdef u64 at = 0, stride
    cdef size_t i
    while at < w.log.size:
        stride = record_check(w.log.data + at, w.log.size - at, 0, <u32>0xFFFFFFFF)
        memcpy(&h, w.log.data + at, RECORD_HEADER_BYTES)
        demand(engine_replay(again, &h, w.log.data + at + RECORD_HEADER_BYTES, 4096 + at) == 0,
               b"a record of its own that an engine does not take back")
        at += stride
    for i in range(GROUPS):
        demand(again.replicas[i].promised >= w.e.replicas[i].promised or w.poisoned,
               b"a promise is lost by a restart (U4)")
    engine_free(again)


cdef void world_begin(World* w, u8 config) noexcept nogil:
    cdef u32 i
    memset(w, 0, sizeof(World))
    w.e = make_engine(config)
    w.payload = block_new(256)
    w.log = block_new(256)
    w.now_us = 1000000
    for i in range(GROUPS):
        w.sequence[i] = 1


cdef void world_end(World* w) noexcept nogil:
    engine_free(w.e)
    block_unref(w.payload)
    block_unref(w.log)


cdef void run_engine(const u8* data, u64 count) noexcept nogil:
    cdef World w
    cdef Script s
    cdef u8 config
    s.at = data
    s.left = count
    config = take_u8(&s)
    world_begin(&w, config)
    engine_start(w.e, 4096, w.now_us, w.now_us)
    set_up(&w, (config & 3) % 3)
    play(&w, &s)
    check_restart(&w, config)
    world_end(&w)


cdef void run_replay(const u8* data, u64 count) noexcept nogil:
    cdef World w
    cdef Script s
    cdef RecordHeader h
    cdef Replica* r
    cdef Block* body
    cdef u8* bytes_
    cdef u8 config, how
    cdef u64 lsn = 4096
    cdef u32 records = 0
    s.at = data
    s.left = count
    config = take_u8(&s)
    world_begin(&w, config)
    while s.left and records < OPS_MAX:
        how = take_u8(&s)
        if how == 255:
            break
        records += 1
        memset(&h, 0, sizeof(h))
        h.kind = how % 10
        h.group = (how >> 4) & 3
        r = w.e.replicas[h.group]
        h.index = number(&s, r)
        if h.kind == RECORD_ACCEPT or h.kind == RECORD_CHOSEN:
            h.index %= INDEX_MAX
        h.ballot = ballot_of(&s, r, 1 + (how & 3))
        body = append_body(&w, &s, r, block_new(64))
        h.body_bytes = 16 if h.kind == RECORD_PEER and how & 64 else <u32>body.size
        body.size = min(body.size, <u64>h.body_bytes)
        h.body_bytes = <u32>body.size
        bytes_ = exact(body.data, body.size)
        if engine_replay(w.e, &h, bytes_, lsn) == 0:
            w.replayed_last[h.group] = max(w.replayed_last[h.group], r.accepted_last)
            lsn += record_stride(h.body_bytes)
        free(bytes_)
        block_unref(body)
    engine_start(w.e, lsn, w.now_us, w.now_us)
    check_engine(&w)
    drain(&w)
    engine_durable(w.e, w.e.lsn_end)
    play(&w, &s)
    check_restart(&w, config)
    world_end(&w)
