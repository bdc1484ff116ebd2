"""Looking at the journal of a stopped node, also a damaged one, without changing anything.

The verdict is that of journal_open and journal_replay over disk_folder_look, which writes nothing:
so what is called damage here is what a node refuses to start with, and nothing else is. What lies
in it is told by group. Of a journal that is sound that is what a node would replay; of one that is
not, every sound record in any written segment, each found by its own checksum, behind bad places
too: facts to look at, not a state to go on from.
"""

from phx._core.native cimport *
from phx._core.journal cimport Journal

cdef struct SurveyGroup:
    u32 group
    u32 seen                   # 1: an acceptance, 2: a learned value
    u64 promise                # highest ballot promised or accepted
    u64 records
    u64 bytes                  # of bodies
    u64 accepted_first         # instances of acceptances, lowest and highest
    u64 accepted_last
    u64 learned_first          # of values learned as chosen
    u64 learned_last
    u64 settled                # highest instance that a record says is settled; 0: none does
    u64 members_at             # of the last change of members that a record says: its instance,
    u64 members_floor          # the floor of their ballots,
    u32 members_flags          # what else is known of them,
    Block* members             # and the value that says who they are; owned. NULL: none does
    u64 suspect_since          # the last life that began without what the group had; 0: none did
    bint suspect               # nothing says that it is whole again

cdef struct SurveyValue:       # an acceptance, or a value learned as chosen
    u64 instance
    u64 ballot                 # 0: learned
    Block* body                # owned
    u32 group

ctypedef vector[SurveyGroup] SurveyGroups
ctypedef vector[SurveyValue] SurveyValues
ctypedef vector[u64] Bounds
ctypedef vector[u32] Slots

cdef struct Tally:
    SurveyGroups* groups
    Slots* slots               # by group: its place in `groups`, plus 1
    SurveyValues* values       # NULL: they are not wanted
    Bounds* above              # by group: of instances above these, if they are
    u64 records
    u64 odd                    # sound records of no known kind, or of an impossible group
    u64 counter                # highest that was promised, or may have been
    u64 floor_lsn
    u64 incarnation
    u64 lease_bound_us
    u64 first_lsn
    u64 end_lsn

cdef class Survey:
    cdef readonly object verdict
    cdef readonly list segments, free, suspects, groups, doubtful, values
    cdef readonly dict members
    cdef readonly i64 cut_bytes
    cdef readonly u64 records, odd_records, floor_lsn, first_lsn, end_lsn
    cdef readonly u64 counter, incarnation, lease_bound_us
    cdef _take(self, Journal* j, Tally* t, int code)
    cdef void _forget(self, Tally* t) noexcept
