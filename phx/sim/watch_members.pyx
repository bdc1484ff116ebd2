# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""U10; see watch_members.pxd."""

from libc.string cimport memcpy

from phx._core.ballot cimport ballot_node
from phx._core.codec cimport RECORD_MEMBERS, RECORD_PROMISE, RecordHeader
from phx._core.members cimport Roster, roster_read
from phx._core.membership cimport is_removed
from phx._core.native cimport *
from phx._core.state cimport (
    MEMBERS_ACTIVE, MEMBERS_LEFT, ROLE_FOLLOWER, ROLE_LEADING, Replica, find_group,
)
from phx._core.wire cimport (
    MSG_ACCEPT, MSG_ACCEPTED, MSG_CONFIG, MSG_PREPARE, MSG_PREVOTE, MSG_PROMISE, MessageHeader,
)
from phx.sim.configurations cimport (
    bits_in, configuration_at, configuration_of, configurations_begin, fate_of, fits_below,
    follow_decision, makes_quorum, next_decided,
)
from phx.sim.invariants cimport NodeWatch, Seat, Watch, decide, fail_at, of
from phx.sim.reference cimport (
    Cell, Configuration, Fate, Log, Value, Vote, cell_vote, reference_cell, reference_lost,
)

cdef enum:
    MEMBERS_HEADER_BYTES = 8     # of a RECORD_MEMBERS's body: flags, and zeros


cdef void watch_members(Watch* w, u32 voters) noexcept nogil:
    cdef u32 group
    w.changing = True
    for group in range(w.groups):
        configurations_begin(w.ref, group, voters)


cdef inline u32 bit_of(u32 node) noexcept nogil:
    return <u32>1 << (node - 1)


# --- what is decided

cdef void count_change(Watch* w, Log* log, u64 ballot, Vote* proposed) noexcept nogil:
    cdef Configuration* next = &log.configurations.back()
    cdef Configuration* before = next - 1
    cdef u32 learners = before.who.members & ~before.who.voters
    w.members.changes += 1
    w.members.adopted += proposed.ballot != ballot
    w.members.disjoint += before.who.voters & next.who.voters == 0
    w.members.promoted += learners & next.who.voters != 0
    w.members.removed += bits_in(before.who.members & ~next.who.members)
    w.members.leaders_left += not next.who.voters >> (ballot_node(ballot) - 1) & 1


cdef Vote* lowest(Cell* cell, u32 value) noexcept nogil:
    cdef size_t i
    cdef Vote* found = NULL
    for i in range(cell.votes.size()):
        if cell.votes[i].value == value and (found == NULL or cell.votes[i].ballot < found.ballot):
            found = &cell.votes[i]
    return found


cdef void decide_next(Watch* w, u32 node, u32 group, Log* log, Vote* vote) noexcept nogil:
    cdef u64 instance = log.end + 1
    cdef u64 ballot = vote.ballot
    cdef const Value* value = &w.ref.values[vote.value]
    cdef Cell* cell = reference_cell(w.ref, group, instance)
    if value.change and \
            w.ref.changes[value.change].version != log.configurations.back().who.version + 1:
        fail_at(w, b"U10", node, group, instance, ballot,
                b"members are decided of another version than the next one")
        return
    decide(w, node, group, instance, cell, vote)
    if w.failed:
        return
    follow_decision(w.ref, log, instance)
    if w.ref.values[cell.decided].change:
        count_change(w, log, ballot, lowest(cell, cell.decided))


cdef void members_accepted(Watch* w, u32 node, u32 group, u64 instance, u64 ballot) noexcept nogil:
    cdef Log* log = &w.ref.logs[group]
    cdef Cell* cell = reference_cell(w.ref, group, instance)
    cdef Vote* vote = cell_vote(cell, ballot, 0)
    vote.counted |= bit_of(node)
    if instance <= log.end:
        if makes_quorum(log, instance, vote) and fits_below(log, ballot, instance):
            if vote.value != cell.decided:
                fail_at(w, b"U1", node, group, instance, ballot,
                        b"another value was decided before")
            cell.decided_ballot = min(cell.decided_ballot, ballot)
        return
    while not w.failed:
        vote = next_decided(log)
        if vote == NULL:
            return
        decide_next(w, node, group, log, vote)


