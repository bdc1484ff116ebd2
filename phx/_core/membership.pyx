# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Members of groups; see membership.pxd."""

from phx._core.members cimport NODE_MAX
from phx._core.native cimport *
from phx._core.state cimport *


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
    cdef size_t i
    for i in range(e.configs.size()):
        if e.configs[i].members >> slot & 1:
            return True
    return False


cdef void slot_free(Engine* e, u32 slot) noexcept nogil:
    cdef u64 others = ~(<u64>1 << slot)
    cdef size_t i
    cdef Replica* r
    for i in range(e.replicas.size()):
        r = e.replicas[i]
        r.supplied &= others
        r.followers &= others
        r.below &= others
        r.dry &= others
        r.votes &= others
        if r.lead != NULL:
            r.lead.refusing &= others
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


cdef void* by_slot(u32 width, u64 size) noexcept nogil:
    cdef void* memory = phx_calloc(width, size)
    if memory == NULL:
        phx_fatal("out of memory")
    return memory
