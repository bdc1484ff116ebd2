"""Who decides which instance, where the members of groups may change, and in which ballots.

What the reference counts there (docs/design/membership.md, section 2). An acceptance counts for an
instance if its node has a vote in the configuration of that instance, and if the ballot is one of
that configuration. And a ballot decides an instance only together with all that it proposed below:
an acknowledgement says "everything up to here", so nobody can learn the one without the other. A
leader that proposed x at i and w at j, and of x a minority has heard, may be followed by one that
finds other members at i and drops w, although a majority holds it; counted an instance at a time,
w would be decided.

So instances are decided in order here. Of a group whose members cannot change (`may_change`)
nothing of this is asked: there every instance is decided by itself, at once, beyond gaps too. That
claims more, and rightly, for the leader of any later ballot finds w at j, whatever it finds at i,
and proposes it again; only M2 lets one drop it. So runs without changes are checked as they ever
were.
"""

from phx._core.native cimport *
from phx.sim.reference cimport Configuration, Fate, Log, Reference, Vote

cdef enum:
    CREATED_BASE = 1             # as phx.store_hosted.base_of of the first generation
    CREATED_FLOOR = 1            # and its FIRST_FLOOR

# The group's members may change; the first ones are these voters, as bits.
cdef void configurations_begin(Reference* ref, u32 group, u32 voters) noexcept nogil

# A group is created: its log begins behind instance CREATED_BASE, at which this value, of its first
# members, counts as decided.
cdef void configurations_created(Reference* ref, u32 group, u32 value) noexcept nogil

cdef inline bint may_change(const Log* log) noexcept nogil:
    return not log.configurations.empty()

# Who decides the instance, which is at most the one behind all that is decided.
cdef Configuration* configuration_at(Log* log, u64 instance) noexcept nogil
# That of a version; NULL: nobody has decided it.
cdef Configuration* configuration_of(Log* log, u64 version) noexcept nogil
# What is known of a ballot, from now on if it is new.
cdef Fate* fate_of(Log* log, u64 ballot) noexcept nogil
# Nothing that the ballot has proposed below is another value than is decided.
cdef bint fits_below(Log* log, u64 ballot, u64 instance) noexcept nogil
# Those who hold the acceptance, or once did, are a quorum for that instance, and it is of a ballot
# that counts there.
cdef bint makes_quorum(Log* log, u64 instance, const Vote* vote) noexcept nogil
# The vote by which the instance behind all that is decided is decided, in the lowest ballot; NULL.
cdef Vote* next_decided(Log* log) noexcept nogil
# That instance was decided: what follows for ballots and members.
cdef void follow_decision(Reference* ref, Log* log, u64 instance) noexcept nogil

cdef inline u32 bits_in(u32 bits) noexcept nogil:
    cdef u32 count = 0
    while bits:
        bits &= bits - 1
        count += 1
    return count
