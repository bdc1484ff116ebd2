# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Entries and ballots in what leaves a node; see watch_frames.pxd."""

from libc.string cimport memcpy

from phx._core.codec cimport align8
from phx._core.native cimport *
from phx._core.wire cimport ReportedEntry, SuppliedEntry


# Past a head of `head` bytes and the body behind it; False: that is not all there.
cdef bint passed(Entries* entries, u64 head, Entry* out) noexcept nogil:
    out.body = entries.at + head
    entries.at += align8(head + out.body_bytes)
    entries.left -= 1
    return entries.at <= entries.end


cdef bint next_reported(Entries* entries, Entry* out) noexcept nogil:
    cdef ReportedEntry entry
    if entries.left == 0 or entries.at + sizeof(entry) > entries.end:
        return False
    memcpy(&entry, entries.at, sizeof(entry))
    out.instance = entry.instance
    out.ballot = entry.ballot
    out.flags = entry.flags
    out.body_bytes = entry.body_bytes
    return passed(entries, sizeof(entry), out)


cdef bint next_supplied(Entries* entries, Entry* out) noexcept nogil:
    cdef SuppliedEntry entry
    if entries.left == 0 or entries.at + sizeof(entry) > entries.end:
        return False
    memcpy(&entry, entries.at, sizeof(entry))
    out.instance = entry.instance
    out.ballot = 0
    out.flags = 0
    out.body_bytes = entry.body_bytes
    return passed(entries, sizeof(entry), out)


cdef Ballot* ballot_used(vector[Ballot]* used, u64 ballot, u64 life) noexcept nogil:
    cdef Ballot one
    cdef size_t i = used.size()
    while i:
        i -= 1
        if used[0][i].ballot == ballot:
            return &used[0][i]
    one.ballot = ballot
    one.life = life
    one.promised = 0
    used.push_back(one)
    return &used.back()