# --- what is proposed

cdef bint elsewhere(Cell* cell, Vote* vote) noexcept nogil:
    cdef size_t i
    for i in range(cell.votes.size()):
        if cell.votes[i].value == vote.value and cell.votes[i].ballot < vote.ballot:
            return True
    return False


# The first that is seen of a ballot that proposes other members.
cdef void proposes_change(Watch* w, u32 node, u32 group, u64 instance, Vote* vote) noexcept nogil:
    cdef Log* log = &w.ref.logs[group]
    cdef size_t above, i
    cdef Cell* cell
    if instance > log.end + 1 and not elsewhere(&log.cells[instance], vote):
        fail_at(w, b"U10", node, group, instance, vote.ballot,
                b"other members are proposed while something below is open (M1)")
    for above in range(instance + 1, log.cells.size()):
        cell = &log.cells[above]
        for i in range(cell.votes.size()):
            if cell.votes[i].ballot == vote.ballot:
                fail_at(w, b"U10", node, group, instance, vote.ballot,
                        b"other members are proposed by a ballot that has proposed above (M1)")


cdef void members_proposed(Watch* w, u32 node, u32 group, u64 instance, Vote* vote) noexcept nogil:
    cdef Log* log = &w.ref.logs[group]
    cdef Cell* cell = reference_cell(w.ref, group, instance)
    cdef Fate* fate = fate_of(log, vote.ballot)
    if cell.decided and vote.value != cell.decided and (
            fate.differs == 0 or instance < fate.differs):
        fate.differs = instance
    if w.ref.values[vote.value].change and fate.change == 0:
        fate.change = instance
        proposes_change(w, node, group, instance, vote)
    elif fate.change and instance > fate.change:
        fail_at(w, b"U10", node, group, instance, vote.ballot,
                b"proposed above other members, in the ballot that proposed them (M1, M2)")


# --- versions of ballots

cdef void used_by(Watch* w, u32 node, u32 group, u64 ballot, u64 version) noexcept nogil:
    cdef Fate* fate = fate_of(&w.ref.logs[group], ballot)
    if fate.version == 0:
        fate.version = version
    elif fate.version != version:
        fail_at(w, b"U10", node, group, version, ballot, b"a ballot of two versions (M3)")


cdef void members_emitted(Watch* w, NodeWatch* n, const RecordHeader* header, const u8* body,
                          Written* out) noexcept nogil:
    cdef Replica* r
    cdef Roster roster
    cdef u32 flags = 0
    if header.group >= w.groups:
        return
    if header.kind == RECORD_MEMBERS:
        if header.body_bytes > MEMBERS_HEADER_BYTES and roster_read(
                &roster, body + MEMBERS_HEADER_BYTES, header.body_bytes - MEMBERS_HEADER_BYTES):
            memcpy(&flags, body, 4)
            out.version = <u32>roster.version
            out.ended = flags & (MEMBERS_ACTIVE | MEMBERS_LEFT) == MEMBERS_ACTIVE | MEMBERS_LEFT
        return
    r = find_group(n.engine, header.group)
    if header.kind == RECORD_PROMISE and r != NULL and r.lead != NULL \
            and r.lead.ballot == header.ballot:
        used_by(w, n.node, header.group, header.ballot, r.version)


cdef void members_votes(Watch* w, NodeWatch* n, const RecordHeader* header) noexcept nogil:
    cdef Log* log = &w.ref.logs[header.group]
    cdef Configuration* members = configuration_of(log, fate_of(log, header.ballot).version)
    if members == NULL or not members.who.voters & bit_of(n.node):
        fail_at(w, b"U10", n.node, header.group, header.index, header.ballot,
                b"accepts in a ballot of members among whom it has no vote (M3)")
    elif header.index <= members.instance:
        fail_at(w, b"U10", n.node, header.group, header.index, header.ballot,
                b"accepts below the value by which the members of the ballot became members")


cdef void members_durable(NodeWatch* n, const Written* one) noexcept nogil:
    cdef Seat* seat = &n.seats[one.group]
    if one.version >= seat.version:
        seat.version = one.version
        seat.ended_durably = one.ended


# --- a node

