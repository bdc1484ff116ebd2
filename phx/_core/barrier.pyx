# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Changes of members; see barrier.pxd."""

from phx._core.acceptor cimport refuse
from phx._core.ballot cimport ballot_hostile, ballot_node
from phx._core.codec cimport phx_crc32c
from phx._core.effects cimport (
    HALT_SLOTS, LANE_NOW, answer_room, cast, halt_group, role_timer, send,
)
from phx._core.elections cimport can_lead, leaves, refresh_leader, schedule_campaign
from phx._core.learner cimport advance_known, supply_one, want
from phx._core.leases cimport group_lease_until, hears_leader
from phx._core.members cimport Roster, roster_read, roster_write
from phx._core.membership cimport (
    is_change, is_removed, knows_below, left_flag, members_active, members_advanced, members_set,
    members_told, membership_of, roster_slots, votes_in,
)
from phx._core.native cimport *
from phx._core.proposals cimport callers_stop
from phx._core.proposer cimport prepare, step_down
from phx._core.state cimport *
from phx._core.window cimport SLOT_CHOSEN, Slot, window_find
from phx._core.wire cimport (
    FLAG_ACTIVE, MSG_ACCEPT, MSG_CHOSEN, MSG_CONFIG, MSG_CONFIG_ASK, MSG_FORWARD,
    MSG_FORWARD_REPLY, MSG_PREPARE, MSG_PREVOTE, MSG_REJOIN, MSG_TRANSFER, REFUSE_CONFIG,
    ChosenBody, ConfigBody, MessageHeader,
)

cdef u64 INSTANCE_MAX = <u64>1 << 62


# --- asked for

