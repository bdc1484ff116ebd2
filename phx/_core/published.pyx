# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Read points of groups that are led here; see published.pxd."""

from phx._core.membership cimport changing
from phx._core.native cimport *
from phx._core.port cimport phx_now_us
from phx._core.state cimport (
    ROLE_LEADING, SLOTS_MAX, Engine, Lead, Peer, Replica, leading_zeros, next_member,
)

cdef enum:
    LOOKS_MAX = 100
    LATE_US_MAX = 1000000


cdef Published* published_new(u32 groups) noexcept nogil:
    cdef Published* p = <Published*>phx_calloc(1, sizeof(Published))
    p.refs = 1
    p.count = groups
    p.groups = <PublishedGroup*>phx_calloc(max(groups, <u32>1), sizeof(PublishedGroup))
    return p


cdef Published* published_ref(Published* p) noexcept nogil:
    phx_add(&p.refs, 1)
    return p


cdef void published_unref(Published* p) noexcept nogil:
    cdef u32 i
    if p != NULL and phx_add(&p.refs, -1) == 0:
        for i in range(<u32>LATER_MAX):
            phx_free(p.later[i])
        phx_free(p.groups)
        phx_free(p)


# --- the poll thread

cdef void published_blank(Published* p, u32 index) noexcept nogil:
    cdef PublishedGroup* g
    cdef u32 piece
    if index >= p.count:
        piece = 63 - <u32>leading_zeros((<u64>(index - p.count) >> LATER_BITS) + 1)
        if p.later[piece] == NULL:
            p.later[piece] = <PublishedGroup*>phx_calloc(
                <size_t>1 << (LATER_BITS + piece), sizeof(PublishedGroup))
            if p.later[piece] == NULL:
                phx_fatal("out of memory")
    g = published_at(p, index)
    phx_store(&g.sequence, g.sequence + 1)
    phx_store(&g.leads, 0)
    phx_store(&g.chosen_through, 0)
    phx_store(&g.known_through, 0)
    phx_store(&g.sequence, g.sequence + 1)


# Lemma R2 of docs/design/reads.md: before that, something chosen in an older ballot may lie above.
cdef bint leads_and_ready(Replica* r) noexcept nogil:
    cdef Lead* lead = r.lead
    return (r.role == ROLE_LEADING and lead != NULL and lead.ballot == r.promised
            and lead.phase1 == NULL and r.chosen_through >= lead.recover_through
            and not r.suspect and not r.halted and not changing(r))


cdef void publish_group(PublishedGroup* g, Replica* r) noexcept nogil:
    cdef bint leads = leads_and_ready(r)
    phx_store(&g.sequence, g.sequence + 1)
    phx_store(&g.leads, leads)
    phx_store(&g.chosen_through, <i64>r.chosen_through)
    phx_store(&g.known_through, <i64>max(r.chosen_through, r.want_through))
    if leads:
        phx_store(&g.claim_version, <i64>r.lead.claim_version)
        phx_store(&g.refusing, <i64>r.lead.refusing)
        phx_store(&g.voters, <i64>r.config.voters)
        phx_store(&g.quorum, r.config.quorum)
    phx_store(&g.sequence, g.sequence + 1)


# Whoever is later than that is ill: the others do not wait for it.
cdef i64 late_of(const Peer* p) noexcept nogil:
    return p.late_us if p.alive and p.late_us <= LATE_US_MAX else 0


cdef bint node_changed(const PublishedNode* n, Engine* e) noexcept nogil:
    cdef u32 i
    if n.slots == 0:
        return True
    for i in range(e.n_slots):
        if (n.until_us[i] != <i64>e.peers[i].lease_until_us
                or n.acked[i] != <i64>e.peers[i].acked_version
                or n.heard_us[i] != <i64>e.peers[i].heard_us
                or n.late_us[i] != late_of(&e.peers[i])):
            return True
    return False


