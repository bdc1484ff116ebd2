# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Groups that come and go; see groups.pxd."""

from phx._core.codec cimport RecordHeader
from phx._core.elections cimport refresh_leader, schedule_campaign
from phx._core.learner cimport tail_drop
from phx._core.leases cimport claim_drop, claims_begin
from phx._core.membership cimport config_drop, config_set, membership_free
from phx._core.native cimport *
from phx._core.phase2 cimport lead_free
from phx._core.proposals cimport callers_free, forwards_free
from phx._core.proposer cimport step_down
from phx._core.reads cimport reads_drop
from phx._core.state cimport *
from phx._core.votes cimport votes_drop
from phx._core.window cimport ring_at, ring_free, ring_purge, window_free, window_init

cdef extern from "<algorithm>" namespace "std" nogil:
    void sort(u64* begin, u64* end)


# --- made

cdef u32 place_of_next(Engine* e) noexcept nogil:
    cdef Replica* none = NULL
    cdef u32 index = <u32>e.replicas.size()
    if e.holes.empty():
        e.replicas.push_back(none)
        return index
    index = e.holes.back()
    e.holes.pop_back()
    return index


cdef void name(Engine* e, u32 group, Replica* r) noexcept nogil:
    cdef Replica* none = NULL
    if group == GROUP_MAX:
        e.highest = r
        return
    while e.by_group.size() <= group:
        e.by_group.push_back(none)
    e.by_group[group] = r


cdef bint is_gone(Engine* e, u32 group, u32 generation) noexcept nogil:
    cdef size_t i
    for i in range(e.gone.size()):
        if e.gone[i].group == group:
            return generation <= e.gone[i].generation
    return False


cdef int group_add(Engine* e, u32 group, u32 generation, u64 settled_through) noexcept nogil:
    cdef Replica* r
    if (group > GROUP_MAX or generation > GENERATION_MAX or find_group(e, group) != NULL
            or is_gone(e, group, generation)):
        return -1
    r = phx_new[Replica]()
    r.group = group
    r.generation = <u16>generation
    r.index = place_of_next(e)
    r.settled_through = settled_through
    r.chosen_through = settled_through
    r.accepted_last = settled_through
    r.floor = 1
    r.version = 1
    config_set(e, r, (<u64>1 << e.options.n_members) - 1, 0, 0)
    window_init(&r.window, settled_through + 1)
    e.replicas[r.index] = r
    name(e, group, r)
    e.generations |= generation != 0
    if e.started:
        # Claims are told once: those of the others were heard before there was this group.
        claims_begin(e, r)
        r.announce_due = True
        refresh_leader(e, r)
        schedule_campaign(e, r, 0)
        touch(e, r)
    return 0


# --- dropped

cdef void group_gone(Engine* e, u32 group, u32 generation) noexcept nogil:
    cdef Gone gone
    cdef size_t i
    for i in range(e.gone.size()):
        if e.gone[i].group == group:
            e.gone[i].generation = max(e.gone[i].generation, generation)
            return
    gone.group = group
    gone.generation = generation
    e.gone.push_back(gone)


cdef void effects_of_turn_drop(Engine* e, Replica* r) noexcept nogil:
    """Of this turn, so far. (Points are answers to tickets, which are of no group but of a node:
    they stay. Frames bear the generation.)"""
    cdef size_t i, kept = 0
    for i in range(e.effects.events.size()):
        if e.effects.events[i].group != r.group or not event_of_group(e.effects.events[i].kind):
            e.effects.events[kept] = e.effects.events[i]
            kept += 1
    e.effects.events.resize(kept)
    kept = 0
    for i in range(e.effects.fetches.size()):
        if e.effects.fetches[i].group != r.group:
            e.effects.fetches[kept] = e.effects.fetches[i]
            kept += 1
    e.effects.fetches.resize(kept)
    kept = 0
    for i in range(e.effects.republish.size()):
        if e.effects.republish[i] != r.index:
            e.effects.republish[kept] = e.effects.republish[i]
            kept += 1
    e.effects.republish.resize(kept)


cdef void dirty_drop(Engine* e, Replica* r) noexcept nogil:
    cdef size_t i, kept = 0
    for i in range(e.dirty.size()):
        if e.dirty[i] != r.index:
            e.dirty[kept] = e.dirty[i]
            kept += 1
    e.dirty.resize(kept)


cdef void group_drop(Engine* e, Replica* r) noexcept nogil:
    step_down(e, r)
    claim_drop(e, r)
    reads_drop(e, r)
    votes_drop(e, r.index)
    tail_drop(e, r)
    ring_purge(&e.cached, r.index)
    effects_of_turn_drop(e, r)
    dirty_drop(e, r)
    # (Its timers are found to be nobody's when they ring.)
    e.replicas[r.index] = NULL
    e.holes.push_back(r.index)
    name(e, r.group, NULL)
    group_gone(e, r.group, r.generation)
    e.grants_version += 1
    replica_free(e, r)


cdef size_t groups_in_order(Engine* e, vector[u64]* out) noexcept nogil:
    cdef size_t i
    cdef u64 one, last = 0
    cdef bint ascending = True
    for i in range(e.replicas.size()):
        if e.replicas[i] != NULL:
            one = <u64>e.replicas[i].group << 32 | i
            ascending = ascending and one >= last
            last = one
            out.push_back(one)
    if not ascending:
        sort(out.data(), out.data() + out.size())
    return out.size()


cdef int record_of_other(Engine* e, Replica* r, const RecordHeader* header) noexcept nogil:
    if r != NULL and header.space == r.generation:
        return 0
    if is_gone(e, header.group, header.space) or (r != NULL and header.space < r.generation):
        return 1
    e.stray = True
    e.stray_group = header.group
    return -1


cdef void tail_free(Replica* r) noexcept nogil:
    while r.tail.size:
        r.tail.size -= 1
        block_unref(<Block*><size_t>ring_at(&r.tail, r.tail.size))
    ring_free(&r.tail)


cdef void replica_free(Engine* e, Replica* r) noexcept nogil:
    lead_free(r)
    callers_free(r)
    forwards_free(r)
    window_free(&r.window)
    tail_free(r)
    ring_free(&r.locations)
    config_drop(e, r)
    membership_free(r)
    phx_delete[Replica](r)
