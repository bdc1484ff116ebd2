# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The claims about lost journals; see watch_lost.pxd."""

from phx._core.ballot cimport ballot_counter, ballot_node
from phx._core.codec cimport RecordHeader
from phx._core.native cimport *
from phx._core.state cimport Replica, find_group
from phx._core.wire cimport MessageHeader
from phx.sim.configurations cimport bits_in, configuration_of
from phx.sim.invariants cimport NodeWatch, Seat, Watch, fail_at, of
from phx.sim.reference cimport Cell, Log, cell_synced_in, reference_lost
from phx.sim.watch_frames cimport Ballot, ballot_used


cdef void watch_ceiling(Watch* w, u32 node, u64 counter) noexcept nogil:
    of(w, node).ceiling = counter


cdef void watch_lost(Watch* w, u32 node) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    cdef Seat* seat
    cdef size_t group
    n.records.written.clear()
    n.records.unsynced = n.records.unwritten = 0
    n.durable = 0
    for group in range(n.seats.size()):
        seat = &n.seats[group]
        if group >= w.configured and not seat.hosts:
            continue                  # there is nothing to lose
        # (It may have told of what was never known durable here, and of nothing higher.)
        seat.before = max(max(seat.before, seat.promised), max(seat.durable, seat.exposed))
        seat.durable = seat.exposed = 0
        seat.version = seat.row_version
        seat.ended_durably = False    # (It ends again when it hears of the newer members.)
        seat.lost = True
        seat.said = False
        seat.lost_in = 0
    reference_lost(w.ref, node)


cdef bint watch_losing(Watch* w, u32 node) noexcept nogil:
    cdef size_t group
    for group in range(of(w, node).seats.size()):
        if of(w, node).seats[group].lost:
            return True
    return False


cdef bint watch_losing_in(Watch* w, u32 node, u32 group) noexcept nogil:
    return of(w, node).seats[group].lost


cdef void lost_started(Watch* w, NodeWatch* n) noexcept nogil:
    cdef Seat* seat
    cdef Replica* r
    cdef u32 group
    n.above = n.ceiling
    for group in range(w.groups):
        seat = &n.seats[group]
        r = find_group(n.engine, group)
        if r == NULL:
            continue
        seat.suspect = r.suspect
        if seat.lost and not seat.suspect:
            fail_at(w, b"U10r", n.node, group, 0, seat.before,
                    b"begins as if it had lost nothing, and never became whole durably")


cdef void lost_promises(Watch* w, NodeWatch* n, const RecordHeader* header,
                        bint accepts) noexcept nogil:
    if ballot_counter(header.ballot) > n.ceiling:
        fail_at(w, b"U10r", n.node, header.group, header.index, header.ballot,
                b"promises more than the ceiling that its store has")
    # (A promise alone, of what an install has brought, is no part in it; nor is it to write again
    # what is left.)
    if accepts:
        lost_takes_part(w, n, header.group, header.ballot)


cdef void lost_takes_part(Watch* w, NodeWatch* n, u32 group, u64 ballot) noexcept nogil:
    cdef Seat* seat = &n.seats[group]
    if seat.suspect and ballot_counter(ballot) <= ballot_counter(seat.before):
        fail_at(w, b"U10r", n.node, group, 0, ballot,
                b"takes part in a ballot that it may have promised and forgotten")


# So many others have promised the ballot.
cdef u32 others_of(NodeWatch* n, u32 group, u64 ballot) noexcept nogil:
    cdef u32 count = 0
    cdef u32 bits = ballot_used(&n.ballots[group], ballot, n.life).promised
    bits &= ~(<u32>1 << (n.node - 1))
    while bits:
        bits &= bits - 1
        count += 1
    return count


cdef u32 others_needed(Watch* w, NodeWatch* n, u32 group) noexcept nogil:
    cdef u32 voters = w.nodes
    if w.changing:
        voters = bits_in(configuration_of(&w.ref.logs[group],
                                          find_group(n.engine, group).version).who.voters)
    return voters - voters // 2


cdef void lost_whole(Watch* w, NodeWatch* n, const RecordHeader* header) noexcept nogil:
    cdef Seat* seat = &n.seats[header.group]
    cdef Log* log = &w.ref.logs[header.group]
    cdef u32 bit = <u32>1 << (n.node - 1)
    cdef u64 instance
    cdef Cell* cell
    if header.ballot == 0:
        return
    seat.suspect = False
    if ballot_node(header.ballot) != n.node or ballot_counter(header.ballot) <= n.above:
        fail_at(w, b"U10r", n.node, header.group, 0, header.ballot,
                b"becomes whole in a ballot that is not above its ceiling at the start")
        return
    if others_of(n, header.group, header.ballot) < others_needed(w, n, header.group):
        fail_at(w, b"U10r", n.node, header.group, 0, header.ballot,
                b"becomes whole with promises of too few others")
        return
    for instance in range(find_group(n.engine, header.group).chosen_through + 1,
                          log.cells.size()):
        cell = &log.cells[instance]
        if cell.decided and cell.decided_ballot < header.ballot and not cell.known & bit \
                and not cell_synced_in(cell, header.ballot, n.node):
            fail_at(w, b"U10r", n.node, header.group, instance, header.ballot,
                    b"becomes whole before it has accepted what is decided")
            return


cdef void lost_answers(Watch* w, NodeWatch* n, const MessageHeader* m) noexcept nogil:
    if n.seats[m.group].lost:
        fail_at(w, b"U10r", n.node, m.group, 0, m.ballot,
                b"answers, and may have forgotten what it voted")


# (It may be whole, and that not be durable yet.)
cdef void lost_prevotes(Watch* w, NodeWatch* n, const MessageHeader* m) noexcept nogil:
    if n.seats[m.group].suspect:
        fail_at(w, b"U10r", n.node, m.group, 0, m.ballot, b"answers a pre-vote, and is not whole")


cdef void lost_promised(Watch* w, NodeWatch* n, const MessageHeader* m) noexcept nogil:
    cdef u32 owner = ballot_node(m.ballot)
    cdef NodeWatch* of_owner
    if 1 <= owner <= w.nodes:
        of_owner = of(w, owner)
        ballot_used(&of_owner.ballots[m.group], m.ballot, of_owner.life).promised |= \
            <u32>1 << (n.node - 1)


cdef void lost_step(Watch* w, NodeWatch* n, u32 group) noexcept nogil:
    if n.seats[group].suspect != find_group(n.engine, group).suspect:
        fail_at(w, b"U10r", n.node, group, 0, 0,
                b"is suspect, or whole, and its journal does not say so")
