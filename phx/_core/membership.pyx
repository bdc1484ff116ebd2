# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Members of groups; see membership.pxd."""

from libc.string cimport memcpy, memset

from phx._core.codec cimport RECORD_GROUP, RECORD_MEMBERS, RECORD_PROMISE, RecordHeader
from phx._core.effects cimport (
    HALT_BAD_BODY, HALT_SLOTS, emit_event, emit_record, halt_group, role_timer,
)
from phx._core.leases cimport claims_recount
from phx._core.members cimport (
    MEMBER_LEARNER, MEMBER_VOTER, MEMBER_WITNESS, NODE_MAX, ROSTER_MAX, Roster, roster_read,
    roster_write,
)
from phx._core.native cimport *
from phx._core.read_table cimport reads_again
from phx._core.rejoin cimport under_ceiling
from phx._core.relaxed cimport note_hard
from phx._core.state cimport *
from phx._core.window cimport SLOT_CHOSEN, Slot, window_cut, window_find

cdef packed struct MembersHeader:    # of a RECORD_MEMBERS's body
    u32 flags
    u32 zero

cdef u64 INSTANCE_MAX = <u64>1 << 62


cdef void slots_begin(Engine* e) noexcept nogil:
    cdef u32 i
    for i in range(e.options.n_members):
        slot_take(e, e.options.members[i])
    e.own_slot = <u32>slot_of(e, e.options.node)


cdef int slot_take(Engine* e, u32 node) noexcept nogil:
    cdef int at = slot_of(e, node)
    cdef u32 slot = 0
    if at >= 0:
        return at
    while slot < e.n_slots and e.slot_node[slot] != 0:
        slot += 1
    if slot == SLOTS_MAX or node == 0 or node > NODE_MAX:
        return -1
    e.n_slots = max(e.n_slots, slot + 1)
    e.slot_node[slot] = node
    e.peers[slot].node = node
    e.peers[slot].slot = slot
    # It may have heard heartbeats of this life, numbered from another slot: none has gone further.
    e.peers[slot].beat_seq = e.reads.beats
    e.priorities[slot] = PRIORITY_USUAL
    return <int>slot


cdef bint slot_used(Engine* e, u32 slot) noexcept nogil:
    cdef Replica* r
    cdef size_t i
    for i in range(e.configs.size()):
        if e.configs[i].members >> slot & 1:
            return True
    # (Asked when a peer is dropped, and never in between.)
    for i in range(e.replicas.size()):
        r = e.replicas[i]
        if r != NULL and r.members != NULL and r.members.before >> slot & 1:
            return True
    return False


cdef void slot_free(Engine* e, u32 slot) noexcept nogil:
    cdef u64 others = ~(<u64>1 << slot)
    cdef size_t i
    cdef Replica* r
    for i in range(e.replicas.size()):
        r = e.replicas[i]
        if r == NULL:
            continue
        r.supplied &= others
        r.followers &= others
        r.below &= others
        r.dry &= others
        r.votes &= others
        if r.lead != NULL:
            r.lead.refusing &= others
            r.lead.lacking &= others
        if r.members != NULL:
            r.members.tellers &= others
            r.members.asked &= others
            r.members.heard_by &= others
    phx_renew[Peer](&e.peers[slot])
    # (n_slots stays: what is published of the slot is seen to change.)
    e.slot_node[slot] = 0


cdef Config* config_new(Engine* e, u64 voters, u64 witnesses, u64 learners) noexcept nogil:
    cdef Config* c = phx_new[Config]()
    cdef u64 left = voters
    cdef u32 slot, at
    c.voters = voters
    c.witnesses = witnesses
    c.learners = learners
    c.members = voters | learners
    c.width = 64 - <u32>leading_zeros(c.members)
    while left:
        slot = next_member(&left)
        at = c.n_voters
        while at > 0 and e.slot_node[c.by_id[at - 1]] > e.slot_node[slot]:
            c.by_id[at] = c.by_id[at - 1]
            at -= 1
        c.by_id[at] = <u8>slot
        c.n_voters += 1
    c.quorum = c.n_voters // 2 + 1
    e.configs.push_back(c)
    return c


cdef Config* config_shared(Engine* e, u64 voters, u64 witnesses, u64 learners) noexcept nogil:
    cdef Config* c
    cdef size_t i
    for i in range(e.configs.size()):
        c = e.configs[i]
        if c.voters == voters and c.witnesses == witnesses and c.learners == learners:
            return c
    return config_new(e, voters, witnesses, learners)


