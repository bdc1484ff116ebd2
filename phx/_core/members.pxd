"""The value that changes the members of a group: its bytes (docs/design/membership.md, section 2).

One without members is the last value of its group: the members of the version that it names, which
would decide what comes above it, are nobody. So nothing above it is ever chosen, by the very
theorem that keeps the members before from choosing there (U10), and nothing else is needed to end a
group: who proposes it, adopts it or hears of it does what it would with any other (M1 to M4).

It is alone in its instance. Body header (batch.pxd, 24 bytes) with kind BODY_MEMBERSHIP, `runs` the
number of members (0: the group ends), `values` 0, and `epoch` P: the ballot of the leader that
packed it, which those of the new configuration are above. Then

    offset  size  field
    24      8     version   of the members from the next instance on; 2 to 2**32 - 1
    32      …     members, by ascending node id

and each member

    0       4     node      1 to NODE_MAX
    4       1     role      a Role
    5       1     zero
    6       2     bytes     of the address, 1 to ADDRESS_BYTES_MAX
    8       …     address   printable ASCII without blanks: what it means is not decided here

Nothing is padded. One set of members has one encoding, so replicas may compare bytes.
"""

from phx._core.native cimport *

cdef enum:
    ROSTER_MAX = 15              # members, of any role
    ADDRESS_BYTES_MAX = 261      # a name of 255, a colon, a port
    NODE_MAX = 1048575

cdef enum MemberRole:
    MEMBER_VOTER = 1             # votes, and has a machine
    MEMBER_WITNESS = 2           # votes, keeps log and promises, has no machine
    MEMBER_LEARNER = 3           # has a machine, no vote

cdef struct Member:
    u32 node
    u8 role
    u16 address_bytes
    const u8* address            # into the bytes that were read

cdef struct Roster:
    u64 version
    u64 ballot                   # P
    u64 time_us                  # wall clock of that leader
    u32 count
    Member members[ROSTER_MAX]

# Reads data[0:count] into `out`. False, and `out` is not to be used, unless it is sound to the last
# byte: lengths, roles, order of nodes, and somebody among them, if there are any, who votes and has
# a machine.
cdef bint roster_read(Roster* out, const u8* data, u64 count) noexcept nogil
# The bytes of a sound roster; the caller's reference.
cdef Block* roster_write(const Roster* roster) noexcept nogil