# What it was about to use in the life before, and had not promised durably, it may use in another
# version: nobody has heard of it.
cdef void ballots_gone(Watch* w, u32 node, u32 group, u64 promised) noexcept nogil:
    cdef Log* log = &w.ref.logs[group]
    cdef size_t i, kept = 0
    for i in range(log.fates.size()):
        if ballot_node(log.fates[i].ballot) != node or log.fates[i].ballot <= promised:
            log.fates[kept] = log.fates[i]
            kept += 1
    log.fates.resize(kept)


cdef void members_started(Watch* w, NodeWatch* n) noexcept nogil:
    cdef Seat* seat
    cdef Replica* r
    cdef u32 group
    for group in range(w.groups):
        seat = &n.seats[group]
        r = find_group(n.engine, group)
        if r == NULL:
            continue
        ballots_gone(w, n.node, group, max(r.promised, max(seat.before, seat.exposed)))
        if r.version < seat.version:
            fail_at(w, b"U10", n.node, group, r.version, 0, b"members are forgotten over a restart")
        if seat.ended_durably and not is_removed(r):
            fail_at(w, b"U10", n.node, group, r.version, 0, b"who ended begins again")
        seat.ended = 0


cdef void members_sent(Watch* w, NodeWatch* n, const MessageHeader* m) noexcept nogil:
    cdef Seat* seat = &n.seats[m.group]
    cdef bint owns = m.kind == MSG_PREPARE or m.kind == MSG_ACCEPT
    cdef bint answers = m.kind == MSG_PROMISE or m.kind == MSG_ACCEPTED
    if seat.ended and n.made > seat.ended and (owns or answers or m.kind == MSG_PREVOTE):
        fail_at(w, b"U10", n.node, m.group, m.config, m.ballot, b"ended, and takes part")
    if seat.ended and m.kind == MSG_CONFIG:
        w.members.tombstones += 1
    if not owns and not answers:
        return
    if m.config > max(seat.version, <u64>1):
        fail_at(w, b"U10", n.node, m.group, m.config, m.ballot,
                b"takes part in a version that it does not know durably (M4)")
    if owns:
        used_by(w, n.node, m.group, m.ballot, m.config)
    elif fate_of(&w.ref.logs[m.group], m.ballot).version != m.config:
        fail_at(w, b"U10", n.node, m.group, m.config, m.ballot,
                b"answers in another version than that of the ballot (M3)")


cdef bint holds_through(Watch* w, u32 node, u32 group, u64 through) noexcept nogil:
    cdef Log* log = &w.ref.logs[group]
    cdef u32 bit = bit_of(node)
    cdef u64 instance
    cdef Cell* cell
    cdef size_t i
    cdef bint held
    for instance in range(of(w, node).seats[group].row + 1, through + 1):
        cell = &log.cells[instance]
        held = cell.known & bit != 0
        for i in range(cell.votes.size()):
            held = held or (cell.votes[i].value == cell.decided and cell.votes[i].synced & bit)
        if not held:
            return False
    return True


# Those before may be switched off and deleted from now on (M6).
cdef void is_active(Watch* w, u32 node, u32 group, Configuration* members) noexcept nogil:
    cdef u32 left = members.who.voters, count = 0, i
    members.active = True
    w.members.active += 1
    if left == 0:
        return                        # the last value of a group that is deleted
    if w.ref.logs[group].end <= members.instance:
        fail_at(w, b"U10", node, group, members.instance, 0,
                b"active, and nothing is decided above (M6)")
    for i in range(w.nodes):
        if left >> i & 1 and holds_through(w, i + 1, group, members.instance):
            count += 1
    if 2 * count <= bits_in(left):
        fail_at(w, b"U10", node, group, members.instance, 0,
                b"active, and no quorum of the new voters holds all before, durably (M6)")


cdef void check_ended(Watch* w, NodeWatch* n, Replica* r,
                      const Configuration* members) noexcept nogil:
    cdef Seat* seat = &n.seats[r.group]
    if not is_removed(r):
        if seat.ended:
            fail_at(w, b"U10", n.node, r.group, r.version, 0, b"ended, and is a member again")
        return
    if not seat.ended:
        seat.ended = max(n.turn, <u64>1)
        w.members.ended += 1
        w.members.told_late += r.chosen_through < members.instance
    if members.who.members & bit_of(n.node):
        fail_at(w, b"U10", n.node, r.group, r.version, 0, b"ends, and is a member")
    if r.role != ROLE_FOLLOWER:
        fail_at(w, b"U10", n.node, r.group, r.version, 0, b"ended, and wants to lead")


