# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""What phase 1 finds; see reports.pxd."""

from libc.string cimport memset

from phx._core.learner cimport stranded
from phx._core.native cimport *
from phx._core.rejoin cimport answers_needed
from phx._core.state cimport *
from phx._core.window cimport window_find


cdef Reported* reported_at(Phase1* phase1, u64 instance) noexcept nogil:
    cdef Reported empty
    cdef size_t low = 0, high = phase1.reported.size(), middle, at
    while low < high:
        middle = (low + high) // 2
        if phase1.reported[middle].instance < instance:
            low = middle + 1
        else:
            high = middle
    if low == phase1.reported.size() or phase1.reported[low].instance != instance:
        # Members report in ascending order and mostly the same instances, so this is the end.
        memset(&empty, 0, sizeof(empty))
        empty.instance = instance
        phase1.reported.push_back(empty)
        at = phase1.reported.size() - 1
        while at > low:
            phase1.reported[at] = phase1.reported[at - 1]
            at -= 1
        phase1.reported[low] = empty
    return &phase1.reported[low]


cdef void weigh(Reported* best, u64 ballot, bint chosen, Block* value) noexcept nogil:
    """P2c: the value of the highest ballot; a chosen one beats any. Takes its own reference."""
    if best.chosen or (not chosen and best.value != NULL and ballot <= best.ballot):
        return
    block_unref(best.value)
    best.value = block_ref(value)
    best.ballot = ballot
    best.chosen = chosen


# --- what only acceptances know

cdef bint may_be_told(Engine* e, Replica* r) noexcept nogil:
    cdef u64 there = <u64>1 << e.own_slot, left = r.config.voters
    cdef u32 i
    while left:
        i = next_member(&left)
        if i != e.own_slot and e.peers[i].connected and not r.below >> i & 1:
            there |= <u64>1 << i
    return voters_in(r, there) >= answers_needed(r)


cdef bint quorum_reports(Replica* r) noexcept nogil:
    """A quorum of whole promises says of every open instance what was accepted there. (Of one that
    knows the first of them to be chosen nothing is known but that.)"""
    cdef Phase1* phase1 = r.lead.phase1
    cdef u64 left = r.config.voters, reports = 0
    cdef u32 i
    while left:
        i = next_member(&left)
        if phase1.promised[i].whole and phase1.promised[i].chosen_through <= r.chosen_through:
            reports |= <u64>1 << i
    return voters_in(r, reports) >= answers_needed(r)


cdef bint all_found(Replica* r) noexcept nogil:
    """Something was accepted at each instance that somebody knows to be chosen. (They may be more
    than a window: a replay brings back all that was not settled.)"""
    cdef Phase1* phase1 = r.lead.phase1
    cdef u64 instance = r.chosen_through + 1
    cdef size_t at = 0
    while instance <= phase1.max_chosen:
        while at < phase1.reported.size() and phase1.reported[at].instance < instance:
            at += 1
        if (window_find(&r.window, instance) == NULL
                and (at == phase1.reported.size() or phase1.reported[at].instance != instance
                     or phase1.reported[at].value == NULL)):
            return False
        instance += 1
    return True


cdef bint promises_to_come(Engine* e, Replica* r) noexcept nogil:
    """Of somebody who may report."""
    cdef u64 left = r.config.voters
    cdef u32 i
    while left:
        i = next_member(&left)
        if (i != e.own_slot and e.peers[i].connected and not r.below >> i & 1
                and not r.lead.phase1.promised[i].whole):
            return True
    return False


cdef AfterPhase1 after_phase1(Engine* e, Replica* r) noexcept nogil:
    if r.chosen_through >= r.lead.phase1.max_chosen:
        return AFTER_LEAD
    if not stranded(e, r):
        return AFTER_WAIT
    if not may_be_told(e, r):
        return AFTER_GIVE_UP  # it needs a checkpoint, and is in nobody's way until it has one
    if quorum_reports(r):
        if all_found(r):
            return AFTER_LEAD
    elif promises_to_come(e, r):
        return AFTER_WAIT
    r.failures += 1
    return AFTER_GIVE_UP
