# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The value that changes members, and the thin door for tests. Its bytes: members.pxd."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset

from phx._core.batch cimport BODY_HEADER_BYTES, BODY_MEMBERSHIP, BODY_VERSION, BodyHeader
from phx._core.native cimport *

cdef enum:
    VERSION_BYTES = 8

cdef packed struct MemberHeader:
    u32 node
    u8 role
    u8 zero
    u16 address_bytes


cdef bint address_sound(const u8* address, u32 nbytes) noexcept nogil:
    cdef u32 i
    if nbytes == 0 or nbytes > ADDRESS_BYTES_MAX:
        return False
    for i in range(nbytes):
        if address[i] <= 32 or address[i] >= 127:
            return False
    return True


cdef bint roster_read(Roster* out, const u8* data, u64 count) noexcept nogil:
    cdef BodyHeader header
    cdef MemberHeader one
    cdef u64 at = BODY_HEADER_BYTES + VERSION_BYTES
    cdef u32 i, before = 0
    cdef bint machine = False
    if count < at:
        return False
    memcpy(&header, data, BODY_HEADER_BYTES)
    if (header.kind != BODY_MEMBERSHIP or header.version != BODY_VERSION or header.values != 0
            or header.runs > ROSTER_MAX or header.epoch == 0):
        return False
    out.ballot = header.epoch
    out.time_us = header.time_us
    out.count = header.runs
    memcpy(&out.version, data + BODY_HEADER_BYTES, VERSION_BYTES)
    if out.version < 2 or out.version >> 32 != 0:
        return False
    for i in range(out.count):
        if count - at < sizeof(one):
            return False
        memcpy(&one, data + at, sizeof(one))
        at += sizeof(one)
        if (one.node <= before or one.node > NODE_MAX or one.zero != 0
                or one.role < MEMBER_VOTER or one.role > MEMBER_LEARNER
                or one.address_bytes > count - at
                or not address_sound(data + at, one.address_bytes)):
            return False
        before = one.node
        machine = machine or one.role == MEMBER_VOTER
        out.members[i].node = one.node
        out.members[i].role = one.role
        out.members[i].address_bytes = one.address_bytes
        out.members[i].address = data + at
        at += one.address_bytes
    return at == count and (machine or out.count == 0)


cdef Block* roster_write(const Roster* roster) noexcept nogil:
    cdef BodyHeader header
    cdef MemberHeader one
    cdef Block* out = block_new(64 + roster.count * <u64>64)
    cdef u32 i
    header.kind = BODY_MEMBERSHIP
    header.version = BODY_VERSION
    header.runs = <u16>roster.count
    header.values = 0
    header.epoch = roster.ballot
    header.time_us = roster.time_us
    out = block_append(out, &header, BODY_HEADER_BYTES)
    out = block_append(out, &roster.version, VERSION_BYTES)
    for i in range(roster.count):
        one.node = roster.members[i].node
        one.role = roster.members[i].role
        one.zero = 0
        one.address_bytes = roster.members[i].address_bytes
        out = block_append(out, &one, sizeof(one))
        out = block_append(out, roster.members[i].address, one.address_bytes)
    return out


# --- door

def read(bytes data):
    """(version, ballot, time_us, [(node, role, address)]), or None for what is not sound."""
    cdef Roster roster
    cdef Block* copy = block_copy(<const char*>data, len(data))
    cdef Member* one
    cdef u32 i
    # (Of exactly this length: a sanitizer sees a byte read beyond.)
    try:
        if not roster_read(&roster, copy.data, copy.size):
            return None
        members = []
        for i in range(roster.count):
            one = &roster.members[i]
            members.append((one.node, one.role,
                            PyBytes_FromStringAndSize(<const char*>one.address,
                                                      one.address_bytes)))
        return roster.version, roster.ballot, roster.time_us, members
    finally:
        block_unref(copy)


def write(version, ballot, time_us, members):
    """The bytes; `members` are (node, role, address) by ascending node, taken as they are."""
    cdef Roster roster
    cdef Block* block
    cdef bytes address
    if len(members) > ROSTER_MAX:
        raise ValueError(f"{len(members)} are more than {ROSTER_MAX} members")
    memset(&roster, 0, sizeof(roster))
    roster.version = version
    roster.ballot = ballot
    roster.time_us = time_us
    roster.count = len(members)
    for i, (node, role, address) in enumerate(members):
        roster.members[i].node = node
        roster.members[i].role = role
        roster.members[i].address_bytes = len(address)
        roster.members[i].address = <const u8*><const char*>address
    block = roster_write(&roster)
    made = PyBytes_FromStringAndSize(<const char*>block.data, block.size)
    block_unref(block)
    return made