cdef void config_set(Engine* e, Replica* r, u64 voters, u64 witnesses,
                     u64 learners) noexcept nogil:
    cdef Config* c = config_shared(e, voters, witnesses, learners)
    c.groups += 1
    config_drop(e, r)
    r.config = c


cdef void config_drop(Engine* e, Replica* r) noexcept nogil:
    cdef size_t i = 0
    if r.config == NULL:
        return
    r.config.groups -= 1
    if r.config.groups == 0:
        while e.configs[i] != r.config:
            i += 1
        e.configs[i] = e.configs.back()
        e.configs.pop_back()
        phx_delete[Config](r.config)
    r.config = NULL


cdef u32 voters_connected(Engine* e, Replica* r) noexcept nogil:
    cdef u64 left = r.config.voters
    cdef u32 count = 0
    while left:
        count += e.peers[next_member(&left)].connected
    return count


# --- what there is to remember

cdef Membership* membership_of(Replica* r) noexcept nogil:
    if r.members == NULL:
        r.members = phx_new[Membership]()
    return r.members


cdef void change_dropped(Replica* r) noexcept nogil:
    if r.members == NULL:
        return
    block_unref(r.members.wanted)
    r.members.wanted = NULL
    r.members.change = 0


cdef void membership_free(Replica* r) noexcept nogil:
    if r.members == NULL:
        return
    change_dropped(r)
    block_unref(r.members.value)
    phx_delete[Membership](r.members)
    r.members = NULL


cdef bint roster_slots(Engine* e, const Roster* roster, u64* voters, u64* witnesses,
                       u64* learners) noexcept nogil:
    cdef u32 i
    cdef int at
    cdef u64 bit
    voters[0] = witnesses[0] = learners[0] = 0
    for i in range(roster.count):
        at = slot_take(e, roster.members[i].node)
        if at < 0:
            return False
        bit = <u64>1 << at
        if roster.members[i].role == MEMBER_LEARNER:
            learners[0] |= bit
            continue
        voters[0] |= bit
        if roster.members[i].role == MEMBER_WITNESS:
            witnesses[0] |= bit
    return True


cdef u8 left_flag(Engine* e, Replica* r, const Roster* roster) noexcept nogil:
    cdef u32 i
    if roster.count == 0:
        return MEMBERS_LEFT | MEMBERS_ENDED | MEMBERS_ACTIVE
    for i in range(roster.count):
        if roster.members[i].node == e.options.node:
            return 0
    # (It stays: whoever left is in no later version, for an id is never used again.)
    if config_has(r, e.own_slot) or (r.members != NULL and r.members.flags & MEMBERS_LEFT):
        return MEMBERS_LEFT
    return 0


cdef void members_event(Engine* e, Replica* r) noexcept nogil:
    emit_event(e, EVENT_MEMBERS, r.members.flags, r.group, r.members.instance, r.version, 0)


cdef void members_record(Engine* e, Replica* r) noexcept nogil:
    cdef Membership* m = r.members
    cdef MembersHeader head
    cdef Block* body = block_new(sizeof(head) + m.value.size)
    head.flags = m.flags
    head.zero = 0
    body = block_append(body, &head, sizeof(head))
    body = block_append(body, m.value.data, m.value.size)
    m.lsn = emit_record(e, RECORD_MEMBERS, r.group, m.instance, m.floor, body.data,
                        <u32>body.size, NULL)
    note_hard(e, r)
    block_unref(body)


# --- passing the barrier

cdef int passing(Engine* e, Replica* r, u64 instance, Block* body) noexcept nogil:
    cdef Roster roster
    cdef u64 voters, witnesses, learners
    cdef Slot* slot
    if not roster_read(&roster, body.data, body.size):
        halt_group(e, r, HALT_BAD_BODY)
        return PASS_NOT
    if roster.version <= r.version:
        return PASS_PLAIN  # a store or a checkpoint has told of it
    if roster.version != r.version + 1:
        halt_group(e, r, HALT_BAD_BODY)
        return PASS_NOT
    if r.lead != NULL:
        # Whoever found it holds pointers into the leadership: it ends when the turn does.
        slot = window_find(&r.window, instance)
        slot.flags |= SLOT_CHOSEN
        membership_of(r).due = True
        if r.role == ROLE_LEADING:
            # It has counted the value in this ballot: the floor, however this leadership ends.
            r.members.heard_floor = max(r.members.heard_floor, r.lead.ballot)
        touch(e, r)
        return PASS_NOT
    if not roster_slots(e, &roster, &voters, &witnesses, &learners):
        # To guess who votes would be worse than to vote no more (rule 8).
        halt_group(e, r, HALT_SLOTS)
        return PASS_NOT
    if membership_of(r).heard_floor < roster.ballot:
        halt_group(e, r, HALT_BAD_BODY)
        return PASS_NOT
    return PASS_NEXT