cdef void members_step(Watch* w, NodeWatch* n, Replica* r) noexcept nogil:
    cdef Configuration* members = configuration_of(&w.ref.logs[r.group], r.version)
    if members == NULL:
        fail_at(w, b"U10", n.node, r.group, r.version, 0,
                b"counts members that nobody has decided")
        return
    if r.lead != NULL:
        used_by(w, n.node, r.group, r.lead.ballot, r.version)
    if r.members != NULL and r.members.value != NULL:
        if r.members.instance != members.instance:
            fail_at(w, b"U10", n.node, r.group, r.members.instance, 0,
                    b"its members are those of another instance than was decided")
        if r.members.flags & MEMBERS_ACTIVE and not members.active:
            is_active(w, n.node, r.group, members)
        check_ended(w, n, r, members)
    if r.role == ROLE_LEADING and not members.who.voters & bit_of(n.node):
        fail_at(w, b"U10", n.node, r.group, r.version, r.lead.ballot, b"leads without a vote")


cdef u64 members_kept(Watch* w, NodeWatch* n, Replica* r, u64 instance) noexcept nogil:
    cdef Log* log = &w.ref.logs[r.group]
    cdef Cell* cell = &log.cells[instance]
    cdef u64 ballot = 0
    cdef size_t i
    if is_removed(r):
        return 0
    for i in range(cell.votes.size()):
        if not (cell.votes[i].synced | cell.votes[i].written) & bit_of(n.node):
            continue
        if r.members != NULL and r.members.value != NULL and instance > r.members.instance \
                and fate_of(log, cell.votes[i].ballot).version < r.version:
            continue
        ballot = max(ballot, cell.votes[i].ballot)
    return ballot


# --- what is told

cdef void watch_leads(Watch* w, u32 node, u32 group, u64 epoch) noexcept nogil:
    cdef u64 version = fate_of(&w.ref.logs[group], epoch).version
    cdef Configuration* members
    cdef size_t i
    members = configuration_of(&w.ref.logs[group], version)
    if members == NULL:
        fail_at(w, b"U10", node, group, version, epoch, b"leads members that nobody has decided")
        return
    if members.lowest_epoch == 0 or epoch < members.lowest_epoch:
        members.lowest_epoch = epoch
    members.highest_epoch = max(members.highest_epoch, epoch)
    for i in range(w.ref.logs[group].configurations.size()):
        if i + 1 < version and w.ref.logs[group].configurations[i].highest_epoch >= epoch:
            fail_at(w, b"U10", node, group, version, epoch,
                    b"an epoch of newer members is not above one of older members")
        if i + 1 > version and w.ref.logs[group].configurations[i].lowest_epoch \
                and w.ref.logs[group].configurations[i].lowest_epoch <= epoch:
            fail_at(w, b"U10", node, group, version, epoch,
                    b"an epoch of older members is not below one of newer members")


cdef void watch_members_row(Watch* w, u32 node, u32 group, u64 settled,
                            u64 version) noexcept nogil:
    cdef Log* log = &w.ref.logs[group]
    if settled <= log.end and version < configuration_at(log, settled + 1).who.version:
        fail_at(w, b"U10", node, group, settled, 0,
                b"a store is settled past a change, and its row says older members (S1)")
    watch_members_told(w, node, group, version)


cdef void watch_members_told(Watch* w, u32 node, u32 group, u64 version) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    seat.row_version = max(seat.row_version, version)
    if version > seat.version:
        seat.version = version
        seat.ended_durably = False


cdef void watch_wiped(Watch* w, u32 node) noexcept nogil:
    cdef Configuration* members
    cdef u32 group
    for group in range(w.groups):
        if group >= w.configured and w.ref.logs[group].base == 0:
            continue                  # it was never created
        members = &w.ref.logs[group].configurations.back()
        if members.who.members & bit_of(node):
            fail_at(w, b"U10", node, group, 0, 0, b"wiped, and a member")
    reference_lost(w.ref, node)
    w.members.wiped += 1
