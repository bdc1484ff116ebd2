# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Votes that wait for the journal; see votes.pxd."""

from phx._core.native cimport *
from phx._core.proposer cimport vote_durable
from phx._core.relaxed cimport is_relaxed
from phx._core.state cimport *


cdef void vote_written(Engine* e, Vote* vote) noexcept nogil:
    """Meanwhile the group may have come to need more than that; all of that is being synced, and
    this record stands before it."""
    if vote.lsn_end <= e.durable or is_relaxed(e, e.replicas[vote.index]):
        vote_durable(e, vote)
    else:
        vote.lsn_end = e.lsn_needed
        e.votes.push_back(vote[0])


cdef void votes_durable(Engine* e, u64 lsn) noexcept nogil:
    cdef Vote vote
    while not e.votes.empty() and e.votes.front().lsn_end <= lsn:
        vote = e.votes.front()
        e.votes.pop_front()
        vote_durable(e, &vote)
    if not e.relaxed.empty() and lsn > e.written:
        votes_written(e, lsn)


cdef void votes_written(Engine* e, u64 lsn) noexcept nogil:
    cdef Replica* r
    cdef Vote vote
    e.written = lsn
    while not e.relaxed.empty() and e.relaxed.front().lsn_end <= lsn:
        vote = e.relaxed.front()
        e.relaxed.pop_front()
        if vote.ballot:
            vote_written(e, &vote)
            continue
        r = e.replicas[vote.index]
        r.ack_waits = False
        r.ack_due = True
        touch(e, r)


cdef void votes_of_others(deque[Vote]* votes, u32 index) noexcept nogil:
    cdef deque[Vote] kept
    cdef size_t i
    for i in range(votes.size()):
        if votes[0][i].index != index:
            kept.push_back(votes[0][i])
    votes.swap(kept)


cdef void votes_drop(Engine* e, u32 index) noexcept nogil:
    votes_of_others(&e.votes, index)
    votes_of_others(&e.relaxed, index)