cdef void forwards_moved(Replica* r, u32 width) noexcept nogil:
    """What members were answered for; `width`: of the configuration before."""
    cdef Forwarded* before = r.forwards
    if before == NULL:
        return
    r.forwards = <Forwarded*>by_slot(r.config.width, sizeof(Forwarded))
    memcpy(r.forwards, before, min(width, r.config.width) * sizeof(Forwarded))
    phx_free(before)


cdef void raise_promise(Engine* e, Replica* r, u64 floor) noexcept nogil:
    r.highest_seen = max(r.highest_seen, floor)
    # (Where it may not be promised yet, ballots up to the floor are refused all the same.)
    if floor > r.promised and under_ceiling(e, floor):
        r.promised = floor
        r.promise_lsn = emit_record(e, RECORD_PROMISE, r.group, 0, floor, NULL, 0, NULL)
        note_hard(e, r)


cdef void members_set(Engine* e, Replica* r, const Roster* roster, Block* value, u64 instance,
                      u64 floor, u8 flags) noexcept nogil:
    cdef Membership* m = membership_of(r)
    cdef u64 voters, witnesses, learners, last
    cdef u64 before = r.config.members | m.before
    cdef u32 width = r.config.width
    if not flags & MEMBERS_LEFT or not flags & MEMBERS_ACTIVE:
        roster_slots(e, roster, &voters, &witnesses, &learners)
        config_set(e, r, voters, witnesses, learners)
        forwards_moved(r, width)
    members_told(r, roster, value, instance, floor, flags)
    m.before = 0 if flags & MEMBERS_ACTIVE else before
    last = window_cut(&r.window, instance, ~<u64>0)
    r.accepted_last = max(r.chosen_through, last)
    # (Nor is an acceptance of theirs told that was only waiting to be written: M3.)
    r.ack_due = False
    r.ack_ballot = 0
    if r.role == ROLE_PREVOTING:
        r.role = ROLE_FOLLOWER
    role_timer(e, r, 0)
    m.fresh = True
    r.votes = 0
    # (Whoever asks again begins with itself: `asked_ballot`.)
    r.followers = 0
    r.follow_ballot = 0
    r.given.clear()
    raise_promise(e, r, m.floor)
    members_record(e, r)
    claims_recount(e, r)
    reads_again(e, r)
    members_event(e, r)
    r.announce_due = True
    touch(e, r)


cdef void members_pass(Engine* e, Replica* r, u64 instance, Block* body) noexcept nogil:
    cdef Roster roster
    roster_read(&roster, body.data, body.size)
    members_set(e, r, &roster, body, instance, r.members.heard_floor,
                MEMBERS_HELD | left_flag(e, r, &roster))


cdef void members_active(Engine* e, Replica* r) noexcept nogil:
    r.members.flags |= MEMBERS_ACTIVE
    members_record(e, r)
    members_event(e, r)
    touch(e, r)


cdef void members_advanced(Engine* e, Replica* r) noexcept nogil:
    cdef Membership* m = r.members
    if m.value == NULL or r.halted:
        return
    if r.chosen_through >= m.instance and not m.flags & MEMBERS_HELD:
        m.flags |= MEMBERS_HELD
        members_record(e, r)
        e.grants_version += 1
        touch(e, r)
    if r.chosen_through > m.instance and not m.flags & MEMBERS_ACTIVE:
        members_active(e, r)


cdef u64 floor_with(Replica* r, Block* body) noexcept nogil:
    if not is_change(body) or r.members == NULL:
        return 0
    return r.members.heard_floor


cdef void members_status(Replica* r, GroupMembers* out) noexcept nogil:
    memset(out, 0, sizeof(GroupMembers))
    out.version = r.version
    if r.members != NULL and r.members.value != NULL:
        out.instance = r.members.instance
        out.floor = r.members.floor
        out.flags = r.members.flags
        out.value = r.members.value


