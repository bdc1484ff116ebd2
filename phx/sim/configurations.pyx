# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Configurations by instance; see configurations.pxd."""

from libc.string cimport memset

from phx._core.native cimport *
from phx.sim.reference cimport (
    Cell, Configuration, Fate, Log, Reference, Vote, reference_cell,
)


cdef void configurations_begin(Reference* ref, u32 group, u32 voters) noexcept nogil:
    cdef Configuration first
    memset(&first, 0, sizeof(first))
    first.who.version = 1
    first.who.voters = first.who.members = voters
    first.active = True
    ref.logs[group].configurations.clear()
    ref.logs[group].configurations.push_back(first)


cdef void configurations_created(Reference* ref, u32 group, u32 value) noexcept nogil:
    cdef Log* log = &ref.logs[group]
    cdef Cell* cell = reference_cell(ref, group, CREATED_BASE)
    cdef Configuration first
    configurations_begin(ref, group, 0)    # before there is anybody
    memset(&first, 0, sizeof(first))
    first.instance = CREATED_BASE
    first.who = ref.changes[ref.values[value].change]
    first.active = True
    log.configurations.push_back(first)
    log.members = first.who.members
    cell.decided = value
    cell.decided_ballot = CREATED_FLOOR
    log.base = log.end = CREATED_BASE


cdef Configuration* configuration_at(Log* log, u64 instance) noexcept nogil:
    cdef size_t i = log.configurations.size() - 1
    while i and log.configurations[i].instance >= instance:
        i -= 1
    return &log.configurations[i]


cdef Configuration* configuration_of(Log* log, u64 version) noexcept nogil:
    if version == 0 or version > log.configurations.size():
        return NULL
    return &log.configurations[version - 1]


cdef Fate* fate_of(Log* log, u64 ballot) noexcept nogil:
    cdef Fate fate
    cdef size_t i = log.fates.size()
    while i:
        i -= 1
        if log.fates[i].ballot == ballot:
            return &log.fates[i]
    memset(&fate, 0, sizeof(fate))
    fate.ballot = ballot
    log.fates.push_back(fate)
    return &log.fates.back()


cdef bint fits_below(Log* log, u64 ballot, u64 instance) noexcept nogil:
    cdef Fate* fate = fate_of(log, ballot)
    return fate.differs == 0 or fate.differs >= instance


cdef bint makes_quorum(Log* log, u64 instance, const Vote* vote) noexcept nogil:
    cdef const Configuration* members = configuration_at(log, instance)
    if fate_of(log, vote.ballot).version != members.who.version:
        return False
    return 2 * bits_in(vote.counted & members.who.voters) > bits_in(members.who.voters)


cdef Vote* next_decided(Log* log) noexcept nogil:
    cdef u64 instance = log.end + 1
    cdef Cell* cell
    cdef Vote* vote
    cdef Vote* found = NULL
    cdef size_t i
    if instance >= log.cells.size():
        return NULL
    cell = &log.cells[instance]
    for i in range(cell.votes.size()):
        vote = &cell.votes[i]
        if (found == NULL or vote.ballot < found.ballot) and makes_quorum(log, instance, vote) \
                and fits_below(log, vote.ballot, instance):
            found = vote
    return found


cdef void follow_decision(Reference* ref, Log* log, u64 instance) noexcept nogil:
    cdef Cell* cell = &log.cells[instance]
    cdef Configuration next
    cdef Fate* fate
    cdef size_t i
    for i in range(cell.votes.size()):
        fate = fate_of(log, cell.votes[i].ballot)
        if cell.votes[i].value != cell.decided and (
                fate.differs == 0 or instance < fate.differs):
            fate.differs = instance
    if ref.values[cell.decided].change:
        memset(&next, 0, sizeof(next))
        next.instance = instance
        next.who = ref.changes[ref.values[cell.decided].change]
        log.configurations.push_back(next)