cdef void publish(Published* p, Engine* e, const vector[u32]* changed) noexcept nogil:
    cdef PublishedNode* n = &p.node
    cdef size_t k
    cdef u32 i
    for k in range(changed.size()):
        publish_group(published_at(p, changed[0][k]), e.replicas[changed[0][k]])
    if not node_changed(n, e):
        return
    phx_store(&n.sequence, n.sequence + 1)
    phx_store(&n.own_slot, e.own_slot)
    phx_store(&n.slots, e.n_slots)
    for i in range(e.n_slots):
        phx_store(&n.until_us[i], <i64>e.peers[i].lease_until_us)
        phx_store(&n.acked[i], <i64>e.peers[i].acked_version)
        phx_store(&n.heard_us[i], <i64>e.peers[i].heard_us)
        phx_store(&n.late_us[i], late_of(&e.peers[i]))
    phx_store(&n.sequence, n.sequence + 1)


# --- whoever reads

# leases.quorum_time over what is published.
cdef u64 lease_end(PublishedNode* n, PublishedGroup* g) noexcept nogil:
    cdef u64 times[SLOTS_MAX]
    cdef u64 time, left = <u64>phx_load(&g.voters)
    cdef i64 refusing = phx_load(&g.refusing), version = phx_load(&g.claim_version)
    cdef i64 own_slot = phx_load(&n.own_slot), i, j, count = 0
    cdef i64 quorum = phx_load(&g.quorum)
    while left:
        i = next_member(&left)
        time = 0
        if i == own_slot:
            time = ~<u64>0
        elif not refusing & (<i64>1 << i) and phx_load(&n.acked[i]) >= version:
            time = <u64>phx_load(&n.until_us[i])
        j = count
        count += 1
        while j > 0 and times[j - 1] < time:
            times[j] = times[j - 1]
            j -= 1
        times[j] = time
    return times[quorum - 1] if 0 < quorum <= count else 0


cdef int published_look(Published* p, u32 index, u64* chosen_through, u64* until_us) noexcept nogil:
    cdef PublishedGroup* g = published_at(p, index)
    cdef PublishedNode* n = &p.node
    cdef i64 of_group, of_node, leads
    cdef int tries
    # (The caller may hold the GIL, and whoever writes be without a processor for a while.)
    for tries in range(LOOKS_MAX):
        of_group = phx_load(&g.sequence)
        leads = phx_load(&g.leads)
        chosen_through[0] = <u64>phx_load(&g.chosen_through)
        of_node = phx_load(&n.sequence)
        until_us[0] = lease_end(n, g)
        if (not (of_group | of_node) & 1 and phx_load(&n.sequence) == of_node
                and phx_load(&g.sequence) == of_group):
            return POINT_NO_LEASE if leads else POINT_NOT_LED
    return POINT_NOT_LED


cdef int published_point(Published* p, u32 index, u64 (*now_us)(void*) noexcept nogil,
                         void* context, u64* point) noexcept nogil:
    cdef u64 until_us = 0
    cdef int verdict = published_look(p, index, point, &until_us)
    # The clock last: a pause between the two makes it too late, and the other way round it would
    # be judged by a time at which the pair may have been another.
    if verdict != POINT_NOT_LED and until_us > now_us(context):
        return POINT_OK
    return verdict


cdef u64 clock_now(void* context) noexcept nogil:
    return phx_now_us()


# --- Python

cdef class ReadPoints:

    def __cinit__(self, groups, members):
        self.index_of = {group: index for index, group in enumerate(groups)}
        self.member_of = {node: index for index, node in enumerate(members)}
        self.p = published_new(<u32>len(self.index_of))

    def __dealloc__(self):
        published_unref(self.p)

    def leased(self, group):
        cdef u64 point = 0
        cdef Py_ssize_t index = self.index_of[group]
        cdef int verdict = published_point(self.p, <u32>index, clock_now, NULL, &point)
        return point if verdict == POINT_OK else verdict - POINT_OK

    def known(self, group):
        cdef Py_ssize_t index = self.index_of[group]
        return phx_load(&published_at(self.p, <u32>index).known_through)

    def heard_us(self, node):
        cdef Py_ssize_t index = self.member_of[node]
        return phx_load(&self.p.node.heard_us[index])

    def late_us(self):
        cdef i64 found = 0
        cdef i64 i
        for i in range(phx_load(&self.p.node.slots)):
            found = max(found, phx_load(&self.p.node.late_us[i]))
        return found