# --- records

cdef void members_told(Replica* r, const Roster* roster, Block* value, u64 instance, u64 floor,
                       u8 flags) noexcept nogil:
    cdef Membership* m = membership_of(r)
    if roster.version < r.version:
        return
    if roster.version == r.version and m.value != NULL:
        m.flags |= flags
        if m.lsn == 0:
            m.floor = max(m.floor, floor)
    else:
        r.version = <u32>roster.version
        block_ref(value)
        block_unref(m.value)
        m.value = value
        m.instance = instance
        m.floor = floor
        m.flags = flags
        m.lsn = 0
    m.heard_floor = max(m.heard_floor, m.floor)
    r.highest_seen = max(r.highest_seen, m.floor)


cdef Block* roster_of_ids(const RecordHeader* header, const u8* body) noexcept nogil:
    """What an old record says: every member votes."""
    cdef Roster roster
    cdef u32 i
    if header.body_bytes & 3 or header.body_bytes // 4 > ROSTER_MAX or header.index >> 32 != 0:
        return NULL
    memset(&roster, 0, sizeof(roster))
    roster.version = header.index
    roster.ballot = max(header.ballot, <u64>1)
    roster.count = header.body_bytes // 4
    for i in range(roster.count):
        memcpy(&roster.members[i].node, body + 4 * i, 4)
        roster.members[i].role = MEMBER_VOTER
        roster.members[i].address_bytes = 1
        roster.members[i].address = <const u8*>b"?"
    return roster_write(&roster)


cdef int replay_members(Engine* e, Replica* r, const RecordHeader* header, const u8* body,
                        u64 lsn) noexcept nogil:
    cdef MembersHeader head
    cdef Roster roster
    cdef Block* value = NULL
    cdef u64 floor = header.ballot
    head.flags = 0
    if header.kind == RECORD_GROUP:
        value = roster_of_ids(header, body)
        floor = max(floor, <u64>1)
    elif header.body_bytes > sizeof(head) and 0 < header.index <= INSTANCE_MAX:
        memcpy(&head, body, sizeof(head))
        value = block_copy(body + sizeof(head), header.body_bytes - sizeof(head))
    if value == NULL:
        return -1
    if not roster_read(&roster, value.data, value.size) or floor < roster.ballot \
            or head.flags >= 2 * MEMBERS_ENDED \
            or (roster.count == 0) != (head.flags & MEMBERS_ENDED != 0):
        block_unref(value)
        return -1
    members_told(r, &roster, value, header.index if header.kind == RECORD_MEMBERS else 0, floor,
                 <u8>head.flags)
    block_unref(value)
    if roster.version == r.version:
        if r.members.lsn == 0:
            # This node's votes were above its own floor. Whatever else was told of these members
            # may say a higher one (members_begin would drop votes between the two).
            r.members.floor = floor
        r.members.lsn = lsn
    return 0


cdef void members_begin(Engine* e, Replica* r) noexcept nogil:
    cdef Membership* m = r.members
    cdef Roster roster
    cdef u64 voters, witnesses, learners, instance, last
    cdef Slot* slot
    if m == NULL or m.value == NULL:
        return
    if not is_removed(r):
        roster_read(&roster, m.value.data, m.value.size)
        if not roster_slots(e, &roster, &voters, &witnesses, &learners):
            halt_group(e, r, HALT_SLOTS)
            return
        config_set(e, r, voters, witnesses, learners)
    instance = r.chosen_through + 1
    while m.flags & MEMBERS_HELD and instance <= m.instance:
        slot = window_find(&r.window, instance)
        if slot == NULL:
            m.flags &= ~<u8>MEMBERS_HELD
        else:
            slot.flags |= SLOT_CHOSEN
            instance += 1
    last = window_cut(&r.window, m.instance, m.floor)
    r.accepted_last = max(r.chosen_through, last)
    members_event(e, r)


cdef void carry_members(Engine* e, Replica* r, u64 lsn) noexcept nogil:
    if r.members != NULL and r.members.value != NULL and r.members.lsn < lsn:
        members_record(e, r)


cdef void* by_slot(u32 width, u64 size) noexcept nogil:
    cdef void* memory = phx_calloc(width, size)
    if memory == NULL:
        phx_fatal("out of memory")
    return memory