cdef u64 near(Engine* e, Replica* r) noexcept nogil:
    """Members that are there and have confirmed being within a quarter of a window (M5), this
    leader too. (Of a young log that quarter is all: who never confirmed anything is not near.)
    Who may have forgotten votes is none of them: a majority of such voters votes never again, and
    a learner stays so until it is a voter among others. Before it confirms something, that a voter
    grants nothing is all that there is to see of it."""
    cdef u64 left = r.config.members, found = 0, confirmed
    cdef u32 i
    while left:
        i = next_member(&left)
        confirmed = r.lead.progress[i].confirmed
        if i == e.own_slot or (
                e.peers[i].connected
                and not (r.lead.lacking if confirmed else r.lead.refusing) >> i & 1
                and (confirmed != 0 or r.chosen_through == 0 or has_vote(r, i))
                and confirmed + e.options.window // 4 >= r.chosen_through):
            found |= <u64>1 << i
    return found


cdef bint all_known(Engine* e, const Roster* roster) noexcept nogil:
    cdef u32 i
    for i in range(roster.count):
        if slot_of(e, roster.members[i].node) < 0:
            return False
    return True


cdef int change_members(Engine* e, Replica* r, const u8* members, u64 nbytes) noexcept nogil:
    cdef Roster roster
    cdef u64 voters, witnesses, learners
    if not roster_read(&roster, members, nbytes):
        return CHANGE_UNSOUND
    if (r.role != ROLE_LEADING or r.promised != r.lead.ballot or r.leader != e.options.node
            or r.halted or r.stopped or e.poisoned):
        return CHANGE_NOT_LEADING
    if roster.version != <u64>r.version + 1:
        return CHANGE_CONFLICT
    if r.members != NULL and (r.members.wanted != NULL or r.members.change
                              or (r.members.value != NULL
                                  and not r.members.flags & MEMBERS_ACTIVE)):
        return CHANGE_BUSY
    # (Not taken here: a change that is refused leaves nothing behind.)
    if not all_known(e, &roster) or not roster_slots(e, &roster, &voters, &witnesses, &learners):
        return CHANGE_NO_SLOT
    # (Of a group that ends nobody has to go on with it.)
    if roster.count and 2 * ones(voters & near(e, r)) <= ones(voters):
        return CHANGE_NOT_CAUGHT_UP
    roster.ballot = r.lead.ballot
    roster.time_us = e.wall_us
    membership_of(r).wanted = roster_write(&roster)
    touch(e, r)
    return CHANGE_UNDER_WAY


# --- told from outside

cdef int change_known(Engine* e, Replica* r, u64 version, const u8* members, u64 nbytes,
                      u64 instance, u64 floor, bint active) noexcept nogil:
    cdef Roster roster
    cdef Block* value
    cdef u64 voters, witnesses, learners
    cdef u8 flags = MEMBERS_ACTIVE if active else 0
    if (not roster_read(&roster, members, nbytes) or roster.version != version
            or instance > INSTANCE_MAX or floor < roster.ballot
            or ballot_hostile(floor, r.highest_seen)):
        return -1
    flags |= left_flag(e, r, &roster)
    if version <= r.version and e.started:
        if version == r.version and active and r.members.value != NULL and not (
                r.members.flags & MEMBERS_ACTIVE):
            members_active(e, r)
        return 0
    value = block_copy(members, nbytes)
    # (Its bytes stay where they are.)
    roster_read(&roster, value.data, value.size)
    if not e.started:
        members_told(r, &roster, value, instance, floor, flags)
    elif (flags & (MEMBERS_ACTIVE | MEMBERS_LEFT) != MEMBERS_ACTIVE | MEMBERS_LEFT
            and not roster_slots(e, &roster, &voters, &witnesses, &learners)):
        halt_group(e, r, HALT_SLOTS)
    else:
        step_down(e, r)
        members_set(e, r, &roster, value, instance, floor, flags)
        members_advanced(e, r)
    block_unref(value)
    return 0


# --- messages

cdef void send_config(Engine* e, Replica* r, Peer* p) noexcept nogil:
    cdef Membership* m = r.members
    cdef ConfigBody body
    if m == NULL or m.value == NULL or not answer_room(p):
        return
    body.instance = m.instance
    body.floor = m.floor
    body.bytes = <u32>m.value.size
    body.pad = 0
    p.answer_bytes += m.value.size
    send(e, p, LANE_NOW, MSG_CONFIG, FLAG_ACTIVE if m.flags & MEMBERS_ACTIVE else 0, r.group, 0,
         &body, sizeof(body), m.value.data, m.value.size)


cdef void config_ask(Engine* e, Replica* r, Peer* p) noexcept nogil:
    cdef Membership* m = membership_of(r)
    cdef u64 bit = <u64>1 << p.slot
    if m.asked_us + e.options.resend_us <= e.now_us:
        m.asked = 0
    if r.halted or e.poisoned or m.asked & bit:
        return
    m.asked |= bit
    m.asked_us = e.now_us
    send(e, p, LANE_NOW, MSG_CONFIG_ASK, 0, r.group, 0, NULL, 0, NULL, 0)


cdef void newer(Engine* e, Replica* r, Peer* p) noexcept nogil:
    """This peer knows of newer members: it is asked who they are, and may have the log."""
    membership_of(r).tellers |= <u64>1 << p.slot
    config_ask(e, r, p)


cdef bint other_version(Engine* e, Replica* r, Peer* p, const MessageHeader* h,
                        u64 through) noexcept nogil:
    if h.config > r.version:
        newer(e, r, p)
        # Its change was counted in another ballot, if that is so: it leads nothing, and a leader
        # would never learn. While a majority grants this one it is not so.
        if r.role == ROLE_LEADING and group_lease_until(e, r) <= e.now_us:
            step_down(e, r)
        if r.role != ROLE_LEADING:
            want(e, r, through, p.node)
        return False
    if (h.kind == MSG_PREVOTE or h.kind == MSG_PREPARE or h.kind == MSG_ACCEPT
            or h.kind == MSG_TRANSFER or h.kind == MSG_REJOIN):
        if not r.halted and not e.poisoned:
            refuse(e, r, p, h.ballot, REFUSE_CONFIG, 0)
        return False
    return not is_removed(r) and (h.kind == MSG_FORWARD or h.kind == MSG_FORWARD_REPLY)


cdef void on_config_ask(Engine* e, Replica* r, Peer* p, const MessageHeader* h) noexcept nogil:
    if h.config < r.version and not r.halted:
        send_config(e, r, p)


cdef bint said_by_two(Replica* r, Peer* p, const MessageHeader* h, const u8* members,
                      u32 nbytes) noexcept nogil:
    cdef Membership* m = r.members
    cdef u32 crc = phx_crc32c(h.flags, members, nbytes)
    if m.heard_version != h.config or m.heard_crc != crc:
        m.heard_version = h.config
        m.heard_crc = crc
        m.heard_by = 0
    m.heard_by |= <u64>1 << p.slot
    return ones(m.heard_by & r.config.members) >= 2


cdef bint believed(Engine* e, Replica* r, Peer* p, const MessageHeader* h, const ConfigBody* body,
                   const u8* members, bint was_asked) noexcept nogil:
    cdef bint twice = said_by_two(r, p, h, members, body.bytes)
    if r.role == ROLE_LEADING or (hears_leader(e, r) and ballot_node(r.claim) != p.node):
        return False
    return was_asked or twice


cdef void end(Engine* e, Replica* r, const Roster* roster, const u8* members, u32 nbytes,
              const ConfigBody* body) noexcept nogil:
    """This node was a member, and those that are now do without it."""
    cdef Block* value = block_copy(members, nbytes)
    cdef Roster copied
    roster_read(&copied, value.data, value.size)
    step_down(e, r)
    members_set(e, r, &copied, value, body.instance, body.floor,
                MEMBERS_ACTIVE | left_flag(e, r, &copied))
    block_unref(value)


cdef void same_version(Engine* e, Replica* r, Peer* p, const MessageHeader* h,
                       const ConfigBody* body, bint was_asked) noexcept nogil:
    """An old member that waits for the others, or one of those, who says that it may end."""
    cdef Membership* m = r.members
    if m == NULL or m.value == NULL or m.instance != body.instance:
        e.counters.hostile_messages += 1
    elif m.flags & MEMBERS_ACTIVE:
        if not h.flags & FLAG_ACTIVE:
            send_config(e, r, p)
    elif h.flags & FLAG_ACTIVE and (was_asked or has_vote(r, p.slot)):
        members_active(e, r)


cdef void on_config(Engine* e, Replica* r, Peer* p, const MessageHeader* h, const ConfigBody* body,
                    const u8* members) noexcept nogil:
    cdef Roster roster
    cdef u64 bit = <u64>1 << p.slot
    cdef bint was_asked = r.members != NULL and r.members.asked & bit != 0
    if (not roster_read(&roster, members, body.bytes) or roster.version != h.config
            or body.instance == 0 or body.instance > INSTANCE_MAX or body.floor < roster.ballot
            or ballot_hostile(body.floor, r.highest_seen)):
        e.counters.hostile_messages += 1
        return
    if r.halted or e.poisoned:
        return
    if h.config < r.version:
        send_config(e, r, p)
        return
    if h.config == r.version:
        same_version(e, r, p, h, body, was_asked)
        return
    newer(e, r, p)
    if was_asked:
        r.members.asked &= ~bit
    if h.flags & FLAG_ACTIVE and left_flag(e, r, &roster):
        if believed(e, r, p, h, body, members, was_asked):
            end(e, r, &roster, members, body.bytes, body)
    elif r.role != ROLE_LEADING:
        want(e, r, body.instance, p.node)


# --- passing the barrier

cdef u32 furthest(Engine* e, Replica* r, u64 voters) noexcept nogil:
    """The new voter that has confirmed most, as far as this leader knows; its node, or 0."""
    cdef u64 left = voters & r.config.members & ~(<u64>1 << e.own_slot), most = 0
    cdef u32 i, found = 0
    while left:
        i = next_member(&left)
        if e.peers[i].connected and (found == 0 or r.lead.progress[i].confirmed > most):
            found = e.slot_node[i]
            most = r.lead.progress[i].confirmed
    return found


cdef void give(Engine* e, Replica* r, u32 to) noexcept nogil:
    """This leader is none of the new members: one of those is to lead, at once."""
    cdef int at = slot_of(e, to)
    if at >= 0 and r.members.gave:
        e.counters.transfers += 1
        send(e, &e.peers[at], LANE_NOW, MSG_TRANSFER, 0, r.group, r.members.gave, NULL, 0, NULL, 0)


cdef void push_to(Engine* e, Replica* r, u64 to, u64 instance, Block* body) noexcept nogil:
    """Members that had no vote are told the value itself: they have accepted nothing."""
    cdef u32 i
    to &= ~(<u64>1 << e.own_slot)
    while to:
        i = next_member(&to)
        if e.peers[i].connected:
            supply_one(e, r, &e.peers[i], instance, body)


cdef void cross(Engine* e, Replica* r) noexcept nogil:
    """A leader or candidate knows the membership value that comes next to be chosen. Its leadership
    of the members before is over; with a vote among the new ones it leads them in a new ballot."""
    cdef u64 instance = r.chosen_through + 1
    cdef Slot* slot = window_find(&r.window, instance)
    cdef Roster roster
    cdef u64 voters, witnesses, learners, old = r.config.voters
    cdef u64 led = r.lead.ballot if r.role == ROLE_LEADING else 0
    cdef u32 version = r.version, to = 0
    cdef ChosenBody through
    cdef Block* body
    if (slot == NULL or not slot.flags & SLOT_CHOSEN or not is_change(slot.value)
            or not roster_read(&roster, slot.value.data, slot.value.size)
            or not roster_slots(e, &roster, &voters, &witnesses, &learners)):
        step_down(e, r)
        advance_known(e, r)
        return
    body = block_ref(slot.value)
    if led:
        # It has counted the value in this ballot: members before hear it in this ballot.
        through.through = instance
        cast(e, r.config.members | voters | learners, LANE_NOW, MSG_CHOSEN, 0, r.group, led,
             &through, sizeof(through), NULL, 0)
        to = furthest(e, r, voters & ~witnesses)
    step_down(e, r)
    advance_known(e, r)
    if not r.halted and r.version != version and led:
        push_to(e, r, (voters | learners) & ~old, instance, body)
        # The lease goes with the claim, which the members before granted.
        e.beat_must = True
        if can_lead(e, r) and not r.config.witnesses >> e.own_slot & 1:
            prepare(e, r, 0)
        elif not has_vote(r, e.own_slot):
            r.members.gave = led
            give(e, r, to)
    block_unref(body)


cdef void barrier_turn(Engine* e, Replica* r) noexcept nogil:
    cdef Membership* m = r.members
    cdef u64 left
    if r.halted:
        return
    if m.due:
        m.due = False
        cross(e, r)
    if m.fresh:
        m.fresh = False
        refresh_leader(e, r)
    if m.flags & MEMBERS_ACTIVE and m.before:
        # Those that are none any more may end. (Who does not hear it asks: barrier_tick.)
        left = m.before & ~r.config.members
        m.before = 0
        while left and r.role == ROLE_LEADING:
            send_config(e, r, &e.peers[next_member(&left)])
    if is_removed(r) and not m.ended:
        m.ended = True
        e.grants_version += 1
        step_down(e, r)
        callers_stop(e, r)
        role_timer(e, r, 0)
    elif r.role == ROLE_FOLLOWER and r.leader == 0 and r.role_at_us == 0 and e.started:
        schedule_campaign(e, r, 0)


cdef void ask_those(Engine* e, Replica* r, u64 left) noexcept nogil:
    left &= ~(<u64>1 << e.own_slot)
    while left:
        config_ask(e, r, &e.peers[next_member(&left)])


cdef void ask_all(Engine* e, Replica* r) noexcept nogil:
    """Nobody leads, as far as is heard here: others may lead whom this node has not heard of."""
    ask_those(e, r, r.config.members)
    if not knows_below(r):
        want(e, r, r.members.instance, 0)


cdef void wake_others(Engine* e, Replica* r) noexcept nogil:
    """Maybe only those that are members no more know who is now; or a learner of then is all that
    is left of those whom this node knows."""
    cdef u64 left = r.config.members
    cdef u32 to
    while left:
        send_config(e, r, &e.peers[next_member(&left)])
    left = r.config.voters & ~r.config.witnesses
    while left:
        to = next_member(&left)
        if e.peers[to].connected and e.peers[to].alive:
            give(e, r, e.slot_node[to])
            return


cdef bint barrier_tick(Engine* e, Replica* r) noexcept nogil:
    if r.role == ROLE_FOLLOWER and votes_in(e, r) and not hears_leader(e, r):
        # Voters say so when they are asked for votes. Learners are not asked, and may be all that
        # is left.
        ask_those(e, r, r.config.learners)
    if r.role != ROLE_FOLLOWER or votes_in(e, r):
        return False
    if r.halted or e.poisoned or is_removed(r):
        return True
    if leaves(r):
        wake_others(e, r)
    else:
        ask_all(e, r)
    schedule_campaign(e, r, 0)
    return True
